"""Volumes compared a few planes at a time, so that no metric ever holds one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import SourceError
from napari_seamless.engine.source import ArraySource

SLAB_VOXELS = 1 << 22
"""Voxels compared at a time."""

NAN = float("nan")


def as_source(array: Any, name: str) -> ArraySource:
    """Return an array as a source (C, Z, Y, X); errors call it `name`."""
    return array if isinstance(array, ArraySource) else ArraySource(array, name)


def slabs(*sources: ArraySource) -> Iterator[list[NDArray[Any]]]:
    """Yield volumes of one (Z, Y, X) a few planes at a time; the first has the most channels."""
    channels, depth, height, width = sources[0].shape
    step = max(1, SLAB_VOXELS // (channels * height * width))
    for start in range(0, depth, step):
        box = Box((start, 0, 0), (min(start + step, depth), height, width))
        yield [source.read(box) for source in sources]


def holds_instances(source: ArraySource) -> bool:
    """Return whether these are integers of more than two values, and so no mask."""
    if source.dtype.kind not in "ui":
        return False
    values = np.empty(0, source.dtype)
    for (slab,) in slabs(source):
        values = np.union1d(values, slab)
        if values.size > 2:
            return True
    return False


def check_one_channel(predicted: ArraySource, truth: ArraySource, what: str) -> None:
    """Raise SourceError unless both are one channel of the same shape."""
    if predicted.shape != truth.shape or predicted.shape[0] != 1:
        raise SourceError(
            f"{predicted.name} has shape {predicted.shape} and {truth.name} {truth.shape} "
            f"(C, Z, Y, X); {what} one channel of the same shape: choose one of each"
        )


def ratio(part: float, whole: float, empty: float) -> float:
    """Return a share, or `empty` where it is one of nothing."""
    return float(part / whole) if whole else empty
