"""A folder of planes: images in their names' natural order, one for each section."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_seamless.engine.errors import SourceError, one_line
from napari_seamless.io.sources.opened import Opened
from napari_seamless.io.sources.pages import Pages

SUFFIXES = (".tif", ".tiff", ".png")


def planes_in(folder: Path) -> list[Path]:
    """Return the images of a folder in natural order, "plane 2" before "plane 10"."""
    names = [
        each.name
        for each in folder.iterdir()
        if each.suffix.lower() in SUFFIXES and not each.name.startswith(".")
    ]
    return [folder / name for name in tifffile.natural_sorted(names)]


def open_planes(folder: Path, name: str) -> Opened:
    """Open a folder of planes as a volume (Z, Y, X).

    Raises
    ------
    SourceError
        If a file is no grey plane, or not of the same shape and dtype as the first.
    """
    files = planes_in(folder)
    shape, dtype = _kind(files[0])
    for each in files[1:]:
        found = _kind(each)
        if found != (shape, dtype):
            raise SourceError(
                f"{each} is {found[1]} {found[0]}, but {files[0].name} is {dtype} {shape}; "
                "all planes of a folder must be alike: move the odd one elsewhere"
            )
    pages = Pages((len(files), *shape), dtype, 2, lambda index: _read(files[index]))
    return Opened(pages.array, name, "ZYX", chunks=pages.chunks, keep=pages.keep)


def _kind(file: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of a plane without decoding it."""
    try:
        if file.suffix.lower() == ".png":
            import imageio.v3

            about = imageio.v3.improps(file)
            shape, dtype = tuple(about.shape), np.dtype(about.dtype)
        else:
            with tifffile.TiffFile(file) as tiff:
                series = tiff.series[0]
                shape, dtype = tuple(series.shape), np.dtype(series.dtype).newbyteorder("=")
    except Exception as error:  # each reader has its own
        raise SourceError(f"{file} is damaged or no image: {one_line(error)}") from error
    if len(shape) != 2:
        raise SourceError(
            f"{file} has shape {shape}; a folder's planes must be grey images (Y, X): "
            "convert it, or move it elsewhere"
        )
    return shape, dtype


def _read(file: Path) -> NDArray[Any]:
    if file.suffix.lower() == ".png":
        import imageio.v3

        return np.asarray(imageio.v3.imread(file))
    return np.asarray(tifffile.imread(file))
