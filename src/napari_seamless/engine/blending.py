"""Windows, and how much weight a voxel has received from the patches done so far.

A window is a product of three 1-D tapers plus a constant floor. The weight that a set of patches
leaves in a region is then a small tensor product of per-axis matrices (`weight_sum`), so no volume
of weights is ever stored: with every patch done it is an outer product of three 1-D sums, and with
some of them done it is computed for just the region that is looked at.
"""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.errors import ConfigError
from napari_seamless.engine.grid import Box, PatchGrid, Triple
from napari_seamless.engine.lazy import LazyArray

FLOOR = 1e-4
"""Smallest weight of PyTorch Connectomics' windows; it keeps corners from dividing zero by zero."""

SIGMA = 0.2
"""Standard deviation of the gaussian, where the patch spans -1 to 1."""

Tapers = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Window:
    """The blending weights of one patch: ``floor + tapers[0] x tapers[1] x tapers[2]``.

    Attributes
    ----------
    tapers : tuple of three float64 arrays
        One 1-D profile per axis (Z, Y, X), each with the length of the patch along that axis.
    floor : float
        Constant added to the product.
    """

    tapers: Tapers
    floor: float

    @cached_property
    def matrix(self) -> NDArray[np.float32]:
        """The window as float32 (Z, Y, X), computed in float64 and rounded once."""
        return (_outer(self.tapers) + self.floor).astype(np.float32)


def build_blending_matrix(patch_size: Triple, mode: str = "gaussian") -> NDArray[np.float32]:
    """Return the blending weights of one patch.

    Parameters
    ----------
    patch_size : tuple of int
        Voxels of the patch, (Z, Y, X).
    mode : {"gaussian", "bump", "constant"}
        Which window; see `blend_gaussian` and `blend_bump`.

    Returns
    -------
    ndarray of float32, shape (Z, Y, X)
        Strictly positive weights.

    Raises
    ------
    ConfigError
        If `mode` is not one of the windows, or a size is not a positive integer.
    """
    return build_window(patch_size, mode).matrix


def build_window(patch_size: Triple, mode: str) -> Window:
    """Return the window named `mode` for patches of `patch_size` voxels (Z, Y, X)."""
    if mode not in WINDOWS:
        raise ConfigError(f"blending {mode!r} is unknown; choose one of {', '.join(WINDOWS)}")
    return WINDOWS[mode](_sizes(patch_size))


def blend_gaussian(
    patch_size: Triple, sigma: float = SIGMA, mu: float = 0.0
) -> NDArray[np.float32]:
    """Return PyTorch Connectomics' gaussian window.

    Parameters
    ----------
    patch_size : tuple of int
        Voxels of the patch, (Z, Y, X).
    sigma : float
        Standard deviation, where the patch spans -1 to 1 along each axis.
    mu : float
        Distance from the centre at which the weight is largest, in the same unit.

    Returns
    -------
    ndarray of float32, shape (Z, Y, X)
        ``1e-4 + exp(-(r - mu)^2 / (2 sigma^2))`` with ``r = sqrt(z^2 + y^2 + x^2)``.

    Notes
    -----
    An axis of one voxel has coordinate 0 here, so that it carries weight 1. PyTorch Connectomics
    1.x gives it -1, which turns the gaussian of a 2-D patch into a plain mean.
    """
    z, y, x = np.ix_(*(_centred(size) for size in _sizes(patch_size)))
    r = np.sqrt(z**2 + y**2 + x**2)
    return (FLOOR + np.exp(-((r - mu) ** 2) / (2 * sigma**2))).astype(np.float32)


def blend_bump(patch_size: Triple, t: float = 1.5) -> NDArray[np.float32]:
    """Return PyTorch Connectomics' bump window.

    Parameters
    ----------
    patch_size : tuple of int
        Voxels of the patch, (Z, Y, X).
    t : float
        Steepness; the larger, the faster the weight falls towards the faces.

    Returns
    -------
    ndarray of float32, shape (Z, Y, X)
        ``1e-4 + exp(d - max d)`` with ``d = -sum (u (1 - u))^(-t)`` and u inside (0, 1) per axis.
    """
    return _bump(_sizes(patch_size), t).matrix


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
    return _sum_patches(grid, window.tapers, done, box) + window.floor * coverage(grid, done, box)


