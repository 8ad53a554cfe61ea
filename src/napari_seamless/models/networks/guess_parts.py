"""What names and shapes of tensors say about the parts that networks of MONAI are made of."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from napari_seamless.models.networks.strides import Stride

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""The shapes of a network's tensors by its own names, in the order of the file."""


@dataclass
class Draft:
    """A network as its tensors describe it; nothing is built yet.

    Attributes
    ----------
    name : str
        The class in `monai.networks.nets`.
    arguments : dict
        What it is called with; only what JSON can say.
    assumed : dict
        For each argument that the tensors do not say, a line about what was assumed. Of no interest
        if the caller gives the argument.
    choices : list of tuple of tuple of int
        The strides that each level may have, the top first; empty if the tensors say them.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    assumed: dict[str, str] = field(default_factory=dict)
    choices: list[tuple[Stride, ...]] = field(default_factory=list)

    def take(self, argument: str, found: tuple[Any, str]) -> None:
        """Add an argument and what was assumed about it, or ""."""
        self.arguments[argument], assumed = found
        if assumed:
            self.assumed[argument] = assumed


def spatial_dims(shape: Shape) -> int:
    """Return 2 or 3, from the shape of a convolution's kernel.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if len(shape) not in (4, 5):
        raise ValueError(f"no kernel of a 2-D or 3-D convolution: {shape}")
    return len(shape) - 2


def size(numbers: Iterable[int]) -> int | list[int]:
    """Return sizes as one number if they are all the same."""
    sizes = list(numbers)
    return sizes[0] if len(set(sizes)) == 1 else sizes


def count(shapes: Shapes, pattern: str, first: int = 0) -> int:
    """Return how many names there are, counting up from `first` in the place of {}."""
    found = 0
    while pattern.format(first + found) in shapes:
        found += 1
    return found


def normalisation(
    shapes: Shapes, base: str, channels: int, default: Any, argument: str
) -> tuple[Any, str]:
    """Return the normalisation, as MONAI names it, and what was assumed about it.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Of all tensors.
    base : str
        The name of the first layer of normalisation, if there is one.
    channels : int
        How many it normalises.
    default : str or list
        MONAI's.
    argument : str
        How the network calls the argument.
    """
    weight = shapes.get(f"{base}.weight")
    if f"{base}.running_mean" in shapes:
        return ("batch" if weight else ["batch", {"affine": False}]), ""
    if weight is None:
        return "instance", (
            "normalisation has no tensors here: instance normalisation without weights was "
            f'assumed; give arguments={{"{argument}": ""}} if there was none in training'
        )
    if weight != (channels,):
        return ["layer", {"normalized_shape": list(weight)}], ""
    groups, instance = ["group", {"num_groups": 8}], ["instance", {"affine": True}]
    chosen = groups if default == groups and channels % 8 == 0 else instance
    other = ["instance", {"affine": True}] if chosen is groups else ["group", {"num_groups": 4}]
    return chosen, (
        f"normalisation: {_described(chosen, default)} was assumed, and its weights would fit "
        f"others as well; give {_given(argument, other)} or whatever it was in training"
    )


def activation(shapes: Shapes, base: str, default: Any, argument: str) -> tuple[Any, str]:
    """Return the activation, as MONAI names it, and what was assumed about it.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Of all tensors.
    base : str
        The name of the first activation, if it has weights.
    default : str or list
        MONAI's; if that has weights and the network's activation has none, it is taken for a ReLU.
    argument : str
        How the network calls the argument.
    """
    weight = shapes.get(f"{base}.weight")
    if weight is not None:
        return ("prelu" if weight == (1,) else ["prelu", {"num_parameters": weight[0]}]), ""
    chosen = "relu" if default == "prelu" else default
    is_relu = str(chosen if isinstance(chosen, str) else chosen[0]).lower() == "relu"
    return chosen, (
        f"the activation has no weights, so it cannot be seen: {_described(chosen, default)} was "
        f"assumed; give {_given(argument, 'leakyrelu' if is_relu else 'relu')} or whatever it was "
        "in training"
    )


def _described(layer: Any, default: Any) -> str:
    """Return a layer as MONAI names it, in words: "leakyrelu (negative_slope 0.1)"."""
    name, settings = (layer, {}) if isinstance(layer, str) else layer
    shown = [f"{key} {value}" for key, value in settings.items() if key != "inplace"]
    shown += ["MONAI's default"] if layer == default else []
    return f"{name.lower()} ({', '.join(shown)})" if shown else name.lower()


def _given(argument: str, value: Any) -> str:
    return f"arguments={json.dumps({argument: value})}"
