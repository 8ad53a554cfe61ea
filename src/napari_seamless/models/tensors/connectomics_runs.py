"""Settings of inference in configurations of PyTorch Connectomics that have an equal here.

Only what is certain is taken over; the rest is named in notes.
"""

from collections.abc import Mapping
from typing import Any

_Taken = tuple[dict[str, Any], tuple[str, ...]]

_WINDOWS_1 = ("gaussian", "bump")
_WINDOWS_2 = {
    "bump": "wu_bump",
    "constant": "constant",
    "distance_transform": "distance_transform",
}
_VARIANTS_1 = {None: "none", 0: "none", 4: "flip:yx", 8: "flip:yx+turn:yx", 16: "flip:zyx+turn:yx"}
"""Flips along X and Y; with their transposition; with flips along Z."""
_ACTIVATIONS = ("none", "sigmoid", "softmax", "tanh")
_CHANNELS_1 = {"0": 1, "1": 3, "2": 3, "3": 1, "4": 1, "6": 1, "7": 2}
"""Channels of targets, from `SplitActivation` in its `connectomics/model/utils/misc.py`."""
_PADDING_2 = {"reflect": "reflect", "replicate": "edge", "constant": "constant"}


def settings_1(configuration: Mapping[str, Any]) -> _Taken:
    """Return settings, and notes on what is not taken over, from version 1.x."""
    model = _section(configuration, "MODEL")
    data = _section(configuration, "DATASET")
    run = _section(configuration, "INFERENCE")
    settings: dict[str, Any] = {}
    notes: list[str] = []
    size = _sizes(run.get("INPUT_SIZE")) or _sizes(model.get("INPUT_SIZE"))
    if size is not None:
        settings["patch_size"] = size
        _overlap_1(size, run.get("STRIDE"), settings, notes)
    if run.get("BLENDING") in _WINDOWS_1:
        settings["blending"] = run["BLENDING"]
    if isinstance(run.get("DO_EVAL"), bool):
        settings["do_eval"] = run["DO_EVAL"]
    _activation_1(model, run, settings, notes)
    _variants_1(run, settings)
    _normalization_1(data, settings, notes)
    _scales_1(data, run, notes)
    return settings, tuple(notes)


def settings_2(configuration: Mapping[str, Any]) -> _Taken:
    """Return settings, and notes on what is not taken over, from version 2.x."""
    run = _section(configuration, "inference")
    window = _section(run, "window") or _section(run, "sliding_window")
    loader = _section(_section(configuration, "data"), "dataloader")
    model = _section(configuration, "model")
    settings: dict[str, Any] = {}
    notes: list[str] = []
    for value in (window.get("window_size"), loader.get("patch_size"), model.get("input_size")):
        size = _sizes(value)
        if size is not None and "patch_size" not in settings:
            settings["patch_size"] = size
    overlap = window.get("overlap")
    if isinstance(overlap, float) and 0 <= overlap < 1:
        settings["overlap"] = overlap
    blending, padding = str(window.get("blending")), str(window.get("padding_mode"))
    if blending in _WINDOWS_2:
        settings["blending"] = _WINDOWS_2[blending]
    if padding in _PADDING_2:
        settings["padding"] = _PADDING_2[padding]
    halo = _sizes(window.get("target_context"), least=0)
    if halo is not None:
        settings["halo"] = halo
    _activation_2(_section(run, "model") or run, settings, notes)
    _normalization_2(_section(_section(configuration, "data"), "image_transform"), settings, notes)
    if _section(run, "test_time_augmentation").get("enabled"):
        notes.append("its test-time augmentation is not taken over; choose tta")
    return settings, tuple(notes)


def _overlap_1(
    size: tuple[int, ...], stride: Any, settings: dict[str, Any], notes: list[str]
) -> None:
    steps = _sizes(stride)
    if steps is None:
        return
    overlap = [whole - step for whole, step in zip(size, steps, strict=True)]
    if min(overlap) < 0:
        notes.append(f"its STRIDE {list(steps)} is larger than the patch, and not taken over")
        return
    settings["overlap"] = tuple(each or 0.0 for each in overlap)


