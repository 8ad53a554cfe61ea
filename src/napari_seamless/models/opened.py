"""What a caller asks of a checkpoint, and what a format's module found in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

PICKLED = "pickled module"
"""The format of a file that holds a whole network as a pickle."""

Origin = Literal["given", "file", "guessed"]
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Wanted:
    """What a caller asks of a checkpoint.

    Attributes
    ----------
    path : Path
        A file or folder that exists.
    architecture : str or None
        "module:Class", or a name that `architecture` knows.
    arguments : mapping
        What the class is called with; without an architecture, arguments that a guess must take.
    trust : bool
        Whether code in the file may be run.
    weights : str or None
        Which of several sets of weights; the first by default.
    """

    path: Path
    architecture: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    trust: bool = False
    weights: str | None = None


@dataclass(frozen=True, eq=False)
class Opened:
    """What a format's module found in a checkpoint.

    Attributes
    ----------
    format : str
        As people call it: "TorchScript", "state dict", "MONAI bundle".
    module : torch.nn.Module or None
        With its weights, on the CPU; None if it is not known how it is built, or they do not fit.
    tensors : mapping of str to Tensor
        Named tensors of the file that make up the network, for the report.
    architecture : str or None
        "module:Class"; for a format that carries its network, the name of that.
    arguments : mapping
        What the class was called with.
    origin : {"given", "file", "guessed"}
        Who said what the architecture is.
    missing, unexpected, misshaped : tuple of str
        Tensors that do not fit; see `ModelReport`.
    input_shape : tuple or None
        The input that the file fixes, (B, C, Z, Y, X) or (B, C, Y, X), None where any number will
        do; None if the file fixes nothing.
    settings : mapping
        Settings of `InferenceConfig` that the file knows, by name.
    weights : str or None
        Which set of weights was taken, where the file has a name for it.
    other_weights : tuple of str
        Sets of weights that could be taken instead: averages, folds.
    details : mapping
        What else the file says of itself, shown as it is: hyper-parameters, iteration, authors.
    notes : tuple of str
        What was done or assumed that the user should know, a line each.
    refused : tuple of str
        What the file asked to run and was refused, a name each.
    patch_dependent : tuple of str
        As in `ModelReport`, where the module does not show it; found by looking at it if empty.
    """

    format: str
    module: torch.nn.Module | None = None
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    architecture: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = "file"
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()
    input_shape: Shape | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    other_weights: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    patch_dependent: tuple[str, ...] = ()
