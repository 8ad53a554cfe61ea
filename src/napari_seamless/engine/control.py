"""What others ask of a run, from any thread: pause, go on, cancel, look there."""

import threading

from napari_seamless.engine.grid import Box


class Control:
    """Wishes that a run meets before its next batch."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._paused = False
        self._cancelled = False
        self._focus: dict[int, Box | None] = {}
        self._is_new: set[int] = set()

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
            self._changed.notify_all()

    def focus(self, box: Box | None, vol_id: int) -> None:
        """Ask for the patches that touch a box of a volume, in voxels of its source."""
        with self._changed:
            self._focus[vol_id] = box
            self._is_new.add(vol_id)

    def may_go_on(self) -> bool:
        """Wait while paused; say whether the run is still wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or not self._paused)
            return not self._cancelled

    def has_new_focus(self, vol_id: int) -> bool:
        """Whether something else is looked at since `take_focus`."""
        with self._changed:
            return vol_id in self._is_new

    def take_focus(self, vol_id: int) -> Box | None:
        """Return what is looked at; None for nothing special. It stays until another `focus`."""
        with self._changed:
            self._is_new.discard(vol_id)
            return self._focus.get(vol_id)
