"""Values of fields: taken out as JSON can hold them, and put back where they still fit."""

from pathlib import Path
from typing import Any

from magicgui.widgets import ComboBox, FileEdit
from magicgui.widgets.bases import ValueWidget

_PLAIN = (bool, int, float, str, Path, type(None))


def is_plain(value: Any) -> bool:
    """Return whether JSON can hold a field's value; a layer's name would not bring it back."""
    if isinstance(value, (tuple, list)):
        return all(map(is_plain, value))
    return isinstance(value, _PLAIN)


def plain(value: Any) -> Any:
    """Return a field's value as JSON holds it; paths are absolute, and "" if there is none."""
    if isinstance(value, Path):
        return "" if value == Path() else str(value.expanduser().absolute())
    return list(map(plain, value)) if isinstance(value, (tuple, list)) else value


def fill(field: ValueWidget[Any] | FileEdit, value: Any) -> bool:
    """Put a value into a field if it holds such values; return whether it does.

    A choice that is not offered is not made, and a spin box that would round is left as it is.
    """
    value = tuple(value) if isinstance(value, list) else value
    if isinstance(field, ComboBox) and value not in field.choices:
        return False
    if isinstance(field, FileEdit) and value in ("", Path(), None):
        field.line_edit.value = ""  # as a path it would be the working folder
        return True
    before = field.value
    try:
        field.value = value
    except (TypeError, ValueError):
        return False
    if field.value == value or isinstance(field.value, Path):
        return True
    field.value = before
    return False
