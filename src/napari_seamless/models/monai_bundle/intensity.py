"""Intensity transforms of MONAI 1.6 as normalization here, where the numbers are the same.

MONAI gets an image of float32, as its loader gives it. Its statistics are of the whole image or,
with ``channel_wise``, of each channel, as ours are; of one channel that is the same.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Arguments = Mapping[str, Any]

_FLOAT32 = {"float32", "$torch.float32", "$torch.float", "$np.float32", "$numpy.float32"}


class NoEqualError(Exception):
    """There is nothing here that gives the same numbers; the message says why."""


@dataclass(frozen=True)
class Scaling:
    """What a transform does to intensities.

    Attributes
    ----------
    normalization : str
        Of `InferenceConfig`.
    shift, scale : float
        For "fixed": (x - shift) / scale.
    percentiles : tuple of float
        For "percentile".
    clips : bool
        Whether it also clips, which is not done here.
    """

    normalization: str
    shift: float = 0.0
    scale: float = 1.0
    percentiles: tuple[float, float] = (1.0, 99.0)
    clips: bool = False

    def settings(self) -> dict[str, Any]:
        """Return the settings of `InferenceConfig`."""
        found: dict[str, Any] = {"normalization": self.normalization}
        if self.normalization == "fixed":
            found["mean_std"] = (self.shift, self.scale)
        if self.normalization == "percentile":
            found["percentiles"] = self.percentiles
        return found


def chained(steps: Sequence[Scaling]) -> Scaling:
    """Return what some transforms, one after the other, come to.

    What goes before statistics of the image and is a shift and a positive scale makes no
    difference to what comes out; shifts and scales by given numbers are put together.

    Raises
    ------
    NoEqualError
        If that is more than there is here.
    """
    whole = Scaling("none")
    for step in steps:
        if whole.clips:
            raise NoEqualError("the first clips, which is not done here; do it to the volume first")
        if step.normalization != "fixed" or whole.normalization == "none":
            whole = step
        elif whole.normalization == "fixed":
            shift = whole.shift + step.shift * whole.scale
            whole = Scaling("fixed", shift, whole.scale * step.scale, clips=step.clips)
        elif (step.shift, step.scale, step.clips) != (0, 1, False):
            raise NoEqualError("there is one normalization here; do the first to the volume first")
    return whole


def _scale_intensity(given: Arguments, channels: int | None) -> Scaling:
    """(x - min) / (max - min), then to a range."""
    _check_float32(given)
    _check_channels(given, channels)
    low, high = given.get("minv", 0.0), given.get("maxv", 1.0)
    if (low, high) == (None, None):
        raise NoEqualError("it scales by a factor; do it to the volume first")
    if None not in (low, high) and (low, high) != (0, 1):
        raise NoEqualError("normalization 'minmax' goes from 0 to 1; do it to the volume first")
    return Scaling("minmax")


def _normalize_intensity(given: Arguments, channels: int | None) -> Scaling:
    """(x - mean) / standard deviation, of the population as here, or given numbers for them."""
    _check_float32(given)
    if given.get("nonzero"):
        raise NoEqualError(
            "it looks at voxels that are not 0 alone; normalization 'zscore' is nearest"
        )
    shift, scale = given.get("subtrahend"), given.get("divisor")
    if shift is None and scale is None:
        _check_channels(given, channels)
        return Scaling("zscore")
    if shift is None or scale is None:
        raise NoEqualError("it measures one of mean and standard deviation; measure both")
    return _fixed(_number(shift), _number(scale))


def _scale_range(given: Arguments, channels: int | None) -> Scaling:
    """From one range to another: (x - a_min) / (a_max - a_min) * (b_max - b_min) + b_min."""
    del channels
    _check_float32(given)
    low, high = _number(given.get("a_min")), _number(given.get("a_max"))
    bottom, top = given.get("b_min"), given.get("b_max")
    ends = (0.0, 1.0) if bottom is None or top is None else (_number(bottom), _number(top))
    if high <= low or ends[1] <= ends[0]:
        raise NoEqualError("its ranges do not rise; do it to the volume first")
    scale = (high - low) / (ends[1] - ends[0])
    return _fixed(low - ends[0] * scale, scale, clips=bool(given.get("clip")))


def _scale_percentiles(given: Arguments, channels: int | None) -> Scaling:
    """As `_scale_range`, from percentiles interpolated as `numpy.percentile` does."""
    _check_float32(given)
    _check_channels(given, channels)
    low, high = _number(given.get("lower")), _number(given.get("upper"))
    ends = (given.get("b_min"), given.get("b_max"))
    if given.get("relative") and (low, high) != (0, 100):
        raise NoEqualError("percentiles become 0 and 1 here; do it to the volume first")
    if None not in ends and ends != (0, 1):
        raise NoEqualError("percentiles become 0 and 1 here; do it to the volume first")
    if not 0 <= low < high <= 100:
        raise NoEqualError("its percentiles do not rise")
    return Scaling("percentile", percentiles=(low, high), clips=bool(given.get("clip")))


def _no_equal(given: Arguments, channels: int | None) -> Scaling:
    del given, channels
    raise NoEqualError("there is no such normalization here; do it to the volume first")


INTENSITIES: Mapping[str, Callable[[Arguments, int | None], Scaling]] = {
    "ScaleIntensity": _scale_intensity,
    "NormalizeIntensity": _normalize_intensity,
    "ScaleIntensityRange": _scale_range,
    "ScaleIntensityRangePercentiles": _scale_percentiles,
    "AdjustContrast": _no_equal,
    "ClipIntensityPercentiles": _no_equal,
    "HistogramNormalize": _no_equal,
    "ScaleIntensityFixedMean": _no_equal,
    "ShiftIntensity": _no_equal,
    "StdShiftIntensity": _no_equal,
    "ThresholdIntensity": _no_equal,
}
"""By name: what a transform comes to, or `NoEqualError`."""


def _fixed(shift: float, scale: float, clips: bool = False) -> Scaling:
    if scale == 0:  # MONAI does not divide then
        scale = 1.0
    if scale < 0:
        raise NoEqualError("it turns intensities round; do it to the volume first")
    return Scaling("fixed", shift, scale, clips=clips)


def _number(value: Any) -> float:
    """Return a number, also of several equal ones, one for each channel."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values or not all(isinstance(each, (int, float)) for each in values):
        raise NoEqualError("its numbers are not known; do it to the volume first")
    if any(each != values[0] for each in values) or not math.isfinite(values[0]):
        raise NoEqualError("all channels have one mean_std here; do it to the volume first")
    return float(values[0])


def _check_float32(given: Arguments) -> None:
    if str(given.get("dtype", "float32")) not in _FLOAT32:
        raise NoEqualError("it gives another type than float32; do it to the volume first")


def _check_channels(given: Arguments, channels: int | None) -> None:
    if channels != 1 and not given.get("channel_wise"):
        raise NoEqualError(
            "it has one statistic for all channels, where each has its own here; "
            "do it to the volume first"
        )
