"""Networks that a file names: which are built without trust, and what they are never called with.

Naming a network makes it run. So only these are built: networks of MONAI that are known to load
nothing, the networks that PyTorch Connectomics has names for, and for nnU-Net those of its own
package. No argument reaches them that makes them fetch or open anything.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.networks import architecture as architectures
from napari_seamless.models.networks import connectomics, sized
from napari_seamless.models.networks.classes import find, imported
from napari_seamless.models.tensors.state_dicts import StateDict

NNUNET = "dynamic_network_architectures"
"""The package that has nnU-Net's networks; none of them reads a file."""

_NETS = "monai.networks.nets"
_NETWORKS = frozenset(
    (
        *("AHNet", "AttentionUnet", "AutoEncoder", "AutoencoderKL", "BasicUNet"),
        *("BasicUNetPlusPlus", "Classifier", "ControlNet", "Critic", "DAF3D"),
        "DecoderOnlyTransformer",
        *("DenseNet", "DenseNet121", "DenseNet169", "DenseNet201", "DenseNet264"),
        *("DiffusionModelUNet", "DiNTS", "Discriminator", "DynUNet", "EfficientNet"),
        *("EfficientNetBN", "EfficientNetBNFeatures", "EfficientNetEncoder", "FlexibleUNet"),
        *("FullyConnectedNet", "Generator", "GlobalNet", "HighResBlock", "HighResNet", "HoVerNet"),
        *("LocalNet", "MaskedAutoEncoderViT", "MedNeXt", "MultiScalePatchDiscriminator"),
        *("PatchDiscriminator", "Quicknat", "Regressor", "RegUNet", "ResNet", "ResNetBlock"),
        *("ResNetBottleneck", "ResNetEncoder", "ResNetFeatures", "SegResNet", "SegResNetDS"),
        *("SegResNetDS2", "SegResNetVAE", "SENet", "SENet154", "SEResNet50", "SEResNet101"),
        *("SEResNet152", "SEResNext50", "SEResNext101", "SPADEAutoencoderKL"),
        *("SPADEDiffusionModelUNet", "SPADENet", "SwinUNETR", "TopologyConstruction"),
        *("TopologyInstance", "TopologySearch", "UNet", "UNETR", "VarAutoEncoder"),
        *("VarFullyConnectedNet", "VISTA3D", "ViT", "ViTAutoEnc", "VNet", "VoxelMorph"),
        *("VoxelMorphUNet", "VQVAE"),
    )
)
"""Of MONAI's: not those that read a file of their own (CellSamWrapper, MultiModal, Transchex), and
not those that call whatever of torchvision is named (MILModel, TorchVisionFCModel)."""

_BARE = re.compile(r"[A-Za-z_]\w*")
_DOTTED = re.compile(r"monai\.networks\.nets(\.\w+)+")

_FETCHED = ("pretrained", "pretrained_url", "pretrained_state_dict_key", "weights")
"""Arguments that make a class download weights, in whose place those of the file come."""

_GONE = {"SwinUNETR": ("img_size",)}
"""Arguments of older versions of MONAI which never made a difference to the network."""


@dataclass(frozen=True, eq=False)
class Built:
    """A network as a file or a user describes it.

    Attributes
    ----------
    network : torch.nn.Module
        With random weights, on the CPU; without any, on "meta", if the tensors do not fit it.
    architecture : str
        "module:Class", or a name of PyTorch Connectomics.
    arguments : mapping
        What it was called with.
    notes : tuple of str
        What the user should know.
    """

    network: nn.Module
    architecture: str
    arguments: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def argument(self, name: str) -> Any:
        """Return an argument, or what the class takes for it; None if it has no such one."""
        known = inspect.signature(type(self.network)).parameters
        default = known[name].default if name in known else None
        value = self.arguments.get(name, default)
        return None if value is inspect.Parameter.empty else value


