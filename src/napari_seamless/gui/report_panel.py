"""What was found in the checkpoint, under a line that folds it away."""

from magicgui.widgets import Container
from qtpy.QtCore import Qt
from qtpy.QtGui import QFontDatabase
from qtpy.QtWidgets import QPlainTextEdit
from superqt import QCollapsible

from napari_seamless.models.report import ModelReport

_LINES_SHOWN = 14
TITLE = "Checkpoint report"


class ReportPanel(Container):
    """A panel that is folded at first; `panel.toggled` tells when it is opened or closed."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, labels=False, label=" ")
        self.panel = QCollapsible(TITLE)
        self.panel.setDuration(0)
        self._text = QPlainTextEdit()
        self._text.setReadOnly(True)
        self._text.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self._text.setFixedHeight(self._text.fontMetrics().lineSpacing() * _LINES_SHOWN)
        self._text.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse
            | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        self.panel.addWidget(self._text)
        self.native.layout().setContentsMargins(0, 0, 0, 0)
        self.native.layout().addWidget(self.panel)

    @property
    def is_open(self) -> bool:
        """Whether the report is looked at."""
        return bool(self.panel.isExpanded())

    @property
    def text(self) -> str:
        """What it says."""
        return str(self._text.toPlainText())

    def show_report(self, report: ModelReport | None, otherwise: str) -> None:
        """Show a report; without one, a line that says why."""
        self._text.setPlainText("\n".join(report.lines()) if report else otherwise)
        warnings = len(report.warnings()) if report else 0
        marks = f": {warnings} warning{'s' * (warnings != 1)}" if warnings else ""
        self.panel.setText(f"{TITLE}{marks}")
