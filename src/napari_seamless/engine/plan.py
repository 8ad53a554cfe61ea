"""Settings and sources, checked against each other and frozen, with what the run will cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from napari_seamless.engine.blending import Window
from napari_seamless.engine.box import Triple
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError, SourceError
from napari_seamless.engine.source import Source
from napari_seamless.engine.volume_plan import VolumePlan, input_size_of, volume_plan, window_of

MOST_VOXELS = 2**31 - 1
"""Of one patch: torch's convolutions index with 32 bits."""


@dataclass(frozen=True, eq=False)
class InferencePlan:
    """A checked run: nothing downstream validates again.

    Attributes
    ----------
    config : InferenceConfig
        The settings as given.
    device : torch.device
        Where the network runs; "auto" is resolved.
    input_size : tuple of int
        Voxels that the network gets at once, (Z, Y, X): the patch and its halo.
    core_size : tuple of int
        Voxels of the source that a patch contributes: the patch, or less if the network's output
        is smaller than its input.
    window : Window
        Weights of every patch, in voxels of the output.
    volumes : tuple of VolumePlan
        In the order of the sources.
    """

    config: InferenceConfig
    device: torch.device
    input_size: Triple
    core_size: Triple
    window: Window
    volumes: tuple[VolumePlan, ...]

    @classmethod
    def resolve(cls, config: InferenceConfig, sources: Sequence[Source]) -> "InferencePlan":
        """Check settings and sources against each other and this machine.

        Raises
        ------
        ConfigError
            If the device is not there, or the region is not inside a volume.
        SourceError
            If there is no source, or volumes differ in their channels.
        """
        if not isinstance(config, InferenceConfig):
            raise ConfigError(f"config is a {type(config).__name__}; give an InferenceConfig(...)")
        input_size = input_size_of(config)
        if math.prod(input_size) > MOST_VOXELS:
            raise ConfigError(
                f"patch_size {config.patch_size} with its halo has {math.prod(input_size):,} "
                f"voxels; a network takes at most {MOST_VOXELS:,} at once"
            )
        if not sources:
            raise SourceError("the list of sources is empty; give at least one volume")
        if len({source.shape[0] for source in sources}) > 1:
            channels = [source.shape[0] for source in sources]
            raise SourceError(
                f"volumes have {channels} channels; those of one run must have the same"
            )
        volumes = tuple(
            volume_plan(vol_id, source, config, config.patch_size)
            for vol_id, source in enumerate(sources)
        )
        window = window_of(config, config.patch_size)
        device = resolve_device(config.device)
        return cls(config, device, input_size, config.patch_size, window, volumes)

    def narrowed(self, core_size: Triple, sources: Sequence[Source]) -> "InferencePlan":
        """Return the plan for a network of whose input only the inner `core_size` comes out."""
        volumes = tuple(
            volume_plan(volume.vol_id, source, self.config, core_size)
            for volume, source in zip(self.volumes, sources, strict=True)
        )
        window = window_of(self.config, core_size)
        return replace(self, core_size=core_size, window=window, volumes=volumes)

    @property
    def patches(self) -> int:
        """Patches of all volumes."""
        return sum(len(volume.grid) for volume in self.volumes)

    @property
    def redundancy(self) -> float:
        """Voxels that go through the network per voxel of input."""
        voxels = sum(math.prod(volume.region.shape) for volume in self.volumes)
        return self.patches * math.prod(self.input_size) / voxels


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


def check_precision(config: InferenceConfig, device: torch.device) -> None:
    """Raise ConfigError if a device is slower with the precision that is asked for."""
    if config.precision != "float32" and device.type == "cpu":
        raise ConfigError(
            f"precision {config.precision!r} is for GPUs: a CPU takes longer with it (measured: 70 "
            "times); use float32, or another device"
        )


def _devices() -> list[str]:
    """Devices of this machine, the fastest first."""
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [*gpus, *mps, "cpu"]
