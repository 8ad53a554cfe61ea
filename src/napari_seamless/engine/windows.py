"""The windows: how each voxel of a patch is weighted.

A new window is one function from a patch size to a `Window`, named in `WINDOWS`; its keyword
arguments are its settings. docs/explanation/windows.md shows them all.
"""

import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.blending import DenseWindow, SeparableWindow, Window, ones, outer
from napari_seamless.engine.box import Triple
from napari_seamless.engine.errors import ConfigError

FLOOR = 1e-4
"""Smallest weight of PyTorch Connectomics' windows; it keeps corners from dividing zero by zero."""

SIGMA = 0.2
"""Standard deviation of the gaussian, where the patch spans -1 to 1."""

MONAI_FLOOR = 1e-3
"""MONAI raises smaller weights of its gaussian to this."""

LOWEST = float(np.finfo(np.float64).tiny / np.finfo(np.float32).tiny)
"""1.9e-270. A weight from here up times any normal float32 is a product float64 holds in full."""

POSITIVE = frozenset({"sigma", "sigma_scale", "t"})
"""The arguments that must be above zero."""

NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})


def gaussian(
    patch_size: Triple, sigma: float = SIGMA, mu: float = 0.0, pytc_v1: bool = False
) -> Window:
    """Return PyTorch Connectomics' gaussian window.

    ``1e-4 + exp(-(r - mu)^2 / (2 sigma^2))`` with ``r = sqrt(z^2 + y^2 + x^2)`` and axes
    ``linspace(-1, 1, n)``: `blend_gaussian` of PyTorch Connectomics 1.x. Separable if `mu` is 0.

    Parameters
    ----------
    patch_size : tuple of int
        Voxels of the patch, (Z, Y, X).
    sigma : float
        Standard deviation, where the patch spans -1 to 1 along each axis.
    mu : float
        Distance from the centre at which the weight is largest, in the same unit.
    pytc_v1 : bool
        Give an axis of one voxel the coordinate -1, as PyTorch Connectomics 1.x does, which turns
        the window of a 2-D patch into nearly a plain mean. Otherwise it is 0, with weight 1.
    """
    z, y, x = axes = tuple(
        np.zeros(1) if size == 1 and not pytc_v1 else np.linspace(-1, 1, size)
        for size in patch_size
    )
    if mu == 0:
        z, y, x = (_bell(axis, sigma) for axis in axes)
        return SeparableWindow((z, y, x), FLOOR)
    z, y, x = np.ix_(*axes)
    return DenseWindow(FLOOR + _bell(np.sqrt(z**2 + y**2 + x**2) - mu, sigma))


def bump(patch_size: Triple, t: float = 1.5) -> Window:
    """Return PyTorch Connectomics' bump window.

    ``1e-4 + exp(d - max d)`` with ``d = -sum (u (1 - u))^(-t)`` and axes
    ``linspace(0, 1, n + 2)[1:-1]``: `blend_bump` of PyTorch Connectomics 1.x, after Lee et al.
    2017, arXiv:1706.00120. Separable.

    Parameters
    ----------
    patch_size : tuple of int
        Voxels of the patch, (Z, Y, X).
    t : float
        Steepness; the larger, the faster the weight falls towards the faces.
    """
    z, y, x = (_peak_of_one(-(_parabola(size) ** -t)) for size in patch_size)
    return SeparableWindow((z, y, x), FLOOR)


def constant(patch_size: Triple) -> Window:
    """Return the window that weights every voxel 1: a plain mean. Separable."""
    return SeparableWindow(ones(patch_size))


def hann(patch_size: Triple) -> Window:
    """Return the product of Hann windows, their zeros left out.

    ``sin^2(pi i / (n + 1))`` for i = 1 ... n along each axis: the symmetric Hann window of
    ``n + 2`` points without its two zeros, as in TorchIO's `GridAggregator`, after Pielawski and
    Wählby 2020, doi:10.1371/journal.pone.0229839. Separable.

    Notes
    -----
    Seen as a wave of period ``n + 1`` it adds up to a constant at every stride that divides
    ``n + 1`` into k >= 2 parts: to k / 2, so to 1 for patches of 63 at a stride of 32. (The
    periodic Hann window of ``n + 2`` points would lose a voxel on one side only.) At other strides
    the normaliser makes up for the rest.
    """
    z, y, x = (np.sin(np.pi * np.arange(1, size + 1) / (size + 1)) ** 2 for size in patch_size)
    return SeparableWindow((z, y, x))


