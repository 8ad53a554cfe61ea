"""A multiscale pyramid: which axes are halved how often, and the voxels of a coarser level."""

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.geometry import Geometry, coordinates

COARSEST = 256
"""Voxels along each axis of the last level, at most."""

SIMILAR = 1.5
"""An axis is halved if its voxels are at most so much larger than the smallest ones."""


@dataclass(frozen=True)
class Level:
    """One resolution of an output.

    Attributes
    ----------
    shape : tuple of int
        Voxels, (Z, Y, X).
    factors : tuple of int
        Voxels of the next finer level in one of this level, (Z, Y, X); 1 or 2 each.
    geometry : Geometry
        Where its voxels lie.
    """

    shape: Triple
    factors: Triple
    geometry: Geometry

    @classmethod
    def below(cls, finer: "Level", factors: Triple) -> Self:
        """Return the next coarser level."""
        z, y, x = (-(-size // by) for size, by in zip(finer.shape, factors, strict=True))
        return cls((z, y, x), factors, _coarser(finer.geometry, factors))

    def finer_box(self, box: Box, finer: "Level") -> Box:
        """Return the voxels of the next finer level that make those of `box`."""
        starts = (low * by for low, by in zip(box.start, self.factors, strict=True))
        stops = (
            min(high * by, size)
            for high, by, size in zip(box.stop, self.factors, finer.shape, strict=True)
        )
        (z, y, x), (z_stop, y_stop, x_stop) = starts, stops
        return Box((z, y, x), (z_stop, y_stop, x_stop))


def levels_of(shape: Triple, geometry: Geometry) -> tuple[Level, ...]:
    """Return all levels of a volume, the volume itself first.

    Halved are the axes with the smallest voxels, until voxels are about as long along all axes;
    then all axes, until none has more than `COARSEST` voxels.
    """
    levels = [Level(shape, (1, 1, 1), geometry)]
    while max(levels[-1].shape) > COARSEST:
        levels.append(Level.below(levels[-1], _factors(levels[-1])))
    return tuple(levels)


def share_of_pyramid(levels: tuple[Level, ...]) -> float:
    """Return how many voxels all levels have together, per voxel of the first."""
    return sum(math.prod(level.shape) for level in levels) / math.prod(levels[0].shape)


def halved(values: NDArray[Any], factors: Triple, is_labels: bool) -> NDArray[Any]:
    """Return the voxels of the next coarser level.

    Parameters
    ----------
    values : array (Z, Y, X)
        A whole number of voxels of the coarser level, except at the end of the volume.
    factors : tuple of int
        How many of them are one voxel, (Z, Y, X).
    is_labels : bool
        The most frequent value, instead of the mean.

    Notes
    -----
    The mean is of what is there: NaN only where all voxels are NaN.
    """
    if is_labels:
        return _downsample(values, factors, "mode")
    if values.dtype.kind != "f":
        return _downsample(values, factors, "mean")
    missing = np.isnan(values)
    if not missing.any():
        return _downsample(values, factors, "mean")
    # both are means over the same voxels, so their ratio is the mean over those that are there
    known = np.where(missing, 0, values).astype(np.float32)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is wanted
        share = _downsample((~missing).astype(np.float32), factors, "mean")
        mean: NDArray[Any] = _downsample(known, factors, "mean") / share
    return mean.astype(values.dtype)


def all_there(finished: NDArray[np.bool_], factors: Triple) -> NDArray[np.bool_]:
    """Return of which units of the next coarser level all units below are finished, (Z, Y, X)."""
    for axis, by in enumerate(factors):
        starts = np.arange(0, finished.shape[axis], by)
        finished = np.logical_and.reduceat(finished, starts, axis=axis)
    return finished


def _downsample(
    values: NDArray[Any], factors: Triple, method: Literal["mean", "mode"]
) -> NDArray[Any]:
    result: NDArray[Any] = ts.downsample(ts.array(values), list(factors), method).read().result()
    return result


def _factors(level: Level) -> Triple:
    sizes = [
        abs(size) if length > 1 else math.inf
        for size, length in zip(level.geometry.scale, level.shape, strict=True)
    ]
    z, y, x = (2 if size <= SIMILAR * min(sizes) else 1 for size in sizes)
    return z, y, x


def _coarser(geometry: Geometry, factors: Triple) -> Geometry:
    """Return the geometry of a coarser level: its first voxel is centred on those it is made of."""
    scale = coordinates(size * by for size, by in zip(geometry.scale, factors, strict=True))
    places = coordinates(
        at + size * (by - 1) / 2
        for at, size, by in zip(geometry.translation, geometry.scale, factors, strict=True)
    )
    return Geometry(scale, places, geometry.units)
