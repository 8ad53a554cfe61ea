"""The networks that PyTorch Connectomics names, so that its state dicts fit.

Its 2.x builds most of them from MONAI: see its `connectomics/models/architectures`. For its 1.x see
`connectomics_v1`.
"""

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from napari_seamless.engine.errors import ModelError, one_line
from napari_seamless.models.networks import connectomics_v1
from napari_seamless.models.networks.classes import (
    check_installed,
    check_names,
    imported,
    made,
    named_parameters,
)
from napari_seamless.models.networks.connectomics_settings import (
    HELP,
    HINTS,
    NETWORKS,
    Network,
    Values,
    given_settings,
)
from napari_seamless.models.networks.parameters import Parameter, parameter

if TYPE_CHECKING:
    from torch import nn

_INSTALL = "pip install git+https://github.com/PytorchConnectomics/pytorch_connectomics.git"
_INSTALL_MEDNEXT = (
    "pip install git+https://github.com/PytorchConnectomics/MedNeXt.git (the MedNeXt of MONAI is "
    "built otherwise, so no weights of this one fit it)"
)
_MEDNEXT_SIZES: Mapping[str, tuple[Any, list[int]]] = {
    "S": (2, [2] * 9),
    "B": ([2, 3, 4, 4, 4, 4, 4, 3, 2], [2] * 9),
    "M": ([2, 3, 4, 4, 4, 4, 4, 3, 2], [3, 4, 4, 4, 4, 4, 4, 4, 3]),
    "L": ([3, 4, 8, 8, 8, 8, 8, 4, 3], [3, 4, 8, 8, 8, 8, 8, 4, 3]),
}
"""Expansion ratios and numbers of blocks, from table 1 of Roy et al., arXiv:2303.09975."""


NAMES: tuple[str, ...] = (*NETWORKS, "nnunet", *connectomics_v1.NAMES)


