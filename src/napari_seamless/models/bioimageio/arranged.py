"""A network whose tensors have their axes in another order than here, or fewer of them.

there    (B, Y, X, C), (C, Z, Y, X), (B, Y, X) ...
here     (B, C, Y, X) or (B, C, Z, Y, X), float32
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from napari_seamless.engine.errors import ModelError

ORDERS = {4: "bcyx", 5: "bczyx"}
"""The axes of a batch here, by their number."""


class Arranged(nn.Module):
    """A network called with its own axes.

    Parameters
    ----------
    network : torch.nn.Module
        Takes one tensor, returns one, or a tuple, list or dict of them.
    taken : str
        The axes of its input, of "bczyx".
    given : mapping of str to (int, str)
        For each output that counts its position and its axes. Several become a dict of heads.
    dtype : torch.dtype
        Of its input.
    """

    def __init__(
        self,
        network: nn.Module,
        taken: str,
        given: Mapping[str, tuple[int, str]],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.network = network
        self._taken = taken
        self._given = dict(given)
        self._dtype = dtype

    def forward(self, patches: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Call the network.

        Parameters
        ----------
        patches : Tensor of float32, shape (B, C, Z, Y, X) or (B, C, Y, X)

        Returns
        -------
        Tensor or dict of str to Tensor
            Axes as in `patches`; a dict by name if there are several outputs.

        Raises
        ------
        ModelError
            If the network takes other axes, one patch or one channel only, or returns too little.
        """
        order = ORDERS[patches.ndim]
        outputs = _listed(self.network(_there(patches.to(self._dtype), order, self._taken)))
        images = {
            name: _here(_at(outputs, position), axes, order)
            for name, (position, axes) in self._given.items()
        }
        return images if len(images) > 1 else next(iter(images.values()))


def _there(patches: torch.Tensor, order: str, taken: str) -> torch.Tensor:
    """Return patches of the axes `order` with the axes `taken`."""
    if set(order) - set("bc") != set(taken) - set("bc"):
        raise ModelError(
            f"the network takes the axes {', '.join(taken)}, not a batch of {', '.join(order[2:])}"
        )
    for letter, name in (("c", "channel"), ("b", "patch at a time")):
        if letter in taken:
            continue
        axis = order.index(letter)
        if patches.shape[axis] != 1:
            raise ModelError(f"the network takes one {name}, not {patches.shape[axis]}")
        patches, order = patches.select(axis, 0), order.replace(letter, "")
    return patches.permute([order.index(letter) for letter in taken]).contiguous()


def _here(output: Any, axes: str, order: str) -> torch.Tensor:
    """Return an output of the axes `axes` with the axes `order`; new ones have length 1."""
    if not isinstance(output, torch.Tensor) or output.ndim != len(axes):
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ModelError(f"the network returned {found}, not a tensor of axes {', '.join(axes)}")
    here: torch.Tensor = output.permute([axes.index(letter) for letter in order if letter in axes])
    for axis, letter in enumerate(order):
        if letter not in axes:
            here = here.unsqueeze(axis)
    return here


def _at(outputs: Sequence[Any], position: int) -> Any:
    if position >= len(outputs):
        raise ModelError(
            f"the network returned {len(outputs)} outputs; its file says that there are at least "
            f"{position + 1}"
        )
    return outputs[position]


def _listed(returned: object) -> Sequence[Any]:
    if isinstance(returned, Mapping):
        return list(returned.values())
    return returned if isinstance(returned, (list, tuple)) else [returned]
