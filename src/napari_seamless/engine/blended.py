"""Blended values: weighted sums, divided by the weights of just the patches that are in them."""

import math
from collections.abc import Callable
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seamless.engine.blending import Window, coverage, weight_sum
from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.sums import CPU

Finish = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""What is done to blended values (C, z, y, x) of all channels; NaN must stay NaN."""

Squared = Callable[[], slice | None]

MOST_KEPT = 16
"""Boxes whose weights are kept: of a few rows of chunks ..."""

MOST_VOXELS_KEPT = 1 << 18
"""... and not more than these voxels each: 32 MiB of weights in all."""


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
    squared : callable
        Says, once something is blended, of which channels the squares are summed after all others:
        they become the standard deviation between patches.
    device : torch.device, optional
        Where predictions are weighted; the CPU by default.
    """

    def __init__(
        self,
        grid: PatchGrid,
        window: Window,
        finish: Finish | None = None,
        squared: Squared = lambda: None,
        device: torch.device = CPU,
    ) -> None:
        self._grid = grid
        self._window = window
        self._device = device
        self._weights = torch.from_numpy(window.matrix).to(device)
        self._finish = finish
        self._squared = squared
        self._of_patches_around = lru_cache(MOST_KEPT)(self._weights_around)

    def _whole_weights(self, box: Box) -> NDArray[np.float64]:
        """Return the weights of all patches that reach a box.

        They depend on where these start as seen from the box, which is the same for most chunks.
        """
        offsets = tuple(
            tuple((starts[near] - low).tolist())
            for starts, near, low in zip(
                self._grid.starts, self._grid.touching(box), box.start, strict=True
            )
        )
        is_small = math.prod(box.shape) <= MOST_VOXELS_KEPT
        return (self._of_patches_around if is_small else self._weights_around)(box.shape, offsets)

    def _weights_around(
        self, shape: Triple, offsets: tuple[tuple[int, ...], ...]
    ) -> NDArray[np.float64]:
        z, y, x = (np.array(along, dtype=np.intp) for along in offsets)
        grid = PatchGrid(shape, self._grid.patch_size, (z, y, x))
        done = np.ones(grid.counts, dtype=bool)
        return weight_sum(grid, self._window, done, Box.of_shape(shape))

    def needed(self, channels: slice) -> slice:
        """Return the channels whose sums are needed to know some."""
        is_alone = self._finish is None and self._squared() is None
        return channels if is_alone else slice(None)

    @cached_property
    def _exact_weights(self) -> torch.Tensor:
        return torch.from_numpy(self._window.in_float64()).to(self._device)

    def weighted(self, prediction: torch.Tensor) -> torch.Tensor:
        """Return what a patch (C, z, y, x) adds to the sums.

        Float32, so that float64 sums of it are as good as exact, whatever the order of patches.
        With squares, everything is float64 and so are the weights: what is left of a mean of
        squares without the square of the mean is a small difference of large numbers.
        """
        squared = self._squared()
        if squared is None:
            return prediction * self._weights
        values = prediction.double()
        return torch.cat([values, values[squared] ** 2]) * self._exact_weights

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
        near = self._grid.touching(box)
        is_whole = bool(done[near].all())
        if is_whole:
            weights = self._whole_weights(box)
        else:
            weights = weight_sum(self._grid, self._window, done, box)
        covered = True if is_whole else weights > 0
        if not is_whole:
            out[...] = np.nan
        np.divide(sums, weights, out=out, where=covered, casting="same_kind")
        if (squared := self._squared()) is not None:
            count = squared.stop - squared.start
            _fill_deviations(out[-count:], sums[squared], sums[-count:], weights)
        if self._finish:
            out[...] = self._finish(np.ascontiguousarray(out))
        if not is_whole:
            out[:, ~covered] = uncovered
        if failed[near].any():
            out[:, coverage(self._grid, failed, box) > 0] = np.nan


def _fill_deviations(
    out: NDArray[np.float32],
    sums: NDArray[np.float64],
    squares: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> None:
    """Put standard deviations in place, NaN where there is no weight.

    Rounding may leave the variance of equal values slightly below 0; it is 0 then.
    """
    with np.errstate(invalid="ignore"):  # 0 / 0
        variances = squares / weights - (sums / weights) ** 2
    out[...] = np.sqrt(np.maximum(variances, 0))
