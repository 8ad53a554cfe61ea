"""Checkpoints: told apart by what is in them, loaded without running code, and reported on.

Importing this package does not import torch; loading does.
"""

from napari_seamless.models.checkpoint import (
    Checkpoint,
    LoadedModel,
    inspect_checkpoint,
    load_model,
    read_checkpoint,
)
from napari_seamless.models.reporting.report import MismatchError, ModelReport
from napari_seamless.models.sniff import sniff_format

__all__ = [
    "Checkpoint",
    "LoadedModel",
    "MismatchError",
    "ModelReport",
    "inspect_checkpoint",
    "load_model",
    "read_checkpoint",
    "sniff_format",
]
