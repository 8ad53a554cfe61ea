"""What the fields of the form ask for: a plan and requests, or why they cannot work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari.components import ViewerModel
from napari.layers import Image, Labels

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError, ModelError, SeamlessError, one_line
from napari_seamless.gui.checkpoint.checkpoint_form import CheckpointForm
from napari_seamless.gui.checkpoint.opening import Choice, Reading
from napari_seamless.gui.panel.file_settings import FileSettings
from napari_seamless.gui.panel.resources_form import ResourcesForm
from napari_seamless.gui.presets.command import command_line, notes_on
from napari_seamless.gui.runs.request import Plan, Request, check_mask, chosen_image, source_of
from napari_seamless.gui.runs.scores import check_labels
from napari_seamless.gui.space.axes import axes_of
from napari_seamless.gui.space.scope import DRAWN, WHOLE, region_of, times_of
from napari_seamless.models.reporting.suitability import unsuitable
from napari_seamless.models.sniff import FORMATS_TEXT

_NONE_CHOSEN = "no checkpoint"


@dataclass(frozen=True)
class Problem:
    """Why what is asked for cannot work.

    Attributes
    ----------
    line : str
        What is wrong, what is allowed, the remedy.
    field : str
        Name of the field that it is about, as far as is known.
    is_open : bool
        Whether nothing is wrong, but not everything has been chosen yet.
    """

    line: str
    field: str
    is_open: bool = False


class Asking:
    """Reads the fields of the form.

    Parameters
    ----------
    viewer : ViewerModel
        What it shows counts for what is predicted.
    field : callable
        Returns a field by its name.
    model, resources : CheckpointForm, ResourcesForm
        Parts of the form.
    settings : FileSettings
        The settings in the fields, and those that only a file knows.
    """

    def __init__(
        self,
        viewer: ViewerModel,
        field: Callable[[str], Any],
        model: CheckpointForm,
        resources: ResourcesForm,
        settings: FileSettings,
    ) -> None:
        self._viewer, self._field = viewer, field
        self._model, self._resources, self._settings = model, resources, settings
        self._step = ""

    def look(self) -> tuple[list[Request], Problem | None]:
        """Return the requests; without any, why the form cannot be run."""
        self._step = ""
        try:
            return self.requests(), None
        except SeamlessError as error:
            is_open = self._field("image").value is None or self._step == _NONE_CHOSEN
            return [], Problem(one_line(error), "" if is_open else self._step, is_open)

    def requests(self, may_exist: bool = False) -> list[Request]:
        """Return what is asked for, one request per image, or raise a SeamlessError.

        Parameters
        ----------
        may_exist : bool
            Whether they are only written down, which an output that is there does not prevent.
        """
        return [self.request(image, may_exist) for image in self.images() or [None]]

    def command(self) -> tuple[str, str]:
        """Return the command line, and what is to be done before it works; or raise likewise."""
        reading = self._model.reading
        report = None if reading is None else reading.report
        requests = self.requests(may_exist=True)
        line = command_line(requests, None if report is None else report.settings)
        return line, notes_on(requests, line)

    def outputs(self) -> list[Path]:
        """Return where the images would be written to; none if they stay in memory."""
        outputs = [self._output_of(image) for image in self.images() if image is not None]
        return [each for each in outputs if each is not None]

    def images(self) -> list[Image | None]:
        """Return the images to predict: the chosen one first."""
        chosen: Image | None = self._field("image").value
        if not self._field("all_selected").value:
            return [chosen] if chosen is not None else []
        offered = self._field("image").choices
        selected = [layer for layer in self._viewer.layers.selection if layer in offered]
        order = list(self._viewer.layers)
        return [chosen, *sorted((each for each in selected if each is not chosen), key=order.index)]

    def request(self, image: Image | None, may_exist: bool = False) -> Request:
        """Return what is asked for of one image, or raise a SeamlessError."""
        plan = self.plan(image)
        mask, resources = self._field("mask").value, self._resources
        choice, output = self._choice(plan), self._output_of(plan.image)
        with self._about("output"):
            read = [plan.image] if mask is None else [plan.image, mask]
            resources.check(output, read, may_exist)
        if mask is not None:
            with self._about("mask"):
                check_mask(mask, source_of(plan.image, plan.level), plan.level)
        return Request(
            plan,
            choice,
            output,
            overwrite=resources.overwrite,
            mask=mask,
            memory=resources.memory,
            workers=resources.workers,
        )

    def plan(self, image: Image | None) -> Plan:
        """Return what is predicted and how, or raise a SeamlessError."""
        with self._about("image"):
            image = chosen_image(image, self._viewer.layers)
            level = int(self._field("level").value or 0) if image.multiscale else 0
            source = source_of(image, level)  # says what kind of layer cannot be predicted
        self._check_labels(image, source)
        with self._about(""):
            settings = self._settings.values() | self._part(image, level)
            plan = Plan(image, InferenceConfig(**settings), level)
            plan.check_times()
        return plan

    def _output_of(self, image: Image) -> Path | None:
        """Return where an image is written to: one of several beside the others, by its name."""
        output = self._resources.output
        if output is None or not output.name or len(self.images()) < 2:
            return output
        return output.with_name(f"{output.stem} {image.name}{output.suffix}".replace("/", "_"))

    def _choice(self, plan: Plan) -> Choice:
        with self._about("checkpoint"):
            choice = self._model.choice()
        with self._about(_NONE_CHOSEN):
            if choice is None:
                raise ModelError(f"Choose a checkpoint: {FORMATS_TEXT}")
        with self._about("checkpoint"):
            if self._model.reading is not None:
                _check(self._model.reading, plan)
        return choice

    def _check_labels(self, image: Image, source: Any) -> None:
        truth: Labels | None = self._field("truth").value
        if truth is None or image is not self._field("image").value:
            return
        with self._about("truth"):
            if "T" in axes_of(image):
                raise ConfigError(
                    "Labels are compared with one volume, not with a series; choose none"
                )
            check_labels(truth, source)

    def _part(self, image: Image, level: int) -> dict[str, Any]:
        """Return the settings that say which part of an image is predicted."""
        scope, times = self._field("scope").value, self._field("time_points")
        shapes = self._field("scope_shapes").value
        with self._about("scope_shapes" if scope == DRAWN else "scope"):
            shown = times_of(scope, times.text, self._viewer, image)
            region = region_of(scope, shapes, self._viewer, image, level)
        return {
            "region": self._field("region").value if scope == WHOLE else region,
            "time_points": times.value if shown and times.text else shown,
        }

    @contextmanager
    def _about(self, field: str) -> Iterator[None]:
        """Remember which field a problem is about."""
        try:
            yield
        except SeamlessError:
            self._step = self._step or field  # the inner one is nearer
            raise


def _check(reading: Reading, plan: Plan) -> None:
    """Raise a ModelError if what was found in the checkpoint cannot be run as asked."""
    problem = reading.problem
    if problem is None and reading.report is not None:
        problem = unsuitable(reading.report, plan.config, source_of(plan.image, plan.level))
    if problem is not None:
        raise ModelError(problem)
