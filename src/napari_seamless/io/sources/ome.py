"""The axes and levels that a multiscale image states, as OME-Zarr (0.1 to 0.5) and COSEM do.

Reading is lenient on purpose: files of many years and tools are met.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from napari_seamless.engine.errors import SourceError, one_line
from napari_seamless.engine.geometry import Geometry
from napari_seamless.io.sources.opened import AXES
from napari_seamless.io.sources.units import unit_named

_BY_TYPE = {"time": "T", "channel": "C"}


@dataclass(frozen=True)
class Multiscale:
    """One image at several resolutions.

    Attributes
    ----------
    axes : str
        Letters of its arrays' axes, in their order.
    paths : tuple of str
        Where its levels are, the finest first, inside the group.
    geometries : tuple of Geometry
        Of each level.
    """

    axes: str
    paths: tuple[str, ...]
    geometries: tuple[Geometry, ...]


def ome_of(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what OME-Zarr states in a group's attributes; since 0.5 under a name of its own."""
    about = attributes.get("ome", attributes)
    return about if isinstance(about, Mapping) else {}


def multiscale_of(attributes: Mapping[str, Any], where: str) -> Multiscale | None:
    """Return the first multiscale image that a group's attributes describe, if any.

    Raises
    ------
    SourceError
        If it is described in a way that cannot be understood.
    """
    images = ome_of(attributes).get("multiscales")
    if not images:
        return None
    try:
        return _multiscale(images[0])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise SourceError(
            f"{where} describes its levels in a way that cannot be understood "
            f"({type(error).__name__}: {one_line(error)}); name one array: {where}::ARRAY"
        ) from error


def letters_of(names: Sequence[Any]) -> str:
    """Return the letters of axes by their names; "" if one is unknown or there twice."""
    letters = "".join(str(name or "?")[:1].upper() if _is_axis(name) else "?" for name in names)
    usable = set(letters) <= set(AXES) and len(set(letters)) == len(letters)
    return letters if usable and {"Y", "X"} <= set(letters) else ""


def _is_axis(name: Any) -> bool:
    return str(name).lower() in ("t", "c", "z", "y", "x", "time", "channel")


def _multiscale(image: Mapping[str, Any]) -> Multiscale:
    datasets = image["datasets"]
    stated = image.get("axes") or _cosem_axes(datasets[0]) or list("tczyx")
    described = [each if isinstance(each, Mapping) else {"name": each} for each in stated]
    axes = letters_of([_BY_TYPE.get(each.get("type", ""), each["name"]) for each in described])
    if not axes:
        raise ValueError(f"axes {[each['name'] for each in described]} are not of t, c, z, y, x")
    units = [unit_named(each.get("unit", "")) for each in described]
    outer = image.get("coordinateTransformations", [])
    geometries = [_geometry(axes, units, _transforms(each), outer) for each in datasets]
    return Multiscale(
        axes, tuple(str(each["path"]).strip("/") for each in datasets), tuple(geometries)
    )


def _cosem_axes(dataset: Mapping[str, Any]) -> list[dict[str, str]]:
    transform = dataset.get("transform", {})
    units = transform.get("units", [""] * len(transform.get("axes", [])))
    return [
        {"name": axis, "unit": unit}
        for axis, unit in zip(transform.get("axes", []), units, strict=True)
    ]


def _transforms(dataset: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    cosem = dataset.get("transform")
    if cosem:
        return [
            {"type": "scale", "scale": cosem["scale"]},
            {"type": "translation", "translation": cosem["translate"]},
        ]
    transforms: Sequence[Mapping[str, Any]] = dataset.get("coordinateTransformations", [])
    return transforms


def _geometry(
    axes: str,
    units: Sequence[str],
    inner: Sequence[Mapping[str, Any]],
    outer: Sequence[Mapping[str, Any]],
) -> Geometry:
    """Return where voxels are after the level's own transformations and those of all levels."""
    scale, translation = [1.0] * len(axes), [0.0] * len(axes)
    for each in [*inner, *outer]:
        if "scale" in each:
            by = [float(value) for value in each["scale"]]
            scale = [a * b for a, b in zip(scale, by, strict=True)]
            translation = [a * b for a, b in zip(translation, by, strict=True)]
        if "translation" in each:
            moved = [float(value) for value in each["translation"]]
            translation = [a + b for a, b in zip(translation, moved, strict=True)]
    at = [axes.find(axis) for axis in "ZYX"]
    z, y, x = (scale[i] if i >= 0 else 1.0 for i in at)
    places = [translation[i] if i >= 0 else 0.0 for i in at]
    names = [units[i] if i >= 0 else units[at[1]] for i in at]
    return Geometry((z, y, x), (places[0], places[1], places[2]), (names[0], names[1], names[2]))
