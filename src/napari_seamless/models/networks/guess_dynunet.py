"""MONAI's DynUNet from the names and shapes of its tensors."""

from napari_seamless.models.networks.guess_parts import (
    Draft,
    Shapes,
    activation,
    count,
    normalisation,
    spatial_dims,
)

ANCHORS = ("input_block.conv1.conv.weight",)
"""A tensor that every DynUNet has."""


def draft(shapes: Shapes) -> Draft:
    """Return the arguments of the DynUNet.

    An image grows by the kernel of the transposed convolution, and must have shrunk by as much: so
    only the first stride, which shrinks the result as well, cannot be seen.

    Raises
    ------
    KeyError, IndexError, ValueError
        If tensors are missing that every DynUNet has.
    """
    downs = count(shapes, "downsamples.{}.conv1.conv.weight")
    blocks = ["input_block", *(f"downsamples.{n}" for n in range(downs)), "bottleneck"]
    kernels = [shapes[f"{block}.conv1.conv.weight"] for block in blocks]
    ups = [shapes[f"upsamples.{n}.transp_conv.conv.weight"][2:] for n in range(downs, -1, -1)]
    heads = count(shapes, "deep_supervision_heads.{}.conv.conv.weight")
    dims = spatial_dims(kernels[0])
    found = Draft("DynUNet")
    found.arguments = {
        "spatial_dims": dims,
        "in_channels": kernels[0][1],
        "out_channels": shapes["output_block.conv.conv.weight"][0],
        "kernel_size": [list(kernel[2:]) for kernel in kernels],
        "strides": [[1] * dims, *(list(up) for up in ups)],
        "upsample_kernel_size": [list(up) for up in ups],
        "filters": [kernel[0] for kernel in kernels],
        "deep_supervision": heads > 0,
        "deep_supr_num": max(1, heads),
        "res_block": any(f"{block}.conv3.conv.weight" in shapes for block in blocks),
        "trans_bias": "upsamples.0.transp_conv.conv.bias" in shapes,
    }
    affine = ["instance", {"affine": True}]
    norm = normalisation(shapes, "input_block.norm1", kernels[0][0], affine, "norm_name")
    found.take("norm_name", norm)
    leaky = ["leakyrelu", {"inplace": True, "negative_slope": 0.01}]
    found.take("act_name", activation(shapes, "input_block.lrelu", leaky, "act_name"))
    return found
