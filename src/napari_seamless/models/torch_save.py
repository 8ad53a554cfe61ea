"""State dicts: names and tensors, and nothing that could run."""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.architecture import build
from napari_seamless.models.opened import Opened, Wanted
from napari_seamless.models.sniff import damaged, pickle_refusal
from napari_seamless.models.weights import StateDict, assembled, is_state_dict

_KEYS_SHOWN = 5


def open_checkpoint(wanted: Wanted) -> Opened:
    """Open what torch.save wrote."""
    tensors = load(wanted.path)
    if wanted.architecture is None:
        return Opened("state dict", tensors=tensors)
    network = build(wanted.architecture, wanted.arguments)
    return assembled(
        "state dict",
        network,
        tensors,
        architecture=wanted.architecture,
        arguments=wanted.arguments,
        origin="given",
    )


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
    if not is_state_dict(content):
        raise ModelError(f"{path} {_found(content)}")
    return content


def _found(content: Any) -> str:
    """Say what is in a file that torch.save wrote and that is no state dict."""
    if not isinstance(content, Mapping):
        return f"holds a {type(content).__name__}; give a state dict: a mapping of names to tensors"
    if not content:
        return "holds an empty mapping; give a state dict: a mapping of names to tensors"
    keys = [repr(key) for key in content]
    listed = ", ".join(keys[:_KEYS_SHOWN]) + (", ..." if len(keys) > _KEYS_SHOWN else "")
    wrapped = [key for key, value in content.items() if is_state_dict(value)]
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
