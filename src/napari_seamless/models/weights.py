"""State dicts and networks: which tensors belong where, whatever is put before their names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from napari_seamless.models.opened import Opened, Origin

StateDict = Mapping[str, torch.Tensor]

PREFIXES = ("module.", "model.", "net.", "_orig_mod.", "ema.")
"""What wrappers put before the names of a network's tensors: data parallelism, Lightning modules,
torch.compile, running averages; possibly several of them."""


@dataclass(frozen=True, eq=False)
class Fit:
    """How the tensors of a file fit a network.

    Attributes
    ----------
    tensors : mapping of str to Tensor
        By the network's own names, as far as they have one.
    prefix : str
        What was taken off their names.
    missing, unexpected, misshaped : tuple of str
        What does not fit, by the network's own names; as in `ModelReport`.
    """

    tensors: StateDict
    prefix: str = ""
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether every tensor fits."""
        return not (self.missing or self.unexpected or self.misshaped)


def fit(network: nn.Module, tensors: StateDict) -> Fit:
    """Return how tensors fit a network, with the prefix taken off that makes most of them fit.

    A prefix counts if the network has more of the names without it. Tensors without the prefix are
    then unexpected, but for those of `loss_functions`, which no network has.
    """
    own = network.state_dict()
    best = max(
        _prefixes(tensors), key=lambda prefix: len(own.keys() & _without(tensors, prefix).keys())
    )
    named = _without(tensors, best)
    others = [name for name in tensors if not name.startswith(best)]
    shapes = {
        name: (tuple(named[name].shape), tuple(own[name].shape)) for name in own if name in named
    }
    return Fit(
        named,
        best,
        missing=tuple(name for name in own if name not in named),
        unexpected=(
            *(name for name in named if name not in own),
            *(name for name in others if not name.startswith("loss_functions.")),
        ),
        misshaped=tuple(
            f"{name}: file {in_file}, network {in_network}"
            for name, (in_file, in_network) in shapes.items()
            if in_file != in_network
        ),
    )


def assembled(
    kind: str,
    network: nn.Module,
    tensors: StateDict,
    *,
    architecture: str,
    arguments: Mapping[str, Any],
    origin: Origin,
    notes: tuple[str, ...] = (),
    **facts: Any,
) -> Opened:
    """Return a network with a file's tensors in it, or what does not fit.

    Parameters
    ----------
    kind : str
        What people call the format.
    network : torch.nn.Module
        With any weights.
    tensors : mapping of str to Tensor
        Of the file.
    architecture, arguments, origin, notes, **facts
        As in `Opened`.
    """
    found = fit(network, tensors)
    if found.is_whole:
        network.load_state_dict(found.tensors)
    if found.prefix:
        notes = (*notes, f"{found.prefix!r} was taken off the tensors' names")
    return Opened(
        kind,
        network if found.is_whole else None,
        found.tensors,
        architecture=architecture,
        arguments=arguments,
        origin=origin,
        notes=notes,
        missing=found.missing,
        unexpected=found.unexpected,
        misshaped=found.misshaped,
        **facts,
    )


def is_state_dict(content: Any) -> bool:
    """Return whether something is a mapping of names to tensors, with at least one of them."""
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(
            isinstance(name, str) and isinstance(value, torch.Tensor)
            for name, value in content.items()
        )
    )


def _prefixes(tensors: StateDict) -> list[str]:
    """Return every chain of prefixes that some name has, the empty one first."""
    chains = [""]
    for chain in chains:  # grows while it is walked
        chains += [
            chain + prefix
            for prefix in PREFIXES
            if any(name.startswith(chain + prefix) for name in tensors)
        ]
    return chains


def _without(tensors: StateDict, prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
