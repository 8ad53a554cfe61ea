"""What a run costs, from the geometry of its patches, chunks and blocks alone: see docs/scaling.md.

    python benchmarks/scaling.py

prints the table of that page. `scaling_check.py` compares the functions in here with real runs;
`scaling_constants.py` measures what they need of a machine.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.blocks import BlockGrid
from napari_seamless.engine.box import Triple
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.geometry import Geometry
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.needs import front_of, open_sums
from napari_seamless.engine.readable import readable_bytes, readable_time
from napari_seamless.engine.sums import SUM_BYTES
from napari_seamless.io.stores.pyramid import levels_of, share_of_pyramid
from napari_seamless.io.stores.zarr_layout import ZarrLayout


def redundancy(grid: PatchGrid) -> float:
    """Return the voxels that go through the network per voxel of the volume."""
    return len(grid) * math.prod(grid.patch_size) / math.prod(grid.shape)


def chunks_of(grid: PatchGrid, chunk_size: Triple | None = None) -> ChunkGrid:
    """Return how a zarr output is cut into what is finished and written at once."""
    return ChunkGrid.regular(grid.shape, ZarrLayout.of(grid, chunk_size).unit)


def amplification(grid: PatchGrid, chunk: Triple, kept: str) -> float:
    """Return the bytes of stored chunks that are read and decoded, per byte of the volume.

    Parameters
    ----------
    grid : PatchGrid
        In raster order.
    chunk : tuple of int
        Voxels of a stored chunk of the input, (Z, Y, X).
    kept : {"nothing", "patch", "row", "layer"}
        The chunks that are kept in memory: those of a patch, of a row of them along X, or of a
        layer of such rows. A chunk that was not kept is read again.
    """
    again = {"nothing": 3, "patch": 2, "row": 1, "layer": 0}[kept]
    stored = ChunkGrid.regular(grid.shape, chunk)
    return math.prod(
        _reached(grid.starts[axis], grid.patch_size[axis], stored.edges[axis]) / grid.shape[axis]
        for axis in range(again)
    )


def amplification_of_blocks(blocks: BlockGrid, chunk: Triple) -> float:
    """Return the same where each block reads what its patches reach, once."""
    shape = blocks.grid.shape
    stored = ChunkGrid.regular(shape, chunk)
    total = 1.0
    for axis in range(3):
        low, high = _ends_of_blocks(blocks, axis)
        total *= int(_extents(low, high, stored.edges[axis]).sum()) / shape[axis]
    return total


def cache_bytes(grid: PatchGrid, chunk: Triple, voxel_bytes: int) -> int:
    """Return the bytes of one layer of input chunks and a row more: then each is read once."""
    depth, height, width = grid.shape
    planes = min(depth, (math.ceil((grid.patch_size[0] - 1) / chunk[0]) + 1) * chunk[0])
    return planes * width * (height + chunk[1]) * voxel_bytes


def written_bytes(shape: Triple, voxel_bytes: int) -> float:
    """Return the bytes of an output with all its levels, before compression."""
    return math.prod(shape) * voxel_bytes * share_of_pyramid(levels_of(shape, Geometry()))


def read_back_bytes(shape: Triple, voxel_bytes: int) -> float:
    """Return the bytes of the output that are read to build its coarser levels."""
    levels = levels_of(shape, Geometry())
    return sum(math.prod(level.shape) for level in levels[:-1]) * voxel_bytes


def scratch_bytes(grid: PatchGrid, chunks: ChunkGrid, channels: int, budget: int) -> int:
    """Return the bytes of sums that go to the disk in the whole run, and come back.

    What does not fit the budget goes there once per layer: the next layer needs it again. With a
    budget below `row_bytes` it goes there with every row, which is not modelled.
    """
    return int((open_sums(grid, chunks, channels) - budget).clip(min=0).sum())


def row_bytes(grid: PatchGrid, chunks: ChunkGrid, channels: int) -> int:
    """Return the most bytes of sums that a row of patches along X needs."""
    deep, high, _ = (
        int(_extents(starts.clip(min=0), (starts + size).clip(max=edges[-1]), edges).max())
        for starts, size, edges in zip(grid.starts, grid.patch_size, chunks.edges, strict=True)
    )
    return SUM_BYTES * channels * deep * high * grid.shape[2]


def passed_bytes(blocks: BlockGrid, channels: int) -> int:
    """Return the bytes of sums that blocks leave for each other.

    What a block reaches of each chunk, less what it reaches of chunks that no other block reaches.
    """
    reached, own = 1, 1
    for axis in range(3):
        edges = blocks.chunks.edges[axis]
        low, high = _ends_of_blocks(blocks, axis)
        reached *= int((high - low).sum())
        begun = np.searchsorted(low, edges[1:], side="left")
        ended = np.searchsorted(high, edges[:-1], side="right")
        own *= int(np.diff(edges)[begun - ended == 1].sum())
    return SUM_BYTES * channels * (reached - own)


def _reached(starts: NDArray[np.intp], patch: int, edges: NDArray[np.intp]) -> int:
    """Return the voxels along an axis of all chunks that patches reach, for each patch anew."""
    return int(_extents(starts.clip(min=0), (starts + patch).clip(max=edges[-1]), edges).sum())


def _extents(
    low: NDArray[np.intp], high: NDArray[np.intp], edges: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Return the voxels along an axis of the chunks between each of `low` and `high`."""
    first = edges[np.searchsorted(edges, low, side="right") - 1]
    return edges[np.searchsorted(edges, high, side="left")] - first


