"""Which network of MONAI a state dict belongs to, from the names and shapes of its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from napari_seamless.models.weights import StateDict


@dataclass(frozen=True, eq=False)
class Guess:
    """A network that every tensor of a state dict fits.

    Attributes
    ----------
    network : torch.nn.Module
        With random weights.
    architecture : str
        "module:Class".
    arguments : mapping
        What the class was called with.
    notes : tuple of str
        What the tensors do not say and was decided or assumed, a line each.
    """

    network: nn.Module
    architecture: str
    arguments: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def guess(tensors: StateDict, arguments: Mapping[str, Any]) -> Guess | None:
    """Return the network that all tensors fit, prefixes taken off; None if there is none.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Of the file.
    arguments : mapping
        Those that are known; a guess takes them as they are.
    """
    return None
