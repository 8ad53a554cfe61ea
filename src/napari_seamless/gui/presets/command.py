"""The command line that does what the form asks for."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Layer

from napari_seamless.engine.box import Box
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import SeamlessError
from napari_seamless.engine.source import Source, spatial_shape
from napari_seamless.gui.checkpoint.opening import Choice
from napari_seamless.gui.presets.source_names import SOURCES_KEY
from napari_seamless.gui.runs.request import Request, opened_layer
from napari_seamless.io.sources.opened import volumes

PROGRAM = "napari-seamless"

_PLACEHOLDER = "PATH OF "
_SAMPLE = 16
"""So many voxels along each axis are compared to see that a file holds what a layer shows."""


def command_line(requests: Sequence[Request], known: Mapping[str, Any] | None = None) -> str:
    """Return the command that does the same on the command line, quoted for the shell.

    Parameters
    ----------
    requests : sequence of Request
        What the form asks for, one for each image.
    known : mapping, optional
        Settings that the checkpoint knows, `ModelReport.settings`: what is said by it or by the
        default is left out. Without them all settings of the form are given.

    Returns
    -------
    str
        A command for all images if one can say it, else a line for each. A layer that is in no
        file has a placeholder; see `unsaved_in`.
    """
    inputs = [_path_of(each.plan.image, each.plan.level) for each in requests]
    options = [_options(each, known) for each in requests]
    output = _common_output([each.output for each in requests], [*map(_name_of, inputs)])
    if len(requests) > 1 and output is not None and all(each == options[0] for each in options):
        return _line(requests, inputs, output, options[0])
    each_alone = zip(requests, inputs, options, strict=True)
    return "\n".join(
        _line([request], [path], _output(request), more) for request, path, more in each_alone
    )


def notes_on(requests: Sequence[Request], command: str) -> str:
    """Return one line that says what is to be done before the command works; "" if nothing is."""
    found = [
        f"{each.output.name} exists: choose another name in the command, or add --overwrite"
        for each in requests
        if each.output is not None
        and not (each.overwrite or each.resume)
        and each.output.expanduser().exists()
    ]
    notes = [*filter(None, [unsaved_in(command)]), *found]
    return f"Copied, but {'; '.join(notes)}" if notes else ""


def unsaved_in(command: str) -> str:
    """Return what is to be done about layers of a command that are in no file; "" if all are."""
    layers = [
        part.removeprefix(_PLACEHOLDER)
        for part in shlex.split(command)
        if part.startswith(_PLACEHOLDER)
    ]
    if not layers:
        return ""
    names = " and ".join(map(repr, dict.fromkeys(layers)))
    return f"{names} is in no file: save it, and put its path into the command"


def _line(
    requests: Sequence[Request], inputs: Sequence[str], output: str, options: Sequence[str]
) -> str:
    checkpoint = _checkpoint(requests[0].choice)
    masks = [
        _path_of(each.mask, each.plan.level if each.mask.multiscale else 0)
        for each in requests
        if each.mask is not None
    ]
    masked = ["--mask", *masks] if masks else []
    parts = [PROGRAM, "predict", *inputs, *checkpoint, "--output", output, *masked, *options]
    return shlex.join(parts)


def _options(request: Request, known: Mapping[str, Any] | None) -> list[str]:
    """Return the options of a run that may be the same for several images."""
    there = ["--overwrite"] * request.overwrite + ["--resume"] * request.resume
    return [*there, *_resources(request), *_settings(request.plan.config, known)]


def _common_output(outputs: Sequence[Path | None], names: Sequence[str]) -> str | None:
    """Return the output of one command for several volumes; None if it cannot name these files.

    Parameters
    ----------
    outputs : sequence of Path or None
        Of each image.
    names : sequence of str
        What the command line puts for "{name}".
    """
    are_apart = len(set(names)) == len(names)
    if all(each is None for each in outputs):
        return "{name}_prediction.zarr" if are_apart else "{vol_id}_prediction.zarr"
    paths = [str(each.expanduser().absolute()) for each in outputs if each is not None]
    before, _, after = paths[0].rpartition(names[0])
    is_meant = paths == [f"{before}{name}{after}" for name in names]
    return f"{before}{{name}}{after}" if is_meant and are_apart else None


def _name_of(path: str) -> str:
    """Return what the command line puts for "{name}" in an output."""
    return Path(path.partition("::")[0]).stem.replace(" ", "_")


def _checkpoint(choice: Choice) -> Iterator[str]:
    yield from ("--checkpoint", str(choice.path.expanduser().absolute()))
    if choice.architecture:
        yield from ("--architecture", choice.architecture)
    arguments = json.loads(choice.arguments or "{}")
    if arguments:
        yield from ("--arguments", json.dumps(arguments))
    if choice.weights:
        yield from ("--weights", choice.weights)
    if choice.trust:
        yield "--trust"


def _output(request: Request) -> str:
    if request.output is not None:
        return str(request.output.expanduser().absolute())
    return re.sub(r"[^\w.-]+", "_", f"{request.plan.image.name} prediction") + ".zarr"


def _resources(request: Request) -> list[str]:
    if isinstance(request.workers, int):
        return ["--workers", str(request.workers)]
    if request.workers is not None:
        return ["--scheduler", request.workers]
    return [] if request.memory is None else ["--memory", _bytes(request.memory)]


def _bytes(count: int) -> str:
    for name, size in (("GB", 2**30), ("MB", 2**20)):
        if count % size == 0:
            return f"{count // size}{name}"
    return str(count)


def _settings(config: InferenceConfig, known: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the options of the settings that would be others without them."""
    values = config.model_dump(mode="json")
    default = InferenceConfig(patch_size=config.patch_size)
    for name, value in values.items():
        if known is None:
            is_said = name not in config.model_fields_set
        else:
            is_said = name not in known and name != "patch_size"
        if not is_said or getattr(config, name) != getattr(default, name):
            yield from _option(name, value)


