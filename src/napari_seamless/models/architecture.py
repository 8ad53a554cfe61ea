"""A network from its class and arguments, for state dicts, which do not say how it is built."""

import difflib
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import nn

from napari_seamless.engine.errors import ModelError, one_line

EXAMPLE = "monai.networks.nets:UNet"


def build(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return a network with random weights.

    Parameters
    ----------
    architecture : str
        "module.path:Class"; a function that returns a network will do.
    arguments : mapping
        What it is called with, by name.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    ModelError
        If there is no such class, it refuses the arguments, or it makes no network.
    """
    module_name, _, name = architecture.partition(":")
    if not module_name or not name or ":" in name:
        raise ModelError(
            f"architecture {architecture!r} must be MODULE:CLASS, for example {EXAMPLE}"
        )
    if not isinstance(arguments, Mapping):
        raise ModelError(
            f"arguments {arguments!r} must be a mapping of names to values, "
            'for example {"in_channels": 1}'
        )
    module = _import(module_name, architecture)
    try:
        make = getattr(module, name)
    except AttributeError:
        raise ModelError(_no_such_class(module, name, architecture)) from None
    try:
        network = make(**arguments)
    except Exception as error:  # a class may raise anything; all of it is passed on
        raise ModelError(
            f"architecture {architecture} refuses the arguments {dict(arguments)}: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"architecture {architecture} makes a {type(network).__name__}; "
            "it must make a torch.nn.Module"
        )
    return network


def _import(name: str, architecture: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModelError(_not_installed(name, architecture, error.name or name)) from error
    except Exception as error:  # importing runs the module, which may raise anything
        raise ModelError(
            f"architecture {architecture}: importing {name} failed: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error


def _not_installed(name: str, architecture: str, missing: str) -> str:
    package = name.partition(".")[0]
    wanted = missing.partition(".")[0]
    if missing != package and wanted == package:
        return f"architecture {architecture}: {package} is installed, but has no module {missing}"
    needed = "" if wanted == package else f" and {package} needs it"
    return (
        f"architecture {architecture}: the package {wanted} is not installed{needed}; "
        f"pip install {wanted}, or put the folder it is in on PYTHONPATH"
    )


def _no_such_class(module: ModuleType, name: str, architecture: str) -> str:
    close = difflib.get_close_matches(name, dir(module), n=3, cutoff=0.5)
    meant = f"; did you mean {' or '.join(close)}?" if close else "; check its spelling"
    return f"architecture {architecture}: {module.__name__} has no {name}{meant}"
