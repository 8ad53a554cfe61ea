"""Seams: how much a prediction jumps where patches begin and end, against elsewhere.

    patches   [- - - - - - - -]
                      [- - - - - - - -]
    faces             ^       ^            between two voxels; those of the volume do not count

Where blending works, a prediction changes from voxel to voxel at a face as it does elsewhere, and
the ratio is about 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.lazy import LazyArray, Ranges

MOST_PLANES = 64
"""Planes that are read at faces, and elsewhere, along each axis."""

_AXES = "ZYX"


@dataclass(frozen=True)
class SeamScore:
    """Mean jumps of a prediction from one voxel to the next along (Z, Y, X).

    Attributes
    ----------
    at_faces, inside : tuple of three floats
        Where patches begin or end, and elsewhere; in the units of the prediction. NaN where there
        is no such place, or nothing is known of it.
    """

    at_faces: tuple[float, float, float]
    inside: tuple[float, float, float]

    @property
    def ratios(self) -> tuple[float, float, float]:
        """Jumps at faces / jumps elsewhere, along (Z, Y, X): 1 without seams.

        Infinite if there are jumps at faces only; NaN if nothing can be said.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            z, y, x = np.divide(self.at_faces, self.inside).tolist()
        return z, y, x

    @property
    def worst(self) -> float:
        """The largest of the ratios; NaN if there is none."""
        known = [ratio for ratio in self.ratios if not np.isnan(ratio)]
        return max(known, default=float("nan"))

    def __str__(self) -> str:
        parts = [
            f"{axis} {ratio:.2f}"
            for axis, ratio in zip(_AXES, self.ratios, strict=True)
            if not np.isnan(ratio)
        ]
        return f"{self.worst:.2f} ({', '.join(parts)})" if parts else "none known"


def faces_of(grid: PatchGrid) -> tuple[NDArray[np.intp], ...]:
    """Return the places along (Z, Y, X) where patches begin or end inside the volume.

    A place `f` is between the voxels ``f - 1`` and ``f``.
    """
    ends = [
        np.union1d(starts, starts + size)
        for starts, size in zip(grid.starts, grid.patch_size, strict=True)
    ]
    return tuple(
        each[(each > 0) & (each < length)] for each, length in zip(ends, grid.shape, strict=True)
    )


def seam_score(volume: LazyArray | NDArray[Any], grid: PatchGrid) -> SeamScore:
    """Return how much a prediction jumps at the faces of its patches, and elsewhere.

    Parameters
    ----------
    volume : array-like (C, Z, Y, X)
        The prediction; NaN where it is not known yet, which does not count.
    grid : PatchGrid
        Its patches.

    Notes
    -----
    Of a large volume, `MOST_PLANES` pairs of planes at faces and as many elsewhere are read along
    each axis, evenly spaced.
    """
    at_faces, inside = [], []
    for axis, faces in enumerate(faces_of(grid)):
        others = np.setdiff1d(np.arange(1, grid.shape[axis]), faces)
        at_faces.append(_mean_jump(volume, axis, _some(faces)))
        inside.append(_mean_jump(volume, axis, _some(others)))
    return SeamScore(tuple(at_faces), tuple(inside))  # type: ignore[arg-type]


def _some(places: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return at most `MOST_PLANES` of the places, evenly spaced."""
    if len(places) <= MOST_PLANES:
        return places
    return places[np.linspace(0, len(places) - 1, MOST_PLANES).round().astype(np.intp)]


def _mean_jump(volume: LazyArray | NDArray[Any], axis: int, places: NDArray[np.intp]) -> float:
    """Return the mean jump across planes of an axis; NaN if none is known."""
    total, count = 0.0, 0
    for place in places.tolist():
        key = [slice(None)] * 4
        key[1 + axis] = slice(place - 1, place + 1)
        jumps = np.abs(np.diff(np.asarray(volume[tuple(key)]).astype(np.float64), axis=1 + axis))
        known = np.isfinite(jumps)
        total += float(jumps[known].sum())
        count += int(np.count_nonzero(known))
    return total / count if count else float("nan")


def seam_map(volume: LazyArray, grid: PatchGrid) -> LazyArray:
    """Return by how much a prediction jumps more at faces than beside them, where it is looked at.

    Parameters
    ----------
    volume : LazyArray (C, Z, Y, X)
        The prediction.
    grid : PatchGrid
        Its patches.

    Returns
    -------
    LazyArray of float32, shape (Z, Y, X)
        The largest value over channels and axes; NaN away from faces, and where nothing is known.

    Notes
    -----
    On both sides of a face: the jump across it less the mean of the jumps one voxel before it and
    one after it, along the same axis. So what changes everywhere, as across the edge of an object
    or from plane to plane, is no seam.
    """
    faces = faces_of(grid)

    def read(ranges: Ranges) -> NDArray[np.float32]:
        box = Box.of(ranges)
        wide = _widened(box, 2).intersection(Box.of_shape(grid.shape))
        values = np.asarray(volume[(slice(None), *wide.slices)])
        excess = np.full(wide.shape, np.nan, np.float32)
        for axis, places in enumerate(faces):
            _mark(excess, values, axis, places - wide.start[axis])
        return excess[box.within(wide)]

    return LazyArray(grid.shape, np.float32, read)


def _widened(box: Box, by: int) -> Box:
    z, y, x = (start - by for start in box.start)
    z_stop, y_stop, x_stop = (stop + by for stop in box.stop)
    return Box((z, y, x), (z_stop, y_stop, x_stop))


def _mark(
    excess: NDArray[np.float32], values: NDArray[Any], axis: int, places: NDArray[np.intp]
) -> None:
    """Put what is at faces across an axis on both sides of them, where more than what is there."""
    length = excess.shape[axis]
    inside = places[(places > 0) & (places < length)]
    if not len(inside):
        return
    jumps = np.abs(np.diff(values, axis=1 + axis))  # jump `i` is between voxels `i` and `i + 1`
    beside = [_taken(jumps, axis, inside + by) for by in (-2, 0)]
    total, known = (np.sum([each(side) for side in beside], axis=0) for each in (_zeroed, _known))
    usual = total / np.maximum(known, 1)
    jump = np.fmax.reduce(_taken(jumps, axis, inside - 1) - usual, axis=0)
    for side in (inside - 1, inside):
        key: Sequence[Any] = [slice(None)] * axis + [side]
        excess[tuple(key)] = np.fmax(excess[tuple(key)], jump)


def _taken(jumps: NDArray[Any], axis: int, places: NDArray[np.intp]) -> NDArray[Any]:
    """Return the jumps at some places along an axis; NaN beyond its ends."""
    length = jumps.shape[1 + axis]
    taken = np.take(jumps, places.clip(0, length - 1), 1 + axis)
    beyond = np.flatnonzero((places < 0) | (places >= length))
    taken[(slice(None),) * (1 + axis) + (beyond,)] = np.nan
    return taken


def _zeroed(values: NDArray[Any]) -> NDArray[Any]:
    return np.where(np.isnan(values), 0, values)


def _known(values: NDArray[Any]) -> NDArray[np.bool_]:
    known: NDArray[np.bool_] = ~np.isnan(values)
    return known