def monai_gaussian(patch_size: Triple, sigma_scale: float = 0.125) -> Window:
    """Return the importance map of MONAI's sliding window inference in its mode "gaussian".

    ``max(1e-3, exp(-z^2 / (2 s_z^2)) x ...)`` with voxels counted from the centre of the patch and
    ``s = sigma_scale x n`` along each axis: MONAI 1.6, `compute_importance_map`. Cut off at 1e-3,
    so not separable.

    Parameters
    ----------
    patch_size : tuple of int
        Voxels of the patch, (Z, Y, X).
    sigma_scale : float
        Standard deviation as a share of the patch, along each axis.
    """
    z, y, x = (_bell((np.arange(size) - (size - 1) / 2) / size, sigma_scale) for size in patch_size)
    return DenseWindow(np.maximum(outer((z, y, x)), MONAI_FLOOR))


def nnunet_gaussian(patch_size: Triple, sigma_scale: float = 0.125) -> Window:
    """Return the gaussian of nnU-Net's sliding window inference.

    ``exp(-z^2 / (2 s_z^2)) x ...`` with voxels counted from voxel ``n // 2`` and
    ``s = sigma_scale x n`` along each axis: nnU-Net 2.8, `compute_gaussian`, scaled to a largest
    weight of 1. Of an even number of voxels, that is half a voxel past the centre. Separable.

    Parameters
    ----------
    patch_size : tuple of int
        Voxels of the patch, (Z, Y, X).
    sigma_scale : float
        Standard deviation as a share of the patch, along each axis; nnU-Net has 0.125 throughout.

    Notes
    -----
    nnU-Net filters a single voxel, up to ``int(4 s + 0.5)`` voxels from it. At its own 0.125, and
    above, that reaches every voxel of a patch, however long: nothing is cut off, and in float64 the
    two agree to 4e-15. Two things are left out. Below 0.125 nnU-Net gives all that it does not
    reach the smallest weight it has; here the bell goes on, and weights differ by up to exp(-8) =
    3e-4. And nnU-Net rounds weights and sums to float16, by 5e-4 of a weight (by more below 6e-6,
    and none is below 6e-9); here a corner keeps its exp(-24) = 4e-11.
    """
    z, y, x = (_bell((np.arange(size) - size // 2) / size, sigma_scale) for size in patch_size)
    return SeparableWindow((z, y, x))


def wu_bump(patch_size: Triple) -> Window:
    """Return Wu's bump window.

    The product of ``exp(-1 / (1 - u^2))`` along the axes ``linspace(-1, 1, n + 2)[1:-1]``, scaled
    to a largest weight of 1: `bump_map_wu` of DeepEM, "bump" of PyTorch Connectomics 2. Separable.

    Notes
    -----
    There is no floor: towards a corner it falls to about ``exp(3 - sum (n + 2) / 4)``, 1e-28 for
    (8, 128, 128). PyTorch Connectomics 2 raises weights below 1e-5 to that.
    """
    z, y, x = (_peak_of_one(-1 / (4 * _parabola(size))) for size in patch_size)
    return SeparableWindow((z, y, x))


def distance_transform(patch_size: Triple) -> Window:
    """Return the distance in voxels to the nearest face, plus 1.

    1 on a face, 2 one voxel further in, and so on: `distance_transform_cdt` of a box of ones in
    zeros, as in BANIS and PyTorch Connectomics 2 ("distance_transform"). Not separable.

    Notes
    -----
    An axis of one voxel lies on two faces and would flatten the window of a 2-D patch to 1, as it
    does there. Here it is left out, so that it carries weight 1 as in every window.
    """
    z, y, x = np.ix_(*(_to_face(size) for size in patch_size))
    nearest = np.minimum(np.minimum(z, y), x)
    return DenseWindow(np.where(np.isinf(nearest), 1.0, nearest))


WINDOWS: Mapping[str, Callable[..., Window]] = MappingProxyType(
    {
        window.__name__: window
        for window in (
            gaussian,
            bump,
            constant,
            hann,
            monai_gaussian,
            nnunet_gaussian,
            wu_bump,
            distance_transform,
        )
    }
)
"""The windows by name; their arguments are checked by `build_window`."""


def build_window(
    patch_size: Triple, mode: str, arguments: Mapping[str, Any] = NO_ARGUMENTS
) -> Window:
    """Return a window.

    Parameters
    ----------
    patch_size : tuple of int
        Voxels of the patch, (Z, Y, X).
    mode : str
        Its name in `WINDOWS`.
    arguments : mapping of str to number or bool
        Its keyword arguments; those left out keep their defaults.

    Raises
    ------
    ConfigError
        If a name, a size or a value is not usable, or a weight would be zero or not finite.
    """
    if mode not in WINDOWS:
        raise ConfigError(f"blending {mode!r} is unknown; choose one of {', '.join(WINDOWS)}")
    sizes, defaults = _sizes(patch_size), defaults_of(mode)
    checked = {}
    for name, value in arguments.items():
        if name not in defaults:
            known = f"it takes {', '.join(defaults)}" if defaults else "it takes none"
            raise ConfigError(f"argument {name!r} of blending {mode!r} is unknown; {known}")
        checked[name] = _argument(mode, name, value, defaults[name])
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is refused below
        window = WINDOWS[mode](sizes, **checked)
    if not window.lowest >= LOWEST:
        raise ConfigError(
            f"blending {mode!r} on patch_size {sizes} has a smallest weight of "
            f"{window.lowest:.2g}; at least {LOWEST:.2g} is needed: choose a smaller patch, "
            "other arguments or another window"
        )
    return window


def defaults_of(mode: str) -> dict[str, float | bool]:
    """Return the arguments of the window named `mode`, each with its default."""
    _, *parameters = inspect.signature(WINDOWS[mode]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def _sizes(patch_size: Iterable[int]) -> Triple:
    try:
        z, y, x = (operator.index(size) for size in patch_size)
    except (TypeError, ValueError):
        z = y = x = 0
    if min(z, y, x) < 1:
        raise ConfigError(f"patch_size {patch_size!r} must be three positive integers (Z, Y, X)")
    return z, y, x


def _argument(mode: str, name: str, value: Any, default: float | bool) -> float | bool:
    """Return a window's argument if it is of the kind of its default and in range."""
    number = _as_number(value)
    if isinstance(default, bool):
        allowed, fits = "True or False", isinstance(value, bool)
    elif name in POSITIVE:
        allowed, fits = "a finite number above 0", 0 < number < math.inf
    else:
        allowed, fits = "a finite number", math.isfinite(number)
    if not fits:
        raise ConfigError(
            f"{name} {value!r} of blending {mode!r} is not usable: give {allowed}, "
            f"for example {default}"
        )
    return value if isinstance(default, bool) else number


def _as_number(value: Any) -> float:
    """Return `value` as a float; NaN if it is no number, as True and False are none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _to_face(size: int) -> NDArray[np.float64]:
    """Return the distance to the nearer end of an axis, 1 at the end; infinite for one voxel."""
    distance = np.arange(1.0, size + 1)
    return np.minimum(distance, distance[::-1]) if size > 1 else np.array([np.inf])


def _bell(distance: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Return ``exp(-distance^2 / (2 sigma^2))``; divided first, as a tiny sigma^2 would be 0."""
    return np.asarray(np.exp(-((distance / sigma) ** 2) / 2))


def _parabola(size: int) -> NDArray[np.float64]:
    """Return ``u (1 - u)`` for u in ``linspace(0, 1, size + 2)[1:-1]``; ``(1 - u^2) / 4`` in -1, 1.

    From whole numbers, so that it is symmetric and loses no digit near the ends.
    """
    voxel = np.arange(1.0, size + 1)
    return voxel * voxel[::-1] / (size + 1) ** 2


def _peak_of_one(exponent: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``exp(exponent)`` scaled to a largest value of 1."""
    return np.asarray(np.exp(exponent - exponent.max()))
