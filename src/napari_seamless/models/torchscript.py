"""TorchScript: a file that carries its own network."""

import warnings
from pathlib import Path

import torch

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.sniff import damaged


def load(path: Path) -> torch.jit.ScriptModule:
    """Load a TorchScript network onto the CPU.

    Raises
    ------
    ModelError
        If it is damaged, or made by a torch that this one does not understand.
    """
    with warnings.catch_warnings():
        # People have such files; that torch would rather they had not is no news to them.
        warnings.filterwarnings("ignore", r".*torch\.jit\.load", DeprecationWarning)
        try:
            return torch.jit.load(path, map_location="cpu")
        except Exception as error:  # a damaged file leads torch into any of them
            raise ModelError(damaged(path, error)) from error
