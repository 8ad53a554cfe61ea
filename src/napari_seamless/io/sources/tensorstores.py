"""Arrays that TensorStore reads, with a cache of decoded chunks whose size can change."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from napari_seamless.engine.errors import SourceError, one_line
from napari_seamless.engine.source import chunks_of
from napari_seamless.io.sources.opened import AXES, KEPT_BYTES

PATIENCE_SECONDS = 20
"""How long to wait for an answer while a volume is opened."""

_RETRIED = re.compile(r"^ABORTED: All \d+ retry attempts failed: (CURL error )?")
_ASKS = ("s3_request_retries", "gcs_request_retries", "http_request_retries")


def context_of(retries: int, nbytes: int = 0) -> ts.Context:
    """Return where requests are repeated so often, and so many bytes of chunks are kept."""
    asks = {each: {"max_retries": retries} for each in _ASKS}
    return ts.Context({"cache_pool": {"total_bytes_limit": nbytes}, **asks})


def reason_of(error: BaseException) -> str:
    """Return what TensorStore says went wrong, without its specification of the whole array."""
    if isinstance(error, TimeoutError):
        return f"no answer within {PATIENCE_SECONDS} seconds"
    return _RETRIED.sub("", one_line(error).partition(" [")[0])


class StoredArray:
    """A TensorStore as an array-like with its axes in the order T, C, Z, Y, X.

    Parameters
    ----------
    spec : mapping
        What TensorStore opens.
    axes : str
        Letters of its axes, as stored; "" if nothing is known: the last of T, C, Z, Y, X.
    name : str
        What messages call it.

    Attributes
    ----------
    axes : str
        Letters of its axes, as they are now.
    """

    def __init__(self, spec: Mapping[str, Any], axes: str, name: str) -> None:
        self._spec, self._stored, self._name = dict(spec), axes, name
        self.axes = "".join(sorted(axes, key=AXES.index))
        self.keep(KEPT_BYTES)
        self.shape: tuple[int, ...] = tuple(self._store.shape)
        self.dtype = _numpy_dtype(self._store)
        self.chunks = chunks_of(self._store)

    def keep(self, nbytes: int) -> None:
        """Keep up to `nbytes` of decoded chunks from now on; those kept until now are dropped."""
        self._store: ts.TensorStore = self._opened(nbytes)

    def close(self) -> None:
        """Let go of the chunks."""
        del self._store

    def __getitem__(self, key: Any) -> NDArray[Any]:
        try:
            region: NDArray[Any] = self._store[key].read().result()
        except ValueError as error:  # its errors name the whole specification of the array
            raise OSError(reason_of(error)) from error
        return region

    def _opened(self, nbytes: int) -> ts.TensorStore:
        try:
            store = ts.open(
                self._spec,
                read=True,
                open=True,
                context=context_of(retries=5, nbytes=nbytes),
                recheck_cached_data=False,
            ).result(timeout=PATIENCE_SECONDS)
        except Exception as error:  # it raises whatever fits the kind of failure
            raise SourceError(f"{self._name} cannot be opened: {reason_of(error)}") from error
        if self._stored and store.rank != len(self._stored):
            raise SourceError(
                f"{self._name} has {store.rank} axes, shape {store.shape}, but its metadata names "
                f"{len(self._stored)}, {self._stored}; repair its metadata"
            )
        if self._stored:
            store = store.transpose([self._stored.index(axis) for axis in self.axes])
        return store[ts.d[:].translate_to[0]] if store.rank else store


def as_array(store: ts.TensorStore) -> ts.TensorStore:
    """Return a TensorStore that slices like numpy: its first element is at 0."""
    return store[ts.d[:].translate_to[0]] if store.rank else store


def _numpy_dtype(store: ts.TensorStore) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(store.dtype.numpy_dtype)
    return dtype
