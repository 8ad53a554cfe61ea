"""Images that are stored plane by plane: whole planes are decoded, and the last ones kept."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.errors import one_line
from napari_seamless.engine.lazy import LazyArray, Ranges
from napari_seamless.io.sources.opened import KEPT_BYTES


class Pages:
    """Planes of one shape as an array; any thread may read.

    Parameters
    ----------
    shape : tuple of int
        Of all planes: the axes that count them, and those of a plane.
    dtype : dtype
        Of every plane.
    page_ndim : int
        How many of the last axes are those of a plane.
    decode : callable
        Takes the number of a plane, returns it.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        page_ndim: int,
        decode: Callable[[int], NDArray[Any]],
    ) -> None:
        at = len(shape) - page_ndim
        self._counted, self._page_shape, self._decode = shape[:at], shape[at:], decode
        self.dtype = dtype
        self.array = LazyArray(shape, dtype, self._read)
        self.chunks = (*[1] * at, *shape[at:])
        self.keep(KEPT_BYTES)

    def keep(self, nbytes: int) -> None:
        """Keep so many bytes of decoded planes from now on, one plane at least."""
        page_bytes = max(1, math.prod(self._page_shape) * self.dtype.itemsize)
        count = max(1, nbytes // page_bytes)
        self._decoded = functools.lru_cache(maxsize=count)(self._decode_or_say)

    def _decode_or_say(self, index: int) -> NDArray[Any]:
        try:
            return self._decode(index)
        except Exception as error:  # each decoder has its own; all of them are passed on
            raise OSError(f"page {index} cannot be decoded: {one_line(error)}") from error

    def _read(self, ranges: Ranges) -> NDArray[Any]:
        at, decoded = len(self._counted), self._decoded
        region = np.empty([each.stop - each.start for each in ranges], dtype=self.dtype)
        for cell in itertools.product(*(range(each.start, each.stop) for each in ranges[:at])):
            index = int(np.ravel_multi_index(cell, self._counted)) if cell else 0
            place = tuple(i - each.start for i, each in zip(cell, ranges, strict=False))
            region[place] = decoded(index)[ranges[at:]]
        return region
