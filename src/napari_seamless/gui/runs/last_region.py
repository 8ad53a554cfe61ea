"""A view of a volume that grows, made cheap for a viewer that looks at the same plane again."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.lazy import LazyArray, Ranges

KEPT_BYTES = 64 << 20
"""A region larger than this is read anew each time."""

_MOST_PARTS = 64


class LastRegion:
    """Keeps the region that was read last, and of that reads again only what has changed.

    A plane of a volume whose finished chunks are in a file is decoded from all chunks that it
    crosses. While a run goes on, a plane is drawn ten times a second, and changes in a few places.

    Parameters
    ----------
    volume : LazyArray
        The volume.

    Attributes
    ----------
    array : LazyArray
        The same voxels, as far as `mark` tells of changes.
    """

    def __init__(self, volume: LazyArray) -> None:
        self._volume = volume
        self._ranges: Ranges | None = None
        self._values: NDArray[Any] = np.empty(0)
        self._changed: list[Ranges] = []
        self._lock = threading.Lock()
        self.array = LazyArray(volume.shape, volume.dtype, self._read)

    def mark(self, changed: Ranges) -> None:
        """Note that voxels have changed: a range along each axis."""
        with self._lock:
            self._changed.append(changed)
            if len(self._changed) > _MOST_PARTS:
                self._forget()

    def forget(self) -> None:
        """Read all anew the next time."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._ranges, self._changed = None, []

    def _read(self, ranges: Ranges) -> NDArray[Any]:
        with self._lock:
            changed, self._changed = self._changed, []
            if ranges == self._ranges:
                self._ranges = None  # what cannot be read now is read again then
                for part in changed:
                    self._read_again(ranges, part)
                self._ranges = ranges
                return self._values.copy()
            self._forget()
            values = np.asarray(self._volume[ranges])
            if values.nbytes <= KEPT_BYTES:
                self._ranges, self._values = ranges, values.copy()
            return values

    def _read_again(self, ranges: Ranges, part: Ranges) -> None:
        common = tuple(
            slice(max(each.start, other.start), min(each.stop, other.stop))
            for each, other in zip(ranges, part, strict=True)
        )
        if all(each.start < each.stop for each in common):
            inside = tuple(
                slice(each.start - whole.start, each.stop - whole.start)
                for each, whole in zip(common, ranges, strict=True)
            )
            self._values[inside] = self._volume[common]
