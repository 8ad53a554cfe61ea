"""What one volume of a run takes, and how the memory for it is shared out."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Triple
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.leaving import MOST_LEAVING
from napari_seamless.engine.memory import free_memory
from napari_seamless.engine.outputs import Channels
from napari_seamless.engine.results import specs_of
from napari_seamless.engine.source import Source
from napari_seamless.engine.store import Store
from napari_seamless.engine.sums import SUM_BYTES
from napari_seamless.engine.volume_plan import VolumePlan


@dataclass(frozen=True)
class Shares:
    """What a budget is spent on, in bytes.

    Attributes
    ----------
    cache : int
        Decoded chunks of the source, so that each is read once per pass: at most half.
    kept : int
        The finished prediction, where it fits half of what is left; else 0: it is in its store.
    sums : int
        Open sums: the rest.
    """

    cache: int
    kept: int
    sums: int


def shares_of(budget: int, cache: int, prediction: int) -> Shares:
    """Share out a budget; see `Shares`.

    Parameters
    ----------
    budget, cache, prediction : int
        Bytes: of all, of the cache that would be of use, and of the whole prediction.
    """
    cache = min(cache, budget // 2)
    left = budget - cache
    kept = prediction if prediction <= left // 2 else 0
    return Shares(cache, kept, left - kept)


class Keeps(Protocol):
    """A source that can keep what it has decoded."""

    chunk_size: Triple
    """Voxels of a stored chunk, (z, y, x)."""

    def keep(self, nbytes: int) -> None:
        """Keep up to so many bytes of decoded chunks from now on."""


def cache_of(source: Source, plan: VolumePlan) -> int:
    """Return the bytes of stored chunks that one layer of patches reads, and a row of them more.

    Patches come layer after layer: a chunk that is kept until the layer is over is read once, and
    one more row keeps those of this layer from being thrown out by the first of the next.

    ::

        patches  [ - - - - - ]
        chunks  |     |     |     |        at worst: three rows for a patch of two
    """
    size = getattr(source, "chunk_size", None)
    if size is None or size == source.shape[1:] or not hasattr(source, "keep"):
        return 0  # it is in memory, or one piece
    deep, rows, columns = (
        math.ceil(length / step) * step for length, step in zip(source.shape[1:], size, strict=True)
    )
    patch = plan.input_box(0).shape[0]
    planes = min(deep, (math.ceil((patch - 1) / size[0]) + 1) * size[0])
    voxels = planes * columns * (rows + size[1])
    return int(source.shape[0] * voxels * source.dtype.itemsize)


@dataclass(frozen=True)
class Needs:
    """What one volume takes, in bytes.

    Attributes
    ----------
    shares : Shares
        Of the budget.
    front : int
        Most open sums at once, without a focus.
    chunk : int
        What is at work when a chunk is finished: its values, those that are written, and the sums
        of chunks that are still to be written; 0 without a store.
    output : int
        The stored arrays, before compression; 0 without a store.
    """

    shares: Shares
    front: int
    chunk: int
    output: int

    @property
    def memory(self) -> int:
        """Bytes in memory."""
        return self.shares.cache + min(self.front, self.shares.sums) + self.chunk

    @property
    def scratch(self) -> int:
        """Bytes of open sums on the disk."""
        return max(0, self.front - self.shares.sums)


def needs_of(
    source: Source,
    plan: VolumePlan,
    channels: Channels,
    config: InferenceConfig,
    store: Store | None,
    budget: int,
) -> Needs:
    """Return what a volume takes of a budget, in bytes, and beyond it."""
    grid = plan.grid
    voxels = math.prod(grid.shape)
    prediction = 4 * channels.total * voxels
    cache = cache_of(source, plan)
    if store is None:
        chunks = ChunkGrid.at_starts(grid)
        cache = min(cache, budget // 2)
        shares = Shares(cache, prediction, budget - cache)
        return Needs(shares, front_of(grid, chunks, channels.total), 0, 0)
    chunks = store.layout(grid)
    stored = sum(
        spec.channels * spec.dtype.itemsize for spec in specs_of(channels, config).values()
    )
    leaving = MOST_LEAVING * SUM_BYTES * channels.total
    return Needs(
        shares_of(budget, cache, prediction),
        front_of(grid, chunks, channels.total),
        (4 * channels.total + 2 * stored + leaving) * math.prod(chunks[0].shape),
        stored * voxels,
    )


def front_of(grid: PatchGrid, chunks: ChunkGrid, channels: int) -> int:
    """Return the most bytes of sums that are open at once; see `open_sums`."""
    return int(open_sums(grid, chunks, channels).max())


def open_sums(grid: PatchGrid, chunks: ChunkGrid, channels: int) -> NDArray[np.int64]:
    """Return the bytes of sums that are open at once while each layer of patches runs, or more.

    In the order of `Schedule`; the last two layers are one if they run together. While a layer is
    under way, open are, over the whole section, the chunks that it has in common with the layer
    before or with the next, whichever is more; and where it is at work, all that it touches. The
    same holds of the rows of a layer, and of the patches of a row. Only planes count that patches
    have reached.
    """
    patch = _open_along(grid, chunks, 2, 1, 1)
    row = _open_along(grid, chunks, 1, grid.shape[2], int(patch.max()))
    section = grid.shape[1] * grid.shape[2]
    return SUM_BYTES * channels * _open_along(grid, chunks, 0, section, int(row.max()))


def _open_along(
    grid: PatchGrid, chunks: ChunkGrid, axis: int, whole: int, at_work: int
) -> NDArray[np.int64]:
    """Return the voxels that are open while each step of patches along an axis runs.

    Parameters
    ----------
    whole, at_work : int
        Voxels, along the axes after this one, of the volume; and of what is open at once there.
    """
    starts = grid.starts[axis]
    stops = starts + grid.patch_size[axis]
    if axis == 0 and grid.is_last_layer_shifted:  # it runs together with the one before
        starts, stops = starts[:-1], np.append(stops[:-2], stops[-1])
    low, high = chunks.edges[axis][:-1], chunks.edges[axis][1:]
    last = np.searchsorted(starts, high, side="left") - 1  # step that touches a row of chunks
    voxels, before = [], 0
    for step, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        near = slice(np.searchsorted(high, start, "right"), np.searchsorted(low, stop, "left"))
        reached = np.minimum(high[near], stop if axis == 0 else grid.shape[axis]) - low[near]
        after = int(reached[step < last[near]].sum())
        all_over = max(before, after)
        voxels.append(all_over * whole + (int(reached.sum()) - all_over) * at_work)
        before = after
    return np.array(voxels, dtype=np.int64)


def check_memory(name: str, nbytes: int) -> None:
    """Check that a prediction fits into memory.

    Raises
    ------
    ConfigError
        If it does not.
    """
    free = free_memory()
    if nbytes > free:
        raise ConfigError(
            f"the prediction of {name} takes {nbytes:,} bytes and {free:,} bytes of memory are "
            "free; give an output such as out.zarr, which it is written to"
        )
