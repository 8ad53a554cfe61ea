"""Slow questions, answered one at a time on a thread; what was answered is kept while it fits."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from napari_seamless.engine.errors import one_line
from napari_seamless.gui.runs.worker import Task

KEPT_BYTES = 256 << 20
"""So much of what was answered is kept: some dozens of patches."""

_OVERHEAD = 1000
"""Bytes of an answer besides its arrays, about."""

Answer = tuple[NDArray[Any], ...] | str
"""Arrays; or, in one line, why there are none."""


@dataclass(frozen=True)
class Question:
    """What is to be found out.

    Attributes
    ----------
    key : hashable
        Questions of the same key have the same answer.
    work : callable
        Returns the arrays; called on a thread.
    """

    key: Hashable
    work: Callable[[], tuple[NDArray[Any], ...]]


class Answers:
    """Answers questions in the background. All methods belong to the main thread.

    No more than one question is worked on at a time: who works for others meanwhile, such as a run
    that predicts, is held up by one question at most.

    Parameters
    ----------
    start_task : callable
        Does a task on a thread; see `worker.start_task`.
    told : callable
        Gets the key and the answer of each question, on the main thread.
    limit : int
        Bytes of answers that are kept; the newest one always is.
    """

    def __init__(
        self,
        start_task: Callable[[Task, Callable[[Any], None]], None],
        told: Callable[[Hashable, Answer], None],
        limit: int = KEPT_BYTES,
    ) -> None:
        self._start_task, self._told, self._limit = start_task, told, limit
        self._known: OrderedDict[Hashable, Answer] = OrderedDict()
        self.nbytes = 0
        """Bytes of the answers that are kept."""
        self._wanted: list[Question] = []
        self._generation = 0
        self._is_asking = False
        self._asked: Hashable = None

    def want(self, questions: Iterable[Question]) -> None:
        """Answer these, the first one first, and nothing else; those known are left out."""
        known = {*self._known, self._asked}
        self._wanted = [each for each in questions if each.key not in known]
        self._ask_next()

    def get(self, key: Hashable) -> Answer | None:
        """Return an answer if it is known."""
        if key in self._known:
            self._known.move_to_end(key)
        return self._known.get(key)

    def forget(self) -> None:
        """Forget all answers and questions; that of the question at work is dropped."""
        self._generation += 1
        self._asked = None
        self._wanted = []
        self._known.clear()
        self.nbytes = 0

    def _ask_next(self) -> None:
        if self._is_asking or not self._wanted:
            return
        question = self._wanted.pop(0)
        self._is_asking, self._asked = True, question.key
        done = partial(self._answered, self._generation, question.key)
        self._start_task(partial(_answer, question), done)

    def _answered(self, generation: int, key: Hashable, answer: Answer) -> None:
        self._is_asking = False
        if generation == self._generation:
            self._asked = None
            self._keep(key, answer)
            self._told(key, answer)
        self._ask_next()

    def _keep(self, key: Hashable, answer: Answer) -> None:
        self._known[key] = answer
        self.nbytes += _bytes_of(answer)
        while self.nbytes > self._limit and len(self._known) > 1:
            self.nbytes -= _bytes_of(self._known.popitem(last=False)[1])


def _answer(question: Question) -> Answer:
    """Return the answer, or in one line why there is none."""
    try:
        return question.work()
    except (Exception, SystemExit) as error:  # shown to the user
        return one_line(error)


def _bytes_of(answer: Answer) -> int:
    arrays = () if isinstance(answer, str) else answer
    return _OVERHEAD + sum(array.nbytes for array in arrays)
