"""Settings that a checkpoint knows: put into the form's fields and marked, until the user edits."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from magicgui.widgets import ComboBox
from magicgui.widgets.bases import ValueWidget
from psygnal import Signal

_HINT = "Taken from the checkpoint"


class FileSettings:
    """Fills fields with a checkpoint's settings and keeps those that have no field.

    What the user has edited since the checkpoint was chosen is left alone.

    Parameters
    ----------
    fields : mapping of str to ValueWidget
        The form's fields by setting of `InferenceConfig`.
    """

    marked = Signal()
    """The label of a field has changed."""

    def __init__(self, fields: Mapping[str, ValueWidget[Any]]) -> None:
        self._fields = fields
        self._tooltips = {name: field.tooltip for name, field in fields.items()}
        self._labels = {name: field.label for name, field in fields.items()}
        boxes = [field for field in fields.values() if isinstance(field, ComboBox)]
        self._choices = [(box, box.choices) for box in boxes]
        self._edited: set[str] = set()
        self._before: dict[str, Any] = {}
        self._others: dict[str, Any] = {}
        self._is_filling = False
        for name, field in fields.items():
            field.changed.connect(partial(self._changed, name))

    def forget(self) -> None:
        """Start anew: another checkpoint was chosen. Fields go back to what they were before."""
        self._is_filling = True
        try:
            for name, value in self._before.items():
                self._fields[name].value = value
            for box, choices in self._choices:
                box.choices = choices
        finally:
            self._is_filling = False
        for name in self._fields:
            self._mark(name, "")
        self._others, self._before, self._edited = {}, {}, set()

    def take(self, settings: Mapping[str, Any]) -> None:
        """Fill in what a checkpoint knows, where the user has not decided."""
        self._is_filling = True
        try:
            for name, value in settings.items():
                if name not in self._edited:
                    self._take(name, value)
        finally:
            self._is_filling = False

    @property
    def without_field(self) -> dict[str, Any]:
        """Settings that the checkpoint knows and the form has no field for."""
        return {name: value for name, value in self._others.items() if name not in self._fields}

    def values(self) -> dict[str, Any]:
        """Return the settings: of the fields, and those that only the checkpoint knows."""
        values = {name: field.value for name, field in self._fields.items()} | self._others
        if values["normalization"] != "fixed":
            values.pop("mean_std", None)  # says how "fixed" is meant
        return values

    def _take(self, name: str, value: Any) -> None:
        field = self._fields.get(name)
        if field is None:
            self._others[name] = value
            return
        self._before.setdefault(name, field.value)
        if isinstance(field, ComboBox) and value not in field.choices:
            field.choices = (*field.choices, value)
        try:
            field.value = value
            self._mark(name, "file")
        except (TypeError, ValueError):  # per axis or per channel, say: the field holds one value
            self._others[name] = value
            self._mark(name, f"file: {value}")

    def _changed(self, name: str) -> None:
        if not self._is_filling:
            self._edited.add(name)
            self._others.pop(name, None)
            self._before.pop(name, None)
            self._mark(name, "")

    def _mark(self, name: str, origin: str) -> None:
        field, tooltip = self._fields[name], self._tooltips[name]
        label = f"{self._labels[name]} ({origin})" if origin else self._labels[name]
        if field.label != label:
            field.label = label
            field.tooltip = f"{tooltip}. {_HINT}" if origin else tooltip
            self.marked.emit()
