"""What several processes have blended of the same volumes, added up at the end."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from napari_seamless.dataset import InferenceVolumeDataset
from napari_seamless.engine.box import Triple, scaled_up
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import (
    ModelError,
    PredictionError,
    RunFailedError,
    SeamlessError,
    one_line,
)
from napari_seamless.engine.outputs import Channels, JoinedHeads, centre, finisher
from napari_seamless.engine.pipeline import NOT_FINITE
from napari_seamless.engine.results import Volume, as_saved, facts_of, outputs_of, part_of
from napari_seamless.engine.shared_accumulator import SharedAccumulator
from napari_seamless.engine.volume_plan import input_size_of, window_of


class Share:
    """What this process has blended, and what all have once they called `gather`.

    patch         0   1   2   3   4   5   6
    belongs to    0   1   0   1   0   1   0     with two processes
    repeated                              1     held aside there, and dropped: 0 had it
    """

    def __init__(
        self,
        dataset: InferenceVolumeDataset,
        config: InferenceConfig,
        rank: int,
        world_size: int,
        provenance: Mapping[str, Any],
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.channels: Channels | None = None
        self._dataset = dataset
        self._config = config
        self._joined = JoinedHeads(config)
        self._provenance = dict(provenance)
        self._window = window_of(config, config.patch_size)
        self._accumulators = [self._accumulator(vol_id) for vol_id in range(len(dataset.plans))]
        self._aside: dict[int, torch.Tensor] = {}

    def _accumulator(self, vol_id: int) -> SharedAccumulator:
        return SharedAccumulator(
            self._dataset.plans[vol_id].grid,
            self._window,
            finisher(self._config, lambda: self.channels),
            squared=lambda: None if self.channels is None else self.channels.squared,
            is_open=self.world_size > 1,
        )

    def add(self, indices: Sequence[int], heads: Mapping[str, torch.Tensor]) -> bool:
        """Blend a batch of patches in; return whether it was the first."""
        is_first = self.channels is None
        predictions = _core(self._joined(heads), self._config).cpu()
        self.channels = self._joined.channels
        if not torch.isfinite(predictions).all():
            raise PredictionError(NOT_FINITE)
        for index, prediction in zip(indices, predictions, strict=True):
            if index % self.world_size == self.rank:
                self._blend(index, prediction)
            elif index not in self._aside:
                self._aside[index] = prediction.clone()  # without the rest of the batch
        return is_first

    def _blend(self, index: int, prediction: torch.Tensor) -> None:
        vol_id, patch = self._dataset.place_of(index)
        if patch not in self._accumulators[vol_id]:  # samplers may repeat one
            self._accumulators[vol_id].add(patch, prediction)

    def gather(self, device: torch.device) -> None:
        """Add up what all processes have in the first one; every process must call this."""
        mine = (
            self.channels,
            [accumulator.states.done for accumulator in self._accumulators],
            sorted(self._aside),
        )
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, mine)
        self.channels = _agreed([channels for channels, _, _ in everyone])
        done = [
            np.logical_or.reduce(masks)
            for masks in zip(*(each[1] for each in everyone), strict=True)
        ]
        for holder, (_, _, aside) in enumerate(everyone):
            for index in aside:  # all processes come to the same decision here
                vol_id, patch = self._dataset.place_of(index)
                if not done[vol_id].flat[patch]:
                    done[vol_id].flat[patch] = True
                    if holder == self.rank:
                        self._blend(index, self._aside[index])
        self._aside.clear()
        for vol_id, patches in enumerate(done):
            if patches.any():
                self._add_up(vol_id, patches, device)

    def _add_up(self, vol_id: int, done: NDArray[np.bool_], device: torch.device) -> None:
        """Bring the sums of one volume to the first process, chunk by chunk."""
        if self.channels is None:
            raise AssertionError("patches are done, so their channels are known")
        accumulator = self._accumulators[vol_id]
        for i in range(len(accumulator.chunks)):
            sums = accumulator.sums(i, self.channels.total)
            shared = sums.to(device) if dist.get_backend() == "nccl" else sums
            dist.reduce(shared, dst=0)
            if self.rank == 0:
                sums.copy_(shared)
        if self.rank == 0:
            accumulator.adopt(done)
        else:
            self._accumulators[vol_id] = self._accumulator(vol_id)  # frees the sums

    def done(self, vol_id: int) -> int:
        """Return how many patches of a volume are in."""
        return self._accumulators[vol_id].done

    def outputs(self, vol_id: int) -> dict[str, Volume]:
        """Return all that is known of a volume; see `outputs_of`."""
        if self.channels is None:
            raise AssertionError("nothing is known before the first batch")
        return outputs_of(part_of(self._accumulators[vol_id]), self.channels, self._config)

    def files(self, vol_id: int) -> dict[str, Volume]:
        """Return the outputs of a volume as they are saved."""
        return as_saved(self.outputs(vol_id), self._config)

    def metadata(self, vol_id: int, status: str | None = None) -> dict[str, Any]:
        """Return what a file says of its volume."""
        plan, done = self._dataset.plans[vol_id], self.done(vol_id)
        outcome = "complete" if done == len(plan.grid) else status or "partial"
        facts = facts_of(plan, self._config, outcome, done, self.channels)
        return {**facts, **self._provenance}


def _core(values: torch.Tensor, config: InferenceConfig) -> torch.Tensor:
    """Cut what a patch contributes out of predictions (B, C, z, y, x) that may hold a halo."""
    core = scaled_up(config.patch_size, config.output_scale)
    full = scaled_up(input_size_of(config), config.output_scale)
    z, y, x = values.shape[2:]
    size: Triple = z, y, x
    if not all(
        low <= got <= high and (got - low) % 2 == 0
        for got, low, high in zip(size, core, full, strict=True)
    ):
        allowed = f"{core}" if core == full else f"{core}, or up to {full} with the halo,"
        raise ModelError(
            f"the module made {size} voxels of a patch (Z, Y, X) where the dataset expects "
            f"{allowed}: set its halo to what the module cuts off, or its output_scale"
        )
    return centre(values, core)


def _agreed(found: Sequence[Channels | None]) -> Channels | None:
    """Return the channels that all processes found; None if none has predicted anything."""
    known = [channels for channels in found if channels is not None]
    if any(channels != known[0] for channels in known):
        counts = [channels.predicted for channels in known]
        raise PredictionError(
            f"processes found different numbers of channels, {counts}; all must run one network"
        )
    return known[0] if known else None


def raise_everywhere(problem: SeamlessError | None, world_size: int) -> None:
    """Raise one process's problem in all of them, lest the others wait for it forever."""
    told: list[str | None] = [None] * world_size
    if world_size > 1:
        dist.all_gather_object(told, None if problem is None else one_line(problem))
    if problem is not None:
        raise problem
    for rank, text in enumerate(told):
        if text is not None:
            raise RunFailedError(f"process {rank} failed: {text}")
