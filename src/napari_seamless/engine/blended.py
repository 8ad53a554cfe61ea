"""Blended values: weighted sums, divided by the weights of just the patches that are in them."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.blending import Window, coverage, weight_sum
from napari_seamless.engine.grid import Box, PatchGrid

Finish = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""What is done to blended values (C, z, y, x) of all channels; NaN must stay NaN."""


class Blended:
    """Makes blended values of sums.

    Parameters
    ----------
    grid : PatchGrid
        The patches of the volume.
    window : Window
        Weights of every patch.
    finish : callable, optional
        Applied once to every blended voxel.
    """

    def __init__(self, grid: PatchGrid, window: Window, finish: Finish | None) -> None:
        self._grid = grid
        self._window = window
        self.finish = finish

    def fill(
        self,
        out: NDArray[np.float32],
        sums: NDArray[np.float64],
        box: Box,
        done: NDArray[np.bool_],
        failed: NDArray[np.bool_],
        uncovered: float = np.nan,
    ) -> None:
        """Put the values of a box where they belong.

        Parameters
        ----------
        out : array of float32, (C, z, y, x)
            Is filled.
        sums : array of float64, (C, z, y, x)
            Of window x prediction.
        box : Box
            Where that is, inside the volume.
        done, failed : bool arrays, shape ``grid.counts``
            Patches that are in the sums; and those whose voxels are NaN.
        uncovered : float
            What voxels become that no patch in the sums reaches.
        """
        weights = weight_sum(self._grid, self._window, done, box)
        near = self._grid.touching(box)
        is_whole = bool(done[near].all())
        covered = True if is_whole else weights > 0
        if not is_whole:
            out[...] = np.nan
        np.divide(sums, weights, out=out, where=covered, casting="same_kind")
        if self.finish:
            out[...] = self.finish(np.ascontiguousarray(out))
        if not is_whole:
            out[:, ~covered] = uncovered
        if failed[near].any():
            out[:, coverage(self._grid, failed, box) > 0] = np.nan
