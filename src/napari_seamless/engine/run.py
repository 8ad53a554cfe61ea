"""One inference from start to end, as an iterator of small events.

Voxels stay in the accumulators; an event says only how far the run is and which voxels changed. The
widget, the command line and the tests all drain the same events.
"""

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from torch import nn

from napari_seamless.engine.accumulator import BlendAccumulator
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import PredictionError, SeamlessError, one_line
from napari_seamless.engine.grid import Box
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.plan import InferencePlan, VolumePlan
from napari_seamless.engine.predictor import Predictor
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
        Patches so far, and in the whole run.
    dirty : Box
        Voxels (Z, Y, X) that may have changed.
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
    store : Store, optional
        Where the prediction of a single volume is written when the run ends, however it ends.
    provenance : mapping, optional
        What the written file shall say about the network and the input, JSON-like.

    Raises
    ------
    UnusableInputError
        If settings, sources and machine do not fit together. Nothing is computed before iteration.

    Notes
    -----
    `focus`, `pause`, `resume` and `cancel` may be called from any thread and return at once; they
    take effect at the next batch. A failure while running is raised to whoever iterates.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        module: nn.Module,
        config: InferenceConfig,
        store: Store | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.plan = InferencePlan.resolve(config, sources)
        self.status: Status = "ready"
        self.is_written = False
        self._sources = sources
        self._store = store
        self._provenance = dict(provenance or {})
        self._predictor = Predictor(module, config, self.plan.device)
        self._accumulators = [
            BlendAccumulator(volume.grid, self.plan.window) for volume in self.plan.volumes
        ]
        self._control = threading.Condition()
        self._advancing = threading.Lock()
        self._paused = False
        self._cancelled = False
        self._focus: dict[int, Box | None] = {}
        self._events = self._work()
        self._peeked: Event | None = None
        self._channels = 0

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
        if not self._channels:
            with self._advancing:  # another thread may be at the first batch
                if not self._channels:
                    self._peeked = next(self._events, None)
        if not self._channels:
            raise SeamlessError("the run ended before its first batch; there is nothing to see")
        return [accumulator.live(self._channels) for accumulator in self._accumulators]

    @property
    def weights(self) -> list[LazyArray]:
        """The weight sum so far of each volume: float32 (Z, Y, X)."""
        return [accumulator.weights() for accumulator in self._accumulators]

    @property
    def coverage(self) -> list[LazyArray]:
        """Patches per voxel so far of each volume: uint16 (Z, Y, X)."""
        return [accumulator.coverage() for accumulator in self._accumulators]

    def results(self) -> list[NDArray[np.float32]]:
        """Return the prediction of each volume, (C, Z, Y, X); NaN where a partial run was not."""
        if self.status == "complete":
            return [accumulator.result() for accumulator in self._accumulators]
        return [np.asarray(live) for live in self.live]

    def focus(self, box: Box | None, vol_id: int = 0) -> None:
        """Run the patches that touch `box` (Z, Y, X) next; None goes back to raster order."""
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

    def _work(self) -> Generator[Event]:
        """Do the run; however it is left, `status` says how and the store has what was done."""
        self.status = "running"
        try:
            for volume in self.plan.volumes:
                yield from self._work_on(volume)
        except (GeneratorExit, KeyboardInterrupt):
            self._end(self._outcome())
            raise
        except BaseException as error:
            try:
                self._end("failed")
            except SeamlessError as second:  # the first error is the one to mend
                error.add_note(str(second))
            raise
        else:
            self._end(self._outcome())

    def _work_on(self, volume: VolumePlan) -> Iterator[Event]:
        schedule = Schedule(volume.grid)
        while schedule and self._may_go_on():
            if volume.vol_id in self._focus:
                schedule.focus(self._take_focus(volume.vol_id))
            yield self._blend(volume, schedule.take(self.plan.config.batch_size))

    def _may_go_on(self) -> bool:
        """Wait while paused; say whether the run is still wanted."""
        with self._control:
            self._control.wait_for(lambda: self._cancelled or not self._paused)
            return not self._cancelled

    def _take_focus(self, vol_id: int) -> Box | None:
        with self._control:
            return self._focus.pop(vol_id)

    def _blend(self, volume: VolumePlan, indices: list[int]) -> Event:
        """Read, predict and add one batch of patches."""
        source, accumulator = self._sources[volume.vol_id], self._accumulators[volume.vol_id]
        padding = self.plan.config.padding
        patches = np.stack([read_patch(source, volume.grid[i], padding) for i in indices])
        predictions = self._predictor(patches)  # (B, C, Z, Y, X)
        if not self._channels:
            self._channels = predictions.shape[1]
            if self._store is not None:
                self._store.reserve((self._channels, *volume.grid.shape))
        try:
            boxes = [
                accumulator.add(index, prediction)
                for index, prediction in zip(indices, predictions, strict=True)
            ]
        except (MemoryError, OSError) as error:  # a mapping that fails is an OSError
            raise PredictionError(
                f"no memory for the sums of {volume.name}: {one_line(error)}; "
                "predict a smaller volume, or free memory"
            ) from error
        return Event(self.done, self.total, Box.around(boxes), volume.vol_id)

    def _outcome(self) -> Status:
        return "complete" if self.done == self.total else "partial"

    def _end(self, status: Status) -> None:
        """Hand what was done to the store; a run that did nothing leaves nothing behind."""
        self.status = status
        if self._store is None or not self.done:
            return
        prediction = self.results()[0] if status == "complete" else self.live[0]
        self._store.write(prediction, self.metadata())
        self.is_written = True

    def metadata(self) -> dict[str, Any]:
        """Return what a file or layer says of its run: status, done, total, config, provenance."""
        return {
            "status": self.status,
            "done": self.done,
            "total": self.total,
            "config": self.plan.config.model_dump(mode="json"),
            **self._provenance,
        }
