"""How much memory a run takes, and how its budget is shared out."""

import ctypes
import math
import platform
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import psutil

from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.grid import PatchGrid, Triple
from napari_seamless.engine.source import Source
from napari_seamless.engine.volume_plan import VolumePlan

SUM_BYTES = 8
"""Of one voxel and channel of open sums: float64."""


def free_memory() -> int:
    """Return the bytes of memory that this machine can still give."""
    return int(psutil.virtual_memory().available)


def default_budget() -> int:
    """Return the bytes that a run may take if nothing else is said: a quarter of what is free."""
    return free_memory() // 4


def resident() -> int:
    """Return the bytes of memory that this process has now."""
    return int(psutil.Process().memory_info().rss)


class FreePages:
    """Has the allocator return to the system, now and then, every page that holds nothing.

    Decoded chunks, which are kept, and the temporary arrays of batches and finished chunks lie
    mixed in glibc's heaps, which get holes: measured on planes of 2048 x 2048, 0.6 GB before the
    first chunk was finished, and more of them the longer a run is. Mapping large arrays for
    themselves (M_MMAP_THRESHOLD) would avoid that too, but a network's own arrays as well: it takes
    half as long again then. This takes about 10 ms. Other allocators are left alone.
    """

    _every = 0.2
    """Seconds."""

    def __init__(self) -> None:
        self._is_known = platform.libc_ver()[0] == "glibc"
        self._last = time.monotonic()

    def give_back(self) -> None:
        """Return them, unless that was done just now."""
        if self._is_known and time.monotonic() - self._last > self._every:
            ctypes.CDLL(None).malloc_trim(0)
            self._last = time.monotonic()


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

    Patches come in raster order: a chunk that is kept until the layer is over is read once, and one
    more row keeps those of this layer from being thrown out by the first of the next.

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
        Most open sums at once, in raster order.
    chunk : int
        What is at work when a chunk is finished: its values, and those that are written.
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


def front_of(grid: PatchGrid, chunks: ChunkGrid, channels: int) -> int:
    """Return the most bytes of sums that are open at once in raster order.

    While a layer of patches is under way, chunks are open that it or one before it has touched and
    that it or a later one still touches; of them, the planes up to which it reaches.
    """
    low, high = chunks.edges[0][:-1], chunks.edges[0][1:]
    starts, size = grid.starts[0], grid.patch_size[0]
    first = np.searchsorted(starts + size, low, side="right")  # layers that touch a row of chunks
    last = np.searchsorted(starts, high, side="left") - 1
    planes = 0
    for layer, start in enumerate(starts):
        is_open = (first <= layer) & (layer <= last)
        planes = max(planes, int((np.minimum(high, start + size) - low)[is_open].sum()))
    return SUM_BYTES * channels * planes * grid.shape[1] * grid.shape[2]
