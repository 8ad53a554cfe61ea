"""Axes and sizes of voxels in N5's attributes, which count axes from the fastest: x, y, z."""

from collections.abc import Mapping, Sequence
from typing import Any

from napari_seamless.engine.geometry import Geometry
from napari_seamless.io.sources.ome import letters_of
from napari_seamless.io.sources.opened import AXES
from napari_seamless.io.sources.units import geometry_of, unit_named


def n5_axes(attributes: Mapping[str, Any], rank: int) -> str:
    """Return the letters of a dataset's axes in N5's order; "" if it has too many.

    Tools that think in C order list the axes from the slowest: those that end in x.
    """
    names = _axes(attributes)
    letters = letters_of(names) if len(names) == rank else ""
    if letters:
        return letters[::-1] if _is_slowest_first(attributes) else letters
    return AXES[-rank:][::-1] if rank <= len(AXES) else ""


def n5_geometry(attributes: Mapping[str, Any], axes: str) -> Geometry:
    """Return the geometry that n5-viewer's and COSEM's attributes state.

    Parameters
    ----------
    attributes : mapping
        Of the dataset, over those of its group.
    axes : str
        What `n5_axes` returned.
    """
    transform = attributes.get("transform")
    if isinstance(transform, Mapping) and {"axes", "scale", "translate"} <= set(transform):
        order = letters_of(transform["axes"])
        unit = unit_named(transform.get("units", ""))
        steps, places = (_along(transform[key], order) for key in ("scale", "translate"))
        return geometry_of(steps, places, unit)
    order = axes[::-1] if _is_slowest_first(attributes) else axes
    stated, unit = _resolution(attributes)
    steps = _along(stated, order if len(stated) == len(axes) else "XYZ")
    factors = _along(attributes.get("downsamplingFactors", ()), "XYZ") or (1.0, 1.0, 1.0)
    if steps is None:
        return Geometry()
    pairs = list(zip(steps, factors, strict=True))
    shifts = [step * (by - 1) / 2 for step, by in pairs]  # to the centre of so many voxels
    return geometry_of([step * by for step, by in pairs], shifts, unit)


def _resolution(attributes: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    """Return the voxel size as stated, and its unit."""
    stated = attributes.get("resolution", attributes.get("pixelResolution", ()))
    unit = attributes.get("units", attributes.get("unit", ""))
    if isinstance(stated, Mapping):
        unit, stated = stated.get("unit", unit), stated.get("dimensions", ())
    return stated if isinstance(stated, list | tuple) else (), unit_named(unit)


def _along(values: Sequence[Any], order: str) -> tuple[float, float, float] | None:
    """Return those of the values that are along (Z, Y, X); 1 along an axis that is not there."""
    if not values or len(values) != len(order):
        return None
    by_axis = {"Z": 1.0, **{axis: float(each) for axis, each in zip(order, values, strict=True)}}
    return by_axis["Z"], by_axis["Y"], by_axis["X"]


def _axes(attributes: Mapping[str, Any]) -> Sequence[Any]:
    names = attributes.get("axes", ())
    return names if isinstance(names, list | tuple) else ()


def _is_slowest_first(attributes: Mapping[str, Any]) -> bool:
    names = _axes(attributes)
    return bool(names) and str(names[-1]).lower() == "x"
