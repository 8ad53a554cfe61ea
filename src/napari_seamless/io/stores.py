"""Files that a prediction is written to: all of it, or nothing."""

import importlib.metadata
import itertools
import json
import math
import os
import platform
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import h5py
import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_seamless import __version__
from napari_seamless.engine.errors import OutputError, SeamlessError, WriteError, one_line
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.store import Store
from napari_seamless.io.steady_file import SteadyFile

SLAB_BYTES = 16 << 20
"""How much of an array is in memory at a time while it is written."""

BIGTIFF_BYTES = 4_000_000_000
"""Larger files need 64-bit offsets; the rest of 4 GiB is left to the headers of planes."""

_CHUNK = 512
_AXES = "CZYX"

Voxels = LazyArray | NDArray[Any]
"""(C, Z, Y, X)."""


def open_store(path: str | os.PathLike[str], overwrite: bool = False) -> Store:
    """Check where a prediction shall be written; nothing is written yet.

    Parameters
    ----------
    path : path
        ".h5" or ".hdf5" (dataset "main"), ".tif" or ".tiff" (first series); both (C, Z, Y, X).
    overwrite : bool
        Replace a file that exists.

    Returns
    -------
    Store

    Raises
    ------
    OutputError
        If the suffix is unknown, the file exists and may not be replaced, or its folder is missing
        or may not be written to.
    """
    path = Path(os.path.expanduser(path))  # pathlib's raises for unknown users
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise OutputError(
            f"output {path} ends in {path.suffix or 'no suffix'!r}; it must be {', '.join(_KINDS)}"
        )
    try:
        _check_place(path, overwrite)
    except OutputError:
        raise
    except OSError as error:  # a name that no file can have
        raise OutputError(f"output {path} cannot be written: {one_line(error)}") from error
    return kind(path, overwrite)


def versions() -> dict[str, str]:
    """Return the versions of what makes the numbers: napari-seamless, numpy, torch and Python."""
    return {
        "napari-seamless": __version__,
        "numpy": np.__version__,
        "torch": importlib.metadata.version("torch"),  # without importing it
        "python": platform.python_version(),
    }


