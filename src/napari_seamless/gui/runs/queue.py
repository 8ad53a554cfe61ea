"""Runs that wait for the one before them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from psygnal import Signal

from napari_seamless.gui.runs.request import Inputs, Request


@dataclass(frozen=True, eq=False)
class Job:
    """A run that was asked for, with all that it needs: nothing of it changes any more.

    Attributes
    ----------
    name : str
        Of its layer, in one line.
    request : Request
        What the form asked for.
    inputs : Inputs
        What the layers held then.
    """

    name: str
    request: Request
    inputs: Inputs

    @property
    def output(self) -> Path | None:
        """Where it writes, as an absolute path; None if nowhere."""
        return None if self.request.output is None else self.request.output.absolute()


class Queue:
    """Jobs in the order in which they were asked for, and how many have been started."""

    changed = Signal()
    """Other jobs wait."""

    def __init__(self) -> None:
        self._waiting: list[Job] = []
        self._started = 0

    @property
    def waiting(self) -> list[Job]:
        """Those that have not been started; a copy."""
        return list(self._waiting)

    @property
    def place(self) -> str:
        """Which of how many was started last, such as "1 of 3"; "" if it is the only one."""
        total = self._started + len(self._waiting)
        return f"{self._started} of {total}" if total > 1 else ""

    def add(self, jobs: Sequence[Job]) -> None:
        """Let jobs wait behind the others."""
        self._waiting.extend(jobs)
        self.changed.emit()

    def drop(self, index: int) -> None:
        """Take a waiting job away; one that has been started meanwhile is left alone."""
        if 0 <= index < len(self._waiting):
            del self._waiting[index]
            self.changed.emit()

    def clear(self) -> None:
        """Take all waiting jobs away."""
        self._waiting.clear()
        self.changed.emit()

    def start_next(self) -> Job | None:
        """Return the job whose turn it is; None, and count anew, if none waits."""
        if not self._waiting:
            self._started = 0
            return None
        self._started += 1
        job = self._waiting.pop(0)
        self.changed.emit()
        return job
