"""Settings of the form: remembered, saved, loaded, reset, and copied as a command line."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from magicgui.widgets import ComboBox
from magicgui.widgets.bases import ValueWidget
from napari.components import ViewerModel
from napari.layers import Layer
from napari.utils.notifications import show_warning
from qtpy.QtWidgets import QApplication, QFileDialog, QMainWindow, QMenu, QToolButton, QWidget

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import SeamlessError, SourceError, one_line
from napari_seamless.gui.panel.field_values import fill, is_plain, plain
from napari_seamless.gui.panel.file_settings import FileSettings
from napari_seamless.gui.presets import dropped
from napari_seamless.gui.presets.preset_network import Network
from napari_seamless.gui.presets.recent import LastRun, RecentCheckpoints
from napari_seamless.gui.presets.run_facts import (
    RESULTS,
    facts_in,
    found_in,
    is_of_run,
    usable_json,
)
from napari_seamless.gui.runs.live_layer import METADATA_KEY

Fields = Callable[[], Mapping[str, ValueWidget[Any]]]

_SETTINGS = InferenceConfig.model_fields

_OF_ONE_IMAGE = ("region", "time_points")
"""Settings that mean something for one image only."""

_NEVER = (
    *_OF_ONE_IMAGE,
    *("image", "level", "mask", "truth", "scope", "scope_shapes"),  # layers of a session
    *("output", "start_anew"),  # nobody agreed that the next run replaces this one's
    "trust",  # in one file, once
    "recent",
)
"""Fields that are not remembered."""

_SUFFIXES = " ".join(f"*{suffix}" for suffix in RESULTS if suffix != ".zarr")
_FILTER = f"Settings, or a result (*.json {_SUFFIXES});;All files (*)"


class Presets:
    """What can be done with all settings at once.

    Parameters
    ----------
    fields : callable
        Returns the form's fields by name; those of settings have the name that they have in
        `InferenceConfig`.
    command : callable
        Returns the command line, and what is to be done before it works, if anything; or raises
        a SeamlessError that says why there is none.
    say : callable
        Takes one line, and whether it is a problem.
    settings : FileSettings, optional
        Keeps settings that no field holds; without it they are left out, which is said.
    viewer : ViewerModel, optional
        Whose selected layer may have settings, and which gets what is dropped.
    last_run, recent : optional
        What is remembered; by default among the user's own settings.

    Attributes
    ----------
    native : QToolButton
        The button, with its menu.
    """

    def __init__(
        self,
        fields: Fields,
        command: Callable[[], tuple[str, str]],
        say: Callable[[str, bool], None],
        *,
        settings: FileSettings | None = None,
        viewer: ViewerModel | None = None,
        last_run: LastRun | None = None,
        recent: RecentCheckpoints | None = None,
    ) -> None:
        self._fields, self._command, self._say = fields, command, say
        self._settings = settings
        self._last_run = last_run or LastRun()
        self._defaults = {name: field.value for name, field in fields().items()}
        self._network = Network(fields, recent or RecentCheckpoints())
        if settings is not None:
            settings.taken.connect(self._network.choose_weights)
        self.viewer = viewer
        self.native = self._button()
        dropped.register(self)

    @property
    def is_open(self) -> bool:
        """Whether the button is in a window, not in a dock that was closed."""
        widget: QWidget | None = self.native
        while widget is not None and not isinstance(widget, QMainWindow):
            widget = widget.parentWidget()
        return widget is not None

    def remember(self) -> None:
        """Keep for the next session what the form says now, if it can be used."""
        fields = self._fields()
        others = {
            name: plain(field.value)
            for name, field in fields.items()
            if name not in _NEVER and name not in _SETTINGS and is_plain(field.value)
        }
        given = {} if self._settings is None else self._settings.given
        settings = {name: field.value for name, field in fields.items() if name in _SETTINGS}
        settings = {name: settings[name] for name in settings if name not in _NEVER} | given
        self._last_run.save({"settings": usable_json(settings), "fields": others})

    def recall(self) -> None:
        """Fill in what was remembered; what no longer fits stays as it is."""
        kept = self._last_run.load()
        others = {
            name: value
            for name, value in _dict(kept.get("fields")).items()
            if name in self._fields() and name not in _NEVER
        }
        absent = self._network.recall(others)
        settings = found_in(_dict(kept.get("settings"))).settings
        self._put({name: value for name, value in settings.items() if self._is_there(name, value)})
        for name in others.keys() - set(self._network.names):
            fill(self._fields()[name], others[name])
        if absent is not None:
            self._warn(f"{absent} is not there any more; choose a checkpoint")

    def save(self, path: Path) -> None:
        """Write the settings as the JSON that `--config` takes, and say so."""
        try:
            path.write_text(self.config().to_json() + "\n", encoding="utf-8")
        except (SeamlessError, OSError) as error:
            self._say(f"Not saved: {one_line(error)}", True)
        else:
            self._say(f"Settings saved to {path.name}", False)

    def load(self, path: Path) -> None:
        """Fill in the settings of a run's JSON, or of a result, and say what was left out."""
        try:
            self._take(facts_in(path), path.name, path.parent)
        except SeamlessError as error:
            self._say(f"Not loaded: {one_line(error)}", True)

    def dropped(self, path: Path) -> None:
        """Take a file that was dropped on the viewer as `load` does."""
        self.load(path)

    def take_from(self, layer: Layer | None) -> None:
        """Fill in the settings of the run that a layer came from."""
        if layer is None:
            self._say("Select a layer with a prediction first", True)
            return
        try:
            facts, folder = _facts_of(layer)
            self._take(facts, f"layer {layer.name!r}", folder)
        except SeamlessError as error:
            self._say(f"Not loaded: {one_line(error)}", True)

    def reset(self) -> None:
        """Put every field to its default; an image stays chosen."""
        if self._settings is not None:
            self._settings.reset()
        fields = self._fields()
        for name in sorted(self._defaults.keys() & fields, key=lambda name: name != "checkpoint"):
            if not isinstance(self._defaults[name], Layer):
                fill(fields[name], self._defaults[name])
        if self._settings is not None:
            self._settings.reset()  # nobody has typed these
        self._say("All settings are at their defaults", False)

    def copy_command(self) -> None:
        """Put the command line of the run on the clipboard."""
        try:
            line, note = self._command()
        except SeamlessError as error:
            self._say(f"No command: {one_line(error)}", True)
            return
        clipboard = QApplication.clipboard()
        assert clipboard is not None
        clipboard.setText(line)
        self._say(note or "The command line is on the clipboard", bool(note))

    def config(self) -> InferenceConfig:
        """Return the settings as they are now.

        Raises
        ------
        ConfigError
            If they do not fit each other.
        """
        if self._settings is not None:
            values = self._settings.values()
        else:
            values = {name: field.value for name, field in self._fields().items()}
        settings = {name: values[name] for name in values if name in _SETTINGS}
        empty = {name: None for name in _OF_ONE_IMAGE if settings.get(name) == ""}
        return InferenceConfig(**{**settings, **empty})

    def _take(self, facts: Mapping[str, Any], name: str, folder: Path | None) -> None:
        found = found_in(facts)
        chosen, unknown = self._network.put(found.network, folder)
        missing = self._put(found.settings)
        left_out = [*found.left_out, *unknown, *missing.values()]
        is_taken = bool(chosen or found.settings.keys() - missing.keys())
        if not is_taken:
            why = "; ".join(left_out) or "it holds no settings"
            self._warn(f"No settings of {name} taken: {why}")
        elif left_out:
            self._warn(f"Settings of {name} taken, but not: {'; '.join(left_out)}")
        else:
            self._say(f"Settings of {name} taken", False)

    def _warn(self, line: str) -> None:
        """Say what the status alone would lose, as soon as a checkpoint has been read."""
        self._say(line, True)
        show_warning(line)

    def _put(self, settings: Mapping[str, Any]) -> dict[str, str]:
        """Fill in usable settings; return those that could not be, and why, by name."""
        fields = self._fields()
        if self._settings is not None:
            kept = {name for name in settings if name in fields or name not in _OF_ONE_IMAGE}
            self._settings.put({name: settings[name] for name in kept})
            missing = settings.keys() - kept
        else:
            missing = {
                name
                for name, value in settings.items()
                if not (name in fields and fill(fields[name], value))
            }
        return {
            name: f"{name} {settings[name]} (no field holds it)"
            for name in sorted(missing)
            if settings[name] != _SETTINGS[name].get_default(call_default_factory=True)
        }

    def _is_there(self, name: str, value: Any) -> bool:
        """Return whether a remembered value can be chosen; a GPU may be gone."""
        field = self._fields().get(name)
        return name != "device" or not isinstance(field, ComboBox) or value in field.choices

    def _button(self) -> QToolButton:
        button = QToolButton()
        button.setText("Settings")
        button.setToolTip("Save, load or reset all settings; copy the run as a command line")
        button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        menu = QMenu(button)
        for text, slot in (
            ("Save settings…", self._ask_and_save),
            ("Load settings…", self._ask_and_load),
            ("Settings of the selected layer", self._take_from_selected),
            ("Copy command", self.copy_command),
            ("Reset", self.reset),
        ):
            menu.addAction(text, slot)
        button.setMenu(menu)
        return button

    def _ask_and_save(self) -> None:
        chosen, _ = QFileDialog.getSaveFileName(
            self.native, "Save settings", "run.json", "Settings (*.json)"
        )
        if chosen:
            path = Path(chosen)
            self.save(path if path.suffix else path.with_suffix(".json"))

    def _ask_and_load(self) -> None:
        chosen, _ = QFileDialog.getOpenFileName(self.native, "Load settings", "", _FILTER)
        if chosen:
            self.load(Path(chosen))

    def _take_from_selected(self) -> None:
        self.take_from(None if self.viewer is None else self.viewer.layers.selection.active)


def _facts_of(layer: Layer) -> tuple[dict[str, Any], Path | None]:
    """Return what a layer, or the file that it was read from, says of a run; and its folder."""
    path = layer.source.path
    facts = layer.metadata.get(METADATA_KEY)
    if isinstance(facts, Mapping) and is_of_run(facts):
        where = facts.get("output") or path
        return dict(facts), None if where is None else Path(where).parent
    if path is not None and Path(path).suffix.lower() in RESULTS:
        return facts_in(Path(path)), Path(path).parent
    raise SourceError(f"layer {layer.name!r} has no settings of a run; select a prediction")


def _dict(value: Any) -> dict[str, Any]:
    """Return a value if it is a dict: what was remembered may be damaged."""
    return value if isinstance(value, dict) else {}