def _ends_of_blocks(blocks: BlockGrid, axis: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return where the patches of blocks begin and end along an axis, inside the volume."""
    starts, cuts = blocks.grid.starts[axis], blocks.cuts[axis]
    high = starts[cuts[1:] - 1] + blocks.grid.patch_size[axis]
    return starts[cuts[:-1]].clip(min=0), high.clip(max=blocks.grid.shape[axis])


@dataclass(frozen=True)
class Machine:
    """What one process does, on the machine that `scaling_constants.py` was run on.

    Attributes
    ----------
    network : float
        Seconds per million voxels that go through the network.
    stitching : float
        Seconds per million voxels of a patch and channel that are blended in.
    decoding, encoding : float
        Seconds per million bytes that are read and decoded, or encoded and written.
    """

    network: float
    stitching: float
    decoding: float
    encoding: float


@dataclass(frozen=True)
class Job:
    """A line of the table; uint8 in and one channel of uint8 out, input chunks of 64 cubed."""

    name: str
    shape: Triple
    patch: Triple
    overlap: float
    budget: int
    workers: int

    @property
    def grid(self) -> PatchGrid:
        """Its patches."""
        return PatchGrid.regular(self.shape, self.patch, self.overlap)


HERE = Machine(network=0.171, stitching=0.0057, decoding=0.00016, encoding=0.0084)

GIB = 2**30
INPUT_CHUNK: Triple = (64, 64, 64)
JOBS = (
    Job("laptop, 20 MB", (20, 1024, 1024), (8, 128, 128), 0.5, 2 * GIB, 1),
    Job("laptop, 1 GB", (1024, 1024, 1024), (32, 128, 128), 0.25, 2 * GIB, 1),
    Job("workstation, 8 GB", (2048, 2048, 2048), (32, 256, 256), 0.25, 8 * GIB, 1),
    Job("workstation, 1 TB", (10_000, 10_000, 10_000), (64, 256, 256), 0.25, 32 * GIB, 1),
    Job("cluster, 1 TB", (10_000, 10_000, 10_000), (64, 256, 256), 0.25, 32 * GIB, 64),
    Job("cluster, 1 PB", (100_000, 100_000, 100_000), (64, 256, 256), 0.25, 32 * GIB, 1000),
)


def hours(job: Job, read: float, machine: Machine) -> float:
    """Return the hours of all workers together: the network, and what is not hidden behind it."""
    voxels = len(job.grid) * math.prod(job.patch) / 1e6
    seconds = voxels * (machine.network + machine.stitching)
    seconds += written_bytes(job.shape, 1) / 1e6 * machine.encoding
    hidden = voxels * machine.network  # the next batch is read while the network is at work
    seconds += max(0.0, read / 1e6 * machine.decoding - hidden)
    return seconds / 3600


def line(job: Job, machine: Machine) -> list[str]:
    """Return what is said of a job, cell by cell."""
    grid, voxels = job.grid, math.prod(job.shape)
    chunks = chunks_of(grid)
    if job.workers == 1:
        fits = cache_bytes(grid, INPUT_CHUNK, 1) <= job.budget // 2
        read = voxels * amplification(grid, INPUT_CHUNK, "layer" if fits else "row")
        cache = min(cache_bytes(grid, INPUT_CHUNK, 1), job.budget // 2)
        scratch, passed = scratch_bytes(grid, chunks, 1, job.budget - cache), 0
        front = front_of(grid, chunks, 1)
    else:
        blocks = BlockGrid.of(grid, chunks, 1)
        read = voxels * amplification_of_blocks(blocks, INPUT_CHUNK)
        scratch, passed = 0, passed_bytes(blocks, 1)
        front = max(_block_bytes(blocks, block) for block in (0, len(blocks) // 2))
    took = hours(job, read, machine)
    return [
        job.name,
        f"{len(grid):,}",
        f"{redundancy(grid):.2f}",
        readable_bytes(read),
        readable_bytes(written_bytes(job.shape, 1)),
        readable_bytes(front),
        readable_bytes(scratch),
        readable_bytes(passed),
        readable_time(3600 * took),
        f"{job.workers}",
        readable_time(3600 * took / job.workers),
    ]


def _block_bytes(blocks: BlockGrid, block: int) -> int:
    """Return the bytes of sums of all that a block reaches; less is open at once."""
    return SUM_BYTES * math.prod(blocks.reach(block).shape)


HEAD = (
    "volume",
    "patches",
    "redundancy",
    "read",
    "written",
    "open sums",
    "sums to disk",
    "sums passed",
    "work",
    "workers",
    "time",
)

if __name__ == "__main__":
    print("| " + " | ".join(HEAD) + " |")
    print("|---" * len(HEAD) + "|")
    for each in JOBS:
        print("| " + " | ".join(line(each, HERE)) + " |")
