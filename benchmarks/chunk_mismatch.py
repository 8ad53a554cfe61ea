"""What it costs that chunks of the input, the stride of patches and chunks of the output differ.

    python benchmarks/chunk_mismatch.py [--identity]

The same voxels, settings and network; medians of five runs, in turn. The network is one convolution
of 3 x 3 x 3 with 8 channels, far cheaper than any real one, that returns its input; with
`--identity` there is none at all, so that only reading, blending and writing are left. Every output
is compared with the input, voxel by voxel. Where other work is running, the seconds of processors
say more.
"""

import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

import napari_seamless as ns
from napari_seamless.engine.box import Triple
from napari_seamless.engine.run import Run
from napari_seamless.io.sources import open_source
from napari_seamless.io.stores.zarr_store import ZarrOutput

SHAPE: Triple = (64, 384, 384)
CONFIG = ns.InferenceConfig(
    patch_size=(32, 128, 128),
    overlap=0.5,
    batch_size=2,
    device="cpu",
    output_dtype="uint8",
)
STRIDE: Triple = (16, 64, 64)
OTHER: Triple = (20, 50, 70)
ROUNDS = 5
AIM = 1.15


@dataclass(frozen=True)
class Case:
    """Voxels of chunks, (Z, Y, X)."""

    name: str
    read: Triple
    written: Triple


CASES = (
    Case("all match", STRIDE, STRIDE),
    Case("input differs", OTHER, STRIDE),
    Case("output differs", STRIDE, OTHER),
    Case("both differ", OTHER, OTHER),
)


class Cheap(torch.nn.Module):
    """Convolves, and returns its input all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv3d(1, 8, 3, padding=1)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return `patches`."""
        self.convolution(patches)
        return patches


def make_input(path: Path, voxels: NDArray[np.uint8], chunk: Triple) -> None:
    """Write the voxels in chunks of a size."""
    array = zarr.create_array(path, shape=voxels.shape, chunks=chunk, dtype="uint8")
    array[...] = voxels


def seconds_of(
    case: Case, folder: Path, network: torch.nn.Module, voxels: NDArray[np.uint8]
) -> tuple[float, float]:
    """Run a case, check its output, and return its seconds, and those of all processors."""
    output = folder / "out.zarr"
    source = open_source(folder / f"{case.read}.zarr")
    store = ZarrOutput(output, overwrite=True, chunk_size=case.written).at()
    began, busy = time.perf_counter(), time.process_time()
    with Run([source], network, CONFIG, [store]) as run:
        for _ in run:
            pass
    seconds = time.perf_counter() - began, time.process_time() - busy
    source.close()
    stored = zarr.open_array(output / "0", mode="r")
    assert stored.chunks[1:] == case.written, stored.chunks
    np.testing.assert_array_equal(stored[0], voxels)
    shutil.rmtree(output)
    return seconds


def main() -> int:
    """Run all cases in turn, print their medians, and return the exit code."""
    network = torch.nn.Identity() if "--identity" in sys.argv[1:] else Cheap()
    voxels = np.random.default_rng(0).integers(0, 64, SHAPE, dtype=np.uint8)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for chunk in {case.read for case in CASES}:
            make_input(folder / f"{chunk}.zarr", voxels, chunk)
        took = [
            [seconds_of(case, folder, network, voxels) for case in CASES] for _ in range(ROUNDS)
        ]
    wall, busy = (
        [statistics.median(times[which] for times in column) for column in zip(*took, strict=True)]
        for which in (0, 1)
    )
    for case, seconds, processor in zip(CASES, wall, busy, strict=True):
        print(
            f"{case.name:15} input {case.read}, output {case.written}: {seconds:.2f} s, ratio "
            f"{seconds / wall[0]:.3f}; of processors {processor:.2f} s, {processor / busy[0]:.3f}"
        )
    print(f"aim: {AIM} or less")
    return 0 if max(wall) <= AIM * wall[0] else 1


if __name__ == "__main__":
    sys.exit(main())
