"""Complete chunks on their way out: normalised and written while further patches are blended."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future

MOST_LEAVING = 2
"""Chunks that are finished aside, or wait for that: their sums are still in memory."""


class Leaving:
    """Finishes chunks in order, one at a time, up to the first that fails; called from one thread.

    Parameters
    ----------
    aside : Executor or None
        What does it; without one, `add` does before it yields.

    Notes
    -----
    It yields the chunks instead of calling their owner: an owner that is in a cycle of references
    would keep the sums, in memory and in files, until the collector comes by.
    """

    def __init__(self, aside: Executor | None) -> None:
        self._aside = aside
        self._queue: deque[tuple[int, Future[None]]] = deque()
        self._has_failed = False

    def add(self, chunk: int, finish: Callable[[], None]) -> Iterator[int]:
        """Finish a chunk, some time; yield those that left the queue of `MOST_LEAVING` for it.

        Raises
        ------
        Exception
            What finishing it, or one of the others, raised: neither that one is yielded nor what
            came after it.
        """
        if self._aside is None:
            finish()
            yield chunk
            return
        self._queue.append((chunk, self._aside.submit(self._finish, finish)))
        while len(self._queue) > MOST_LEAVING:
            yield self._first()

    def finished(self) -> Iterator[int]:
        """Yield what is finished by now; raises what `add` does."""
        while self._queue and self._queue[0][1].done():
            yield self._first()

    def flush(self) -> Iterator[int]:
        """Wait until all are finished, and yield them; raises what `add` does."""
        while self._queue:
            yield self._first()

    def _finish(self, finish: Callable[[], None]) -> None:
        if self._has_failed:
            return
        try:
            finish()
        except BaseException:
            self._has_failed = True
            raise

    def _first(self) -> int:
        chunk, finishing = self._queue.popleft()
        try:
            finishing.result()
        except BaseException:
            self._queue.clear()
            raise
        return chunk
