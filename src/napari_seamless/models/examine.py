"""What can be said of a network without running it."""

from typing import Any

import torch

from napari_seamless.models.opened import Opened
from napari_seamless.models.weights import StateDict

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def examined(opened: Opened) -> dict[str, Any]:
    """Return the fields of a `ModelReport` that come from what was found in the file."""
    facts = {
        name: value for name, value in vars(opened).items() if name not in ("module", "tensors")
    }
    return facts | {
        "parameters": parameter_count(opened.tensors),
        "tensors": len(opened.tensors),
        "non_finite": non_finite(opened.tensors),
    }


def parameter_count(tensors: StateDict) -> int:
    """Return how many numbers were learnt, running statistics of normalisation not counted."""
    return sum(
        tensor.numel()
        for name, tensor in tensors.items()
        if name.rpartition(".")[2] not in _BUFFERS
    )


def non_finite(tensors: StateDict) -> tuple[str, ...]:
    """Return the names of tensors with NaN or infinity in them."""
    return tuple(
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    )
