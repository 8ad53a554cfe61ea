"""What a finished voxel becomes when it is kept: another type of number, or a label."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.lazy import LazyArray, Ranges


def saved(
    prediction: LazyArray | NDArray[np.float32],
    dtype: str,
    intensity_scale: float | None = None,
    fill: float = 0.0,
) -> LazyArray | NDArray[np.float32]:
    """Return a prediction as it is saved: scaled, and rounded and clipped to a type once.

    Parameters
    ----------
    prediction : array-like of float32, shape (C, Z, Y, X)
        Finished voxels, NaN where nothing is predicted.
    dtype : {"float32", "float16", "uint8", "uint16"}
        What is saved. Values beyond it become its smallest or largest finite value.
    intensity_scale : float, optional
        What values are multiplied by; 1 for floats by default, the type's largest value for
        integers, so that 0 to 1 fills the type.
    fill : float
        What NaN becomes in integers, before it is scaled.

    Returns
    -------
    LazyArray of `dtype`, shape (C, Z, Y, X)
        Computed where it is read; `prediction` itself where nothing is to be done. Rounded to
        nearest, half to even. NaN stays NaN in floats.
    """
    kind = np.dtype(dtype)
    is_float = kind.kind == "f"
    info: Any = np.finfo(kind) if is_float else np.iinfo(kind)
    intensity_scale = scale_of(dtype, intensity_scale)
    if kind == np.float32 and intensity_scale == 1:
        return prediction

    def converted(values: NDArray[Any]) -> NDArray[Any]:
        # A float32 times 65535 fits float64 without rounding, so that what follows rounds once.
        exact = values.astype(np.float64)
        if not is_float:
            exact[np.isnan(exact)] = fill
        with np.errstate(over="ignore"):  # clipped below
            exact *= intensity_scale
        if not is_float:
            np.rint(exact, out=exact)
        return np.clip(exact, float(info.min), float(info.max), out=exact).astype(kind)

    return _mapped(prediction, kind, converted)


def restored(
    values: NDArray[Any], dtype: str, intensity_scale: float | None = None
) -> NDArray[np.float32]:
    """Return voxels that `saved` made as float32, but for what rounding and clipping took away."""
    scale = scale_of(dtype, intensity_scale)
    exact = values.astype(np.float32) if scale == 1 else values.astype(np.float64) / scale
    return exact.astype(np.float32, copy=False)


def scale_of(dtype: str, intensity_scale: float | None) -> float:
    """Return what values are multiplied by when they are saved; see `saved`."""
    if intensity_scale is not None:
        return intensity_scale
    return 1.0 if dtype.startswith("float") else float(np.iinfo(dtype).max)


def labelled(
    prediction: LazyArray | NDArray[np.float32], how: str, threshold: float = 0.5
) -> LazyArray:
    """Return the labels that a prediction's values stand for.

    Parameters
    ----------
    prediction : array-like of float32, shape (C, Z, Y, X)
        Finished voxels, NaN where nothing is predicted. Not scaled by `intensity_scale`.
    how : {"argmax", "threshold"}
        `argmax`: which channel is the largest, the first of equals. `threshold`: for each channel,
        1 where it is above `threshold` and 0 elsewhere.
    threshold : float
        Compared in float32, as numpy compares an array with a number.

    Returns
    -------
    LazyArray of uint8, shape (1, Z, Y, X) or (C, Z, Y, X)
        Computed where it is read; uint16 where `argmax` has more than 256 channels. 0 where nothing
        is predicted.
    """
    if how == "argmax":
        return _argmax(prediction)

    def above(values: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(over="ignore"):  # a threshold beyond float32 is infinity, as it should be
            return values > threshold

    return _mapped(prediction, np.dtype(np.uint8), above)


def _argmax(prediction: LazyArray | NDArray[np.float32]) -> LazyArray:
    channels, *shape = prediction.shape
    dtype = np.min_scalar_type(channels - 1)

    def read(ranges: Ranges) -> NDArray[Any]:
        region = prediction[slice(0, channels), *ranges[1:]]
        labels = np.empty((1, *region.shape[1:]), dtype)
        for z in range(region.shape[1]):  # plane by plane, as `_mapped` does
            largest = region[:, z].argmax(axis=0)
            largest[np.isnan(region[:, z]).any(axis=0)] = 0  # argmax takes NaN to be the largest
            labels[0, z] = largest
        return labels[ranges[0]]

    return LazyArray((1, *shape), dtype, read)


def _mapped(
    prediction: LazyArray | NDArray[np.float32],
    dtype: np.dtype[Any],
    convert: Callable[[NDArray[Any]], NDArray[Any]],
) -> LazyArray:
    """Return `convert` of every value, plane by plane: its float64 must not fill the memory."""

    def read(ranges: Ranges) -> NDArray[Any]:
        region = prediction[ranges]
        result = np.empty(region.shape, dtype)
        for plane in np.ndindex(region.shape[:2]):
            result[plane] = convert(region[plane])
        return result

    return LazyArray(prediction.shape, dtype, read)
