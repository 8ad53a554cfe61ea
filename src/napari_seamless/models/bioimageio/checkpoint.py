"""bioimage.io packages: a description, and one network as weights of several formats.

rdf.yaml      axes, sizes, halo, what is done to voxels before and after the network, authors
weights.pt    TorchScript, a state dict with the name or source of its network, or ONNX
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import nn

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.archive import Files, open_files
from napari_seamless.models.bioimageio import transforms
from napari_seamless.models.bioimageio.arranged import ORDERS, Arranged
from napari_seamless.models.bioimageio.axes import Call, call_of
from napari_seamless.models.bioimageio.description import checked, flat, read_content
from napari_seamless.models.bioimageio.network import (
    check_sum,
    checked_source,
    is_safe,
    name_of,
    network_of,
)
from napari_seamless.models.graphs import torchscript
from napari_seamless.models.graphs.fixed import FixedInput
from napari_seamless.models.opened import Opened, Wanted
from napari_seamless.models.sniff import BIOIMAGEIO_NAMES
from napari_seamless.models.tensors import torch_save
from napari_seamless.models.tensors.state_dicts import pick
from napari_seamless.models.tensors.weights import assembled

if TYPE_CHECKING:
    from bioimageio.spec.model.v0_5 import ModelDescr

KIND = "bioimage.io package"


def open_checkpoint(wanted: Wanted) -> Opened:
    """Open the model package of bioimage.io: a zip, a folder, or its description in a folder.

    `weights` is one of "torchscript", "pytorch_state_dict" and "onnx". By default TorchScript is
    taken, then a state dict if its network can be built without running code of the package or
    that is trusted, then ONNX.

    Raises
    ------
    ModelError
        If it is damaged, invalid, not of a model, not whole, or its network takes no image.
    """
    with open_files(wanted.path, BIOIMAGEIO_NAMES) as files:
        name = _description(wanted.path, files)
        content = read_content(files, name)
        where = f"{files.path}: {name}"
        model = checked(content, where)
        call = call_of(model, where)
        opened = _with_weights(model, content, files, wanted)
    call = _with_fixed(call, opened)
    return _arranged(_described(opened, model, call, content), call)


def _description(path: Path, files: Files) -> str:
    """Return which file is the description."""
    if path.name in BIOIMAGEIO_NAMES and path.is_file():
        return path.name
    return next(name for name in BIOIMAGEIO_NAMES if name in files)


# ---------------------------------------------------------------------------------------- weights


def _with_weights(
    model: ModelDescr, content: Mapping[str, Any], files: Files, wanted: Wanted
) -> Opened:
    """Return the network with the weights that are wanted, or that can be opened."""
    entries = {
        name: entry
        for name in _OPENERS
        if (entry := getattr(model.weights, name, None)) is not None
    }
    name = _chosen(entries, model, files, wanted)
    others = tuple(other for other in entries if other != name)
    # the library loses the sums of older formats when it converts these
    sha256 = entries[name].sha256 or content["weights"].get(name, {}).get("sha256")
    source = checked_source(entries[name], files)
    with files.open(source) as file:
        check_sum(sha256, source, file, files)
        opened = _OPENERS[name](file, entries[name], files, replace(wanted, weights=None))
    return replace(opened, format=KIND, weights=name, other_weights=others)


def _chosen(entries: Mapping[str, Any], model: ModelDescr, files: Files, wanted: Wanted) -> str:
    """Return the name of the weights to open."""
    if not entries:
        found = ", ".join(name for name, entry in model.weights if entry is not None)
        raise ModelError(
            f"{files.path} holds weights of TensorFlow or Keras only ({found}); get a package with "
            f"{' or '.join(_OPENERS)}"
        )
    if wanted.weights is not None:
        if wanted.weights not in entries:
            raise ModelError(
                f"{files.path} has no weights {wanted.weights!r}; choose {' or '.join(entries)}"
            )
        return wanted.weights
    order = [name for name in entries if name != _STATE_DICT or _may_build(entries[name], wanted)]
    if wanted.architecture is not None:
        order.sort(key=lambda name: name != _STATE_DICT)
    return next((name for name in order if _is_inside(entries[name], files)), None) or next(
        iter(order or entries)
    )


def _may_build(entry: Any, wanted: Wanted) -> bool:
    return wanted.trust or wanted.architecture is not None or is_safe(entry.architecture)


def _is_inside(entry: Any, files: Files) -> bool:
    source = str(entry.source)
    return "://" not in source and source in files


def _torchscript(file: BinaryIO, entry: Any, files: Files, wanted: Wanted) -> Opened:
    return torchscript.open_file(file, f"{files.path}: {entry.source}")


def _state_dict(file: BinaryIO, entry: Any, files: Files, wanted: Wanted) -> Opened:
    loaded = torch_save.read_trusted(file, f"{files.path}: {entry.source}", wanted.trust)
    told, arguments = entry.architecture, dict(entry.architecture.kwargs)
    is_known = wanted.architecture is not None or is_safe(told)
    if wanted.trust and not is_known and loaded.module is None:
        return assembled(
            KIND,
            network_of(told, files, wanted.trust),
            pick(loaded.contents.content, wanted).tensors,
            architecture=name_of(told),
            arguments=arguments,
            origin="file",
            refused=loaded.contents.refused,
            notes=loaded.notes,
        )
    opened = torch_save.open_loaded(
        KIND,
        loaded,
        wanted,
        architecture=name_of(told) if is_known else None,
        arguments=arguments,
        refused=() if is_known else (name_of(told),),
    )
    if opened.architecture is None and not is_known:  # trust would help
        return replace(opened, architecture=name_of(told))
    return opened


def _onnx(file: BinaryIO, entry: Any, files: Files, wanted: Wanted) -> Opened:
    from napari_seamless.models.graphs import onnx

    return onnx.open_file(file, f"{files.path}: {entry.source}")


_STATE_DICT = "pytorch_state_dict"
_OPENERS = {"torchscript": _torchscript, _STATE_DICT: _state_dict, "onnx": _onnx}
"""In the order of preference."""


# ------------------------------------------------------------------------------------ description


def _described(opened: Opened, model: ModelDescr, call: Call, content: Mapping[str, Any]) -> Opened:
    """Return what was opened with what the description says of it."""
    before, after = transforms.before(call.taken), transforms.after(call.given)
    # beside a state dict only the user has said any; beside others they are guesses at the graph
    told = opened.settings if opened.weights == _STATE_DICT else {}
    ours = {**call.settings(model), **before.settings, **after.settings}
    return replace(
        opened,
        input_shape=call.input_shape,
        settings={**opened.settings, **ours, **told},
        details=dict(opened.details) | _details(model, content) | {"sizes": call.sizes_in_words()},
        notes=(*opened.notes, *call.notes, *before.notes, *after.notes, *_dtype_notes(call)),
        refused=(*opened.refused, *transforms.refused(call.given)),
    )


def _dtype_notes(call: Call) -> tuple[str, ...]:
    dtype = transforms.network_dtype(call.taken)
    if dtype.startswith("float"):
        return ()
    return (f"the network takes {dtype}: voxels are cut to whole numbers once normalised",)


def _details(model: ModelDescr, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a description says of its model to people."""
    cited = [str(each.doi or each.url or "") for each in model.cite]
    texts = [flat(each.text) for each in model.cite]
    known = {
        "name": model.name,
        "id": model.id or _nickname(content),
        "version": model.version,
        "description": flat(model.description),
        "authors": ", ".join(author.name for author in model.authors),
        "licence": model.license,
        "citation": "; ".join(
            f"{text} {at}".strip() for text, at in zip(texts, cited, strict=True)
        ),
        "tags": ", ".join(model.tags),
        "format": content.get("format_version"),
    }
    return {name: str(value) for name, value in known.items() if value}


