"""Windows, timers and threads that a test of the widget leaves behind."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
from qtpy.QtCore import QCoreApplication, QEvent, QTimer
from qtpy.QtWidgets import QApplication, QDialog, QMainWindow, QWidget

from leaks import remaining, watched_threads

PACKAGE = "napari_seamless"
_NEVER_HIDDEN_FOR_LONG = (QMainWindow, QDialog)


@contextmanager
def watched() -> Iterator[Callable[[], list[str]]]:
    """Give a function that returns in words what has been left since then; nothing if all is well.

    That are own threads, windows on the screen, viewers and dialogs also if they are hidden, and
    timers that this package started, itself or by superqt, and that have not run out. Other widgets
    without a parent are not looked at: tests make forms that are never shown.
    """
    windows = _windows()
    with watched_threads() as threads_left, _watched_timers() as timers:

        def left() -> list[str]:
            QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
            new = [each for each in _windows() if each not in windows]
            return [
                *(f"window {type(each).__name__} {each.objectName()!r}" for each in new),
                *(f"timer started in {where}" for timer, where in timers if _is_active(timer)),
            ]

        yield lambda: [*(f"thread {name}" for name in threads_left()), *remaining(left)]


def _windows() -> list[QWidget]:
    found = QApplication.topLevelWidgets() if QApplication.instance() is not None else []
    return [each for each in found if each.isVisible() or isinstance(each, _NEVER_HIDDEN_FOR_LONG)]


@contextmanager
def _watched_timers() -> Iterator[list[tuple[QTimer, str]]]:
    """Give a list that gets the timers that are started, and where."""
    started: list[tuple[QTimer, str]] = []
    start = QTimer.start

    def noting(timer: QTimer, *args: int) -> None:
        frame = next((each for each in _frames() if _name(each).startswith(PACKAGE)), None)
        if frame is not None and all(each is not timer for each, _ in started):
            started.append((timer, f"{_name(frame)}, line {frame.f_lineno}"))
        start(timer, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QTimer, "start", noting)
        yield started


def _frames() -> Iterator[FrameType]:
    """Yield who has called, the last caller first."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _name(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_active(timer: QTimer) -> bool:
    """Return whether something will happen: a throttle's timer runs on when it is cancelled."""
    try:
        return timer.isActive() and getattr(timer.parent(), "_hasPendingEmission", True)
    except RuntimeError:  # deleted with its widget
        return False
