"""The weights of a patch as an array, for whoever blends by hand."""

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Triple
from napari_seamless.engine.windows import SIGMA, build_window


def build_blending_matrix(
    patch_size: Triple, mode: str = "gaussian", **arguments: float | bool
) -> NDArray[np.float32]:
    """Return the blending weights of one patch.

    Parameters
    ----------
    patch_size : tuple of int
        Voxels of the patch, (Z, Y, X).
    mode : str
        Which window: gaussian, bump, constant, hann, monai_gaussian, nnunet_gaussian, wu_bump or
        distance_transform. Each has its formula, and where that is from, in its own docstring and
        on the page about windows.
    **arguments : float or bool
        Its arguments, such as `sigma`.

    Returns
    -------
    ndarray of float32, shape (Z, Y, X)
        Weights above zero. Those below the smallest normal float32, 1.2e-38, are raised to it;
        runs use `build_window`, which keeps them.

    Raises
    ------
    ConfigError
        If a name, a size or a value is not usable, or a weight would be zero or not finite.

    Examples
    --------
    >>> build_blending_matrix((1, 1, 4), "distance_transform")
    array([[[1., 2., 2., 1.]]], dtype=float32)
    """
    matrix = build_window(patch_size, mode, arguments).matrix
    return np.asarray(np.maximum(matrix, np.finfo(np.float32).tiny), dtype=np.float32)


def blend_gaussian(
    patch_size: Triple, sigma: float = SIGMA, mu: float = 0.0, pytc_v1: bool = False
) -> NDArray[np.float32]:
    """Return the weights of the `gaussian` window.

    ``w = 1e-4 + exp(-(r - mu)^2 / (2 sigma^2))`` with ``r = sqrt(z^2 + y^2 + x^2)`` and axes
    ``linspace(-1, 1, n)``: `blend_gaussian` of PyTorch Connectomics 1.x.

    Parameters
    ----------
    patch_size : tuple of int
        Voxels of the patch, (Z, Y, X).
    sigma : float
        Standard deviation, where the patch spans -1 to 1 along each axis.
    mu : float
        Distance from the centre at which the weight is largest, in the same unit.
    pytc_v1 : bool
        Give an axis of one voxel the coordinate -1, as PyTorch Connectomics 1.x does; otherwise it
        is 0, with weight 1.

    Returns
    -------
    ndarray of float32, shape (Z, Y, X)
        Weights above zero; without a unit.

    Raises
    ------
    ConfigError
        If a size or a value is not usable.
    """
    return build_blending_matrix(patch_size, "gaussian", sigma=sigma, mu=mu, pytc_v1=pytc_v1)


def blend_bump(patch_size: Triple, t: float = 1.5) -> NDArray[np.float32]:
    """Return the weights of the `bump` window.

    ``w = 1e-4 + exp(d - max d)`` with ``d = -sum (u (1 - u))^(-t)`` and axes
    ``linspace(0, 1, n + 2)[1:-1]``: `blend_bump` of PyTorch Connectomics 1.x, after Lee et al.
    2017, arXiv:1706.00120.

    Parameters
    ----------
    patch_size : tuple of int
        Voxels of the patch, (Z, Y, X).
    t : float
        Steepness; the larger, the faster the weight falls towards the faces.

    Returns
    -------
    ndarray of float32, shape (Z, Y, X)
        Weights above zero; without a unit.

    Raises
    ------
    ConfigError
        If a size or a value is not usable.
    """
    return build_blending_matrix(patch_size, "bump", t=t)
