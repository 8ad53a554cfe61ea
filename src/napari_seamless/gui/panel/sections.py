"""The parts of the form: sections that fold, folds inside them, rows, and labels of one width."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from magicgui.widgets import ComboBox, Container, FileEdit, TupleEdit, Widget
from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QIcon, QPixmap
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QBoxLayout,
    QComboBox,
    QFrame,
    QLabel,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible

from napari_seamless.gui.panel.look import show_fold, show_problem

SPACING = 3
"""Pixels between fields."""
_NUMBERS = "min-width: 30px; padding: 1px 4px;"
_ENDLESS = 16_777_215
"""Qt's largest height: no limit."""
LARGER_FONT = 1.15
"""napari's style has a larger font than Qt measures before a widget is shown."""


def _blank_icon() -> QIcon:
    """Return an icon without a mark; PySide6 holds an empty one for none."""
    pixmap = QPixmap(1, 1)
    pixmap.fill(Qt.GlobalColor.transparent)
    return QIcon(pixmap)


class Panel(QCollapsible):
    """What folds under a line; what is folded away cannot be reached with the keyboard either.

    Parameters
    ----------
    title : str
        The line.
    is_open : bool
        Whether it is open at first.
    is_section : bool
        Whether the line looks like that of a section.
    """

    def __init__(self, title: str, is_open: bool = False, is_section: bool = False) -> None:
        blank = _blank_icon()
        super().__init__(title, expandedIcon=blank, collapsedIcon=blank)
        self._title, self._is_marked = title, False
        button = self.toggleButton()
        button.setIconSize(QSize(1, 1))
        button.setStyleSheet("")  # of superqt; the form has its own
        button.setToolTip("Show or hide what is under this line (Space)")
        show_fold(button, is_section)
        self.setDuration(0)
        for widget in (self, self.content()):
            tighten_layout(widget)
        self.toggled.connect(self._show_state)
        self._show_state(False)
        if is_open:
            self.expand()

    @property
    def title(self) -> str:
        """The line, without the mark that says whether it is open."""
        return self._title

    @title.setter
    def title(self, text: str) -> None:
        self._title = text
        said = f"{text} (problem)" if self._is_marked else text
        self.setText(f"{'▾' if self.isExpanded() else '▸'} {said}")
        self.toggleButton().setAccessibleName(said)  # whether it is open, Qt says

    def mark(self, is_marked: bool) -> None:
        """Say in the line, and by its colour, that there is a problem under it."""
        self._is_marked = is_marked
        self.title = self._title
        show_problem(self.toggleButton(), is_marked)

    def hold(self, widget: QWidget) -> None:
        """Put a widget under the line; unlike with `addWidget`, it may grow."""
        layout_of(self.content()).addWidget(widget)

    def _show_state(self, is_open: bool) -> None:
        self.title = self._title
        self.content().setVisible(is_open)
        self.content().setMaximumHeight(_ENDLESS)


class Fold(Container[Widget]):
    """Fields under a line that folds them away.

    Parameters
    ----------
    name, title : str
        Its name as a widget, and its line.
    parts : list of Widget or QWidget
        What it holds. Fields stand beside their label; rows, folds and widgets of Qt take the
        whole width.
    is_open : bool
        Whether it is open at first.
    """

    def __init__(
        self,
        name: str,
        title: str,
        parts: list[Any],
        is_open: bool = False,
        is_section: bool = False,
    ) -> None:
        super().__init__(name=name, labels=False, label="")
        self.parts = [part for part in parts if isinstance(part, Widget)]
        self._blocks: list[Container[Any]] = []
        self.panel = Panel(title, is_open, is_section)
        for is_labelled, group in groupby(parts, key=_is_labelled):
            for block in [self._labelled(list(group))] if is_labelled else group:
                self.panel.hold(block.native if isinstance(block, Widget) else block)
        tighten(self)
        self.native.layout().addWidget(self.panel)

    def _labelled(self, fields: list[Any]) -> Container[Widget]:
        block: Container[Any] = Container(widgets=fields, labels=True)
        tighten(block)
        self._blocks.append(block)  # keeps its Qt widget alive
        return block

    def reset_choices(self, *args: Any) -> None:
        """Leave the choices alone: the form asks anew for those that are layers."""


