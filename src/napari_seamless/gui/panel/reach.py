"""Reaching the form without a mouse, and without seeing it: the order of Tab, and names."""

from collections.abc import Iterator
from itertools import dropwhile, pairwise
from typing import Any

from magicgui.widgets import Container, FileEdit, TupleEdit
from magicgui.widgets.bases import ButtonWidget
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QLayout, QScrollArea, QWidget

from napari_seamless.gui.panel.sections import labels_of, walk

_AXES = "ZYX"


def describe(form: Container[Any]) -> None:
    """Give each part of a field the field's name and tooltip, and each label its field.

    To be called again when labels or tooltips have changed.
    """
    for field in walk(form):
        for part, native in _parts(field).items():
            native.setAccessibleName(f"{field.label} {part}".strip())
            native.setToolTip(field.tooltip or "")
    for label in labels_of(form):
        if (field := _beside(label)) is not None:
            label.setBuddy(field)
            label.setToolTip(field.toolTip())


def order_tabs(root: QWidget) -> None:
    """Let Tab go through all that is inside of a widget from top to bottom, left to right.

    To be called again when anything was put in: Qt puts it at the end.
    """
    for before, after in pairwise(reached(root)):
        QWidget.setTabOrder(before, after)


def reached(widget: QWidget) -> Iterator[QWidget]:
    """Yield what Tab goes to, be it visible or not, in the order of the layouts."""
    is_reached = bool(widget.focusPolicy() & Qt.FocusPolicy.TabFocus)
    if is_reached and widget.focusProxy() is None:
        yield widget
    if isinstance(widget, QScrollArea) and (inside := widget.widget()) is not None:
        yield from reached(inside)
    else:
        for each in _widgets_in(widget.layout()):
            yield from reached(each)


def _widgets_in(layout: QLayout | None) -> Iterator[QWidget]:
    """Yield the widgets of a layout, and of the layouts in it, in their order."""
    for index in range(0 if layout is None else layout.count()):
        item = None if layout is None else layout.itemAt(index)
        if item is None:
            continue
        if (widget := item.widget()) is not None:
            yield widget
        yield from _widgets_in(item.layout())


def _beside(label: QLabel) -> QWidget | None:
    """Return the first widget behind a label that Tab goes to."""
    row = label.parentWidget()
    behind = dropwhile(lambda each: each is not label, _widgets_in(row.layout() if row else None))
    return next((found for each in behind for found in reached(each)), None)


def _parts(field: Any) -> dict[str, QWidget]:
    """Return the widgets of Qt that make a field, by what is said of each after its label."""
    if isinstance(field, FileEdit):
        return {"": field.line_edit.native, field.choose_btn.text: field.choose_btn.native}
    if isinstance(field, TupleEdit):
        return {axis: number.native for axis, number in zip(_AXES, field, strict=True)}
    if isinstance(field, (Container, ButtonWidget)):  # a button says its own text
        return {}
    return {"": field.native}
