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
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box, Scale, Triple, scaled_up
from napari_seamless.engine.errors import ConfigError

Overlap = float | int
"""Below 1 a share of the patch, otherwise whole voxels."""
Spacing = Literal["snap", "even"]


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """All patches of one volume: the Cartesian product of the starts of each axis, in raster order.

    Attributes
    ----------
    shape : tuple of int
        Voxels of the volume, (Z, Y, X).
    patch_size : tuple of int
        Voxels of a patch, (Z, Y, X).
    starts : tuple of three integer arrays, shape (patches along the axis,)
        Where patches start along Z, Y and X, in voxels, sorted. A start may be negative, and the
        last patch may reach over the end of the volume.

    Examples
    --------
    >>> grid = PatchGrid.regular((1, 10, 10), (1, 4, 4), overlap=0.5)
    >>> grid.starts[2], len(grid)
    (array([0, 2, 4, 6]), 16)
    """

    shape: Triple
    patch_size: Triple
    starts: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]

    @classmethod
    def regular(
        cls,
        shape: Triple,
        patch_size: Triple,
        overlap: Overlap | tuple[Overlap, Overlap, Overlap] = 0.5,
        *,
        spacing: Spacing = "snap",
        step: Triple = (1, 1, 1),
    ) -> "PatchGrid":
        """Return the grid that covers a volume.

        Parameters
        ----------
        shape, patch_size : tuple of int
            Voxels of the volume and of a patch, (Z, Y, X).
        overlap : number, or one per axis
            What neighbours have in common: below 1 a share of the patch, otherwise whole voxels.
        spacing : {"snap", "even"}
            "snap": a constant stride, the last patch shifted back inside the volume. "even": as
            many patches, spaced evenly, so that they overlap at least as much.
        step : tuple of int
            Starts are multiples of this: what an output at another resolution needs.

        Returns
        -------
        PatchGrid

        Raises
        ------
        ConfigError
            If an overlap is no share below 1 and not fewer voxels than the patch has.

        Notes
        -----
        The stride of a share is ``max(1, int(patch_size * (1 - overlap)))`` as in MONAI's
        `sliding_window_inference`, so that neighbours never overlap less than asked; of whole
        voxels it is ``patch_size - overlap``. Along an axis shorter than the patch there is one
        patch, centred on the volume: its start is negative.
        """
        overlaps = overlap if isinstance(overlap, tuple) else (overlap,) * 3
        z, y, x = (
            _axis_starts(size, patch, stride_of(patch, share), spacing, multiple)
            for size, patch, share, multiple in zip(shape, patch_size, overlaps, step, strict=True)
        )
        return cls(shape, patch_size, (z, y, x))

    @cached_property
    def counts(self) -> Triple:
        """Patches along (Z, Y, X)."""
        z, y, x = (len(starts) for starts in self.starts)
        return z, y, x

    @property
    def is_last_layer_shifted(self) -> bool:
        """Whether the last layer is nearer to the one before, along Z, than that to its own."""
        gaps = np.diff(self.starts[0][-3:])
        return len(gaps) == 2 and bool(gaps[1] < gaps[0])

    def __len__(self) -> int:
        z, y, x = self.counts
        return z * y * x

    def __getitem__(self, index: int) -> Box:
        """Return the box of patch `index` in raster order; it may reach outside the volume."""
        if not 0 <= index < len(self):
            raise IndexError(f"patch {index} is not in a grid of {len(self)} patches")
        (_, rows, columns), (depth, height, width) = self.counts, self.patch_size
        along_z, along_y, along_x = self.starts
        z = int(along_z[index // (rows * columns)])
        y = int(along_y[index // columns % rows])
        x = int(along_x[index % columns])
        return Box((z, y, x), (z + depth, y + height, x + width))

    def __iter__(self) -> Iterator[Box]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def positions(self) -> NDArray[np.intp]:
        """Start of every patch, in voxels: integers, shape (patches, 3), columns z, y, x.

        In raster order.
        """
        return self.positions_of(np.arange(len(self)))

    def positions_of(self, indices: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the starts of some patches.

        Parameters
        ----------
        indices : ndarray of int, shape (n,)
            Raster indices of the patches.

        Returns
        -------
        ndarray of int, shape (n, 3)
            In voxels; columns z, y, x.
        """
        cells = np.unravel_index(indices, self.counts)
        return np.stack([s[at] for s, at in zip(self.starts, cells, strict=True)], axis=-1)

    def touching(self, box: Box) -> tuple[slice, slice, slice]:
        """Return which patches share a voxel with a box.

        Parameters
        ----------
        box : Box
            In the frame of the grid.

        Returns
        -------
        tuple of three slices
            Of `starts`, along (Z, Y, X).
        """
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

    def only(self, box: Box) -> "PatchGrid":
        """Return the grid of just the patches that share a voxel with a box, in the same frame.

        Parameters
        ----------
        box : Box
            In the frame of the grid.

        Returns
        -------
        PatchGrid
        """
        z, y, x = (
            starts[near] for starts, near in zip(self.starts, self.touching(box), strict=True)
        )
        return PatchGrid(self.shape, self.patch_size, (z, y, x))

    def cropped(self, box: Box) -> "PatchGrid":
        """Return the same patches in the frame of a box, as the grid of a volume of its shape.

        Parameters
        ----------
        box : Box
            In the frame of this grid; its start is voxel 0 of the other one.

        Returns
        -------
        PatchGrid
        """
        z, y, x = (starts - low for starts, low in zip(self.starts, box.start, strict=True))
        return PatchGrid(box.shape, self.patch_size, (z, y, x))

    def scaled(self, scale: Scale) -> "PatchGrid":
        """Return the grid of the output at another resolution.

        Parameters
        ----------
        scale : tuple of Fraction
            Output voxels per voxel, (Z, Y, X). Starts and patch size times scale must be whole; the
            shape is rounded up, so that no voxel is without output.

        Returns
        -------
        PatchGrid
        """
        z, y, x = (
            starts * factor.numerator // factor.denominator
            for starts, factor in zip(self.starts, scale, strict=True)
        )
        return PatchGrid(scaled_up(self.shape, scale), scaled_up(self.patch_size, scale), (z, y, x))


def stride_of(patch_size: int, overlap: Overlap) -> int:
    """Return the distance in voxels between neighbouring patches along one axis.

    Raises
    ------
    ConfigError
        If the overlap is no share below 1 and not fewer voxels than the patch has.
    """
    if 0 <= overlap < 1:
        return max(1, int(patch_size * (1 - overlap)))
    if not isinstance(overlap, int) or not 0 < overlap < patch_size:
        raise ConfigError(
            f"overlap {overlap!r} does not fit a patch of {patch_size} voxels: give a share in "
            f"[0, 1) or whole voxels, fewer than {patch_size}, or one per axis such as 0,16,16"
        )
    return patch_size - overlap


def _axis_starts(
    size: int, patch: int, stride: int, spacing: Spacing, step: int
) -> NDArray[np.intp]:
    """Return the starts along one axis, all of them multiples of `step`."""
    if size <= patch:
        return np.array([-((patch - size) // 2 // step * step)], dtype=np.intp)
    last = -((patch - size) // step) * step  # the first multiple from which a patch covers the end
    stride = max(step, stride // step * step)
    if spacing == "even":
        count = -(-last // stride) + 1
        return np.rint(np.linspace(0, last // step, count)).astype(np.intp) * step
    starts = np.arange(0, last, stride, dtype=np.intp)
    return np.append(starts, last)
