"""One inference from start to end, as an iterator of small events.

Voxels stay in the accumulators; an event says only how far the run is and which voxels changed. The
widget, the command line and the tests all drain the same events.
"""

import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from napari_seamless.engine.accumulator import BlendAccumulator
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.control import Control
from napari_seamless.engine.errors import (
    ConfigError,
    EndedError,
    ModelCallError,
    ModelError,
    SeamlessError,
)
from napari_seamless.engine.events import Event, Status
from napari_seamless.engine.forecast import Forecast, Pace
from napari_seamless.engine.grid import Box
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.memory import default_budget, resident
from napari_seamless.engine.normalization import Stopped
from napari_seamless.engine.outputs import Channels, finisher
from napari_seamless.engine.pipeline import Batch, batches, predicted
from napari_seamless.engine.plan import InferencePlan
from napari_seamless.engine.predictor import Predictor
from napari_seamless.engine.results import Volume
from napari_seamless.engine.schedule import Schedule
from napari_seamless.engine.source import Source
from napari_seamless.engine.store import Store
from napari_seamless.engine.volume_run import VolumeRun, deciding


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
        One per volume: where its prediction is written, chunk by finished chunk.
    provenance : mapping, optional
        What the written files shall say about the network, JSON-like.
    masks : sequence of Source, optional
        One per volume: patches that reach no voxel of it that is not 0 are not run.
    identities : sequence of mapping, optional
        One per volume, JSON-like: what else decides the numbers. A store that was left by a run
        with another one is not resumed.
    memory : int, optional
        Bytes for chunks of the source, finished voxels and open sums; what does not fit stays in
        the store, or goes to files beside it. A quarter of the free memory by default. Without a
        store everything is in memory.

    Attributes
    ----------
    plan : InferencePlan
        What will be done. Replaced at the first batch if the network's output turns out to be
        smaller than its input.
    status : str
        "ready", "running", and then "complete", "partial" (cancelled, or without patches that could
        not be read) or "failed".
    failures : dict of int to SeamlessError
        What went wrong with which volume, by vol_id.
    volumes : list of VolumeRun
        What is done of each volume, by vol_id.
    inputs : tuple of int
        To which input each volume belongs: the time points of a series share one.

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

    _forecast_events = 2
    """Batches that are done before a forecast."""

    def __init__(
        self,
        sources: Sequence[Source],
        module: nn.Module,
        config: InferenceConfig,
        stores: Sequence[Store] = (),
        provenance: Mapping[str, Any] | None = None,
        *,
        masks: Sequence[Source] = (),
        identities: Sequence[Mapping[str, Any]] = (),
        memory: int | None = None,
    ) -> None:
        self.plan = InferencePlan.resolve(config, sources)
        self.status: Status = "ready"
        self.failures: dict[int, SeamlessError] = {}
        self._statuses: dict[int, Status] = {}
        self.inputs = tuple(range(len(sources)))
        self._sources = sources
        self._provenance = dict(provenance or {})
        self._memory = default_budget() if memory is None else memory
        self._predictor = Predictor(module, config, self.plan.device)
        self._pace = Pace()
        finish = finisher(config, lambda: self._predictor.channels)
        none = [None] * len(sources)
        decides = {"config": deciding(config, self._predictor.planes)}
        self.volumes = [
            VolumeRun(config, source, mask, store, finish, {**decides, **(identity or {})})
            for source, mask, store, identity in zip(
                sources, masks or none, stores or none, identities or none, strict=True
            )
        ]
        self._lay_out()
        self._control = Control()
        self._advancing = threading.Lock()
        self._interrupted = False
        self._events = self._work()
        self._peeked: deque[Event] = deque()
        self._given = 0
        self._raised: Exception | None = None
        self._channels: Channels | None = None

    @property
    def done(self) -> int:
        """Patches settled so far, of all volumes."""
        return sum(volume.accumulator.done for volume in self.volumes)

    @property
    def spared(self) -> int:
        """Patches settled that did not run: an earlier run has done them, or they are skipped."""
        return sum(volume.spared for volume in self.volumes)

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
        return [volume.live(shown) for volume in self.volumes]

    @property
    def channels(self) -> Channels:
        """What the channels of the network's output are; see `live` for when that is known.

        An error of the first batch is raised here, and again to whoever iterates.
        """
        if self._channels is None:
            with self._advancing:  # another thread may be at the first batch
                if self._channels is None:
                    self._peek(1)
        if self._channels is None:
            raise EndedError("the run ended before its first batch; there is nothing to see")
        return self._channels

    def _peek(self, count: int) -> None:
        """Do the work of events that nobody has asked for yet; they are kept."""
        while len(self._peeked) < count and self._raised is None:
            try:
                self._peeked.append(next(self._events))
            except StopIteration:
                return
            except Exception as error:
                self._raised = error
                raise

    @property
    def weights(self) -> list[LazyArray]:
        """The weight sum so far of each volume: float32 (Z, Y, X)."""
        return [volume.following(BlendAccumulator.weights) for volume in self.volumes]

    @property
    def coverage(self) -> list[LazyArray]:
        """Patches per voxel so far of each volume: uint16 (Z, Y, X)."""
        return [volume.following(BlendAccumulator.coverage) for volume in self.volumes]

    def forecast(self) -> Forecast:
        """Say what the run will take; like `live`, this computes the first batch if need be.

        And the second one, which tells the network's pace: the first call also sets things up.
        """
        _ = self.channels
        with self._advancing:
            self._peek(self._forecast_events - self._given)
        channels, left = self.channels, self.total - self.done
        needs = [volume.needs(channels, self._memory) for volume in self.volumes]
        resumed = sum(volume.resumed for volume in self.volumes)
        return Forecast(
            patches=self.total - self.spared,
            skipped=self.spared - resumed,
            resumed=resumed,
            seconds=left * self._pace.seconds_per_patch,
            memory=resident()
            + max(each.memory for each in needs)
            + sum(each.shares.kept for each in needs),
            scratch=max(each.scratch for each in needs),
            output=sum(each.output for each in needs),
        )

    def outputs(self, vol_id: int = 0) -> dict[str, Volume]:
        """Return all that is known of a volume; see `outputs_of`."""
        return self.volumes[vol_id].outputs(self.channels)

    def files(self, vol_id: int = 0) -> dict[str, Volume]:
        """Return the `outputs` of a volume as the numbers that are saved."""
        return self.volumes[vol_id].files(self.channels)

    def results(self) -> list[NDArray[np.float32]]:
        """Return the prediction of each volume, (C, Z, Y, X); NaN where a partial run was not."""
        return [np.asarray(volume.outputs(self.channels)["main"]) for volume in self.volumes]

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
        self._control.focus(box, vol_id)

    def preview(self, is_only: bool = True) -> None:
        """Predict nothing but what `focus` says, and wait when that is done; or all of it again."""
        self._control.preview(is_only)

    def pause(self) -> None:
        """Stop before the next batch until `resume` or `cancel` is called from another thread."""
        self._control.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._control.resume()

    def cancel(self) -> None:
        """End the run before the next batch; what is done stays, as a partial result."""
        self._control.cancel()

    def close(self) -> None:
        """End the run now if it has not ended; what is done stays readable."""
        self.cancel()
        try:
            with self._advancing:
                self._events.close()
        finally:
            for volume in self.volumes:
                volume.close()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        with self._advancing:
            self._given += 1
            if self._peeked:
                return self._peeked.popleft()
            error, self._raised = self._raised, None
            if error is not None:
                raise error
            return next(self._events)

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
        """Do the run; however it is left, `status` says how and the stores have what was done."""
        self.status = "running"
        try:
            for vol_id in range(len(self.volumes)):
                try:
                    yield from self._work_on(vol_id)
                except SeamlessError as error:
                    self.failures[vol_id] = error
                    if self._interrupted or _concerns_all(error):
                        raise
            if len(self.failures) == len(self.volumes):
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
        volume = self.volumes[vol_id]
        try:
            if not self._control.may_go_on():
                return
            volume.prepare(self._control.may_go_on)
            first = self._first_batch(vol_id) if self._channels is None else None
            if self._channels is None:
                return
            volume.begin(
                self._channels, self._memory_left(), self.metadata(vol_id), self._control.may_go_on
            )
        except Stopped:
            return
        if volume.accumulator.done:
            yield Event(self.done, self.total, Box.of_shape(volume.plan.grid.shape), vol_id)
        if first is not None:
            event, first = self._blend(vol_id, first), None
            if any(event.dirty.shape):  # else none of its patches needed to run
                yield event
        for batch in self._rest(vol_id):
            if batch is None:  # nothing is left of what is looked at
                self._control.wait_for_news(vol_id)
            else:
                yield self._blend(vol_id, batch)

    def _first_batch(self, vol_id: int) -> Batch | None:
        """Predict some patches, and plan anew if the network makes less of them than expected.

        Returns None if the run was cancelled before. From now on the channels are known.
        """
        unreadable = None
        schedule, volume = self._first_schedule(vol_id), self.volumes[vol_id]
        while schedule and self._control.may_go_on():
            indices = schedule.take(self.plan.config.batch_size)
            batch = predicted(indices, [*map(volume.read, indices)], self._predict)
            if batch.predictions is None:
                unreadable = batch.unreadable[indices[0]]
            elif self._predictor.core_size != self.plan.core_size:
                self.plan = self.plan.narrowed(self._predictor.core_size, self._sources)
                self._lay_out()
                schedule = self._first_schedule(vol_id)
            else:
                self._channels = self._predictor.channels
                return batch
        if unreadable is not None and not schedule:
            raise unreadable
        return None

    def _first_schedule(self, vol_id: int) -> Schedule:
        """Return all patches of a volume that are to run, or all if none is."""
        volume = self.volumes[vol_id]
        wanted = ~volume.survey(self._control.may_go_on)
        schedule = Schedule(volume.plan.grid, wanted if wanted.any() else None)
        schedule.focus(self._looked_at(vol_id)[0])
        return schedule

    def _predict(self, patches: NDArray[np.float32]) -> torch.Tensor:
        with self._pace.of(len(patches)):
            return self._predictor(patches)

    def _lay_out(self) -> None:
        for volume, plan in zip(self.volumes, self.plan.volumes, strict=True):
            volume.lay_out(plan, self.plan.window)

    def _memory_left(self) -> int:
        kept = [volume.accumulator for volume in self.volumes if volume.is_written]
        taken = sum(each.nbytes for each in kept)
        return max(0, self._memory - taken)

    def _rest(self, vol_id: int) -> Iterator[Batch | None]:
        """Predict what is not settled yet."""
        volume = self.volumes[vol_id]
        schedule = Schedule(volume.plan.grid, volume.accumulator.waiting)
        schedule.focus(*self._looked_at(vol_id))
        return batches(
            schedule,
            self.plan.config.batch_size,
            volume.read,
            self._predict,
            self._control.may_go_on,
            lambda: self._control.has_new_focus(vol_id),
            lambda schedule: schedule.focus(*self._looked_at(vol_id)),
        )

    def _looked_at(self, vol_id: int) -> tuple[Box | None, bool]:
        """Return what is looked at, in voxels of the prediction, and whether nothing else runs."""
        focus = self._control.take_focus(vol_id)
        volume = self.plan.volumes[vol_id]
        return None if focus.box is None else volume.output_box(focus.box), focus.is_only

    def _blend(self, vol_id: int, batch: Batch) -> Event:
        """Add one batch of patches."""
        dirty = self.volumes[vol_id].blend(batch)
        return Event(self.done, self.total, dirty, vol_id)

    def _outcome(self) -> Status:
        if self.failures:
            return "failed"
        is_missing = any(volume.unreadable for volume in self.volumes)
        return "complete" if self.done == self.total and not is_missing else "partial"

    def _keep(self, vol_id: int) -> None:
        """Hand what was done to the store; a volume that was not begun leaves nothing behind."""
        volume, (done, total) = self.volumes[vol_id], self.progress(vol_id)
        is_whole = done == total and not volume.unreadable  # what is missing may be resumed
        self._statuses.setdefault(vol_id, "complete" if is_whole else "partial")
        volume.keep(lambda: self.metadata(vol_id) | self._closing_facts(vol_id))

    def _closing_facts(self, vol_id: int) -> dict[str, Any]:
        """Return what is known of a volume at its end only."""
        return {}

    def progress(self, vol_id: int) -> tuple[int, int]:
        """Return the patches of one volume that are settled so far, and all of them."""
        return self.volumes[vol_id].progress

    @property
    def written(self) -> set[int]:
        """Volumes whose prediction is in its store."""
        return {vol_id for vol_id, volume in enumerate(self.volumes) if volume.is_written}

    @property
    def unwritten(self) -> list[int]:
        """Volumes of which something is done that is not in their store's place, be it not yet."""
        return [
            vol_id
            for vol_id, volume in enumerate(self.volumes)
            if volume.has_store and not volume.is_written and volume.accumulator.done
        ]

    def metadata(self, vol_id: int = 0) -> dict[str, Any]:
        """Return what a file or layer says of its volume; see `facts_of`."""
        status = self._statuses.get(vol_id, "running" if self.status == "running" else self.status)
        return {**self.volumes[vol_id].facts(status, self._channels), **self._provenance}


def _concerns_all(error: SeamlessError) -> bool:
    """Whether an error would meet every volume: a setting or network that does not fit.

    A call of the network that fails may be the fault of what it was given.
    """
    return isinstance(error, (ConfigError, ModelError)) and not isinstance(error, ModelCallError)
