"""Networks whose file fixes the number of patches, of channels, or the size of a patch."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.opened import Shape


class FixedInput(nn.Module):
    """Lets a network take any number of patches, and says what it does not take.

    A network that takes, say, 4 patches at a time gets a batch in pieces of 4; the last piece is
    filled up with copies of its last patch, and what is made of those is cut off::

        batch   [1 2 3 4 5 6]  ->  [1 2 3 4] [5 6 6 6]  ->  [1 2 3 4 5 6]

    Parameters
    ----------
    module : torch.nn.Module
        Takes a tensor of that shape; returns a tensor, or a tuple, list or dict of them.
    shape : tuple of int or None
        (B, C, Z, Y, X), or (B, C, Y, X) if it is 2-D; None where any number will do.

    Attributes
    ----------
    spatial_dims : int
        2 or 3.

    Raises
    ------
    ModelError
        If there are not 4 or 5 axes; when called, if the input is not of that shape.
    """

    def __init__(self, module: nn.Module, shape: Shape) -> None:
        super().__init__()
        if len(shape) not in (4, 5):
            raise ModelError(
                f"the network takes an input of {len(shape)} axes, {shape_text(shape)}; give one "
                "that takes (B, C, Z, Y, X), or (B, C, Y, X) if it is 2-D"
            )
        self.module = module
        self.shape = tuple(shape)
        self.spatial_dims = len(shape) - 2

    def forward(self, batch: torch.Tensor) -> Any:
        """Return what the network makes of a batch.

        Parameters
        ----------
        batch : Tensor, shape (B, C, Z, Y, X) or (B, C, Y, X)
        """
        self._check(batch)
        size = self.shape[0]
        if size is None or size == len(batch):
            return self.module(batch)
        return _joined([self.module(piece) for piece in _pieces(batch, size)], size, len(batch))

    def _check(self, batch: torch.Tensor) -> None:
        if batch.ndim != len(self.shape):
            is_2d = self.spatial_dims == 2
            raise ModelError(
                f"the network is {self.spatial_dims}-D and was given {tuple(batch.shape)}; "
                f"set planes={'z' if is_2d else 'none'!r}"
            )
        channels, *size = self.shape[1:]
        if channels not in (None, batch.shape[1]):
            raise ModelError(
                f"the network takes {channels} channel{'s' * (channels != 1)}, not "
                f"{batch.shape[1]}; give a volume that has as many"
            )
        if any(most not in (None, n) for most, n in zip(size, batch.shape[2:], strict=True)):
            raise ModelError(
                f"the network takes {'planes' if len(size) == 2 else 'patches'} of "
                f"{shape_text(size)} only, not {tuple(batch.shape[2:])}; set patch_size to that, "
                "less twice the halo if there is one"
            )


def settings_of(shape: Shape | None) -> dict[str, Any]:
    """Return the settings that a network's input shape (B, C, Z, Y, X) or (B, C, Y, X) implies."""
    if shape is None:
        return {}
    batch, _, *size = shape
    settings: dict[str, Any] = {"planes": "z" if len(size) == 2 else "none"}
    if None not in size:
        settings["patch_size"] = tuple([1] * (3 - len(size)) + size)
    if batch is not None:
        settings["batch_size"] = batch
    return settings


def shape_text(shape: Any) -> str:
    """Return a shape as text, "any" where any number will do."""
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"


def _pieces(batch: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Yield the patches `size` at a time, the last ones filled up with copies of the last."""
    for piece in batch.split(size):
        missing = size - len(piece)
        yield torch.cat([piece, piece[-1:].expand(missing, *piece.shape[1:])]) if missing else piece


def _joined(parts: list[Any], size: int, count: int) -> Any:
    """Return the outputs of pieces of `size` patches as one, of the first `count` patches."""
    first = parts[0]
    if isinstance(first, torch.Tensor):
        # What is not per patch (a loss) stays as it is: the engine leaves it out, or refuses it.
        whole = first.ndim > 0 and len(first) == size
        return torch.cat(parts)[:count] if whole else first
    join: Callable[[list[Any]], Any] = lambda each: _joined(each, size, count)  # noqa: E731
    if isinstance(first, Mapping):
        return {name: join([part[name] for part in parts]) for name in first}
    if isinstance(first, tuple | list):
        return [join(list(each)) for each in zip(*parts, strict=True)]
    return first