class Section(Fold):
    """A part of the form."""

    def __init__(self, name: str, title: str, parts: list[Any], is_open: bool = True) -> None:
        super().__init__(name, title, parts, is_open, is_section=True)
        layout_of(self.panel.content()).setContentsMargins(6, 2, 0, 6)


def _is_labelled(part: Any) -> bool:
    return isinstance(part, Widget) and not _is_frame(part)


def _is_frame(part: Any) -> bool:
    """Return whether a widget only holds others."""
    return isinstance(part, Container) and not isinstance(part, (FileEdit, TupleEdit))


def scrolled(widgets: Iterable[QWidget]) -> QScrollArea:
    """Return widgets one under the other, in an area that scrolls up and down only."""
    inside = QWidget()
    column = QVBoxLayout(inside)
    column.setContentsMargins(0, 0, 4, 0)
    column.setSpacing(SPACING)
    for widget in widgets:
        column.addWidget(widget)
    column.addStretch()
    area = QScrollArea()
    area.setFrameShape(QFrame.Shape.NoFrame)
    area.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # it follows what is reached inside
    area.setWidgetResizable(True)
    area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    area.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
    area.setWidget(inside)
    return area


def row(*widgets: Widget, name: str = "", label: str = "") -> Container[Any]:
    """Return widgets side by side."""
    container: Container[Any] = Container(
        widgets=widgets, layout="horizontal", labels=False, label=label, name=name
    )
    tighten(container)
    return container


def labelled(line: Container[Widget]) -> Container[Widget]:
    """Return a row beside its label."""
    container: Container[Any] = Container(widgets=[line], labels=True, label="")
    tighten(container)
    return container


def tighten(container: Container[Widget]) -> None:
    """Take away the empty frame of a container."""
    tighten_layout(container.native)


def tighten_layout(widget: QWidget) -> None:
    """Take away the empty frame of a widget of Qt."""
    layout_of(widget).setContentsMargins(0, 0, 0, 0)
    layout_of(widget).setSpacing(SPACING)


def layout_of(widget: QWidget) -> QBoxLayout:
    """Return the layout of a widget that is one above the other, or side by side."""
    layout = widget.layout()
    assert isinstance(layout, QBoxLayout)
    return layout


def walk(container: Any) -> Iterator[Any]:
    """Yield every widget of the form: containers, what they hold, and what they fold away."""
    for child in container:
        yield child
        if isinstance(child, Fold):
            yield from walk(child.parts)
        elif _is_frame(child):
            yield from walk(child)


def labels_of(form: Container[Any]) -> list[QLabel]:
    """Return the labels beside the fields of a form."""
    texts = {field.label for field in walk(form)} - {""}
    return [label for label in form.native.findChildren(QLabel) if label.text() in texts]


def label_width(form: Container[Widget]) -> int:
    """Return a width for all fields' labels, with room for what marks those from a checkpoint.

    To be asked before the form is shown.
    """
    labels = labels_of(form)
    mark = labels[0].fontMetrics().horizontalAdvance(" (file)")
    return round(LARGER_FONT * mark) + widest_of(labels)


def widest_of(labels: list[QLabel]) -> int:
    """Return the width that labels will need once they are shown."""
    return round(LARGER_FONT * max((label.sizeHint().width() for label in labels), default=0))


def align_labels(form: Container[Any], width: int) -> None:
    """Give all labels a width; magicgui sets its own when one of them changes."""
    for label in labels_of(form):
        label.setMinimumWidth(width)


def compact(form: Container[Widget]) -> None:
    """Let neither long names of layers and files nor three numbers make the form wide."""
    for field in walk(form):
        if isinstance(field, ComboBox):
            field.native.setSizeAdjustPolicy(
                QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
            )
            field.native.setMinimumContentsLength(6)
            field.native.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        elif isinstance(field, TupleEdit):
            for number in field:
                number.native.setButtonSymbols(QAbstractSpinBox.ButtonSymbols.NoButtons)
                number.native.setStyleSheet(_NUMBERS)  # napari's own is as wide as with buttons
