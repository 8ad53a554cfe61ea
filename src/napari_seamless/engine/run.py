"""One inference from start to end, as an iterator of small events.

Voxels stay in the accumulators; an event says only how far the run is and which voxels changed. The
widget, the command line and the tests all drain the same events.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from napari_seamless.engine.accumulator import BlendAccumulator
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import (
    ConfigError,
    ModelCallError,
    ModelError,
    PredictionError,
    SeamlessError,
    one_line,
)
from napari_seamless.engine.grid import Box
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.normalization import Normalizer, Stopped, normalizer_of
from napari_seamless.engine.outputs import Channels, finisher
from napari_seamless.engine.plan import InferencePlan
from napari_seamless.engine.predictor import Predictor
from napari_seamless.engine.results import Volume, as_saved, facts_of, outputs_of
from napari_seamless.engine.schedule import Schedule
from napari_seamless.engine.source import Source, read_patch
from napari_seamless.engine.store import Store

Status = Literal["ready", "running", "partial", "complete", "failed"]


@dataclass(frozen=True, slots=True)
class Event:
    """A batch of patches was blended in.

    Attributes
    ----------
    done, total : int
        Patches so far, and in the whole run. The total before the first event is an estimate where
        a network's output is smaller than its input.
    dirty : Box
        Voxels (Z, Y, X) of the prediction that may have changed.
    vol_id : int
        In which volume.
    """

    done: int
    total: int
    dirty: Box
    vol_id: int


class Run:
    """Blended inference over opened sources; iterate over it to do the work, a batch per event.

    Parameters
    ----------
    sources : sequence of Source
        The volumes.
    module : torch.nn.Module
        The network.
    config : InferenceConfig
        The settings.
    stores : sequence of Store, optional
        One per volume: where its prediction is written when the volume ends, however it ends.
    provenance : mapping, optional
        What the written files shall say about the network, JSON-like.

    Attributes
    ----------
    plan : InferencePlan
        What will be done. Replaced at the first batch if the network's output turns out to be
        smaller than its input.
    status : str
        "ready", "running", and then "complete", "partial" (cancelled) or "failed".
    failures : dict of int to SeamlessError
        What went wrong with which volume, by vol_id.
    written : set of int
        Volumes whose prediction is in its store.

    Raises
    ------
    UnusableInputError
        If settings, sources and machine do not fit together. Nothing is computed before iteration.

    Notes
    -----
    `focus`, `pause`, `resume` and `cancel` may be called from any thread and return at once; they
    take effect at the next batch. What goes wrong with one of several volumes is put into
    `failures`, and the others are finished. It is raised to whoever iterates if all volumes fail,
    or if no volume can do better: a setting or network that does not fit.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        module: nn.Module,
        config: InferenceConfig,
        stores: Sequence[Store] = (),
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.plan = InferencePlan.resolve(config, sources)
        self.status: Status = "ready"
        self.failures: dict[int, SeamlessError] = {}
        self.written: set[int] = set()
        self._statuses: dict[int, Status] = {}
        self._sources = sources
        self._stores = stores
        self._provenance = dict(provenance or {})
        self._predictor = Predictor(module, config, self.plan.device)
        self._accumulators = self._new_accumulators()
        self._control = threading.Condition()
        self._advancing = threading.Lock()
        self._paused = False
        self._cancelled = False
        self._interrupted = False
        self._focus: dict[int, Box | None] = {}
        self._events = self._work()
        self._peeked: Event | None = None
        self._raised: Exception | None = None
        self._channels: Channels | None = None

    @property
    def done(self) -> int:
        """Patches blended so far, of all volumes."""
        return sum(accumulator.done for accumulator in self._accumulators)

    @property
    def total(self) -> int:
        """Patches of the whole run."""
        return self.plan.patches

    @property
    def live(self) -> list[LazyArray]:
        """The partial prediction of each volume: float32 (C, Z, Y, X), NaN where uncovered.

        How many channels a network returns is known after its first batch; asked before that, this
        computes that batch (so it waits while the run is paused) and keeps its event for the
        iteration.
        """
        shown = self.channels.heads[self.channels.shown]
        return [accumulator.live(shown) for accumulator in self._accumulators]

    @property
    def channels(self) -> Channels:
        """What the channels of the network's output are; see `live` for when that is known.

        An error of the first batch is raised here, and again to whoever iterates.
        """
        if self._channels is None:
            with self._advancing:  # another thread may be at the first batch
                if self._channels is None:
                    self._peek()
        if self._channels is None:
            raise SeamlessError("the run ended before its first batch; there is nothing to see")
        return self._channels

    def _peek(self) -> None:
        try:
            self._peeked = next(self._events, None)
        except Exception as error:
            self._raised = error
            raise

    @property
    def weights(self) -> list[LazyArray]:
        """The weight sum so far of each volume: float32 (Z, Y, X)."""
        volumes = range(len(self.plan.volumes))
        return [self._following(vol_id, BlendAccumulator.weights) for vol_id in volumes]

    @property
    def coverage(self) -> list[LazyArray]:
        """Patches per voxel so far of each volume: uint16 (Z, Y, X)."""
        volumes = range(len(self.plan.volumes))
        return [self._following(vol_id, BlendAccumulator.coverage) for vol_id in volumes]

    def _following(self, vol_id: int, view: Callable[[BlendAccumulator], LazyArray]) -> LazyArray:
        """Return a view that stays true when the first batch replaces plan and accumulators."""
        now = view(self._accumulators[vol_id])
        return LazyArray(
            now.shape, now.dtype, lambda ranges: view(self._accumulators[vol_id])[ranges]
        )

    def outputs(self, vol_id: int = 0) -> dict[str, Volume]:
        """Return all that is known of a volume; see `outputs_of`."""
        return outputs_of(self._accumulators[vol_id], self.channels, self.plan.config)

    def files(self, vol_id: int = 0) -> dict[str, Volume]:
        """Return the `outputs` of a volume as the numbers that are saved."""
        return as_saved(self.outputs(vol_id), self.plan.config)

    def results(self) -> list[NDArray[np.float32]]:
        """Return the prediction of each volume, (C, Z, Y, X); NaN where a partial run was not."""
        volumes = range(len(self.plan.volumes))
        return [np.asarray(self.outputs(vol_id)["main"]) for vol_id in volumes]

    def focus(self, box: Box | None, vol_id: int = 0) -> None:
        """Run the patches that touch `box` next; None goes back to raster order.

        Parameters
        ----------
        box : Box or None
            In voxels of the source, (Z, Y, X).
        vol_id : int
            Of which volume.
        """
        if box is not None and not isinstance(box, Box):
            raise TypeError(
                f"focus {box!r} is no Box; give Box((z, y, x), (z_stop, y_stop, x_stop))"
            )
        if not 0 <= vol_id < len(self.plan.volumes):
            raise IndexError(f"vol_id {vol_id} is not one of the {len(self.plan.volumes)} volumes")
        with self._control:
            self._focus[vol_id] = box

    def pause(self) -> None:
        """Stop before the next batch until `resume` or `cancel` is called from another thread."""
        with self._control:
            self._paused = True

    def resume(self) -> None:
        """Go on after `pause`."""
        with self._control:
            self._paused = False
            self._control.notify_all()

    def cancel(self) -> None:
        """End the run before the next batch; what is done stays, as a partial result."""
        with self._control:
            self._cancelled = True
            self._control.notify_all()

    def close(self) -> None:
        """End the run now if it has not ended; what is done stays readable."""
        self.cancel()
        with self._advancing:
            self._events.close()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        with self._advancing:
            event, self._peeked = self._peeked, None
            error, self._raised = self._raised, None
            if error is not None:
                raise error
            return event or next(self._events)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _new_accumulators(self) -> list[BlendAccumulator]:
        finish = finisher(self.plan.config, lambda: self._predictor.channels)
        return [
            BlendAccumulator(volume.grid, self.plan.window, finish) for volume in self.plan.volumes
        ]

    def _work(self) -> Generator[Event]:
        """Do the run; however it is left, `status` says how and the stores have what was done."""
        self.status = "running"
        try:
            for vol_id in range(len(self.plan.volumes)):
                try:
                    yield from self._work_on(vol_id)
                except SeamlessError as error:
                    self.failures[vol_id] = error
                    if self._interrupted or _concerns_all(error):
                        raise
            if len(self.failures) == len(self.plan.volumes):
                raise self.failures[0]
        except (GeneratorExit, KeyboardInterrupt):
            self.status = self._outcome()
            raise
        except BaseException:
            self.status = "failed"
            raise
        else:
            self.status = self._outcome()

    def _work_on(self, vol_id: int) -> Iterator[Event]:
        """Do one volume; however it is left, its store has what was done."""
        try:
            yield from self._batches(vol_id)
        except (GeneratorExit, KeyboardInterrupt):
            self._interrupted = True
            self._keep(vol_id)
            raise
        except BaseException as error:
            self._statuses[vol_id] = "failed"
            try:
                self._keep(vol_id)
            except SeamlessError as second:  # the first error is the one to mend
                error.add_note(str(second))
            raise
        self._keep(vol_id)

    def _batches(self, vol_id: int) -> Iterator[Event]:
        if not self._may_go_on():
            return
        config = self.plan.config
        try:
            normalizer = normalizer_of(
                self._sources[vol_id],
                config.normalization,
                config.percentiles,
                config.mean_std,
                self._may_go_on,
            )
        except Stopped:
            return
        schedule = Schedule(self.plan.volumes[vol_id].grid)
        focus = None
        while schedule and self._may_go_on():
            if vol_id in self._focus:
                focus = self._take_focus(vol_id)
                schedule.focus(focus)
            indices = schedule.take(config.batch_size)
            predictions = self._predict(vol_id, indices, normalizer)
            if self._predictor.core_size != self.plan.core_size:  # known from the first batch on
                self.plan = self.plan.narrowed(self._predictor.core_size, self._sources)
                self._accumulators = self._new_accumulators()
                schedule = Schedule(self.plan.volumes[vol_id].grid)
                schedule.focus(focus)
                continue
            self._channels = self._predictor.channels
            yield self._blend(vol_id, indices, predictions)

    def _may_go_on(self) -> bool:
        """Wait while paused; say whether the run is still wanted."""
        with self._control:
            self._control.wait_for(lambda: self._cancelled or not self._paused)
            return not self._cancelled

    def _take_focus(self, vol_id: int) -> Box | None:
        """Return what is looked at, in voxels of the prediction."""
        with self._control:
            box = self._focus.pop(vol_id)
        return None if box is None else self.plan.volumes[vol_id].output_box(box)

    def _predict(self, vol_id: int, indices: list[int], normalizer: Normalizer) -> torch.Tensor:
        """Read and predict one batch of patches; return (B, C, z, y, x)."""
        source, volume = self._sources[vol_id], self.plan.volumes[vol_id]
        padding = self.plan.config.padding
        patches = [
            read_patch(source, volume.input_box(index), padding, normalizer) for index in indices
        ]
        return self._predictor(np.stack(patches))

    def _blend(self, vol_id: int, indices: list[int], predictions: torch.Tensor) -> Event:
        """Add one batch of patches."""
        accumulator = self._accumulators[vol_id]
        if not accumulator.done:
            self._reserve(vol_id)
        try:
            boxes = [
                accumulator.add(index, prediction)
                for index, prediction in zip(indices, predictions, strict=True)
            ]
        except (MemoryError, OSError) as error:  # a mapping that fails is an OSError
            raise PredictionError(
                f"no memory for the sums of {self.plan.volumes[vol_id].name}: {one_line(error)}; "
                "predict a smaller volume, or free memory"
            ) from error
        return Event(self.done, self.total, Box.around(boxes), vol_id)

    def _reserve(self, vol_id: int) -> None:
        """Check what can be checked once the number of channels is known."""
        files = self.files(vol_id)
        if self._stores:
            self._stores[vol_id].reserve(sum(array.nbytes for array in files.values()))

    def _outcome(self) -> Status:
        if self.failures:
            return "failed"
        return "complete" if self.done == self.total else "partial"

    def _keep(self, vol_id: int) -> None:
        """Hand what was done to the store; a volume that was not begun leaves nothing behind."""
        done, total = self.progress(vol_id)
        self._statuses.setdefault(vol_id, "complete" if done == total else "partial")
        if self._stores and done:
            self._stores[vol_id].write(self.files(vol_id), self.metadata(vol_id))
            self.written.add(vol_id)

    def progress(self, vol_id: int) -> tuple[int, int]:
        """Return the patches of one volume that are blended so far, and all of them."""
        return self._accumulators[vol_id].done, len(self.plan.volumes[vol_id].grid)

    @property
    def unwritten(self) -> list[int]:
        """Volumes of which something is done that is not in their store, be it not yet."""
        volumes = range(len(self._stores))
        return [each for each in volumes if each not in self.written and self.progress(each)[0]]

    def metadata(self, vol_id: int = 0) -> dict[str, Any]:
        """Return what a file or layer says of its volume; see `facts_of`."""
        done, _ = self.progress(vol_id)
        status = self._statuses.get(vol_id, "running" if self.status == "running" else self.status)
        volume = self.plan.volumes[vol_id]
        facts = facts_of(volume, self.plan.config, status, done, self._channels)
        return {**facts, **self._provenance}


def _concerns_all(error: SeamlessError) -> bool:
    """Whether an error would meet every volume: a setting or network that does not fit.

    A call of the network that fails may be the fault of what it was given.
    """
    return isinstance(error, (ConfigError, ModelError)) and not isinstance(error, ModelCallError)
