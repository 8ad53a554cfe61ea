"""Tasks on threads, and what they must not touch."""

import subprocess
import sys
import threading
import warnings

import pytest
from qtpy.QtCore import QThreadPool

from napari_seamless.gui.runs.worker import start_task


@pytest.fixture
def pool():
    """Qt's pool as it is on a machine with one core."""
    pool = QThreadPool.globalInstance()
    threads = pool.maxThreadCount()
    pool.setMaxThreadCount(1)
    yield pool
    pool.setMaxThreadCount(threads)


def test_what_lasts_keeps_nothing_else_from_beginning(qtbot, pool):
    others_are_done, answers = threading.Event(), []

    def lasts():
        assert others_are_done.wait(30)
        return "lasts"

    start_task(lasts, answers.append)
    start_task(lasts, answers.append)
    start_task(lambda: "task", answers.append)
    pool.start(lambda: answers.append("another plugin's"))
    qtbot.waitUntil(lambda: sorted(answers) == ["another plugin's", "task"], timeout=30_000)
    others_are_done.set()
    qtbot.waitUntil(lambda: len(answers) == 4, timeout=30_000)
    assert pool.waitForDone(30_000)

    assert pool.activeThreadCount() == 0


def test_tasks_that_overlap_leave_the_hook_for_warnings_alone(qtbot):
    hook, answers = warnings.showwarning, []
    first_may_end, second_has_begun = threading.Event(), threading.Event()

    def first():
        assert second_has_begun.wait(30)
        return "first"

    def second():
        second_has_begun.set()
        assert first_may_end.wait(30)
        return "second"

    start_task(first, answers.append)
    start_task(second, answers.append)
    qtbot.waitUntil(lambda: answers == ["first"], timeout=30_000)
    first_may_end.set()
    qtbot.waitUntil(lambda: answers == ["first", "second"], timeout=30_000)

    assert warnings.showwarning is hook


def test_a_task_that_ends_the_program_ends_only_itself(qtbot):
    def ends():
        raise SystemExit(3)

    answers = []
    with qtbot.captureExceptions() as caught:
        start_task(ends, answers.append)
        qtbot.waitUntil(lambda: bool(caught), timeout=30_000)
    start_task(lambda: "next", answers.append)
    qtbot.waitUntil(lambda: answers == ["next"], timeout=30_000)

    assert "SystemExit ended what was going on" in str(caught[0][1])


ENDS = """
import time
from qtpy.QtCore import QCoreApplication
from napari_seamless.gui.runs.worker import start_task
app = QCoreApplication([])
start_task(lambda: [time.sleep(1), print("done")], print)
"""


def test_a_script_that_ends_without_the_event_loop_waits_for_what_goes_on():
    ended = subprocess.run(
        [sys.executable, "-c", ENDS], timeout=60, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
