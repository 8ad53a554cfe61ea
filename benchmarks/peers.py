"""Other ways to run a network over a volume in patches, each through its own public code.

All get the same volume, network, patch size, overlap and batch size, and return the blended result.
Their grids and windows are their own: where the last patch goes differs, and so does the number of
patches a little.
"""

import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import nn

import napari_seamless as ns
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.run import Run
from napari_seamless.engine.source import ArraySource

Patch = tuple[int, int, int]
T = TypeVar("T")


def in_turns(task: Callable[[str], T], names: Sequence[str], rounds: int) -> dict[str, list[T]]:
    """Call a task for each name, one after the other, round by round.

    Each name has a process of its own, as somebody has who uses one of them: what one does to the
    memory of a process would help or hinder the others. In each turn the task is done twice, and
    the second time counts: the first one loads what is loaded late, and meets caches and pages
    that others have used in between, which in a run of minutes is nothing. A name whose package is
    not installed is left out, which is said.
    """
    found: dict[str, list[T]] = {name: [] for name in names}
    spawn = multiprocessing.get_context("spawn")
    one_thread = partial(torch.set_num_threads, 1)
    with ExitStack() as closing:
        pools = {
            name: closing.enter_context(ProcessPoolExecutor(1, spawn, one_thread)) for name in names
        }
        for _ in range(rounds):
            for name in [*pools]:
                try:
                    pools[name].submit(task, name).result()
                except ImportError as error:
                    print(f"{name}: not measured, {error}")
                    del pools[name]
                else:
                    found[name].append(pools[name].submit(task, name).result())
    return {name: results for name, results in found.items() if results}


class Timed(nn.Module):
    """A network that counts the seconds spent inside it, and the voxels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seconds = 0.0
        self.calls = 0

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Call the network; on a GPU, until its result is there."""
        begin = time.perf_counter()
        result: torch.Tensor = self.network(patches)
        self.seconds += time.perf_counter() - begin
        self.calls += len(patches)
        return result


class Peer(Protocol):
    """Runs a network over a volume."""

    def __call__(
        self, volume: torch.Tensor, network: nn.Module, patch: Patch, overlap: float, batch: int
    ) -> torch.Tensor:
        """Return the blended result, (C, Z, Y, X), of a float32 volume (1, Z, Y, X)."""


def seamless(
    volume: torch.Tensor, network: nn.Module, patch: Patch, overlap: float, batch: int
) -> torch.Tensor:
    """Run this package, in memory, without a progress bar."""
    config = ns.InferenceConfig(
        patch_size=patch,
        overlap=overlap,
        batch_size=batch,
        device=volume.device.type,
        normalization="none",
    )
    return torch.from_numpy(run_of(volume.cpu().numpy(), network, config))


def run_of(volume: np.ndarray, network: nn.Module, config: InferenceConfig) -> np.ndarray:
    """Run the engine over an array, to the end."""
    with Run([ArraySource(volume)], network, config) as run:
        for _ in run:
            pass
        return run.results()[0]


def bare(
    volume: torch.Tensor, network: nn.Module, patch: Patch, overlap: float, batch: int
) -> torch.Tensor:
    """The shortest loop that does it: no checks, no progress, nothing to see until the end."""
    shape, boxes = volume.shape[1:], boxes_of(volume.shape[1:], patch, overlap)
    window = window_on(volume.device, patch)
    with torch.inference_mode():
        sums, weights = None, torch.zeros(shape, device=volume.device)
        for first in range(0, len(boxes), batch):
            some = boxes[first : first + batch]
            predictions = network(torch.stack([volume[:, *box] for box in some]))
            if sums is None:
                sums = torch.zeros(predictions.shape[1], *shape, device=volume.device)
            for box, prediction in zip(some, predictions, strict=True):
                sums[:, *box].addcmul_(prediction, window)
                weights[box].add_(window)
        return sums.div_(weights)


def blending_only(
    volume: torch.Tensor, network: nn.Module, patch: Patch, overlap: float, batch: int
) -> torch.Tensor:
    """Only the `addcmul_` of each patch: no reading, no network, no division."""
    shape, boxes = volume.shape[1:], boxes_of(volume.shape[1:], patch, overlap)
    window = window_on(volume.device, patch)
    with torch.inference_mode():
        prediction = network(torch.stack([volume[:, *boxes[0]]] * batch))
        sums = torch.zeros(prediction.shape[1], *shape, device=volume.device)
        for index, box in enumerate(boxes):
            sums[:, *box].addcmul_(prediction[index % batch], window)
        return sums


