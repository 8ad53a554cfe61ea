"""Which patch next: layer after layer, and first of all what the user looks at."""

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box
from napari_seamless.engine.grid import PatchGrid


class Schedule:
    """The patches of one volume that are still to run, in the order in which they will.

    Parameters
    ----------
    grid : PatchGrid
        The patches of the volume. Without a focus they run in raster order, but for the last two
        of three or more layers: if the last is shifted back, column by column.
    waiting : bool array, shape ``grid.counts``, optional
        Which of them are to run; all by default.

    Attributes
    ----------
    at_work : list of int
        Those that the network has now.
    """

    def __init__(self, grid: PatchGrid, waiting: NDArray[np.bool_] | None = None) -> None:
        self._grid = grid
        everything = np.arange(len(grid)) if waiting is None else np.flatnonzero(waiting)
        self._waiting: NDArray[np.intp] = self._in_order(everything)
        self._next = 0
        self._end = len(everything)
        self.at_work: list[int] = []

    def __len__(self) -> int:
        """Patches not yet taken."""
        return len(self._waiting) - self._next

    @property
    def is_held(self) -> bool:
        """Whether patches are left, but none that may run: see `focus`."""
        return self._next == self._end < len(self._waiting)

    @property
    def order(self) -> NDArray[np.intp]:
        """Raster indices of the patches not yet taken, in the order in which they will run."""
        return self._waiting[self._next :].copy()

    def take(self, count: int) -> list[int]:
        """Remove up to `count` patches from the front; return their raster indices."""
        taken = self._waiting[self._next : min(self._next + count, self._end)]
        self._next += len(taken)
        return [int(index) for index in taken]

    def put_back(self, indices: list[int]) -> None:
        """Put the patches that were taken last back to the front."""
        self._next -= len(indices)

    def focus(self, box: Box | None, is_only: bool = False) -> None:
        """Put the patches that touch `box` first, nearest to its centre first; None: no focus.

        The rest keeps its order, so that what is finished stays compact.

        Parameters
        ----------
        box : Box or None
            In the frame of the patches.
        is_only : bool
            Hold the rest back, until another focus.
        """
        waiting = self._in_order(np.sort(self._waiting[self._next :]))
        self._next, self._end = 0, len(waiting)
        if box is None:
            self._waiting = waiting
            return
        starts = self._grid.positions_of(waiting)
        stops = starts + self._grid.patch_size
        touches = ((starts < box.stop) & (stops > box.start)).all(axis=1)
        centre = np.add(box.start, box.stop) / 2
        distance = np.linalg.norm((starts + stops) / 2 - centre, axis=1)
        near = np.flatnonzero(touches)
        near = near[np.argsort(distance[near], kind="stable")]
        self._waiting = np.concatenate([waiting[near], waiting[~touches]])
        if is_only:
            self._end = len(near)

    def _in_order(self, indices: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return patches, given in raster order, with the last two layers column by column.

        Only where the last is shifted back: what it has in common with the one before, more than
        others have, would otherwise be open over a whole layer::

            layers   [- - - -]
                         [- - - -]
                           [- - - -]
        """
        if not self._grid.is_last_layer_shifted:
            return indices
        layers, rows, columns = np.unravel_index(indices, self._grid.counts)
        first = int(np.searchsorted(layers, self._grid.counts[0] - 2))
        in_columns = np.lexsort((columns[first:], rows[first:]))
        return np.concatenate([indices[:first], indices[first:][in_columns]])
