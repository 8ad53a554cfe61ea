"""What a MONAI bundle says of itself: `configs/metadata.json`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.archive import Files
from napari_seamless.models.monai_bundle.config import CONFIG_BYTES, read_mapping
from napari_seamless.models.monai_bundle.steps import cut

METADATA = "configs/metadata.json"
_SAID = ("name", "version", "task", "description", "authors", "monai_version")
_CHANNELS_SHOWN = 20


@dataclass(frozen=True)
class Metadata:
    """What is known of a bundle and of the input of its network.

    Attributes
    ----------
    details : mapping
        To be shown: authors, version, what the channels are.
    channels, dims : int or None
        Of the input.
    size : tuple of int or None
        Of the input, if it is a size and not a rule ("16*n").
    notes : tuple of str
        What the user should know.
    """

    details: Mapping[str, Any] = field(default_factory=dict)
    channels: int | None = None
    dims: int | None = None
    size: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()


def metadata_of(files: Files) -> Metadata:
    """Return the metadata of a bundle; a file that is no such thing is a note, not an error."""
    if METADATA not in files:
        return Metadata()
    try:
        text = files.text(METADATA, CONFIG_BYTES)
        content = read_mapping(text, f"{files.path}: {METADATA}")
    except ModelError as error:  # nothing that the network needs
        return Metadata(notes=(str(error),))
    formats = _part(content, "network_data_format")
    image = _first(_part(formats, "inputs"), "image")
    said = {name: cut(str(content[name])) for name in _SAID if content.get(name)}
    shape = image.get("spatial_shape")
    sizes = [_size(each) for each in shape] if isinstance(shape, list) else []
    whole = tuple(size for size in sizes if size is not None)
    channels = image.get("num_channels")
    return Metadata(
        {**said, **_described("input", image), **_described("output", _output(formats))},
        channels if isinstance(channels, int) else None,
        len(sizes) if len(sizes) in (2, 3) else None,
        whole if len(whole) == len(sizes) and len(whole) in (2, 3) else None,
    )


def _described(name: str, side: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said of input or output, short enough to be shown."""
    found: dict[str, Any] = {}
    shape, values = side.get("spatial_shape"), side.get("value_range")
    if isinstance(shape, list) and shape:
        found[f"{name} size"] = cut(" x ".join(map(str, shape)))
    if isinstance(values, list) and values:
        found[f"{name} values"] = cut(", ".join(map(str, values)))
    if isinstance(side.get("dtype"), str):
        found[f"{name} type"] = cut(side["dtype"])
    meaning = [str(each) for each in _part(side, "channel_def").values()]
    if meaning:
        more = ", ..." if len(meaning) > _CHANNELS_SHOWN else ""
        found[f"{name} channels"] = ", ".join(map(cut, meaning[:_CHANNELS_SHOWN])) + more
    return found


def _output(formats: Mapping[str, Any]) -> Mapping[str, Any]:
    return _first(_part(formats, "outputs"), "pred")


def _first(sides: Mapping[str, Any], usual: str) -> Mapping[str, Any]:
    return _part(sides, usual if usual in sides else next(iter(sides), usual))


def _part(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = content.get(name)
    return part if isinstance(part, Mapping) else {}


def _size(value: Any) -> int | None:
    text = str(value)
    return int(text) if text.isdecimal() and 0 < len(text) < 7 and int(text) > 0 else None
