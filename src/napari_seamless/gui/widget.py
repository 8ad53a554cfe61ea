"""The form of the plugin; what it does is the controller's."""

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import napari
from magicgui.widgets import Container, FileEdit, Label
from magicgui.widgets.bases import BaseValueWidget
from napari.layers import Labels

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import SeamlessError, one_line
from napari_seamless.gui.checkpoint.checkpoint_form import CheckpointForm
from napari_seamless.gui.checkpoint.opening import Opener
from napari_seamless.gui.controller import Controller
from napari_seamless.gui.export_dialog import ask_where
from napari_seamless.gui.form import Action, State
from napari_seamless.gui.inspector.inspector import Inspector
from napari_seamless.gui.overlays import SWITCHES
from napari_seamless.gui.panel.arrangement import sections
from napari_seamless.gui.panel.asking import Asking, Problem
from napari_seamless.gui.panel.file_settings import FileSettings
from napari_seamless.gui.panel.footer import Footer
from napari_seamless.gui.panel.image_choice import ImageChoice
from napari_seamless.gui.panel.lines import breakable
from napari_seamless.gui.panel.look import Look
from napari_seamless.gui.panel.marks import Marks, named_first
from napari_seamless.gui.panel.profile import ProfilePicture, profile_or_none
from napari_seamless.gui.panel.reach import describe, order_tabs
from napari_seamless.gui.panel.resources_form import ResourcesForm, in_form_words
from napari_seamless.gui.panel.run_controls import RunControls
from napari_seamless.gui.panel.sections import align_labels, compact, label_width, scrolled, walk
from napari_seamless.gui.presets.presets import Presets
from napari_seamless.gui.presets.recent import RecentCheckpoints
from napari_seamless.gui.runs.estimate import Estimator
from napari_seamless.gui.runs.request import Plan, Request
from napari_seamless.gui.runs.worker import start_task
from napari_seamless.gui.space.opengl import delete_in_own_context
from napari_seamless.metrics import METRIC_NAMES

_WIDTH = 350
"""Pixels; so wide a dock opens, and no narrower can it be made."""
_OF_PLAN = (
    *("image", "level", "time_points", "scope", "scope_shapes", "region"),
    *("patch_size", "overlap", "blending", "grid", "halo", "output_scale"),
)
"""Fields that say where patches are."""
_OF_LAYERS = ("image", "mask", "truth", "scope_shapes")
"""Fields that follow the viewer's layers."""
_NO_SETTINGS = ("all_selected", "tune_button", *(f"show_{each.name}" for each in SWITCHES))
"""Fields about layers of this moment."""


