"""A file whose voxels are read and written where they are, without a library in between."""

import errno
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.io.stores.skeleton import Placed, Skeleton

_HAS_POSITIONS = hasattr(os, "pwrite")  # Windows has not


class VoxelFile:
    """An open file; threads, and other processes, may read and write it at the same time.

    Not mapped into memory: a mapped write that meets a full disk ends the process.

    Parameters
    ----------
    path : Path
        Must exist unless `create`.
    writable, create : bool
        Whether it may be written to; whether it is made, and must not be there yet.

    Raises
    ------
    OSError
        If it cannot be opened. So does every method that reads or writes.
    """

    def __init__(self, path: Path, writable: bool = True, create: bool = False) -> None:
        flags = (os.O_RDWR if writable else os.O_RDONLY) | getattr(os, "O_BINARY", 0)
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        self._handle = os.open(path, flags, 0o666)
        self._lock = threading.Lock()

    def reserve(self, size: int) -> None:
        """Make the file `size` bytes long and, where there is a way to, sure that they fit."""
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._handle, 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        os.ftruncate(self._handle, size)

    def put(self, skeleton: Skeleton) -> None:
        """Write everything but voxels, from the end to the start."""
        for offset, content in reversed(skeleton.pieces):
            self._write_at(offset, memoryview(content))
        os.ftruncate(self._handle, skeleton.size)

    def write(self, array: Placed, start: tuple[int, ...], values: NDArray[Any]) -> None:
        """Write voxels; the axes of `start` and `values` are those of `array`."""
        values = np.ascontiguousarray(values, dtype=array.dtype)
        content = _bytes_of(values)
        for offset, run in _runs(array, start, values.shape):
            self._write_at(offset, content[run])

    def read(self, array: Placed, start: tuple[int, ...], shape: tuple[int, ...]) -> NDArray[Any]:
        """Return voxels in the dtype of `array`."""
        values = np.empty(shape, array.dtype)
        content = _bytes_of(values)
        for offset, run in _runs(array, start, shape):
            content[run] = self._read_at(offset, run.stop - run.start)
        return values

    def sync(self) -> None:
        """Make sure that everything is on the disk."""
        (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(self._handle)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def _write_at(self, offset: int, content: memoryview) -> None:
        while content:
            if _HAS_POSITIONS:
                done = os.pwrite(self._handle, content, offset)
            else:
                with self._lock:
                    os.lseek(self._handle, offset, os.SEEK_SET)
                    done = os.write(self._handle, content)
            offset, content = offset + done, content[done:]

    def _read_at(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            if _HAS_POSITIONS:
                part = os.pread(self._handle, length, offset)
            else:
                with self._lock:
                    os.lseek(self._handle, offset, os.SEEK_SET)
                    part = os.read(self._handle, length)
            if not part:
                raise OSError(errno.EIO, "the file ends before its voxels do")
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)


def _bytes_of(values: NDArray[Any]) -> memoryview:
    return values.reshape(-1).view(np.uint8).data


def _runs(
    array: Placed, start: tuple[int, ...], shape: tuple[int, ...]
) -> Iterator[tuple[int, slice]]:
    """Yield the contiguous runs of a region: offset in the file, and the region's bytes in it."""
    strides = [array.dtype.itemsize * math.prod(array.shape[i + 1 :]) for i in range(len(shape))]
    first = len(shape) - 1  # axes after this one are whole, so that one run covers them
    while first and shape[first] == array.shape[first]:
        first -= 1
    offsets = np.array(array.offset + sum(map(int.__mul__, start, strides)), dtype=np.int64)
    for length, stride in zip(shape[:first], strides, strict=False):
        offsets = np.add.outer(offsets, np.arange(length, dtype=np.int64) * stride)
    step = array.dtype.itemsize * math.prod(shape[first:])
    for i, offset in enumerate(offsets.ravel().tolist()):
        yield offset, slice(i * step, (i + 1) * step)
