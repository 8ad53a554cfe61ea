"""What a file holds once it is open, and the volumes that are made of it."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.errors import SourceError, one_line
from napari_seamless.engine.geometry import Geometry
from napari_seamless.engine.lazy import LazyArray, Ranges
from napari_seamless.engine.source import ArraySource, chunks_of

KEPT_BYTES = 64 << 20
"""Decoded chunks of a file that are kept unless a source is told otherwise."""

AXES = "TCZYX"


def nothing(*_: Any) -> None:
    """Do nothing: an array in memory has nothing to keep and nothing to close."""


@dataclass(frozen=True, eq=False)
class Opened:
    """An array, open for reading, of one volume or of a series.

    Attributes
    ----------
    array : array-like
        It slices like numpy with one explicit range per axis.
    name : str
        What messages call it.
    axes : str
        One of the letters T, C, Z, Y, X for each axis, in the array's order; "" if they are just
        the last ones of these.
    geometry : Geometry
        Of its volumes.
    chunks : tuple of int, optional
        Elements along each of its axes that are read together; what it says of itself by default.
    keep : callable
        Takes how many bytes of decoded chunks are to be kept.
    close : callable
        Closes the file.
    """

    array: Any
    name: str
    axes: str = ""
    geometry: Geometry = field(default_factory=Geometry)
    chunks: tuple[int, ...] | None = None
    keep: Callable[[int], None] = nothing
    close: Callable[[], None] = nothing

    @property
    def times(self) -> int:
        """Time points; 1 if there is no time axis."""
        return self._along(tuple(map(int, self.array.shape)), "T")

    @property
    def letters(self) -> str:
        """The axes, those of an array that says nothing among them."""
        return self.axes or AXES[-len(self.array.shape) :]

    @property
    def chunk_size(self) -> Triple:
        """Voxels (Z, Y, X) that are read together."""
        chunks = self.chunks or chunks_of(self.array)
        return self._along(chunks, "Z"), self._along(chunks, "Y"), self._along(chunks, "X")

    def volume(self, time: int) -> Any:
        """Return one time point as an array-like (C, Z, Y, X), or as it is if it is a volume."""
        letters, array = self.letters, self.array
        if len(array.shape) != len(letters) or letters in ("X", "YX", "ZYX", "CZYX"):
            return array  # as a source takes it, or refuses it
        order = [letters.index(axis) for axis in "CZYX" if axis in letters]
        order += [letters.index("T")] if "T" in letters else []

        def read(ranges: Ranges) -> NDArray[Any]:
            wanted = dict(zip("CZYX", ranges, strict=True), T=slice(time, time + 1))
            region = np.asarray(array[tuple(wanted[axis] for axis in letters)])
            return region.transpose(order).reshape([each.stop - each.start for each in ranges])

        c, z, y, x = (self._along(array.shape, axis) for axis in "CZYX")
        return LazyArray((c, z, y, x), _dtype_of(array), read)

    def _along(self, sizes: tuple[int, ...], axis: str) -> int:
        at = self.letters.find(axis)
        return int(sizes[at]) if at >= 0 and len(sizes) == len(self.letters) else 1


def _dtype_of(array: Any) -> Any:
    return getattr(array.dtype, "numpy_dtype", array.dtype)


class FileSource(ArraySource):
    """One volume of an open file; the file is closed with the last of its volumes.

    Parameters
    ----------
    opened : Opened
        The file's array.
    name : str
        What messages call it.
    time : int or None
        Which time point it is.
    close : callable
        Says that this volume needs the file no longer.

    Raises
    ------
    SourceError
        If the array is no volume of real numbers.
    """

    def __init__(
        self, opened: Opened, name: str, time: int | None, close: Callable[[], None]
    ) -> None:
        volume = opened.volume(time or 0)
        super().__init__(volume, name, chunk_size=opened.chunk_size, geometry=opened.geometry)
        self.time = time
        self._opened, self._close = opened, close

    def read(self, box: Box) -> NDArray[Any]:
        """Return the voxels of `box` as (C, z, y, x), in the source's own dtype.

        Raises
        ------
        SourceError
            If they cannot be read, as from a damaged chunk; other boxes still can.
        """
        try:
            return super().read(box)
        except Exception as error:  # a damaged file leads each library into others
            raise SourceError(
                f"{self.name} cannot be read at {box.start} to {box.stop} (Z, Y, X): "
                f"{one_line(error)}"
            ) from error

    def keep(self, nbytes: int) -> None:
        """Say how many bytes of decoded chunks to keep for later reads; 0 is the default.

        All time points of a series share them.

        Raises
        ------
        SourceError
            If the file cannot be read any more.
        """
        self._opened.keep(nbytes or KEPT_BYTES)

    def close(self) -> None:
        """Let go of the file."""
        super().close()
        close, self._close = self._close, nothing
        close()


def volumes(opened: Opened, times: Sequence[int] | None) -> list[FileSource]:
    """Return the volumes of a file: one, or one for each chosen time point.

    Parameters
    ----------
    opened : Opened
        The file. It is closed with the last of its volumes, and if there is an error.
    times : sequence of int, optional
        Which time points, from 0; all by default.

    Raises
    ------
    SourceError
        If there are no such time points, or the array is no volume of real numbers.
    """
    try:
        chosen = _chosen(opened, times)
        shared = _Shared(opened.close, len(chosen))
        names = [opened.name if time is None else f"{opened.name} t={time}" for time in chosen]
        return [
            FileSource(opened, name, time, shared.release)
            for name, time in zip(names, chosen, strict=True)
        ]
    except SourceError:
        opened.close()
        raise


def _chosen(opened: Opened, times: Sequence[int] | None) -> list[int | None]:
    count = opened.times
    if times is None:
        return list(range(count)) if count > 1 else [None]
    if "T" not in opened.letters:
        raise SourceError(f"{opened.name} has no time axis; leave out the time points")
    if not times:
        raise SourceError(f"no time point of {opened.name} is asked for; it has {count}")
    for time in times:
        if not 0 <= time < count:
            raise SourceError(
                f"{opened.name} has no time point {time}; it has {count}, 0 to {count - 1}"
            )
    return list(times)


class _Shared:
    """Calls `close` when its last user is done."""

    def __init__(self, close: Callable[[], None], users: int) -> None:
        self._close, self._users = close, users
        self._lock = threading.Lock()

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self._close()