def _activation_1(
    model: Mapping[str, Any], run: Mapping[str, Any], settings: dict[str, Any], notes: list[str]
) -> None:
    """Set the activation of each target's channels."""
    names = run.get("OUTPUT_ACT")
    if not isinstance(names, list) or not names:
        return
    if not all(name in _ACTIVATIONS for name in names) or "tanh" in names:
        notes.append(f"its activations {names} have no equal here (its tanh ends in 0 to 1)")
        return
    if set(names) in ({"none"}, {"sigmoid"}) or len(names) == 1:
        settings["activation"] = names[0]
        return
    targets = model.get("TARGET_OPT")
    channels = [_CHANNELS_1.get(str(each)) for each in targets] if targets else []
    if len(channels) != len(names) or None in channels:
        notes.append(f"its activations {names} are per target; choose activation")
        return
    settings["activation"] = _ranges(names, [each or 0 for each in channels])


def _ranges(names: list[str], channels: list[int]) -> str:
    stops = [sum(channels[: index + 1]) for index in range(len(channels))]
    return ",".join(
        f"{stop - count}:{stop}={name}"
        for name, count, stop in zip(names, channels, stops, strict=True)
        if name != "none"
    )


def _variants_1(run: Mapping[str, Any], settings: dict[str, Any]) -> None:
    number = run.get("AUG_NUM")
    if "AUG_NUM" not in run or not isinstance(number, int | None) or number not in _VARIANTS_1:
        return
    settings["tta"] = _VARIANTS_1[number]
    if run.get("AUG_MODE") in ("mean", "min", "max"):
        settings["tta_mode"] = run["AUG_MODE"]


def _normalization_1(data: Mapping[str, Any], settings: dict[str, Any], notes: list[str]) -> None:
    """Set what version 1.x does to voxels: divide by 255, subtract MEAN, divide by STD."""
    mean, std = data.get("MEAN"), data.get("STD")
    match = data.get("MATCH_ACT", "none")
    if match == "sigmoid":
        mean, std = 0.0, 1.0
    elif match == "tanh":
        mean, std = 0.5, 0.5
    if not isinstance(mean, int | float) or not isinstance(std, int | float) or std <= 0:
        return
    settings["normalization"] = "fixed"
    settings["mean_std"] = (255.0 * mean, 255.0 * std)
    notes.append(
        "normalization is that of uint8 volumes; it stretches others to 0 to 255 first, so give "
        "those as uint8"
    )


def _scales_1(data: Mapping[str, Any], run: Mapping[str, Any], notes: list[str]) -> None:
    for section, key in ((data, "DATA_SCALE"), (data, "IMAGE_SCALE"), (run, "OUTPUT_SCALE")):
        scale = section.get(key)
        if isinstance(scale, list) and any(each != 1 for each in scale):
            notes.append(f"its {key} {scale} is not taken over; resample the volume yourself")


def _activation_2(model: Mapping[str, Any], settings: dict[str, Any], notes: list[str]) -> None:
    specified = model.get("channel_activations")
    if not isinstance(specified, list) or not specified:
        return
    parts = []
    for each in specified:
        channels = each.get("channels") if isinstance(each, Mapping) else None
        name = each.get("activation") if isinstance(each, Mapping) else None
        if isinstance(channels, int) and channels >= 0:
            channels = f"{channels}:{channels + 1}"
        if name not in _ACTIVATIONS or not _is_range(channels):
            notes.append("its channel_activations are not taken over; choose activation")
            return
        parts.append(name if channels == ":" else f"{channels}={name}")
    if len(parts) == 1 or all("=" in part for part in parts):
        settings["activation"] = ",".join(parts)


def _is_range(channels: Any) -> bool:
    if not isinstance(channels, str):
        return False
    start, colon, stop = channels.partition(":")
    return channels == ":" or (bool(colon) and start.isdigit() and stop.isdigit())


def _normalization_2(image: Mapping[str, Any], settings: dict[str, Any], notes: list[str]) -> None:
    kind = image.get("normalize")
    if kind == "divide-255":
        settings |= {"normalization": "fixed", "mean_std": (0.0, 255.0)}
    elif kind == "none":
        settings["normalization"] = "none"
    elif isinstance(kind, str):
        notes.append(f"its normalisation {kind!r} is not taken over; choose normalization")


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name)
    return section if isinstance(section, Mapping) else {}


def _sizes(value: Any, least: int = 1) -> tuple[int, int, int] | None:
    """Return three whole numbers (Z, Y, X), or None if it is something else."""
    if not isinstance(value, list) or len(value) != 3:
        return None
    if not all(type(each) is int and each >= least for each in value):
        return None
    return value[0], value[1], value[2]
