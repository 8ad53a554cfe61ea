"""What a bioimage.io package does to voxels around its network, as settings where there is one.

Statistics are of a whole volume here and there, so most of it has an equal:

    zero_mean_unit_variance         normalization "zscore"      (x - mean) / (std + eps)
    scale_range                     "percentile" or "minmax"    (x - low) / (high - low + eps)
    fixed_zero_mean_unit_variance   "fixed"                     (x - mean) / std
    scale_linear                    "fixed"                     x * gain + offset
    sigmoid, softmax                activation
    binarize                        labelling "threshold"       x > threshold

eps is 1e-6 unless the package says otherwise, and left out here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from napari_seamless.models.bioimageio.axes import Image

_NO_EPS = 1e-5
"""An eps larger than this is worth a note: voxels may have a spread as small as 1."""

_FLOATS = ("float32", "float64")


@dataclass(frozen=True)
class Taken:
    """What was taken over.

    Attributes
    ----------
    settings : mapping
        Settings of `InferenceConfig`.
    notes : tuple of str
        What was not taken over, or is not quite the same.
    """

    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Fixed:
    """(x - mean) / std."""

    mean: float
    std: float

    @property
    def settings(self) -> dict[str, Any]:
        return {"normalization": "fixed", "mean_std": (self.mean, self.std)}

    def then(self, after: _Fixed) -> _Fixed:
        """Return both in one: ((x - m) / s - n) / t = (x - (m + s n)) / (s t)."""
        return _Fixed(self.mean + self.std * after.mean, self.std * after.std)


@dataclass(frozen=True)
class _Unchanged:
    """As the voxels are."""

    settings: ClassVar[Mapping[str, Any]] = {"normalization": "none"}


@dataclass(frozen=True)
class _Measured:
    """By statistics of the volume."""

    settings: Mapping[str, Any]
    eps: float


_Step = _Fixed | _Measured


def before(image: Image) -> Taken:
    """Return the settings that do what a package does to its network's input."""
    steps: list[_Step] = []
    known, unknown = [], []
    for place, each in enumerate(image.tensor.preprocessing):
        if _is_silent_cast(each, place, image.tensor.preprocessing):
            continue
        step = _normalization(each, image)
        if step is None:
            unknown.append(named(each))
        else:
            steps.append(step)
            known.append(named(each))
    whole = _composed(steps) if steps else _Unchanged()
    if whole is None:
        return Taken({"normalization": "none"}, _left_out([*known, *unknown]))
    return Taken(whole.settings, (*_left_out(unknown), *_remarks(whole, image, known)))


def network_dtype(image: Image) -> str:
    """Return the type of the voxels that the network is given."""
    casts = [step for step in image.tensor.preprocessing if step.id == "ensure_dtype"]
    return str(casts[-1].kwargs.dtype if casts else image.tensor.dtype)


def after(images: Sequence[Image]) -> Taken:
    """Return the settings that do what a package does to its network's outputs."""
    found = [_activation(image) for image in images]
    notes = _left_out([name for each in found for name in each.left])
    settings: dict[str, Any] = {"activation": _in_one([each.activation for each in found], images)}
    if found[0].threshold is not None:
        settings |= {"labelling": "threshold", "threshold": found[0].threshold}
    others = [
        f"binarize of {image.name}"
        for image, each in list(zip(images, found, strict=True))[1:]
        if each.threshold is not None  # labels are made of the first output only
    ]
    return Taken(settings, notes + _left_out(others))


def refused(images: Sequence[Image]) -> tuple[str, ...]:
    """Return the code of its own that a package would run on its outputs."""
    return tuple(
        f"{step.source}:{step.callable}"
        for image in images
        for step in image.tensor.postprocessing
        if step.id == "custom"
    )


def named(step: Any) -> str:
    """Return a step as it is called in messages: "clip(min=0, max=1)"."""
    if step.id == "custom":
        return f"custom({step.callable} in {step.source})"
    arguments = step.kwargs.model_dump(mode="json", exclude_none=True)
    return f"{step.id}({', '.join(f'{name}={_short(arguments[name])}' for name in arguments)})"


# ------------------------------------------------------------------------------------------ input


