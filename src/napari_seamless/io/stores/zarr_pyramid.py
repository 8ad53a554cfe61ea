"""The coarser levels of a zarr output, built unit by unit from the finer ones.

A unit is built when all units below it are there, by whoever wrote the last of them. Two processes
may both find that they did; then both build it, and write the same. What a killed process has left
out is built at the end of the run::

    level 2   |       |       |          Units have the same size on each level. What is there
    level 1   |   |   |   |   |          from an unfinished unit is provisional, and removed when
    level 0   | | | | | | | | |          a run goes on.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box, Triple
from napari_seamless.io.stores.pyramid import all_there, halved
from napari_seamless.io.stores.zarr_array import ZarrArray


def extend(array: ZarrArray, time: int, cell: Triple) -> None:
    """Build what a newly written unit of level 0 makes possible on the levels above."""
    for level in range(1, len(array.levels)):
        above = _above(array, level, cell)
        if not all(array.is_there(level - 1, time, each) for each in _below(array, level, above)):
            return
        _build(array, level, time, above)
        cell = above


def complete(array: ZarrArray, time: int) -> None:
    """Build every unit that is missing and has a unit below it."""
    for level in range(1, len(array.levels)):
        for cell in array.cells(level):
            if not array.is_there(level, time, cell) and any(
                array.is_there(level - 1, time, each) for each in _below(array, level, cell)
            ):
                _build(array, level, time, cell)


def discard_unfinished(array: ZarrArray, time: int, finished: NDArray[np.bool_]) -> None:
    """Remove what is there of units that are not finished, and what was built from it.

    Parameters
    ----------
    array : ZarrArray
        The array.
    time : int
        Of which point in time.
    finished : array of bool, (Z, Y, X)
        Which units of level 0 are.
    """
    for number, level in enumerate(array.levels):
        finished = all_there(finished, level.factors)
        for z, y, x in np.argwhere(~finished).tolist():
            array.remove(number, time, (z, y, x))


def _build(array: ZarrArray, level: int, time: int, cell: Triple) -> None:
    """Write one unit, made chunk by chunk from the level below."""
    coarse, fine = array.levels[level], array.levels[level - 1]
    unit = array.box(level, cell)
    values = np.empty((array.spec.channels, *unit.shape), array.spec.dtype)
    for part in _parts(unit, array.chunk):
        voxels = array.read(level - 1, time, coarse.finer_box(part, fine))
        for channel, plane in zip(values, voxels, strict=True):
            channel[part.within(unit)] = halved(plane, coarse.factors, array.spec.is_labels)
    array.write(level, time, unit, values)


def _above(array: ZarrArray, level: int, cell: Triple) -> Triple:
    """Return the unit of a level that is made from unit `cell` of the level below."""
    z, y, x = (at // by for at, by in zip(cell, array.levels[level].factors, strict=True))
    return z, y, x


def _below(array: ZarrArray, level: int, cell: Triple) -> Iterator[Triple]:
    """Yield the units of the level below that make unit `cell` of a level."""
    factors, counts = array.levels[level].factors, array.counts(level - 1)
    zs, ys, xs = (
        range(at * by, min((at + 1) * by, count))
        for at, by, count in zip(cell, factors, counts, strict=True)
    )
    return product(zs, ys, xs)


def _parts(box: Box, size: Triple) -> Iterator[Box]:
    """Cut a box into parts of `size` (Z, Y, X), from its start."""
    dz, dy, dx = size
    for z, y, x in product(*map(range, box.start, box.stop, size)):
        yield Box((z, y, x), (z + dz, y + dy, x + dx)).intersection(box)
