"""Calls of a network with inputs of random values, which leave the network as it was."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import torch
from torch import nn

from napari_seamless.engine.failed_call import reason_of
from napari_seamless.engine.outputs import finest, heads_of

MOST_VOXELS = 4_000_000
"""Of one input; what a network keeps meanwhile is many times as much."""


class RefusedError(Exception):
    """A network did not take an input, or made no image of it."""


class OutOfTimeError(Exception):
    """The time for all trials is over."""


@dataclass(frozen=True)
class Input:
    """The shape of an input.

    Attributes
    ----------
    channels : int
        C.
    size : tuple of int
        Voxels, (Z, Y, X) or (Y, X).
    batch : int
        B.
    """

    channels: int
    size: tuple[int, ...]
    batch: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, C, Z, Y, X) or (B, C, Y, X)."""
        return (self.batch, self.channels, *self.size)

    @property
    def is_small(self) -> bool:
        """Whether it is small enough to be tried."""
        return self.batch * math.prod(self.size) <= MOST_VOXELS

    def longer(self, axis: int, step: int) -> "Input":
        """Return the input with so many voxels more along an axis."""
        size = list(self.size)
        size[axis] += step
        return replace(self, size=tuple(size))


class Trials:
    """Calls a network until time is up.

    Parameters
    ----------
    module : torch.nn.Module
        On any device; inputs are given on that of its first parameter.
    head : str or None
        The head that counts; by default the first.
    seconds : float
        For all calls; only the last one may end later.
    clock : callable
        Tells the time in seconds.

    Attributes
    ----------
    seconds : float
        As given.
    """

    def __init__(
        self, module: nn.Module, head: str | None, seconds: float, clock: Callable[[], float]
    ) -> None:
        self._module = module
        self._device = next((each.device for each in module.parameters()), torch.device("cpu"))
        self._head = head
        self._clock = clock
        self._start = clock()
        self.seconds = seconds
        self._sizes: dict[Input, tuple[int, ...] | None] = {}

    @property
    def taken(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    def heads(self, given: Input) -> tuple[dict[str, torch.Tensor], str]:
        """Return what the network makes of an input, and what else it returns, in words.

        The same values are given for the same shape; a larger batch starts with those of a smaller
        one. Heads are those that the engine would blend: images, as large as the one that counts.

        Raises
        ------
        RefusedError
            If the network raises anything, or returns no image.
        OutOfTimeError
            If time was up before.
        """
        if self.taken >= self.seconds:
            raise OutOfTimeError
        try:
            with torch.inference_mode():
                heads = heads_of(
                    self._module(_values(given).to(self._device)), self._head, len(given.shape)
                )
        except (Exception, SystemExit) as error:  # a network may raise anything
            raise RefusedError(reason_of(error)) from error
        images = {name: each for name, each in heads.items() if _is_image(each, given)}
        if not images or (self._head or next(iter(images))) not in images:
            shapes = ", ".join(str(tuple(each.shape)) for each in heads.values())
            raise RefusedError(f"it made {shapes} of {given.shape}")
        counting = finest(images, self._head)
        self._sizes[given] = tuple(next(iter(counting.values())).shape[2:])
        return counting, _left_out(heads, images, counting)

    def size(self, given: Input) -> tuple[int, ...] | None:
        """Return the size of what the network makes of an input; None if it does not take it."""
        if given not in self._sizes:
            self._sizes[given] = None
            with suppress(RefusedError):
                self.heads(given)
        return self._sizes[given]


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode; its modes and torch's random state are as before after.

    Warnings are about inputs that the user did not choose, and are not shown.
    """
    training = [part for part in module.modules() if getattr(part, "training", False)]
    for part in training:
        part.training = False
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for part in training:
            part.training = True


def _values(given: Input) -> torch.Tensor:
    """Return values from 0 to 1, as most ways to normalise make them."""
    random = torch.Generator().manual_seed(0)
    return torch.rand(given.shape, generator=random)


def _is_image(head: torch.Tensor, given: Input) -> bool:
    is_batch = head.ndim == len(given.shape) and head.shape[0] == given.batch
    return is_batch and head.numel() > 0


def _left_out(
    heads: Mapping[str, object], images: Mapping[str, object], counting: Mapping[str, object]
) -> str:
    strange = [repr(name) for name in heads if name not in images]
    coarse = [repr(name) for name in images if name not in counting]
    texts = []
    if strange:
        texts.append(f"what is no image ({', '.join(strange)}): name the head that counts")
    if coarse:
        texts.append(f"heads of another size ({', '.join(coarse)}), which are left out")
    return f"it also returns {' and '.join(texts)}" if texts else ""
