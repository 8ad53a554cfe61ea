"""Pickles that the user trusts: loading them runs whatever is in them."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from napari_seamless.engine.errors import ModelError, one_line
from napari_seamless.models.sniff import sniff_format

NOTE = "code in the file was run, because you trust it"


def unpickled(path: Path, trust: bool) -> Any:
    """Load whatever was pickled or saved, running the code in its file.

    Parameters
    ----------
    path : Path
        Of the file.
    trust : bool
        Must be true: the user has said so.

    Raises
    ------
    ModelError
        If it is not trusted, or does not load.
    """
    if not trust:
        raise ModelError(f"{path} would run code, and is not trusted; say that you trust the file")
    with warnings.catch_warnings():
        # They are about the age of the file, which whoever loads it cannot change.
        warnings.simplefilter("ignore")
        try:
            if sniff_format(path) == "pickle":
                with path.open("rb") as file:
                    return pickle.load(file)
            return torch.load(path, map_location="cpu", weights_only=False)
        except ModuleNotFoundError as error:
            raise ModelError(
                f"{path} needs the module {error.name}, which is not installed; install it, or put "
                "the folder it is in on PYTHONPATH"
            ) from error
        except Exception as error:  # its code may raise anything
            raise ModelError(
                f"{path} could not be loaded: {type(error).__name__}: {one_line(error)}; load it "
                "where it was saved, and save its state dict or TorchScript there"
            ) from error


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
