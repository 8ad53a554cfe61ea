"""Regions of a volume, and how they are cut and moved."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Triple = tuple[int, int, int]
Scale = tuple[Fraction, Fraction, Fraction]
"""Output voxels per input voxel, (Z, Y, X)."""


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open integer region of a volume.

    Attributes
    ----------
    start, stop : tuple of int
        First voxel, and one past the last voxel, (Z, Y, X). A start may be negative and a stop may
        exceed the volume where a patch reaches over its edge.
    """

    start: Triple
    stop: Triple

    @classmethod
    def of_shape(cls, shape: Triple) -> "Box":
        """Return the box of a whole volume.

        Parameters
        ----------
        shape : tuple of int
            Voxels of the volume, (Z, Y, X).

        Returns
        -------
        Box
        """
        return cls((0, 0, 0), shape)

    @classmethod
    def of(cls, ranges: tuple[slice, ...]) -> "Box":
        """Return the box of three slices.

        Parameters
        ----------
        ranges : tuple of three slices
            Voxels along (Z, Y, X), with explicit ends; as `slices` gives them.

        Returns
        -------
        Box
        """
        z, y, x = ranges
        return cls((z.start, y.start, x.start), (z.stop, y.stop, x.stop))

    @classmethod
    def around(cls, boxes: "list[Box]") -> "Box":
        """Return the smallest box that holds every one of some boxes.

        Parameters
        ----------
        boxes : list of Box
            At least one.

        Returns
        -------
        Box
        """
        starts = np.array([box.start for box in boxes]).min(axis=0)
        stops = np.array([box.stop for box in boxes]).max(axis=0)
        return cls(_triple(starts), _triple(stops))

    @property
    def shape(self) -> Triple:
        """Voxels along (Z, Y, X)."""
        (z, y, x), (z_stop, y_stop, x_stop) = self.start, self.stop
        return z_stop - z, y_stop - y, x_stop - x

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Slices that cut this box out of a (Z, Y, X) array."""
        (z, y, x), (z_stop, y_stop, x_stop) = self.start, self.stop
        return slice(z, z_stop), slice(y, y_stop), slice(x, x_stop)

    @property
    def is_empty(self) -> bool:
        """Whether the box holds no voxel."""
        return min(self.shape) <= 0

    def intersection(self, other: "Box") -> "Box":
        """Return the common part of two boxes; it is empty if they do not touch.

        Parameters
        ----------
        other : Box
            The other one, in voxels of the same volume.

        Returns
        -------
        Box
        """
        z, y, x = start = tuple(map(max, self.start, other.start))
        z_stop, y_stop, x_stop = map(max, start, map(min, self.stop, other.stop))
        return Box((z, y, x), (z_stop, y_stop, x_stop))

    def grown(self, margin: Triple) -> "Box":
        """Return the box with a margin around it; it may reach outside of the volume.

        Parameters
        ----------
        margin : tuple of int
            Voxels (Z, Y, X) more on both sides of each axis.

        Returns
        -------
        Box
        """
        (z, y, x), (dz, dy, dx), (z_stop, y_stop, x_stop) = self.start, margin, self.stop
        return Box((z - dz, y - dy, x - dx), (z_stop + dz, y_stop + dy, x_stop + dx))

    def scaled(self, scale: Scale) -> "Box":
        """Return the box in voxels of another resolution, rounded outwards.

        Parameters
        ----------
        scale : tuple of Fraction
            Voxels of the other resolution per voxel of this one, (Z, Y, X).

        Returns
        -------
        Box
        """
        z, y, x = (low * by // 1 for low, by in zip(self.start, scale, strict=True))
        return Box((z, y, x), scaled_up(self.stop, scale))

    def within(self, frame: "Box") -> tuple[slice, slice, slice]:
        """Return the slices of this box in an array that holds just the voxels of another.

        Parameters
        ----------
        frame : Box
            What the array holds.

        Returns
        -------
        tuple of three slices
            Along (Z, Y, X).
        """
        (dz, dy, dx), (z, y, x), (z_stop, y_stop, x_stop) = frame.start, self.start, self.stop
        return slice(z - dz, z_stop - dz), slice(y - dy, y_stop - dy), slice(x - dx, x_stop - dx)

    def slabs(self, voxels: int) -> Iterator["Box"]:
        """Cut the box into runs of whole planes.

        Parameters
        ----------
        voxels : int
            How many each run may have at most; one plane is the least.

        Returns
        -------
        iterator of Box
            In the order of Z; together they are this box.
        """
        if self.is_empty:
            return
        (first, y, x), (last, y_stop, x_stop) = self.start, self.stop
        planes = max(1, voxels // (self.shape[1] * self.shape[2]))
        for z in range(first, last, planes):
            yield Box((z, y, x), (min(z + planes, last), y_stop, x_stop))

    def shifted(self, offset: Triple) -> "Box":
        """Return the box at another place.

        Parameters
        ----------
        offset : tuple of int
            Voxels (Z, Y, X) that it is moved by.

        Returns
        -------
        Box
        """
        (z, y, x), (dz, dy, dx), (z_stop, y_stop, x_stop) = self.start, offset, self.stop
        return Box((z + dz, y + dy, x + dx), (z_stop + dz, y_stop + dy, x_stop + dx))


def scaled_up(shape: Triple, scale: Scale) -> Triple:
    """Return a shape times a scale, rounded up."""
    z, y, x = (math.ceil(size * factor) for size, factor in zip(shape, scale, strict=True))
    return z, y, x


def _triple(values: NDArray[np.intp]) -> Triple:
    z, y, x = (int(value) for value in values)
    return z, y, x
