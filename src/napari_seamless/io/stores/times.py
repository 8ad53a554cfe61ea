"""What is known of each point in time of a series, which has one output."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from napari_seamless.io.stores.common import plain
from napari_seamless.io.whole import write_whole

_FILE = "times.json"

_OF_A_TIME = ("status", "done", "total", "metrics", "skipped", "failed")
"""What differs between points in time."""

_WORST_FIRST = ("failed", "partial", "running", "complete")


class TimeFacts:
    """What a series says of each of its points in time, and of all together.

    Parameters
    ----------
    times : int or None
        How many there are; None for a volume without time, whose facts stay as they are.
    """

    def __init__(self, times: int | None) -> None:
        self._times = times
        self._known: dict[str, dict[str, Any]] = {}
        self._ended: set[int] = set()

    def have_ended(self, whole: Collection[int] = ()) -> bool:
        """Whether all points in time have ended in this run, or are `whole`."""
        return self._ended.union(whole).issuperset(range(self._times or 1))

    def end(self, time: int) -> None:
        """Note that a point in time has ended."""
        self._ended.add(time)

    def put(self, time: int, facts: Mapping[str, Any]) -> None:
        """Take note of what is known of a point in time now."""
        self._known[str(time)] = plain({key: facts[key] for key in _OF_A_TIME if key in facts})

    def take_up(self, known: Any) -> None:
        """Take what an earlier run has said as "times"; what is damaged of it is not known."""
        if isinstance(known, dict):
            self._known = {key: each for key, each in known.items() if isinstance(each, dict)}

    def status(self, whole: Collection[int] = ()) -> str:
        """Return how all points in time ended together; if nothing is known of `whole`, well."""
        found = {
            self._known.get(str(time), {}).get("status", "complete" if time in whole else "running")
            for time in range(self._times or 1)
        }
        return next((status for status in _WORST_FIRST if status in found), "running")

    def of_all(self, facts: Mapping[str, Any], whole: Collection[int] = ()) -> dict[str, Any]:
        """Return what the output says: `facts`, with those of each point in time apart."""
        if self._times is None:
            return dict(facts)
        common = {key: value for key, value in facts.items() if key not in _OF_A_TIME}
        return {**common, "status": self.status(whole), "times": dict(self._known)}

    def save(self, folder: Path) -> None:
        """Write what is known of a series to a file, for outputs that say it only at the end.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        if self._times is not None:
            content = json.dumps(self._known).encode("ascii")
            write_whole(folder / _FILE, lambda file: file.write(content))

    def load(self, folder: Path) -> None:
        """Read what an earlier run has saved; if that is gone or damaged, it is not known."""
        try:
            self.take_up(json.loads((folder / _FILE).read_bytes()))
        except (OSError, ValueError):
            return
