"""The weights and operations in an ONNX model, read without the package `onnx`.

A model is a message of Protocol Buffers: fields, each a number, a kind and a value, which may be a
message itself. Only what holds tensors is looked into; numbers of fields are those of
onnx/onnx.proto.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.errors import ModelError

if TYPE_CHECKING:
    import torch

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""For each message, which of its fields are messages that may hold tensors."""

_DIMS, _TYPE, _FLOATS, _INTS, _NAME, _RAW, _DOUBLES, _EXTERNAL = 1, 2, 4, 5, 8, 9, 10, 13
_OPERATION = 4
_VALUES = (_FLOATS, _RAW, _DOUBLES)
_TYPES = {1: "<f4", 2: "u1", 3: "i1", 10: "<f2", 11: "<f8"}
"""Types that weights have, quantised ones too; others are sizes and positions."""
_UNSIGNED = {1: "u1", 2: "<u2"}


@dataclass(frozen=True)
class _Tensor:
    """A tensor of a model: the fields that count."""

    name: str
    dims: tuple[int, ...]
    kind: int
    content: bytes
    external: Mapping[str, str]

    def values(self, folder: Path) -> NDArray[np.generic]:
        """Return its values; those of a file of its own are read."""
        dtype = np.dtype(_TYPES[self.kind])
        if not self.external:
            return np.frombuffer(self.content, dtype).reshape(self.dims)
        offset = int(self.external.get("offset", 0))
        place = folder / self.external["location"]
        size = math.prod(self.dims) * dtype.itemsize
        if min(self.dims, default=0) < 0 or offset + size > place.stat().st_size:
            raise ValueError(f"{self.name} claims more bytes than {place.name} has")
        return np.fromfile(place, dtype, math.prod(self.dims), offset=offset).reshape(self.dims)


def weights_in(model: bytes, folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a model by name.

    Parameters
    ----------
    model : bytes
        The file's content.
    folder : Path
        Where weights are that have files of their own; see `check_files`.

    Raises
    ------
    ValueError, LookupError
        If it is damaged.
    """
    import torch

    found = [_read(content) for depth, content in _tensors(model) if depth == 1]
    found.reverse()  # the last that is found is the first in the file
    return {
        each.name: torch.from_numpy(np.array(each.values(folder)))
        for each in found
        if each.kind in _TYPES
    }


def files_of(model: bytes) -> set[str]:
    """Return the names of the files that a model keeps tensors in.

    Raises
    ------
    ValueError, LookupError
        If it is damaged.
    """
    return {
        external.get("location", "")
        for _, content in _tensors(model)
        if (external := _read_external(content))
    }


def operations_in(model: bytes) -> Counter[str]:
    """Return how often a model has each kind of operation, those in its functions included.

    Raises
    ------
    ValueError, LookupError
        If it is damaged.
    """
    return Counter(
        bytes(value).decode("utf-8", "replace")
        for kind, _, content in _messages(model)
        if kind == "node"
        for field, value in _fields(content)
        if field == _OPERATION and isinstance(value, memoryview)
    )


def check_files(names: set[str], path: Path) -> None:
    """Check that files a model keeps tensors in are beside it, and nowhere else.

    Raises
    ------
    ModelError
        If a name leads out of the model's folder, also by a link, or there is no such file.
    """
    folder = path.parent.resolve()
    for name in sorted(names):
        place = PureWindowsPath(name)  # takes both kinds of slashes, and knows drives
        is_outside = not name or place.drive or place.root or ".." in place.parts
        if is_outside or not (folder / name).resolve().is_relative_to(folder):
            raise ModelError(
                f"{path} wants its weights from {name!r}, which is outside of its folder; nothing "
                "was read: put the file beside it and save it anew"
            )
        if not (folder / name).is_file():
            raise ModelError(f"{path} has its weights in {name}, which is not there; get both")


def _tensors(model: bytes) -> Iterator[tuple[int, memoryview]]:
    """Yield every tensor in a model, and how many messages it is within."""
    return ((depth, content) for kind, depth, content in _messages(model) if kind == "tensor")


def _messages(model: bytes) -> Iterator[tuple[str, int, memoryview]]:
    """Yield every message of `_INSIDE` in a model: its kind, how deep it is, and its content."""
    waiting = [("model", -1, memoryview(model))]
    while waiting:
        kind, depth, content = waiting.pop()
        yield kind, depth, content
        inside = _INSIDE.get(kind, {})
        for field, value in _fields(content) if inside else ():
            if field in inside and isinstance(value, memoryview):
                waiting.append((inside[field], depth + 1, value))


def _fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the fields of a message: their number and value."""
    stream = _Reader(content)
    while stream.at < len(content):
        field, kind = divmod(stream.number(), 8)
        if kind == _VARINT:
            yield field, stream.number()
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            yield field, stream.take(8 if kind == _EIGHT_BYTES else 4)
        elif kind == _BYTES:
            yield field, stream.take(stream.number())
        else:
            raise ValueError(f"a field of unknown kind {kind}")


class _Reader:
    def __init__(self, content: memoryview) -> None:
        self.content = content
        self.at = 0

    def number(self) -> int:
        """Return the next number: 7 bits a byte, the lowest first."""
        value = shift = 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("a number that has no end")

    def take(self, count: int) -> memoryview:
        """Return the next bytes."""
        taken = self.content[self.at : self.at + count]
        if len(taken) < count:
            raise ValueError("it ends early")
        self.at += count
        return taken


def _read(content: memoryview) -> _Tensor:
    dims: list[int] = []
    parts: list[bytes] = []  # numbers may be fields of their own
    integers: list[int] = []
    kind, name = 0, ""
    for field, value in _fields(content):
        if field == _TYPE and isinstance(value, int):
            kind = value
        elif field in (_DIMS, _INTS):
            listed = dims if field == _DIMS else integers
            listed += [value] if isinstance(value, int) else _packed(value)
        elif isinstance(value, int):
            continue
        elif field == _NAME:
            name = bytes(value).decode("utf-8", "replace")
        elif field in _VALUES:
            parts.append(bytes(value))
    if integers and kind in _TYPES:
        bits = np.array(integers, np.uint64)  # of a byte, or of a number of half precision
        parts.append(bits.astype(_UNSIGNED[np.dtype(_TYPES[kind]).itemsize]).tobytes())
    return _Tensor(name, tuple(dims), kind, b"".join(parts), _read_external(content))


def _read_external(content: memoryview) -> dict[str, str]:
    """Return where a tensor is, if it has a file: location, offset, length."""
    entries: dict[str, str] = {}
    for field, value in _fields(content):
        if field == _EXTERNAL and isinstance(value, memoryview):
            pair = {
                number: bytes(text).decode("utf-8", "replace")
                for number, text in _fields(value)
                if isinstance(text, memoryview)
            }
            entries[pair.get(1, "")] = pair.get(2, "")
    return entries


def _packed(content: memoryview) -> Iterator[int]:
    """Yield numbers that are in one field."""
    stream = _Reader(content)
    while stream.at < len(content):
        yield stream.number()
