"""The networks of PyTorch Connectomics 1.x, which only its own package has.

Its builder, `connectomics/model/build.py`, hands settings in capitals to classes; the defaults are
those of `connectomics/config/defaults.py`.
"""

import contextlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.networks.classes import check_installed, find, made
from napari_seamless.models.networks.parameters import Parameter, parameters_of_class

if TYPE_CHECKING:
    from torch import nn

_INSTALL = (
    "pip install git+https://github.com/PytorchConnectomics/pytorch_connectomics.git@v1.0.0, or "
    "export the network as TorchScript where it was trained"
)
_CLASSES = {
    "unet_3d": "UNet3D",
    "unet_2d": "UNet2D",
    "unet_plus_3d": "UNetPlus3D",
    "unet_plus_2d": "UNetPlus2D",
    "fpn_3d": "FPN3D",
    "unetr": "UNETR",
    "swinunetr": "SwinUNETR",
}
_DOWNLOADING = ("deeplabv3a", "deeplabv3b", "deeplabv3c")
_IN_MONAI = {"unetr": "UNETR", "swinunetr": "SwinUNETR"}

NAMES: tuple[str, ...] = (*_CLASSES, *_DOWNLOADING)

_Settings = Mapping[str, tuple[str, Any]]

_SHARED: _Settings = {
    "BLOCK_TYPE": ("block_type", "residual"),
    "IN_PLANES": ("in_channel", 1),
    "OUT_PLANES": ("out_channel", 1),
    "FILTERS": ("filters", [28, 36, 48, 64, 80]),
    "KERNEL_SIZES": ("ks", [3, 3, 5, 3, 3]),
    "BLOCKS": ("blocks", [2, 2, 2, 2]),
    "ATTENTION": ("attn", "squeeze_excitation"),
    "IS_ISOTROPIC": ("is_isotropic", False),
    "ISOTROPY": ("isotropy", [False, False, False, True, True]),
    "PAD_MODE": ("pad_mode", "replicate"),
    "ACT_MODE": ("act_mode", "elu"),
    "NORM_MODE": ("norm_mode", "bn"),
    "POOLING_LAYER": ("pooling", False),
}
"""For each setting of the configuration, what classes call it, and its default."""
_OWN: Mapping[str, _Settings] = {
    "fpn_3d": {
        "BACKBONE": ("backbone_type", "resnet"),
        "DEPLOY_MODE": ("deploy", False),
    },
    "unetr": {
        "INPUT_SIZE": ("img_size", [8, 256, 256]),
        "UNETR_FEATURE_SIZE": ("feature_size", 16),
        "HIDDEN_SIZE": ("hidden_size", 768),
        "MLP_DIM": ("mlp_dim", 3072),
        "UNETR_NUM_HEADS": ("num_heads", 12),
        "POS_EMBED": ("pos_embed", "perceptron"),
        "NORM_NAME": ("norm_name", "instance"),
        "CONV_BLOCK": ("conv_block", True),
        "RES_BLOCK": ("res_block", True),
        "UNETR_DROPOUT_RATE": ("dropout_rate", 0.0),
    },
    "swinunetr": {
        "INPUT_SIZE": ("img_size", [8, 256, 256]),
        "DEPTHS": ("depths", (2, 2, 2, 2)),
        "SWIN_UNETR_NUM_HEADS": ("num_heads", (3, 6, 12, 24)),
        "SWIN_UNETR_FEATURE_SIZE": ("feature_size", 48),
        "NORM_NAME": ("norm_name", "instance"),
        "SWIN_UNETR_DROPOUT_RATE": ("drop_rate", 0.0),
        "ATTN_DROP_RATE": ("attn_drop_rate", 0.0),
        "DROPOUT_PATH_RATE": ("dropout_path_rate", 0.0),
        "NORMALIZE": ("normalize", True),
        "USE_CHECKPOINT": ("use_checkpoint", False),
        "SPATIAL_DIMS": ("spatial_dims", 3),
        "DOWNSAMPLE": ("downsample", "merging"),
        "USE_V2": ("use_v2", False),
    },
}


def build(name: str, arguments: Mapping[str, Any]) -> "nn.Module":
    """Return a network of PyTorch Connectomics 1.x with random weights.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    arguments : mapping
        A whole configuration, its part MODEL (with IS_ISOTROPIC of DATASET), or what the class
        takes: `in_channel`, `filters`.

    Raises
    ------
    ModelError
        If the package is not installed, or the class refuses the arguments.
    """
    given = _arguments(name, arguments)
    with contextlib.redirect_stdout(sys.stderr):  # it prints, which is no part of an answer
        return made(_class(name), given, name)


def parameters_of(name: str) -> tuple[Parameter, ...]:
    """Return what the class of a network takes, for a form.

    Raises
    ------
    ModelError
        If the package is not installed.
    """
    return parameters_of_class(_class(name))


def _class(name: str) -> Any:
    if name in _DOWNLOADING:
        raise ModelError(
            f"architecture {name} cannot be built without downloading weights; export the network "
            "as TorchScript where it was trained"
        )
    other = _IN_MONAI.get(name)
    remedy = _INSTALL + (f"; that of MONAI is monai.{other}" if other else "")
    check_installed("connectomics", "model/arch", f"{name} of PyTorch Connectomics 1.x", remedy)
    return find(f"connectomics.model.arch:{_CLASSES[name]}", name)


def _arguments(name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a class is called with, out of a configuration if it is one."""
    if not any(key.isupper() for key in arguments):
        return arguments
    dataset = arguments.get("DATASET") or {}
    model = arguments.get("MODEL", arguments)
    if not isinstance(model, Mapping) or not isinstance(dataset, Mapping):
        raise ModelError(f"architecture {name}: MODEL and DATASET must be mappings of settings")
    given = {**{key: dataset[key] for key in ("IS_ISOTROPIC",) if key in dataset}, **model}
    settings = {**_SHARED, **_OWN.get(name, {})}
    made_of = {argument: given.get(key, default) for key, (argument, default) in settings.items()}
    if name == "fpn_3d" and made_of["backbone_type"] == "botnet":
        made_of["fmap_size"] = given.get("INPUT_SIZE", [8, 256, 256])
    return made_of
