"""The patches of a Lightning step: where they are, and which of its tensors predict them."""

from collections.abc import Mapping
from typing import Any

import torch

from napari_seamless.engine.errors import ConfigError, ModelError
from napari_seamless.engine.outputs import heads_of


def positions_of(batch: Any) -> list[tuple[int, ...]]:
    """Return (vol_id, z, y, x) of every patch of a batch."""
    pos = batch.get("pos") if isinstance(batch, Mapping) else None
    if isinstance(pos, torch.Tensor) and pos.ndim == 2:
        return [tuple(row) for row in pos.tolist()]
    if isinstance(pos, (list, tuple)) and all(
        isinstance(axis, torch.Tensor) and axis.ndim == 1 for axis in pos
    ):
        return list(zip(*(axis.tolist() for axis in pos), strict=True))
    raise ConfigError(
        f"a batch is {_described(batch)} with no 'pos' of (vol_id, z, y, x) for every patch; give "
        "the trainer a DataLoader over an InferenceVolumeDataset, with its default collate_fn"
    )


def heads_of_step(
    step: str, returned: object, forwarded: list[object], batch: Mapping[str, Any], count: int
) -> dict[str, torch.Tensor]:
    """Return the prediction of `count` patches: what the step returned, or `forward` in it."""
    heads = _heads_in(returned, batch, count)
    if heads:
        return heads
    made = [heads for output in forwarded if (heads := _heads_in(output, batch, count))]
    if len(made) == 1:
        return made[0]
    if made:
        raise ModelError(
            f"{step} called the module more than once and returned {_described(returned)}; "
            "return the prediction that counts from it"
        )
    seen = f" and forward {_described(forwarded[-1])}" if forwarded else ""
    raise ModelError(
        f"{step} returned {_described(returned)}{seen}, which holds no prediction (B, C, Z, Y, X) "
        f"of {count} patches: return the prediction from {step}, or call self(batch['image']) in it"
    )


def _heads_in(output: object, batch: Mapping[str, Any], count: int) -> dict[str, torch.Tensor]:
    """Return the predictions of `count` patches in an output, by name.

    A step may return the batch beside them, maybe converted to another type.
    """
    found = {
        name: value
        for name, value in patches_in(output).items()
        if value.ndim == 5 and len(value) == count and not _equals(value, batch.get("label"))
    }
    image = batch.get("image")
    others = {name: value for name, value in found.items() if not _equals(value, image)}
    heads = others or found  # an identity network returns the image
    return heads_of(heads, None, 5) if heads else {}


def _equals(value: torch.Tensor, other: object) -> bool:
    if not isinstance(other, torch.Tensor) or other.shape != value.shape:
        return False
    return bool((other.to(value) == value).all())


def patches_in(output: object) -> dict[object, torch.Tensor]:
    """Return the tensors in an output that may be patches, by key or index."""
    entries: Mapping[object, object] = {0: output}
    if isinstance(output, Mapping):
        entries = output
    elif isinstance(output, (list, tuple)):
        entries = dict(enumerate(output))
    return {
        name: value
        for name, value in entries.items()
        if isinstance(value, torch.Tensor) and value.ndim >= 4 and value.is_floating_point()
    }


def _described(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype} {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"
