"""State dicts and networks: which tensors belong where, whatever is put before their names."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from napari_seamless.models.opened import Opened, Origin
from napari_seamless.models.tensors.state_dicts import (
    Picked,
    StateDict,
    is_state_dict,
    pick,
    weight_sets,
)

__all__ = [
    "Fit",
    "Picked",
    "StateDict",
    "assembled",
    "fit",
    "is_state_dict",
    "pick",
    "weight_sets",
]

PREFIXES = ("module.", "model.", "net.", "_orig_mod.", "ema.")
"""What wrappers put before the names of a network's tensors: data parallelism, Lightning modules,
torch.compile, running averages; possibly several of them, and possibly others than these."""

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module.")
"""What they put in the middle of names, where only a part of the network is wrapped."""

_NO_PART = re.compile(
    r"(.+_)?(loss|losses|loss_fn|loss_func|criterion|criteria|criterions|metric|metrics)"
    r"|(loss|criterion|metric|metrics)_.+"
    r"|(train|val|valid|test)_(acc|accuracy|f1|dice|iou|jaccard|auroc|precision|recall)(_.*)?"
)
"""First parts of the names of what a training module holds beside its network."""

_COUNT = "num_batches_tracked"
_AVERAGED = "n_averaged"
_TRIED = 8


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
    notes : tuple of str
        What was left out or added, a line each.
    """

    tensors: StateDict
    prefix: str = ""
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether every tensor fits."""
        return not (self.missing or self.unexpected or self.misshaped)


@dataclass(frozen=True)
class _Naming:
    """A way to turn the names in a file into those of a network.

    Attributes
    ----------
    prefix : str
        Taken off.
    wrappers : tuple of str
        Taken out of the middle.
    """

    prefix: str = ""
    wrappers: tuple[str, ...] = ()

    def apply(self, tensors: StateDict) -> tuple[StateDict, list[str]]:
        """Return the tensors by their new names, and the names without the prefix."""
        short = self.unwrapped(tensors)
        named = {
            name.removeprefix(self.prefix): tensors[old]
            for old, name in short.items()
            if name.startswith(self.prefix)
        }
        return named, [old for old, name in short.items() if not name.startswith(self.prefix)]

    def unwrapped(self, names: Iterable[str]) -> dict[str, str]:
        """Return each name without wrappers in it."""
        short = {}
        for name in names:
            parts = f".{name}"
            for wrapper in self.wrappers:
                parts = parts.replace(f".{wrapper}", ".")
            short[name] = parts[1:]
        return short


def fit(network: nn.Module, tensors: StateDict) -> Fit:
    """Return how tensors fit a network, under the names that make most of them fit.

    A prefix of names is taken off, and wrappers in the middle of names are taken out, if the
    network then has more of them in the same shape. Tensors without the prefix are unexpected, but
    for those of losses and metrics, which are no part of any network.

    Parameters
    ----------
    network : torch.nn.Module
        With any weights.
    tensors : mapping of str to Tensor
        Of the file.
    """
    own = {
        name: each for name, each in network.state_dict().items() if isinstance(each, torch.Tensor)
    }
    naming = max(_namings(own, tensors), key=lambda each: _fitting(own, tensors, each))
    named, others = naming.apply(tensors)
    others += [name for name in named if name not in own]
    found = {**tensors, **named}
    beside = [name for name in others if _is_beside(name, found[name])]
    unexpected = [name for name in others if name not in beside]
    kept = {name: tensor for name, tensor in named.items() if name not in beside}
    counts = [name for name in own if name not in kept and _is_only_count(name, kept)]
    kept |= {name: own[name] for name in counts}
    shapes = {name: (tuple(kept[name].shape), tuple(own[name].shape)) for name in own.keys() & kept}
    return Fit(
        kept,
        naming.prefix,
        missing=tuple(name for name in own if name not in kept),
        unexpected=tuple(unexpected),
        misshaped=tuple(
            f"{name}: file {shapes[name][0]}, network {shapes[name][1]}"
            for name in own
            if name in shapes and shapes[name][0] != shapes[name][1]
        ),
        notes=tuple(_notes(naming, found, beside, counts)),
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
        # `fit` has compared everything; strictness would ask for what modules keep beside tensors.
        network.load_state_dict(found.tensors, strict=False)
    return Opened(
        kind,
        network if found.is_whole else None,
        found.tensors,
        architecture=architecture,
        arguments=arguments,
        origin=origin,
        notes=(*notes, *found.notes),
        missing=found.missing,
        unexpected=found.unexpected,
        misshaped=found.misshaped,
        **facts,
    )


def _namings(own: StateDict, tensors: StateDict) -> Iterator[_Naming]:
    """Return the ways to name tensors that are worth trying, the simplest ones first."""
    held = tuple(each for each in WRAPPERS if any(each in name for name in tensors))
    without_module = tuple(each for each in held if each != "module.")
    for wrappers in dict.fromkeys([(), without_module, held]):
        names = _Naming(wrappers=wrappers).unwrapped(tensors).values()
        if len(set(names)) < len(tensors):  # two tensors would have one name
            continue
        yield _Naming("", wrappers)
        for prefix in _prefixes(own, names):
            yield _Naming(prefix, wrappers)


def _prefixes(own: StateDict, names: Iterable[str]) -> list[str]:
    """Return what, taken off, gives most names that the network has; chains of known ones first."""
    votes: Counter[str] = Counter()
    for name in names:
        for dot in re.finditer(r"\.", name):
            if name[dot.end() :] in own:
                votes[name[: dot.end()]] += 1
    most = [prefix for prefix, _ in votes.most_common(_TRIED)]
    return sorted(most, key=lambda prefix: (not _is_known(prefix), prefix.count(".")))


def _is_known(prefix: str) -> bool:
    return all(f"{part}." in PREFIXES for part in prefix.split(".")[:-1])


def _fitting(own: StateDict, tensors: StateDict, naming: _Naming) -> tuple[int, int]:
    """Return how many tensors the network has in the same shape, and how many by name."""
    named, _ = naming.apply(tensors)
    shared = own.keys() & named.keys()
    same = sum(own[name].shape == named[name].shape for name in shared)
    # "weight" alone is in every file: a prefix that nobody knows must show by shapes.
    return same, len(shared) if same or _is_known(naming.prefix) else 0


def _is_beside(name: str, tensor: torch.Tensor) -> bool:
    """Return whether a tensor that the network lacks is not one that any network has."""
    is_count = name.rpartition(".")[2] == _AVERAGED and not tensor.ndim
    return is_count or _NO_PART.fullmatch(name.partition(".")[0]) is not None


def _is_only_count(name: str, tensors: StateDict) -> bool:
    """Return whether a tensor counts batches, of statistics that are there: old files have none."""
    return (
        name.rpartition(".")[2] == _COUNT and f"{name.removesuffix(_COUNT)}running_mean" in tensors
    )


def _notes(
    naming: _Naming, tensors: StateDict, beside: list[str], counts: list[str]
) -> Iterator[str]:
    if naming.prefix:
        yield f"{naming.prefix!r} was taken off the tensors' names"
    if naming.wrappers:
        listed = " and ".join(map(repr, naming.wrappers))
        yield f"{listed} was taken out of the tensors' names"
    averaged = [name for name in beside if name.rpartition(".")[2] == _AVERAGED]
    for name in averaged:
        yield f"the weights are an average of {int(tensors[name])} states of training"
    others = Counter(name.partition(".")[0] for name in beside if name not in averaged)
    for first, count in others.items():
        yield f"{count} tensors of {first} are no part of the network"
    if counts:
        yield (
            f"{len(counts)} counts of batches ({counts[0]}, ...) are not in the file; only "
            "training needs them"
        )
