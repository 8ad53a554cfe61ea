"""Lines of text under the form: long words break, and their room is there before they are."""

import re
from typing import Any

from magicgui.widgets import Label
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QSizePolicy

from napari_seamless.gui.panel.look import show_problem

_PADDING = 10
"""Pixels over and under a text in napari's style."""
_BREAK = "\u200b"
"""A place of no width where a line may break."""
_BREAKABLE = re.compile(r"([/\\_.:,=-]+|\w{24})(?=\w)")


class Lines(Label):
    """Text of any length that never makes the form wider.

    Parameters
    ----------
    name : str
        Its name as a widget.
    reserved : int
        Lines whose room is kept when there is less text, so that nothing jumps.
    is_rich : bool
        Whether it is HTML, whose long words are left alone.
    **options : Any
        Of the widget.
    """

    def __init__(self, name: str, reserved: int = 0, is_rich: bool = False, **options: Any) -> None:
        self._is_rich, self._reserved = is_rich, reserved
        super().__init__(name=name, **options)
        label = self.native
        label.setTextFormat(Qt.TextFormat.RichText if is_rich else Qt.TextFormat.PlainText)
        label.setWordWrap(True)
        label.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
        label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        label.setContentsMargins(0, 0, 0, 0)

    def get_value(self) -> str:
        """Return the text as it was set."""
        return str(super().get_value()).replace(_BREAK, "")

    def set_value(self, value: Any) -> None:
        """Show text."""
        if self._reserved:  # anew each time: the font is known when the widget is shown
            lines = self._reserved * (self.native.fontMetrics().lineSpacing() + 1)
            self.native.setMinimumHeight(lines + _PADDING)
        super().set_value(str(value) if self._is_rich else breakable(str(value)))

    def paint(self, is_problem: bool) -> None:
        """Show it as a problem, or not."""
        show_problem(self.native, is_problem)


def breakable(text: str) -> str:
    """Return text with places where paths and other long words may break."""
    return _BREAKABLE.sub(rf"\1{_BREAK}", text)
