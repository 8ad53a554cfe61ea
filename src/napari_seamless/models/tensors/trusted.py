"""Pickles that the user trusts: loading them runs whatever is in them."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from napari_seamless.engine.errors import ModelError, UntrustedError, one_line

NOTE = "code in the file was run, because you trust it"

_HEAD_BYTES = 32
_PICKLE = b"\x80"
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The magic number of torch.save before 1.6, whose files are several pickles."""


def unpickled(file: Path | BinaryIO, name: Path | str, trust: bool) -> Any:
    """Load whatever was pickled or saved, running the code in its file.

    Parameters
    ----------
    file : Path or binary file
        What to read, from its start.
    name : Path or str
        What a message calls it.
    trust : bool
        Must be true: the user has said so.

    Raises
    ------
    UntrustedError
        If it is not trusted.
    ModelError
        If it does not load.
    """
    if not trust:
        raise UntrustedError(
            f"{name} would run code, and is not trusted; say that you trust the file (--trust)"
        )
    with warnings.catch_warnings():
        # They are about the age of the file, which whoever loads it cannot change.
        warnings.simplefilter("ignore")
        try:
            if isinstance(file, Path):
                with file.open("rb") as stream:
                    return _loaded(stream)
            return _loaded(file)
        except ModuleNotFoundError as error:
            raise ModelError(
                f"{name} needs the module {error.name}, which is not installed; install it, or put "
                "the folder it is in on PYTHONPATH"
            ) from error
        except Exception as error:  # its code may raise anything
            raise ModelError(
                f"{name} could not be loaded: {type(error).__name__}: {one_line(error)}; load it "
                "where it was saved, and save its state dict or TorchScript there"
            ) from error


def _loaded(stream: BinaryIO) -> Any:
    stream.seek(0)
    head = stream.read(_HEAD_BYTES)
    stream.seek(0)
    if head.startswith(_PICKLE) and _LEGACY not in head:
        return pickle.load(stream)
    return torch.load(stream, map_location="cpu", weights_only=False)


def module_in(content: Any) -> tuple[str | None, nn.Module | None]:
    """Return the first network in what was loaded, and the key that leads to it.

    Parallel wrappers are taken off: here it runs on one device.
    """
    inside = content.items() if isinstance(content, Mapping) else ()
    for name, module in ((None, content), *inside):
        while isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        if isinstance(module, nn.Module):
            return name, module
    return None, None
