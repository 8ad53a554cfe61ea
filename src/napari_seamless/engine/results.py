"""What is known of a blended volume, under the names that a caller and a file have for it."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from napari_seamless.engine.accumulator import BlendAccumulator
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.outputs import Channels, file_name
from napari_seamless.engine.values import labelled, saved
from napari_seamless.engine.volume_plan import VolumePlan

Volume = LazyArray | NDArray[Any]
"""An array-like (C, Z, Y, X)."""


def outputs_of(
    accumulator: BlendAccumulator, channels: Channels, config: InferenceConfig
) -> dict[str, Volume]:
    """Return all that is known of a volume, float32 (C, Z, Y, X) but for labels.

    Returns
    -------
    dict of str to array-like
        "main": the prediction, that is, the head that is shown. "spread": its standard deviation
        over variants, if asked for. "labels": if asked for, uint8 or uint16. "heads/NAME": every
        other head. Arrays where the volume is complete; before that lazy, NaN where uncovered.

    Raises
    ------
    ConfigError
        If the labels asked for would be 0 everywhere.
    """
    main = _part(accumulator, channels.heads[channels.shown])
    outputs = {"main": main}
    if channels.has_spread:
        outputs["spread"] = _part(accumulator, channels.spread_of(channels.shown))
    if config.labelling == "argmax" and main.shape[0] == 1:
        raise ConfigError(
            "labelling 'argmax' of a prediction with one channel is 0 everywhere; "
            "use labelling 'threshold'"
        )
    if config.labelling != "none":
        outputs["labels"] = labelled(main, config.labelling, config.threshold)
    for name, part in channels.heads.items():
        if name != channels.shown:
            outputs[f"heads/{file_name(name)}"] = _part(accumulator, part)
    return outputs


def as_saved(outputs: Mapping[str, Volume], config: InferenceConfig) -> dict[str, Volume]:
    """Return the outputs of a volume as the numbers that are written.

    Labels stay as they are, and so does a spread of logits: it has another unit than the finished
    prediction.
    """
    as_they_are = {"labels", "spread"} if config.blend_logits else {"labels"}
    return {
        name: array
        if name in as_they_are
        else saved(array, config.output_dtype, config.intensity_scale)
        for name, array in outputs.items()
    }


def facts_of(
    volume: VolumePlan, config: InferenceConfig, status: str, done: int, channels: Channels | None
) -> dict[str, Any]:
    """Return what a file or layer says of its volume, as JSON has it.

    Parameters
    ----------
    volume : VolumePlan
        For the name of its source, and where the prediction lies in that of the whole volume.
    config : InferenceConfig
        The settings.
    status : str
        "running", "complete", "partial" or "failed".
    done : int
        Patches blended so far; their total goes beside it.
    channels : Channels or None
        For the names of the heads, once they are known.
    """
    facts = {"status": status, "done": done, "total": len(volume.grid), **volume.facts}
    heads = {} if channels is None else {"heads": list(channels.heads)}
    return {**facts, **heads, "config": config.model_dump(mode="json")}


def _part(accumulator: BlendAccumulator, channels: slice) -> Volume:
    if accumulator.is_complete:
        return accumulator.result()[channels]
    return accumulator.live(channels)