def memory_limit(
    volume: torch.Tensor, network: nn.Module, patch: Patch, overlap: float, batch: int
) -> torch.Tensor:
    """`add_` over as many voxels as the patches have, from end to end."""
    boxes = boxes_of(volume.shape[1:], patch, overlap)
    with torch.inference_mode():
        channels = network(torch.zeros(1, 1, *patch, device=volume.device)).shape[1]
        sums = torch.zeros(volume.numel(), device=volume.device)
        left = len(boxes) * math.prod(patch) * channels
        while left > 0:
            part = min(left, len(sums))
            sums[:part].add_(volume.view(-1)[:part])
            left -= part
        return sums


def monai(
    volume: torch.Tensor, network: nn.Module, patch: Patch, overlap: float, batch: int
) -> torch.Tensor:
    """MONAI's `sliding_window_inference`, gaussian."""
    from monai.inferers import sliding_window_inference

    with torch.inference_mode():
        result = sliding_window_inference(
            volume[None], patch, batch, network, overlap, mode="gaussian"
        )
    return result[0]


def monai_buffered(
    volume: torch.Tensor, network: nn.Module, patch: Patch, overlap: float, batch: int
) -> torch.Tensor:
    """The same, buffered along the first axis."""
    from monai.inferers import sliding_window_inference

    with torch.inference_mode():
        result = sliding_window_inference(
            volume[None],
            patch,
            batch,
            network,
            overlap,
            mode="gaussian",
            buffer_steps=1,
            buffer_dim=0,
        )
    return result[0]


def torchio(
    volume: torch.Tensor, network: nn.Module, patch: Patch, overlap: float, batch: int
) -> torch.Tensor:
    """TorchIO's grid sampler and aggregator, hann."""
    import torchio as tio

    subject = tio.Subject(image=tio.ScalarImage(tensor=volume))
    sampler = tio.GridSampler(subject, patch, tuple(int(size * overlap) for size in patch))
    aggregator = tio.GridAggregator(sampler, overlap_mode="hann")
    with torch.inference_mode():
        for patches in tio.SubjectsLoader(sampler, batch_size=batch):
            result = network(patches["image"][tio.DATA])
            aggregator.add_batch(result, patches[tio.LOCATION])
    return aggregator.get_output_tensor()


def nnunet(
    volume: torch.Tensor, network: nn.Module, patch: Patch, overlap: float, batch: int
) -> torch.Tensor:
    """The sliding window of nnU-Net, without mirroring; it has no batches."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=1 - overlap, use_mirroring=False, device=volume.device, allow_tqdm=False
    )
    channels = network(torch.zeros(1, 1, *patch, device=volume.device)).shape[1]
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=patch)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=channels)
    result: torch.Tensor = predictor.predict_sliding_window_return_logits(volume)
    return result


def konfai(
    volume: torch.Tensor, network: nn.Module, patch: Patch, overlap: float, batch: int
) -> torch.Tensor:
    """KonfAI's accumulator, gaussian, over the same patches as the bare loop."""
    from konfai.data.patching.accumulate import Accumulator
    from konfai.data.patching.blend import Gaussian

    boxes = boxes_of(volume.shape[1:], patch, overlap)
    combine = Gaussian()
    combine.set_patch_config(list(patch), [int(size * overlap) for size in patch])
    accumulator = Accumulator(boxes, list(patch), combine)
    with torch.inference_mode():
        for first in range(0, len(boxes), batch):
            some = boxes[first : first + batch]
            predictions = network(torch.stack([volume[:, *box] for box in some]))
            for index, prediction in enumerate(predictions, first):
                accumulator.add_layer(index, prediction[None])
        return accumulator.assemble()[0]


def window_on(device: torch.device, patch: Patch) -> torch.Tensor:
    """Return the gaussian window, (Z, Y, X)."""
    return torch.from_numpy(ns.build_blending_matrix(patch, mode="gaussian")).to(device)


def boxes_of(shape: tuple[int, ...], patch: Patch, overlap: float) -> list[tuple[slice, ...]]:
    """Return the patches as slices: constant stride, the last one shifted back inside."""
    starts = []
    for length, size in zip(shape, patch, strict=True):
        stride = max(1, int(size * (1 - overlap)))
        along = [*range(0, length - size, stride), length - size]
        starts.append(along)
    return [
        tuple(slice(start, start + size) for start, size in zip(corner, patch, strict=True))
        for corner in product(*starts)
    ]


PEERS: dict[str, Callable[..., torch.Tensor]] = {
    "MONAI": monai,
    "MONAI, buffered": monai_buffered,
    "TorchIO, hann": torchio,
    "nnU-Net": nnunet,
    "KonfAI": konfai,
}
