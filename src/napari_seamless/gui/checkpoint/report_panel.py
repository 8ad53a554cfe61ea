"""What was found in the checkpoint, under a line that folds it away."""

from magicgui.widgets import Container, Widget
from qtpy.QtCore import Qt
from qtpy.QtGui import QFontDatabase
from qtpy.QtWidgets import QPlainTextEdit

from napari_seamless.gui.panel.sections import Panel, tighten
from napari_seamless.models.reporting.report import ModelReport

_LINES_SHOWN = 14
TITLE = "Checkpoint report"


class ReportPanel(Container[Widget]):
    """A panel that is folded at first; `panel.toggled` tells when it is opened or closed."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, labels=False, label="")
        self.panel = Panel(TITLE)
        self._text = QPlainTextEdit()
        self._text.setReadOnly(True)
        self._text.setAccessibleName(TITLE)
        self._text.setToolTip("What was found in the checkpoint")
        self._text.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self._text.setFixedHeight(self._text.fontMetrics().lineSpacing() * _LINES_SHOWN)
        self._text.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse
            | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        self.panel.hold(self._text)
        tighten(self)
        self.native.layout().addWidget(self.panel)

    @property
    def is_open(self) -> bool:
        """Whether the report is looked at."""
        return bool(self.panel.isExpanded())

    @property
    def text(self) -> str:
        """What it says."""
        return str(self._text.toPlainText())

    def show_report(self, report: ModelReport | None, otherwise: str, is_growing: bool) -> None:
        """Show a report; without one, or while more is being found out, a line that says so."""
        lines = report.lines() if report else []
        if report is None or is_growing:
            lines.append(otherwise)
        self._text.setPlainText("\n".join(lines))
        self.panel.title = ": ".join([TITLE, *filter(None, [_summary(report)])])


def _summary(report: ModelReport | None) -> str:
    """Return what must not be missed while the panel is folded."""
    if report is None:
        return ""
    warnings = len(report.warnings())
    parts = ["network guessed"] if report.origin == "guessed" else []
    if warnings:
        parts.append(f"{warnings} warning{'s' * (warnings != 1)}")
    return ", ".join(parts)
