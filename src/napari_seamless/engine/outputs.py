"""What a network returns: its heads, their channels, and the values made of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seamless.engine.blended import Finish
from napari_seamless.engine.box import Triple
from napari_seamless.engine.channels import PerChannel
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ModelError, PredictionError


@dataclass(frozen=True)
class Channels:
    """Which channels of the blended volume are what.

    All heads of a network are blended side by side, their spread after them, and then how much
    patches disagree about the head that is shown::

        channel     0   1   2   3   4     5   6   7   8   9     10  11  12
                    [ affinity ][ mask ]  [ spread of each ]    [ affinity ]

    Attributes
    ----------
    heads : mapping of str to slice
        The channels of each head, in the network's order.
    shown : str
        The head that is shown, and written as the prediction.
    has_spread : bool
        Whether the spread of every channel follows.
    has_disagreement : bool
        Whether the disagreement of the channels of the shown head follows.
    """

    heads: Mapping[str, slice]
    shown: str
    has_spread: bool
    has_disagreement: bool = False

    @property
    def predicted(self) -> int:
        """Channels of all heads."""
        return max(int(part.stop) for part in self.heads.values())

    @property
    def total(self) -> int:
        """Channels that are blended."""
        deviations = self.disagreement
        return int(deviations.stop if self.has_disagreement else deviations.start)

    @property
    def disagreement(self) -> slice:
        """The channels of the disagreement, if there is one."""
        first = self.predicted * (2 if self.has_spread else 1)
        shown = self.heads[self.shown]
        return slice(first, first + shown.stop - shown.start)

    @property
    def squared(self) -> slice | None:
        """The channels whose squares are blended, too, for the disagreement."""
        return self.heads[self.shown] if self.has_disagreement else None

    def spread_of(self, head: str) -> slice:
        """Return the channels of a head's spread."""
        part = self.heads[head]
        return slice(part.start + self.predicted, part.stop + self.predicted)


def heads_of(output: object, chosen: str | None, ndim: int) -> dict[str, torch.Tensor]:
    """Return a network's heads by name; those of a tuple or list are called "0", "1", ...

    Parameters
    ----------
    output : object
        What the network returned. None beside tensors, as for a loss that is not computed, is left
        out.
    chosen : str or None
        The head that counts; then anything else that is no image is left out, too.
    ndim : int
        Axes of an image: those of the network's input.

    Raises
    ------
    ModelError
        If the output is neither a tensor nor a tuple, list or dict of tensors, or there is no head
        of the chosen name.
    """
    heads = _named(output)
    _check_exists(chosen, heads)
    counts = {name: head for name, head in heads.items() if _may_count(head, chosen, ndim)}
    if chosen is not None:
        counts[chosen] = heads[chosen]
    strange = [type(h).__name__ for h in counts.values() if not isinstance(h, torch.Tensor)]
    if strange or not counts:
        raise ModelError(
            f"the network returned {strange[0] if strange else 'nothing'} where a tensor is "
            "needed; it must return one tensor (B, C, Z, Y, X), or a tuple, list or dict of them: "
            "where only some are, name the one that counts with head"
        )
    return {name: h for name, h in counts.items() if isinstance(h, torch.Tensor)}


def _check_exists(chosen: str | None, heads: Mapping[str, object]) -> None:
    if chosen is not None and chosen not in heads:
        raise ModelError(
            f"head {chosen!r} does not exist; the network returns {', '.join(map(repr, heads))}"
        )


def _may_count(head: object, chosen: str | None, ndim: int) -> bool:
    return head is not None if chosen is None else getattr(head, "ndim", 0) == ndim


def file_name(head: str) -> str:
    """Return the name that a head has in a file, where '/' makes folders."""
    return head.replace("/", "_")


def _named(output: object) -> dict[str, object]:
    if isinstance(output, Mapping):
        heads = {str(name) or "unnamed": head for name, head in output.items()}
        if len({file_name(name) for name in heads}) < len(output):
            raise ModelError(
                f"two of the network's heads {', '.join(map(repr, output))} would have one name "
                "in a file; give them other names"
            )
        return heads
    if isinstance(output, Sequence) and not isinstance(output, str):
        return {str(index): head for index, head in enumerate(output)}
    return {"0": output}


