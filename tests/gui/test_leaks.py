"""The watch over every test of this folder sees what is left, and nothing else."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QDialog, QMainWindow, QWidget
from superqt.utils import qdebounced

import leaks
from gui_leaks import watched
from napari_seamless.gui.panel.footer import Details

pytestmark = pytest.mark.usefixtures("qapp")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(leaks, "PATIENCE", 0.2)


def test_a_window_is_left_until_it_is_deleted():
    with watched() as left:
        window = QWidget()
        window.setObjectName("forgotten")
        inside = Details()
        inside.setParent(window)
        assert left() == []
        window.show()
        assert left() == ["window QWidget 'forgotten'"]
        window.deleteLater()
        assert left() == []


@pytest.mark.parametrize("kind", [QMainWindow, QDialog])
def test_a_viewer_or_a_dialog_is_left_also_if_it_is_hidden(kind):
    with watched() as left:
        window = kind()
        assert left() == [f"window {kind.__name__} ''"]
        window.deleteLater()
        assert left() == []


def test_a_timer_of_the_package_is_left_until_it_ends(qtbot):
    of_package = {"__name__": "napari_seamless.gui.runs.endless"}
    with watched() as left:
        theirs, ours = QTimer(), QTimer()
        theirs.start(60_000)
        assert left() == []
        exec("timer.start(60_000)", {**of_package, "timer": ours})
        assert left() == ["timer started in napari_seamless.gui.runs.endless, line 1"]
        ours.stop()
        assert left() == []
        debounced = qdebounced(lambda: None, timeout=60_000)
        exec("debounced()", {**of_package, "debounced": debounced})
        assert left() == ["timer started in napari_seamless.gui.runs.endless, line 1"]
        debounced.cancel()
        assert left() == []
        theirs.stop()


def test_an_own_thread_is_left_until_its_executor_is_shut_down():
    with watched() as left:
        others, own = ThreadPoolExecutor(1, "others"), ThreadPoolExecutor(1, "seamless-read")
        for each in (others, own):
            each.submit(int).result()
        assert left() == ["thread seamless-read_0"]
        own.shutdown()
        assert left() == []
        others.shutdown()


def test_every_test_of_this_folder_is_watched(request):
    assert "_nothing_left" in request.fixturenames


def test_the_executor_that_nobody_holds_ends_its_thread():
    with watched() as left:
        ThreadPoolExecutor(1, "seamless-read").submit(int).result()
        assert left() == []
