"""Control of runs in a real viewer on a (virtual) screen: view, keys, queue, closing."""

import threading
from typing import ClassVar

import numpy as np
import pytest
from qtpy.QtCore import Qt, QThreadPool
from qtpy.QtGui import QCloseEvent
from qtpy.QtWidgets import QDialog

import networks
from napari_seamless.gui.runs.request import is_unfinished
from napari_seamless.gui.runs.worker import named, start_telling
from napari_seamless.gui.space.view import camera_of

PATCHES = 5 * 4 * 4  # (12, 40, 40) in patches of (4, 16, 16) at overlap 0.5
FORETOLD = 3
"""So many batches are done when it is said what the run will take; events go on after that."""


@pytest.fixture
def session(session_over, volume):
    """A session over the volume."""
    return session_over(volume)


@pytest.fixture
def gated(session, checkpoint_of):
    """A session whose run waits for `networks.let_through`."""
    session.choose(checkpoint_of(networks.Gated), networks.Gated)
    yield session
    networks.let_through(10_000)


def covered(session) -> np.ndarray:
    """Return where there is a prediction, (12, 40, 40)."""
    return np.isfinite(np.asarray(session.live.data))


def test_zooming_in_moves_the_focus_to_the_visible_rectangle(gated):
    gated.viewer.dims.set_current_step(0, 0)
    gated.press("run_button")
    networks.let_through(FORETOLD)
    gated.wait_for_batches(2)
    camera = camera_of(gated.viewer)
    camera.center = (36, 36)
    camera.zoom = 200  # a few voxels about the corner, which one patch reaches
    gated.qtbot.wait(400)
    before = covered(gated)[0, 39, 39]
    networks.let_through(3)  # the one under way, the first of the new view, and one not told yet
    gated.wait_for_batches(FORETOLD + 2)

    assert not before
    assert covered(gated)[0, 39, 39]


def test_another_order_of_the_axes_moves_the_focus(gated):
    gated.viewer.dims.set_current_step(0, 0)
    gated.press("run_button")
    networks.let_through(FORETOLD)
    gated.wait_for_batches(2)
    gated.viewer.dims.order = (2, 0, 1)
    gated.viewer.dims.set_current_step(2, 39)
    gated.qtbot.wait(400)
    patches = 5 * 4  # those that reach x = 39
    networks.let_through(patches + 2)  # with the one under way, and one not told yet
    gated.wait_for_batches(FORETOLD + patches + 1)

    assert covered(gated)[:, :, 39].all()
    assert not covered(gated).all()


def test_a_second_run_waits_and_stands_beside_the_first(gated, volume):
    gated.press("run_button")
    networks.let_through(FORETOLD)
    gated.wait_for_batches(2)
    gated.widget.overlap.value = 0.25
    gated.press("run_button")
    assert [job.name for job in gated.widget.controller.queue] == [
        "volume prediction, overlap 0.25"
    ]
    networks.let_through(10_000)
    assert gated.wait_for_end().startswith("Done: 80 patches.")
    assert gated.wait_for_end().startswith("Done: 36 patches.")

    names = [layer.name for layer in gated.viewer.layers]
    assert names == ["volume", "volume prediction", "volume prediction, overlap 0.25"]
    for name in names[1:]:
        data = np.asarray(gated.viewer.layers[name].data)
        np.testing.assert_allclose(data, 2 * volume, rtol=1e-6)


def test_the_keys_run_pause_preview_and_cancel(gated):
    controller, qtbot = gated.widget.controller, gated.qtbot
    window = gated.viewer.window._qt_window
    qtbot.keyClick(window, Qt.Key.Key_F5)
    networks.let_through(FORETOLD)
    gated.wait_for_batches(2)
    qtbot.keyClick(window, Qt.Key.Key_F6)
    assert gated.status.startswith("Paused")
    qtbot.keyClick(window, Qt.Key.Key_F6)
    assert not gated.status.startswith("Paused")
    qtbot.keyClick(window, Qt.Key.Key_F7)
    assert controller.is_preview
    assert gated.widget.preview.value
    qtbot.keyClick(window, Qt.Key.Key_F8)
    networks.let_through(1)

    assert gated.wait_for_end().startswith("Cancelled")


