"""What a network gets for a voxel's value: one shift and scale per channel of a whole volume."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import ConfigError, SourceError
from napari_seamless.engine.source import Shape4, Source, read_patch

SLAB_VOXELS = 1 << 23
"""Voxels of all channels that are in memory at a time while statistics are gathered."""

EXACT_VOXELS = 1 << 28
"""Voxels per channel that are all read; of larger volumes, evenly spaced planes are."""

SAMPLE_VOXELS = 1 << 24
"""The same for percentiles of what has too many values to count each: those must be kept."""

FEWEST_PLANES = 16
"""Planes that are read at least, however large one is."""


class Stopped(Exception):  # noqa: N818 - not an error
    """Statistics were not wanted any more."""


@dataclass(frozen=True)
class Normalizer:
    """What is done to the values of one volume, the same in every patch: (x - shift) / scale.

    Attributes
    ----------
    shift, scale : tuple of float
        One per channel.
    in_float64 : bool
        Compute in float64 and round once; else divide in float32, and do not shift.
    """

    shift: tuple[float, ...]
    scale: tuple[float, ...]
    in_float64: bool = True

    def __call__(
        self, voxels: NDArray[Any], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return voxels as the float32 values that the network gets.

        Parameters
        ----------
        voxels : ndarray, shape (..., C, z, y, x)
            Of any real dtype.
        out : ndarray of float32, of the same shape, optional
            Where the values go, and what is returned; a new array by default.

        Returns
        -------
        ndarray of float32, of the same shape

        Raises
        ------
        SourceError
            If a value is too large for float32 once it is scaled.
        """
        scale = np.reshape(self.scale, (-1, 1, 1, 1))
        values = np.empty(voxels.shape, np.float32) if out is None else out
        if not self.in_float64:
            with np.errstate(over="ignore"):  # what becomes infinite is refused by `read_patch`
                if np.all(scale == 1):
                    np.copyto(values, voxels, casting="unsafe")
                else:  # each value becomes float32, and is divided as such
                    np.divide(
                        voxels, np.float32(scale), out=values, dtype=np.float32, casting="unsafe"
                    )
            return values
        exact = voxels.astype(np.float64)
        exact -= np.reshape(self.shift, (-1, 1, 1, 1))
        try:
            with np.errstate(over="raise"):
                exact /= scale
                np.copyto(values, exact, casting="unsafe")
                return values
        except FloatingPointError:
            raise SourceError(
                f"a voxel's value x becomes too large for float32 as (x - shift) / scale, of "
                f"shift {self.shift} and scale {self.scale} per channel; "
                "choose another normalization or remove extreme values"
            ) from None


def normalizer_of(
    source: Source,
    normalization: str,
    percentiles: tuple[float, float] = (1, 99),
    mean_std: tuple[float, float] | None = None,
    may_go_on: Callable[[], bool] = lambda: True,
) -> Normalizer:
    """Find out what to do to a volume's values, from the whole of it, each channel for itself.

    Parameters
    ----------
    source : Source
        The volume. It is read once, slab by slab, for `minmax`, `percentile` and `zscore`.
    normalization : {"none", "dtype", "minmax", "percentile", "zscore", "fixed"}
        `none`: as they are. `dtype`: unsigned integers divided by their type's largest value,
        other types as they are. `minmax`: smallest to 0, largest to 1. `percentile`: two
        percentiles to 0 and 1, values beyond are not clipped. `zscore`: mean 0, standard deviation
        1. `fixed`: (x - mean) / std.
    percentiles : tuple of float
        Low and high, 0 to 100, interpolated as `numpy.percentile` does.
    mean_std : tuple of float, optional
        For `fixed`: the mean, and the standard deviation, above 0.
    may_go_on : callable
        Asked before each part of the volume is read, which may take long.

    Returns
    -------
    Normalizer

    Raises
    ------
    Stopped
        If `may_go_on` says no.
    ConfigError
        If `fixed` has no usable `mean_std`.
    SourceError
        If the volume cannot be read, holds NaN or infinity, or a channel's values are all the
        same so that nothing can scale them.

    Notes
    -----
    Exact for volumes of up to `EXACT_VOXELS` voxels per channel; of larger ones, evenly spaced
    planes are read, so that `minmax` may leave voxels slightly outside 0 to 1. Percentiles of
    types of more than 16 bits are exact up to `SAMPLE_VOXELS`, and from evenly spaced voxels of
    evenly spaced planes beyond.
    """
    channels = source.shape[0]
    if normalization in ("none", "dtype"):
        divide = normalization == "dtype" and source.dtype.kind == "u"
        scale = float(np.iinfo(source.dtype).max) if divide else 1.0
        return Normalizer((0.0,) * channels, (scale,) * channels, in_float64=False)
    if normalization == "fixed":
        mean, std = _usable(mean_std)
        return Normalizer((mean,) * channels, (std,) * channels)
    return _measured(source, normalization, percentiles, may_go_on)


