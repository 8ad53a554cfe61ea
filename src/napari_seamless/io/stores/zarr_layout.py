"""How a zarr output is cut: units, each a file written once, made of chunks to read by.

    unit   a shard, or a chunk where one is enough; what the engine finishes and the store writes
    chunk  what is compressed and read by itself; several in a unit along Y and X, one along Z

Both are a regular grid from the first voxel, as zarr has it. Where the stride of the patches
allows, units end where patches start: then a unit is finished by the last patch that fills it.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Triple
from napari_seamless.engine.grid import PatchGrid

EDGE = 64
"""Voxels of a chunk along each axis, about: good to view and to stream from."""

THINNEST = 16
"""Planes of a chunk, about, for a small stride along Z: more would be kept open for longer."""

WIDEST = 256
"""Voxels of a chunk along Y and X, about, where it has few planes."""

UNIT_VOXELS = 1 << 22
"""Voxels of a unit, about: few enough to keep open, many enough for a file of its own."""

MOST_UNIT_VOXELS = 1 << 26

MOST_UNITS = 100_000
"""About so many files may an array have before its units grow."""


@dataclass(frozen=True)
class ZarrLayout:
    """Sizes of chunks and units.

    Attributes
    ----------
    chunk, unit : tuple of int
        Voxels (Z, Y, X); a unit is a whole number of chunks along each axis.
    """

    chunk: Triple
    unit: Triple

    @classmethod
    def of(cls, grid: PatchGrid, chunk_size: Triple | None = None) -> Self:
        """Return the layout that suits a prediction of these patches.

        Parameters
        ----------
        grid : PatchGrid
            In voxels of the prediction.
        chunk_size : tuple of int, optional
            Voxels of a chunk, (Z, Y, X), instead of what suits the patches.
        """
        z, y, x = map(_stride, grid.starts, grid.patch_size)
        chunk = _at_most(chunk_size, grid.shape) if chunk_size else _chunk(grid, (z, y, x))
        return cls(chunk, _unit(grid.shape, chunk, (z, y, x)))

    @property
    def is_sharded(self) -> bool:
        """Whether a unit is more than one chunk."""
        return self.unit != self.chunk


def _stride(starts: NDArray[np.intp], patch: int) -> int:
    """Return the most frequent distance between neighbouring patches along one axis."""
    if len(starts) < 2:
        return patch
    distances, counts = np.unique(-np.diff(starts), return_counts=True)
    return -int(distances[counts.argmax()])  # of equals the largest: the last patch is shifted


def _chunk(grid: PatchGrid, strides: Triple) -> Triple:
    depth = _edge(grid.shape[0], strides[0], _power(strides[0], THINNEST, EDGE))
    width = _power(math.sqrt(EDGE**3 / depth), EDGE, WIDEST)
    y, x = (
        _edge(size, stride, width) for size, stride in zip(grid.shape[1:], strides[1:], strict=True)
    )
    return depth, y, x


def _power(size: float, least: int, most: int) -> int:
    """Return the power of two nearest to `size`, from `least` to `most`."""
    return int(min(max(2 ** round(math.log2(size)), least), most))


def _edge(size: int, stride: int, wanted: int) -> int:
    """Return a multiple or a part of the stride as near as can be to what is wanted."""
    fitting = [
        edge
        for edge in range(wanted // 2, 2 * wanted + 1)
        if edge % stride == 0 or stride % edge == 0
    ]
    nearest = min(fitting or [wanted], key=lambda edge: abs(math.log(edge / wanted)))
    return min(nearest, size)


def _unit(shape: Triple, chunk: Triple, strides: Triple) -> Triple:
    """Return the chunk, grown along Y and X as long as it is small enough."""
    most = min(MOST_UNIT_VOXELS, max(UNIT_VOXELS, math.prod(shape) // MOST_UNITS))
    whole = [math.lcm(edge, stride) for edge, stride in zip(chunk, strides, strict=True)]
    unit = list(chunk)
    for axis in (1, 2):  # from one start of patches to another
        longer = [*unit[:axis], whole[axis], *unit[axis + 1 :]]
        if whole[axis] < shape[axis] and math.prod(longer) <= most:
            unit = longer
    while growing := [axis for axis in (1, 2) if unit[axis] < shape[axis]]:
        if 2 * math.prod(unit) > most:
            break
        unit[min(growing, key=lambda axis: unit[axis])] *= 2
    z, y, x = unit
    return z, y, x


def _at_most(size: Triple, shape: Triple) -> Triple:
    z, y, x = map(min, size, shape)
    return z, y, x
