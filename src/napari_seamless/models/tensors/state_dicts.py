"""The sets of weights in a file: found, named, and one of them picked."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from napari_seamless.engine.errors import ModelError, UntrustedError
from napari_seamless.models.opened import Wanted
from napari_seamless.models.sniff import pickle_refusal
from napari_seamless.models.tensors.stand_ins import StandIn

StateDict = Mapping[str, torch.Tensor]

_PREFERRED = (
    "state_dict",
    "model_state_dict",
    "network_weights",
    "model_state",
    "weights",
    "model",
    "network",
    "net",
    "generator",
)
"""What training scripts call the weights, in the order in which they are taken."""

_AVERAGE = re.compile(
    r"(?<![A-Za-z])(ema|swa)(?![a-z])|(?<![A-Z])EMA|Ema(?![a-z])|averag", re.ASCII
)
_NOT_AVERAGED = "current_model_state"
"""Where Lightning keeps the weights when it puts averaged ones in their place."""

_NO_WEIGHTS = re.compile(
    r"optim|sched|scaler|^amp$|^loops$|rng|hyper_parameters|param_groups|averaging_state"
)
_EXTRA = "_extra_state"
_DEEPEST = 3
_MOST = 2_000
_KEYS_SHOWN = 5
_INFLATED = 2**28
"""Bytes by which tensors may exceed what the file has of them: a few are saved expanded."""


_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_OTHER_TYPES = (
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.complex32, torch.complex64, torch.complex128),
)


@dataclass(frozen=True, eq=False)
class Picked:
    """One of the sets of weights in a file.

    Attributes
    ----------
    tensors : mapping of str to Tensor
        As the file names them.
    name : str
        Of the set: "state_dict", "callbacks/EMA/ema_state"; "" if the whole content is the set.
    others : tuple of str
        The other sets.
    notes : tuple of str
        What the user should know.
    """

    tensors: StateDict
    name: str = ""
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def pick(content: Any, wanted: Wanted) -> Picked:
    """Return the wanted set of weights of what was read from a file, the first by default.

    What an average lacks, such as the statistics of batch normalisation, is taken from the set that
    it is an average of.

    Parameters
    ----------
    content : object
        As `torch_save.read` returns it.
    wanted : Wanted
        `weights` is the name of a set, or its last part if only one has that; `path` is for
        messages.

    Raises
    ------
    UntrustedError
        If a pickled module is where the weights ought to be.
    ModelError
        If there is no set of weights, or not the wanted one, or a tensor has no numbers.
    """
    sets = weight_sets(content)
    if not sets:
        raise _no_weights(content, wanted)
    name = _chosen(sets, wanted)
    others = tuple(other for other in sets if other != name)
    tensors, notes = sets[name], _notes_on_averages(name, others)
    if is_average(name):
        tensors, more = _completed(name, sets)
        notes = (*notes, *more)
    _check(tensors, wanted)
    return Picked(tensors, name, others, notes)


def weight_sets(content: Any) -> dict[str, StateDict]:
    """Return the sets of weights in what was read from a file, in the order of preference.

    Parameters
    ----------
    content : object
        As `torch_save.read` returns it.

    Returns
    -------
    dict of str to mapping
        Named by the keys that lead to them, "callbacks/EMA/ema_state"; "" if it is one itself.
        What belongs to optimisers is none.
    """
    if is_state_dict(content):
        return {"": _tensors_of(content)}
    found = dict(_search(content, (), [_MOST]))
    return {name: found[name] for name in sorted(found, key=_rank)}


def is_state_dict(content: Any) -> bool:
    """Return whether something is a mapping of names to tensors, with at least one of them."""
    return (
        isinstance(content, Mapping)
        and any(isinstance(value, torch.Tensor) for value in content.values())
        and all(
            isinstance(name, str) and (isinstance(value, torch.Tensor) or name.endswith(_EXTRA))
            for name, value in content.items()
        )
    )


def is_average(name: str) -> bool:
    """Return whether a set of weights is a running average, by its name."""
    return _AVERAGE.search(name) is not None


def _tensors_of(content: Mapping[str, Any]) -> StateDict:
    return {
        name: value.detach() for name, value in content.items() if isinstance(value, torch.Tensor)
    }


def _search(
    content: Any, path: tuple[str, ...], budget: list[int]
) -> Iterator[tuple[str, StateDict]]:
    if not isinstance(content, Mapping) or len(path) == _DEEPEST:
        return
    for key, value in content.items():
        budget[0] -= 1
        if budget[0] < 0:
            return
        if not isinstance(key, str) or _NO_WEIGHTS.search(key):
            continue
        here = (*path, key.partition("{")[0] or key)  # Lightning adds a callback's settings
        if not is_state_dict(value):
            yield from _search(value, here, budget)
        elif _is_of_network(here[-1], value):
            yield "/".join(here), _tensors_of(value)


def _is_of_network(name: str, tensors: Mapping[str, Any]) -> bool:
    """Return whether a set is one of weights: losses and scores are tensors, too."""
    least = 1 if name in _PREFERRED or is_average(name) else 2
    return any(isinstance(each, torch.Tensor) and each.ndim >= least for each in tensors.values())


def _rank(name: str) -> tuple[bool, int, int]:
    """Return where a set stands: weights before averages, outer before inner, known names first."""
    last = name.rpartition("/")[2]
    known = _PREFERRED.index(last) if last in _PREFERRED else len(_PREFERRED)
    return is_average(name), name.count("/"), known


def _chosen(sets: Mapping[str, StateDict], wanted: Wanted) -> str:
    if wanted.weights is None:
        return next(iter(sets))
    if wanted.weights in sets:
        return wanted.weights
    close = [name for name in sets if wanted.weights in name.split("/")]
    if not close and is_average(wanted.weights):
        close = [name for name in sets if is_average(name)]
    if len(close) == 1:
        return close[0]
    there = ", ".join(map(repr, close or sets))
    if list(sets) == [""]:
        raise ModelError(
            f"{wanted.path} holds one set of weights without a name; leave weights "
            f"{wanted.weights!r} out"
        )
    raise ModelError(
        f"{wanted.path} has {'several' if close else 'no'} weights {wanted.weights!r}; "
        f"choose one of {there}"
    )


def _notes_on_averages(name: str, others: tuple[str, ...]) -> tuple[str, ...]:
    if _NOT_AVERAGED in others:
        return (
            f"{name!r} are averaged weights; weights={_NOT_AVERAGED!r} takes those of the last "
            "step",
        )
    averages = [other for other in others if is_average(other)]
    if not averages or is_average(name):
        return ()
    last = averages[0].rpartition("/")[2]
    is_short = sum(last in other.split("/") for other in others) == 1
    return (
        f"averaged weights (EMA) are in the file: weights={last if is_short else averages[0]!r} "
        "takes them",
    )


def _completed(name: str, sets: Mapping[str, StateDict]) -> tuple[StateDict, tuple[str, ...]]:
    """Return an average with what it lacks, from the first set that has all that it has."""
    average = sets[name]
    for other, tensors in sets.items():
        if is_average(other):
            continue
        inner = _inner_names(tensors, average)
        lacking = {short: tensors[long] for short, long in inner.items() if short not in average}
        if not inner:
            continue
        if not lacking:
            return average, ()
        return {**average, **lacking}, (
            f"{len(lacking)} tensors that {name!r} lacks ({next(iter(lacking))}, ...) are those of "
            f"{other!r}",
        )
    return average, ()


def _inner_names(tensors: StateDict, average: StateDict) -> dict[str, str]:
    """Return the names that an average would give to all tensors of a set, if it is of that set."""
    some = next((name for name in average if average[name].ndim), next(iter(average)))
    for long in tensors:
        prefix = long.removesuffix(some)
        if not long.endswith(some) or (prefix and not prefix.endswith(".")):
            continue
        names = {each.removeprefix(prefix): each for each in tensors if each.startswith(prefix)}
        if all(name in names or not average[name].ndim for name in average):
            return names
    return {}


def check_sizes(tensors: StateDict, path: Path) -> None:
    """Refuse tensors that claim far more numbers than the file has of them.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Dense ones.
    path : Path
        The file, for the message.

    Raises
    ------
    ModelError
        If they do.
    """
    inflated = 0
    for name, tensor in tensors.items():
        has = tensor.untyped_storage().nbytes()
        inflated += max(0, tensor.numel() * tensor.element_size() - has)
        if inflated > _INFLATED:
            raise ModelError(
                f"{path}: tensor {name!r} claims {tensor.numel():,} numbers, but has "
                f"{has:,} bytes; copy or download it again"
            )


def _check(tensors: StateDict, wanted: Wanted) -> None:
    """Refuse tensors without numbers, of numbers that torch can only store, or inflated ones."""
    for name, tensor in tensors.items():
        is_dense = tensor.layout is torch.strided and not tensor.is_nested
        if tensor.device.type != "cpu" or not is_dense or tensor.is_quantized:
            kind = tensor.device.type if tensor.device.type != "cpu" else "sparse or quantised"
            raise ModelError(
                f"{wanted.path}: tensor {name!r} is {kind}, so it has no numbers to use; save the "
                "network's state dict on the CPU, in floating point"
            )
        if tensor.dtype not in (*_PRECISIONS, *_OTHER_TYPES):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(
                f"{wanted.path}: tensor {name!r} is {kind}, in which torch stores numbers but does "
                "not compute; convert it with .float() and save the state dict again"
            )
    check_sizes(tensors, wanted.path)


def _no_weights(content: Any, wanted: Wanted) -> ModelError:
    inside = content.values() if isinstance(content, Mapping) else ()
    for value in (content, *inside):
        if isinstance(value, StandIn) and (value is content or value.is_module):
            return UntrustedError(pickle_refusal(wanted.path, f" ({value.name})"))
    return ModelError(
        f"{wanted.path} {_found(content)}; give a state dict: a mapping of names to tensors"
    )


def _found(content: Any) -> str:
    """Say what is in a file that torch.save wrote and that has no weights."""
    if not isinstance(content, Mapping):
        return f"holds a {type(content).__name__}"
    if not content:
        return "holds an empty mapping"
    keys = [repr(key)[:80] for key in list(content)[: _KEYS_SHOWN + 1]]
    listed = ", ".join(keys[:_KEYS_SHOWN]) + (", ..." if len(keys) > _KEYS_SHOWN else "")
    return f"holds a mapping with {listed}, and no weights in it"
