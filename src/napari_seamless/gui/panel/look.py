"""How the form looks on each of napari's themes: what is wrong, and where the keyboard is.

One style sheet at the form's root says it all; widgets only carry properties. So another theme
needs nothing but another sheet.
"""

from typing import Any

from napari.components import ViewerModel
from napari.utils.theme import Theme, get_theme
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QWidget

PROBLEM_ON_DARK, PROBLEM_ON_LIGHT = "#ff8f87", "#9c0f0f"
"""Reds of text; on napari's themes their contrast is at least 4.5, on the lines of folds too."""
_PROBLEM, _FOLD = "problem", "fold"
_FIELDS = ("QLineEdit", "QAbstractSpinBox", "QComboBox", "QCheckBox")
_REACHED = (*_FIELDS, "QPushButton", "QToolButton", "QPlainTextEdit", "QTableView")
_HEADER = "rgba(128, 128, 128, 55)"


class Look:
    """Gives a widget the look of the viewer's theme, and follows the theme.

    Parameters
    ----------
    viewer : ViewerModel
        Its theme counts.
    root : QWidget
        The widget; what is inside of it looks so, too.
    """

    def __init__(self, viewer: ViewerModel, root: QWidget) -> None:
        self._viewer, self._root = viewer, root
        viewer.events.theme.connect(self._restyle)
        self._restyle()

    def close(self) -> None:
        """Follow the theme no more."""
        self._viewer.events.theme.disconnect(self._restyle)

    def _restyle(self, event: Any = None) -> None:
        self._root.setStyleSheet(style_of(get_theme(self._viewer.theme)))


def show_problem(widget: QWidget, is_problem: bool) -> None:
    """Show that a text, or the field in a widget, is about a problem; or that it is not."""
    _set_property(widget, _PROBLEM, is_problem)


def is_problem(widget: QWidget) -> bool:
    """Return whether a widget is shown as a problem."""
    return bool(widget.property(_PROBLEM))


def show_fold(widget: QWidget, is_section: bool) -> None:
    """Let a button look like the line of a section, or of a fold in one."""
    _set_property(widget, _FOLD, "section" if is_section else "inner")


def style_of(theme: Theme) -> str:
    """Return the style sheet of the form on a theme."""
    background, text = QColor(theme.background.as_hex()), theme.text.as_hex()
    problem = PROBLEM_ON_DARK if background.lightness() < 128 else PROBLEM_ON_LIGHT
    inside = [f'[{_PROBLEM}="true"] > {each}' for each in _FIELDS]
    wrong = [*(f'{each}[{_PROBLEM}="true"]' for each in _FIELDS), *inside]
    return f"""
    QPushButton {{ padding: 4px 6px; }}
    QPushButton[{_FOLD}] {{
        text-align: left; border: none; background: transparent; padding: 2px;
    }}
    QPushButton[{_FOLD}="section"] {{ background: {_HEADER}; padding: 4px; font-weight: bold; }}
    QLabel[{_PROBLEM}="true"], QPushButton[{_PROBLEM}="true"] {{ color: {problem}; }}
    {_focused(_REACHED)} {{ border: 1px solid {text}; border-radius: 2px; }}
    {_focused([f"QPushButton[{_FOLD}]"])} {{ border: 1px solid {text}; }}
    QAbstractSpinBox QLineEdit:focus {{ border: none; }}
    {", ".join(wrong)} {{ border: 1px solid {problem}; border-radius: 2px; }}
    {_focused(wrong)} {{ border: 2px solid {problem}; }}
    """


def _focused(selectors: Any) -> str:
    return ", ".join(f"{each}:focus" for each in selectors)


def _set_property(widget: QWidget, name: str, value: Any) -> None:
    """Set a property, and let the style sheet see it."""
    widget.setProperty(name, value)
    for each in (widget, *widget.findChildren(QWidget)):
        if (style := each.style()) is not None:
            style.unpolish(each)
            style.polish(each)
