"""Opens HDF5, zarr, N5 and precomputed in napari: lazy layers, where they are in the world."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from napari.utils.notifications import show_warning
from numpy.typing import NDArray

from napari_seamless.engine.errors import SourceError, one_line
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.gui.choice_dialog import Choosable, choose
from napari_seamless.gui.presets.source_names import SOURCES_KEY, source_names
from napari_seamless.gui.runs.live_layer import METADATA_KEY
from napari_seamless.io.sources.hdf5 import SUFFIXES as HDF5
from napari_seamless.io.sources.hdf5 import attributes_of, datasets_of, open_hdf5
from napari_seamless.io.sources.images import Image, find_image, images_in
from napari_seamless.io.sources.nodes import ALL_KEYS, has_metadata
from napari_seamless.io.sources.opened import Opened
from napari_seamless.io.sources.places import place_of

LayerData = tuple[Any, dict[str, Any], str]

NOTHING = [(None,)]
"""How napari wants to be told that a file was read, and holds nothing to show."""

MOST_LAYERS = 8
"""So many images of one file are opened at once when nobody can be asked which."""

_CONTAINERS = (".zarr", ".n5")
_AXES = {"T": "t", "C": "channel", "Z": "z", "Y": "y", "X": "x"}
_LIMITS = {"sigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0)}


@dataclass(frozen=True)
class Found:
    """One image of a file, not yet open.

    Attributes
    ----------
    name : str
        Of its layer.
    levels : sequence of callables
        Each opens one level, the finest first.
    sources : sequence of str
        What the command line calls each level.
    is_labels : bool
        Whether its values are names.
    facts : mapping
        What is stored about it if it is a prediction of ours; else empty.
    is_main : bool
        Whether it is what its file is about, not something beside it.
    """

    name: str
    levels: Sequence[Callable[[], Opened]]
    sources: Sequence[str]
    is_labels: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    is_main: bool = True


def get_reader(path: str | list[str]) -> Callable[[str], list[Any]] | None:
    """Return what reads a file or folder; None if it is none of ours.

    Parameters
    ----------
    path : str or list of str
        What was dropped or chosen; a list is a stack, which is left to others.
    """
    if not isinstance(path, str):
        return None
    suffix = Path(path).suffix.lower()
    if suffix in HDF5 and os.path.isfile(path):
        return read_hdf5
    return read_container if suffix in _CONTAINERS or has_metadata(Path(path)) else None


def read_hdf5(path: str) -> list[Any]:
    """Return layers over datasets of an HDF5 file; the user is asked which if there are several."""
    file = Path(path)
    usable = {
        name: kind
        for name, kind in datasets_of(file).items()
        if 2 <= len(kind[0]) <= 5 and min(kind[0]) > 0 and kind[1].kind in "buif"
    }
    if not usable:
        raise SourceError(f"{path} has no dataset of 2 to 5 axes that holds numbers")
    about = attributes_of(file, "main") if "main" in usable else {}
    facts = about if {"status", "config"} <= set(about) else {}
    names = sorted(usable, key=lambda name: (name != "main", bool(facts) and name == "labels"))
    shown = _chosen(path, [Choosable(name, *usable[name]) for name in names])
    return _layers(
        Found(
            f"{file.stem} {name}",
            [partial(open_hdf5, file, name, f"{file.stem} {name}")],
            source_names(path, name),
            is_labels=bool(facts) and name == "labels",
            facts=facts,
            is_main=name == "main" or not facts,
        )
        for name in shown
    )


def read_container(path: str) -> list[Any]:
    """Return layers over the images of a zarr, N5 or precomputed container.

    Labels of an OME-Zarr are opened with their image. If there is no image of the whole container,
    but several in it, the user is asked which.
    """
    place = place_of(path.rstrip("/"), ALL_KEYS)
    images = {"": find_image(place, "")} if place.folder is None else dict(images_in(place))
    if not images:
        raise SourceError(f"{path} holds no image: it has no zarr, N5 or precomputed metadata")
    shown = list(images) if "" in images else _chosen(path, [Choosable(each) for each in images])
    about = images[""].attributes if "" in images else None
    facts = dict((about or {}).get(METADATA_KEY, {}))
    return _layers(_found(path, inside, images[inside], facts) for inside in shown)


def _found(path: str, inside: str, image: Image, facts: Mapping[str, Any]) -> Found:
    name = f"{Path(path.rstrip('/')).stem} {inside}".strip()
    count = len(image.levels)
    levels = [partial(image.open, name, level) for level in range(count)]
    sources = source_names(path, inside, count)
    return Found(name, levels, sources, image.is_labels, facts, is_main=not inside or not facts)


def _chosen(path: str, offered: list[Choosable]) -> list[str]:
    """Return which of several images to open: those the user wants, or the first few."""
    names = [each.name for each in offered]
    if len(names) == 1:
        return names
    chosen = choose(Path(path).name, offered)
    if chosen is not None:
        return chosen
    if len(names) > MOST_LAYERS:
        show_warning(
            f"{path} has {len(names)} images; the first {MOST_LAYERS} are opened: {names[0]} to "
            f"{names[MOST_LAYERS - 1]}"
        )
    return names[:MOST_LAYERS]


def _layers(found: Iterator[Found]) -> list[Any]:
    return [_layer(each) for each in found] or NOTHING


def _layer(found: Found) -> LayerData:
    """Return data, arguments and type of one layer."""
    opened = [open_level() for open_level in found.levels]
    data = [_sliced(level) for level in opened]
    is_labels = found.is_labels and data[0].dtype.kind in "bui"
    about = {METADATA_KEY: dict(found.facts)} if found.facts else {}
    arguments: dict[str, Any] = {
        "name": found.name,
        "metadata": {**about, SOURCES_KEY: list(found.sources)},
        "multiscale": len(data) > 1,
        "visible": found.is_main or is_labels,
        **_geometry(opened[0]),
    }
    if not is_labels:
        arguments |= {"rgb": False, **_colours(data[-1], found)}
    return data if len(data) > 1 else data[0], arguments, "labels" if is_labels else "image"


def _sliced(opened: Opened) -> LazyArray:
    """Return an array-like as napari slices it; axes of one time point or channel are left out."""
    array, name = opened.array, opened.name
    kept = _shown(opened)

    def read(ranges: tuple[slice, ...]) -> NDArray[Any]:
        key = [slice(0, 1)] * len(array.shape)
        for axis, part in zip(kept, ranges, strict=True):
            key[axis] = part
        try:
            region = np.asarray(array[tuple(key)])
        except Exception as error:  # a damaged file leads each library into others
            raise SourceError(f"{name} cannot be read: {one_line(error)}") from error
        return region.reshape([each.stop - each.start for each in ranges])

    return LazyArray(tuple(int(array.shape[axis]) for axis in kept), array.dtype, read)


def _shown(opened: Opened) -> list[int]:
    """Return the axes that need a slider or are shown."""
    return [
        axis
        for axis, (letter, size) in enumerate(zip(opened.letters, opened.array.shape, strict=True))
        if size > 1 or letter in "ZYX"
    ]


def _geometry(opened: Opened) -> dict[str, Any]:
    letters = [opened.letters[axis] for axis in _shown(opened)]
    about, spatial = opened.geometry, "ZYX"

    def along(values: Sequence[Any], otherwise: Any) -> list[Any]:
        return [values[spatial.index(each)] if each in spatial else otherwise for each in letters]

    return {
        "scale": along(about.scale, 1.0),
        "translate": along(about.translation, 0.0),
        "units": [unit or "pixel" for unit in along(about.units, "")],
        "axis_labels": [_AXES[each] for each in letters],
    }


def _colours(coarsest: LazyArray, found: Found) -> dict[str, Any]:
    """Return colours and limits: a prediction's as it was shown, else those of a middle plane."""
    shown = {"colormap": "magma", "opacity": 0.8} if found.facts else {"colormap": "gray"}
    if coarsest.dtype.kind == "b" or coarsest.dtype == np.uint8:
        return {**shown, "contrast_limits": (0, 1 if coarsest.dtype.kind == "b" else 255)}
    config = found.facts.get("config", {})
    activation = str(config.get("activation")) if isinstance(config, Mapping) else ""
    is_as_activated = found.is_main and coarsest.dtype.kind == "f"
    limits = _LIMITS.get(activation) if is_as_activated else None
    return {**shown, "contrast_limits": limits or _range_of(coarsest)}


def _range_of(data: LazyArray) -> tuple[float, float]:
    plane = data[tuple(size // 2 for size in data.shape[:-2])]
    finite = plane[np.isfinite(plane)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return (low, high) if math.isfinite(high - low) and high > low else (low, low + 1)
