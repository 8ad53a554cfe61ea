"""What a MONAI bundle says of patches and intensities, as settings here; the rest is named.

Networks of MONAI get their axes in the order of the array, so sizes are taken as they stand: the
first axis of the bundle is Z here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError
from napari_seamless.models.monai_bundle.config import BundleConfig
from napari_seamless.models.monai_bundle.expressions import Unresolved, is_component
from napari_seamless.models.monai_bundle.intensity import INTENSITIES, NoEqualError, chained
from napari_seamless.models.monai_bundle.steps import (
    BEFORE,
    CARRIES,
    NO_IMAGE,
    NO_PREDICTION,
    Step,
    cut,
    steps_of,
    text_of,
)

_PREPROCESSING = ("preprocessing", "dataset::transform", "preprocess", "pre_transforms")
_POSTPROCESSING = (
    "postprocessing",
    "evaluator::postprocessing",
    "postprocess",
    "post_transforms",
)
_SLIDING = ("SlidingWindowInferer", "SlidingWindowInfererAdapt")
_BLENDING = {"constant": "constant", "gaussian": "monai_gaussian"}
_PADDING = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


@dataclass
class Taken:
    """What was taken over.

    Attributes
    ----------
    settings : dict
        Of `InferenceConfig`, by name.
    notes : list of str
        What was not, or not wholly, a line each.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave(self, what: str, why: str) -> None:
        """Note that something was not taken over."""
        self.notes.append(f"not taken over: {what}: {why}")


def settings_of(
    config: BundleConfig, channels: int | None, dims: int | None, size: tuple[int, ...] | None
) -> Taken:
    """Return the settings that a bundle's inferer and transforms come to.

    Parameters
    ----------
    config : BundleConfig
        Of the bundle.
    channels, dims : int or None
        Of the input of the network, as far as they are known.
    size : tuple of int or None
        Of the input, as the bundle's metadata have it; for want of an inferer that has patches.
    """
    taken = Taken()
    _take_inferer(config.first("inferer", "evaluator::inferer"), dims, size, taken)
    if any(each in config for each in _PREPROCESSING):
        _take_preprocessing(list(steps_of(config.first(*_PREPROCESSING))), channels, taken)
    if any(each in config for each in _POSTPROCESSING):
        _take_postprocessing(list(steps_of(config.first(*_POSTPROCESSING))), taken)
    try:
        InferenceConfig(**{"patch_size": (8, 8, 8), **taken.settings})
    except ConfigError as error:
        taken.leave("the bundle's settings", str(error))
        taken.settings.clear()
    return taken


# ------------------------------------------------------------------------------- before the network


def _take_preprocessing(steps: list[Step], channels: int | None, taken: Taken) -> None:
    wanted = [step for step in steps if not step.only_for(NO_IMAGE) and step.name not in CARRIES]
    intensities = [step for step in wanted if step.name in INTENSITIES]
    for step in wanted:
        if step.name not in INTENSITIES:
            taken.leave(step.text, BEFORE.get(step.name, "do it to the volume first"))
    if any(not step.name for step in wanted):
        return  # there may be more behind it
    found = []
    for step in intensities:
        try:
            found.append(INTENSITIES[step.name](step.arguments, channels))
        except NoEqualError as error:
            taken.leave(step.text, str(error))
    if len(found) < len(intensities):
        return
    try:
        scaling = chained(found)
    except NoEqualError as error:
        taken.leave(", then ".join(step.text for step in intensities), str(error))
        return
    taken.settings |= scaling.settings()
    if scaling.clips:
        taken.notes.append(
            f"{intensities[-1].text} was taken over, but values beyond its range are not clipped "
            "here; clip the volume first if it has such"
        )


# -------------------------------------------------------------------------------- after the network


def _take_postprocessing(steps: list[Step], taken: Taken) -> None:
    taken.settings["activation"] = "none"
    for step in steps:
        saves = step.name.startswith("Save")
        if saves or step.name in CARRIES or step.only_for(NO_PREDICTION):
            continue
        try:
            if step.name not in ("Activations", "AsDiscrete"):
                raise NoEqualError("do it to the result")
            found = _activation(step) if step.name == "Activations" else _labelling(step)
            if any(taken.settings.get(name, "none") != "none" for name in found):
                raise NoEqualError("it is the second of its kind")
        except NoEqualError as error:
            taken.leave(step.text, str(error))
        else:
            taken.settings |= found


