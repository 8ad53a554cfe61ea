"""What an OME-Zarr 0.5 output says about itself: the attributes of its groups."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ome_zarr_models.v05.axes import Axis
from ome_zarr_models.v05.image import ImageAttrs
from ome_zarr_models.v05.image_label import ImageLabelAttrs
from ome_zarr_models.v05.image_label_types import Label, Source
from ome_zarr_models.v05.labels import LabelsAttrs
from ome_zarr_models.v05.multiscales import Dataset, Multiscale

from napari_seamless.io.stores.pyramid import Level
from napari_seamless.io.whole import write_whole

FACTS = "napari-seamless"
"""The attribute that holds what is known about a prediction."""

GROUP = "zarr.json"

_VERSION: Literal["0.5"] = "0.5"

_PREFIXES = (
    *("yotta", "zetta", "exa", "peta", "tera", "giga", "mega", "kilo", "hecto", ""),
    *("deci", "centi", "milli", "micro", "nano", "pico", "femto", "atto", "zepto", "yocto"),
)

_UNITS = frozenset(f"{prefix}meter" for prefix in _PREFIXES) | {
    *("angstrom", "foot", "inch", "mile", "parsec", "yard"),
}
"""The units of space that OME-Zarr knows."""


def axis_names(has_time: bool) -> tuple[str, ...]:
    """Return the names of the axes of every array."""
    return ("t", "c", "z", "y", "x") if has_time else ("c", "z", "y", "x")


def image_attributes(name: str, levels: Sequence[Level], has_time: bool) -> dict[str, Any]:
    """Return the attributes of a group whose arrays "0", "1", ... are the levels of an image."""
    return _ome(ImageAttrs(version=_VERSION, multiscales=[_multiscale(name, levels, has_time)]))


def label_attributes(name: str, levels: Sequence[Level], has_time: bool) -> dict[str, Any]:
    """Return the same for labels of the image two groups above."""
    multiscale = _multiscale(name, levels, has_time)
    # no colours as an empty list: ome-zarr-models reads no labels without that field
    label = Label(version=_VERSION, source=Source(image="../../"), colors=())
    labels = {"version": _VERSION, "multiscales": [multiscale], "image-label": label}
    return _ome(ImageLabelAttrs.model_validate(labels))


def labels_attributes(names: list[str]) -> dict[str, Any]:
    """Return the attributes of the group that holds labels."""
    return _ome(LabelsAttrs(version=_VERSION, labels=names))


def read_group(folder: Path) -> dict[str, Any]:
    """Return the attributes of a group.

    Raises
    ------
    OSError
        If there is none, or what is there is no zarr 3 group.
    """
    try:
        group = json.loads((folder / GROUP).read_text(encoding="utf-8"))
        attributes: dict[str, Any] = group["attributes"]
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(f"{folder / GROUP} describes no zarr 3 group") from error
    return attributes


def write_group(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Make a group, or replace its attributes; at every moment the old or the new ones are there.

    Numbers that JSON has no word for (NaN, Infinity) are written as text.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    sayable = json.loads(json.dumps(group), parse_constant=str)
    content = json.dumps(sayable, indent=1, ensure_ascii=False).encode("utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / GROUP, lambda file: file.write(content))


def _ome(attributes: ImageAttrs | ImageLabelAttrs | LabelsAttrs) -> dict[str, Any]:
    return {"ome": attributes.model_dump(mode="json", by_alias=True, exclude_none=True)}


def _multiscale(name: str, levels: Sequence[Level], has_time: bool) -> Multiscale:
    outer = len(axis_names(has_time)) - 3
    datasets = tuple(
        Dataset.build(
            path=str(number),
            scale=[1.0] * outer + list(level.geometry.scale),
            translation=[0.0] * outer + list(level.geometry.translation),
        )
        for number, level in enumerate(levels)
    )
    return Multiscale(axes=_axes(levels[0], has_time), datasets=datasets, name=name)


def _axes(level: Level, has_time: bool) -> tuple[Axis, ...]:
    space = zip("zyx", level.geometry.units, strict=True)
    return (
        *((Axis(name="t", type="time"),) if has_time else ()),
        Axis(name="c", type="channel"),
        *(
            Axis(name=name, type="space", unit=unit if unit in _UNITS else None)
            for name, unit in space
        ),
    )