def _nickname(content: Mapping[str, Any]) -> object:
    """Return what bioimage.io calls a model, where older descriptions have it."""
    config = content.get("config")
    ours = config.get("bioimageio") if isinstance(config, dict) else None
    return flat(ours.get("nickname", "")) if isinstance(ours, dict) else ""


# ---------------------------------------------------------------------------------------- network


def _with_fixed(call: Call, opened: Opened) -> Call:
    """Return a call with the sizes that the weights fix: ONNX has them of its own."""
    shape = opened.input_shape or ()
    if len(shape) != len(call.taken.axes):
        return call
    sizes = zip(call.taken.axes, shape, strict=True)
    return replace(call, fixed={letter: size for letter, size in sizes if size is not None})


def _arranged(opened: Opened, call: Call) -> Opened:
    """Return what was opened with a network that takes what all networks here take."""
    if opened.module is None:
        return opened
    dtype = getattr(torch, transforms.network_dtype(call.taken))
    given = {image.name: (image.position, image.axes) for image in call.given}
    module: nn.Module = opened.module
    order = ORDERS[len(call.input_shape)]
    as_here = call.taken.axes == order and list(given.values()) == [(0, order)]
    if not as_here or dtype != torch.float32:
        module = Arranged(module, call.taken.axes, given, dtype)
    if call.input_shape[0] is not None:  # one patch at a time
        module = FixedInput(module, call.input_shape)
    return replace(opened, module=module)
