"""What others ask of a run, from any thread: pause, go on, cancel, look there."""

import threading
from dataclasses import dataclass

from napari_seamless.engine.box import Box


@dataclass(frozen=True, slots=True)
class Focus:
    """What is looked at.

    Attributes
    ----------
    box : Box or None
        In voxels of the source, (Z, Y, X); None for nothing special.
    is_only : bool
        Whether nothing else shall be predicted.
    """

    box: Box | None = None
    is_only: bool = False


class Control:
    """Wishes that a run meets before its next batch."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._paused = False
        self._cancelled = False
        self._boxes: dict[int, Box | None] = {}
        self._is_only = False
        self._taken: dict[int, Focus] = {}
        self._looked_at: int | None = None
        self._news = 0

    def pause(self) -> None:
        """Ask to hold before the next batch."""
        with self._changed:
            self._paused = True

    def resume(self) -> None:
        """Ask to go on."""
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def cancel(self) -> None:
        """Ask to end."""
        with self._changed:
            self._cancelled = True
            self._tell()

    def focus(self, box: Box | None, vol_id: int) -> None:
        """Ask for the patches that touch a box of a volume, in voxels of its source."""
        with self._changed:
            self._boxes[vol_id] = box
            self._looked_at = vol_id
            self._tell()

    def preview(self, is_only: bool) -> None:
        """Ask for nothing but what is looked at, or for everything again."""
        with self._changed:
            self._is_only = is_only
            self._tell()

    @property
    def looked_at(self) -> int | None:
        """The volume that `focus` was called for last; None if it never was."""
        return self._looked_at

    def may_go_on(self) -> bool:
        """Wait while paused; say whether the run is still wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or not self._paused)
            return not self._cancelled

    @property
    def news(self) -> int:
        """How often `focus`, `preview` or `cancel` was called."""
        return self._news

    def wait_for_news(self, since: int) -> None:
        """Wait until one of them is called, if `news` is still what it was."""
        with self._changed:
            self._changed.wait_for(lambda: self._news != since)

    def _tell(self) -> None:
        self._news += 1
        self._changed.notify_all()

    def has_new_focus(self, vol_id: int) -> bool:
        """Whether something else is looked at since `take_focus`."""
        with self._changed:
            return self._is_new(vol_id)

    def focus_of(self, vol_id: int) -> Focus:
        """Return what is asked for in a volume, taken or not."""
        with self._changed:
            return self._focus_of(vol_id)

    def take_focus(self, vol_id: int) -> Focus:
        """Return what is looked at in a volume."""
        with self._changed:
            self._taken[vol_id] = self._focus_of(vol_id)
            return self._taken[vol_id]

    def _is_new(self, vol_id: int) -> bool:
        return self._taken.get(vol_id, Focus()) != self._focus_of(vol_id)

    def _focus_of(self, vol_id: int) -> Focus:
        box = self._boxes.get(vol_id)
        is_elsewhere = self._looked_at not in (None, vol_id)
        if self._is_only and is_elsewhere:  # no patch touches this
            box = Box((0, 0, 0), (0, 0, 0))
        return Focus(box, self._is_only)
