"""TIFF: the first series of a file, mapped into memory or decoded page by page."""

import math
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tifffile
from numpy.typing import NDArray

from napari_seamless.engine.errors import SourceError, one_line
from napari_seamless.engine.geometry import Geometry
from napari_seamless.io.sources.opened import Opened
from napari_seamless.io.sources.pages import Pages
from napari_seamless.io.sources.units import geometry_of, unit_named

SUFFIXES = (".tif", ".tiff")


def open_tiff(path: Path, name: str) -> Opened:
    """Open the first series of a TIFF.

    Raises
    ------
    SourceError
        If the file cannot be read, or it is no volume or series of volumes.
    """
    try:
        with ExitStack() as opened:
            tiff = opened.enter_context(tifffile.TiffFile(path))
            if not tiff.series:
                raise SourceError(f"{path} holds no image")
            series = tiff.series[0]
            axes, geometry = _axes(series.axes, series.shape, path), _geometry(tiff)
            planes = (*[1] * (len(axes) - 2), *series.shape[-2:])
            if series.dataoffset is not None:
                array = tifffile.memmap(path, mode="r")
                return Opened(array, name, axes, geometry, planes)
            tiff.filehandle.set_lock(True)
            pages = _pages(series)
            if pages is None:  # planes that are stored in no order of pages
                return Opened(series.asarray(), name, axes, geometry)
            pages.array[(0,) * len(axes)]  # a compression that cannot be decoded shows now
            close = opened.pop_all().close
            return Opened(pages.array, name, axes, geometry, pages.chunks, pages.keep, close)
    except SourceError:
        raise
    except Exception as error:  # a damaged file leads tifffile into any of them
        if "imagecodecs" in str(error):
            raise SourceError(
                f"{path} is compressed in a way that needs a package: pip install imagecodecs"
            ) from error
        raise SourceError(f"{path} is damaged or no TIFF file: {one_line(error)}") from error


def _axes(axes: str, shape: tuple[int, ...], path: Path) -> str:
    """Return a TIFF's axes in the letters T, C, Z, Y, X; unknown ones are Z, or C and Z."""
    if "S" in axes:
        raise SourceError(
            f"{path} holds colour (axes {axes}, shape {shape}); convert it to grey, or save its "
            "channels with photometric='minisblack' and axes CZYX"
        )
    leading = axes[:-2]
    if set(leading) <= set("TCZ") and (len(leading) > 1 or leading == "C"):
        return f"{leading}YX"  # T alone is what scanners write for a stack
    if len(leading) == 2 and "T" not in leading:
        return "ZCYX" if leading[0] == "Z" or leading[1] == "C" else "CZYX"
    if len(leading) > 1:
        raise SourceError(
            f"{path} has axes {axes}, shape {shape}; it must be YX, ZYX, CZYX or TCZYX: "
            "save it with such axes"
        )
    return "Z"[: len(leading)] + "YX"


def _pages(series: Any) -> Pages | None:
    pages, shape = series.pages, tuple(series.shape)
    page_shape = tuple(series.keyframe.shape)
    counted = shape[: len(shape) - len(page_shape)]
    if counted + page_shape != shape or math.prod(counted) != len(pages):
        return None

    def decode(index: int) -> NDArray[Any]:
        page = pages[index]
        if page is None:
            raise OSError("it is missing")
        voxels: NDArray[Any] = page.asarray()
        return voxels

    return Pages(shape, series.dtype, len(page_shape), decode)


def _geometry(tiff: tifffile.TiffFile) -> Geometry:
    """Return the geometry that OME-XML, ImageJ's description or a prediction of ours states."""
    if tiff.ome_metadata:
        return _ome_geometry(tiff.ome_metadata)
    if tiff.imagej_metadata:
        return _imagej_geometry(tiff.imagej_metadata, tiff.pages[0])
    with suppress(KeyError, TypeError, ValueError, IndexError):  # it is not ours
        return Geometry.from_facts((tiff.shaped_metadata or ())[0]["geometry"])
    return Geometry()


def _ome_geometry(xml: str) -> Geometry:
    try:
        pixels = ElementTree.fromstring(xml).find(".//{*}Pixels")
    except ElementTree.ParseError:  # the voxels can be read all the same
        return Geometry()
    if pixels is None:
        return Geometry()
    sizes = [pixels.get(f"PhysicalSize{axis}") for axis in "ZYX"]
    if sizes[1] is None or sizes[2] is None:
        return Geometry()
    units = [unit_named(pixels.get(f"PhysicalSize{axis}Unit", "\u00b5m")) for axis in "ZYX"]
    found = geometry_of([1.0 if sizes[0] is None else sizes[0], *sizes[1:]])
    return Geometry(found.scale, found.translation, (units[0], units[1], units[2]))


def _imagej_geometry(about: dict[str, Any], page: Any) -> Geometry:
    """Return ImageJ's `spacing`, and the pixels per unit that the first page's tags count."""
    steps = [about.get("spacing", 1.0)]
    tags = page.tags
    for tag in ("YResolution", "XResolution"):
        pixels, units = tags[tag].value if tag in tags else (1, 1)
        steps.append(units / pixels if pixels else 1.0)
    return geometry_of(steps, unit=unit_named(about.get("unit", "")))
