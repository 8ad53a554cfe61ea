"""State dicts: names and tensors, and nothing that could run."""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.sniff import damaged, pickle_refusal

StateDict = Mapping[str, torch.Tensor]

_KEYS_SHOWN = 5


def load(path: Path) -> StateDict:
    """Load the tensors of a state dict onto the CPU; no code in the file is run.

    Raises
    ------
    ModelError
        If it is damaged, a pickle, or holds anything but names and tensors.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ModelError(pickle_refusal(path, _refused(error))) from error
        except Exception as error:  # a damaged file leads torch into any of them
            raise ModelError(damaged(path, error)) from error
    if not _is_state_dict(content):
        raise ModelError(f"{path} {_found(content)}")
    return content


def misfits(network: nn.Module, tensors: StateDict) -> dict[str, tuple[str, ...]]:
    """Return which tensors are `missing`, `unexpected` and `misshaped`, as in `ModelReport`."""
    own = network.state_dict()
    shapes = {
        name: (tuple(tensors[name].shape), tuple(own[name].shape))
        for name in own
        if name in tensors
    }
    return {
        "missing": tuple(name for name in own if name not in tensors),
        "unexpected": tuple(name for name in tensors if name not in own),
        "misshaped": tuple(
            f"{name}: file {in_file}, network {in_network}"
            for name, (in_file, in_network) in shapes.items()
            if in_file != in_network
        ),
    }


def parameter_count(tensors: StateDict) -> int:
    """Return how many numbers were learnt, running statistics of normalisation not counted."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(
        tensor.numel() for name, tensor in tensors.items() if name.rpartition(".")[2] not in buffers
    )


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(
            isinstance(name, str) and isinstance(value, torch.Tensor)
            for name, value in content.items()
        )
    )


def _found(content: Any) -> str:
    """Say what is in a file that torch.save wrote and that is no state dict."""
    if not isinstance(content, Mapping):
        return f"holds a {type(content).__name__}; give a state dict: a mapping of names to tensors"
    if not content:
        return "holds an empty mapping; give a state dict: a mapping of names to tensors"
    keys = [repr(key) for key in content]
    listed = ", ".join(keys[:_KEYS_SHOWN]) + (", ..." if len(keys) > _KEYS_SHOWN else "")
    wrapped = [key for key, value in content.items() if _is_state_dict(value)]
    remedy = (
        f"its {wrapped[0]!r} is a state dict: save it alone with "
        f"torch.save(torch.load(path, weights_only=True)[{wrapped[0]!r}], new_path)"
        if wrapped
        else "give a state dict: a mapping of names to tensors"
    )
    return f"holds a mapping with {listed}, not only tensors; {remedy}"


def _refused(error: BaseException) -> str:
    """Return what the pickle would have called; a refusal that names nothing may be damage."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    return f" ({named[1]})" if named else " or damaged"
