"""HDF5: one dataset of a file, with a chunk cache whose size can change."""

import itertools
import json
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.errors import SourceError, one_line
from napari_seamless.engine.geometry import Geometry
from napari_seamless.io.sources.opened import KEPT_BYTES, Opened
from napari_seamless.io.sources.units import geometry_of, unit_named

SUFFIXES = (".h5", ".hdf5", ".hdf")
_NAMES_SHOWN = 10
_SLOTS_PER_CHUNK = 100
_MOST_SLOTS = 1_000_000


def open_hdf5(path: Path, wanted: str, name: str | None) -> Opened:
    """Open the dataset `wanted` of an HDF5 file; "" if there is only one, or one called main.

    Raises
    ------
    SourceError
        If the file cannot be read, or it has no such dataset.
    """
    with ExitStack() as opened:
        try:
            file = opened.enter_context(h5py.File(path, "r"))
            found = _find(file, path, wanted)
            label = found.name.strip("/")
            data = CachedDataset(file, found.name)
            geometry = _geometry(found)
        except SourceError:
            raise
        except (
            OSError,
            RuntimeError,
            ValueError,
            KeyError,
        ) as error:  # damage leads to any of them
            raise SourceError(f"{path} is damaged or no HDF5 file: {one_line(error)}") from error
        opened.pop_all()
    return Opened(
        data,
        name or f"{path}::{label}",
        geometry=geometry,
        keep=data.keep,
        close=data.close,
    )


def datasets_of(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return the shape and dtype of every dataset of an HDF5 file, by name.

    Raises
    ------
    SourceError
        If the file cannot be read.
    """
    try:
        with h5py.File(path, "r") as file:
            return {
                name: (each.shape, each.dtype)
                for name, each in _datasets(file).items()
                if each.shape is not None
            }
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise SourceError(f"{path} is damaged or no HDF5 file: {one_line(error)}") from error


def attributes_of(path: Path, name: str) -> dict[str, Any]:
    """Return the attributes of a dataset; text that is JSON is what it says.

    Raises
    ------
    SourceError
        If the file cannot be read.
    """
    try:
        with h5py.File(path, "r") as file:
            return {key: _parsed(value) for key, value in file[name].attrs.items()}
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise SourceError(f"{path} is damaged or no HDF5 file: {one_line(error)}") from error


def _parsed(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


class CachedDataset:
    """A dataset as an array-like that keeps decoded chunks.

    Parameters
    ----------
    file : h5py.File
        The open file; `close` closes it.
    name : str
        The dataset in it.
    """

    def __init__(self, file: h5py.File, name: str) -> None:
        self._file, self._name = file, name
        self._lock = threading.Lock()
        dataset = file[name]
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype = dataset.dtype
        self.chunks: tuple[int, ...] | None = dataset.chunks
        del dataset  # the library takes the first open handle's cache for all others
        self._data: h5py.Dataset | None = self._opened(KEPT_BYTES)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        with self._lock:
            if self._data is None:
                raise OSError("the file is closed")
            region: NDArray[Any] = self._data[key]
        return region

    def keep(self, nbytes: int) -> None:
        """Keep up to `nbytes` of decoded chunks from now on; those kept until now are dropped."""
        with self._lock:
            if self._data is not None:
                self._data = None  # closed before it is opened anew
                self._data = self._opened(nbytes)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._data = None
            self._file.close()

    def _opened(self, nbytes: int) -> h5py.Dataset:
        access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
        if self.chunks:
            chunk = max(1, int(np.prod(self.chunks)) * self.dtype.itemsize)
            slots = _prime_from(min(_MOST_SLOTS, _SLOTS_PER_CHUNK * (1 + nbytes // chunk)))
            # weight 0: a chunk that was read in full is as likely to be wanted again as others
            access.set_chunk_cache(slots, nbytes, 0.0)
        return h5py.Dataset(h5py.h5d.open(self._file.id, self._name.encode(), access))


def _prime_from(number: int) -> int:
    """Return the first prime from `number` on: chunks spread best over so many slots."""
    for candidate in itertools.count(max(2, number)):
        if all(candidate % factor for factor in range(2, int(candidate**0.5) + 1)):
            return candidate
    raise AssertionError("there is always a larger prime")


def _geometry(dataset: h5py.Dataset) -> Geometry:
    """Return what `element_size_um` says (ilastik), or `resolution` and `offset` (CREMI).

    Predictions written by this package have it all under `geometry` of their dataset main.
    """
    about, main = dataset.attrs, dataset.file.get("main", dataset)
    with suppress(KeyError, TypeError, ValueError):  # it is not ours
        return Geometry.from_facts(json.loads(main.attrs["geometry"]))
    if "element_size_um" in about:
        return geometry_of(about["element_size_um"], unit="micrometer")
    if "resolution" not in about:
        return Geometry()
    unit = unit_named(about.get("units", "nanometer"))
    return geometry_of(about["resolution"], about.get("offset"), unit)


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    datasets: dict[str, h5py.Dataset] = {}
    file.visititems(
        lambda key, item: datasets.update({key: item}) if isinstance(item, h5py.Dataset) else None
    )
    return datasets


def _find(file: h5py.File, path: Path, name: str) -> h5py.Dataset:
    """Return the dataset called `name`, or `main` or the only one if the name is empty."""
    datasets = _datasets(file)
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