class FileStore(ABC):
    """A file written beside its place under another name, and moved there when it is whole."""

    def __init__(self, path: Path, overwrite: bool) -> None:
        self._path = path
        self._overwrite = overwrite

    def reserve(self, nbytes: int) -> None:
        """Raise OutputError if `nbytes` bytes do not fit the disk."""
        try:
            free = shutil.disk_usage(self._path.parent).free
        except OSError as error:  # the folder is gone
            raise OutputError(
                f"output {self._path} cannot be written: {_reason(error)}: choose another place"
            ) from error
        if nbytes > free:
            raise OutputError(
                f"output {self._path} takes {_readable(nbytes)} and its disk has {_readable(free)} "
                "free: free space or choose another place"
            )

    def write(self, arrays: Mapping[str, Voxels], metadata: Mapping[str, Any]) -> None:
        """Write arrays and what is known about them, a few planes at a time.

        Parameters
        ----------
        arrays : mapping of array-likes, shape (C, Z, Y, X)
            "main" first, then any others; each is written in its own dtype, NaN stays NaN.
        metadata : mapping
            JSON-like. The file also says its axes and, if `metadata` does not, the versions.

        Raises
        ------
        WriteError
            If it cannot be written in full; then nothing of it is left on the disk.
        """
        facts = _plain({"versions": versions(), **metadata, "axes": _AXES})
        # the name is shortened lest the added part makes it longer than a file system allows
        temporary = self._path.with_name(f".{self._path.name[:40]}.partial-{secrets.token_hex(4)}")
        try:
            with SteadyFile(temporary) as file:
                self._fill(file, arrays, facts)
                file.sync()
            self._publish(temporary)
        except SeamlessError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            raise WriteError(
                f"{self._path} could not be written: {_reason(error)}: "
                "free space or choose another place"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _publish(self, temporary: Path) -> None:
        if _exists(self._path) and not self._overwrite:
            raise WriteError(
                f"{self._path} appeared during the run and was not replaced: choose another name"
            )
        os.replace(temporary, self._path)

    @abstractmethod
    def _fill(self, file: SteadyFile, arrays: Mapping[str, Voxels], facts: dict[str, Any]) -> None:
        """Write everything to `file`."""


class HDF5Store(FileStore):
    """An HDF5 file with a dataset for each array; what is known is in the attributes of `main`.

    Text and numbers are attributes as they are, lists and mappings are JSON. A name with a slash
    is a dataset in a group.
    """

    def _fill(self, file: SteadyFile, arrays: Mapping[str, Voxels], facts: dict[str, Any]) -> None:
        # Since format 1.8 (2008) an attribute may be longer than 64 KiB.
        with h5py.File(file, "w", libver="v108") as hdf5:
            for name, array in arrays.items():
                chunks = (1, 1, *(_even_part(size, _CHUNK) for size in array.shape[2:]))
                dataset = hdf5.create_dataset(name, array.shape, array.dtype, chunks=chunks)
                for key, value in (facts if name == "main" else {"axes": _AXES}).items():
                    is_scalar = isinstance(value, (str, int, float))
                    dataset.attrs[key] = value if is_scalar else json.dumps(value)
                for channel, planes, voxels in _slabs(array):
                    dataset[channel, planes] = voxels
                    file.check()


class TIFFStore(FileStore):
    """A TIFF file of one plane per page and one series per array, in their order.

    What is known is JSON in the description of the first page; that of each further series says
    its name, shape and axes. Not every reader knows float16: Pillow does not.
    """

    def _fill(self, file: SteadyFile, arrays: Mapping[str, Voxels], facts: dict[str, Any]) -> None:
        def planes(array: Voxels) -> Iterator[NDArray[Any]]:
            for _, _, voxels in _slabs(array):
                yield from voxels
                file.check()

        bigtiff = sum(array.nbytes for array in arrays.values()) > BIGTIFF_BYTES
        binary = cast("IO[bytes]", file)
        with tifffile.TiffWriter(binary, bigtiff=bigtiff, ome=False, shaped=True) as tiff:
            for name, array in arrays.items():
                tiff.write(
                    planes(array),
                    shape=array.shape,
                    dtype=array.dtype,
                    photometric="minisblack",  # never colour, however many channels
                    metadata={**(facts if name == "main" else {"axes": _AXES}), "name": name},
                )


_KINDS: dict[str, type[FileStore]] = {
    ".h5": HDF5Store,
    ".hdf5": HDF5Store,
    ".tif": TIFFStore,
    ".tiff": TIFFStore,
}


def _check_place(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise OutputError(f"output {path} is a folder; name a file in it")
    if _exists(path) and not overwrite:
        raise OutputError(
            f"output {path} exists; pass --overwrite / overwrite=True or choose another name"
        )
    if not path.parent.is_dir():
        raise OutputError(f"output {path}: no such folder: {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"output {path}: the folder {path.parent} may not be written to; choose another place"
        )


def _exists(path: Path) -> bool:
    """Return whether there is such a file; unlike Path.exists, raise OSError if none can be."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _slabs(array: Voxels) -> Iterator[tuple[int, slice, NDArray[Any]]]:
    """Yield channel, planes, and the voxels (z, Y, X) of a few planes at a time, in file order."""
    channels, depth, *plane = array.shape
    step = max(1, SLAB_BYTES // max(1, array.dtype.itemsize * math.prod(plane)))
    for channel, start in itertools.product(range(channels), range(0, depth, step)):
        planes = slice(start, min(start + step, depth))
        yield channel, planes, np.ascontiguousarray(array[channel, planes], dtype=array.dtype)


def _even_part(size: int, most: int) -> int:
    """Return the size of the fewest equal parts of at most `most`: next to nothing is padded."""
    return math.ceil(size / math.ceil(size / most))


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata as what JSON can say; arrays become lists, and what it cannot say, text."""

    def fallback(value: Any) -> Any:
        return value.tolist() if hasattr(value, "tolist") else str(value)

    text = json.dumps(dict(metadata), default=fallback, ensure_ascii=False)
    # a file's name may hold bytes that are no text
    plain: dict[str, Any] = json.loads(text.encode("utf-8", "replace"))
    return plain


def _reason(error: BaseException) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else one_line(error)


def _readable(size: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    power = min(4, max(0, (max(size, 1).bit_length() - 1) // 10))
    return f"{size / 1024**power:.4g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
