"""The network, called with as many patches at once as the memory of its device can hold."""

import threading
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seamless.engine.errors import SeamlessError

Predict = Callable[[NDArray[np.float32]], torch.Tensor]
"""Takes (B, C, Z, Y, X), returns (B, C', Z', Y', X')."""


class Batched:
    """Halves batches that the memory does not hold, and goes on with smaller ones.

    May be called from several threads; the network is called from one at a time.

    Parameters
    ----------
    predict : callable
        Raises a SeamlessError that `is_out_of_memory` if there is no memory for a batch.

    Attributes
    ----------
    limit : int or None
        Patches at once since memory ran out; None if it never did.
    """

    def __init__(self, predict: Predict) -> None:
        self.limit: int | None = None
        self._predict = predict
        self._lock = threading.Lock()

    def __call__(self, patches: NDArray[np.float32]) -> torch.Tensor:
        """Return the prediction of a batch, as `predict` does.

        Raises
        ------
        SeamlessError
            Anything that `predict` raises; that there is no memory, only for a single patch.
        """
        predictions: list[torch.Tensor] = []
        start = 0
        while start < len(patches):
            part = patches[start : start + (self.limit or len(patches))]
            prediction = self._tried(part)
            if prediction is not None:
                predictions.append(prediction)
                start += len(part)
        return predictions[0] if len(predictions) == 1 else torch.cat(predictions)

    def _tried(self, patches: NDArray[np.float32]) -> torch.Tensor | None:
        """Return the prediction; None if there was no memory, so that fewer are to be tried."""
        try:
            with self._lock:
                return self._predict(patches)
        except SeamlessError as error:
            if not error.is_out_of_memory or len(patches) == 1:
                raise
        # outside of the handler: the error's traceback holds what filled the memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.limit = len(patches) // 2
        return None


_SAID = ("out of memory", "alloc_failed", "can't allocate memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device or this machine has no memory left.

    CUDA raises an error of its own for that; the CPU's and Apple's allocators, and CUDA's
    libraries, a RuntimeError that only its text tells from others.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(each in text for each in _SAID)
