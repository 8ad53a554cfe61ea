"""Where the patches of one volume are: in the source, and in the prediction; no torch in here.

Along one axis, for one patch:

    input     [. . . . - - - - - - - - . . . .]     what the network gets: core and context
    core              [- - - - - - - -]             what the patch contributes
    output            [= = = =]                     the core at the output's resolution (here 1/2)

The context is the halo, and for a network of valid convolutions also what these cut off.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_seamless.engine.blending import Window
from napari_seamless.engine.box import Box, Scale, Triple, scaled_up
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError
from napari_seamless.engine.geometry import Geometry
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.source import Shape4, Source, spatial_shape
from napari_seamless.engine.windows import build_window


@dataclass(frozen=True, eq=False)
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
    region : Box
        What is predicted, in voxels of the source; the whole volume if nothing else is asked for.
    cores : PatchGrid
        What each patch contributes, in voxels of the source.
    context : tuple of int
        Voxels of the source (Z, Y, X) that the network gets on each side of a core.
    grid : PatchGrid
        The same patches in the frame of the prediction: region and output scale applied.
    scale : tuple of Fraction
        Voxels of the prediction per voxel of the source, (Z, Y, X).
    whole : tuple of int
        Voxels that the prediction of the whole volume would have, (Z, Y, X).
    origin : tuple of int
        Where the prediction starts in that one.
    geometry : Geometry
        Where the voxels of the prediction lie in the world.
    """

    vol_id: int
    name: str
    shape: Shape4
    dtype: np.dtype[Any]
    region: Box
    cores: PatchGrid
    context: Triple
    grid: PatchGrid
    scale: Scale
    whole: Triple
    origin: Triple
    geometry: Geometry

    def input_box(self, index: int) -> Box:
        """Return what the network gets for a patch, in voxels of the source; may reach outside."""
        return self.cores[index].grown(self.context)

    @property
    def facts(self) -> dict[str, Any]:
        """What a file says of where its prediction is from and belongs, as JSON has it."""
        return {
            "source": self.name,
            "origin": list(self.origin),
            "whole": list(self.whole),
            "geometry": self.geometry.facts,
        }

    def output_box(self, box: Box) -> Box:
        """Return the voxels of the prediction that hold a box of the source, maybe outside."""
        z, y, x = self.origin
        return box.scaled(self.scale).shifted((-z, -y, -x))


def input_size_of(config: InferenceConfig) -> Triple:
    """Return the voxels (Z, Y, X) that the network gets at once."""
    return Box.of_shape(config.patch_size).grown(config.halo).shape


def window_of(config: InferenceConfig, core_size: Triple) -> Window:
    """Return the window of patches that contribute `core_size` voxels of the source."""
    size = scaled_up(core_size, config.output_scale)
    return build_window(size, config.blending, config.blending_arguments)


def volume_plan(
    vol_id: int, source: Source, config: InferenceConfig, core_size: Triple
) -> VolumePlan:
    """Lay out the patches of one volume, each of which contributes `core_size` voxels.

    Raises
    ------
    ConfigError
        If the region is not inside the volume, or the overlap does not fit the core.
    """
    shape, scale = spatial_shape(source), config.output_scale
    region = config.box or Box.of_shape(shape)
    if region.intersection(Box.of_shape(shape)) != region:
        raise ConfigError(
            f"region {region.start} to {region.stop} is not inside {source.name}, whose shape is "
            f"{shape} (Z, Y, X); choose one that is"
        )
    whole_voxels = _triple_of(factor.denominator for factor in scale)
    step = _triple_of(map(math.lcm, whole_voxels, config.step))
    everything = PatchGrid.regular(shape, core_size, config.overlap, spacing=config.grid, step=step)
    aligned = _in_steps(region, whole_voxels)
    cores = everything.only(aligned)
    whole = Box.of_shape(scaled_up(shape, scale))
    output = whole.intersection(aligned.scaled(scale))
    context = _triple_of(
        (size - core) // 2 for size, core in zip(input_size_of(config), core_size, strict=True)
    )
    return VolumePlan(
        vol_id=vol_id,
        name=source.name,
        shape=source.shape,
        dtype=source.dtype,
        region=region,
        cores=cores,
        context=context,
        grid=cores.scaled(scale).cropped(output),
        scale=scale,
        whole=whole.shape,
        origin=output.start,
        geometry=getattr(source, "geometry", Geometry()).of_prediction(scale, output.start),
    )


def _in_steps(region: Box, step: Triple) -> Box:
    """Return the smallest box around a region whose ends are multiples of `step`."""
    start = _triple_of(low // by * by for low, by in zip(region.start, step, strict=True))
    stop = _triple_of(-(-high // by) * by for high, by in zip(region.stop, step, strict=True))
    return Box(start, stop)


def _triple_of(values: Iterable[int]) -> Triple:
    z, y, x = values
    return z, y, x