class BlendedInference(Container[Any]):
    """The dock widget `Blended inference`.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
        The viewer it is docked in.
    """

    def __init__(self, napari_viewer: "napari.viewer.Viewer") -> None:
        super().__init__(labels=False)
        delete_in_own_context()
        self._viewer = napari_viewer
        self._state: State = "idle"
        self._own_line = ""
        opener, self._profile = Opener(), ProfilePicture()
        self._inspector = Inspector(napari_viewer)
        self._model = CheckpointForm(opener, RecentCheckpoints())
        self._resources, self._footer = ResourcesForm(), Footer()
        self._arrange()
        self._settings = FileSettings(self._fields_of_settings())
        self._asking = Asking(
            napari_viewer, self.__getitem__, self._model, self._resources, self._settings
        )
        self._images = ImageChoice(napari_viewer, self.__getitem__)
        self._estimator = Estimator(start_task, self._footer.show_estimate, opener)
        self._controller = Controller(napari_viewer, self, opener)
        self._controls = RunControls(
            self.__getitem__, self.plan, self._controller, self._footer, self._inspector
        )
        self._presets = Presets(
            self.fields_by_name,
            self._asking.command,
            self.say,
            settings=self._settings,
            viewer=self._viewer,
        )
        self._footer.add_tool(self._presets.native)
        self._order_tabs()
        self._connect()
        self._model.start()
        self._presets.recall()
        self._images.follow()
        self._validate()

    def __getattr__(self, name: str) -> Any:
        """Find a field by name, wherever it stands."""
        named = self.__dict__.get("_named", {})
        return named[name] if name in named else object.__getattribute__(self, name)

    @property
    def controller(self) -> Controller:
        """What the form is a view of."""
        return self._controller

    def fields_by_name(self) -> dict[str, Any]:
        """Return all fields of the sections, by name: without what only says or shows something."""
        return {
            field.name: field
            for section in self._sections
            for field in walk(section.parts)
            if isinstance(field, BaseValueWidget | FileEdit)
            and not isinstance(field, Label)
            and field.name not in _NO_SETTINGS
        }

    def requests(self) -> list[Request]:
        """Return what is asked for, one request per image, or raise a SeamlessError."""
        return self._asking.requests()

    def plan(self) -> Plan:
        """Return what is predicted of the chosen image and how, or raise a SeamlessError."""
        return self._asking.plan(self.image.value)

    def run_started(self) -> None:
        """Take back that an output may be replaced: the next run would delete this one's."""
        self._resources.forget_agreement()
        self._footer.details.show_text("")
        self._presets.remember()

    def fill(self, settings: Mapping[str, Any]) -> None:
        """Put settings into the fields of the same name, as if they were typed."""
        self._settings.put(settings)

    def offer(self, actions: Sequence[Action]) -> None:
        """Show a button for each action; without any, take them away."""
        self._footer.offer(actions)
        self._order_tabs()

    def show_forecast(self, text: str) -> None:
        """Show what the run will take; "" hides it."""
        self._footer.show_forecast(text)

    def wanted_overlays(self) -> set[str]:
        """Return which overlays are switched on."""
        return {each.name for each in SWITCHES if self[f"show_{each.name}"].value}

    def chosen_labels(self) -> Labels | None:
        """Return the labels layer to score against, if one is chosen."""
        layer: Labels | None = self.truth.value
        return layer

    def show_scores(self, scores: Mapping[str, float], of: str = "") -> None:
        """Show metrics in a small table under a line that says of what; without any, hide it."""
        rows = "".join(
            f"<tr><td>{label}</td><td style='padding-left: 24px'>{scores[name]:.3f}</td></tr>"
            for name, label in METRIC_NAMES.items()
            if name in scores
        )
        self.scores.value = f"{escape(breakable(of))}<table>{rows}</table>"
        self.scores.visible = bool(scores)

    def say_seams(self, line: str) -> None:
        """Show how visible the seams are; "" hides it."""
        self.seam_score.value = line
        self.seam_score.visible = bool(line)

    def overlay_removed(self, name: str) -> None:
        """Switch off an overlay whose layer the user removed."""
        self[f"show_{name}"].value = False

    def ask_where(self, suggestion: str) -> Path | None:
        """Ask for the file to export to."""
        try:
            return ask_where(self.native, suggestion)
        except SeamlessError as error:
            self.say(one_line(error), problem=True)
            return None

    def set_state(self, state: State) -> None:
        """Enable what makes sense now; the fields stay open for the next run."""
        self._state = state
        self._look()

    def set_progress(self, done: int, total: int) -> None:
        """Move the bar."""
        self._footer.set_progress(done, total)

    def set_tuning(self, is_tuning: bool) -> None:
        """Let the button stop what it started."""
        self.tune_button.text = "Stop" if is_tuning else "Tune"
        if is_tuning:
            self.say("Tuning: trying what is fastest on patches of the image …")

    def show_stages(self, text: str) -> None:
        """Show where the time of the run goes."""
        self._footer.details.show_text(text)

    def say(self, text: str, problem: bool = False) -> None:
        """Show the status."""
        self._footer.say(in_form_words(text), problem)

    def reset_choices(self, *args: Any) -> None:
        """Follow the viewer's layers: napari calls this when they change."""
        before = self.image.value
        for name in _OF_LAYERS:  # the others' choices are no layers
            self[name].reset_choices()
        self._images.follow()
        if self.image.value is not before:  # magicgui is silent when the last choice goes
            self._validate()
            self._controller.plan_changed()

    def _arrange(self) -> None:
        self._sections = sections(
            self._viewer, self._model, self._resources, self._profile, self._inspector.native
        )
        self.extend([*self._sections, self._footer])
        self._named = {field.name: field for field in walk(self) if field.name}
        column = self.native.layout()
        column.insertWidget(0, scrolled([section.native for section in self._sections]), 1)
        column.setContentsMargins(6, 4, 2, 4)
        self.native.setMinimumWidth(_WIDTH)
        compact(self)
        self._look_of_theme = Look(self._viewer, self.native)
        self._label_width = label_width(self)
        self._labels_changed()
        self._marks = Marks(self)

    def _fields_of_settings(self) -> dict[str, Any]:
        fields = self.fields_by_name()
        return {name: fields[name] for name in InferenceConfig.model_fields if name in fields}

    def _connect(self) -> None:
        for name, field in self.fields_by_name().items():
            field.changed.connect(self._validate)
            if name in _OF_PLAN:
                field.changed.connect(self._controls.plan_changed)
        self._model.chosen.connect(self._settings.forget)
        self._model.settings_found.connect(self._settings.take)
        self._model.edited.connect(self._model_known)
        self._settings.marked.connect(self._labels_changed)
        self._model["parameters"].made.connect(self._order_tabs)
        self._controller.queue_changed.connect(self._order_tabs)
        self._images.changed.connect(self._validate)
        self._images.changed.connect(self._controls.plan_changed)
        self.show_states.changed.connect(partial(setattr, self.legend, "visible"))
        self._controller.overlays.seams_scored.connect(self.say_seams)
        self.native.destroyed.connect(self._close)
        self.native_parent_changed.connect(self._close_if_removed)

    def _validate(self) -> None:
        """Say at once whether what the form asks for can work."""
        problem = self._look()
        self._profile.show_profile(profile_or_none(self._settings.values()))
        self._show_others()
        if self._footer.is_busy:
            return
        outputs = self._asking.outputs()
        self._resources.ask_for_agreement(outputs)
        is_reading, name = self._model.is_reading, self._model.file_name
        ready = f"Reading {name} …" if is_reading else self._resources.ready(outputs)
        is_wrong = problem is not None and not problem.is_open
        self._own_line = in_form_words(problem.line if problem else ready)
        self.say(self._own_line, problem=is_wrong)

    def _model_known(self) -> None:
        """Say what is now known of the checkpoint, but leave how the last run ended."""
        if self.status.value == self._own_line:
            self._validate()
        else:
            self._look()

    def _look(self) -> Problem | None:
        """Mark what cannot work, enable what can, and estimate what it would take."""
        requests, problem = self._asking.look()
        is_wrong = problem is not None and not problem.is_open
        self._marks.show(self._meant(problem) if problem and is_wrong else "")
        self._footer.set_state(self._state, can_run=problem is None)
        self.tune_button.enabled = problem is None and not self._footer.is_busy
        self._footer.show_next(problem.line if problem and is_wrong else "")
        self._estimator.update(*([] if self._footer.is_busy else requests))
        return problem

    def _meant(self, problem: Problem) -> str:
        return named_first(problem.line, self._named.values()) or problem.field

    def _show_others(self) -> None:
        """Say which settings of files are used though the form has no field for them."""
        others = self._settings.without_field
        self.others.value = ", ".join(f"{name} {value}" for name, value in others.items())
        self.others.visible = bool(others)

    def _close_if_removed(self) -> None:
        """End everything when the dock is closed: napari takes the widget out and keeps it."""
        if self.native.parent() is None:
            self._presets.remember()
            self._close()

    def _close(self) -> None:
        self._look_of_theme.close()
        self._images.close()
        self._model.close()
        self._estimator.close()
        self._inspector.close()
        self._controller.close()

    def _labels_changed(self) -> None:
        align_labels(self, self._label_width)
        describe(self)

    def _order_tabs(self) -> None:
        order_tabs(self.native)
