"""The work of a run: volume by volume, batch by batch, to the end or to where it was stopped."""

import os
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from napari_seamless.engine.batched import Batched
from napari_seamless.engine.box import Box
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.control import Control
from napari_seamless.engine.errors import (
    ConfigError,
    ModelCallError,
    ModelError,
    PredictionError,
    SeamlessError,
)
from napari_seamless.engine.event_queue import EventQueue
from napari_seamless.engine.events import Event, Status
from napari_seamless.engine.memory import default_budget
from napari_seamless.engine.normalization import Stopped
from napari_seamless.engine.outputs import Channels, finisher
from napari_seamless.engine.pipeline import Batch, batches, load, predicted
from napari_seamless.engine.plan import InferencePlan, check_precision
from napari_seamless.engine.predictor import Predictor
from napari_seamless.engine.schedule import Schedule
from napari_seamless.engine.source import Source
from napari_seamless.engine.stages import Stages
from napari_seamless.engine.store import Store
from napari_seamless.engine.volume_run import VolumeRun
from napari_seamless.engine.written import deciding

MOST_NOT_FINITE = 8
"""If so many patches, the first ones, all become NaN or infinity, the network is at fault."""


class Work:
    """Does a run as its `Control` asks, and knows what is done; the base of `Run`, which see."""

    can_preview = True
    """Whether it can switch between volumes, and hold back what is not looked at."""

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
        self._check_device()
        self.status: Status = "ready"
        self.failures: dict[int, SeamlessError] = {}
        self._statuses: dict[int, Status] = {}
        self.inputs = tuple(range(len(sources)))
        self.is_waiting = False
        self._sources = sources
        self._provenance = dict(provenance or {})
        self._memory = default_budget() if memory is None else memory
        self._is_ahead = self.plan.device.type == "cuda"
        here = torch.device("cpu")
        stays = self.plan.device if self._is_ahead else here
        self._predictor = Predictor(module, config, self.plan.device, leaves_on=stays)
        self._batched = Batched(lambda patches: self._predictor(patches))
        self._seconds_per_patch = 0.0
        self.stages = Stages()
        self._reader = ThreadPoolExecutor(1, "seamless-read")  # starts no thread until it is used
        self._blender = ThreadPoolExecutor(1, "seamless-blend")
        self.volumes = self._volumes(config, sources, masks, stores, identities)
        self._lay_out()
        self._control = Control()
        self._interrupted = False
        self._to_come = set(range(len(sources)))
        self._working: set[int] = set()
        self._channels: Channels | None = None
        self._events = EventQueue(self._work())

    def _volumes(
        self,
        config: InferenceConfig,
        sources: Sequence[Source],
        masks: Sequence[Source],
        stores: Sequence[Store],
        identities: Sequence[Mapping[str, Any]],
    ) -> list[VolumeRun]:
        none = [None] * len(sources)
        device = self.plan.device
        decides = {"config": deciding(config, self._predictor.planes)}
        finish = finisher(config, lambda: self._predictor.channels)
        blender = self._blender if has_spare_core(device, config.threads) else None
        return [
            VolumeRun(
                config,
                source,
                mask,
                store,
                finish,
                {**decides, **(identity or {})},
                self.stages,
                device,
                blender,
            )
            for source, mask, store, identity in zip(
                sources, masks or none, stores or none, identities or none, strict=True
            )
        ]

    def _check_device(self) -> None:
        """Raise ConfigError if the network shall not run like this where it runs."""
        check_precision(self.plan.config, self.plan.device)

    @property
    def done(self) -> int:
        """Patches settled so far, of all volumes."""
        return sum(volume.done for volume in self.volumes)

    @property
    def spared(self) -> int:
        """Patches settled that did not run: an earlier run has done them, or they are skipped."""
        return sum(volume.spared for volume in self.volumes)

    @property
    def total(self) -> int:
        """Patches of the whole run."""
        return self.plan.patches

    def _work(self) -> Generator[Event | None]:
        """Do the run; however it is left, `status` says how and the stores have what was done.

        Only a run that is let go of and never closed leaves what a killed one does.

        Yields None when all that is left is held back, because it is not looked at.
        """
        self.status = "running"
        try:
            yield from self._work_on_all()
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
        finally:
            if self._events.is_awaited:  # else they end by themselves
                self._reader.shutdown()
                self._blender.shutdown()

    def _work_on_all(self) -> Generator[Event | None]:
        """Do all volumes, the one that is looked at first; what is left for it goes on later."""
        left = {vol_id: self._work_on(vol_id) for vol_id in range(len(self.volumes))}
        with ExitStack() as ending:  # those that were begun
            for work in left.values():
                ending.callback(work.close)
            while left:
                vol_id = self._next_of(left)
                try:
                    for event in left[vol_id]:
                        yield event
                        if self._next_of(left) != vol_id:
                            self.volumes[vol_id].flush()  # the other may write to the same file
                            break
                    else:
                        del left[vol_id]
                except SeamlessError as error:
                    del left[vol_id]
                    self.failures[vol_id] = error
                    if self._interrupted or _concerns_all(error):
                        raise

    def _next_of(self, left: Collection[int]) -> int:
        looked_at = self._control.looked_at
        if looked_at is None or looked_at not in left or not self.can_preview:
            return min(left)
        return looked_at

    def _work_on(self, vol_id: int) -> Generator[Event | None]:
        """Do one volume; however it is left, its store has what was done."""
        self._to_come.discard(vol_id)
        self._working.add(vol_id)
        try:
            yield from self._batches(vol_id)
        except (GeneratorExit, KeyboardInterrupt):
            self._interrupted = True
            if self._events.is_awaited:
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

    def _batches(self, vol_id: int) -> Iterator[Event | None]:
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
        rest = self._rest(vol_id, after=first)
        if first is not None:
            event, first = self._blend(vol_id, first), None
            if any(event.dirty.shape):  # else none of its patches needed to run
                yield event
        for batch in rest:
            yield None if batch is None else self._blend(vol_id, batch)

    def _first_batch(self, vol_id: int) -> Batch | None:
        """Predict some patches, and plan anew if the network makes less of them than expected.

        Returns None if the run was cancelled before. From now on the channels are known.
        """
        failure = None
        schedule, volume = self._first_schedule(vol_id), self.volumes[vol_id]
        until = len(schedule) - MOST_NOT_FINITE
        while schedule and self._control.may_go_on():
            indices = schedule.take(self.plan.config.batch_size)
            batch = predicted(load(indices, volume.read), self._batched, self._took)
            if batch.predictions is None:
                failure = batch.failed[indices[0]]
                if isinstance(failure, PredictionError) and len(schedule) <= until:
                    raise failure
            elif self._predictor.core_size != self.plan.core_size:
                self.plan = self.plan.narrowed(self._predictor.core_size, self._sources)
                self._lay_out()
                schedule = self._first_schedule(vol_id)
            else:
                self._channels = self._predictor.channels
                return batch
        if failure is not None and not schedule:
            raise failure
        return None

    def _first_schedule(self, vol_id: int) -> Schedule:
        """Return all patches of a volume that are to run, or all if none is."""
        volume = self.volumes[vol_id]
        wanted = ~volume.survey(self._control.may_go_on)
        schedule = Schedule(volume.plan.grid, wanted if wanted.any() else None)
        schedule.focus(self._looked_at(vol_id)[0])
        return schedule

    def _took(self, patches: int, seconds: float) -> None:
        """Note how long the network was at work."""
        self._seconds_per_patch = seconds / patches
        self.stages.add("network", seconds)

    def _lay_out(self) -> None:
        for volume, plan in zip(self.volumes, self.plan.volumes, strict=True):
            volume.lay_out(plan, self.plan.window)

    def _memory_left(self) -> int:
        """Return what is left of the budget by volumes that are written, or go on later."""
        kept = [volume.accumulator.nbytes for volume in self.volumes if volume.is_written]
        open_sums = [self.volumes[vol_id].accumulator.open_bytes for vol_id in self._working]
        return max(0, self._memory - sum(kept) - sum(open_sums))

    def _rest(self, vol_id: int, after: Batch | None) -> Iterator[Batch | None]:
        """Predict what is not settled yet, and will not be by the batch before."""
        volume = self.volumes[vol_id]
        waiting = volume.accumulator.waiting
        if after is not None:
            waiting.flat[[*after.indices, *after.failed]] = False
        volume.schedule = schedule = Schedule(volume.plan.grid, waiting)
        schedule.focus(*self._looked_at(vol_id))
        return batches(
            schedule,
            self.plan.config.batch_size,
            self._reader,
            volume.read,
            self._batched,
            self._control.may_go_on,
            lambda: self._control.has_new_focus(vol_id),
            lambda schedule: schedule.focus(*self._looked_at(vol_id)),
            self._took,
            is_ahead=self._is_ahead,
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
        is_missing = any(volume.failed for volume in self.volumes)
        return "complete" if self.done == self.total and not is_missing else "partial"

    def _keep(self, vol_id: int) -> None:
        """Hand what was done to the store; a volume that was not begun leaves nothing behind."""
        volume, (done, total) = self.volumes[vol_id], self.progress(vol_id)
        is_whole = done == total and not volume.failed  # what is missing may be resumed
        self._working.discard(vol_id)
        self._statuses.setdefault(vol_id, "complete" if is_whole else "partial")
        volume.keep(lambda: self.metadata(vol_id) | self._closing_facts(vol_id))

    def _closing_facts(self, vol_id: int) -> dict[str, Any]:
        """Return what is known of a volume at its end only."""
        return {}

    def progress(self, vol_id: int) -> tuple[int, int]:
        """Return how far one volume is.

        Parameters
        ----------
        vol_id : int
            Which volume.

        Returns
        -------
        done, total : int
            Patches that are settled so far, and all of them.
        """
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
        """Return what a file or layer says of a volume of the run.

        Parameters
        ----------
        vol_id : int
            Which volume.

        Returns
        -------
        dict
            JSON-like: status, done and total patches, settings, geometry, the network and versions.
        """
        status = self._statuses.get(vol_id, "running" if self.status == "running" else self.status)
        return {**self.volumes[vol_id].facts(status, self._channels), **self._provenance}


def has_spare_core(device: torch.device, threads: int | None) -> bool:
    """Return whether there is a core to blend with while the network is at work."""
    taken = threads or torch.get_num_threads()
    return device.type != "cpu" or taken < (os.cpu_count() or 1)


def _concerns_all(error: SeamlessError) -> bool:
    """Whether an error would meet every volume: a setting or network that does not fit.

    A call of the network that fails may be the fault of what it was given.
    """
    return isinstance(error, (ConfigError, ModelError)) and not isinstance(error, ModelCallError)