def test_a_key_pressed_in_a_field_takes_what_is_being_typed(gated, volume):
    field = gated.widget.overlap.native
    field.setFocus()
    field.selectAll()
    gated.qtbot.keyClicks(field, "0.25")
    assert not gated.widget.controller.is_busy  # text is only text
    gated.qtbot.keyClick(field, Qt.Key.Key_F5)
    networks.let_through(10_000)

    assert gated.wait_for_end().startswith("Done: 36 patches.")


def test_the_keys_are_given_back_when_the_widget_is_closed(gated):
    before = dict(gated.viewer.keymap)
    gated.viewer.window.remove_dock_widget(gated.widget.native)

    assert len(before) == 4
    assert not gated.viewer.keymap


class ByTheUser(QCloseEvent):
    """The window's close button was pressed."""

    def spontaneous(self) -> bool:
        return True


class Question:
    """Stands for napari's question whether to close; remembers what it said."""

    asked: ClassVar[list[str]] = []
    answer = QDialog.DialogCode.Rejected

    def __init__(self, parent, close_app=False, extra_info="", **options) -> None:
        self.asked.append(extra_info)

    def exec_(self) -> QDialog.DialogCode:
        return self.answer


@pytest.fixture
def question(monkeypatch):
    """napari's question, which is answered with Cancel unless told otherwise."""
    monkeypatch.setattr("napari._qt.qt_main_window.ConfirmCloseDialog", Question)
    monkeypatch.setattr(Question, "asked", [])
    return Question


def test_napari_asks_before_it_closes_and_cancel_keeps_everything_going(gated, question, volume):
    gated.press("run_button")
    networks.let_through(FORETOLD)
    gated.wait_for_batches(2)
    event = ByTheUser()
    gated.viewer.window._qt_window.closeEvent(event)
    assert not event.isAccepted()
    [said] = question.asked
    assert said == "napari-seamless: blended inference (volume prediction)"
    networks.let_through(10_000)

    assert gated.wait_for_end().startswith("Done")
    np.testing.assert_allclose(np.asarray(gated.live.data), 2 * volume, rtol=1e-6)


@pytest.mark.parametrize("paused", [pytest.param(False, marks=pytest.mark.slow), True])
def test_closing_napari_stops_the_run_and_what_is_done_can_be_gone_on_with(
    gated, question, session_over, checkpoint_of, volume, tmp_path, monkeypatch, paused
):
    monkeypatch.setattr(question, "answer", QDialog.DialogCode.Accepted)
    output = tmp_path / "out.h5"
    gated.viewer.dims.set_current_step(0, 0)
    gated.widget.output.value = output
    gated.press("run_button")
    networks.let_through(50)
    gated.wait_for_batches(45)
    gated.widget.output.value = tmp_path / "second.h5"
    gated.press("run_button")
    if paused:
        gated.press("pause_button")
    event = ByTheUser()
    gated.viewer.window._qt_window.closeEvent(event)
    assert event.isAccepted()
    gated.viewer.close()
    networks.let_through(1)
    assert QThreadPool.globalInstance().waitForDone(10_000)
    assert len(networks.calls) <= 51
    assert is_unfinished(output)
    assert not (tmp_path / "second.h5").exists()

    networks.let_through(10_000)
    networks.calls.clear()
    again = session_over(volume)
    again.choose(checkpoint_of(networks.Gated), networks.Gated, output=output)
    again.press("run_button")
    assert again.wait_for_end().startswith("Done: 80 patches.")
    assert len(networks.calls) < 80 - 10
    np.testing.assert_allclose(np.asarray(again.live.data), 2 * volume, rtol=1e-6)


def test_closing_the_dock_ends_its_runs_and_leaves_their_layers(gated, volume):
    gated.press("run_button")
    networks.let_through(5)
    gated.wait_for_batches(3)
    gated.press("run_button")
    gated.viewer.window.remove_dock_widget(gated.widget.native)
    networks.let_through(10_000)
    assert QThreadPool.globalInstance().waitForDone(10_000)
    assert len(networks.calls) <= 6

    [_, layer] = gated.viewer.layers
    assert layer.metadata["napari-seamless"]["status"] == "partial"
    data = np.asarray(layer.data)
    np.testing.assert_allclose(data[np.isfinite(data)], 2 * volume[np.isfinite(data)], rtol=1e-6)
    gated.viewer.dims.set_current_step(0, 3)  # nothing is left that would follow


