"""What a path inside a container stands for: an image of one or more levels."""

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_seamless.engine.errors import SourceError
from napari_seamless.engine.geometry import Geometry
from napari_seamless.io.sources.n5 import n5_axes, n5_geometry
from napari_seamless.io.sources.nodes import ALL_KEYS, Node, arrays_below, node_at
from napari_seamless.io.sources.ome import letters_of, multiscale_of, ome_of
from napari_seamless.io.sources.opened import Opened
from napari_seamless.io.sources.places import Place
from napari_seamless.io.sources.tensorstores import StoredArray
from napari_seamless.io.sources.units import geometry_of, unit_named

_NAMES_SHOWN = 10
_MOST_LEVELS = 32
_N5_GROUP = Node("n5", None, {})


@dataclass(frozen=True)
class Level:
    """One array, not yet open.

    Attributes
    ----------
    spec : mapping
        What TensorStore opens.
    axes : str
        Letters of its axes as TensorStore has them; "" if nothing is known.
    geometry : Geometry
        Of its voxels.
    """

    spec: Mapping[str, Any]
    axes: str
    geometry: Geometry


@dataclass(frozen=True)
class Image:
    """An image in a container.

    Attributes
    ----------
    levels : tuple of Level
        From fine to coarse.
    chosen : int
        Which of them was named.
    is_labels : bool
        Whether its values are names.
    attributes : mapping
        What is said about it.
    """

    levels: tuple[Level, ...]
    chosen: int = 0
    is_labels: bool = False
    attributes: Mapping[str, Any] | None = None

    def open(self, name: str, level: int | None = None) -> Opened:
        """Open the chosen level, or another one.

        Raises
        ------
        SourceError
            If it cannot be read.
        """
        wanted = self.levels[self.chosen if level is None else level]
        array = StoredArray(wanted.spec, wanted.axes, name)
        return Opened(
            array, name, array.axes, wanted.geometry, array.chunks, array.keep, array.close
        )


def find_image(place: Place, inside: str, keys: tuple[str, ...] = ALL_KEYS) -> Image:
    """Return the image at a path inside a place.

    Parameters
    ----------
    place : Place
        The container.
    inside : str
        Path of an array, a multiscale image, or the number of one of its levels; "" for the
        container itself.
    keys : tuple of str
        Which metadata to look for.

    Raises
    ------
    SourceError
        If there is no image, or more than one.
    """
    node = node_at(place, inside, keys)
    parent, _, last = inside.rpartition("/")
    if node is None and inside:
        above = node_at(place, parent, keys)
        image = None if above is None else _pyramid(place, parent, above)
        if image is not None and last:
            return _numbered(image, last, place)
    if node is None:  # groups of N5 need no description
        return _n5_pyramid(place, inside, _N5_GROUP) or _only_array(place, inside, keys)
    if node.shape is not None:
        return _level_of_pyramid(place, parent, last, keys) or _single(place, inside, node)
    image = _pyramid(place, inside, node)
    if image is not None:
        return image
    if "bioformats2raw.layout" in ome_of(node.attributes):
        return find_image(place, f"{inside}/0".strip("/"), keys)
    return _only_array(place, inside, keys)


def images_in(place: Place) -> Iterator[tuple[str, Image]]:
    """Yield all images of a container on this machine, with their paths in it.

    A multiscale image is one, and so is each array that is no level of one.

    Raises
    ------
    SourceError
        If a description is damaged.
    """
    assert place.folder is not None
    levels: set[str] = set()
    for parent, folders, files in os.walk(place.folder):
        folders.sort()
        path = Path(parent).relative_to(place.folder).as_posix()
        inside = "" if path == "." else path
        has_metadata = any(key in files for key in ALL_KEYS)
        node = node_at(place, inside) if has_metadata else _N5_GROUP if "s0" in folders else None
        if node is None:
            continue
        image = _pyramid(place, inside, node)
        if node.shape is not None and place.at(inside)["path"] not in levels:
            image = _single(place, inside, node)
        if image is not None:
            yield inside, image
            levels.update(level.spec["kvstore"]["path"] for level in image.levels)
        if node.shape is not None or node.driver == "neuroglancer_precomputed":
            folders.clear()


def _single(place: Place, inside: str, node: Node) -> Image:
    assert node.shape is not None
    if node.driver == "n5":
        axes = n5_axes(node.attributes, len(node.shape))
        geometry = n5_geometry(node.attributes, axes)
    else:
        axes = letters_of(node.names) if node.names is not None else ""
        about = node.attributes
        unit = unit_named(about.get("units", ""))
        geometry = geometry_of(about.get("resolution"), about.get("offset"), unit)
    spec = {"driver": node.driver, "kvstore": place.at(inside)}
    return Image((Level(spec, axes, geometry),), attributes=node.attributes)


