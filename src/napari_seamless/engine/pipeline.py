"""Batches of patches: the next one is read while the network is at work on this one.

reading      | 0 | 1   | 2   | 3   |
network          | 0   | 1   | 2   | 3   |
"""

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seamless.engine.errors import PredictionError, SeamlessError, SourceError
from napari_seamless.engine.schedule import Schedule

NOT_FINITE = (
    "the network returned NaN or infinity; check its weights, and that the normalization is what "
    "it was trained with"
)

Patch = NDArray[np.float32] | SourceError
"""(C, z, y, x), normalised; or why it cannot be read."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What became of the patches of one batch.

    Attributes
    ----------
    indices : tuple of int
        Those that were predicted.
    predictions : Tensor or None
        Float32 (B, C, z, y, x), in the same order; None if there are none.
    failed : dict of int to SeamlessError
        Those whose input could not be read, or that became NaN or infinity.
    """

    indices: tuple[int, ...]
    predictions: torch.Tensor | None
    failed: dict[int, SeamlessError]


def batches(
    schedule: Schedule,
    size: int,
    read: Callable[[int], Patch],
    predict: Callable[[NDArray[np.float32]], torch.Tensor],
    may_go_on: Callable[[], bool],
    has_new_focus: Callable[[], bool],
    refocus: Callable[[Schedule], None],
) -> Generator[Batch | None]:
    """Take patches off a schedule until it is empty, and predict them.

    Parameters
    ----------
    schedule : Schedule
        What is still to run.
    size : int
        Patches per batch.
    read : callable
        Reads a patch; called on a thread of its own.
    predict : callable
        Takes (B, C, z, y, x).
    may_go_on : callable
        Asked before each batch.
    has_new_focus : callable
        Whether something else is looked at, asked before each batch. What was read ahead is then
        put back.
    refocus : callable
        Tells the schedule what is looked at now.

    Yields
    ------
    Batch or None
        None while the schedule holds back all that is left.
    """
    with ThreadPoolExecutor(1, "seamless-read") as reader:

        def start() -> tuple[list[int], Future[list[Patch]]] | None:
            indices = schedule.take(size)
            return (indices, reader.submit(lambda: [*map(read, indices)])) if indices else None

        ahead = None
        try:
            while may_go_on():
                if has_new_focus():
                    if ahead is not None:
                        schedule.put_back(ahead[0])
                        ahead[1].cancel()
                    refocus(schedule)
                    ahead = None
                now = ahead or start()
                if now is None and not schedule.is_held:
                    return
                ahead = start()
                schedule.at_work = [] if now is None else now[0]
                yield None if now is None else predicted(now[0], now[1].result(), predict)
        finally:
            if ahead is not None:
                ahead[1].cancel()


def predicted(
    indices: list[int],
    patches: list[Patch],
    predict: Callable[[NDArray[np.float32]], torch.Tensor],
) -> Batch:
    """Predict the patches of a batch that could be read, and keep what is finite."""
    failed: dict[int, SeamlessError] = {
        index: patch
        for index, patch in zip(indices, patches, strict=True)
        if isinstance(patch, SourceError)
    }
    readable = [patch for patch in patches if not isinstance(patch, SourceError)]
    tried = [index for index in indices if index not in failed]
    predictions = predict(np.stack(readable)) if readable else None
    if predictions is None or bool(torch.isfinite(predictions).all()):
        return Batch(tuple(tried), predictions, failed)
    is_finite = torch.isfinite(predictions).flatten(1).all(dim=1)
    failed |= {
        index: PredictionError(NOT_FINITE)
        for index, fine in zip(tried, is_finite.tolist(), strict=True)
        if not fine
    }
    finite = predictions[is_finite] if is_finite.any() else None
    return Batch(tuple(index for index in tried if index not in failed), finite, failed)
