"""ONNX: a file that carries its own network, run by onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from napari_seamless.engine.errors import ModelError, one_line
from napari_seamless.models.graphs.fixed import FixedInput, settings_of
from napari_seamless.models.graphs.onnx_weights import (
    check_files,
    files_of,
    operations_in,
    weights_in,
)
from napari_seamless.models.opened import Opened, Shape, Wanted
from napari_seamless.models.sniff import damaged

_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
}
_IN_FRONT = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (/\S+:\d+ .*?\) (?=[A-Z]))?")
"""What onnxruntime writes before a reason: numbers, and the place in its source."""
_WHOLE_PATCH = (
    "InstanceNormalization",
    "GroupNormalization",
    "MeanVarianceNormalization",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Attention",
    "MultiHeadAttention",
)
_ONLY_FATAL = 4
"""What onnxruntime prints; it raises all other errors, too."""
_ON_CPU = "it runs on the CPU (onnxruntime), whatever device is chosen"

_LARGEST = 2**31


class OnnxNetwork(nn.Module):
    """A network that onnxruntime runs, on the CPU.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
        With one input.
    """

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session = session
        (given,) = session.get_inputs()
        self._name = given.name
        self._dtype = _DTYPES[given.type]
        self._outputs = [each.name for each in session.get_outputs()]

    def forward(self, batch: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Return the output for a batch (B, C, Z, Y, X) or (B, C, Y, X); by name if several."""
        given = batch.detach().to("cpu", self._dtype).contiguous().numpy()
        made = self._session.run(self._outputs, {self._name: given})
        heads = {
            name: torch.from_numpy(values).to(batch.device)
            for name, values in zip(self._outputs, made, strict=True)
        }
        return heads if len(heads) > 1 else next(iter(heads.values()))


def open_checkpoint(wanted: Wanted) -> Opened:
    """Open an ONNX model, and the file beside it that its weights may be in.

    Raises
    ------
    ModelError
        If onnxruntime is not installed or cannot run it, it is damaged, its weights are outside of
        its folder, or it takes anything but one batch of images.
    """
    try:
        size = wanted.path.stat().st_size
        if size > _LARGEST:  # Protocol Buffers' own limit
            raise ModelError(f"{wanted.path} has {size:,} bytes, more than an ONNX file can have")
        model = wanted.path.read_bytes()
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"checkpoint {wanted.path} cannot be read: {one_line(error)}") from error
    return _opened(model, wanted.path, has_folder=True)


def open_file(file: BinaryIO, name: Path | str) -> Opened:
    """Open an ONNX model that is one whole file.

    Parameters
    ----------
    file : binary file
        What to read.
    name : Path or str
        What a message calls it.

    Raises
    ------
    ModelError
        As `open_checkpoint`; also if its weights are in a file of their own.
    """
    return _opened(file.read(), Path(name), has_folder=False)


def _opened(model: bytes, path: Path, *, has_folder: bool) -> Opened:
    try:
        beside = files_of(model)
        if beside and not has_folder:
            raise ModelError(
                f"{path} has its weights in another file ({', '.join(sorted(beside))}); unpack "
                "both and open it there, or save it as one file"
            )
        check_files(beside, path)
        session = _session(path if beside else model, path)
        found = _described(session, weights_in(model, path.parent), path)
        return replace(found, patch_dependent=tuple(_looks_at_patch(model)))
    except ModelError:
        raise
    except (ValueError, LookupError, OSError) as error:
        raise ModelError(damaged(path, error)) from error


def _described(session: Any, weights: dict[str, torch.Tensor], path: Path) -> Opened:
    shape = _input_shape(session, path)
    network = OnnxNetwork(session)
    about = session.get_modelmeta()
    return Opened(
        "ONNX",
        network if shape is None else FixedInput(network, shape),
        weights,
        architecture=about.graph_name or "graph",
        input_shape=shape,
        settings=settings_of(shape),
        details={"made by": about.producer_name} if about.producer_name else {},
        notes=tuple(_notes(session)),
    )


def _session(model: Path | bytes, path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            f"{path} is an ONNX model, which needs onnxruntime ({one_line(error)}); install it "
            'with: pip install "napari-seamless[onnx]"'
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ONLY_FATAL
    try:
        return onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # onnxruntime's own errors have no base but this
        reason = _IN_FRONT.sub("", one_line(error))
        if "protobuf" in reason.lower():
            raise ModelError(damaged(path, error)) from error
        raise ModelError(
            f"onnxruntime {onnxruntime.__version__} cannot run {path}: {reason}; export it with "
            "another opset or use another version of onnxruntime"
        ) from error


def _input_shape(session: Any, path: Path) -> Shape | None:
    """Return the shape of the input, None where any number will do or nothing is said."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(repr(each.name) for each in inputs)
        raise ModelError(
            f"{path} takes {len(inputs)} inputs ({names}), not one; export a network that takes "
            "one batch of images"
        )
    given = inputs[0]
    if given.type not in _DTYPES:
        raise ModelError(
            f"{path} takes {given.type} and no numbers with a fraction, as images are given here; "
            "export it for float32"
        )
    if not given.shape:
        return None
    return tuple(size if isinstance(size, int) and size > 0 else None for size in given.shape)


def _notes(session: Any) -> Iterator[str]:
    yield _ON_CPU
    kind = session.get_inputs()[0].type
    if kind != "tensor(float)":
        yield f"it takes {str(_DTYPES[kind]).removeprefix('torch.')}: patches are turned into that"


def _looks_at_patch(model: bytes) -> Iterator[str]:
    counts = operations_in(model)
    return (f"{kind} ({counts[kind]})" for kind in _WHOLE_PATCH if counts[kind])
