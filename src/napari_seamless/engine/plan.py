"""Settings and sources, checked against each other and frozen, with what the run will cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from napari_seamless.engine.blending import Window, build_window
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError, SourceError
from napari_seamless.engine.grid import Box, PatchGrid
from napari_seamless.engine.source import Shape4, Source, spatial_shape

MOST_VOXELS = 2**31 - 1
"""Of one patch: torch's convolutions index with 32 bits."""


@dataclass(frozen=True)
class VolumePlan:
    """What will be done to one volume.

    Attributes
    ----------
    vol_id : int
        Its place in the list of sources.
    name : str
        What messages call it.
    shape : tuple of int
        (C, Z, Y, X).
    dtype : dtype
        As stored.
    grid : PatchGrid
        Its patches.
    """

    vol_id: int
    name: str
    shape: Shape4
    dtype: np.dtype[Any]
    grid: PatchGrid

    @property
    def box(self) -> Box:
        """The whole volume."""
        return Box.of_shape(self.grid.shape)


@dataclass(frozen=True, eq=False)
class InferencePlan:
    """A checked run: nothing downstream validates again.

    Attributes
    ----------
    config : InferenceConfig
        The settings as given.
    device : torch.device
        Where the network runs; "auto" is resolved.
    window : Window
        Weights of every patch.
    volumes : tuple of VolumePlan
        In the order of the sources.
    """

    config: InferenceConfig
    device: torch.device
    window: Window
    volumes: tuple[VolumePlan, ...]

    @classmethod
    def resolve(cls, config: InferenceConfig, sources: Sequence[Source]) -> "InferencePlan":
        """Check settings and sources against each other and this machine.

        Raises
        ------
        ConfigError
            If the device is not there.
        SourceError
            If there is no source, or volumes differ in their channels.
        """
        if not isinstance(config, InferenceConfig):
            raise ConfigError(f"config is a {type(config).__name__}; give an InferenceConfig(...)")
        if math.prod(config.patch_size) > MOST_VOXELS:
            raise ConfigError(
                f"patch_size {config.patch_size} has {math.prod(config.patch_size):,} voxels; "
                f"a network takes at most {MOST_VOXELS:,} at once"
            )
        if not sources:
            raise SourceError("the list of sources is empty; give at least one volume")
        if len({source.shape[0] for source in sources}) > 1:
            channels = [source.shape[0] for source in sources]
            raise SourceError(
                f"volumes have {channels} channels; those of one run must have the same"
            )
        volumes = tuple(
            VolumePlan(
                vol_id,
                source.name,
                source.shape,
                source.dtype,
                PatchGrid(spatial_shape(source), config.patch_size, config.overlap),
            )
            for vol_id, source in enumerate(sources)
        )
        window = build_window(config.patch_size, config.blending)
        return cls(config, resolve_device(config.device), window, volumes)

    @property
    def patches(self) -> int:
        """Patches of all volumes."""
        return sum(len(volume.grid) for volume in self.volumes)

    @property
    def redundancy(self) -> float:
        """Voxels that go through the network per voxel of input."""
        voxels = sum(int(np.prod(volume.grid.shape)) for volume in self.volumes)
        return self.patches * int(np.prod(self.config.patch_size)) / voxels


def resolve_device(name: str) -> torch.device:
    """Return the torch device that a config's `device` means on this machine.

    Raises
    ------
    ConfigError
        If there is no such device here.
    """
    devices = _devices()
    if name == "auto":
        return torch.device(devices[0])
    if name not in devices and not (name == "cuda" and "cuda:0" in devices):
        raise ConfigError(
            f"device {name!r} is not on this machine; choose one of auto, {', '.join(devices)}"
        )
    return torch.device(name)


def _devices() -> list[str]:
    """Devices of this machine, the fastest first."""
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [*gpus, *mps, "cpu"]
