"""A field for each parameter of an architecture, kept equal to its arguments as JSON."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from magicgui.widgets import CheckBox, ComboBox, Container, LineEdit, Widget
from magicgui.widgets.bases import ValueWidget
from psygnal import Signal
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QScrollArea

from napari_seamless.engine.errors import ConfigError
from napari_seamless.engine.refusals import json_object
from napari_seamless.gui.panel.reach import describe
from napari_seamless.gui.panel.sections import Panel, align_labels, labels_of, tighten, widest_of

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.models.networks.architecture import Parameter

Field = ValueWidget[Any]

_HEIGHT = 220
_ROOM = 8
"""Pixels behind the longest label."""
_UNSET = ""


class ParametersPanel(Container[Widget]):
    """The parameters of a network's class, folded at first; empty fields are left to the class."""

    edited = Signal(str)
    """The arguments as JSON, after the user changed a field."""
    made = Signal()
    """There are other fields."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, labels=False, label="", visible=False)
        self._panel = Panel("Parameters of the network")
        self._area = QScrollArea()
        self._area.setWidgetResizable(True)
        self._area.setFixedHeight(_HEIGHT)
        self._area.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # it follows what is reached inside
        self._panel.hold(self._area)
        tighten(self)
        self.native.layout().addWidget(self._panel)
        self._parameters: tuple[Parameter, ...] = ()
        self._fields: dict[str, Field] = {}
        self._form: Container[Field] = Container()
        self._others: dict[str, Any] = {}
        self._is_filling = False

    def show_parameters(self, parameters: "tuple[Parameter, ...]", arguments: str) -> None:
        """Make the fields anew; without parameters, hide."""
        self._parameters = parameters
        self._fields = {each.name: _field(each) for each in parameters}
        form = Container(widgets=list(self._fields.values()), labels=True)
        align_labels(form, widest_of(labels_of(form)) + _ROOM)
        describe(form)
        for field in self._fields.values():
            field.changed.connect(self._edited)
        self._form = form  # keeps the fields alive
        self._area.setWidget(form.native)
        self.fill(arguments)
        self.visible = bool(parameters)
        self.made.emit()

    def fill(self, arguments: str) -> None:
        """Follow arguments typed as JSON; while they are no JSON, stay."""
        try:
            values = json_object(arguments or "{}", "arguments")
        except ConfigError:
            return  # the form says so itself
        self._others = {name: value for name, value in values.items() if name not in self._fields}
        self._is_filling = True
        try:
            for parameter in self._parameters:
                _put(self._fields[parameter.name], parameter, values)
        finally:
            self._is_filling = False

    def _edited(self) -> None:
        if self._is_filling:
            return
        values = {
            parameter.name: _value(self._fields[parameter.name], parameter)
            for parameter in self._parameters
            if not _is_unset(self._fields[parameter.name], parameter)
        }
        self.edited.emit(json.dumps(self._others | values))


def _field(parameter: "Parameter") -> Field:
    name, tooltip = parameter.name, parameter.help or f"Argument {parameter.name} of the network"
    if parameter.kind == "bool":
        return CheckBox(name=name, text=name, tooltip=tooltip)
    if parameter.kind == "choice":
        choices = (_UNSET, *map(str, parameter.choices))
        return ComboBox(name=name, label=name, choices=choices, tooltip=tooltip)
    field = LineEdit(name=name, label=name, tooltip=tooltip)
    default = "required" if parameter.required else _text(parameter.default)
    field.native.setPlaceholderText(default)
    return field


def _put(field: Field, parameter: "Parameter", values: Mapping[str, Any]) -> None:
    is_given = parameter.name in values
    if parameter.kind == "bool":
        field.value = bool(values[parameter.name] if is_given else parameter.default)
        return
    text = _text(values[parameter.name]) if is_given else _UNSET
    if isinstance(field, ComboBox) and text not in field.choices:
        field.choices = (*field.choices, text)
    field.value = text


def _is_unset(field: Field, parameter: "Parameter") -> bool:
    if parameter.kind == "bool":
        return not parameter.required and field.value == bool(parameter.default)
    return not str(field.value).strip()


def _value(field: Field, parameter: "Parameter") -> Any:
    """Return what a field stands for: JSON where it is JSON, else its text."""
    if parameter.kind == "bool":
        return bool(field.value)
    text = str(field.value).strip()
    if parameter.kind == "text":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
