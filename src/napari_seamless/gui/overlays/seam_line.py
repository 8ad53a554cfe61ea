"""The seam score in one line, found out in the background."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from superqt.utils import qthrottled

from napari_seamless.engine.errors import EndedError, one_line
from napari_seamless.engine.lazy import LazyArray, Ranges
from napari_seamless.engine.seams import seam_score
from napari_seamless.gui.overlays.subject import Subject

SHORTEST_MS = 3_000
"""Between two scores."""
_REST = 10
"""So many times as long as a score took, none is computed: the run has the machine."""

Answer = tuple[str, float]
StartTask = Callable[[Callable[[], Any], Callable[[Any], None]], None]


def seam_line(
    subject: Subject, vol_id: int = 0, is_wanted: Callable[[], bool] = lambda: True
) -> str:
    """Return how visible the seams of a volume's prediction are; slow, so not for the main thread.

    Parameters
    ----------
    subject : Subject
        What is predicted.
    vol_id : int
        Which volume.
    is_wanted : callable
        Asked before each part of the volume is read; if not, the line is of no use and empty.

    Returns
    -------
    str
        Such as "seams: 1.03 (Z 1.01, Y 1.03, X 1.02); 1 is none".
    """
    try:
        volume = subject.prediction_of(vol_id)
        score = None if volume is None else seam_score(_while(is_wanted, volume), subject.grid)
    except Exception as error:  # passed on to the user
        return f"seams: {one_line(error)}" if is_wanted() else ""
    if score is None or np.isnan(score.worst):
        return "seams: none known yet"
    return f"seams: {score}; 1 is none"


def _while(is_wanted: Callable[[], bool], volume: LazyArray) -> LazyArray:
    """Return a volume that cannot be read any more when nobody wants it."""

    def read(ranges: Ranges) -> NDArray[Any]:
        if not is_wanted():
            raise EndedError("the seam score is not wanted any more")
        return np.asarray(volume[ranges])

    return LazyArray(volume.shape, volume.dtype, read)


class SeamScorer:
    """Asks for the seam score in the background, not too often; drops stale answers.

    Parameters
    ----------
    start_task : callable
        Does work in the background; see `worker`.
    say : callable
        Gets the line, on the main thread.
    """

    def __init__(self, start_task: StartTask, say: Callable[[str], None]) -> None:
        self._start_task = start_task
        self._say = say
        self._generation = 0
        self._is_busy = False
        self._question: tuple[Subject, int] | None = None
        self._start_soon = qthrottled(self._start, timeout=SHORTEST_MS)

    def ask(self, subject: Subject, vol_id: int) -> None:
        """Ask for a score soon; an older question about something else is dropped."""
        if self._question is not None and self._question != (subject, vol_id):
            self._generation += 1
        self._question = subject, vol_id
        self._start_soon()

    def stop(self) -> None:
        """Want nothing any more."""
        self._generation += 1
        self._question = None
        self._start_soon.cancel()

    def _start(self) -> None:
        if self._question is None or self._is_busy:
            return
        self._is_busy = True
        generation, (subject, vol_id) = self._generation, self._question
        is_wanted = partial(self._is_current, generation)
        self._start_task(
            partial(_timed, partial(seam_line, subject, vol_id, is_wanted)),
            partial(self._answered, generation),
        )

    def _is_current(self, generation: int) -> bool:
        return generation == self._generation

    def _answered(self, generation: int, answer: Answer) -> None:
        self._is_busy = False
        line, seconds = answer
        self._start_soon.setTimeout(max(SHORTEST_MS, round(1000 * _REST * seconds)))
        if self._is_current(generation):
            self._say(line)
        elif self._question is not None:
            self._start_soon()


def _timed(work: Callable[[], str]) -> Answer:
    began = time.perf_counter()
    return work(), time.perf_counter() - began
