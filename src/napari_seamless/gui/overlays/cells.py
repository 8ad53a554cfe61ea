"""What is known of patches, as volumes: each voxel belongs to one patch.

It is the patch with the nearest centre, the one that weighs most there (with every window but a
gaussian whose `mu` is not 0). Patches overlap, their cells do not:

    patches   [- - - - - - - -]
                      [- - - - - - - -]
    cells     [- - - - - -][- - - - - -]
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from napari_seamless.engine.box import Triple
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.lazy import LazyArray, Ranges

MOST_IN_3D = 1 << 21
"""Voxels of the coarsest level, which is the one that napari draws in 3-D."""
VOXELS_OF_A_CELL = 3
LEAST_IN_3D = 32
"""Voxels along an axis, for each cell and in all, of a level that is made for looking through."""
_WIDE_ENOUGH = 12
"""Voxels of a cell that one is left out of, so that it can be told from the next."""

Values = Callable[[], NDArray[np.generic]]
"""Returns one value per patch, shape ``grid.counts``."""


def cell_levels(
    grid: PatchGrid,
    values: Values,
    dtype: DTypeLike,
    gap: float | None = None,
    is_looked_through: bool = False,
) -> list[LazyArray]:
    """Return values of patches as a volume at full resolution, and coarser ones.

    Parameters
    ----------
    grid : PatchGrid
        The patches.
    values : callable
        One value per patch.
    dtype : dtype
        Of the values.
    gap : number, optional
        What is between cells, one voxel wide, along the axes of which more than one voxel is asked
        for: those that are looked at. Nothing by default.
    is_looked_through : bool
        Whether napari follows each ray through all of the coarsest level: it then gets no more
        voxels than the cells need to be told apart, which is what drawing takes time for.

    Returns
    -------
    list of LazyArray, (Z, Y, X)
        Along their longest axes half as large each, until `MOST_IN_3D`.
    """
    shapes = level_shapes(grid.shape)
    if is_looked_through:
        shapes += _fewest_voxels(shapes[-1], grid.counts)
    return [_cells(grid, shape, values, dtype, gap) for shape in shapes]


def level_shapes(shape: Triple) -> list[Triple]:
    """Return the shapes of a volume and its coarser levels; long axes are halved first."""
    shapes = [shape]
    while math.prod(shapes[-1]) > MOST_IN_3D:
        longest = max(shapes[-1])
        z, y, x = (-(-size // 2) if 2 * size > longest else size for size in shapes[-1])
        shapes.append((z, y, x))
    return shapes


def _fewest_voxels(shape: Triple, counts: Triple) -> list[Triple]:
    """Return a shape in which cells can just be told apart; none if it were not much smaller."""
    z, y, x = (
        min(size, max(VOXELS_OF_A_CELL * count, LEAST_IN_3D))
        for size, count in zip(shape, counts, strict=True)
    )
    return [(z, y, x)] if 2 * z * y * x <= math.prod(shape) else []


def cells_along(starts: NDArray[np.intp], size: int, at: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the number of the patch with the nearest centre along one axis; of two, the first.

    Parameters
    ----------
    starts : ndarray of int
        Where patches of `size` voxels start, sorted.
    size : int
        Voxels of a patch.
    at : ndarray of float
        Places, voxel centres being integers.
    """
    midlines = (starts[:-1] + starts[1:] + size - 1) / 2
    return np.searchsorted(midlines, at, side="left")


def ranks(order: NDArray[np.intp], counts: Triple) -> NDArray[np.float32]:
    """Return the place of each patch in an order, from 1 on, shape `counts`; NaN if it has none."""
    places = np.full(counts, np.nan, np.float32)
    places.flat[order] = np.arange(1, len(order) + 1)
    return places


def _cells(
    grid: PatchGrid, shape: Triple, values: Values, dtype: DTypeLike, gap: float | None
) -> LazyArray:
    """Return values of patches as a volume of `shape`, the full one or a coarser one."""
    is_wide = [size >= _WIDE_ENOUGH * count for size, count in zip(shape, grid.counts, strict=True)]

    def read(ranges: Ranges) -> NDArray[np.generic]:
        region = values()
        owners = [_owners(grid, axis, shape[axis], part) for axis, part in enumerate(ranges)]
        growth = [len(owners[axis]) / region.shape[axis] for axis in range(3)]
        for axis in np.argsort(growth):  # of a plane, first what is left of the axis across it
            region = np.take(region, owners[axis][1:], axis)
        if gap is not None:
            _leave_gaps(region, owners, is_wide, gap)
        return region

    return LazyArray(shape, dtype, read)


def _owners(grid: PatchGrid, axis: int, length: int, part: slice) -> NDArray[np.intp]:
    """Return the numbers of the patches of some voxels of a level, and of the one before them."""
    step = grid.shape[axis] / length
    at = (np.arange(part.start - 1, part.stop) + 0.5) * step - 0.5
    return cells_along(grid.starts[axis], grid.patch_size[axis], at)


def _leave_gaps(
    region: NDArray[np.generic],
    owners: Sequence[NDArray[np.intp]],
    is_wide: Sequence[bool],
    gap: float,
) -> None:
    """Put `gap` where wide cells begin, along axes of which there is more than one voxel."""
    for axis, numbers in enumerate(owners):
        if is_wide[axis] and region.shape[axis] > 1:
            begins = np.flatnonzero(np.diff(numbers))
            region[(slice(None),) * axis + (begins,)] = gap
