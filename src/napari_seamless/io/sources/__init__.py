"""Volumes to read from: paths, URLs and arrays become what the engine calls a source."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from napari_seamless.engine.errors import SourceError
from napari_seamless.engine.source import ArraySource, Source
from napari_seamless.io.sources.opened import AXES, FileSource, Opened, volumes
from napari_seamless.io.sources.paths import open_path

__all__ = ["FileSource", "level_of", "open_series", "open_source", "open_sources"]


def open_source(source: Any, name: str | None = None) -> Source:
    """Open one volume.

    Parameters
    ----------
    source : path, URL, array-like or Source
        A file or folder on this machine:

        - "FILE.h5::dataset" (".hdf5", ".hdf"; the dataset may be left out where there is only one,
          or one called main);
        - ".tif", ".tiff" (the first series), ".npy";
        - "X.zarr" or any folder with zarr metadata, version 2 or 3; "X.zarr::path/inside" names an
          array or an OME-Zarr image in it. An OME-Zarr image is read at its finest level;
          "X.zarr::1" is the next one;
        - "X.n5::dataset", a folder of N5 likewise;
        - a folder with neuroglancer's precomputed volumes; "::1" is the second resolution;
        - a folder of .tif or .png planes of the same shape, in natural order of their names.

        The folders may also be at "s3://BUCKET/PATH", "gs://BUCKET/PATH" or "http(s)://HOST/PATH".
        "zarr://", "zarr2://", "zarr3://", "n5://" or "precomputed://" before a path or URL says
        what it is, where it cannot be seen.

        Or anything with `shape` and `dtype` that slices like numpy: numpy, h5py, zarr, dask or
        TensorStore arrays, and the data of a napari layer, of which a multiscale one is read at
        its finest level.

        The axes are (Y, X), (Z, Y, X) or (C, Z, Y, X), or (T, C, Z, Y, X) with a single time point,
        unless the file says which they are.
    name : str, optional
        What messages call it; the path by default.

    Returns
    -------
    Source
        Reads only what is asked for, from any thread. The caller closes it. A Source is returned
        as it is.

    Raises
    ------
    SourceError
        If there is no such file or dataset, it cannot be reached or read, it is no volume of real
        numbers, or it is a series of several volumes: `open_series` opens those.
    """
    if _is_source(source):
        given: Source = source
        return given
    opened = _opened(source, name)
    if opened.times > 1:
        opened.close()
        shape = tuple(map(int, opened.array.shape))
        raise SourceError(
            f"{opened.name} is a series of {opened.times} time points "
            f"(axes {opened.letters}, shape {shape}), not one volume; choose one with time_points"
        )
    (volume,) = volumes(opened, None)
    return volume


def open_series(
    source: Any, name: str | None = None, time_points: Sequence[int] | None = None
) -> list[Source]:
    """Open every time point of a series as a volume; one volume is a series of one.

    Parameters
    ----------
    source : path, URL, array-like or Source
        As in `open_source`; an array of five axes is (T, C, Z, Y, X).
    name : str, optional
        What messages call it; " t=3" is appended for time point 3.
    time_points : sequence of int, optional
        Which of them, from 0; all by default.

    Returns
    -------
    list of Source
        They share the file, which is closed with the last of them.

    Raises
    ------
    SourceError
        As `open_source` does, and if there is no such time point.
    """
    if _is_source(source):
        if time_points is not None:
            raise SourceError(f"{source.name} is one volume; leave out the time points")
        return [source]
    return list(volumes(_opened(source, name), time_points))


def open_sources(source: Any, time_points: Sequence[int] | None = None) -> list[Source]:
    """Open one volume or series, or all those of a list or tuple; the index is its vol_id.

    Parameters
    ----------
    source : path, URL, array-like, Source, or a list or tuple of them
        As in `open_source`.
    time_points : sequence of int, optional
        Which volumes of a series to take, as in `open_series`; all by default. A series is as many
        volumes, in its place.

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
        return open_series(source, time_points=time_points)
    if not source:
        raise SourceError("the list of volumes is empty; give at least one volume")
    with ExitStack() as opened:
        sources = []
        for number, each in enumerate(source):
            is_path = isinstance(each, (str, os.PathLike))
            for volume in open_series(each, None if is_path else f"volume {number}", time_points):
                sources.append(volume)
                if volume is not each:  # a source that was handed in stays the caller's
                    opened.callback(volume.close)
        opened.pop_all()
    return sources


def level_of(data: Any, level: int = 0) -> Any:
    """Return one level of a napari layer's data; data that is not multiscale is its only one.

    Parameters
    ----------
    data : array-like or sequence of them
        As a layer has it; a multiscale one is a sequence of arrays from fine to coarse.
    level : int
        Which of them.

    Raises
    ------
    SourceError
        If there is no such level.
    """
    levels = data if isinstance(data, Sequence) else [data]
    if not 0 <= level < len(levels):
        raise SourceError(f"there is no level {level}; there are {len(levels)}, from 0")
    return levels[level]


def _opened(source: Any, name: str | None) -> Opened:
    if isinstance(source, Opened):
        return source
    if isinstance(source, (str, os.PathLike)):
        return open_path(os.fspath(source), name)
    is_multiscale = isinstance(source, Sequence) and not isinstance(source, (list, tuple))
    return _open_array(level_of(source) if is_multiscale else source, name or "the volume")


def _open_array(array: Any, name: str) -> Opened:
    if len(getattr(array, "shape", ())) != len(AXES):
        ArraySource(array, name)  # says what it must be, if it is no volume
    if type(array).__module__.startswith("tensorstore"):  # if it is one, that is imported already
        from napari_seamless.io.sources.tensorstores import as_array

        array = as_array(array)
    return Opened(array, name)


def _is_source(source: Any) -> bool:
    needs = ("name", "shape", "dtype", "read", "close")
    return all(hasattr(source, need) for need in needs)
