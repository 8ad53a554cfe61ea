"""Why a voxel is as it is: the patches that reach it, and what each of them adds."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.blending import Window
from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.states import PatchState


@dataclass(frozen=True)
class Contribution:
    """What one patch adds to one voxel.

    Attributes
    ----------
    index : int
        Raster index of the patch.
    box : Box
        The patch, in voxels of the prediction; it may reach over the end of the volume.
    voxel : tuple of int
        Where in the patch the voxel is, (Z, Y, X).
    weight : float
        Of the window, there.
    share : float
        Of all the weight that the patches done so far have left there; 0 unless the patch is one.
    state : PatchState
        What has become of the patch.
    """

    index: int
    box: Box
    voxel: Triple
    weight: float
    share: float
    state: PatchState


def contributions(
    grid: PatchGrid, window: Window, states: NDArray[np.uint8], voxel: Triple
) -> list[Contribution]:
    """Return what every patch that reaches a voxel adds to it, the largest weight first.

    Parameters
    ----------
    grid : PatchGrid
        The patches.
    window : Window
        Of every patch.
    states : array of uint8, shape ``grid.counts``
        What has become of each; the numbers are those of `PatchState`.
    voxel : tuple of int
        (Z, Y, X) of the prediction.

    Raises
    ------
    IndexError
        If the voxel is outside the volume.
    """
    if not all(0 <= at < size for at, size in zip(voxel, grid.shape, strict=True)):
        raise IndexError(f"voxel {voxel} is outside a volume of {grid.shape} (Z, Y, X)")
    z, y, x = voxel
    near = grid.touching(Box(voxel, (z + 1, y + 1, x + 1)))
    cells = np.argwhere(np.ones(states[near].shape, bool)) + [part.start for part in near]
    found = [_of_patch(grid, window, states, tuple(cell), voxel) for cell in cells.tolist()]
    total = sum(each.weight for each in found if each.state == PatchState.DONE)
    shared = [
        replace(each, share=each.weight / total) if each.state == PatchState.DONE else each
        for each in found
    ]
    return sorted(shared, key=lambda each: (-each.weight, each.index))


def _of_patch(
    grid: PatchGrid,
    window: Window,
    states: NDArray[np.uint8],
    cell: tuple[int, ...],
    voxel: Triple,
) -> Contribution:
    index = int(np.ravel_multi_index(cell, grid.counts))
    box = grid[index]
    z, y, x = (at - low for at, low in zip(voxel, box.start, strict=True))
    weight = float(window.matrix[z, y, x])
    return Contribution(index, box, (z, y, x), weight, 0.0, PatchState(int(states[cell])))
