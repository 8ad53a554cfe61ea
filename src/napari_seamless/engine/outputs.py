"""What a network returns: its heads, their channels, and the values made of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seamless.engine.accumulator import Finish
from napari_seamless.engine.channels import PerChannel
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ModelError


@dataclass(frozen=True)
class Channels:
    """Which channels of the blended volume are what.

    All heads of a network are blended side by side, and their spread after them::

        channel     0   1   2   3   4     5   6   7   8   9
                    [ affinity ][ mask ]  [ spread of each ]

    Attributes
    ----------
    heads : mapping of str to slice
        The channels of each head, in the network's order.
    shown : str
        The head that is shown, and written as the prediction.
    has_spread : bool
        Whether the spread of every channel follows.
    """

    heads: Mapping[str, slice]
    shown: str
    has_spread: bool

    @property
    def predicted(self) -> int:
        """Channels of all heads."""
        return max(int(part.stop) for part in self.heads.values())

    @property
    def total(self) -> int:
        """Channels that are blended."""
        return self.predicted * (2 if self.has_spread else 1)

    def spread_of(self, head: str) -> slice:
        """Return the channels of a head's spread."""
        part = self.heads[head]
        return slice(part.start + self.predicted, part.stop + self.predicted)


def heads_of(output: object) -> dict[str, torch.Tensor]:
    """Return a network's heads by name; those of a tuple or list are called "0", "1", ...

    Raises
    ------
    ModelError
        If the output is neither a tensor nor a tuple, list or dict of tensors.
    """
    if isinstance(output, torch.Tensor):
        return {"0": output}
    if isinstance(output, Mapping):
        heads = {str(name) or "unnamed": head for name, head in output.items()}
    elif isinstance(output, Sequence) and not isinstance(output, str):
        heads = {str(index): head for index, head in enumerate(output)}
    else:
        heads = {"": output}
    strange = [head for head in heads.values() if not isinstance(head, torch.Tensor)]
    if strange or not heads:
        kind = type(strange[0]).__name__ if strange else "nothing"
        raise ModelError(
            f"the network returned {kind} where a tensor is needed; it must return one tensor "
            "(B, C, Z, Y, X), or a tuple, list or dict of them"
        )
    return heads


def finest(heads: Mapping[str, torch.Tensor], chosen: str | None) -> dict[str, torch.Tensor]:
    """Return the heads that are as large as the chosen one, or as the largest.

    Deep supervision returns coarser outputs beside the one that counts; these are left out.

    Raises
    ------
    ModelError
        If there is no head of the chosen name.
    """
    if chosen is not None and chosen not in heads:
        raise ModelError(
            f"head {chosen!r} does not exist; the network returns {', '.join(map(repr, heads))}"
        )
    size = (
        heads[chosen].shape[2:]
        if chosen is not None
        else max((head.shape[2:] for head in heads.values()), key=lambda shape: shape.numel())
    )
    return {name: head for name, head in heads.items() if head.shape[2:] == size}


def channels_of(
    heads: Mapping[str, torch.Tensor], chosen: str | None, has_spread: bool
) -> Channels:
    """Return which channels the heads take when they lie side by side."""
    slices, first = {}, 0
    for name, head in heads.items():
        slices[name] = slice(first, first + head.shape[1])
        first += head.shape[1]
    return Channels(slices, next(iter(heads)) if chosen is None else chosen, has_spread)


def activated(values: torch.Tensor, activations: PerChannel, channels: Channels) -> torch.Tensor:
    """Apply the activation to the channels of all heads.

    Parameters
    ----------
    values : Tensor, shape (B, C, ...)
        The heads side by side.
    activations : PerChannel
        One word works on each head by itself; ranges count the channels of all heads.
    channels : Channels
        Which channels are which head.

    Returns
    -------
    Tensor, shape (B, C, ...)
    """
    if activations.ranges:
        parts = activations.parts(channels.predicted)
    else:
        parts = [(part, activations.word) for part in channels.heads.values()]
    if all(word == "none" for _, word in parts):
        return values
    return torch.cat([_ACTIVATE[word](values[:, part]) for part, word in parts], dim=1)


_ACTIVATE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda values: values,
    "sigmoid": torch.sigmoid,
    "softmax": partial(torch.softmax, dim=1),
    "tanh": torch.tanh,
}


def finisher(config: InferenceConfig, channels: Callable[[], Channels | None]) -> Finish | None:
    """Return what is done to blended voxels: the activation, if logits are what is blended.

    Parameters
    ----------
    config : InferenceConfig
        The settings.
    channels : callable
        Which channels are what; called once they are known. A spread stays as it is.
    """
    if not config.blend_logits:
        return None
    activations = config.activations

    def finish(values: NDArray[np.float32]) -> NDArray[np.float32]:
        layout = channels()
        if layout is None:
            raise AssertionError("nothing is blended before the channels are known")
        logits = torch.from_numpy(values)[np.newaxis]  # (1, C, z, y, x)
        count = layout.predicted
        activated_ = activated(logits[:, :count], activations, layout)
        return torch.cat([activated_, logits[:, count:]], dim=1)[0].numpy()

    return finish
