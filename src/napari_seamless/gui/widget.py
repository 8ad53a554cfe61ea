"""The form of the plugin; what it does is the controller's."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import napari
from magicgui.widgets import Container, FileEdit, Label, ProgressBar, TupleEdit
from napari.layers import Image, Labels
from qtpy.QtWidgets import QFileDialog, QSizePolicy

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError, ModelError, SeamlessError, one_line
from napari_seamless.gui.axes import axes_of
from napari_seamless.gui.checkpoint_form import CheckpointForm
from napari_seamless.gui.controller import Controller, State
from napari_seamless.gui.fields import (
    Fold,
    controls,
    inputs,
    label_width,
    labels_choice,
    labels_of,
    mask_choice,
    overlay_boxes,
    row,
)
from napari_seamless.gui.file_settings import FileSettings
from napari_seamless.gui.opening import Opener, Reading
from napari_seamless.gui.recent import RecentCheckpoints
from napari_seamless.gui.request import (
    Plan,
    Request,
    check_mask,
    source_of,
)
from napari_seamless.gui.resources_form import OUTPUT_FILTER, ResourcesForm
from napari_seamless.gui.scores import check_labels
from napari_seamless.metrics import METRIC_NAMES
from napari_seamless.models.reporting.suitability import unsuitable
from napari_seamless.models.sniff import FORMATS_TEXT

_PROBLEM = "color: #ff8a80;"
_SETTINGS = ("output_dtype", "skip_constant", "on_error")
"""Fields among `more` that are settings of a run."""
_SUFFIXES = (".zarr", ".h5", ".tif")
_OVERLAYS = ("weights", "coverage", "grid")


class BlendedInference(Container):
    """The dock widget `Blended inference`.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
        The viewer it is docked in.
    """

    def __init__(self, napari_viewer: "napari.viewer.Viewer") -> None:
        super().__init__()
        opener = Opener()
        self._model = CheckpointForm(opener, RecentCheckpoints())
        image, level, times, *settings = inputs(napari_viewer)
        *checkpoint, report = self._model.fields
        self._resources = ResourcesForm()
        self._truth, mask = labels_choice(napari_viewer), mask_choice(napari_viewer)
        self._inputs = [image, level, times, *checkpoint, *settings, mask]
        self._inputs += self._resources.fields
        known = [times, *settings, *map(self._resources.__getitem__, _SETTINGS)]
        self._file_settings = FileSettings({field.name: field for field in known})
        self._bar = ProgressBar(name="progress", visible=False)
        self._status = Label(name="status")
        self._forecast = Label(
            name="forecast", visible=False, tooltip="What the run will take, by its first batch"
        )
        self._scores = Label(name="scores", visible=False)
        self._others = Label(
            name="others", label="also (file)", visible=False, tooltip="Taken from the checkpoint"
        )
        for lines in (self._status, self._forecast, self._scores, self._others):
            lines.native.setWordWrap(True)
            lines.native.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
        self.extend(
            [
                image,
                level,
                times,
                *checkpoint,
                report,
                *settings,
                self._others,
                *self._resources.output_fields,
                mask,
                self._truth,
                self._resources.more,
                controls(),
                overlay_boxes(),
                row(self._bar),
                row(self._status),
                row(self._forecast),
                row(self._scores),
            ]
        )
        self._label_width = label_width(self)
        self._align_labels()
        self._busy = False
        self._controller = Controller(napari_viewer, self, opener)
        self._connect()
        self._image_chosen()
        self._validate()

    def __getattr__(self, name: str) -> Any:
        """Find a field by name, also one inside a row."""
        for child in object.__getattribute__(self, "_list"):
            if child.name == name:
                return child
            if isinstance(child, Container) and not isinstance(child, (FileEdit, TupleEdit)):
                for inner in child.fields if isinstance(child, Fold) else child:
                    if inner.name == name:
                        return inner
        return object.__getattribute__(self, name)

    @property
    def controller(self) -> Controller:
        """What the form is a view of."""
        return self._controller

    def request(self) -> Request:
        """Return what is asked for, or raise a SeamlessError that says what cannot work."""
        plan = self.plan()
        choice = self._model.choice()
        if choice is None:
            raise ModelError(f"Choose a checkpoint: {FORMATS_TEXT}")
        if self._model.reading is not None:
            _check(self._model.reading, plan)
        mask, resources = self.mask.value, self._resources
        resources.check([plan.image] if mask is None else [plan.image, mask])
        if mask is not None:
            check_mask(mask, source_of(plan.image, plan.level), plan.level)
        return Request(
            plan,
            choice,
            resources.output,
            overwrite=resources.overwrite,
            mask=mask,
            memory=resources.memory,
            workers=resources.workers,
        )

    def plan(self) -> Plan:
        """Return what is predicted and how, or raise a SeamlessError."""
        image: Image | None = self.image.value
        if image is None:
            raise ConfigError("Open an image first, for example with File > Open Sample")
        level = int(self.level.value or 0) if image.multiscale else 0
        source = source_of(image, level)  # says what kind of layer cannot be predicted
        truth, has_time = self.chosen_labels(), "T" in axes_of(image)
        if truth is not None and has_time:
            raise ConfigError("Labels are compared with one volume, not with a series; choose none")
        if truth is not None:
            check_labels(truth, source)
        values = self._file_settings.values()
        text = str(values["time_points"] or "").strip()
        values["time_points"] = text or None if has_time else None
        plan = Plan(image, InferenceConfig(**values), level)
        plan.check_times()
        return plan

    def run_started(self) -> None:
        """Take back that an output may be replaced: the next run would delete this one's."""
        self._resources.forget_agreement()

    def show_forecast(self, text: str) -> None:
        """Show what the run will take; "" hides it."""
        self._forecast.value = text
        self._forecast.visible = bool(text)

    def wanted_overlays(self) -> set[str]:
        """Return which overlays are switched on."""
        return {name for name in _OVERLAYS if getattr(self, f"show_{name}").value}

    def chosen_labels(self) -> Labels | None:
        """Return the labels layer to score against, if one is chosen."""
        layer: Labels | None = self._truth.value
        return layer

    def show_scores(self, scores: Mapping[str, float], of: str = "") -> None:
        """Show metrics in a small table under a line that says of what; without any, hide it."""
        rows = "".join(
            f"<tr><td>{label}</td><td style='padding-left: 24px'>{scores[name]:.3f}</td></tr>"
            for name, label in METRIC_NAMES.items()
            if name in scores
        )
        self._scores.value = f"{escape(of)}<table>{rows}</table>"
        self._scores.visible = bool(scores)

    def overlay_removed(self, name: str) -> None:
        """Switch off an overlay whose layer the user removed."""
        getattr(self, f"show_{name}").value = False

    def ask_where(self, suggestion: str) -> Path | None:
        """Ask for the file to export to."""
        chosen, kind = QFileDialog.getSaveFileName(
            self.native, "Export the prediction", suggestion, OUTPUT_FILTER
        )
        if not chosen:
            return None
        path = Path(chosen)
        if not path.suffix:
            path = Path(chosen + next(each for each in _SUFFIXES if each in kind))
            if path.is_file():  # the dialog has asked about the name without a suffix only
                self.say(f"{path.name} exists; choose it in the dialog to replace it", problem=True)
                return None
        if path.is_dir():
            self.say(f"{path.name} exists; choose another name", problem=True)
            return None
        return path

    def set_state(self, state: State) -> None:
        """Enable what makes sense now; show the bar unless idle."""
        self._busy = state not in ("idle", "exporting")
        self.export_button.text = "Stop export" if state == "exporting" else "Export…"
        for field in self._inputs:
            field.enabled = not self._busy
        self.run_button.enabled = not self._busy and self._problem() is None
        self.cancel_button.enabled = self._bar.visible = state != "idle"
        self.pause_button.enabled = state in ("running", "paused")
        self.pause_button.text = "Continue" if state == "paused" else "Pause"

    def set_progress(self, done: int, total: int) -> None:
        """Move the bar."""
        self._bar.max, self._bar.value = total, done

    def say(self, text: str, problem: bool = False) -> None:
        """Show one line of status."""
        self._status.value = text
        self._status.native.setStyleSheet(_PROBLEM if problem else "")

    def reset_choices(self, *args: Any) -> None:
        """Follow the viewer's layers: napari calls this when they change."""
        before = self.image.value
        for field in (self.image, self.mask, self._truth):  # the others' choices are no layers
            field.reset_choices()
        self._image_chosen()
        if self.image.value is not before:  # magicgui is silent when the last choice goes
            self._validate()
            self._controller.plan_changed()

    def _connect(self) -> None:
        self.run_button.changed.connect(self._controller.run)
        self.pause_button.changed.connect(self._controller.toggle_pause)
        self.cancel_button.changed.connect(self._controller.cancel)
        self.export_button.changed.connect(self._controller.export)
        for name in _OVERLAYS:
            getattr(self, f"show_{name}").changed.connect(self._controller.update_overlays)
        self._truth.changed.connect(self._controller.score)
        self._truth.changed.connect(self._validate)
        for field in self._inputs:
            field.changed.connect(self._validate)
        self.image.changed.connect(self._image_chosen)
        for name in ("image", "level", "time_points", "patch_size", "overlap", "blending"):
            getattr(self, name).changed.connect(self._controller.plan_changed)
        self._model.chosen.connect(self._forget_settings)
        self._file_settings.marked.connect(self._align_labels)
        self._model.settings_found.connect(self._take_settings)
        self._model.edited.connect(self._validate)
        self.native.destroyed.connect(self._close)
        self.native_parent_changed.connect(self._close_if_removed)

    def _close_if_removed(self) -> None:
        """End everything when the dock is closed: napari takes the widget out and keeps it."""
        if self.native.parent() is None:
            self._close()

    def _close(self) -> None:
        self._model.close()
        self._controller.close()

    def _take_settings(self, settings: dict[str, Any]) -> None:
        """Fill in what the checkpoint knows, unless a run is using the form."""
        if not self._busy:
            self._file_settings.take(settings)
            self._show_others()

    def _align_labels(self) -> None:
        """Give all labels their width again; magicgui sets its own when one of them changes."""
        for label in labels_of(self):
            label.setMinimumWidth(self._label_width)

    def _forget_settings(self) -> None:
        self._file_settings.forget()
        self._show_others()

    def _show_others(self) -> None:
        """Say which settings of the checkpoint are used though the form has no field for them."""
        others = self._file_settings.without_field
        self._others.value = ", ".join(f"{name} {value}" for name, value in others.items())
        self._others.visible = bool(others)

    def _image_chosen(self) -> None:
        """Show the fields that only some images need."""
        image: Image | None = self.image.value
        self.time_points.native.setPlaceholderText("all")
        has_time = image is not None and "T" in axes_of(image)
        levels = image.data if image is not None and image.multiscale else []
        shapes = [" x ".join(map(str, level.shape)) for level in levels]
        choices = [(f"{i}: {shape}", i) for i, shape in enumerate(shapes)]
        for field, is_needed in ((self.time_points, has_time), (self.level, bool(levels))):
            if field.visible != is_needed:
                field.visible = is_needed
        with self.level.changed.blocked():
            self.level.choices = choices or (0,)

    def _validate(self) -> None:
        """Say at once whether what the form asks for can work."""
        if self._busy:
            return
        self._resources.ask_for_agreement()
        problem = self._problem()
        is_reading, name = self._model.is_reading, self._model.file_name
        ready = f"Reading {name} …" if is_reading else self._resources.ready()
        self.say(problem or ready, problem=problem is not None)
        self.run_button.enabled = problem is None

    def _problem(self) -> str | None:
        """Return in one line why the form cannot be run, or None if it can."""
        try:
            self.request()
        except SeamlessError as error:
            return one_line(error)
        return None


def _check(reading: Reading, plan: Plan) -> None:
    """Raise a ModelError if what was found in the checkpoint cannot be run as asked."""
    problem = reading.problem
    if problem is None and reading.report is not None:
        problem = unsuitable(reading.report, plan.config, source_of(plan.image, plan.level))
    if problem is not None:
        raise ModelError(problem)