def _measured(
    source: Source,
    normalization: str,
    percentiles: tuple[float, float],
    may_go_on: Callable[[], bool],
) -> Normalizer:
    """Return the normalizer of `minmax`, `percentile` or `zscore`."""
    counted = normalization != "percentile" or _has_few_values(source.dtype)
    planes = _planes(source.shape, EXACT_VOXELS if counted else SAMPLE_VOXELS)
    statistics = [
        _statistic(normalization, source, percentiles, len(planes)) for _ in range(source.shape[0])
    ]
    for box in _slabs(source.shape, planes):
        if not may_go_on():
            raise Stopped
        voxels = read_patch(source, box, "edge")  # inside the volume: nothing is padded
        for statistic, values in zip(statistics, voxels, strict=True):
            statistic.add(values.ravel())
    shift, scale = zip(*(statistic.shift_and_scale() for statistic in statistics), strict=True)
    if 0 in scale:
        channel, depth = scale.index(0), source.shape[1]
        read = "" if len(planes) == depth else f" in the {len(planes)} of {depth} planes read"
        raise SourceError(
            f"{source.name} cannot be scaled by normalization {normalization!r}: in channel "
            f"{channel}, {statistics[channel].all_same} {shift[channel]:.9g}{read}; "
            "choose none, dtype, or fixed with a mean_std"
        )
    return Normalizer(shift, scale)


def _usable(mean_std: tuple[float, float] | None) -> tuple[float, float]:
    mean, std = mean_std or (math.nan, math.nan)
    if not (math.isfinite(mean) and 0 < std < math.inf):
        raise ConfigError(
            f"normalization 'fixed' has mean_std {mean_std}; "
            "give two numbers, the mean and a standard deviation above 0"
        )
    return float(mean), float(std)


# ---------------------------------------------------------------------------------- what is read


