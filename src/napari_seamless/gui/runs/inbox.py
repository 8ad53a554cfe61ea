"""Messages of a worker, handled one after the other."""

from collections import deque
from collections.abc import Callable

from napari_seamless.gui.runs.worker import Message


class Inbox:
    """Hands messages on, the next one when the last one is done with.

    napari's progress bar lets Qt deliver the next message while one is still handled.

    Parameters
    ----------
    handle : callable
        Gets each message.
    """

    def __init__(self, handle: Callable[[Message], None]) -> None:
        self._handle = handle
        self._messages: deque[Message] = deque()
        self._is_busy = False
        self._is_closed = False

    def receive(self, message: Message) -> None:
        """Handle a message, or keep it until the one before is handled."""
        self._messages.append(message)
        if not self._is_busy:
            self._empty()

    def close(self) -> None:
        """Drop everything, now and later."""
        self._is_closed = True

    def _empty(self) -> None:
        self._is_busy = True
        try:
            while self._messages:
                message = self._messages.popleft()
                if not self._is_closed:
                    self._handle(message)
        finally:
            self._is_busy = False
            if self._messages:  # one that could not be handled must not hold back the run's end
                self._empty()
