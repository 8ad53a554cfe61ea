"""What is known of a blended volume, under the names that a caller and a file have for it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.accumulator import BlendAccumulator
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.outputs import Channels, file_name
from napari_seamless.engine.store import ArraySpec
from napari_seamless.engine.values import labelled, restored, saved
from napari_seamless.engine.volume_plan import VolumePlan

Volume = LazyArray | NDArray[Any]
"""An array-like (C, Z, Y, X)."""

Part = Callable[[slice], Volume]
"""Returns some of the channels that are blended."""

LABELS = "labels"
"""The name of the labels."""

_DEVIATIONS = {"spread", "disagreement"}


def part_of(accumulator: BlendAccumulator) -> Part:
    """Return the channels of a volume: arrays if all is in memory, else lazy, NaN where missing."""

    def part(channels: slice) -> Volume:
        if accumulator.is_complete and accumulator.is_in_memory:
            return accumulator.result()[channels]
        return accumulator.live(channels)

    return part


def outputs_of(part: Part, channels: Channels, config: InferenceConfig) -> dict[str, Volume]:
    """Return all that is known of a volume, float32 (C, Z, Y, X) but for labels.

    Parameters
    ----------
    part : callable
        Returns some of the channels that are blended; `part_of`, or of a chunk alone.
    channels : Channels
        Which channels are what.
    config : InferenceConfig
        The settings.

    Returns
    -------
    dict of str to array-like
        "main": the prediction, that is, the head that is shown. "spread": its standard deviation
        over variants, if asked for. "disagreement": that over patches, if asked for. "labels": if
        asked for, uint8 or uint16. "heads/NAME": every other head.

    Raises
    ------
    ConfigError
        If the labels asked for would be 0 everywhere.
    """
    main = part(channels.heads[channels.shown])
    outputs = {"main": main}
    if channels.has_spread:
        outputs["spread"] = part(channels.spread_of(channels.shown))
    if channels.has_disagreement:
        outputs["disagreement"] = part(channels.disagreement)
    if config.labelling == "argmax" and main.shape[0] == 1:
        raise ConfigError(
            "labelling 'argmax' of a prediction with one channel is 0 everywhere; "
            "use labelling 'threshold'"
        )
    if config.labelling != "none":
        outputs[LABELS] = labelled(main, config.labelling, config.threshold)
    for name, head in channels.heads.items():
        if name != channels.shown:
            outputs[f"heads/{file_name(name)}"] = part(head)
    return outputs


def as_saved(outputs: Mapping[str, Volume], config: InferenceConfig) -> dict[str, Volume]:
    """Return the outputs of a volume as the numbers that are written.

    Labels stay as they are, and so do a spread and a disagreement of logits: they have another unit
    than the finished prediction.
    """
    return {
        name: array
        if _stays(name, config)
        else saved(array, config.output_dtype, config.intensity_scale, config.fill_value)
        for name, array in outputs.items()
    }


def _stays(name: str, config: InferenceConfig) -> bool:
    return name == LABELS or (name in _DEVIATIONS and config.blend_logits)


def as_stored(
    values: NDArray[np.float32], channels: Channels, config: InferenceConfig
) -> dict[str, NDArray[Any]]:
    """Return the arrays that are stored of finished voxels (C, z, y, x) of all channels."""
    outputs = outputs_of(lambda part: values[part], channels, config)
    return {name: np.asarray(array) for name, array in as_saved(outputs, config).items()}


def specs_of(channels: Channels, config: InferenceConfig) -> dict[str, ArraySpec]:
    """Return what is stored of a volume, by name.

    Raises
    ------
    ConfigError
        If the labels asked for would be 0 everywhere.
    """
    missing = np.full((channels.total, 1, 1, 1), np.nan, np.float32)
    return {
        name: ArraySpec(
            channels=array.shape[0],
            dtype=array.dtype,
            is_labels=name == LABELS,
            fill=0 if array.dtype.kind == "f" else int(array.flat[0]),
        )
        for name, array in as_stored(missing, channels, config).items()
    }


def place_of(wanted: slice, channels: Channels) -> tuple[str, slice]:
    """Return the stored array that holds some of the channels, and which of its own they are."""
    stored = {"main": channels.heads[channels.shown], "spread": channels.spread_of(channels.shown)}
    if channels.has_disagreement:
        stored["disagreement"] = channels.disagreement
    stored |= {f"heads/{file_name(name)}": head for name, head in channels.heads.items()}
    for name, held in stored.items():
        if held.start <= wanted.start and wanted.stop <= held.stop:
            return name, slice(wanted.start - held.start, wanted.stop - held.start)
    raise ValueError(f"channels {wanted.start} to {wanted.stop} are not stored together")


def as_predicted(name: str, values: NDArray[Any], config: InferenceConfig) -> NDArray[np.float32]:
    """Return stored voxels of an array as the prediction that they were, as far as they tell."""
    if _stays(name, config):
        return values.astype(np.float32)
    return restored(values, config.output_dtype, config.intensity_scale)


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