def coverage(grid: PatchGrid, done: NDArray[np.bool_], box: Box) -> NDArray[np.float64]:
    """Return how many of the patches done so far cover each voxel of a region.

    Parameters and shape as in `weight_sum`; the values are whole numbers.
    """
    z, y, x = (np.ones(size) for size in grid.patch_size)
    return _sum_patches(grid, (z, y, x), done, box)


def highest_weight(grid: PatchGrid, window: Window) -> float:
    """Return the largest weight sum of a finished volume, or slightly more."""
    return _highest(grid, window.tapers) + window.floor * highest_coverage(grid)


def highest_coverage(grid: PatchGrid) -> float:
    """Return the most patches that any voxel of a finished volume gets."""
    z, y, x = (np.ones(size) for size in grid.patch_size)
    return _highest(grid, (z, y, x))


def _highest(grid: PatchGrid, tapers: Tapers) -> float:
    """Return the maximum of the outer product of the tapers' sums along each axis."""
    highest = 1.0
    for starts, taper, length in zip(grid.starts, tapers, grid.shape, strict=True):
        total = np.zeros(length + 2 * len(taper))  # a patch may begin before the volume
        for start in starts + len(taper):
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
        return _outer((z.sum(axis=0), y.sum(axis=0), x.sum(axis=0)))
    planes = np.tensordot(z, subset.astype(np.float64), axes=(0, 0))  # (z, J, K)
    return y.T @ (planes @ x)  # (z, J, K) @ (K, x) -> (z, J, x) -> (z, y, x)


def _placed(
    taper: NDArray[np.float64], starts: NDArray[np.intp], low: int, high: int
) -> NDArray[np.float64]:
    """Return a row per start: the taper of that patch over the voxels [low, high), else 0."""
    offset = np.arange(low, high) - starts[:, np.newaxis]
    inside = (offset >= 0) & (offset < len(taper))
    return np.where(inside, taper[np.where(inside, offset, 0)], 0.0)


def _sizes(patch_size: Iterable[int]) -> Triple:
    try:
        z, y, x = (operator.index(size) for size in patch_size)
    except (TypeError, ValueError):
        z = y = x = 0
    if min(z, y, x) < 1:
        raise ConfigError(f"patch_size {patch_size!r} must be three positive integers (Z, Y, X)")
    return z, y, x


def _outer(vectors: Tapers) -> NDArray[np.float64]:
    z, y, x = np.ix_(*vectors)
    return np.asarray(z * y * x)


def _centred(size: int) -> NDArray[np.float64]:
    """Coordinates of an axis: -1 to 1, or 0 for a single voxel."""
    return np.linspace(-1, 1, size) if size > 1 else np.zeros(1)


def _gaussian(patch_size: Triple) -> Window:
    z, y, x = (np.exp(-(_centred(size) ** 2) / (2 * SIGMA**2)) for size in patch_size)
    return Window((z, y, x), FLOOR)


def _bump(patch_size: Triple, t: float = 1.5) -> Window:
    z, y, x = (_bump_taper(size, t) for size in patch_size)
    return Window((z, y, x), FLOOR)


def _bump_taper(size: int, t: float) -> NDArray[np.float64]:
    u = np.linspace(0, 1, size + 2)[1:-1]
    d = -((u * (1 - u)) ** -t)
    return np.asarray(np.exp(d - d.max()))


def _constant(patch_size: Triple) -> Window:
    z, y, x = (np.ones(size) for size in patch_size)
    return Window((z, y, x), 0.0)


WINDOWS: dict[str, Callable[[Triple], Window]] = {
    "gaussian": _gaussian,
    "bump": _bump,
    "constant": _constant,
}
"""The windows by name."""
