"""Which patches need not run: nothing is in them, or nobody wants what is."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import SourceError
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.normalization import Stopped
from napari_seamless.engine.source import Source, read_patch, spatial_shape
from napari_seamless.engine.volume_plan import VolumePlan

Bools = NDArray[np.bool_]


def check_mask(mask: Source, volume: VolumePlan) -> None:
    """Raise SourceError unless a mask has one channel and the (Z, Y, X) of the volume."""
    if mask.shape != (1, *volume.shape[1:]):
        raise SourceError(
            f"mask {mask.name} has shape {mask.shape[1:]} and {mask.shape[0]} channels; for "
            f"{volume.name} it must be {volume.shape[1:]} (Z, Y, X) with one: crop or resample it"
        )


def outside(volume: VolumePlan, mask: Source, may_go_on: Callable[[], bool]) -> Bools:
    """Return which patches contribute to no voxel of a mask that is not 0.

    Parameters
    ----------
    volume : VolumePlan
        The patches.
    mask : Source
        As large as the volume, one channel; see `check_mask`.
    may_go_on : callable
        Asked before each row of patches.

    Returns
    -------
    bool array, shape ``volume.cores.counts``

    Raises
    ------
    Stopped
        If `may_go_on` says no.
    SourceError
        If the mask cannot be read.
    """

    def is_empty(voxels: NDArray[np.generic], columns: list[slice]) -> list[bool]:
        used: Bools = np.any(voxels != 0, axis=(0, 1, 2))
        return [not used[column].any() for column in columns]

    return _per_patch(volume.cores, (0, 0, 0), mask, is_empty, may_go_on)


def constant(volume: VolumePlan, source: Source, may_go_on: Callable[[], bool]) -> Bools:
    """Return which patches get an input whose voxels are all the same, in each channel.

    Parameters, result and errors as in `outside`.
    """

    def is_constant(voxels: NDArray[np.generic], columns: list[slice]) -> list[bool]:
        low, high = voxels.min(axis=(1, 2)), voxels.max(axis=(1, 2))
        return [
            bool((low[:, column].min(axis=1) == high[:, column].max(axis=1)).all())
            for column in columns
        ]

    return _per_patch(volume.cores, volume.context, source, is_constant, may_go_on)


def _per_patch(
    cores: PatchGrid,
    context: tuple[int, int, int],
    source: Source,
    judge: Callable[[NDArray[np.generic], list[slice]], list[bool]],
    may_go_on: Callable[[], bool],
) -> Bools:
    """Judge the patches row by row: one strip along X is read for all patches of a row."""
    result = np.zeros(cores.counts, dtype=bool)
    whole = Box.of_shape(spatial_shape(source))
    for row in np.ndindex(cores.counts[:2]):
        if not may_go_on():
            raise Stopped
        first = int(np.ravel_multi_index((*row, 0), cores.counts))
        boxes = [
            cores[first + i].grown(context).intersection(whole) for i in range(cores.counts[2])
        ]
        strip = Box.around(boxes)
        columns = [box.within(strip)[2] for box in boxes]
        result[row] = judge(read_patch(source, strip, "edge"), columns)  # nothing is padded
    return result
