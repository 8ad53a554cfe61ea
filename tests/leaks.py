"""Threads that a test leaves behind."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OWN = "seamless-"
"""With this begin the names of the threads of this package's executors."""
PATIENCE = 10
"""Seconds in which what has been let go of must have gone."""


def remaining(find: Callable[[], list[str]]) -> list[str]:
    """Return what is still found when nothing goes any more; garbage is collected meanwhile."""
    end = time.monotonic() + PATIENCE
    while (left := find()) and time.monotonic() < end:
        gc.collect()
        time.sleep(0.02)
    return left


@contextmanager
def watched_threads() -> Iterator[Callable[[], list[str]]]:
    """Give a function that returns the names of own threads that were started and have not ended.

    So has a thread of an executor that is shut down, or that nobody holds any more.
    """
    before = {*threading.enumerate()}

    def left() -> list[str]:
        started = [each for each in threading.enumerate() if each not in before]
        return [each.name for each in started if each.name.startswith(OWN)]

    yield lambda: remaining(left)
