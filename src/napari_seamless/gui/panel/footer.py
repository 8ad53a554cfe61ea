"""The part of the form that is always in sight: a run's buttons, its queue, what it says."""

from collections.abc import Callable, Sequence
from typing import Any

from magicgui.widgets import CheckBox, Container, ProgressBar, PushButton, Widget
from psygnal import Signal
from qtpy.QtCore import Qt
from qtpy.QtGui import QFontDatabase
from qtpy.QtWidgets import (
    QApplication,
    QHBoxLayout,
    QPlainTextEdit,
    QPushButton,
    QScrollArea,
    QToolButton,
    QVBoxLayout,
    QWidget,
)
from superqt import QElidingLabel

from napari_seamless.gui.form import Action, State
from napari_seamless.gui.panel.lines import Lines
from napari_seamless.gui.panel.sections import Panel, layout_of, row, scrolled
from napari_seamless.gui.runs.shortcuts import KEYS

_DETAIL_LINES = 7
_QUEUE_LINES = 3


class Footer(Container[Any]):
    """What the user starts, stops and reads.

    Attributes
    ----------
    queue : QueueLines
        The runs that wait.
    details : Details
        All that is known of the last problem.
    is_busy : bool
        Whether a run is on.
    """

    def __init__(self) -> None:
        super().__init__(name="footer", labels=False, label="")
        self.queue, self.details, self._offers = QueueLines(), Details(), Offers()
        self._texts = {"estimate": "", "forecast": "", "next": ""}
        self.is_busy = False
        self._forecast = Lines("forecast", 2, tooltip="What the run takes, or would take")
        self._status, self._bar = Lines("status", 2), ProgressBar(name="progress")
        self._keep_room(self._bar)
        self._buttons, self._switches = controls(), switches()
        self.extend([self._buttons, self._switches, row(self._bar)])
        self.extend([self._status, self._forecast])
        self.margins = (0, 4, 4, 0)
        column = self.native.layout()
        column.setSpacing(4)
        column.insertWidget(2, self.queue)
        column.insertWidget(column.indexOf(self._forecast.native), self._offers)
        column.insertWidget(column.indexOf(self._offers) + 1, self.details)

    @staticmethod
    def _keep_room(bar: ProgressBar) -> None:
        policy = bar.native.sizePolicy()
        policy.setRetainSizeWhenHidden(True)
        bar.native.setSizePolicy(policy)
        bar.visible = False

    def set_state(self, state: State, can_run: bool) -> None:
        """Enable what makes sense now; show the bar unless idle."""
        self.is_busy = state not in ("idle", "exporting")
        buttons = self._buttons
        buttons.run_button.text = "Queue" if self.is_busy else "Run"
        buttons.run_button.enabled = can_run
        buttons.pause_button.enabled = state in ("running", "paused")
        buttons.pause_button.text = "Continue" if state == "paused" else "Pause"
        buttons.cancel_button.enabled = self._bar.visible = state != "idle"
        buttons.export_button.text = "Stop export" if state == "exporting" else "Export…"

    def set_progress(self, done: int, total: int) -> None:
        """Move the bar."""
        self._bar.max, self._bar.value = total, done

    def say(self, text: str, problem: bool = False) -> None:
        """Show the status."""
        self._status.value = text
        self._status.paint(problem)
        self._show_lower()

    def show_estimate(self, text: str) -> None:
        """Show while nothing runs what a run would take; "" shows nothing."""
        self._show_lower(estimate=text)

    def show_forecast(self, text: str) -> None:
        """Show what the run takes; "" shows nothing."""
        self._show_lower(forecast=text)

    def show_next(self, problem: str) -> None:
        """Show why the next run cannot be started, unless the status says so; "": what it takes."""
        self._show_lower(next=problem)

    def add_tool(self, tool: QWidget) -> None:
        """Put a button with a menu beside the switches."""
        tool.setStyleSheet("QToolButton { padding: 2px 18px 2px 6px; }")  # room for the arrow
        self._switches.native.layout().addWidget(tool)

    def _show_lower(self, **texts: str) -> None:
        self._texts |= texts
        problem = self._texts["next"]
        is_new = bool(problem) and problem not in self._status.value
        said = self._texts["forecast" if self.is_busy else "estimate"]
        self._forecast.value = f"Next run: {problem}" if is_new else said
        self._forecast.paint(is_new)

    def offer(self, actions: Sequence[Action]) -> None:
        """Show a button for each action; without any, take them away."""
        self._offers.show_actions(actions)


