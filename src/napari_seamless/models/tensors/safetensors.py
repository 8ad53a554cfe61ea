"""safetensors: named tensors, and nothing that could run."""

from pathlib import Path
from typing import Any

import safetensors
from safetensors import safe_open

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.opened import Opened, Wanted
from napari_seamless.models.sniff import damaged
from napari_seamless.models.tensors.state_dicts import StateDict
from napari_seamless.models.tensors.torch_save import Contents, open_content

_KIND = "safetensors"
_LENGTH_BYTES = 8
_HEADER_BYTES = 100_000_000
"""Largest header that the format allows."""


def open_checkpoint(wanted: Wanted) -> Opened:
    """Open safetensors.

    Raises
    ------
    ModelError
        If it is damaged or holds no tensors, or its network cannot be built.
    """
    tensors, metadata = _read(wanted.path)
    details = {"metadata": metadata} if metadata else {}
    return open_content(_KIND, Contents(tensors), wanted, details=details)


def _read(path: Path) -> tuple[StateDict, dict[str, Any]]:
    """Return the tensors, on the CPU, and what the file says of itself.

    The library checks what the header claims against the size of the file.
    """
    try:
        _check_header(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ModelError(damaged(path, error)) from error
    except MemoryError as error:
        size = path.stat().st_size
        raise ModelError(
            f"{path} has {size:,} bytes, which do not fit in memory; use a computer with more, or "
            "a smaller network"
        ) from error


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        header = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if header > _HEADER_BYTES:
        raise ValueError(f"its header claims {header:,} bytes, {_HEADER_BYTES:,} are allowed")
