"""Sizes of voxels as files state them."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np

from napari_seamless.engine.geometry import Geometry

_UNITS: Mapping[str, tuple[str, ...]] = {
    "angstrom": ("a", "\u00e5", "angstroms"),
    "picometer": ("pm", "picometre"),
    "nanometer": ("nm", "nanometre"),
    "micrometer": ("um", "\u00b5m", "\u03bcm", "\\u00b5m", "micron", "microns", "micrometre"),
    "millimeter": ("mm", "millimetre"),
    "centimeter": ("cm", "centimetre"),
    "meter": ("m", "metre"),
    "inch": ("in", '"'),
}
_NAMES = {each: unit for unit, others in _UNITS.items() for each in (unit, f"{unit}s", *others)}


def unit_named(text: Any) -> str:
    """Return the name that OME-Zarr has for a unit of length; "" if it is none."""
    if isinstance(text, np.ndarray | list | tuple):
        text = text[-1] if len(text) else ""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return _NAMES.get(str(text).strip().lower(), "")


def geometry_of(scale: Any, translation: Any = None, unit: str = "") -> Geometry:
    """Return a geometry from what a file says along (Z, Y, X); the default if that makes no sense.

    Parameters
    ----------
    scale : sequence of three numbers
        Size of a voxel; it must be positive.
    translation : sequence of three numbers, optional
        Where the first voxel is; 0 by default.
    unit : str
        Of both, as OME-Zarr names it.
    """
    steps = _three(scale)
    if steps is None or min(steps) <= 0:
        return Geometry()
    return Geometry(steps, _three(translation) or (0.0, 0.0, 0.0), (unit, unit, unit))


def _three(values: Any) -> tuple[float, float, float] | None:
    try:
        z, y, x = (float(each) for each in values)
    except (TypeError, ValueError):
        return None
    return (z, y, x) if all(map(isfinite, (z, y, x))) else None
