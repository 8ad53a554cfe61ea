"""Where the time of a run goes: how long each stage of it was at work.

    reading       [0][1][2]   [3]   ...
    network          [ 0 ][ 1 ][ 2 ]...      one beside the other, where there is a core for it
    blending              [0]  [1]  ...
    writing                    [.]  ...

What is busiest limits the run, since the others can wait for it.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Stage = Literal["reading", "network", "blending", "writing"]

BAR = 20
"""Characters of the longest bar."""


class Stages:
    """Seconds that each stage was at work; they overlap, so that their sum may exceed the run's.

    May be told of from several threads. A stage within another one counts for itself alone.
    """

    def __init__(self) -> None:
        self._seconds: dict[Stage, float] = dict.fromkeys(
            ("reading", "network", "blending", "writing"), 0.0
        )
        self._lock = threading.Lock()
        self._inner = threading.local()

    @contextmanager
    def at_work(self, stage: Stage) -> Iterator[None]:
        """Count what is done inside to a stage."""
        before = getattr(self._inner, "seconds", 0.0)
        self._inner.seconds = 0.0
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self.add(stage, seconds - self._inner.seconds)
            self._inner.seconds = before + seconds

    def add(self, stage: Stage, seconds: float) -> None:
        """Count seconds to a stage."""
        with self._lock:
            self._seconds[stage] += seconds

    @property
    def seconds(self) -> dict[Stage, float]:
        """How long each was at work so far."""
        with self._lock:
            return dict(self._seconds)

    @property
    def busiest(self) -> Stage | None:
        """The stage that was at work longest, which limits the run; None if none was."""
        seconds = self.seconds
        stage = max(seconds, key=seconds.__getitem__)
        return stage if seconds[stage] else None

    def __str__(self) -> str:
        """Return a bar for each stage, a line each, as long as its share of the busiest one."""
        seconds, busiest = self.seconds, self.busiest
        if busiest is None:
            return ""
        lines = [
            f"{stage:8}  {'█' * round(BAR * taken / seconds[busiest]):{BAR}}  {taken:.1f} s"
            for stage, taken in seconds.items()
        ]
        return "\n".join([*lines, f"limited by {_WHAT[busiest]}"])


_WHAT = {
    "reading": "reading the volume",
    "network": "the network",
    "blending": "blending",
    "writing": "writing the output",
}