def _planes(shape: Shape4, limit: int) -> Sequence[int]:
    """Return every plane, or evenly spaced ones of at most about `limit` voxels per channel."""
    _, depth, *plane = shape
    count = min(depth, max(FEWEST_PLANES, limit // math.prod(plane)))
    return [(2 * i + 1) * depth // (2 * count) for i in range(count)]


def _slabs(shape: Shape4, planes: Sequence[int]) -> Iterator[Box]:
    """Cut planes into boxes of at most `SLAB_VOXELS` voxels of all channels, in storage order."""
    channels, *sizes = shape
    steps: list[int] = []
    for size in reversed(sizes):
        inner = math.prod(steps, start=channels)
        steps.insert(0, min(size, max(1, SLAB_VOXELS // inner)))
    if len(planes) < sizes[0]:
        steps[0] = 1  # they do not lie side by side
    axes = [planes[:: steps[0]], *map(range, [0, 0], sizes[1:], steps[1:])]
    for z, y, x in itertools.product(*axes):
        z1, y1, x1 = (min(a + n, end) for a, n, end in zip((z, y, x), steps, sizes, strict=True))
        yield Box((z, y, x), (z1, y1, x1))


# ------------------------------------------------------------------- statistics of one channel


class _Statistic(ABC):
    """Fed with all values of a channel, part after part; then asked for shift and scale."""

    all_same = "all values are"
    """What it means that the scale is 0."""

    @abstractmethod
    def add(self, values: NDArray[Any]) -> None:
        """Take in values, one axis, in the dtype of the volume."""

    @abstractmethod
    def shift_and_scale(self) -> tuple[float, float]:
        """Return both for the values so far."""


class _Extremes(_Statistic):
    def __init__(self) -> None:
        self._low, self._high = math.inf, -math.inf

    def add(self, values: NDArray[Any]) -> None:
        self._low = min(self._low, float(values.min()))
        self._high = max(self._high, float(values.max()))

    def shift_and_scale(self) -> tuple[float, float]:
        return self._low, self._high - self._low


class _Moments(_Extremes):
    """Mean and squared deviations of each part, combined by the formula of Chan et al. (1979).

    No sum of squares, which a large offset would drown the deviations in.
    """

    def __init__(self) -> None:
        super().__init__()
        self._count, self._mean, self._squares = 0, 0.0, 0.0

    def add(self, values: NDArray[Any]) -> None:
        super().add(values)
        deviations = values.astype(np.float64)
        mean = float(deviations.mean())
        deviations -= mean
        squares = float(np.square(deviations, out=deviations).sum())
        count = self._count + values.size
        away = mean - self._mean
        self._squares += squares + away**2 * self._count * values.size / count
        self._mean += away * values.size / count
        self._count = count

    def shift_and_scale(self) -> tuple[float, float]:
        if self._low == self._high:  # said exactly, where the mean may be off by a last digit
            return self._low, 0.0
        return self._mean, math.sqrt(self._squares / self._count)


class _Percentiles(_Statistic):
    def __init__(self, percentiles: tuple[float, float]) -> None:
        self._percentiles = percentiles
        self.all_same = f"percentiles {percentiles[0]:g} and {percentiles[1]:g} are both"

    def _shift_and_scale(
        self, count: int, in_order: Callable[[list[int]], NDArray[Any]]
    ) -> tuple[float, float]:
        """Interpolate between the values that `in_order` finds at given ranks among `count`."""
        ranks = [percent / 100 * (count - 1) for percent in self._percentiles]
        below = [int(rank) for rank in ranks]
        above = [min(rank + 1, count - 1) for rank in below]
        at = in_order([*below, *above]).astype(np.float64)
        low, high = at[:2] + (at[2:] - at[:2]) * np.subtract(ranks, below)
        return float(low), float(high - low)


class _Counted(_Percentiles):
    """Percentiles of a type of few values: how often each one occurs."""

    def __init__(self, percentiles: tuple[float, float], dtype: np.dtype[Any]) -> None:
        super().__init__(percentiles)
        self._first = int(np.iinfo(dtype).min) if dtype.kind == "i" else 0
        self._counts = np.zeros(1 << 8 * dtype.itemsize, dtype=np.int64)

    def add(self, values: NDArray[Any]) -> None:
        bins = values.astype(np.intp) - self._first
        self._counts += np.bincount(bins, minlength=len(self._counts))

    def shift_and_scale(self) -> tuple[float, float]:
        up_to = np.cumsum(self._counts)
        return self._shift_and_scale(
            int(up_to[-1]),
            lambda ranks: self._first + np.searchsorted(up_to, ranks, side="right"),
        )


class _Kept(_Percentiles):
    """Percentiles of any type: every value is kept, or every `stride`-th."""

    def __init__(self, percentiles: tuple[float, float], stride: int) -> None:
        super().__init__(percentiles)
        self._stride = stride
        self._seen = 0
        self._parts: list[NDArray[Any]] = []

    def add(self, values: NDArray[Any]) -> None:
        self._parts.append(values[-self._seen % self._stride :: self._stride].copy())
        self._seen += values.size

    def shift_and_scale(self) -> tuple[float, float]:
        kept = np.concatenate(self._parts)
        self._parts.clear()

        def in_order(ranks: list[int]) -> NDArray[Any]:
            kept.partition(sorted(set(ranks)))
            return kept[ranks]

        return self._shift_and_scale(kept.size, in_order)


def _statistic(
    normalization: str, source: Source, percentiles: tuple[float, float], planes: int
) -> _Statistic:
    if normalization != "percentile":
        return {"minmax": _Extremes, "zscore": _Moments}[normalization]()
    if _has_few_values(source.dtype):
        return _Counted(percentiles, source.dtype)
    plane = math.prod(source.shape[2:])
    stride = math.ceil(planes * plane / SAMPLE_VOXELS)
    while math.gcd(stride, plane) > 1:  # else only some columns would ever be met
        stride += 1
    return _Kept(percentiles, stride)


def _has_few_values(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "bui" and dtype.itemsize <= 2
