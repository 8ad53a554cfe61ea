"""Volumes to read from: paths and arrays become what the engine calls a source."""

import functools
import itertools
import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_seamless.engine.errors import SourceError, one_line
from napari_seamless.engine.lazy import LazyArray, Ranges
from napari_seamless.engine.source import ArraySource, Source

CHUNK_CACHE_BYTES = 64 << 20
"""Decoded HDF5 chunks that are kept: neighbouring patches read them again."""

PAGE_CACHE_BYTES = 512 << 20
"""Decoded TIFF pages that are kept: a patch meets as many whole planes as it is deep."""

_HDF5 = (".h5", ".hdf5", ".hdf")
_TIFF = (".tif", ".tiff")
_NUMPY = (".npy",)
_NAMES_SHOWN = 10


def open_source(source: Any, name: str | None = None) -> Source:
    """Open one volume.

    Parameters
    ----------
    source : path, array-like or Source
        "FILE.h5::dataset" (".hdf5", ".hdf"; the dataset may be left out where there is only one),
        ".tif", ".tiff" or ".npy"; or anything with `shape` and `dtype` that slices like numpy. The
        axes are (Y, X), (Z, Y, X) or (C, Z, Y, X); a TIFF's own axis letters are heeded.
    name : str, optional
        What messages call it; the path by default.

    Returns
    -------
    Source
        Reads only what is asked for. The caller closes it. A Source is returned as it is.

    Raises
    ------
    SourceError
        If there is no such file or dataset, it cannot be read, or it is no volume of real numbers.
    """
    if isinstance(source, (str, os.PathLike)):
        return _open_path(os.fspath(source), name)
    if _is_source(source):
        opened: Source = source
        return opened
    return ArraySource(source, name or "the volume")


def open_sources(source: Any) -> list[Source]:
    """Open one volume, or every volume of a list or tuple; the index is its vol_id.

    Parameters
    ----------
    source : path, array-like, Source, or a list or tuple of them
        As in `open_source`.

    Returns
    -------
    list of Source
        The caller closes them.

    Raises
    ------
    SourceError
        If one cannot be opened (those opened before it are closed), or the list is empty.
    """
    if not isinstance(source, (list, tuple)):
        return [open_source(source)]
    if not source:
        raise SourceError("the list of volumes is empty; give at least one volume")
    with ExitStack() as opened:
        sources = []
        for vol_id, each in enumerate(source):
            is_path = isinstance(each, (str, os.PathLike))
            sources.append(open_source(each, None if is_path else f"volume {vol_id}"))
            if sources[-1] is not each:  # a source that was handed in stays the caller's
                opened.callback(sources[-1].close)
        opened.pop_all()
    return sources


class FileSource(ArraySource):
    """An array that lives in an open file; `close` closes the file.

    Parameters
    ----------
    array : array-like
        As in `ArraySource`.
    name : str
        What messages call it.
    close : callable
        Closes the file. It is called at once if the array is no volume.

    Raises
    ------
    SourceError
        If the array is no volume of real numbers.
    """

    def __init__(self, array: Any, name: str, close: Callable[[], None]) -> None:
        try:
            super().__init__(array, name)
        except SourceError:
            close()
            raise
        self._close = close

    def close(self) -> None:
        """Close the file."""
        super().close()
        self._close()


def _is_source(source: Any) -> bool:
    needs = ("name", "shape", "dtype", "read", "close")
    return all(hasattr(source, need) for need in needs)


def _open_path(text: str, name: str | None) -> Source:
    file, separator, dataset = text.partition("::")
    path = Path(os.path.expanduser(file))  # pathlib's raises for unknown users
    if not os.path.exists(path):
        raise SourceError(f"no such file: {path}")
    suffix = path.suffix.lower()
    allowed = "FILE.h5::dataset, .hdf5, .hdf, .tif, .tiff or .npy"
    if path.is_dir():
        raise SourceError(f"{path} is a folder; give a file: {allowed}")
    if suffix in _HDF5:
        return _open_hdf5(path, dataset, name)
    if separator:
        raise SourceError(
            f"{text} names a dataset, which only an HDF5 file has; leave out '::{dataset}'"
        )
    if suffix in _TIFF:
        return _open_tiff(path, name or text)
    if suffix in _NUMPY:
        return _open_numpy(path, name or text)
    raise SourceError(f"{path} ends in {suffix or 'no suffix'!r}; it must be {allowed}")


def _unreadable(path: Path, kind: str, error: BaseException) -> SourceError:
    return SourceError(f"{path} is damaged or no {kind} file: {one_line(error)}")


def _open_hdf5(path: Path, dataset: str, name: str | None) -> Source:
    try:
        # h5py wants the slots to be a prime, about a hundred times the chunks that fit.
        file = h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES, rdcc_nslots=100_003)
    except OSError as error:
        raise _unreadable(path, "HDF5", error) from error
    try:
        found = _dataset(file, dataset, path)
    except BaseException:
        file.close()
        raise
    return FileSource(found, name or f"{path}::{found.name.lstrip('/')}", file.close)


