"""TorchScript: a file that carries its own network, as code of a small language of torch's own.

That code cannot call Python, but torch has operations that read and write files, and runs some of
the code (`__setstate__`) already when it loads it. So the code is looked through before, and what
is loaded is a copy of exactly the parts that were looked through.
"""

import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.graphs.halves import is_half
from napari_seamless.models.opened import Opened, Wanted
from napari_seamless.models.sniff import damaged

_HARMFUL = re.compile(
    rb"\b(save|from_file|load_tensor|set_|_reshape_alias(?:_copy)?|_nested_view_from_\w+)\b"
)
"""Operations that write or read files, or reach beyond a tensor's memory. The words alone are
enough: TorchScript lets an operation have another name, and finds one by a text, so where they are
called cannot be told for sure."""
_GETATTR = re.compile(rb'\bgetattr\b(?!\([\w.()\[\]]+, "[^"\\]*"\))')
"""Looking up a name in any way but that in which torch writes it: a text can be put together."""
_LOADS_IN_LOOPS = re.compile(
    rb"^( *)def __setstate__\(.*\n(?:\1 +.*\n|\s*\n)*?\1 +(?:while|for)\b", re.MULTILINE
)
"""A loop in what runs when a network is loaded, which may never end."""
_OPERATIONS = re.compile(rb"\bops\b(?:\s*\.\s*(\w+))?")
_SAFE_OPERATIONS = (b"aten", b"prim", b"prims", b"quantized")
_CLASSES = re.compile(rb"torch\.classes\.(\w+)")
_SAFE_CLASSES = (b"quantized", b"rnn")
_SPARE_BYTES = 256 * 1024**2
"""How much larger than the file its parts may be: torch compresses the code only."""
_SWITCHES = {"aten::dropout": 2, "aten::batch_norm": 5}
"""Operations that differ in training, and which of their inputs says so."""
_HALF_NUMBERS = (5, 15)
"""How TorchScript writes these."""


def open_checkpoint(wanted: Wanted) -> Opened:
    """Load a TorchScript network onto the CPU.

    Raises
    ------
    ModelError
        If it is damaged, made by a torch that this one does not understand, or reads or writes
        files.
    """
    try:
        with wanted.path.open("rb") as file:
            return open_file(file, wanted.path)
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(damaged(wanted.path, error)) from error


def open_file(file: BinaryIO, name: Path | str) -> Opened:
    """Load a TorchScript network from an open file.

    Parameters
    ----------
    file : binary file
        What to read.
    name : Path or str
        What a message calls it.

    Raises
    ------
    ModelError
        As `open_checkpoint`.
    """
    path = Path(name)
    try:
        checked = _checked(file, path)
        module = _loaded(checked)
        return _described(module)
    except ModelError:
        raise
    except Exception as error:  # a damaged file leads zipfile and torch into any of them
        raise ModelError(damaged(path, error)) from error


def _loaded(file: BinaryIO) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        # People have such files; that torch would rather they had not is no news to them.
        warnings.filterwarnings("ignore", r".*torch\.jit\.load", DeprecationWarning)
        module: torch.jit.ScriptModule = torch.jit.load(file, map_location="cpu")
    return module


def _checked(file: BinaryIO, path: Path) -> BinaryIO:
    """Return a copy of an archive, made of what was looked through, if it does no harm.

    zipfile and torch may not see the same parts in an archive that was tampered with.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as checked:
        size = file.seek(0, io.SEEK_END)
        parts = {member.filename: member for member in archive.infolist()}
        if sum(part.file_size for part in parts.values()) > size + _SPARE_BYTES:
            raise ValueError("its parts claim more bytes than it has")
        for name, part in parts.items():
            if name.endswith(".debug_pkl"):  # where the code came from, for torch's own messages
                continue
            content = archive.read(part)
            _check(name, content, path)
            checked.writestr(f"network/{name.partition('/')[2]}", content)
    copy.seek(0)
    return copy


def _check(name: str, content: bytes, path: Path) -> None:
    asked = None
    if name.endswith(".py"):
        asked = _asked_by_code(content)
    elif name.endswith(".pkl"):
        # a class is written in two parts, each on its own line
        asked = _asked_by_class(content.replace(b"\n", b"."))
    if asked:
        raise ModelError(
            f"{path} asks to run {asked!r} (in {name.partition('/')[2]}), which a network does not "
            "need to predict and which may do harm, so nothing was run: save it without"
        )


def _asked_by_code(content: bytes) -> str | None:
    if _LOADS_IN_LOOPS.search(content):
        return "a loop while it is loaded (in __setstate__)"
    for word in _HARMFUL.finditer(content):
        return f"torch.{word[1].decode()}"
    if odd := _GETATTR.search(content):
        return content[odd.start() :].splitlines()[0][:60].decode(errors="replace")
    for called in _OPERATIONS.finditer(content):
        if called[1] not in _SAFE_OPERATIONS:
            return f"torch.ops.{(called[1] or b'').decode()}"
    return _asked_by_class(content)


def _asked_by_class(content: bytes) -> str | None:
    for name in _CLASSES.finditer(content):
        if name[1] not in _SAFE_CLASSES:
            return f"torch.classes.{name[1].decode()}"
    return None


def _described(module: torch.jit.ScriptModule) -> Opened:
    opened = Opened("TorchScript", module, module.state_dict(), module.original_name)
    notes = []
    if _is_recorded_training(module):
        notes.append(
            "it was traced in training mode: its dropout and batch normalisation act as in "
            "training; trace it in evaluation mode (network.eval())"
        )
    if is_half(opened.tensors.values()) and not _makes_half(module):
        module = module.float()
        opened = replace(opened, tensors=module.state_dict())
        notes.append("its weights are of half precision; it computes in float32")
    return replace(opened, module=module, settings=_settings(module), notes=tuple(notes))


def _settings(module: torch.jit.ScriptModule) -> dict[str, Any]:
    dims = set(_dims_of_convolutions(module))
    return {"planes": "z" if dims == {2} else "none"} if dims in ({2}, {3}) else {}


def _dims_of_convolutions(module: torch.jit.ScriptModule) -> Iterator[int]:
    graph: Any = module.inlined_graph
    for dims in (2, 3):
        for name in (f"conv{dims}d", f"conv_transpose{dims}d"):
            if graph.findAllNodes(f"aten::{name}"):
                yield dims
    for node in graph.findAllNodes("aten::_convolution"):
        stride = list(node.inputs())[3]
        made = stride.node()
        yield len(stride.toIValue() or () if made.kind() == "prim::Constant" else [*made.inputs()])


def _makes_half(module: torch.jit.ScriptModule) -> bool:
    """Whether the network turns numbers into half precision itself."""
    graph: Any = module.inlined_graph  # its nodes live as long as it does
    return any(
        each.toIValue() in _HALF_NUMBERS
        for node in graph.findAllNodes("aten::to")
        for each in list(node.inputs())[1:3]
        if each.node().kind() == "prim::Constant"
    )


def _is_recorded_training(module: torch.jit.ScriptModule) -> bool:
    """Whether dropout or batch normalisation are told for good that this is training."""
    graph: Any = module.inlined_graph
    return any(
        list(node.inputs())[place].toIValue() is True
        for name, place in _SWITCHES.items()
        for node in graph.findAllNodes(name)
    )
