"""What is in a file of torch.export: the graph, as JSON, and its tensors.

torch.export.save has written three kinds of archives: now a file of raw numbers for each tensor,
for a while all tensors in one file by torch.save, and up to torch 2.7 the same under other names.
Example inputs, which are pickled, are not looked at.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from napari_seamless.engine.errors import ModelError, UntrustedError
from napari_seamless.models.archive import Files
from napari_seamless.models.sniff import damaged
from napari_seamless.models.tensors.state_dicts import check_sizes
from napari_seamless.models.tensors.torch_save import read

MARKERS = ("archive_format", "serialized_exported_program.json")
GRAPH_BYTES = 256 * 1024**2
"""Largest graph that is read; one of thousands of operations takes some megabytes."""

_GRAPHS = ("models/model.json", "serialized_exported_program.json")
_TENSORS = (
    ("data/weights/model.pt", "data/constants/model.pt"),
    ("serialized_state_dict.pt", "serialized_constants.pt"),
)
_RAW = (
    ("data/weights/", "model_weights_config.json"),
    ("data/constants/", "model_constants_config.json"),
)

DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    9: torch.complex32,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
}
"""Types of numbers, by their number in the file."""


def graph_of(files: Files) -> Any:
    """Return the graph as JSON.

    Raises
    ------
    ModelError
        If there is none, it is damaged, or there is compiled code in its place.
    """
    if any(name.startswith("data/aotinductor/") for name in files):
        raise ModelError(
            f"{files.path} holds compiled code (AOTInductor), which would have to be run: save the "
            "network with torch.export.save instead"
        )
    name = next((name for name in _GRAPHS if name in files), None)
    if name is None:
        raise ModelError(
            f"{files.path} holds no network called 'model'; save one with torch.export.save"
        )
    try:
        return json.loads(files.text(name, GRAPH_BYTES))
    except (ValueError, RecursionError) as error:
        raise ModelError(damaged(files.path, error)) from error


def tensors_of(files: Files) -> dict[str, torch.Tensor]:
    """Return weights and constants by name, on the CPU.

    Raises
    ------
    ModelError
        If any is damaged, anything but a tensor, or claims more numbers than there are.
    """
    tensors: dict[str, torch.Tensor] = {}
    for names in _TENSORS:
        for name in names:
            if name in files:
                tensors |= _saved(files, name)
    for folder, name in _RAW:
        if folder + name in files:
            tensors |= _raw(files, folder, name)
    check_sizes(tensors, files.path)
    return tensors


def _saved(files: Files, name: str) -> dict[str, torch.Tensor]:
    with files.open(name) as file:
        if not file.read(1):  # nothing to save
            return {}
        file.seek(0)
        try:
            found = read(file, f"{files.path}: {name}").content
        except UntrustedError as error:
            raise _pickled(files, name) from error
    if not isinstance(found, Mapping) or not all(
        isinstance(each, torch.Tensor) for each in found.values()
    ):
        raise _pickled(files, name)
    return {str(key): each.detach() for key, each in found.items()}


def _raw(files: Files, folder: str, name: str) -> dict[str, torch.Tensor]:
    try:
        entries = json.loads(files.text(folder + name))["config"]
        return {key: _raw_tensor(files, folder, entry) for key, entry in entries.items()}
    except ModelError:
        raise
    except Exception as error:  # a damaged or forged description leads into any of them
        raise ModelError(damaged(files.path, error)) from error


def _raw_tensor(files: Files, folder: str, entry: Mapping[str, Any]) -> torch.Tensor:
    meta = entry["tensor_meta"]
    if entry["use_pickle"] or meta is None:
        raise _pickled(files, folder + str(entry["path_name"]))
    with files.open(folder + Path(entry["path_name"]).name) as file:
        content = bytearray(file.read())
    sizes, strides = ([each["as_int"] for each in meta[key]] for key in ("sizes", "strides"))
    dtype = DTYPES[meta["dtype"]]
    if not content:
        if math.prod(sizes):
            raise ModelError(f"{files.path} lacks the values of {entry['path_name']}; get it whole")
        return torch.zeros(sizes, dtype=dtype)
    # torch checks that sizes and strides stay within the numbers that are there
    flat = torch.frombuffer(content, dtype=dtype)
    return flat.as_strided(sizes, strides, meta["storage_offset"]["as_int"])


def _pickled(files: Files, name: str) -> ModelError:
    return ModelError(
        f"{files.path} holds pickled objects, not only tensors, in {name}; loading them could run "
        "any code, so nothing was run: export a network of plain tensors"
    )
