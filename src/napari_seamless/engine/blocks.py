"""Which patches one worker runs: the patch grid of a volume, cut into blocks.

A chunk that the patches of one block reach alone is private: that block finishes it. What several
blocks reach is shared: each of them passes its sums of it on, and these are added up::

    patches   [- - - -]
                  [- - - -]
                      [- - - -]
                          [- - - -]
    blocks    0   0   |   1   1           patches 0 and 1; 2 and 3
    chunks    |   |   | * |   |   |       *: both blocks reach it

Blocks depend on the volume and the settings alone, not on how many workers there are: so the sums,
and the result, are the same for any number of them.
"""

import hashlib
import math
from dataclasses import dataclass
from itertools import product
from typing import Self

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.sums import SUM_BYTES

BLOCK_BYTES = 1 << 30
"""Of sums that a block may hold; most of them are finished before the last are begun."""

MANY_BLOCKS = 64
"""Enough for many workers to be busy until the end, where blocks of some size allow it."""

FEW_BLOCKS = 16
"""Enough for a few workers to end together, at the price of more sums that are shared."""

LONG = 4
"""Patches of a block along an axis; half of what fewer reach is shared."""

Cells = tuple[slice, slice, slice]
"""Patches along each axis, by their number."""


@dataclass(frozen=True, eq=False)
class BlockGrid:
    """The blocks of one volume: a Cartesian product of ranges of patches, in raster order.

    Attributes
    ----------
    grid : PatchGrid
        The patches of the volume.
    chunks : ChunkGrid
        How its voxels are cut.
    cuts : tuple of three integer arrays
        The first patch of each block along (Z, Y, X), rising from 0, and the number of patches.
    """

    grid: PatchGrid
    chunks: ChunkGrid
    cuts: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]

    @classmethod
    def of(cls, grid: PatchGrid, chunks: ChunkGrid, channels: int) -> Self:
        """Cut a volume whose prediction has so many channels into blocks.

        Blocks start where chunks do, if that is near.
        """
        z, y, x = (
            _cuts(starts, edges, count)
            for starts, edges, count in zip(
                grid.starts, chunks.edges, _counts(grid, chunks, channels), strict=True
            )
        )
        return cls(grid, chunks, (z, y, x))

    @property
    def counts(self) -> Triple:
        """Blocks along (Z, Y, X)."""
        z, y, x = (len(cuts) - 1 for cuts in self.cuts)
        return z, y, x

    def __len__(self) -> int:
        return math.prod(self.counts)

    @property
    def key(self) -> str:
        """What tells these blocks from others: a digest of where all is cut."""
        hashed = hashlib.blake2b(repr(self.grid.patch_size).encode(), digest_size=8)
        for array in (*self.grid.starts, *self.chunks.edges, *self.cuts):
            hashed.update(np.append(len(array), array).astype(np.int64).data)
        return hashed.hexdigest()

    def cells(self, block: int) -> Cells:
        """Return the patches of a block."""
        if not 0 <= block < len(self):
            raise IndexError(f"block {block} is not in a grid of {len(self)} blocks")
        at = np.unravel_index(block, self.counts)
        z, y, x = (
            slice(int(cuts[i]), int(cuts[i + 1])) for cuts, i in zip(self.cuts, at, strict=True)
        )
        return z, y, x

    def reach(self, block: int) -> Box:
        """Return the voxels of the volume that the patches of a block reach."""
        (z, dz), (y, dy), (x, dx) = (
            (int(starts[cells.start]), int(starts[cells.stop - 1]) + size)
            for starts, cells, size in zip(
                self.grid.starts, self.cells(block), self.grid.patch_size, strict=True
            )
        )
        return Box((z, y, x), (dz, dy, dx)).intersection(Box.of_shape(self.grid.shape))

    def chunks_of(self, block: int) -> list[int]:
        """Return the chunks that the patches of a block reach, in raster order."""
        return self.chunks.touching(self.reach(block))

    def contributors(self, chunk: int, wanted: NDArray[np.bool_]) -> list[int]:
        """Return the blocks that have sums for a chunk, in raster order.

        Parameters
        ----------
        chunk : int
            Its index.
        wanted : bool array, shape ``grid.counts``
            Which patches run at all.
        """
        near = self.grid.touching(self.chunks[chunk])
        return [
            block
            for block in self._blocks_of(near)
            if wanted[_common(near, self.cells(block))].any()
        ]

    def frame(self, boxes: list[Box]) -> tuple[PatchGrid, Cells]:
        """Return the grid of just the patches that reach some boxes, and which they are."""
        area = Box.around(boxes)
        return self.grid.only(area), self.grid.touching(area)

    def numbers(self, cells: Cells) -> NDArray[np.intp]:
        """Return the raster indices of some patches, in raster order."""
        z, y, x = (np.arange(part.start, part.stop, dtype=np.intp) for part in cells)
        _, rows, columns = self.grid.counts
        numbers: NDArray[np.intp] = (z[:, None, None] * rows + y[:, None]) * columns + x
        return numbers.ravel()

    def _blocks_of(self, near: Cells) -> list[int]:
        """Return the blocks that some patches belong to."""
        ranges = [
            range(
                int(np.searchsorted(cuts, cells.start, side="right")) - 1,
                int(np.searchsorted(cuts, cells.stop, side="left")),
            )
            for cuts, cells in zip(self.cuts, near, strict=True)
        ]
        _, rows, columns = self.counts
        return [(i * rows + j) * columns + k for i, j, k in product(*ranges)]


