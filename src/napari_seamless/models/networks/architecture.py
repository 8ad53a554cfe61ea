"""A network from its name and arguments, for state dicts, which do not say how it is built.

Importing this module does not import torch; building does.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.networks import connectomics
from napari_seamless.models.networks.classes import EXAMPLE, find, imported, made, meant, split
from napari_seamless.models.networks.names import MONAI_NETWORKS, names
from napari_seamless.models.networks.parameters import Parameter, parameters_of_class

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Parameter", "build", "names", "parameters_of", "resolve"]

_MONAI = "monai.networks.nets"
_OF_MONAI = "monai."
_OF_CONNECTOMICS = "connectomics."


def build(architecture: str, arguments: Mapping[str, Any], *, trust: bool = False) -> "nn.Module":
    """Return a network with random weights.

    Parameters
    ----------
    architecture : str
        "module.path:Class"; the name of a network of MONAI, "UNet" or "monai.UNet"; or a name that
        PyTorch Connectomics uses, "monai_unet".
    arguments : mapping
        What the class is called with, by name. For PyTorch Connectomics also the part `model` of
        its configuration.
    trust : bool
        Whether a function, which could do anything, may be called in place of a class that derives
        from torch.nn.Module. Python's own modules never are.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    ModelError
        If there is no such class, it may not be called, it refuses the arguments, or it makes no
        network.
    """
    if not isinstance(arguments, Mapping):
        raise ModelError(
            f"arguments {arguments!r} must be a mapping of names to values, "
            'for example {"in_channels": 1}'
        )
    resolved = resolve(architecture)
    if ":" not in resolved:
        return connectomics.build(resolved, arguments)
    return made(find(resolved, architecture, trust), arguments, architecture)


def resolve(architecture: str) -> str:
    """Return the full name of an architecture.

    The networks of MONAI that a form offers are known without importing it.

    Parameters
    ----------
    architecture : str
        As in `build`; upper and lower case matter only where names differ in nothing else.

    Returns
    -------
    str
        "module:Class", or a name of PyTorch Connectomics.

    Raises
    ------
    ModelError
        If there is none of this name.
    """
    architecture = architecture.strip()
    if ":" in architecture or not architecture:
        return ":".join(split(architecture))
    lower = architecture.lower()
    if architecture in connectomics.NAMES:
        return architecture
    if architecture in MONAI_NETWORKS:
        return f"{_MONAI}:{architecture}"
    if lower.startswith(_OF_MONAI):
        return _of_monai(architecture[len(_OF_MONAI) :], architecture)
    if lower.removeprefix(_OF_CONNECTOMICS) in connectomics.NAMES:
        return lower.removeprefix(_OF_CONNECTOMICS)
    return _of_monai(architecture, architecture)


def parameters_of(architecture: str) -> tuple[Parameter, ...]:
    """Return what an architecture can be called with, for a form.

    Parameters that no JSON can say (a class, a function) and that need not be given are left out.

    Parameters
    ----------
    architecture : str
        As in `build`.

    Raises
    ------
    ModelError
        If there is no such class, or it is a function.
    """
    resolved = resolve(architecture)
    if ":" not in resolved:
        return connectomics.parameters_of(resolved)
    return parameters_of_class(find(resolved, architecture))


def _of_monai(name: str, architecture: str) -> str:
    """Return the full name of a network of MONAI, whatever its case."""
    known = [each for each in MONAI_NETWORKS if each.lower() == name.lower()]
    if not known:
        known = _all_of_monai(name, architecture)
    if len(known) == 1:
        return f"{_MONAI}:{known[0]}"
    if known:
        raise ModelError(
            f"architecture {architecture!r} could be {' or '.join(known)}; spell it as MONAI does"
        )
    if "." in name:
        module, _, last = architecture.rpartition(".")
        raise ModelError(
            f"architecture {architecture!r} must be MODULE:CLASS; did you mean {module}:{last}?"
        )
    remedy = meant(name, connectomics.NAMES + names())
    raise ModelError(
        f"architecture {architecture!r} is no network of MONAI and no name that PyTorch "
        f"Connectomics uses; {remedy or 'for any other'} {'else ' if remedy else ''}"
        f"give MODULE:CLASS, for example {EXAMPLE}"
    )


def _all_of_monai(name: str, architecture: str) -> list[str]:
    """Return the classes of MONAI of some name, by the names that they give themselves."""
    from torch import nn

    nets = imported(_MONAI, repr(architecture))
    exact = getattr(nets, name, None)
    alike = [exact] if isinstance(exact, type) else []
    alike = alike or [each for key, each in vars(nets).items() if key.lower() == name.lower()]
    found = {
        each.__name__: each
        for each in alike
        if isinstance(each, type) and issubclass(each, nn.Module)
    }
    return [key for key, each in found.items() if getattr(nets, key, None) is each]
