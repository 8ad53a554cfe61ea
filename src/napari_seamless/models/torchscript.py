"""TorchScript: a file that carries its own network."""

import warnings

import torch

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.opened import Opened, Wanted
from napari_seamless.models.sniff import damaged


def open_checkpoint(wanted: Wanted) -> Opened:
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
            module = torch.jit.load(wanted.path, map_location="cpu")
        except Exception as error:  # a damaged file leads torch into any of them
            raise ModelError(damaged(wanted.path, error)) from error
    return Opened(
        "TorchScript",
        module,
        tensors=module.state_dict(),
        architecture=module.original_name,
    )
