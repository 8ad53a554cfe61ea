"""An array-like whose voxels are computed when they are asked for."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Ranges = tuple[slice, ...]
"""One slice with explicit start and stop per axis."""


class LazyArray:
    """A read-only array-like over a function; only the region that is indexed is computed.

    Parameters
    ----------
    shape : tuple of int
        Voxels along each axis.
    dtype : dtype
        Of every region returned.
    read : callable
        Takes one slice with explicit start and stop per axis, returns that region as an array.

    Notes
    -----
    Indexing follows numpy for integers, slices with any step, `...` and one index array per axis.
    Nothing is cached: two looks at a running prediction may differ.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: DTypeLike, read: Callable[[Ranges], NDArray[Any]]
    ) -> None:
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self._read = read

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes that the whole array would take in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """Return the region asked for as numpy does: an array, or a scalar."""
        pairs = [
            _bounds(index, size)
            for index, size in zip(_full_key(key, self.ndim), self.shape, strict=True)
        ]
        region = self._read(tuple(bounds for bounds, _ in pairs))
        return region[tuple(local for _, local in pairs)]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(
                "a lazy array is computed when it is read; it cannot be had without a copy"
            )
        return np.asarray(self[...], dtype=dtype)

    def __repr__(self) -> str:
        return f"LazyArray(shape={self.shape}, dtype={self.dtype})"


def _full_key(key: Any, ndim: int) -> tuple[Any, ...]:
    """Expand a key to one index per axis."""
    key = key if isinstance(key, tuple) else (key,)
    ellipses = sum(part is Ellipsis for part in key)
    if ellipses > 1 or len(key) - ellipses > ndim:
        raise IndexError(f"{len(key)} indices do not fit an array of {ndim} axes")
    at = next((i for i, part in enumerate(key) if part is Ellipsis), len(key))
    rest = key[at + 1 :]
    missing = ndim - at - len(rest)
    return (*key[:at], *([slice(None)] * missing), *rest)


def _bounds(index: Any, size: int) -> tuple[slice, Any]:
    """Return the smallest range that holds what `index` picks, and the index within that range."""
    if isinstance(index, slice):
        picked = range(*index.indices(size))
        if not picked:
            return slice(0, 0), slice(0, 0)
        # both ends of the range are picked, so a step from either end meets the same elements
        return slice(min(picked), max(picked) + 1), slice(None, None, picked.step)
    positions = np.asarray(index)
    if positions.dtype == bool:
        if positions.shape != (size,):
            raise IndexError(f"a mask of shape {positions.shape} does not fit an axis of {size}")
        positions = np.flatnonzero(positions)
    if positions.size == 0:
        return slice(0, 0), positions.astype(np.intp)
    if positions.dtype.kind not in "iu":
        raise IndexError(f"{index!r} is not an index; use integers, slices or ...")
    positions = positions.astype(np.intp)
    positions = np.where(positions < 0, positions + size, positions)
    if positions.min() < 0 or positions.max() >= size:
        raise IndexError(f"index {index} is out of bounds for an axis of {size}")
    low = int(positions.min())
    local = positions - low
    return slice(low, int(positions.max()) + 1), int(local) if local.ndim == 0 else local
