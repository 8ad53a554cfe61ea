"""The page about the widget has a row for each field, with its label and its default."""

import re
from pathlib import Path

import pytest
from magicgui.widgets import CheckBox, FileEdit, Label, LineEdit, PushButton, TupleEdit
from magicgui.widgets.bases import ValueWidget
from qtpy.QtWidgets import QAbstractSpinBox

from napari_seamless.gui.panel.sections import walk
from napari_seamless.gui.runs.shortcuts import KEYS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "widget.md"
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = {
    name: (label.strip(), default.strip())
    for label, name, default in re.findall(
        r"^\| (.*?)\| `(\w+)` \| (.*?)\| \S.*\|$", TEXT, re.MULTILINE
    )
}
WITHOUT_LABEL = {"seam_score", "scores"}


@pytest.fixture
def widget(session_over, volume):
    return session_over(volume).widget


def fields_of(widget) -> dict:
    """Return what a user can set or press, by name."""
    return {
        field.name: field
        for field in walk(widget)
        if isinstance(field, ValueWidget | FileEdit) and field.name and not isinstance(field, Label)
    }


def label_of(field) -> str:
    return field.text if isinstance(field, CheckBox | PushButton) else field.label


def default_of(field) -> str:
    """Return what a field shows when the form opens."""
    if isinstance(field, CheckBox):
        return "on" if field.value else "off"
    if isinstance(field, PushButton):
        return ""
    if isinstance(field, LineEdit | FileEdit):
        line = (field.line_edit if isinstance(field, FileEdit) else field).native
        return line.text() or line.placeholderText()
    if isinstance(field, TupleEdit):
        return ", ".join(map(str, field.value))
    if isinstance(field.native, QAbstractSpinBox):
        return field.native.text()
    return "" if field.value is None else str(field.value)


def test_every_field_has_a_row(widget):
    missing = fields_of(widget).keys() - ROWS.keys()
    assert missing - {"progress"} == set()


def test_rows_are_of_fields_that_there_are(widget):
    assert ROWS.keys() <= {field.name for field in walk(widget)}


def test_rows_have_the_labels_and_defaults_of_the_form(widget):
    fields = fields_of(widget)
    wanted = {name: (label_of(field), default_of(field)) for name, field in fields.items()}
    wanted |= {
        name: ("", default) for name, (_, default) in wanted.items() if name in WITHOUT_LABEL
    }
    wanted |= {"image": ("image", "")}  # the test's own
    assert {name: ROWS[name] for name in fields if name != "progress"} == {
        name: wanted[name] for name in fields if name != "progress"
    }


def test_keys_and_menu_are_on_the_page(widget):
    assert all(f"(`{key}`)" in TEXT for key in KEYS.values())
    menu = widget._presets.native.menu()
    assert all(f"| `{action.text()}` |" in TEXT for action in menu.actions())