def build(name: str, arguments: Mapping[str, Any]) -> "nn.Module":
    """Return a network of PyTorch Connectomics with random weights.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    arguments : mapping
        The part `model` of its configuration, of which only what its builder reads counts; or
        settings by its names or those of the network's class (`filters` or `channels`).

    Raises
    ------
    ModelError
        If a setting is unknown or refused, or a package is needed that is not installed.
    """
    if name in connectomics_v1.NAMES:
        return connectomics_v1.build(name, arguments)
    if name == "nnunet":
        raise ModelError(
            "architecture nnunet is an nnU-Net, which is built from its plans: give the folder "
            "that nnU-Net trained, with plans.json and dataset.json, as the checkpoint"
        )
    network = NETWORKS[name]
    try:
        return _BUILDERS[network.section](name, network, given_settings(network, arguments))
    except ModelError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # settings of a file may be of any type
        raise ModelError(
            f"architecture {name} refuses the arguments {dict(arguments)}: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error


def parameters_of(name: str) -> tuple[Parameter, ...]:
    """Return the settings of a network, by the names of PyTorch Connectomics, for a form."""
    if name not in NETWORKS:
        return connectomics_v1.parameters_of(name) if name in connectomics_v1.NAMES else ()
    network = NETWORKS[name]
    defaults = {**network.defaults, **dict.fromkeys(network.required, inspect.Parameter.empty)}
    found = [
        parameter(key, HINTS.get(key), default, HELP.get(key, ""))
        for key, default in defaults.items()
    ]
    return tuple(each for each in found if each is not None)


def _values(name: str, network: Network, given: Values, made_by: Callable[..., Any]) -> Values:
    """Return all settings, by the names of the network's class as far as it has one."""
    check_names(given, dict.fromkeys((*network.defaults, *named_parameters(made_by))), name)
    values = {network.renamed.get(key, key): each for key, each in network.defaults.items()}
    for key, other in network.renamed.items():
        if key in given and other in given:
            raise ModelError(f"architecture {name}: {key} and {other} are one setting; give one")
    return {**values, **{network.renamed.get(key, key): each for key, each in given.items()}}


def _monai(name: str, network: Network, given: Values) -> "nn.Module":
    nets = imported("monai.networks.nets", name)
    unet = nets.BasicUNet if name == "monai_basic_unet3d" else nets.UNet
    values = _values(name, network, given, unet)
    size = values.pop("input_size")
    values["spatial_dims"] = len(size) if size else values["spatial_dims"]
    groups = values.pop("num_groups")
    if values["norm"] == "group":
        values["norm"] = ("group", {"num_groups": groups})
    if unet is nets.BasicUNet:
        levels = list(values["features"])
        values["features"] = (levels + levels[-1:] * 6)[:6]
    else:
        values.setdefault("strides", [2] * (len(values["channels"]) - 1))
        modes = {key: values.pop(key) for key in list(values) if key.startswith("upsample_")}
        if (modes["upsample_mode"] or "deconv") != "deconv":
            unet = _resampling(unet, **modes)
    return made(unet, values, name)


def _resampling(
    unet: Any, upsample_mode: str, upsample_interp_mode: str, upsample_align_corners: bool
) -> Any:
    """Return MONAI's UNet with its own `UpSample` in place of every transposed convolution."""
    from torch import nn

    blocks = imported("monai.networks.blocks", "monai_unet")

    class ResamplingUNet(unet):  # type: ignore[misc]  # no types here
        def _get_up_layer(
            self, in_channels: int, out_channels: int, strides: int, is_top: bool
        ) -> nn.Module:
            layer = super()._get_up_layer(in_channels, out_channels, strides, is_top)
            up: nn.Module = blocks.UpSample(
                self.dimensions,
                in_channels,
                out_channels,
                scale_factor=strides,
                mode=upsample_mode,
                interp_mode=upsample_interp_mode,
                align_corners=upsample_align_corners,
                bias=self.bias,
            )
            return nn.Sequential(up, layer[1]) if self.num_res_units else up

    return ResamplingUNet


def _transformer(name: str, network: Network, given: Values) -> "nn.Module":
    nets = imported("monai.networks.nets", name)
    unet = nets.UNETR if name == "monai_unetr" else nets.SwinUNETR
    values = _values(name, network, given, unet)
    if "img_size" not in named_parameters(unet):  # Swin UNETR, since MONAI 1.5
        values.pop("img_size")
    elif not values["img_size"]:
        raise ModelError(
            f"architecture {name} needs the argument input_size, the patch size that it was "
            "trained with, for example [64, 128, 128]"
        )
    return made(unet, values, name)


def _mednext(name: str, network: Network, given: Values) -> "nn.Module":
    # MONAI's MedNeXt names its tensors otherwise, and widens other blocks on the way down.
    check_installed("nnunet_mednext", "network_architecture", name, _INSTALL_MEDNEXT)
    make = imported("nnunet_mednext", name).MedNeXt
    values = _values(name, network, given, make)
    if name == "mednext":
        size = str(values.pop("size"))
        if size not in _MEDNEXT_SIZES:
            raise ModelError(f"architecture {name}: size {size!r} must be S, B, M or L")
        exp_r, counts = _MEDNEXT_SIZES[size]
        fixed = {"n_channels": 32, "do_res": True, "do_res_up_down": True}
        values = {"exp_r": exp_r, "block_counts": counts, **fixed, **values}
    heads, primary = values.pop("heads"), values.pop("primary_head")
    if heads:
        values["n_classes"] = sum(int(each["out_channels"]) for each in heads.values())
    trunk: Any = made(make, values, name)
    # Both are for training: coarser outputs, and memory spared by computing twice.
    trunk.do_ds = trunk.outside_block_checkpointing = False
    return _with_heads(name, trunk, heads, primary) if heads else trunk


def _with_heads(
    name: str, trunk: "nn.Module", heads: Mapping[str, Any], primary: Any
) -> "nn.Module":
    """Return a trunk with heads, which returns a prediction by the name of its head."""
    wrapper: Any = _package("mednext_models", f"{name} with heads").MedNeXtMultiHeadWrapper

    class Heads(wrapper):  # type: ignore[misc]  # no types here
        def forward(self, x: Any) -> Any:
            return super().forward(x)["output"]

    return made(Heads, {"model": trunk, "heads": heads, "primary_head": primary}, name)


def _rsunet(name: str, network: Network, given: Values) -> "nn.Module":
    make = _package("rsunet", name).RSUNet
    values = _values(name, network, given, make)
    factors = values.get("down_factors")
    if name == "rsunet_iso":
        factors = factors or [(2, 2, 2)] * (len(values["width"]) - 1)
    values["down_factors"] = factors and [tuple(each) for each in factors]
    values["width"] = list(values["width"])
    if "kernel_2d" in values:
        values["kernel_2d"] = tuple(values["kernel_2d"] or (1, 3, 3))
    unet: nn.Module = made(make, values, name)
    unet.supports_deep_supervision = False  # type: ignore[assignment]  # coarser outputs: training
    return unet


def _package(module: str, name: str) -> ModuleType:
    """Return a module of PyTorch Connectomics' architectures."""
    check_installed("connectomics", "models/architectures", name, _INSTALL)
    return imported(f"connectomics.models.architectures.{module}", name)


_BUILDERS: Mapping[str, Callable[[str, Network, Values], "nn.Module"]] = {
    "monai": _monai,
    "transformer": _transformer,
    "mednext": _mednext,
    "rsunet": _rsunet,
}