def _level_of_pyramid(place: Place, parent: str, last: str, keys: tuple[str, ...]) -> Image | None:
    """Return the image that an array is a level of."""
    try:
        above = node_at(place, parent, keys) if last else None
        image = None if above is None else _pyramid(place, parent, above)
    except SourceError:  # an array that was named is read, whatever is said around it
        return None
    if image is None:
        return None
    wanted = place.at(f"{parent}/{last}".strip("/"))
    for index, level in enumerate(image.levels):
        if level.spec["kvstore"] == wanted:
            return Image(image.levels, index, image.is_labels, image.attributes)
    return None


def _numbered(image: Image, text: str, place: Place) -> Image:
    if not text.isdigit() or int(text) >= len(image.levels):
        raise SourceError(
            f"{place.name} has nothing called {text!r}; its levels are 0 to {len(image.levels) - 1}"
        )
    return Image(image.levels, int(text), image.is_labels, image.attributes)


def _pyramid(place: Place, inside: str, node: Node) -> Image | None:
    """Return the multiscale image that a group is."""
    if node.shape is not None:
        return None
    if node.driver == "neuroglancer_precomputed":
        return _precomputed(place, inside, node)
    found = multiscale_of(node.attributes, place.name)
    if found is None:
        return _n5_pyramid(place, inside, node) if node.driver == "n5" else None
    axes = found.axes[::-1] if node.driver == "n5" else found.axes
    levels = [
        Level(
            {"driver": node.driver, "kvstore": place.at(f"{inside}/{path}".strip("/"))},
            axes,
            geometry,
        )
        for path, geometry in zip(found.paths, found.geometries, strict=True)
    ]
    is_labels = "image-label" in ome_of(node.attributes) or "labels" in inside.split("/")[:-1]
    return Image(tuple(levels), 0, is_labels, node.attributes)


def _n5_pyramid(place: Place, inside: str, node: Node) -> Image | None:
    """Return levels called s0, s1, ... as BigDataViewer and n5-viewer write them."""
    levels = []
    for number in itertools.islice(itertools.count(), _MOST_LEVELS):
        path = f"{inside}/s{number}".strip("/")
        found = node_at(place, path, ("attributes.json",))
        if found is None or found.shape is None:
            break
        about = {**node.attributes, **found.attributes}
        axes = n5_axes(about, len(found.shape))
        spec = {"driver": "n5", "kvstore": place.at(path)}
        levels.append(Level(spec, axes, n5_geometry(about, axes)))
    return Image(tuple(levels), attributes=node.attributes) if levels else None


def _precomputed(place: Place, inside: str, node: Node) -> Image:
    levels = []
    for index, scale in enumerate(node.attributes["scales"]):
        steps = scale["resolution"][::-1]
        corner = scale.get("voxel_offset", (0, 0, 0))[::-1]
        places = [step * at for step, at in zip(steps, corner, strict=True)]
        spec = {
            "driver": node.driver,
            "kvstore": place.at(inside),
            "scale_index": index,
        }
        levels.append(Level(spec, "XYZC", geometry_of(steps, places, "nanometer")))
    is_labels = node.attributes.get("type") == "segmentation"
    return Image(tuple(levels), 0, is_labels, node.attributes)


def _only_array(place: Place, inside: str, keys: tuple[str, ...]) -> Image:
    """Return the one array that is in a group without a description, or name those that are."""
    where = f"{place.name}::{inside}" if inside else place.name
    if place.folder is None:  # a server need not tell what it has
        raise SourceError(
            f"{where} holds no array, as far as can be seen from here (no zarr, N5 or precomputed "
            f"metadata of an image): check the address, and name an array: {place.name}::ARRAY"
        )
    within = [*_first_arrays(place.folder, inside)]
    if len(within) == 1:
        return find_image(place, within[0], keys)
    listed = within or [*_first_arrays(place.folder, "")]
    if not listed:
        raise SourceError(
            f"{where} holds no array: it has no zarr, N5 or precomputed metadata of an image"
        )
    if listed == [""]:
        raise SourceError(f"{where} is not there: {place.name} is an array; leave out '::{inside}'")
    names = ", ".join(listed[:_NAMES_SHOWN]) + (" and more" if len(listed) > _NAMES_SHOWN else "")
    problem = "needs '::array' to say which array to read" if within else "holds no array"
    raise SourceError(f"{where} {problem}; {place.name} has {names}")


def _first_arrays(root: Path, inside: str) -> Iterator[str]:
    """Yield the paths of some arrays in a folder of a container, as seen from the container."""
    for path in itertools.islice(arrays_below(root / inside), _NAMES_SHOWN + 1):
        yield f"{inside}/{path}".strip("/")
