"""Settings that a checkpoint or a preset knows: put into the form's fields, or kept beside them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from magicgui.widgets import ComboBox
from magicgui.widgets.bases import ValueWidget
from psygnal import Signal

from napari_seamless.engine.config import InferenceConfig

_HINT = "Taken from the checkpoint"


class FileSettings:
    """Fills fields with settings of a file and keeps those that have no field.

    What the user has edited, or taken from a preset, since the checkpoint was chosen is left alone.

    Parameters
    ----------
    fields : mapping of str to ValueWidget
        The form's fields by setting of `InferenceConfig`.
    """

    marked = Signal()
    """The label of a field has changed."""
    taken = Signal()
    """What a checkpoint knows is in the fields."""

    def __init__(self, fields: Mapping[str, ValueWidget[Any]]) -> None:
        self._fields = fields
        self._tooltips = {name: field.tooltip for name, field in fields.items()}
        self._labels = {name: field.label for name, field in fields.items()}
        boxes = [field for field in fields.values() if isinstance(field, ComboBox)]
        self._choices = [(box, box.choices) for box in boxes]
        self._edited: set[str] = set()
        self._before: dict[str, Any] = {}
        self._others: dict[str, Any] = {}
        self._given: dict[str, Any] = {}
        self._is_filling = False
        for name, field in fields.items():
            field.changed.connect(partial(self._changed, name))

    def forget(self) -> None:
        """Start anew: another checkpoint was chosen. Fields go back to what they were before.

        What a preset gave stays, unless the next checkpoint knows better.
        """
        self._is_filling = True
        try:
            for name, value in self._before.items():
                self._fields[name].value = value
            for box, choices in self._choices:
                if box.value in choices:
                    box.choices = choices
        finally:
            self._is_filling = False
        for name in self._fields:
            self._mark(name, _short(self._given[name]) if name in self._given else "")
        self._others, self._before, self._edited = {}, {}, set()

    def reset(self) -> None:
        """Forget what a checkpoint and a preset said, and what the user has edited."""
        self._given = {}
        self.forget()

    def take(self, settings: Mapping[str, Any]) -> None:
        """Fill in what a checkpoint knows, where the user has not decided."""
        self._is_filling = True
        try:
            for name, value in settings.items():
                if name not in self._edited:
                    self._take(name, _from_json(value))
        finally:
            self._is_filling = False
        self.taken.emit()

    def put(self, settings: Mapping[str, Any]) -> None:
        """Fill in what a preset says, as if the user had typed it; without a field it is kept."""
        self._is_filling = True
        try:
            for name, given in settings.items():
                value = _from_json(given)
                self._decided(name)
                if not self._fill(name, value):
                    self._given[name] = value
                if name in self._fields:
                    self._mark(name, _short(value) if name in self._given else "")
            self._announce()
        finally:
            self._is_filling = False

    @property
    def given(self) -> dict[str, Any]:
        """What a preset said and no field holds."""
        return dict(self._given)

    @property
    def without_field(self) -> dict[str, Any]:
        """Settings that are used and the form has no field for, other than their defaults."""
        given = {
            name: value
            for name, value in self._given.items()
            if value != InferenceConfig.model_fields[name].get_default(call_default_factory=True)
        }
        return {
            name: value
            for name, value in {**self._others, **given}.items()
            if name not in self._fields
        }

    def values(self) -> dict[str, Any]:
        """Return the settings: of the fields, and those that have no field."""
        values = {name: field.value for name, field in self._fields.items()}
        values |= {**self._others, **self._given}
        if values["normalization"] != "fixed":
            values.pop("mean_std", None)  # says how "fixed" is meant
        return values

    def _take(self, name: str, value: Any) -> None:
        self._given.pop(name, None)
        if name in self._fields:
            self._before.setdefault(name, self._fields[name].value)
        if self._fill(name, value):
            self._mark(name, "file")
            return
        self._others[name] = value
        if name in self._fields:
            self._mark(name, f"file: {_short(value)}")

    def _fill(self, name: str, value: Any) -> bool:
        """Put a value into its field; return whether there is one, and it holds such values.

        One value for all axes cannot hold one per axis, and a spin box rounds.
        """
        field = self._fields.get(name)
        if field is None:
            return False
        if isinstance(field, ComboBox) and value not in field.choices:
            field.choices = (*field.choices, value)
        before = field.value
        try:
            field.value = value
        except (TypeError, ValueError):
            return False
        if field.value == value:
            return True
        field.value = before
        return False

    def _announce(self) -> None:
        """Let the form know of values that changed no field."""
        for name in [name for name in self._given if name in self._fields] or [*self._fields][:1]:
            self._fields[name].changed.emit(self._fields[name].value)

    def _changed(self, name: str) -> None:
        if not self._is_filling:
            self._decided(name)
            self._mark(name, "")

    def _decided(self, name: str) -> None:
        self._edited.add(name)
        for known in (self._others, self._before, self._given):
            known.pop(name, None)

    def _mark(self, name: str, origin: str) -> None:
        field, tooltip = self._fields[name], self._tooltips[name]
        label = f"{self._labels[name]} ({origin})" if origin else self._labels[name]
        if field.label != label:
            field.label = label
            field.tooltip = f"{tooltip}. {_HINT}" if origin.startswith("file") else tooltip
            self.marked.emit()


def _from_json(value: Any) -> Any:
    """Return a value as the settings have it: JSON has lists for tuples."""
    return tuple(value) if isinstance(value, list) else value


def _short(value: Any) -> str:
    """Return a value as a label has room for it."""
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
