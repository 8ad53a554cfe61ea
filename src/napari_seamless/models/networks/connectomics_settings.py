"""How the networks of PyTorch Connectomics 2.x are configured.

Their settings are those that its builders, `connectomics/models/architectures`, read out of the
part `model` of a configuration. The defaults are those of `connectomics/config/schema`, which is
merged into every configuration.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Values = dict[str, Any]

_SECTIONS = ("arch", "loss", "mednext", "monai", "nnunet", "rsunet", "transformer")
"""Parts of the part `model` of a configuration; what has one of them is such a part."""


@dataclass(frozen=True)
class Network:
    """How one of the networks is configured.

    Attributes
    ----------
    section : str
        The part of `model` that holds its settings.
    defaults : mapping
        Every setting that matters, and what it is if not given.
    renamed : mapping of str to str
        What the network's class calls them.
    required : tuple of str
        Settings that have no default here, because no other value fits the weights.
    """

    section: str
    defaults: Mapping[str, Any]
    renamed: Mapping[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()


_CHANNELS: Values = {"in_channels": 1, "out_channels": 1}
_UNET: Values = {
    **_CHANNELS,
    "input_size": None,
    "spatial_dims": 3,
    "filters": (32, 64, 128, 256, 512),
    "dropout": 0.0,
    "norm": "batch",
    "num_groups": 8,
    "upsample_mode": "deconv",
}
_HEADS: Values = {"deep_supervision": False, "heads": None, "primary_head": None}
_RSUNET: Values = {
    **_CHANNELS,
    "deep_supervision": False,
    "width": (16, 32, 64, 128),
    "norm": "batch",
    "activation": "relu",
    "num_groups": 8,
}

NETWORKS: Mapping[str, Network] = {
    "monai_basic_unet3d": Network(
        "monai",
        {**_UNET, "activation": "relu"},
        {"filters": "features", "activation": "act", "upsample_mode": "upsample"},
    ),
    # It leaves the activation to MONAI, and halves at every level, whatever is configured.
    "monai_unet": Network(
        "monai",
        {
            **_UNET,
            "num_res_units": 2,
            "kernel_size": 3,
            "upsample_interp_mode": "linear",
            "upsample_align_corners": True,
        },
        {"filters": "channels"},
    ),
    "monai_unetr": Network(
        "transformer",
        {
            **_CHANNELS,
            "input_size": None,
            "feature_size": 16,
            "hidden_size": 768,
            "mlp_dim": 3072,
            "num_heads": 12,
            "pos_embed": "perceptron",
            "norm": "instance",
            "dropout": 0.0,
        },
        {
            "input_size": "img_size",
            "pos_embed": "proj_type",
            "norm": "norm_name",
            "dropout": "dropout_rate",
        },
        required=("input_size",),
    ),
    # The schema's feature_size is 16, which no Swin UNETR takes; its builder falls back on 48.
    "monai_swin_unetr": Network(
        "transformer",
        {
            **_CHANNELS,
            "input_size": None,
            "feature_size": 48,
            "use_checkpoint": False,
            "dropout": 0.0,
            "attn_drop_rate": 0.0,
            "dropout_path_rate": 0.0,
        },
        {"input_size": "img_size", "dropout": "drop_rate"},
    ),
    "mednext": Network(
        "mednext",
        {**_CHANNELS, "size": "S", "kernel_size": 3, **_HEADS},
        {"out_channels": "n_classes"},
    ),
    "mednext_custom": Network(
        "mednext",
        {
            **_CHANNELS,
            "base_channels": 32,
            "exp_r": 4,
            "kernel_size": 3,
            "do_res": True,
            "do_res_up_down": True,
            "block_counts": (2,) * 9,
            "norm": "group",
            "dim": "3d",
            "grn": False,
            **_HEADS,
        },
        {"out_channels": "n_classes", "base_channels": "n_channels", "norm": "norm_type"},
    ),
    "rsunet": Network(
        "rsunet",
        {
            **_RSUNET,
            "down_factors": None,
            "depth_2d": 0,
            "kernel_2d": (1, 3, 3),
            "act_negative_slope": 0.01,
            "act_init": 0.25,
        },
        {"act_negative_slope": "negative_slope", "act_init": "init"},
    ),
    "rsunet_iso": Network("rsunet", _RSUNET),
}

HINTS: Mapping[str, Any] = {
    "dim": Literal["2d", "3d"],
    "exp_r": int | list,
    "norm": str | list,
    "size": Literal["S", "B", "M", "L"],
    "upsample_mode": Literal["deconv", "nontrainable", "pixelshuffle"],
}
"""What settings may be, where their defaults do not tell."""

HELP: Mapping[str, str] = {
    "activation": "Name of the activation, as MONAI has it.",
    "base_channels": "Channels of the first level, doubled at every further one.",
    "block_counts": "Blocks of each of the nine stages.",
    "deep_supervision": "Whether it was trained with coarser outputs, which are not used here.",
    "down_factors": "What each level is smaller by, (Z, Y, X); (1, 2, 2) by default.",
    "dropout": "Share of values that are dropped in training.",
    "exp_r": "How much blocks widen, one number or one for each of the nine stages.",
    "feature_size": "Channels of the first level.",
    "filters": "Channels of each level.",
    "heads": "For each head its out_channels, num_blocks and hidden_channels.",
    "hidden_size": "Numbers by which the transformer describes each of its patches.",
    "in_channels": "Channels of the image.",
    "input_size": "Patch size that it was trained with; two numbers make a 2-D network.",
    "kernel_size": "Voxels of the kernels along each axis.",
    "mlp_dim": "Width of the transformer's inner layers.",
    "norm": "Name of the normalisation.",
    "num_groups": "Groups of the group normalisation.",
    "num_heads": "Attention heads of the transformer.",
    "num_res_units": "Convolutions of each residual unit; 0 for none.",
    "out_channels": "Channels of the prediction.",
    "pos_embed": "How the transformer's patches are embedded: perceptron or conv.",
    "size": "S, B, M or L, as in the paper on MedNeXt.",
    "spatial_dims": "2 or 3; counts where there is no input_size.",
    "upsample_mode": "How levels are made larger again.",
    "width": "Channels of each level.",
}


def given_settings(network: Network, arguments: Mapping[str, Any]) -> Values:
    """Return the settings that are given.

    Parameters
    ----------
    network : Network
    arguments : mapping
        The part `model` of a configuration, out of which only the settings are taken, as its
        builder does; or settings themselves, which are returned whole.
    """
    sections = {name: arguments.get(name) for name in _SECTIONS}
    held = {name: each for name, each in sections.items() if isinstance(each, Mapping)}
    if held:
        is_deep = held.get("loss", {}).get("deep_supervision", False)
        own = held.get(network.section, {})
        given = {**arguments, **own, "deep_supervision": is_deep}
    elif "architecture" in arguments:  # 2.0 kept all settings in one level
        given = _unprefixed(network, arguments)
    else:
        return dict(arguments)
    return {name: given[name] for name in network.defaults if name in given}


def _unprefixed(network: Network, arguments: Mapping[str, Any]) -> Values:
    """Return the settings of a configuration without levels, by their later names."""
    prefix = f"{network.section}_"
    if network.section in ("monai", "transformer"):
        is_basic = network.renamed.get("upsample_mode") == "upsample"
        moved = (
            {"upsample_mode": arguments["upsample"]} if is_basic and "upsample" in arguments else {}
        )
        return {**arguments, **moved}
    shared = {name: arguments[name] for name in (*_CHANNELS, *_HEADS) if name in arguments}
    if network.section == "rsunet" and "filters" in arguments:
        shared["width"] = arguments["filters"]
    own = {
        name.removeprefix(prefix): value
        for name, value in arguments.items()
        if name.startswith(prefix)
    }
    return {**own, **shared}
