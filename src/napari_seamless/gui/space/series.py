"""Volumes as axes of one array: what a viewer has sliders for."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.lazy import LazyArray, Ranges


def stacked(volumes: Mapping[int, LazyArray], times: int) -> LazyArray:
    """Return volumes of the same shape as one series.

    Parameters
    ----------
    volumes : mapping of int to LazyArray
        By time point; at least one.
    times : int
        How many time points there are; those without a volume are NaN, or 0 in integers.
    """
    first = next(iter(volumes.values()))
    missing = np.nan if first.dtype.kind == "f" else 0

    def read(ranges: Ranges) -> NDArray[Any]:
        shape = [each.stop - each.start for each in ranges]
        region = np.full(shape, missing, first.dtype)
        for at, time in enumerate(range(ranges[0].start, ranges[0].stop)):
            if time in volumes:
                region[at] = volumes[time][ranges[1:]]
        return region

    return LazyArray((times, *first.shape), first.dtype, read)


def with_axes(volume: Any, axes: str, wanted: str) -> LazyArray:
    """Return an array-like with its axes in another order, some left out, and others added.

    Parameters
    ----------
    volume : array-like
        It slices like numpy.
    axes : str
        Its axes by letter.
    wanted : str
        Those of the result. Of an axis that is left out the first element is taken; one that is
        added has one element.
    """
    sizes = dict(zip(axes, volume.shape, strict=True))
    order = [axes.index(letter) for letter in wanted if letter in axes]
    order += [at for at, letter in enumerate(axes) if letter not in wanted]

    def read(ranges: Ranges) -> NDArray[Any]:
        parts = dict(zip(wanted, ranges, strict=True))
        region = np.asarray(volume[tuple(parts.get(letter, slice(0, 1)) for letter in axes)])
        return region.transpose(order).reshape([each.stop - each.start for each in ranges])

    return LazyArray(tuple(sizes.get(letter, 1) for letter in wanted), volume.dtype, read)