def _dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """Return the dataset called `name`, or `main` or the only one if the name is empty."""
    datasets: dict[str, h5py.Dataset] = {}
    file.visititems(
        lambda key, item: datasets.update({key: item}) if isinstance(item, h5py.Dataset) else None
    )
    default = next(iter(datasets)) if len(datasets) == 1 else "main" if "main" in datasets else ""
    wanted = name.strip("/") or default
    found = file.get(wanted) if wanted else None
    if not isinstance(found, h5py.Dataset):
        listed = [
            f"{key} {item.shape}" for key, item in itertools.islice(datasets.items(), _NAMES_SHOWN)
        ]
        more = f" and {len(datasets) - _NAMES_SHOWN} more" if len(datasets) > _NAMES_SHOWN else ""
        there = f"it has {', '.join(listed)}{more}" if datasets else "it has none"
        if not name:
            raise SourceError(f"{path} needs '::dataset' to say which dataset to read; {there}")
        raise SourceError(f"{path} has no dataset {name!r}; {there}")
    if found.shape is None:
        raise SourceError(f"{path}::{wanted} is empty")
    return found


def _open_numpy(path: Path, name: str) -> Source:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, "NumPy", error) from error
    return ArraySource(array, name)


def _open_tiff(path: Path, name: str) -> Source:
    try:
        with ExitStack() as opened:
            tiff = opened.enter_context(tifffile.TiffFile(path))
            if not tiff.series:
                raise SourceError(f"{path} holds no image")
            series = tiff.series[0]
            axes = _tiff_axes(series.axes, series.shape, path)
            if series.dataoffset is not None:
                array = tifffile.memmap(path, mode="r")
                return ArraySource(_as_czyx(array, axes), name)
            tiff.filehandle.set_lock(True)
            array = _pages(series)
            array[(0,) * array.ndim]  # a compression that cannot be decoded shows now
            return FileSource(_as_czyx(array, axes), name, opened.pop_all().close)
    except SourceError:
        raise
    except Exception as error:  # a damaged file leads tifffile into any of them
        if "imagecodecs" in str(error):
            raise SourceError(
                f"{path} is compressed in a way that needs a package: pip install imagecodecs"
            ) from error
        raise _unreadable(path, "TIFF", error) from error


def _tiff_axes(axes: str, shape: tuple[int, ...], path: Path) -> str:
    """Return a TIFF's axes in the letters C, Z, Y, X; unknown leading ones are Z, or C and Z."""
    if "S" in axes:
        raise SourceError(
            f"{path} holds colour (axes {axes}, shape {shape}); convert it to grey, or save its "
            "channels with photometric='minisblack' and axes CZYX"
        )
    leading = axes[:-2]
    if len(leading) > 2 or (len(leading) == 2 and "T" in leading):
        raise SourceError(
            f"{path} has axes {axes}, shape {shape}; it must be YX, ZYX or CZYX: "
            "save one time point of it"
        )
    if len(leading) == 2:
        return "ZCYX" if leading[0] == "Z" or leading[1] == "C" else "CZYX"
    return ("C" if leading == "C" else "Z"[: len(leading)]) + "YX"


def _as_czyx(array: Any, axes: str) -> LazyArray:
    """Return an array with `axes`, a part of C, Z, Y, X in any order, as (C, Z, Y, X)."""
    sizes = dict(zip(axes, array.shape, strict=True))
    order = [axes.index(axis) for axis in "CZYX" if axis in axes]

    def read(ranges: Ranges) -> NDArray[Any]:
        wanted = dict(zip("CZYX", ranges, strict=True))
        region: NDArray[Any] = array[tuple(wanted[axis] for axis in axes)]
        return region.transpose(order).reshape([each.stop - each.start for each in ranges])

    return LazyArray(tuple(sizes.get(axis, 1) for axis in "CZYX"), array.dtype, read)


def _pages(series: Any) -> Any:
    """Return a TIFF series as an array-like that decodes only the pages it is asked for."""
    pages, shape = series.pages, tuple(series.shape)
    page_shape = tuple(series.keyframe.shape)
    leading = shape[: len(shape) - len(page_shape)]
    if leading + page_shape != shape or math.prod(leading) != len(pages):
        return series.asarray()  # planes that are stored in no order of pages
    page_bytes: int = max(1, math.prod(page_shape) * series.dtype.itemsize)

    @functools.lru_cache(maxsize=max(1, PAGE_CACHE_BYTES // page_bytes))
    def decoded(index: int) -> NDArray[Any]:
        page = pages[index]
        if page is None:
            raise OSError(f"page {index} is missing")
        try:
            voxels: NDArray[Any] = page.asarray()
        except Exception as error:  # each decoder has its own; all of them are passed on
            raise OSError(f"page {index} cannot be decoded: {one_line(error)}") from error
        return voxels

    def read(ranges: Ranges) -> NDArray[Any]:
        outer, inner = ranges[: len(leading)], ranges[len(leading) :]
        region = np.empty([each.stop - each.start for each in ranges], dtype=series.dtype)
        for cell in itertools.product(*(range(each.start, each.stop) for each in outer)):
            index = int(np.ravel_multi_index(cell, leading)) if cell else 0
            at = tuple(i - each.start for i, each in zip(cell, outer, strict=True))
            region[at] = decoded(index)[inner]
        return region

    return LazyArray(shape, series.dtype, read)
