"""Networks as they are handed in: opened, told apart, and where they came from."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ModelError
from napari_seamless.engine.source import Source
from napari_seamless.models import LoadedModel, ModelReport, load_model
from napari_seamless.models.reporting.suitability import unsuitable


def network_of(
    model: Any, config: InferenceConfig, sources: Sequence[Source]
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a network and what a file shall say about where it came from.

    Raises
    ------
    ModelError
        If it is no network, cannot be opened, or does not fit the one volume that there is.
    """
    if isinstance(model, str | Path):
        model = load_model(model)
    if isinstance(model, LoadedModel):
        if len(sources) == 1:  # of several volumes, each fails or not for itself
            problem = unsuitable(model.report, config, sources[0])
            if problem is not None:
                raise ModelError(problem)
        return model.module, _provenance(model.report)
    if isinstance(model, nn.Module):
        return model, {"network": type(model).__name__}
    raise ModelError(
        f"a {type(model).__name__} is no network; "
        "give a checkpoint's path, what load_model returns, or a torch.nn.Module"
    )


def _provenance(report: ModelReport) -> dict[str, Any]:
    known = {
        "architecture": report.architecture,
        "arguments": report.to_dict()["arguments"],
        "architecture_origin": report.origin,
        "weights": report.weights,
    }
    return {
        "checkpoint": Path(report.path).name,
        "checkpoint_sha256": report.sha256,
        **{name: value for name, value in known.items() if value},
    }


def network_identity(module: nn.Module, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells one network from another: its checkpoint, or else its weights."""
    if "checkpoint_sha256" in provenance:
        names = ("checkpoint_sha256", "architecture", "arguments", "weights")
        return {name: provenance[name] for name in names if name in provenance}
    hashed = hashlib.blake2b(digest_size=8)
    for name, tensor in module.state_dict().items():
        hashed.update(name.encode())
        if isinstance(tensor, torch.Tensor):
            hashed.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return {"network": type(module).__name__, "network_weights": hashed.hexdigest()}
