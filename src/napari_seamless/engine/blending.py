"""What a window is, and how much weight a voxel has received from the patches done so far.

A separable window is a product of three 1-D tapers plus a constant floor. The weight that a set of
patches leaves in a region is then a small tensor product of per-axis matrices, so no volume of
weights is ever stored: with every patch done it is an outer product of three 1-D sums, and with
some of them done it is computed for just the region that is looked at. The other windows have no
such product; theirs is summed patch by patch, in just that region too.

The windows themselves are in windows.py.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.lazy import LazyArray

LOWEST_IN_FLOAT32 = float(np.finfo(np.float32).tiny) ** 0.5
"""1.1e-19. A weight and a prediction from here up have a product that float32 holds in full."""


Tapers = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


class Window(ABC):
    """The blending weights of one patch: finite, and above zero everywhere."""

    @property
    @abstractmethod
    def patch_size(self) -> Triple:
        """Voxels of the patch, (Z, Y, X)."""

    @property
    @abstractmethod
    def lowest(self) -> float:
        """The smallest weight."""

    @abstractmethod
    def in_float64(self) -> NDArray[np.float64]:
        """Return the weights, shape (Z, Y, X)."""

    @cached_property
    def matrix(self) -> NDArray[np.floating]:
        """The weights that predictions are multiplied by, shape (Z, Y, X), rounded once.

        Float32, unless the smallest is below `LOWEST_IN_FLOAT32`; then float64. Float32 would
        round products with such a weight off (measured: by 3e-5 for 2e-38 times a prediction of
        0.001), and where a single patch covers a voxel that is the error of the result.
        """
        weights = self.in_float64()
        return weights if self.lowest < LOWEST_IN_FLOAT32 else weights.astype(np.float32)

    @abstractmethod
    def weight_sum(self, grid: PatchGrid, done: NDArray[np.bool_], box: Box) -> NDArray[np.float64]:
        """Return what the patches done so far have left in a region; see `weight_sum`."""

    @abstractmethod
    def highest(self, grid: PatchGrid) -> float:
        """Return the largest weight sum of a finished volume, or more."""


@dataclass(frozen=True, eq=False)
class SeparableWindow(Window):
    """A window that is ``floor + tapers[0] x tapers[1] x tapers[2]``.

    Attributes
    ----------
    tapers : tuple of three float64 arrays
        One 1-D profile per axis (Z, Y, X), each with the length of the patch along that axis.
    floor : float
        Constant added to the product.
    """

    tapers: Tapers
    floor: float = 0.0

    @property
    def patch_size(self) -> Triple:
        """Voxels of the patch, (Z, Y, X)."""
        z, y, x = map(len, self.tapers)
        return z, y, x

    @property
    def lowest(self) -> float:
        """The smallest weight."""
        return math.prod(float(taper.min()) for taper in self.tapers) + self.floor

    def in_float64(self) -> NDArray[np.float64]:
        """Return the weights, shape (Z, Y, X)."""
        return outer(self.tapers) + self.floor

    def weight_sum(self, grid: PatchGrid, done: NDArray[np.bool_], box: Box) -> NDArray[np.float64]:
        """Return what the patches done so far have left in a region; see `weight_sum`."""
        total = _sum_patches(grid, self.tapers, done, box)
        if self.floor:
            z, y, x = ones(grid.patch_size)
            total += _sum_patches(grid, (self.floor * z, y, x), done, box)
        return total

    def highest(self, grid: PatchGrid) -> float:
        """Return the largest weight sum of a finished volume, or slightly more."""
        return _highest(grid, self.tapers) + self.floor * highest_coverage(grid)


@dataclass(frozen=True, eq=False)
class DenseWindow(Window):
    """A window that is no product of tapers.

    Attributes
    ----------
    weights : ndarray of float64, shape (Z, Y, X)
        One weight per voxel of the patch.
    """

    weights: NDArray[np.float64]

    @property
    def patch_size(self) -> Triple:
        """Voxels of the patch, (Z, Y, X)."""
        z, y, x = self.weights.shape
        return z, y, x

    @property
    def lowest(self) -> float:
        """The smallest weight."""
        return float(self.weights.min())

    def in_float64(self) -> NDArray[np.float64]:
        """Return the weights, shape (Z, Y, X)."""
        return self.weights

    def weight_sum(self, grid: PatchGrid, done: NDArray[np.bool_], box: Box) -> NDArray[np.float64]:
        """Return what the patches done so far have left in a region; see `weight_sum`."""
        total = np.zeros(box.shape)
        near = grid.touching(box)
        first = [within.start for within in near]
        for cell in np.argwhere(done[near]) + first:
            patch = grid[int(np.ravel_multi_index(tuple(cell), grid.counts))]
            common = patch.intersection(box)
            total[common.within(box)] += self.weights[common.within(patch)]
        return total

    def highest(self, grid: PatchGrid) -> float:
        """Return no less than the largest weight sum of a finished volume."""
        return float(self.weights.max()) * highest_coverage(grid)


# --------------------------------------------------------------------------------- sums of weights


def weight_sum(
    grid: PatchGrid, window: Window, done: NDArray[np.bool_], box: Box
) -> NDArray[np.float64]:
    """Return the window weights that the patches done so far have left in a region.

    Parameters
    ----------
    grid : PatchGrid
        The patches of the volume.
    window : Window
        The window of every patch.
    done : bool array, shape ``grid.counts``
        Which patches are in.
    box : Box
        The region, inside the volume.

    Returns
    -------
    ndarray of float64, shape ``box.shape``
        0 where no patch has been.
    """
    return window.weight_sum(grid, done, box)


def coverage(grid: PatchGrid, done: NDArray[np.bool_], box: Box) -> NDArray[np.float64]:
    """Return how many of the patches done so far cover each voxel of a region.

    Parameters and shape as in `weight_sum`; the values are whole numbers.
    """
    return _sum_patches(grid, ones(grid.patch_size), done, box)


def highest_weight(grid: PatchGrid, window: Window) -> float:
    """Return the largest weight sum of a finished volume, or more."""
    return window.highest(grid)


def highest_coverage(grid: PatchGrid) -> float:
    """Return the most patches that any voxel of a finished volume gets."""
    return _highest(grid, ones(grid.patch_size))


def _highest(grid: PatchGrid, tapers: Tapers) -> float:
    """Return the maximum of the outer product of the tapers' sums along each axis."""
    highest = 1.0
    near = grid.touching(Box.of_shape(grid.shape))
    for starts, inside, taper, length in zip(grid.starts, near, tapers, grid.shape, strict=True):
        total = np.zeros(length + 2 * len(taper))  # a patch may begin before the volume
        for start in starts[inside] + len(taper):
            total[start : start + len(taper)] += taper
        highest *= float(total[len(taper) : len(taper) + length].max())
    return highest


