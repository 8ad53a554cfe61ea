"""MONAI's SegResNet from the names and shapes of its tensors."""

from napari_seamless.models.networks.guess_basic_unet import upsampling
from napari_seamless.models.networks.guess_parts import (
    Draft,
    Shapes,
    activation,
    count,
    normalisation,
    spatial_dims,
)

ANCHORS = ("convInit.conv.weight",)
"""A tensor that every SegResNet has."""


def draft(shapes: Shapes) -> Draft:
    """Return the arguments of the SegResNet.

    Raises
    ------
    KeyError, IndexError, ValueError
        If tensors are missing that every SegResNet has.
    """
    kernel = shapes["convInit.conv.weight"]
    found = Draft("SegResNet")
    found.arguments = {
        "spatial_dims": spatial_dims(kernel),
        "init_filters": kernel[0],
        "in_channels": kernel[1],
        "out_channels": shapes["conv_final.2.conv.weight"][0],
        "blocks_down": _blocks_down(shapes),
        "blocks_up": _blocks_up(shapes),
        "upsample_mode": upsampling(shapes, "up_samples.0.1"),
    }
    groups = ["group", {"num_groups": 8}]
    found.take("norm", normalisation(shapes, "conv_final.0", kernel[0], groups, "norm"))
    found.take("act", activation(shapes, "conv_final.1", ["RELU", {"inplace": True}], "act"))
    found.take(
        "use_conv_final",
        (
            True,
            "use_conv_final cannot be seen in the weights: the last convolution is used, as always "
            'in a network for segmentation; give arguments={"use_conv_final": false} for features',
        ),
    )
    return found


def _blocks_down(shapes: Shapes) -> list[int]:
    """Return the residual blocks of each level; its first layer shrinks the image."""
    levels = 1 + count(shapes, "down_layers.{}.0.conv.weight", 1)  # the top level shrinks nothing
    return [_blocks(shapes, f"down_layers.{level}", 1) for level in range(levels)]


def _blocks_up(shapes: Shapes) -> list[int]:
    levels = count(shapes, "up_samples.{}.0.conv.weight")
    return [_blocks(shapes, f"up_layers.{level}", 0) for level in range(levels)]


def _blocks(shapes: Shapes, layer: str, first: int) -> int:
    return count(shapes, layer + ".{}.conv1.conv.weight", first)
