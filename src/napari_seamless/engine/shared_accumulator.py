"""Weighted sums of one volume that several processes add up together."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seamless.engine.accumulator import BlendAccumulator


class SharedAccumulator(BlendAccumulator):
    """Sums of some of the patches, for others to add theirs to.

    Parameters
    ----------
    *args, **others
        See `BlendAccumulator`.
    is_open : bool
        All chunks stay open until `adopt`, also those that no other process reaches.
    """

    def __init__(self, *args: Any, is_open: bool = True, **others: Any) -> None:
        super().__init__(*args, **others)
        self._is_open = is_open

    def sums(self, i: int, channels: int) -> torch.Tensor:
        """Return the open sums of chunk `i`, float64 (C, z, y, x), for others to add theirs to.

        When all processes have added their sums, `adopt` says of which patches. Valid until the
        next call.

        Raises
        ------
        ValueError
            If the chunk is finished: sums that began anew would replace what it holds.
        """
        if i in self._final:
            raise ValueError(f"chunk {i} is finished; there are no sums to add to")
        self._channels = channels
        return self._opened([i])[i]

    def adopt(self, done: NDArray[np.bool_]) -> None:
        """Count patches whose weighted predictions were added to `sums`; finish what is complete.

        Parameters
        ----------
        done : bool array, shape ``grid.counts``
            All patches that are in now. Each must have been added by one process only.
        """
        with self._lock:
            self.states.settle_all(done)
            for i in self._sums:
                self._missing[i] = self.states.waiting_in(self._chunks[i])
        self._finish_complete(self.open)

    def _finish_added(self, touched: list[int]) -> None:
        if not self._is_open:
            self._finish_complete(touched)
