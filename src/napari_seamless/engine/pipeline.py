"""Batches of patches: the next one is read while the network is at work on this one.

reading      | 0 | 1   | 2   | 3   |
network          | 0   | 1   | 2   | 3   |

A GPU is given the next batch before anybody looks at what it made of this one, so that it never
waits for the processor:

given to it      |0 |1    |2    |3    |
at work           | 0   | 1   | 2   | 3   |
looked at               |0    |1    |2    |3
"""

import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seamless.engine.errors import PredictionError, SeamlessError, SourceError
from napari_seamless.engine.failed_call import failed_call
from napari_seamless.engine.finite import Finiteness
from napari_seamless.engine.schedule import Schedule

NOT_FINITE = (
    "the network returned NaN or infinity; check its weights, and that the normalization is what "
    "it was trained with"
)

Patch = NDArray[np.float32] | SourceError
"""(C, z, y, x), normalised; or why it cannot be read."""

Read = Callable[[int, NDArray[np.float32] | None], Patch]
"""Reads a patch, into an array if one is given."""

Took = Callable[[int, float], None]
"""Is told how many patches the network had, and for how many seconds."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """What was read of the patches of one batch.

    Attributes
    ----------
    indices : tuple of int
        Those that could be read.
    patches : array of float32, shape (B, C, z, y, x), or None
        In the same order; None if there are none.
    failed : dict of int to SeamlessError
        The others.
    """

    indices: tuple[int, ...]
    patches: NDArray[np.float32] | None
    failed: dict[int, SeamlessError]


@dataclass(frozen=True, eq=False)
class Batch:
    """What became of the patches of one batch.

    Attributes
    ----------
    indices : tuple of int
        Those that were predicted.
    predictions : Tensor or None
        Float32 (B, C, z, y, x), in the same order, where the predictor leaves them; None if there
        are none.
    failed : dict of int to SeamlessError
        Those whose input could not be read, or that became NaN or infinity.
    """

    indices: tuple[int, ...]
    predictions: torch.Tensor | None
    failed: dict[int, SeamlessError]

    @property
    def nbytes(self) -> int:
        """Bytes of the predictions."""
        return 0 if self.predictions is None else int(self.predictions.nbytes)


def batches(
    schedule: Schedule,
    size: int,
    reader: Executor,
    read: Read,
    predict: Callable[[NDArray[np.float32]], torch.Tensor],
    may_go_on: Callable[[], bool],
    has_new_focus: Callable[[], bool],
    refocus: Callable[[Schedule], None],
    took: Took = lambda patches, seconds: None,
    *,
    is_ahead: bool = False,
) -> Generator[Batch | None]:
    """Take patches off a schedule until it is empty, and predict them.

    Parameters
    ----------
    schedule : Schedule
        What is still to run.
    size : int
        Patches per batch.
    reader : Executor
        Reads, on a thread of its own; at the end it may still be at it.
    read : callable
        Takes the index of a patch, and an array to put it in or None.
    predict : callable
        Takes (B, C, z, y, x).
    may_go_on : callable
        Asked before each batch.
    has_new_focus : callable
        Whether something else is looked at, asked before each batch. What was read ahead is then
        put back.
    refocus : callable
        Tells the schedule what is looked at now.
    took : callable
        Told how long the network was at work on each batch.
    is_ahead : bool
        Give the network a batch before the one before is looked at. It must return before it is
        done, as a GPU does.

    Yields
    ------
    Batch or None
        None while the schedule holds back all that is left.
    """

    def start() -> tuple[list[int], Future[Loaded]] | None:
        indices = schedule.take(size)
        return (indices, reader.submit(load, indices, read, is_ahead)) if indices else None

    def looked_at(most: int) -> Generator[Batch]:
        while len(given) > most:
            yield given.popleft().looked_at(took)

    ahead = None
    given: deque[_Given] = deque()
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
                break
            ahead = start()
            schedule.at_work = [*chain.from_iterable(each.indices for each in given)]
            if now is None:
                yield from looked_at(0)
                yield None
                continue
            schedule.at_work += now[0]
            try:
                given.append(_Given(now[1].result(), predict))
            except SeamlessError:
                yield from looked_at(0)  # what was given before it is not lost
                raise
            yield from looked_at(1 if is_ahead else 0)
        yield from looked_at(0)
    finally:
        if ahead is not None:
            ahead[1].cancel()


def load(indices: list[int], read: Read, is_pinned: bool = False) -> Loaded:
    """Read the patches of a batch, into one array; pinned, so that a GPU can fetch it by itself."""
    tried: list[int] = []
    failed: dict[int, SeamlessError] = {}
    patches: NDArray[np.float32] | None = None
    for index in indices:
        place = None if patches is None else patches[len(tried)]
        patch = read(index, place)
        if isinstance(patch, SourceError):
            failed[index] = patch
            continue
        if patches is None:  # now the shape is known
            patches = _array((len(indices), *patch.shape), is_pinned)
        if patch is not place:
            patches[len(tried)] = patch
        tried.append(index)
    return Loaded(tuple(tried), None if patches is None else patches[: len(tried)], failed)


def _array(shape: tuple[int, ...], is_pinned: bool) -> NDArray[np.float32]:
    """Return an array; pinned ones are used again by torch, as a ring of as many as are in use."""
    if is_pinned:
        pinned: NDArray[np.float32] = torch.empty(shape, pin_memory=True).numpy()
        return pinned
    return np.empty(shape, np.float32)


def predicted(
    loaded: Loaded,
    predict: Callable[[NDArray[np.float32]], torch.Tensor],
    took: Took = lambda patches, seconds: None,
) -> Batch:
    """Predict the patches of a batch that could be read, and keep what is finite."""
    return _Given(loaded, predict).looked_at(took)


class _Given:
    """A batch that the network was given; what it was read into is kept as long."""

    def __init__(
        self, loaded: Loaded, predict: Callable[[NDArray[np.float32]], torch.Tensor]
    ) -> None:
        self._loaded = loaded
        self.indices = loaded.indices
        self._predictions: torch.Tensor | None = None
        began = time.perf_counter()
        if loaded.patches is not None:
            self._predictions = predict(loaded.patches)
            self._is_finite = Finiteness(self._predictions)
        self._seconds = time.perf_counter() - began

    def looked_at(self, took: Took) -> Batch:
        """Wait for the network; return what became of the batch.

        Raises
        ------
        PredictionError
            If a GPU says only now that it has failed.
        """
        loaded, predictions = self._loaded, self._predictions
        if predictions is None or loaded.patches is None:
            return Batch(loaded.indices, None, loaded.failed)
        began = time.perf_counter()
        try:
            is_finite = bool(self._is_finite)
        except RuntimeError as error:
            raise failed_call(error, loaded.patches.shape, is_first=False) from error
        took(len(predictions), self._seconds + time.perf_counter() - began)
        if is_finite:
            return Batch(loaded.indices, predictions, loaded.failed)
        return self._without_others(predictions)

    def _without_others(self, predictions: torch.Tensor) -> Batch:
        """Return the batch with only those patches that are finite."""
        indices = self._loaded.indices
        is_finite = torch.isfinite(predictions).flatten(1).all(dim=1)
        failed = self._loaded.failed | {
            index: PredictionError(NOT_FINITE)
            for index, fine in zip(indices, is_finite.tolist(), strict=True)
            if not fine
        }
        finite = predictions[is_finite] if is_finite.any() else None
        return Batch(tuple(i for i in indices if i not in failed), finite, failed)