def _activation(step: Step) -> dict[str, Any]:
    chosen = {name: step.argument(name) for name in ("sigmoid", "softmax", "other")}
    named = [name for name, value in chosen.items() if value]
    if chosen["other"] == "$torch.tanh" and named == ["other"]:
        return {"activation": "tanh", "blend_logits": True}
    if any(isinstance(value, Unresolved) for value in chosen.values()) or "other" in named:
        raise NoEqualError("do it to the result")
    if len(named) > 1 or step.argument("dim") not in (None, 0):
        raise NoEqualError("there is one activation, over channels, here")
    # A bundle's inferer blends what the network makes, and the activation follows.
    return {"activation": named[0], "blend_logits": True} if named else {}


def _labelling(step: Step) -> dict[str, Any]:
    argmax, threshold = step.argument("argmax"), step.argument("threshold")
    if isinstance(argmax, Unresolved) or not isinstance(threshold, (int, float, type(None))):
        raise NoEqualError("do it to the result")
    if argmax:
        return {"labelling": "argmax"}
    if threshold is None or threshold is False:
        return {}
    return {"labelling": "threshold", "threshold": float(threshold)}


# ------------------------------------------------------------------------------------------ patches


def _take_inferer(
    inferer: Any, dims: int | None, size: tuple[int, ...] | None, taken: Taken
) -> None:
    name = str(inferer["_target_"]).rpartition(".")[2] if is_component(inferer) else None
    if name in _SLIDING:
        _take_sliding(inferer, dims, taken)
    elif name == "SliceInferer":
        _take_slices(inferer, taken)
    elif name not in (None, "SimpleInferer"):
        taken.leave(text_of(inferer), "patches are put together as usual here")
    elif isinstance(inferer, Unresolved):
        taken.leave(cut(inferer), "patches are put together as usual here")
    if "patch_size" not in taken.settings and size is not None:
        taken.settings["patch_size"] = (1,) * (3 - len(size)) + size
        taken.notes.append(
            "patch_size is the size of the input in its metadata; the network may take others"
        )


def _take_sliding(inferer: Mapping[str, Any], dims: int | None, taken: Taken) -> None:
    """Take over what MONAI's sliding window does, its defaults included."""
    patch = _sizes(inferer.get("roi_size"), dims)
    overlap = _shares(inferer.get("overlap", 0.25), 3 if patch is None else len(patch))
    blending = _BLENDING.get(str(inferer.get("mode", "constant")))
    padding = _PADDING.get(str(inferer.get("padding_mode", "constant")))
    batch = inferer.get("sw_batch_size")
    if padding == "constant" and inferer.get("cval", 0) != 0:
        padding = None
    found = {
        "patch_size": None if patch is None else (1,) * (3 - len(patch)) + patch,
        "overlap": overlap,
        "blending": blending,
        "padding": padding,
        "batch_size": batch if _is_size(batch) else None,
    }
    taken.settings |= {name: value for name, value in found.items() if value is not None}
    if blending == "monai_gaussian" and "sigma_scale" in inferer:
        taken.settings["blending_arguments"] = {"sigma_scale": inferer["sigma_scale"]}
    missed = [name for name, value in found.items() if value is None and name != "batch_size"]
    if missed:
        taken.leave(f"{', '.join(missed)} of {text_of(inferer)}", "choose it")


def _take_slices(inferer: Mapping[str, Any], taken: Taken) -> None:
    _take_sliding(inferer, 2, taken)
    axis = inferer.get("spatial_dim", 0)
    if axis != 0:
        taken.leave(
            f"spatial_dim={axis!r} of {text_of(inferer)}",
            "planes are taken along the first axis here; turn the volume so, or choose planes",
        )


def _sizes(roi: Any, dims: int | None) -> tuple[int, ...] | None:
    if _is_size(roi) and dims in (2, 3):
        return (roi,) * dims
    if isinstance(roi, (list, tuple)) and len(roi) in (2, 3) and all(map(_is_size, roi)):
        return tuple(roi)
    return None


def _shares(overlap: Any, dims: int) -> float | tuple[float, ...] | None:
    shares = overlap if isinstance(overlap, (list, tuple)) else [overlap]
    if not all(isinstance(share, (int, float)) and 0 <= share < 1 for share in shares):
        return None
    if not isinstance(overlap, (list, tuple)):
        return float(overlap)
    each = (0.0,) * (3 - dims) + tuple(map(float, shares))
    return each if len(each) == 3 else None


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
