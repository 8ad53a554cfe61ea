"""The network of an nnU-Net v2 folder: built from its plans, and what is put around it."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from napari_seamless.engine.errors import ModelError, UntrustedError, one_line
from napari_seamless.models.networks import sized
from napari_seamless.models.networks.architecture import build
from napari_seamless.models.networks.named import NNUNET as PACKAGE
from napari_seamless.models.networks.named import is_of_nnunet
from napari_seamless.models.nnunet.axes import Axes
from napari_seamless.models.nnunet.plans import Architecture, Plan
from napari_seamless.models.nnunet.settings import Limits
from napari_seamless.models.tensors.state_dicts import StateDict

BATCH_NORM_TRAINER = "nnUNetTrainerBN"
"""nnU-Net's only trainer that takes another network than the plans say, but one built of them."""

_MOVED_TO = f"{PACKAGE}.architectures.unet"
"""Where networks are that were in a module of their own before."""


class Folds(nn.Module):
    """The mean of what several networks give, before any activation.

    Parameters
    ----------
    networks : sequence of torch.nn.Module
        At least one; all take and give the same.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean (B, C', ...) for an input (B, C, ...)."""
        total: torch.Tensor = self.networks[0](x.clone())  # a network may change its input
        for network in self.networks[1:]:
            total = total + network(x.clone())
        return total / len(self.networks)


class Clipped(nn.Module):
    """A network whose input is clipped, each channel to its own limits.

    Parameters
    ----------
    network : torch.nn.Module
        Takes (B, C, ...).
    limits : sequence of (float, float)
        The lowest and the highest value of each channel.
    """

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, network: nn.Module, limits: Limits) -> None:
        super().__init__()
        self.network = network
        low, high = torch.tensor(limits, dtype=torch.float32).T
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the network gives for the clipped input."""
        shape = (-1,) + (1,) * (x.ndim - 2)
        logits: torch.Tensor = self.network(x.clamp(self.low.view(shape), self.high.view(shape)))
        return logits


class Transposed(nn.Module):
    """A network that has its spatial axes in another order than the volume.

    Parameters
    ----------
    network : torch.nn.Module
        Takes (B, C, ...) and gives (B, C', ...).
    order : tuple of int
        Spatial axis k of the network is spatial axis ``order[k]`` of the input.
    """

    def __init__(self, network: nn.Module, order: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.forth = (0, 1, *(2 + axis for axis in order))
        self.back = (0, 1, *(2 + order.index(axis) for axis in range(len(order))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output in the order of the input's axes."""
        turned: torch.Tensor = self.network(x.permute(self.forth).contiguous())
        return turned.permute(self.back).contiguous()


def whole(networks: Sequence[nn.Module], axes: Axes, limits: Limits | None) -> nn.Module:
    """Return one network that does all of it: folds averaged, input clipped and transposed."""
    network = networks[0] if len(networks) == 1 else Folds(networks)
    if limits is not None:
        network = Clipped(network, limits)
    in_order = axes.order == tuple(range(len(axes.of)))
    return network if in_order else Transposed(network, axes.order)


def arguments_of(plan: Plan, trainer: str) -> dict[str, Any]:
    """Return what the network of a plan is called with, classes by their names."""
    arguments = dict(plan.architecture.arch_kwargs)
    if trainer == BATCH_NORM_TRAINER:
        arguments["norm_op"] = f"torch.nn.modules.batchnorm.BatchNorm{len(plan.axes.of)}d"
        arguments["norm_op_kwargs"] = {"eps": 1e-5, "affine": True}
    return arguments | {
        "input_channels": len(plan.dataset.channel_names),
        "num_classes": plan.dataset.channels,
        "deep_supervision": False,
    }


def network_of(
    plan: Plan, arguments: Mapping[str, Any], tensors: StateDict, trust: bool
) -> nn.Module:
    """Return the network that a plan names, with random weights.

    Without trust, if the tensors do not fit it, it has none, and only says what does not fit.

    Parameters
    ----------
    plan : Plan
        Names a class of `dynamic_network_architectures`, and as arguments classes of torch.nn.
    arguments : mapping
        From `arguments_of`.
    tensors : mapping of str to Tensor
        Of the checkpoint.
    trust : bool
        Whether it may name anything else, which is then imported.

    Raises
    ------
    UntrustedError
        If a class is not one of those, and there is no trust.
    ModelError
        If a class is not to be had, refuses the arguments, or asks for far more than the tensors.
    """
    _check_installed(plan)
    architecture = plan.architecture
    classes = {
        name: _class_of(plan, f"the argument {name}", str(arguments[name]), trust)
        for name in architecture.requires_import
        if arguments.get(name) is not None
    }
    made_by = _class_of(plan, "the network", architecture.network_class_name, trust)
    named = f"{made_by.__module__}:{made_by.__qualname__}"
    given = {**arguments, **classes}
    try:
        if trust:  # what it names may do anything, so not twice
            return build(named, given, trust=trust)
        return sized.built(lambda: build(named, given), tensors)
    except ModelError as error:  # it knows no file
        raise ModelError(f"{plan.where}: {error}") from error


def name_of(architecture: Architecture) -> str:
    """Return what the plans call their network, as "module:Class"."""
    module, _, name = architecture.network_class_name.rpartition(".")
    return f"{module}:{name}"


def _check_installed(plan: Plan) -> None:
    try:
        importlib.import_module(PACKAGE)
    except ImportError:
        raise ModelError(
            f"{plan.where.parent} needs the package {PACKAGE}, which has nnU-Net's networks: "
            'pip install "napari-seamless[nnunet]"'
        ) from None


def _class_of(plan: Plan, what: str, name: str, trust: bool) -> type[nn.Module]:
    """Return the class that a plan names, if it may: without trust, only known packages' layers."""
    module, _, last = name.rpartition(".")
    found: Any = None
    if module == "torch.nn" or module.startswith("torch.nn.modules."):
        found = getattr(nn, last, None)
    elif trust or module.startswith(f"{PACKAGE}."):
        found = _imported(plan, module, last)
    if isinstance(found, type) and issubclass(found, nn.Module) and (trust or is_of_nnunet(found)):
        return found
    remedy = (
        "check its spelling and that it is a torch.nn.Module"
        if trust
        else "give architecture and arguments, or say that you trust the file (--trust)"
    )
    allowed = "" if trust else ", which is no layer of torch.nn or network of " + PACKAGE
    kind = ModelError if trust else UntrustedError
    raise kind(f"{plan.where} names {name} as {what}{allowed}; nothing was run: {remedy}")


def _imported(plan: Plan, module: str, name: str) -> Any:
    """Import what a plan names; of nnU-Net's own networks also those that have moved since."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if missing.startswith(f"{PACKAGE}."):
            return getattr(importlib.import_module(_MOVED_TO), name, None)
        raise ModelError(
            f"{plan.where} names {module}.{name}, which needs the package "
            f"{missing.partition('.')[0]}: install it, or put its folder on PYTHONPATH"
        ) from error
    except Exception as error:  # importing runs the module, which may raise anything
        raise ModelError(
            f"{plan.where} names {module}.{name}, but importing {module} failed: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