def test_two_viewers_work_at_once_and_apart(session_over, checkpoint_of, volume):
    first, second = session_over(volume), session_over(3 * volume)
    checkpoint = checkpoint_of(networks.Gated)  # saved once: the first run may be reading it
    for session in (first, second):
        session.choose(checkpoint, networks.Gated)
        session.press("run_button")
    first.wait_for(lambda: all(each.status.startswith("Running") for each in (first, second)))

    def have_layers() -> bool:  # which of them the network lets through is up to the threads
        networks.let_through(1)
        return first.live is not None and second.live is not None

    first.wait_for(have_layers)
    first.press("cancel_button")
    networks.let_through(10_000)
    assert first.wait_for_end().startswith("Cancelled")
    assert second.wait_for_end().startswith("Done: 80 patches.")

    np.testing.assert_allclose(np.asarray(second.live.data), 6 * volume, rtol=1e-6)
    assert first.facts["status"] == "partial"
    first.viewer.close()
    assert second.status.startswith("Done")


def test_a_run_belongs_to_its_own_viewer_whichever_is_in_front(
    session_over, checkpoint_of, volume, question
):
    first, second = session_over(volume), session_over(3 * volume)
    first.choose(checkpoint_of(networks.Gated), networks.Gated)
    first.press("run_button")  # the second viewer is the newest, and so in front
    networks.let_through(FORETOLD)
    first.wait_for_batches(2)
    windows = [each.viewer.window._qt_window for each in (first, second)]
    windows[1].closeEvent(ByTheUser())
    assert not any(question.asked)  # only whether to close a window that holds layers
    windows[0].closeEvent(ByTheUser())
    assert question.asked[-1] == "napari-seamless: blended inference (volume prediction)"
    second.viewer.close()
    networks.let_through(10_000)

    assert first.wait_for_end().startswith("Done: 80 patches.")
    np.testing.assert_allclose(np.asarray(first.live.data), 2 * volume, rtol=1e-6)

    def asks_of_no_run() -> bool:  # once its thread has ended too
        windows[0].closeEvent(ByTheUser())
        return question.asked[-1] == ""

    first.wait_for(asks_of_no_run)


def test_what_is_being_written_belongs_to_its_own_viewer_too(session_over, volume, question):
    first, second = session_over(volume), session_over(volume)
    may_end, told = threading.Event(), []

    def job(tell):
        tell("half")
        return may_end.wait(60)

    start_telling(first.viewer, named("writing out.zarr", job), told.append, told.append)
    first.wait_for(lambda: told == ["half"])
    for each in (second, first):
        each.viewer.window._qt_window.closeEvent(ByTheUser())
    assert list(filter(None, question.asked)) == ["napari-seamless: writing out.zarr"]
    may_end.set()
    first.wait_for(lambda: told == ["half", True])


def test_a_network_that_raises_what_ctrl_c_does_ends_its_run_on_the_thread(session, checkpoint_of):
    session.choose(checkpoint_of(networks.Interrupts), networks.Interrupts)
    session.press("run_button")
    line = session.wait_for_end()
    assert line.startswith("Failed: KeyboardInterrupt ended what was going on")
    assert not session.widget.controller.is_busy


def test_overlays_follow_an_image_that_gets_other_data_while_the_view_moves(session, checkpoint_of):
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
    for name in ("grid", "order", "coverage"):
        session.widget[f"show_{name}"].value = True
    image = session.viewer.layers["volume"]
    image.data = np.ones((2, 12, 40, 60), np.float32)
    assert [layer.name for layer in session.viewer.layers] == ["volume"]
    for point in range(3):
        session.viewer.dims.set_point(1, point)
        session.qtbot.wait(60)
    session.wait_for(lambda: len(session.viewer.layers) == 4)

    assert session.viewer.layers["coverage"].data.shape == (12, 40, 60)
    image.data = np.ones((1, 2, 3, 4, 5, 6), np.float32)
    session.wait_for(lambda: "6" in session.status)
    assert [layer.name for layer in session.viewer.layers] == ["volume"]


def test_the_inspector_explains_the_plan_once_the_fields_are_at_rest(session, checkpoint_of):
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
    inspector, planned = session.widget._inspector, []
    inspector.native.switch.setChecked(True)
    before = inspector._subject
    assert before.grid.counts == (5, 4, 4)
    for overlap in (0.1, 0.2, 0.0):
        session.widget.overlap.value = overlap
        planned.append(inspector._subject)
    assert all(each is before for each in planned)
    session.wait_for(lambda: inspector._subject is not before)

    assert inspector._subject.grid.counts == (3, 3, 3)
