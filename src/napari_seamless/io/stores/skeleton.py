"""A file without its voxels: what a library writes around them, made in memory.

HDF5 and TIFF files are made of voxels, which are contiguous here, and of a few kilobytes that say
where they are::

    file      [head][ voxels of main          ][..][ voxels of labels ][tail]
    skeleton  [head]                           [..]                    [tail]

The libraries write the skeleton into memory; head and tail are then copied to the disk, as voxels
are, with plain writes. A disk that is full therefore never fails within libhdf5, which would end
the process (a segmentation fault, measured with h5py 3.16). And because a skeleton can be made
anew at any time, a process that is killed while it writes one loses nothing.
"""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

_PAGE = 4096

Shaped = tuple[tuple[int, ...], np.dtype[Any]]
"""Shape and dtype of an array."""


@dataclass(frozen=True)
class Placed:
    """An array in a file: contiguous, C order.

    Attributes
    ----------
    offset : int
        Of its first byte.
    shape : tuple of int
        (C, Z, Y, X) or (T, C, Z, Y, X).
    dtype : dtype
        Of the voxels as they are in the file.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def stop(self) -> int:
        """Where its last byte ends."""
        return self.offset + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def facts(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {"offset": self.offset, "shape": list(self.shape), "dtype": self.dtype.str}


@dataclass(frozen=True)
class Skeleton:
    """All of a file but its voxels.

    Attributes
    ----------
    arrays : dict of str to Placed
        Where the voxels are.
    size : int
        Bytes of the whole file.
    pieces : list of (int, bytes)
        What stands between the arrays: offset and content.
    """

    arrays: dict[str, Placed]
    size: int
    pieces: list[tuple[int, bytes]]


class SparseFile(io.RawIOBase):
    """A file in memory that holds only what was written to it, however large it is."""

    mode = "r+b"

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self._at = 0
        self._pages: dict[int, bytearray] = {}

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position; return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = base + offset
        return self._at

    def truncate(self, size: int | None = None) -> int:
        """Set the file's size; return it."""
        self.size = self._at if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        """Write all of `data`; return its length."""
        content = memoryview(data).cast("B")
        for page, inside, part in _parts(self._at, len(content)):
            self._pages.setdefault(page, bytearray(_PAGE))[inside] = content[part]
        self._at += len(content)
        self.size = max(self.size, self._at)
        return len(content)

    def readinto(self, buffer: Any) -> int:
        """Read bytes into `buffer`, zero where none were written; return how many."""
        content = memoryview(buffer).cast("B")
        length = max(0, min(len(content), self.size - self._at))
        for page, inside, part in _parts(self._at, length):
            held = self._pages.get(page)
            content[part] = bytes(inside.stop - inside.start) if held is None else held[inside]
        self._at += length
        return length

    def without(self, arrays: dict[str, Placed]) -> Skeleton:
        """Return what was written, less what was written where voxels belong."""
        ranges = sorted((array.offset, array.stop) for array in arrays.values())
        pieces = []
        for page in sorted(self._pages):
            first = page * _PAGE
            for low, high in _outside(ranges, first, min(first + _PAGE, self.size)):
                pieces.append((low, bytes(self._pages[page][low - first : high - first])))
        return Skeleton(arrays, self.size, pieces)


def _parts(at: int, length: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield the pages of a run of bytes: number, slice of the page, slice of the run."""
    done = 0
    while done < length:
        page, inside = divmod(at + done, _PAGE)
        step = min(_PAGE - inside, length - done)
        yield page, slice(inside, inside + step), slice(done, done + step)
        done += step


def _outside(ranges: list[tuple[int, int]], low: int, high: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of low..high that no range covers; ranges are sorted."""
    for start, stop in ranges:
        if low < min(start, high):
            yield low, min(start, high)
        low = max(low, stop)
    if low < high:
        yield low, high
