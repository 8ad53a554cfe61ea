"""The form without a mouse and without seeing it: Tab, names, tooltips."""

from itertools import pairwise

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QImage
from qtpy.QtTest import QTest
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QHeaderView,
    QLineEdit,
    QPlainTextEdit,
    QScrollArea,
    QWidget,
)
from superqt import QCollapsible

import networks
from napari_seamless.gui.panel.sections import labels_of
from napari_seamless.gui.runs.shortcuts import KEYS

INTERACTIVE = (
    *(QAbstractButton, QAbstractItemView, QAbstractSpinBox),
    *(QComboBox, QLineEdit, QPlainTextEdit),
)
SAME_LINE = 12
"""Pixels between the tops of widgets that stand side by side."""


def interactive(root: QWidget) -> list[QWidget]:
    """Return what a user can act on now; a line inside a spin box is part of it."""
    return [
        each
        for each in root.findChildren(QWidget)
        if isinstance(each, INTERACTIVE)
        and not isinstance(each, QHeaderView)
        and each.isVisibleTo(root)
        and each.isEnabled()
        and each.focusProxy() is None
    ]


def tabbed(root: QWidget) -> list[QWidget]:
    """Return what Tab goes to inside of a widget, in that order, once around."""
    chain, widget = [], root.nextInFocusChain()
    while widget is not root:
        is_met = bool(widget.focusPolicy() & Qt.FocusPolicy.TabFocus)
        if is_met and root.isAncestorOf(widget) and widget.focusProxy() is None:
            chain.append(widget)
        widget = widget.nextInFocusChain()
    return [each for each in chain if each.isVisibleTo(root) and each.isEnabled()]


def path(widget: QWidget, root: QWidget) -> list[QPoint]:
    """Return where a widget is: in the innermost area that scrolls, that area in the next, ..."""
    areas, parent = [], widget.parentWidget()
    while parent is not root:
        if isinstance(parent, QScrollArea):
            areas.append(parent)
        parent = parent.parentWidget()
    steps = [root, *(area.widget() for area in reversed(areas))]
    return [
        each.mapTo(frame, QPoint(0, 0))
        for frame, each in zip(steps, [*reversed(areas), widget], strict=True)
    ]


def is_behind(after: list[QPoint], before: list[QPoint]) -> bool:
    """Return whether one place is read after another: further down, or further right."""
    here, there = next((a, b) for a, b in zip(before, after, strict=False) if a != b)
    is_beside = abs(here.y() - there.y()) < SAME_LINE
    return here.x() < there.x() if is_beside else here.y() < there.y()


def spoken(widget: QWidget) -> str:
    """Return the name that a screen reader says: Qt takes a button's text if it has no other."""
    text = widget.text() if isinstance(widget, QAbstractButton) else ""
    return widget.accessibleName() or text


@pytest.fixture
def session(session_over, volume):
    session = session_over(volume)
    session.viewer.window._qt_window.resize(1500, 950)
    return session


@pytest.fixture
def full(session, checkpoint_of, qtbot):
    """A session with all that there can be on the screen, one run that is on and two that wait."""
    widget = session.widget
    session.choose(checkpoint_of(networks.Gated), networks.Gated)
    session.wait_for(lambda: session.status == "Ready")
    for _ in range(3):
        session.press("run_button")
    networks.let_through(2)
    session.wait_for_batches(2)
    widget.offer([("Run on the CPU", lambda: None)])
    widget.show_stages("reading 1 s")
    widget.architecture.value = "torch.nn:Conv3d"
    session.wait_for(lambda: not widget.parameters.native.isHidden())
    for name in ("recent", "weights", "trust_row", "anew_row", "all_selected", "level"):
        widget[name].visible = True
    for name in ("time_points", "scope_shapes", "threshold", "workers", "scheduler"):
        widget[name].visible = True
    widget._inspector.native.switch.setChecked(True)
    for panel in widget.native.findChildren(QCollapsible):
        panel.expand()
    qtbot.wait(300)
    yield session
    networks.let_through(10_000)
    for _ in range(3):
        session.wait_for_end()


def test_all_of_the_form_is_met_by_tab_named_and_explained(full):
    # one test: no other form takes as long to fill
    is_met_from_top_to_bottom(full.widget.native)
    has_names_and_tooltips(full.widget.native)
    has_labels_tied_to_fields(full.widget)


