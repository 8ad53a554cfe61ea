"""Which arrays and groups are in a zarr, N5 or precomputed container, by their metadata."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_seamless.io.sources.places import Place

FORMATS: Mapping[str, tuple[str, ...]] = {
    "zarr": ("zarr.json", ".zarray", ".zgroup", ".zattrs"),
    "zarr3": ("zarr.json",),
    "zarr2": (".zarray", ".zgroup", ".zattrs"),
    "n5": ("attributes.json",),
    "precomputed": ("info",),
}
"""The files that hold the metadata of each format."""

ALL_KEYS = (*FORMATS["zarr"], *FORMATS["n5"], *FORMATS["precomputed"])
_INFO_BYTES = 1 << 20
_ARRAY_KEYS = ("zarr.json", ".zarray", "attributes.json")


@dataclass(frozen=True)
class Node:
    """An array or a group.

    Attributes
    ----------
    driver : str
        What TensorStore calls its format.
    shape : tuple of int or None
        As stored; None for a group.
    attributes : mapping
        What is said about it; for precomputed the whole description.
    names : sequence or None
        Of its axes, as stored, where they are known.
    """

    driver: str
    shape: tuple[int, ...] | None
    attributes: Mapping[str, Any]
    names: tuple[Any, ...] | None = None


def node_at(place: Place, path: str, keys: tuple[str, ...] = ALL_KEYS) -> Node | None:
    """Return what is at a path inside a place; None if nothing is.

    Raises
    ------
    SourceError
        If it cannot be read, or its metadata is damaged.
    """
    found = place.documents(path, keys)
    if "zarr.json" in found:
        return _zarr3(found["zarr.json"])
    if {".zarray", ".zgroup", ".zattrs"} & set(found):
        return _zarr2(found.get(".zarray"), found.get(".zattrs", {}))
    if "attributes.json" in found:
        return _n5(found["attributes.json"])
    if "scales" in found.get("info", {}):
        return Node("neuroglancer_precomputed", None, found["info"])
    return None


def has_metadata(folder: Path) -> bool:
    """Return whether a folder on this machine says what is in it, as zarr, N5 or precomputed do."""
    if any((folder / key).is_file() for key in ALL_KEYS if key not in FORMATS["precomputed"]):
        return True
    info = folder / "info"  # anything may have that name
    return info.is_file() and b'"scales"' in info.read_bytes()[:_INFO_BYTES]


def _zarr3(document: Mapping[str, Any]) -> Node:
    attributes = document.get("attributes", {})
    if document.get("node_type") != "array":
        return Node("zarr3", None, attributes)
    return Node("zarr3", _shape(document, "shape"), attributes, _names(document, "dimension_names"))


def _zarr2(array: Mapping[str, Any] | None, attributes: Mapping[str, Any]) -> Node:
    if array is None:
        return Node("zarr", None, attributes)
    return Node("zarr", _shape(array, "shape"), attributes, _names(attributes, "_ARRAY_DIMENSIONS"))


def _n5(attributes: Mapping[str, Any]) -> Node:
    is_array = "dimensions" in attributes and "dataType" in attributes
    return Node("n5", _shape(attributes, "dimensions") if is_array else None, attributes)


def _shape(document: Mapping[str, Any], key: str) -> tuple[int, ...]:
    return tuple(int(size) for size in document.get(key, ()))


def _names(document: Mapping[str, Any], key: str) -> tuple[Any, ...] | None:
    names = document.get(key)
    return tuple(names) if isinstance(names, list) else None


def arrays_below(folder: Path) -> Iterator[str]:
    """Yield the paths of all arrays inside a folder; the chunks of none are looked at."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        inside = Path(parent).relative_to(folder).as_posix()
        if any(key in files for key in _ARRAY_KEYS):
            place = Place(parent, {"driver": "file"}, f"{parent}/")
            node = node_at(place, "", _ARRAY_KEYS)
            if node is not None and node.shape is not None:
                yield "" if inside == "." else inside
                folders.clear()