def build(architecture: str, arguments: Mapping[str, Any], tensors: StateDict) -> Built:
    """Return the network that a file names, if it is one of those that may be.

    Parameters
    ----------
    architecture : str
        "monai.networks.nets:Class", or a name of PyTorch Connectomics.
    arguments : mapping
        Of the file.
    tensors : mapping of str to Tensor
        Of the file: no other network is built in full than one that they fit.

    Raises
    ------
    ModelError
        If it is no such network, would be called with a file or an address, cannot be built, or is
        out of all proportion to the tensors.
    """
    notes: list[str] = []
    if architecture in connectomics.NAMES:  # whose builders take nothing but numbers and words
        named, given = architecture, dict(arguments)
    else:
        found = located(architecture.replace(":", "."))
        if found is None:
            raise ModelError("it is no network of MONAI that is known to load nothing")
        named = found
        given = offline(named, arguments, notes)
        for path in paths_in(given):
            raise ModelError(f"its arguments name the file or address {path[:100]!r}")
    network = sized.built(lambda: architectures.build(named, given), tensors)
    return Built(network, named, given, tuple(notes))


def located(target: str) -> str | None:
    """Return "module:Class" of a network of MONAI that may be built; None for whatever else.

    Parameters
    ----------
    target : str
        As MONAI's bundles name a class: "UNet", "monai.networks.nets.UNet". MONAI is imported only
        for other names of its networks: "Unet", "monai.networks.nets.unet.UNet".

    Raises
    ------
    ModelError
        If it is one of those, and MONAI is not installed.
    """
    if _BARE.fullmatch(target):
        module_name, name = _NETS, target
    elif _DOTTED.fullmatch(target):
        module_name, _, name = target.rpartition(".")
    else:
        return None
    if module_name == _NETS and name in _NETWORKS:
        return f"{_NETS}:{name}"
    imported(_NETS, target)  # says how to install it
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ModuleNotFoundError:
        return None
    return f"{module_name}:{name}" if _is_network(found) else None


def _is_network(found: Any) -> bool:
    return (
        inspect.isclass(found)
        and issubclass(found, nn.Module)
        and found.__name__ in _NETWORKS
        and found.__module__.startswith(f"{_NETS}.")
    )


def is_safe(architecture: str, arguments: Mapping[str, Any]) -> bool:
    """Return whether a network may be built without trust; MONAI is not imported to tell.

    Parameters
    ----------
    architecture : str
        "module:Class".
    arguments : mapping
        Of the file.
    """
    module, _, name = architecture.partition(":")
    kept = {each: value for each, value in arguments.items() if each not in _FETCHED}
    return module == _NETS and name in _NETWORKS and not any(paths_in(kept))


def is_of_nnunet(found: Any) -> bool:
    """Return whether plans of nnU-Net may name a class: its package's networks, torch's layers."""
    return (
        inspect.isclass(found)
        and issubclass(found, nn.Module)
        and found.__module__.startswith((f"{NNUNET}.", "torch.nn.modules."))
    )


def offline(
    architecture: str, arguments: Mapping[str, Any], notes: list[str] | None = None
) -> dict[str, Any]:
    """Return arguments without those that make a class download weights or that it lost.

    Parameters
    ----------
    architecture : str
        From `located`.
    arguments : mapping
        Of the file.
    notes : list of str, optional
        Takes a line for each that is left out and would have made a difference.

    Raises
    ------
    ModelError
        If MONAI is not installed, or has no such class.
    """
    name = architecture.partition(":")[2]
    known = _parameters(find(architecture, architecture))
    gone = {each for each in _GONE.get(name, ()) if each not in known}
    left_out = arguments.keys() & {*(each for each in _FETCHED if each in known), *gone}
    for each in sorted(left_out):
        if arguments[each] and notes is not None:
            why = "it makes no difference any more" if each in gone else "the weights are here"
            notes.append(f"{each}={arguments[each]!r} was not passed on to {name}: {why}")
    kept = {each: value for each, value in arguments.items() if each not in left_out}
    return {**kept, "pretrained": False} if "pretrained" in known else kept


def _parameters(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(make).parameters


def paths_in(value: Any) -> Iterator[str]:
    """Go through the texts in arguments that look like a file or an address: none needs any."""
    if isinstance(value, str) and ("/" in value or "\\" in value):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from paths_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from paths_in(each)