def _normalization(step: Any, image: Image) -> _Step | None:
    """Return a step that changes the values of the input, or None if it has no equal."""
    kwargs = step.kwargs
    if step.id == "fixed_zero_mean_unit_variance":
        mean, std = _same(kwargs.mean), _same(kwargs.std)
        return None if mean is None or std is None else _Fixed(mean, std)
    if step.id == "scale_linear":
        gain, offset = _same(kwargs.gain), _same(kwargs.offset)
        if gain is None or offset is None or gain <= 0:
            return None
        return _Fixed(0.0 - offset / gain, 1 / gain)  # 0.0 - keeps zero from becoming -0
    if step.id == "zero_mean_unit_variance" and _is_per_channel(step, image):
        return _Measured({"normalization": "zscore"}, kwargs.eps)
    if step.id == "scale_range" and _is_per_channel(step, image):
        return _percentiles(kwargs, image)
    return None


def _percentiles(kwargs: Any, image: Image) -> _Step | None:
    if getattr(kwargs, "reference_tensor", None) not in (None, image.tensor.id):
        return None
    limits = (kwargs.min_percentile, kwargs.max_percentile)
    if limits == (0, 100):
        return _Measured({"normalization": "minmax"}, kwargs.eps)
    return _Measured({"normalization": "percentile", "percentiles": limits}, kwargs.eps)


def _is_per_channel(step: Any, image: Image) -> bool:
    """Return whether the statistics of a step are of each channel by itself, all voxels of it."""
    axes = step.kwargs.axes
    if axes is None:
        return image.channels == 1
    joint = {letter for letter in image.axes if image.axis(letter).id in axes}
    return joint >= set(image.spatial) and ("c" not in joint or image.channels == 1)


def _composed(steps: Sequence[_Step]) -> _Step | None:
    """Return all steps in one, or None if no setting does the same.

    Statistics go with no other step: the reference implementation takes those of the voxels before
    all steps, the format says those of the voxels that the step is given.
    """
    whole = steps[0]
    for step in steps[1:]:
        if isinstance(whole, _Measured) or isinstance(step, _Measured):
            return None
        whole = whole.then(step)
    return whole


def _remarks(whole: object, image: Image, known: Sequence[str]) -> tuple[str, ...]:
    """Return in what the setting differs from the step that it stands for."""
    if not isinstance(whole, _Measured):
        return ()
    remarks = []
    if whole.eps > _NO_EPS:
        remarks.append(f"{known[-1]} was taken over without its eps")
    if "z" not in image.axes:
        remarks.append(
            f"{known[-1]} was taken over with statistics of the whole volume, not of each plane"
        )
    return tuple(remarks)


def _is_silent_cast(step: Any, place: int, steps: Sequence[Any]) -> bool:
    """Return whether a step is a cast that changes nothing, or that the network's own cast does.

    The first one says which voxels are expected, the last one what the network is given.
    """
    if step.id != "ensure_dtype":
        return False
    return step.kwargs.dtype in _FLOATS or place in (0, len(steps) - 1)


# ----------------------------------------------------------------------------------------- output


@dataclass(frozen=True)
class _After:
    activation: str
    threshold: float | None
    left: tuple[str, ...]


def _activation(image: Image) -> _After:
    """Return what is done to an output, up to the first step that has no equal."""
    activation, threshold = "none", None
    steps = list(image.tensor.postprocessing)
    for place, step in enumerate(steps):
        if step.id == "ensure_dtype" and (step.kwargs.dtype in _FLOATS or threshold is not None):
            continue
        if activation == "none" and threshold is None and _is_activation(step, image):
            activation = step.id
        elif (
            step.id == "binarize" and threshold is None and _same(step.kwargs.threshold) is not None
        ):
            threshold = _same(step.kwargs.threshold)
        else:
            left = (each for each in steps[place:] if each.id != "ensure_dtype" or each is step)
            return _After(activation, threshold, tuple(named(each) for each in left))
    return _After(activation, threshold, ())


def _is_activation(step: Any, image: Image) -> bool:
    if step.id == "softmax":
        return "c" in image.axes and step.kwargs.axis == image.axis("c").id
    return bool(step.id == "sigmoid")


def _in_one(activations: Sequence[str], images: Sequence[Image]) -> str:
    """Return one setting for the channels of all outputs, which lie side by side."""
    if len(set(activations)) == 1:
        return activations[0]
    ranges, first = [], 0
    for activation, image in zip(activations, images, strict=True):
        if activation != "none":
            ranges.append(f"{first}:{first + image.channels}={activation}")
        first += image.channels
    return ",".join(ranges)


def _left_out(names: Sequence[str]) -> tuple[str, ...]:
    return (f"not taken over: {', '.join(names)}",) if names else ()


def _same(value: Any) -> float | None:
    """Return the number that a value is, or that all of a list are."""
    values = value if isinstance(value, list) else [value]
    return float(values[0]) if all(each == values[0] for each in values) else None


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    return str(value)