def finest(heads: Mapping[str, torch.Tensor], chosen: str | None) -> dict[str, torch.Tensor]:
    """Return the heads that are as large as the chosen one, or as the largest.

    Deep supervision returns coarser outputs beside the one that counts; these are left out.

    Raises
    ------
    ModelError
        If there is no head of the chosen name.
    """
    _check_exists(chosen, heads)
    size = (
        heads[chosen].shape[2:]
        if chosen is not None
        else max((head.shape[2:] for head in heads.values()), key=lambda shape: shape.numel())
    )
    return {name: head for name, head in heads.items() if head.shape[2:] == size}


class JoinedHeads:
    """Lays a network's heads side by side, batch after batch, and applies the activation.

    Parameters
    ----------
    config : InferenceConfig
        For `head`, `activation`, `blend_logits` and whether there is a spread.

    Attributes
    ----------
    channels : Channels or None
        Which channels are what; known after the first batch.
    """

    def __init__(self, config: InferenceConfig) -> None:
        self._config = config
        self._activations = config.activations
        self.channels: Channels | None = None
        self._earlier: torch.Tensor | None = None
        self._is_fresh: bool | None = None

    def __call__(self, heads: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the heads of one batch, (B, C, Z, Y, X) each, as float32 (B, C', Z, Y, X).

        Raises
        ------
        ConfigError
            If the activation names channels that are not there.
        PredictionError
            If heads or channels are not those of the first batch.
        """
        heads = finest(heads, self._config.head)
        config = self._config
        channels = channels_of(heads, config.head, config.has_spread, config.disagreement)
        if self.channels is None:
            self._activations.parts(channels.predicted)
            self.channels = channels
        elif channels != self.channels:
            raise PredictionError(
                f"the network returned {_described(channels)} after {_described(self.channels)} "
                "before; it must always return the same"
            )
        values = self._own([head.float() for head in heads.values()])
        if not self._config.blend_logits:
            values = activated(values, self._activations, channels)
        return values

    def _own(self, heads: list[torch.Tensor]) -> torch.Tensor:
        """Return heads side by side, in memory that the network does not use again.

        Some networks return the same memory at every call. Whether this one does is seen at its
        second call, while the first result is kept; what is new each time needs no copy.
        """
        if len(heads) == 1 and self._is_fresh:
            return heads[0]
        if self._is_fresh is None:
            if self._earlier is not None and self._earlier.shape == heads[0].shape:
                self._is_fresh = heads[0].data_ptr() != self._earlier.data_ptr()
            self._earlier = heads[0] if self._is_fresh is None else None
        return torch.cat(heads, dim=1)


def _described(channels: Channels) -> str:
    return ", ".join(
        f"{part.stop - part.start} channels in head {name!r}"
        for name, part in channels.heads.items()
    )


def channels_of(
    heads: Mapping[str, torch.Tensor],
    chosen: str | None,
    has_spread: bool,
    has_disagreement: bool = False,
) -> Channels:
    """Return which channels the heads take when they lie side by side."""
    slices, first = {}, 0
    for name, head in heads.items():
        slices[name] = slice(first, first + head.shape[1])
        first += head.shape[1]
    shown = next(iter(heads)) if chosen is None else chosen
    return Channels(slices, shown, has_spread, has_disagreement)


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


def centre(output: torch.Tensor, size: Triple) -> torch.Tensor:
    """Cut the inner `size` voxels out of an output (B, C, Z, Y, X)."""
    starts = [(whole - part) // 2 for whole, part in zip(output.shape[2:], size, strict=True)]
    z, y, x = (slice(low, low + part) for low, part in zip(starts, size, strict=True))
    return output[:, :, z, y, x]


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
        batch, count = torch.from_numpy(values)[None], layout.predicted  # (1, C, z, y, x)
        prediction = activated(batch[:, :count], activations, layout)
        return torch.cat([prediction, batch[:, count:]], dim=1)[0].numpy()

    return finish