Done = Callable[[], NDArray[np.bool_]]
"""Returns which patches are in by now: bool, shape ``grid.counts``, not changed afterwards."""


def weights_array(grid: PatchGrid, window: Window, done: Done) -> LazyArray:
    """Return the weight sum as a float32 array-like (Z, Y, X), computed where it is looked at."""
    return LazyArray(
        grid.shape,
        np.float32,
        lambda ranges: weight_sum(grid, window, done(), Box.of(ranges)).astype(np.float32),
    )


def coverage_array(grid: PatchGrid, done: Done) -> LazyArray:
    """Return the patches per voxel as a uint16 array-like (Z, Y, X), computed where looked at."""
    return LazyArray(
        grid.shape,
        np.uint16,
        lambda ranges: np.rint(coverage(grid, done(), Box.of(ranges))).astype(np.uint16),
    )


def _sum_patches(
    grid: PatchGrid, tapers: Tapers, done: NDArray[np.bool_], box: Box
) -> NDArray[np.float64]:
    """Sum a product of tapers over the patches done: ``sum_ijk done_ijk Z_iz Y_jy X_kx``."""
    near = grid.touching(box)
    subset = done[near]
    z, y, x = (
        _placed(taper, starts[touching], low, high)
        for taper, starts, touching, low, high in zip(
            tapers, grid.starts, near, box.start, box.stop, strict=True
        )
    )
    if subset.all():  # every patch is in: the sum factorises
        return outer((z.sum(axis=0), y.sum(axis=0), x.sum(axis=0)))
    planes = np.tensordot(z, subset.astype(np.float64), axes=(0, 0))  # (z, J, K)
    return y.T @ (planes @ x)  # (z, J, K) @ (K, x) -> (z, J, x) -> (z, y, x)


def _placed(
    taper: NDArray[np.float64], starts: NDArray[np.intp], low: int, high: int
) -> NDArray[np.float64]:
    """Return a row per start: the taper of that patch over the voxels [low, high), else 0."""
    offset = np.arange(low, high) - starts[:, np.newaxis]
    inside = (offset >= 0) & (offset < len(taper))
    return np.where(inside, taper[np.where(inside, offset, 0)], 0.0)


def ones(patch_size: Triple) -> Tapers:
    """Return three tapers of 1."""
    z, y, x = (np.ones(size) for size in patch_size)
    return z, y, x


def outer(vectors: Tapers) -> NDArray[np.float64]:
    """Return the outer product of three vectors, shape (Z, Y, X)."""
    z, y, x = np.ix_(*vectors)
    return np.asarray(z * y * x)