def _option(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option if value else option.replace("--", "--no-", 1)]
    text = _text(name, value)
    if value is None and InferenceConfig.model_fields[name].annotation == (str | None):
        return []  # text has no word for nothing
    return [f"{option}={text}"] if text.startswith("-") else [option, text]


def _text(name: str, value: Any) -> str:
    """Return a setting's JSON as the command line takes it: plain lists with commas."""
    if isinstance(value, str):
        return value
    if name == "region" and value is not None:
        return ",".join(f"{start}:{stop}" for start, stop in value)
    if name == "time_points" and value is not None:
        return _times(value)
    is_plain = isinstance(value, list) and len(value) > 1
    if is_plain and all(isinstance(each, (int, float, str)) for each in value):
        return ",".join(str(each) for each in value)
    return json.dumps(value)


def _times(times: Sequence[int]) -> str:
    first, *rest = times
    if rest and list(times) == list(range(first, rest[-1] + 1)):
        return f"{first}:{rest[-1] + 1}"
    return json.dumps(list(times))


def _path_of(layer: Layer, level: int) -> str:
    """Return what the command line calls a layer's file, if that holds the same voxels."""
    for text in _candidates(layer, level):
        if _holds(text, layer, level):
            return text
    return f"{_PLACEHOLDER}{layer.name}"


def _candidates(layer: Layer, level: int) -> list[str]:
    sources = layer.metadata.get(SOURCES_KEY, ())
    if level < len(sources):
        return [str(sources[level])]
    if layer.source.path is None:
        return []
    path = str(Path(layer.source.path).absolute())
    return [f"{path}::{level}" if level else path]


def _holds(text: str, layer: Layer, level: int) -> bool:
    """Return whether a file has a layer's shape, and the same voxels at three places."""
    if "://" in text:  # compared only where that is quick
        return True
    from napari_seamless.io.sources.paths import open_path  # as slow as its libraries

    try:
        theirs = volumes(open_path(text, None), None)
    except SeamlessError:  # another reader's format
        return False
    try:
        ours = volumes(opened_layer(layer, level), None)
        return len(ours) == len(theirs) and all(
            _alike(*pair) for pair in ((ours[0], theirs[0]), (ours[-1], theirs[-1]))
        )
    except SeamlessError:
        return False
    finally:
        for volume in theirs:
            volume.close()


def _alike(ours: Source, theirs: Source) -> bool:
    if ours.shape != theirs.shape or ours.dtype.newbyteorder("=") != theirs.dtype.newbyteorder("="):
        return False
    return all(
        np.array_equal(ours.read(box), theirs.read(box), equal_nan=ours.dtype.kind == "f")
        for box in _samples(spatial_shape(ours))
    )


def _samples(shape: tuple[int, int, int]) -> list[Box]:
    """Return a box at each end of the volume, and one in its middle."""
    whole = Box.of_shape(shape)
    boxes = []
    for share in (0, 1, 2):
        start = [max(0, size - _SAMPLE) * share // 2 for size in shape]
        stop = [at + _SAMPLE for at in start]
        boxes.append(Box(tuple(start), tuple(stop)).intersection(whole))  # type: ignore[arg-type]
    return boxes
