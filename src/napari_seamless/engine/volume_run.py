"""One volume of a run: what is read, blended, finished, and written of it."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seamless.engine.accumulator import BlendAccumulator
from napari_seamless.engine.blended import Finish
from napari_seamless.engine.blending import Window
from napari_seamless.engine.box import Box
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import PredictionError, SeamlessError, SourceError, one_line
from napari_seamless.engine.finished import Finished, InMemory
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.memory import FreePages
from napari_seamless.engine.needs import Keeps, Needs, check_memory, needs_of
from napari_seamless.engine.outputs import Channels
from napari_seamless.engine.pipeline import Batch, Patch
from napari_seamless.engine.results import (
    LABELS,
    Volume,
    as_saved,
    facts_of,
    outputs_of,
    part_of,
    specs_of,
)
from napari_seamless.engine.schedule import Schedule
from napari_seamless.engine.source import Source
from napari_seamless.engine.stages import Stages
from napari_seamless.engine.store import Store
from napari_seamless.engine.sums import place_of_sums
from napari_seamless.engine.volume_input import VolumeInput
from napari_seamless.engine.volume_plan import VolumePlan
from napari_seamless.engine.written import Written


class VolumeRun(VolumeInput):
    """What a run does with one volume, and what it has of it.

    Parameters
    ----------
    config : InferenceConfig
        The settings.
    source : Source
        Where voxels come from.
    mask : Source or None
        Patches that reach no voxel of it that is not 0 are skipped.
    store : Store or None
        Where finished chunks are written.
    finish : callable or None
        Applied to blended values.
    identity : mapping
        What decides the numbers, JSON-like, the settings ("config") among it; see `deciding`.
    stages : Stages
        Told how long each stage is at work.
    device : torch.device
        Where the network runs.
    blender : Executor, optional
        Blends a batch while the network is at work on the next one. Whoever looks at what is
        blended waits for it.

    Attributes
    ----------
    plan : VolumePlan
        Where its patches are.
    failed : dict of int to SeamlessError
        Patches whose input could not be read, or that became NaN or infinity.
    skipped : bool array or None
        Which patches need not run, shape ``plan.grid.counts``; known when `begin` has been called.
    resumed : int
        Patches that an earlier run has done.
    spared : int
        Patches that this run need not do: those, and the skipped ones among the others.
    normalizer : Normalizer or None
        What is done to the values; known when `prepare` has been called.
    schedule : Schedule or None
        What is still to run; known when the first batch is done.
    """

    _accumulator: BlendAccumulator

    def __init__(
        self,
        config: InferenceConfig,
        source: Source,
        mask: Source | None,
        store: Store | None,
        finish: Finish | None,
        identity: Mapping[str, Any],
        stages: Stages,
        device: torch.device,
        blender: Executor | None = None,
    ) -> None:
        super().__init__(config, source, mask)
        self._device = device
        self._stages = stages
        self.failed: dict[int, SeamlessError] = {}
        self.resumed = 0
        self.spared = 0
        self._free_pages = FreePages()
        self._blender = blender
        self._blending: Future[None] | None = None
        self._done_then = 0
        self._aside = ThreadPoolExecutor(1, "seamless-write")  # starts no thread until it is used
        self._finish = finish
        self._written = None if store is None else Written(store, config, identity)
        self.schedule: Schedule | None = None
        self._channels: Channels | None = None

    def lay_out(self, plan: VolumePlan, window: Window) -> None:
        """Take a plan, the first or a better one; what was blended is forgotten."""
        self._take(plan)
        self._window = window
        self._accumulator = BlendAccumulator(plan.grid, window, self._finish)

    @property
    def accumulator(self) -> BlendAccumulator:
        """What is blended, with the last batch."""
        if (blending := self._blending) is not None:
            wait([blending])
        return self._accumulator

    @property
    def done(self) -> int:
        """Patches settled so far; those of the last batch count already."""
        return self._accumulator.done if self._blending is None else self._done_then

    @property
    def has_store(self) -> bool:
        """Whether the prediction is written."""
        return self._written is not None

    @property
    def _store(self) -> Store | None:
        return None if self._written is None else self._written.store

    @property
    def is_written(self) -> bool:
        """Whether the prediction is in the store, in its place."""
        return self._written is not None and self._written.is_in_place

    @property
    def begun(self) -> bool:
        """Whether `begin` has been called."""
        return self._channels is not None

    @property
    def ran(self) -> int:
        """Patches that this run has predicted."""
        return self.done - self.spared - len(self.failed) if self.begun else 0

    @property
    def progress(self) -> tuple[int, int]:
        """Patches settled so far, and all of them."""
        return self.done, len(self.plan.grid)

    def read(self, index: int, out: NDArray[np.float32] | None = None) -> Patch:
        """Return the input of a patch; see `VolumeInput.read`."""
        with self._stages.at_work("reading"):
            return super().read(index, out)

    def patch(self, index: int) -> NDArray[np.float32]:
        """Return the input of a patch, as `read` does.

        Raises
        ------
        SourceError
            If it cannot be read, or nobody has looked yet at what is to be done to the values.
        """
        if not self.begun:
            raise SourceError(f"{self.plan.name} has not begun; wait for its first batch")
        patch = self.read(index)
        if isinstance(patch, SourceError):
            raise patch
        return patch

    @property
    def order(self) -> NDArray[np.intp]:
        """The patches not yet taken, in the order in which they will run."""
        if self.schedule is None:
            return Schedule(self.plan.grid, self.accumulator.waiting).order
        return self.schedule.order

    def order_after(self, focus: Box | None, is_only: bool) -> NDArray[np.intp]:
        """Return what `order` will be once the schedule gets a focus; what was read ahead waits."""
        waiting = self.accumulator.waiting
        if self.schedule is not None:
            waiting.flat[self.schedule.at_work] = False
        schedule = Schedule(self.plan.grid, waiting)
        schedule.focus(focus, is_only)
        return schedule.order

    def begin(
        self,
        channels: Channels,
        budget: int,
        facts: Mapping[str, Any],
        may_go_on: Callable[[], bool],
    ) -> None:
        """Make all ready for the first patch, and take up what an earlier run has left.

        Parameters
        ----------
        channels : Channels
            Which channels are blended.
        budget : int
            Bytes for what is finished and for open sums.
        facts : mapping
            What the output says for now.
        may_go_on : callable
            Asked before each part of the volume is looked at for patches to skip.

        Raises
        ------
        Stopped
            If `may_go_on` says no.
        UnusableInputError
            If the output or the memory cannot hold the prediction.
        """
        specs_of(channels, self._config)  # labels that cannot be are refused before all else
        skipped = self.survey(may_go_on)
        needs = self.needs(channels, budget)
        shares = needs.shares
        device, room = place_of_sums(self._device, needs.front, shares.sums)
        chunks, found = None, set[int]()
        finished: Finished = InMemory(self.plan.grid.shape)
        if self._written is None:
            check_memory(self.plan.name, shares.kept)
        else:
            chunks = self._written.store.layout(self.plan.grid)
            found = self._written.begin(chunks, channels, facts)
            is_kept = shares.kept and not found
            kept = InMemory(self.plan.grid.shape) if is_kept else None
            finished = self._written.finished(channels, kept, self._stages)
        if shares.cache:
            cast(Keeps, self._source).keep(shares.cache)
        self._accumulator = BlendAccumulator(
            self.plan.grid,
            self._window,
            self._finish,
            chunks=chunks,
            finished=finished,
            fill=self._config.fill_value,
            budget=room,
            scratch=None if self._store is None else self._store.scratch,
            squared=lambda: channels.squared,
            aside=self._aside if self.has_store else None,
            device=device,
        )
        self._channels = channels  # from now on others may look
        self.accumulator.restore(found)
        self.resumed = self.accumulator.done
        empty = skipped & self.accumulator.waiting
        self.spared = self.resumed + int(np.count_nonzero(empty))
        self.accumulator.skip(np.flatnonzero(empty).tolist(), channels.total)

    def needs(self, channels: Channels, budget: int) -> Needs:
        """Return what the volume takes of a budget, in bytes, and beyond it."""
        return needs_of(self._source, self.plan, channels, self._config, self._store, budget)

    def blend(self, batch: Batch) -> Box:
        """Add a batch of patches, or have it added; return the voxels that change.

        Raises
        ------
        PredictionError
            If there is no memory for the sums, of this batch or the one before.
        WriteError
            If a finished chunk cannot be written.
        """
        self._settle()
        accumulator = self._accumulator
        # the first batch may hold some that need not run
        settled = [i for i in (*batch.indices, *batch.failed) if i not in accumulator]
        self.failed |= {i: error for i, error in batch.failed.items() if i in settled}
        self._done_then = accumulator.done + len(settled)
        if self._blender is None:
            self._add(batch)
        else:
            self._blending = self._blender.submit(self._add, batch)
        if self._done_then == len(self.plan.grid):
            self.flush()
        if not settled:
            return Box((0, 0, 0), (0, 0, 0))
        whole = Box.of_shape(self.plan.grid.shape)
        dirty = Box.around([self.plan.grid[i].intersection(whole) for i in settled])
        if self.skipped_count:  # a finished chunk is filled where only skipped patches reach
            chunks = [accumulator.chunks[i] for i in accumulator.chunks.touching(dirty)]
            dirty = Box.around(chunks)
        return dirty

    def _add(self, batch: Batch) -> None:
        with self._stages.at_work("blending"):
            self._add_to(self._accumulator, batch)
        if self.has_store:
            self._free_pages.give_back(batch.nbytes)

    def _add_to(self, accumulator: BlendAccumulator, batch: Batch) -> None:
        try:
            for index, prediction in zip(
                batch.indices, _each(batch, accumulator.device), strict=True
            ):
                if index not in accumulator:
                    accumulator.add(index, prediction)
            for index in batch.failed:
                if index not in accumulator:
                    accumulator.fail(index)
        except SeamlessError:
            raise
        # a mapping that fails is an OSError
        except (MemoryError, OSError, torch.OutOfMemoryError) as error:
            raise self._lack_of_memory(error) from error

    def _lack_of_memory(self, error: BaseException) -> PredictionError:
        return PredictionError(
            f"no memory for the sums of {self.plan.name}: {one_line(error)}; "
            "predict a smaller volume, or free memory"
        )

    def _settle(self) -> None:
        """Wait until the last batch is blended; raise what `blend` does."""
        if (blending := self._blending) is not None:
            wait([blending])
            self._blending = None
            blending.result()

    def keep(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Write what is open as it is now, and put the output in its place.

        Be it that nothing is done: an output that was begun says how it ended.
        """
        try:
            self.flush()
        finally:  # also what could not be written before is tried once more
            self._aside.shutdown()
            self._end_output(facts)

    def flush(self) -> None:
        """Wait until all is blended, and written if it is finished; raise what `blend` does."""
        self._settle()
        try:
            self._accumulator.flush()
        except (MemoryError, OSError) as error:
            if isinstance(error, SeamlessError):
                raise
            raise self._lack_of_memory(error) from error

    def _end_output(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        if self._written is None or not self._written.has_begun:
            return
        if self._channels is not None:
            self._written.write_open(self.accumulator, self._channels)
        self._written.end(facts())

    def following(self, view: Callable[[BlendAccumulator], LazyArray]) -> LazyArray:
        """Return a view that stays true when `lay_out` or `begin` replaces the accumulator."""
        now = view(self.accumulator)
        return LazyArray(now.shape, now.dtype, lambda ranges: view(self.accumulator)[ranges])

    def live(self, channels: slice) -> LazyArray:
        """Return some channels of the partial prediction; see `BlendAccumulator.live`."""
        return self.following(lambda accumulator: accumulator.live(channels))

    def outputs(self, channels: Channels) -> dict[str, Volume]:
        """Return all that is known of the volume, begun or not; see `outputs_of`."""
        part = part_of(self.accumulator) if self.begun else self.live
        outputs = outputs_of(part, channels, self._config)
        if LABELS in outputs and self._written and not self.accumulator.is_in_memory:
            outputs[LABELS] = self._written.labels(outputs[LABELS], self.accumulator)
        return outputs

    def files(self, channels: Channels) -> dict[str, Volume]:
        """Return the `outputs` as the numbers that are saved."""
        return as_saved(self.outputs(channels), self._config)

    def facts(self, status: str, channels: Channels | None) -> dict[str, Any]:
        """Return what a file or layer says of the volume; see `facts_of`."""
        facts = facts_of(self.plan, self._config, status, self.accumulator.done, channels)
        if self.skipped_count:
            facts["skipped"] = self.skipped_count
        if self.failed:
            cores = [self.plan.cores[index] for index in sorted(self.failed)]
            facts["failed"] = [[list(core.start), list(core.stop)] for core in cores]
        return facts

    def close(self) -> None:
        """Let go of the store's files."""
        if self._store is not None:
            self._store.close()


def _each(batch: Batch, device: torch.device) -> Sequence[torch.Tensor]:
    return () if batch.predictions is None else list(batch.predictions.to(device))
