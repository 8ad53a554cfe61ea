"""MONAI's UNet from the names and shapes of its tensors."""

from napari_seamless.models.networks.guess_parts import (
    Draft,
    Shape,
    Shapes,
    activation,
    count,
    normalisation,
    size,
    spatial_dims,
)
from napari_seamless.models.networks.strides import Stride

ANCHORS = ("model.0.conv.unit0.conv.weight", "model.0.conv.weight")
"""A tensor that every UNet has, with residual units and without."""


def draft(shapes: Shapes) -> Draft:
    """Return the arguments of the UNet.

    Raises
    ------
    KeyError, IndexError, ValueError
        If tensors are missing that every UNet has.
    """
    units = count(shapes, "model.0.conv.unit{}.conv.weight")
    first = "conv.unit0." if units else ""
    levels = _levels(shapes, "2.0.conv.weight" if units else "2.conv.weight")
    downs = [*(f"{base}0.{first}" for base in levels), f"{levels[-1]}1.submodule.{first}"]
    up = shapes[f"{levels[0]}2.{'0.' if units else ''}conv.weight"]
    kernel = shapes[f"{downs[0]}conv.weight"]
    channels = [shapes[f"{down}conv.weight"][0] for down in downs]
    dims = spatial_dims(kernel)
    found = Draft("UNet")
    found.arguments = {
        "spatial_dims": dims,
        "in_channels": kernel[1],
        "out_channels": up[1],
        "channels": channels,
        "strides": [],
        "kernel_size": size(kernel[2:]),
        "up_kernel_size": size(up[2:]),
        "num_res_units": units,
        "bias": f"{downs[0]}conv.bias" in shapes,
    }
    adn = f"{downs[0]}adn"
    found.take("norm", normalisation(shapes, f"{adn}.N", channels[0], "instance", "norm"))
    found.take("act", activation(shapes, f"{adn}.A", "prelu", "act"))
    _take_ordering(found, shapes, adn)
    _take_strides(found, [_residual(shapes, base, units) for base in levels], kernel[2:])
    return found


def _levels(shapes: Shapes, up: str) -> list[str]:
    """Return what the names of each level begin with, the top first, the bottom left out."""
    levels, base = [], "model."
    while f"{base}{up}" in shapes:
        levels.append(base)
        base += "1.submodule."
    return levels


def _residual(shapes: Shapes, base: str, units: int) -> Shape | None:
    """Return the kernel of the way round the residual units: 1s if the stride is 1; () if none."""
    return shapes.get(f"{base}0.residual.weight", ())[2:] if units else None


def _take_ordering(found: Draft, shapes: Shapes, adn: str) -> None:
    """See in the order of names whether activation came before normalisation.

    Only where the file keeps the network's own order: there a weight comes before its bias, and in
    the alphabetical order of safetensors it does not.
    """
    names = list(shapes)
    activations = [n for n, name in enumerate(names) if name == f"{adn}.A.weight"]
    norms = [n for n, name in enumerate(names) if name.startswith(f"{adn}.N.")]
    weight, bias = f"{adn}.N.weight", f"{adn}.N.bias"
    kept = weight in shapes and bias in shapes and names.index(weight) < names.index(bias)
    if kept and activations and norms and activations[0] < norms[0]:
        found.arguments["adn_ordering"] = "AND"


def _take_strides(found: Draft, residuals: list[Shape | None], kernel: Shape) -> None:
    flat = any(n == 1 for n in kernel) and any(n > 1 for n in kernel)
    thin = tuple(1 if n == 1 else 2 for n in kernel)
    for residual in residuals:
        found.choices.append(_options(residual, kernel, thin if flat else None))
    chosen = [options[0] for options in found.choices]
    found.arguments["strides"] = [list(stride) for stride in chosen]
    if any(stride != (1,) * len(kernel) for stride in chosen):
        why = " as the flat kernels suggest" if flat else ""
        found.assumed["strides"] = (
            f"strides {tuple(chosen)} were assumed{why}; they cannot be seen in the weights: give "
            'arguments={"strides": ...} if they were others in training'
        )


def _options(residual: Shape | None, kernel: Shape, thin: Stride | None) -> tuple[Stride, ...]:
    """Return the strides that a level may have, what is assumed first.

    Along one axis only the sections may be left as they are, or the axis along which the kernel is
    flat.
    """
    dims = len(kernel)
    if residual is not None and set(residual) <= {1} and set(kernel) != {1}:
        return ((1,) * dims,)
    every = (2,) * dims
    if dims == 2:
        return (thin or every,)
    return (every, (1, 2, 2)) if thin is None else (thin, every)
