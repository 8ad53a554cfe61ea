"""What a path or URL names, opened by whoever reads its format."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

from napari_seamless.engine.errors import SourceError, one_line
from napari_seamless.io.sources.opened import Opened

_NUMPY = (".npy",)
_HDF5 = (".h5", ".hdf5", ".hdf")
_TIFF = (".tif", ".tiff")
_CONTAINERS = (".zarr", ".n5")
_HINTS = ("zarr", "zarr2", "zarr3", "n5", "precomputed")
ALLOWED = "FILE.h5::dataset, .hdf5, .hdf, .tif, .tiff or .npy"
ALLOWED_FOLDERS = "zarr, N5 or precomputed, or a folder of .tif or .png planes"


def open_path(text: str, name: str | None) -> Opened:
    """Open what a path or URL names.

    Parameters
    ----------
    text : str
        As in `open_source`.
    name : str, optional
        What messages call it; the text by default, with the dataset of an HDF5 file.

    Raises
    ------
    SourceError
        If there is nothing, or it cannot be read.
    """
    place, separator, inside = text.partition("::")
    hint, there = _hint(place)
    if "://" in there:
        return _open_container(there, inside, hint, name or text)
    path = Path(os.path.expanduser(there))  # pathlib's raises for unknown users
    if not os.path.exists(path):
        raise SourceError(f"no such file: {path}")
    if hint:
        return _open_container(there, inside, hint, name or text)
    suffix = path.suffix.lower()
    if path.is_dir():
        return _open_folder(path, inside, name or text)
    if suffix in _HDF5:
        from napari_seamless.io.sources.hdf5 import open_hdf5

        return open_hdf5(path, inside, name)
    if separator:
        raise SourceError(
            f"{text} names a dataset, which only an HDF5 file has; leave out '::{inside}'"
        )
    if suffix in _TIFF:
        from napari_seamless.io.sources.tiff import open_tiff

        return open_tiff(path, name or text)
    if suffix in _NUMPY:
        return _open_numpy(path, name or text)
    raise SourceError(f"{path} ends in {suffix or 'no suffix'!r}; it must be {ALLOWED}")


def place_on_disk(text: str) -> tuple[Path, str] | None:
    """Return the file or folder that a path or URL names, and what inside it ("::raw").

    None if it is not on this machine's disks.
    """
    place, _, inside = text.partition("::")
    _, there = _hint(place)
    if there.startswith("file://"):
        there = unquote(urlsplit(there).path)
    elif "://" in there:
        return None
    return Path(os.path.expanduser(there)), inside.strip("/")


def _hint(text: str) -> tuple[str, str]:
    """Return the format that a path starts with, "n5://", and the rest."""
    scheme, separator, rest = text.partition("://")
    return (scheme, rest) if separator and scheme in _HINTS else ("", text)


def _open_numpy(path: Path, name: str) -> Opened:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(f"{path} is damaged or no NumPy file: {one_line(error)}") from error
    planes = (*[1] * (array.ndim - 2), *array.shape[-2:])  # nothing is read before it is asked for
    return Opened(array, name, chunks=planes)


def _open_folder(path: Path, inside: str, name: str) -> Opened:
    from napari_seamless.io.sources.nodes import has_metadata
    from napari_seamless.io.sources.planes import open_planes, planes_in

    within = [each for each in path.parents if each.suffix.lower() in _CONTAINERS]
    if has_metadata(path) or inside or within or path.suffix.lower() in _CONTAINERS:
        return _open_container(str(path), inside, "", name)
    if planes_in(path):
        return open_planes(path, name)
    raise SourceError(f"{path} is a folder; give a file: {ALLOWED}; or {ALLOWED_FOLDERS}")


def _open_container(text: str, inside: str, hint: str, name: str) -> Opened:
    from napari_seamless.io.sources.images import find_image
    from napari_seamless.io.sources.nodes import ALL_KEYS, FORMATS
    from napari_seamless.io.sources.places import place_of

    keys = FORMATS[hint] if hint else ALL_KEYS
    root, inner = _split(text)
    path = "/".join(each for each in (inner, inside.strip("/")) if each)
    return find_image(place_of(root, keys), path, keys).open(name)


def _split(text: str) -> tuple[str, str]:
    """Return the container that a path is inside of, "X.zarr", and the rest of the path."""
    text = text if "://" in text else os.path.expanduser(text)
    parts = text.rstrip("/").split("/")
    for count, part in enumerate(parts, 1):
        if part.lower().endswith(_CONTAINERS):
            return "/".join(parts[:count]), "/".join(parts[count:])
    return text.rstrip("/") or "/", ""
