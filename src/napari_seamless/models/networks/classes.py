"""Classes of networks: found by "module.path:Class", and called with arguments that they take.

A function could do anything, so nothing but a class that derives from torch.nn.Module is called,
unless the user says to trust it. Importing a module runs it: that is what naming it asks for.
"""

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from napari_seamless.engine.errors import ModelError, UntrustedError, one_line

if TYPE_CHECKING:  # the names of architectures are needed where torch is not
    from torch import nn

EXAMPLE = "monai.networks.nets:UNet"

_EXTRAS = ("monai", "lightning")
"""Packages that an extra of this project installs."""
_LISTED = 16
_SHOWN = 500


def find(name: str, architecture: str, trust: bool = False) -> Callable[..., Any]:
    """Return what "module.path:Class" names, importing its module.

    Parameters
    ----------
    name : str
        "module.path:Class".
    architecture : str
        What messages call it: what the user gave.
    trust : bool
        Whether it may be any callable, not only a class that derives from torch.nn.Module.

    Raises
    ------
    UntrustedError
        If it may be called only with trust.
    ModelError
        If it is of another form, in Python's standard library, not there, or nothing to call.
    """
    module_name, class_name = split(name)
    package = module_name.partition(".")[0]
    if package in sys.stdlib_module_names:
        raise ModelError(
            f"architecture {architecture}: {package} belongs to Python, which has no networks; "
            f"give the network's class, for example {EXAMPLE}"
        )
    module = imported(module_name, architecture)
    try:
        found = getattr(module, class_name)
    except AttributeError:
        raise ModelError(_no_such_class(module, class_name, architecture)) from None
    _check_may_be_called(found, architecture, trust)
    made_by: Callable[..., Any] = found
    return made_by


def made(make: Callable[..., Any], arguments: Mapping[str, Any], architecture: str) -> "nn.Module":
    """Return the network that a class makes.

    Parameters
    ----------
    make : callable
        As `find` returns it.
    arguments : mapping
        What it is called with, by name.
    architecture : str
        What messages call it.

    Raises
    ------
    ModelError
        If it takes no such arguments, needs others, refuses them, or makes no network.
    """
    from torch import nn

    _check_arguments(make, arguments, architecture)
    try:
        network = make(**arguments)
    except (Exception, SystemExit) as error:  # a class may raise anything; it is passed on
        raise ModelError(
            f"architecture {architecture} refuses the arguments {_shown(arguments)}: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"architecture {architecture} makes a {type(network).__name__}; "
            "it must make a torch.nn.Module"
        )
    return network


def imported(name: str, architecture: str) -> ModuleType:
    """Import a module.

    Raises
    ------
    ModelError
        If it is not installed, or importing it fails.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModelError(_not_installed(name, architecture, error.name or name)) from error
    except (Exception, SystemExit) as error:  # importing runs the module, a script may even exit
        raise ModelError(
            f"architecture {architecture}: importing {name} failed: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error


def check_installed(package: str, folder: str, architecture: str, install: str) -> None:
    """Check that a package is there and is the right one, without running it.

    Raises
    ------
    ModelError
        If it is not installed, or lacks a folder: another package may have its name.
    """
    spec = importlib.util.find_spec(package)
    places = (spec and spec.submodule_search_locations) or ()
    if not any((Path(place) / folder).is_dir() for place in places):
        found = "of which another is installed" if spec else "which is not installed"
        raise ModelError(
            f"architecture {architecture} needs the package {package}, {found}; {install}"
        )


def split(architecture: str) -> tuple[str, str]:
    """Return the module and the class that "module.path:Class" names.

    Raises
    ------
    ModelError
        If it is of another form.
    """
    module, _, name = architecture.partition(":")
    if not module or module.startswith(".") or not name or ":" in name:
        raise ModelError(
            f"architecture {architecture!r} must be MODULE:CLASS, for example {EXAMPLE}"
        )
    return module, name


def meant(name: str, names: Iterable[str]) -> str:
    """Return the question which of some names was meant; an empty text if none is like it."""
    by_lower = {each.lower(): each for each in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(by_lower[each] for each in close)}?" if close else ""


def check_names(given: Iterable[str], taken: Iterable[str], architecture: str) -> None:
    """Check that every argument is one that is taken.

    Raises
    ------
    ModelError
        That names those that are not, and what comes close or is taken.
    """
    taken = tuple(taken)
    for name in given:
        if name not in taken:
            listed = ", ".join(taken[:_LISTED]) + ", ..." * (len(taken) > _LISTED)
            remedy = meant(name, taken) or (f"it takes {listed}" if taken else "it takes none")
            raise ModelError(f"architecture {architecture} takes no argument {name!r}; {remedy}")


def _check_may_be_called(found: Any, architecture: str, trust: bool) -> None:
    from torch import nn

    if isinstance(found, type) and issubclass(found, nn.Module):
        return
    what = f"is a {type(found).__name__}"
    if isinstance(found, type):
        what = "is a class that does not derive from torch.nn.Module"
    elif inspect.isroutine(found):
        what = "is a function"
    if not callable(found):
        raise ModelError(
            f"architecture {architecture} {what}; give the network's class, for example {EXAMPLE}"
        )
    if not trust:
        raise UntrustedError(
            f"architecture {architecture} {what}, which could do anything: give the network's "
            "class, or say that you trust it (--trust)"
        )


def _shown(arguments: Mapping[str, Any]) -> str:
    text = " ".join(str(dict(arguments)).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def named_parameters(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters that a class takes by name, as far as Python knows them."""
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):  # it has no signature that Python could read
        return {}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: each for name, each in parameters.items() if each.kind in by_name}


def _check_arguments(
    make: Callable[..., Any], arguments: Mapping[str, Any], architecture: str
) -> None:
    """Check the names of arguments as far as the signature tells them."""
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):  # it has no signature that Python could read
        return
    named = named_parameters(make)
    # A decorator may rename arguments: what is behind it does not tell what it takes.
    is_decorated = hasattr(getattr(make, "__init__", make), "__wrapped__")
    if is_decorated and not arguments.keys() <= named.keys():
        return
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        check_names(arguments, named, architecture)
    missing = [
        name for name, each in named.items() if each.default is each.empty and name not in arguments
    ]
    if missing:
        others = "s" * (len(missing) > 1)
        raise ModelError(
            f"architecture {architecture} needs the argument{others} {', '.join(missing)}; "
            f"given: {', '.join(arguments) or 'none'}"
        )


def _not_installed(name: str, architecture: str, missing: str) -> str:
    package = name.partition(".")[0]
    wanted = missing.partition(".")[0]
    if missing != package and wanted == package:
        return f"architecture {architecture}: {package} is installed, but has no module {missing}"
    needed = "" if wanted == package else f" and {package} needs it"
    what = f'"napari-seamless[{wanted}]"' if wanted in _EXTRAS else wanted
    return (
        f"architecture {architecture}: the package {wanted} is not installed{needed}; "
        f"pip install {what}, or put the folder it is in on PYTHONPATH"
    )


def _no_such_class(module: ModuleType, name: str, architecture: str) -> str:
    remedy = meant(name, dir(module)) or "check its spelling"
    return f"architecture {architecture}: {module.__name__} has no {name}; {remedy}"
