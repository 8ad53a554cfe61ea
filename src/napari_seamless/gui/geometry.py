"""How a layer lies in the world, carried over to layers made from it."""

from typing import Any

import numpy as np
from napari.layers import Layer
from numpy.typing import NDArray


def geometry_of(layer: Layer, ndim: int) -> dict[str, Any]:
    """Return a layer's geometry as arguments for a new layer of `ndim` axes.

    Parameters
    ----------
    layer : Layer
        The layer to follow.
    ndim : int
        Axes of the new layer. The last ones are matched; a leading axis that `layer` does not have
        is a channel axis of scale 1.

    Returns
    -------
    dict
        scale, translate, rotate, shear, affine, units and axis_labels.
    """
    return {
        "scale": _vector(layer.scale, ndim, 1.0),
        "translate": _vector(layer.translate, ndim, 0.0),
        "rotate": _matrix(layer.rotate, ndim),
        "shear": _matrix(_shear_matrix(layer), ndim),
        "affine": _matrix(layer.affine.affine_matrix, ndim + 1),
        "units": _labels(layer.units, ndim, "pixel"),
        "axis_labels": _labels(layer.axis_labels, ndim, "channel"),
    }


def _vector(values: NDArray[np.float64], ndim: int, fill: float) -> NDArray[np.float64]:
    return np.concatenate([np.full(max(0, ndim - len(values)), fill), values[-ndim:]])


def _matrix(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Keep the lower right corner of a square matrix, or grow it there from an identity."""
    common = min(size, len(values))
    matrix = np.eye(size)
    matrix[-common:, -common:] = values[-common:, -common:]
    return matrix


def _shear_matrix(layer: Layer) -> NDArray[np.float64]:
    """Napari keeps the upper triangle as a vector."""
    matrix = np.eye(layer.ndim)
    matrix[np.triu_indices(layer.ndim, 1)] = layer.shear
    return matrix


def _labels(values: tuple[Any, ...], ndim: int, fill: str) -> tuple[Any, ...]:
    return (*[fill] * max(0, ndim - len(values)), *values[-ndim:])