def within(cells: Cells, frame: Cells) -> Cells:
    """Return the place of some patches among those of a frame."""
    z, y, x = (
        slice(own.start - outer.start, own.stop - outer.start)
        for own, outer in zip(cells, frame, strict=True)
    )
    return z, y, x


def _common(one: Cells, other: Cells) -> Cells:
    z, y, x = (
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
    return z, y, x


def _counts(grid: PatchGrid, chunks: ChunkGrid, channels: int) -> Triple:
    """Return how many blocks there are along each axis."""
    counts: Triple = (1, 1, 1)
    while _block_bytes(grid, counts, channels) > BLOCK_BYTES:
        more = _more(grid, counts, 1, chunks.counts) or _more(grid, counts, 1, grid.counts)
        if more is None:
            return counts
        counts = more
    for enough, length, most in (
        (MANY_BLOCKS, LONG, chunks.counts),
        (FEW_BLOCKS, LONG // 2, chunks.counts),
        (FEW_BLOCKS, LONG // 2, grid.counts),
    ):
        while math.prod(counts) < enough and (more := _more(grid, counts, length, most)):
            counts = more
    return counts


def _more(grid: PatchGrid, counts: Triple, length: int, most: Triple) -> Triple | None:
    """Return the counts with one block more along the axis on which blocks have most patches.

    None if no axis has room for one: blocks keep `length` patches, and are no more than `most`.
    """
    lengths = [patches // count for patches, count in zip(grid.counts, counts, strict=True)]
    for axis in sorted(range(3), key=lambda axis: -lengths[axis]):
        more = counts[axis] + 1
        if grid.counts[axis] // more >= length and more <= most[axis]:
            z, y, x = (more if i == axis else count for i, count in enumerate(counts))
            return z, y, x
    return None


def _block_bytes(grid: PatchGrid, counts: Triple, channels: int) -> int:
    """Return about how many bytes the sums of a block take."""
    voxels = (
        min(size, math.ceil(size / count) + patch)
        for size, count, patch in zip(grid.shape, counts, grid.patch_size, strict=True)
    )
    return SUM_BYTES * channels * math.prod(voxels)


def _cuts(starts: NDArray[np.intp], edges: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Return the first patch of each of `count` blocks along an axis, and the number of patches.

    A cut is moved to a patch that starts with a chunk if one is nearer than a quarter of a block.
    """
    patches = len(starts)
    fitting = np.flatnonzero(np.isin(starts, edges))
    cuts = [0]
    for i in range(1, count):
        cut = i * patches // count
        nearest = fitting[np.abs(fitting - cut).argmin()] if len(fitting) else cut
        cuts.append(int(nearest if abs(nearest - cut) <= patches // (4 * count) else cut))
    return np.array([*cuts, patches], dtype=np.intp)
