"""MONAI's BasicUNet and BasicUNetPlusPlus from the names and shapes of their tensors."""

from napari_seamless.models.networks.guess_parts import (
    Draft,
    Shapes,
    activation,
    normalisation,
    spatial_dims,
)

ANCHORS = ("conv_0.conv_0.conv.weight",)
"""A tensor that every BasicUNet has."""
PLUS_PLUS_ANCHORS = ("conv_0_0.conv_0.conv.weight",)
"""A tensor that every BasicUNetPlusPlus has."""


def draft(shapes: Shapes) -> Draft:
    """Return the arguments of the BasicUNet.

    Raises
    ------
    KeyError, IndexError, ValueError
        If tensors are missing that every BasicUNet has.
    """
    blocks = ["conv_0", *(f"down_{n}.convs" for n in range(1, 5)), "upcat_1.convs"]
    found = Draft("BasicUNet")
    _fill(found, shapes, blocks, "upcat_4", "final_conv")
    return found


def plus_plus_draft(shapes: Shapes) -> Draft:
    """Return the arguments of the BasicUNetPlusPlus.

    Raises
    ------
    KeyError, IndexError, ValueError
        If tensors are missing that every BasicUNetPlusPlus has.
    """
    blocks = ["conv_0_0", *(f"conv_{n}_0.convs" for n in range(1, 5)), "upcat_0_4.convs"]
    found = Draft("BasicUNetPlusPlus")
    _fill(found, shapes, blocks, "upcat_3_1", "final_conv_0_4")
    found.take(
        "deep_supervision",
        (
            False,
            "deep_supervision cannot be seen in the weights: only the last of its outputs was "
            'taken; give arguments={"deep_supervision": true} for all four',
        ),
    )
    return found


def _fill(found: Draft, shapes: Shapes, blocks: list[str], upcat: str, final: str) -> None:
    kernel = shapes[f"{blocks[0]}.conv_0.conv.weight"]
    features = [shapes[f"{block}.conv_0.conv.weight"][0] for block in blocks]
    first = f"{blocks[0]}.conv_0"
    found.arguments = {
        "spatial_dims": spatial_dims(kernel),
        "in_channels": kernel[1],
        "out_channels": shapes[f"{final}.weight"][0],
        "features": features,
        "bias": f"{first}.conv.bias" in shapes,
        "upsample": upsampling(shapes, f"{upcat}.upsample"),
    }
    affine = ["instance", {"affine": True}]
    found.take("norm", normalisation(shapes, f"{first}.adn.N", features[0], affine, "norm"))
    leaky = ["LeakyReLU", {"negative_slope": 0.1, "inplace": True}]
    found.take("act", activation(shapes, f"{first}.adn.A", leaky, "act"))


def upsampling(shapes: Shapes, base: str) -> str:
    """Return how a network of MONAI makes images larger: the name of the mode."""
    for mode in ("deconv", "deconvgroup"):
        if f"{base}.{mode}.weight" in shapes:
            return mode
    return "pixelshuffle" if f"{base}.pixelshuffle.conv_block.weight" in shapes else "nontrainable"
