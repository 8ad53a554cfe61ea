"""Showing which field a problem is about."""

from collections.abc import Iterable
from typing import Any

from magicgui.widgets import Container, Widget

from napari_seamless.gui.panel.look import show_problem
from napari_seamless.gui.panel.sections import Fold, walk


class Marks:
    """Marks one field, and the folds that it is in.

    Parameters
    ----------
    form : Container
        Its fields are marked.
    """

    def __init__(self, form: Container[Widget]) -> None:
        self._form = form
        self._name = ""

    def show(self, name: str) -> None:
        """Mark the field of this name and no other; "" marks none."""
        if name == self._name:
            return
        for field in walk(self._form):
            if field.name in (name, self._name) and field.name:
                show_problem(field.native, field.name == name)
            elif isinstance(field, Fold):
                field.panel.mark(
                    bool(name) and any(inner.name == name for inner in walk(field.parts))
                )
        self._name = name


def named_first(line: str, fields: Iterable[Any]) -> str:
    """Return the name of the field that a line begins with, as the messages of errors do.

    Parameters
    ----------
    line : str
        Such as "patch_size (0, 8, 8) is not usable: ...".
    fields : iterable of Widget
        Any of them may be meant.
    """
    first = line.split(" ", 1)[0]
    return next((field.name for field in fields if field.name == first), "")
