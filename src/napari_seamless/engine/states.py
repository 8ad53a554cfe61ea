"""What has become of each patch of one volume."""

from collections.abc import Collection
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box
from napari_seamless.engine.grid import PatchGrid

Cells = tuple[slice, ...]
"""Patches of a grid, by their numbers along (Z, Y, X)."""


class PatchState(IntEnum):
    """What has become of a patch; all but a waiting one are settled."""

    WAITING = 0
    DONE = 1
    """It is blended in."""
    SKIPPED = 2
    """There is nothing to predict."""
    FAILED = 3
    """Its input could not be read, or its prediction is of no use."""


class PatchStates:
    """The states of all patches, all waiting at first.

    One thread changes them; others may ask at any time.

    Parameters
    ----------
    grid : PatchGrid
        The patches.
    """

    def __init__(self, grid: PatchGrid) -> None:
        self._grid = grid
        self._states = np.zeros(grid.counts, dtype=np.uint8)

    def __array__(self, dtype: object = None, copy: bool | None = None) -> NDArray[np.uint8]:
        """Return a copy, uint8 of shape ``grid.counts``; the numbers are those of `PatchState`."""
        return self._states.copy()

    def __contains__(self, index: int) -> bool:
        """Whether a patch is settled."""
        return bool(self._states.flat[index])

    @property
    def settled(self) -> NDArray[np.bool_]:
        """Which patches are not waiting, shape ``grid.counts``; a copy, as all of these are."""
        return self._states.astype(np.bool_)

    @property
    def done(self) -> NDArray[np.bool_]:
        """Which patches are blended in."""
        return self._are(PatchState.DONE)

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Which patches failed."""
        return self._are(PatchState.FAILED)

    def _are(self, state: PatchState) -> NDArray[np.bool_]:
        which: NDArray[np.bool_] = self._states == state
        return which

    @property
    def count(self) -> int:
        """How many are settled."""
        return int(np.count_nonzero(self._states))

    def waiting_in(self, box: Box) -> int:
        """Return how many patches that touch a box are waiting."""
        near = self._states[self._grid.touching(box)]
        return near.size - int(np.count_nonzero(near))

    def is_failed_in(self, box: Box) -> bool:
        """Return whether a patch that touches a box has failed."""
        return bool((self._states[self._grid.touching(box)] == PatchState.FAILED).any())

    def first_waiting_in(self, box: Box) -> int | None:
        """Return the first patch in raster order that touches a box and is waiting."""
        near = self._grid.touching(box)
        waiting = np.argwhere(self._states[near] == PatchState.WAITING)
        if not len(waiting):
            return None
        cell = tuple(int(at) + part.start for at, part in zip(waiting[0], near, strict=True))
        return int(np.ravel_multi_index(cell, self._grid.counts))

    def settle(self, index: int, state: PatchState) -> None:
        """Note what has become of a patch, by its raster index.

        Raises
        ------
        ValueError
            If it was settled before: its weight would count twice.
        """
        self.check_waiting(index)
        self._states.flat[index] = state

    def check_waiting(self, index: int) -> None:
        """Raise ValueError if a patch is settled."""
        if index in self:
            raise ValueError(f"patch {index} was added before; each patch is blended once")

    def settle_all(self, which: NDArray[np.bool_]) -> None:
        """Note that patches are done, shape ``grid.counts``, unless they are settled."""
        self._states[which & ~self.settled] = PatchState.DONE

    def learn(self, cells: Cells, failed: Collection[int]) -> None:
        """Note that patches are done, but for those that failed, by raster index."""
        part = self._states[cells]
        part[part == PatchState.WAITING] = PatchState.DONE
        self._states.flat[list(failed)] = PatchState.FAILED
