"""Where the patches of one volume are.

starts of one axis, volume of 10 voxels, patch of 4, overlap 0.5 (stride 2)

    volume   0 1 2 3 4 5 6 7 8 9
    patch 0  [- - - -]
    patch 1      [- - - -]
    ...
    last                 [- - - -]     shifted back inside the volume ("snap")

volume of 2 voxels, patch of 4: one patch that starts at -1; what lies outside is padded

    volume     0 1
    patch 0  [- - - -]
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Triple = tuple[int, int, int]


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
        """Return the box of a whole volume of `shape` (Z, Y, X)."""
        return cls((0, 0, 0), shape)

    @classmethod
    def of(cls, ranges: tuple[slice, ...]) -> "Box":
        """Return the box of three slices (Z, Y, X) that have explicit ends; as `slices` gives."""
        z, y, x = ranges
        return cls((z.start, y.start, x.start), (z.stop, y.stop, x.stop))

    @classmethod
    def around(cls, boxes: "list[Box]") -> "Box":
        """Return the smallest box that holds every one of `boxes`."""
        starts = np.array([box.start for box in boxes]).min(axis=0)
        stops = np.array([box.stop for box in boxes]).max(axis=0)
        return cls(_triple(starts), _triple(stops))

    @property
    def shape(self) -> Triple:
        """Voxels along (Z, Y, X)."""
        z, y, x = (stop - start for start, stop in zip(self.start, self.stop, strict=True))
        return z, y, x

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Slices that cut this box out of a (Z, Y, X) array."""
        z, y, x = (slice(*ends) for ends in zip(self.start, self.stop, strict=True))
        return z, y, x

    @property
    def is_empty(self) -> bool:
        """Whether the box holds no voxel."""
        return min(self.shape) <= 0

    def intersection(self, other: "Box") -> "Box":
        """Return the common part of two boxes; it is empty if they do not touch."""
        (z, y, x), stop = map(max, self.start, other.start), map(min, self.stop, other.stop)
        z_stop, y_stop, x_stop = map(max, (z, y, x), stop)
        return Box((z, y, x), (z_stop, y_stop, x_stop))

    def shifted(self, offset: Triple) -> "Box":
        """Return the box moved by `offset` voxels (Z, Y, X)."""
        (z, y, x), (dz, dy, dx), (z_stop, y_stop, x_stop) = self.start, offset, self.stop
        return Box((z + dz, y + dy, x + dx), (z_stop + dz, y_stop + dy, x_stop + dx))


@dataclass(frozen=True)
class PatchGrid:
    """All patches of one volume: the Cartesian product of the starts of each axis, in raster order.

    Attributes
    ----------
    shape : tuple of int
        Voxels of the volume, (Z, Y, X).
    patch_size : tuple of int
        Voxels of a patch, (Z, Y, X).
    overlap : float
        Share of the patch that neighbours have in common, in [0, 1).

    Notes
    -----
    The stride is ``max(1, int(patch_size * (1 - overlap)))`` as in MONAI, so that neighbours never
    overlap less than asked. The last patch of an axis is shifted back inside the volume. Along an
    axis shorter than the patch there is one patch, centred on the volume: its start is negative.
    """

    shape: Triple
    patch_size: Triple
    overlap: float

    @cached_property
    def starts(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """Where patches start along each axis: three sorted integer arrays (Z, Y, X)."""
        z, y, x = (
            _axis_starts(size, patch, self.overlap)
            for size, patch in zip(self.shape, self.patch_size, strict=True)
        )
        return z, y, x

    @property
    def counts(self) -> Triple:
        """Patches along (Z, Y, X)."""
        z, y, x = (len(starts) for starts in self.starts)
        return z, y, x

    def __len__(self) -> int:
        z, y, x = self.counts
        return z * y * x

    def __getitem__(self, index: int) -> Box:
        """Return the box of patch `index` in raster order; it may reach outside the volume."""
        if not 0 <= index < len(self):
            raise IndexError(f"patch {index} is not in a grid of {len(self)} patches")
        cell = np.unravel_index(index, self.counts)
        start = _triple(np.array([starts[i] for starts, i in zip(self.starts, cell, strict=True)]))
        return Box(start, _triple(np.add(start, self.patch_size)))

    def __iter__(self) -> Iterator[Box]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def positions(self) -> NDArray[np.intp]:
        """Start of every patch in raster order: integers, shape (patches, 3), columns z, y, x."""
        return np.stack(np.meshgrid(*self.starts, indexing="ij"), axis=-1).reshape(-1, 3)

    def touching(self, box: Box) -> tuple[slice, slice, slice]:
        """Return, per axis, the slice of `starts` whose patches share a voxel with `box`."""
        z, y, x = (
            slice(
                int(np.searchsorted(starts, low - patch, side="right")),
                int(np.searchsorted(starts, high, side="left")),
            )
            for starts, patch, low, high in zip(
                self.starts, self.patch_size, box.start, box.stop, strict=True
            )
        )
        return z, y, x


def stride_of(patch_size: int, overlap: float) -> int:
    """Return the distance in voxels between neighbouring patches along one axis."""
    return max(1, int(patch_size * (1 - overlap)))


def _axis_starts(size: int, patch: int, overlap: float) -> NDArray[np.intp]:
    if size <= patch:
        return np.array([-((patch - size) // 2)], dtype=np.intp)
    starts = np.arange(0, size - patch + 1, stride_of(patch, overlap), dtype=np.intp)
    if starts[-1] + patch < size:
        starts = np.append(starts, size - patch)
    return starts


def _triple(values: NDArray[np.intp]) -> Triple:
    z, y, x = (int(value) for value in values)
    return z, y, x
