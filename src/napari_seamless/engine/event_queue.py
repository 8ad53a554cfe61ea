"""The events of a run, of which the first may be worked out before anybody asks for them."""

import threading
from collections import deque
from collections.abc import Generator

from napari_seamless.engine.events import Event


class EventQueue:
    """Does the work of a run, one event at a time, for whoever asks; any thread may.

    Parameters
    ----------
    work : generator of Event or None
        None where nothing is to be done for now.
    """

    def __init__(self, work: Generator[Event | None]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._kept: deque[Event] = deque()
        self._given = 0
        self._raised: Exception | None = None

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for the work just now.

        Work that ends while nobody does is garbage: the run was let go of and never closed. It is
        collected on any thread, also one of its own, so it must not wait for any.
        """
        return self._lock.locked()

    def work_out(self, count: int) -> None:
        """Do the work of the first `count` events, unless that is done; those not given are kept.

        What it raises is raised here, and again to whoever asks for the next event.
        """
        with self._lock:
            while self._given + len(self._kept) < count and self._raised is None:
                try:
                    event = next(self._work)
                except StopIteration:
                    return
                except Exception as error:
                    self._raised = error
                    raise
                if event is None:
                    return
                self._kept.append(event)

    def next(self) -> Event | None:
        """Return the next event; None if nothing is to be done for now.

        Raises
        ------
        StopIteration
            If there is none.
        """
        with self._lock:
            if not self._kept:
                error, self._raised = self._raised, None
                if error is not None:
                    raise error
            event = self._kept.popleft() if self._kept else next(self._work)
            self._given += event is not None
            return event

    def close(self) -> None:
        """Leave the work where it is."""
        with self._lock:
            self._work.close()