class QueueLines(QWidget):
    """The runs that wait, each with a button that drops it; hidden while none does."""

    dropped = Signal(int)
    """Which one the user does not want any more."""

    def __init__(self) -> None:
        super().__init__()
        self._title = QElidingLabel()
        self._area: QScrollArea | None = None
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self._title)
        self.hide()

    def show_names(self, names: Sequence[str]) -> None:
        """Show these and no others."""
        if self._area is not None:
            self._area.hide()  # it is drawn until it is deleted
            layout_of(self).removeWidget(self._area)
            self._area.deleteLater()
            self._area = None
        self._title.setText(f"Waiting: {len(names)} run{'s' * (len(names) != 1)}")
        if names:
            lines = [self._line(index, name) for index, name in enumerate(names)]
            self._area = scrolled(lines)
            height = lines[0].sizeHint().height() * min(len(lines), _QUEUE_LINES)
            self._area.setFixedHeight(height + 2)
            layout_of(self).addWidget(self._area)
        self.setVisible(bool(names))

    def _line(self, index: int, name: str) -> QWidget:
        line, text, drop = QWidget(), QElidingLabel(name), QToolButton()
        text.setElideMode(Qt.TextElideMode.ElideMiddle)  # names differ at their ends
        text.setToolTip(name)
        drop.setText("✕")
        drop.setToolTip(f"Do not run {name}")
        drop.setAccessibleName(drop.toolTip())
        drop.setAutoRaise(True)
        drop.clicked.connect(lambda: self.dropped.emit(index))
        layout = QHBoxLayout(line)
        layout.setContentsMargins(8, 0, 0, 0)
        layout.addWidget(text, 1)
        layout.addWidget(drop)
        return line


class Details(QWidget):
    """All that is known of a problem, folded, with a button that copies it; hidden without one."""

    def __init__(self) -> None:
        super().__init__()
        self._text = QPlainTextEdit()
        self._text.setReadOnly(True)
        self._text.setAccessibleName("Details")
        self._text.setToolTip("All that is known of the run or its problem")
        self._text.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self._text.setFixedHeight(self._text.fontMetrics().lineSpacing() * _DETAIL_LINES)
        self.copy_button = QPushButton("Copy")
        self.copy_button.setToolTip("Copy the details, to send them to somebody")
        self.copy_button.clicked.connect(self._copy)
        self.panel = Panel("Details")
        for widget in (self._text, self.copy_button):
            self.panel.hold(widget)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.panel)
        self.hide()

    @property
    def text(self) -> str:
        """What it says."""
        return str(self._text.toPlainText())

    def show_text(self, text: str) -> None:
        """Show details; "" hides them."""
        self._text.setPlainText(text)
        self.setVisible(bool(text))

    def _copy(self) -> None:
        clipboard = QApplication.clipboard()
        if clipboard is not None:
            clipboard.setText(self.text)


class Offers(QWidget):
    """Buttons that do what a problem calls for; hidden without any."""

    def __init__(self) -> None:
        super().__init__()
        self._row = QHBoxLayout(self)
        self._row.setContentsMargins(0, 0, 0, 0)
        self.hide()

    def show_actions(self, actions: Sequence[Action]) -> None:
        """Show a button for each action."""
        while (item := self._row.takeAt(0)) is not None:
            if (button := item.widget()) is not None:
                button.deleteLater()
        for text, act in actions:
            self._row.addWidget(self._button(text, act))
        self.setVisible(bool(actions))

    @staticmethod
    def _button(text: str, act: Callable[[], None]) -> QPushButton:
        button = QPushButton(text)
        button.setToolTip("Change the settings so, and run again")
        button.clicked.connect(lambda: act())
        return button


def controls() -> Container[PushButton]:
    """Return the buttons of a run."""
    return row(
        PushButton(
            name="run_button", text="Run", tooltip=f"Predict it; behind a run, wait ({KEYS['run']})"
        ),
        PushButton(
            name="pause_button",
            text="Pause",
            enabled=False,
            tooltip=f"Pause or continue ({KEYS['pause']})",
        ),
        PushButton(
            name="cancel_button",
            text="Cancel",
            enabled=False,
            tooltip=f"Stop; keep what is done ({KEYS['cancel']})",
        ),
        PushButton(name="export_button", text="Export…", tooltip="Write the layer to a file"),
        name="buttons",
    )


def switches() -> Container[Widget]:
    """Return the switches of where a run predicts."""
    return row(
        CheckBox(
            name="follow_view",
            text="Follow view",
            value=True,
            tooltip="Predict what is on the screen first; else one plane after the other",
        ),
        CheckBox(
            name="preview",
            text="Preview",
            tooltip="Predict only what is on the screen, as you browse, until this is switched "
            f"off ({KEYS['preview']})",
        ),
        name="switches",
    )
