"""The settings with which the engine computes what nnU-Net v2's predictor computes.

After nnU-Net 2.8: `nnUNetPredictor`, `compute_steps_for_sliding_window`, `compute_gaussian`,
`LabelManager` and `default_normalization_schemes`. No torch in here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.nnunet.plans import Plan, intensities_of

OVERLAP = 0.5
"""nnU-Net moves on by half a patch at most (tile_step_size), evenly."""

LEAST_STD = 1e-8
"""It divides by no smaller standard deviation."""

Limits = tuple[tuple[float, float], ...]
"""The lowest and highest value of each channel, after normalisation."""


@dataclass(frozen=True)
class Known:
    """What follows from a plan.

    Attributes
    ----------
    settings : mapping
        Of `InferenceConfig`, by name.
    limits : tuple or None
        What normalised values are clipped to.
    notes : tuple of str
        What differs from nnU-Net, a line each.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits | None = None
    notes: tuple[str, ...] = ()


def known_of(plan: Plan, mirror_axes: tuple[int, ...]) -> Known:
    """Return the settings that a plan stands for.

    Parameters
    ----------
    plan : Plan
        The configuration.
    mirror_axes : tuple of int
        Axes of the network along which the checkpoint allows mirroring.

    Raises
    ------
    ModelError
        If the plan is not whole, or there are no such axes.
    """
    axes, dataset = plan.axes, plan.dataset
    normalization = _normalization(plan)
    settings = {
        "patch_size": axes.triple(plan.configuration.patch_size),
        "overlap": OVERLAP,
        "grid": "even",
        "padding": "constant",
        "blending": "nnunet_gaussian",
        "blend_logits": True,
        "activation": "sigmoid" if dataset.has_regions else "softmax",
        "labelling": "none" if dataset.has_regions else "argmax",
        "tta": _tta(plan, mirror_axes),
        **normalization.settings,
    }
    if axes.plane is not None:
        settings["planes"] = axes.plane
    notes = (*_spacing_note(plan), *normalization.notes, *_regions_note(plan))
    return Known(settings, normalization.limits, notes)


def _tta(plan: Plan, mirror_axes: tuple[int, ...]) -> str:
    dims = len(plan.axes.of)
    if not set(mirror_axes) <= set(range(dims)):
        raise ModelError(
            f"{plan.where.parent} allows mirroring along axes {list(mirror_axes)} of a network "
            f"with {dims} axes; the checkpoint does not belong to these plans"
        )
    return f"flip:{plan.axes.letters(mirror_axes)}" if mirror_axes else "none"


def _spacing_note(plan: Plan) -> tuple[str, ...]:
    spacing = plan.configuration.spacing
    if len(spacing) != len(plan.axes.of):
        return ()
    along = dict(sorted(zip(plan.axes.of, spacing, strict=True)))
    sizes = ", ".join(f"{size:.4g}" for size in along.values())
    letters = ", ".join("ZYX"[axis] for axis in along)
    return (
        f"expects voxels of ({sizes}) along ({letters}), usually in mm; nnU-Net would resample to "
        "that: resample the volume first if its voxels are of another size",
    )


def _regions_note(plan: Plan) -> tuple[str, ...]:
    if not plan.dataset.has_regions:
        return ()
    order = list(plan.dataset.regions_class_order or ())
    return (
        "channels are regions that may overlap: nnU-Net makes labels of them by writing "
        f"{order or 'regions_class_order'} one after the other where a channel exceeds 0.5; here "
        "they stay channels",
    )


# ------------------------------------------------------------------------------- normalisation


def _normalization(plan: Plan) -> Known:
    """Return the one normalisation of all channels, if there is one."""
    names = list(plan.dataset.channel_names.values())
    schemes = plan.configuration.normalization_schemes
    if len(schemes) != len(names):
        raise ModelError(
            f"{plan.where} normalises {len(schemes)} channels, but dataset.json names "
            f"{len(names)} ({', '.join(names)}); take both from the same training"
        )
    channels = [_channel(plan, index, scheme) for index, scheme in enumerate(schemes)]
    same = [each for each in channels if each is not None and each.settings == _of(channels[0])]
    if not same or len(same) < len(channels):
        return Known({"normalization": "none"}, None, (_by_hand(plan, names),))
    limits = tuple(limit for each in same for limit in each.limits or ())
    notes = (*_clip_note(limits), *_crop_note(plan))
    return Known(same[0].settings, limits or None, notes)


def _of(known: Known | None) -> Mapping[str, Any]:
    return {} if known is None else known.settings


def _channel(plan: Plan, index: int, scheme: str) -> Known | None:
    """Return what is done to one channel; None if the engine cannot do it."""
    if scheme == "CTNormalization":
        known = intensities_of(plan, index)
        mean, std = known["mean"], max(known["std"], LEAST_STD)
        ends = (known["percentile_00_5"], known["percentile_99_5"])
        low, high = ((end - mean) / std for end in ends)
        return Known({"normalization": "fixed", "mean_std": (mean, std)}, ((low, high),))
    simple: dict[str, dict[str, Any]] = {
        "ZScoreNormalization": {"normalization": "zscore"},
        "NoNormalization": {"normalization": "none"},
        "RescaleTo01Normalization": {"normalization": "minmax"},
        "RGBTo01Normalization": {"normalization": "fixed", "mean_std": (0.0, 255.0)},
    }
    return Known(simple[scheme]) if scheme in simple else None


def _by_hand(plan: Plan, names: list[str]) -> str:
    each = ", ".join(
        f"{name} by {scheme}"
        for name, scheme in zip(names, plan.configuration.normalization_schemes, strict=True)
    )
    return (
        f"no normalization here does what nnU-Net does ({each}, with the numbers in "
        f"{plan.where.name}): normalise the channels of the volume first, and keep none"
    )


def _clip_note(limits: Limits) -> tuple[str, ...]:
    if not limits:
        return ()
    return (
        "as in nnU-Net, values beyond the 0.5 and 99.5 percentiles of the training data are "
        "clipped to them, by the network itself and after the normalization that was taken from "
        "the file; another normalization would make that wrong",
    )


def _crop_note(plan: Plan) -> tuple[str, ...]:
    measured = {"ZScoreNormalization", "RescaleTo01Normalization"}
    if measured.isdisjoint(plan.configuration.normalization_schemes):
        return ("nnU-Net crops to where the volume is not 0, and finds only background beyond",)
    inside = any(plan.configuration.use_mask_for_norm)
    return (
        "nnU-Net crops to where the volume is not 0 before it measures values, and finds only "
        "background beyond; here the whole volume counts: crop it first if it has empty margins",
        *(
            (
                "nnU-Net normalises only voxels inside of what is not 0 (use_mask_for_norm), and "
                "leaves the others 0; here all voxels count and change",
            )
            if inside
            else ()
        ),
    )