def is_met_from_top_to_bottom(root):
    met = tabbed(root)

    names = {spoken(each) for each in met}
    assert names >= {"Checkpoint report", "kernel_size", "Pause", "Run on the CPU", "Details"}
    assert names >= {"patch size Z", "tune with", "Patches at the voxel", "Hold middle"}
    assert sum(name.startswith("Do not run ") for name in names) == 2
    assert {*interactive(root)} == {*met}
    for before, after in pairwise(met):
        assert is_behind(path(after, root), path(before, root)), (
            f"{spoken(before)!r}, {spoken(after)!r}"
        )


def has_names_and_tooltips(root):
    for each in interactive(root):
        assert spoken(each), each.toolTip()
        assert each.toolTip(), spoken(each)


def has_labels_tied_to_fields(widget):
    labels = labels_of(widget)
    assert {"patch size", "tune with", "checkpoint"} <= {label.text() for label in labels}
    for label in labels:
        if label.text() in ("also", "channels", "scores"):  # beside text
            continue
        assert spoken(label.buddy()).startswith(label.text())
        assert label.toolTip() == label.buddy().toolTip()


def test_the_name_of_a_field_says_where_its_value_is_from(session):
    session.widget._settings.take({"overlap": 0.25})

    assert spoken(session.widget.overlap.native) == "overlap (file)"
    assert session.widget.overlap.native.toolTip().endswith("Taken from the checkpoint")


def test_tooltips_name_the_keys_of_the_viewer(session):
    for name, command in {
        "run_button": "run",
        "pause_button": "pause",
        "cancel_button": "cancel",
        "preview": "preview",
    }.items():
        assert f"({KEYS[command]})" in session.widget[name].tooltip


def test_keys_alone_fold_a_section_and_leave_the_table(session, qtbot):
    widget = session.widget
    window = session.viewer.window._qt_window
    window.activateWindow()
    qtbot.waitUntil(window.isActiveWindow)
    line = widget.debug_section.panel.toggleButton()
    line.setFocus()
    qtbot.waitUntil(line.hasFocus)
    assert not widget.show_states.native.isVisible()
    QTest.keyClick(line, Qt.Key.Key_Space)
    assert widget.show_states.native.isVisible()
    assert spoken(line) == "Debug"

    switch = widget._inspector.native.switch
    switch.setFocus()
    QTest.keyClick(switch, Qt.Key.Key_Space)
    QTest.keyClick(switch, Qt.Key.Key_Tab)
    assert QApplication.focusWidget() is widget._inspector.native.view
    QTest.keyClick(QApplication.focusWidget(), Qt.Key.Key_Tab)
    assert QApplication.focusWidget() is widget._inspector.native.middle_button
    line.setFocus()
    QTest.keyClick(line, Qt.Key.Key_Space)
    QTest.keyClick(line, Qt.Key.Key_Tab)
    assert QApplication.focusWidget() is not widget.show_weights.native


def test_what_has_the_focus_looks_different(session, qtbot):
    widget, window = session.widget, session.viewer.window._qt_window
    window.activateWindow()
    qtbot.waitUntil(window.isActiveWindow)
    for name in ("activation", "overlap", "checkpoint", "preview", "tune_patches"):
        field = widget[name].native
        field = field.findChild(QLineEdit) if name == "checkpoint" else field
        widget.memory.native.setFocus()
        before = pixels(field)
        field.setFocus()
        qtbot.waitUntil(field.hasFocus)
        changed = np.any(pixels(field) != before, axis=-1)

        assert changed[0].mean() > 0.8, name  # a line along its upper edge
        assert changed[:, 0].mean() > 0.5, name


def pixels(widget: QWidget) -> np.ndarray:
    picture = widget.grab().toImage().convertToFormat(QImage.Format.Format_RGBA8888)
    data = picture.constBits().asarray(picture.sizeInBytes())
    return np.array(data, np.uint8).reshape(picture.height(), picture.width(), 4)


def test_a_voxel_is_held_and_its_patch_shown_without_a_mouse(session, checkpoint_of, qtbot):
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
    session.wait_for(lambda: session.status == "Ready")
    session.press("run_button")
    session.wait_for_end()
    panel = session.widget._inspector.native
    panel.switch.setChecked(True)
    z = session.viewer.dims.current_step[0]
    panel.middle_button.click()

    assert panel.where.text().startswith(f"Voxel {z}, 20, 20 (z, y, x), held")
    assert panel.chosen is not None
    session.wait_for(lambda: panel.show_button.isEnabled())
    QTest.keyClick(panel.view, Qt.Key.Key_Return)
    session.wait_for(lambda: f"patch {panel.chosen} window" in session.viewer.layers)
    panel.middle_button.click()
    assert "held" not in panel.where.text()
