"""What overlays are about: the run that was selected, the newest, or the one being planned."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from psygnal import Signal
from superqt.utils import qdebounced

from napari_seamless.engine.errors import SeamlessError, one_line
from napari_seamless.gui.form import Form
from napari_seamless.gui.overlays.overlays import Overlays
from napari_seamless.gui.overlays.subject import Subject, planned
from napari_seamless.gui.runs.request import Plan

if TYPE_CHECKING:  # imports the overlays
    from napari_seamless.gui.runs.run_view import RunView

REST_MS = 150
"""So long the form must be at rest before overlays follow it."""


class Planner:
    """Makes the subject of a plan, and returns the same one as long as the plan is the same."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._image_facts: object = None
        self._subject: Subject | None = None

    def subject(self, plan: Plan) -> Subject:
        """Return the subject of a planned run.

        Raises
        ------
        SeamlessError
            If such a run cannot be.
        """
        facts = _image_facts(plan)
        if self._subject is None or not _is_same(plan, self._plan) or facts != self._image_facts:
            self._subject = planned(plan)
            self._plan, self._image_facts = plan, facts
        return self._subject

    def forget(self) -> None:
        """Let go of the image."""
        self._plan = self._subject = None


class Showing:
    """Chooses what is explained, and keeps the overlays in step with that.

    Parameters
    ----------
    form : Form
        Says which overlays are wanted, and what is planned.
    overlays : Overlays
        The layers.
    is_busy : callable
        Returns whether a run is on: then the form is about the next one, and not followed.

    Attributes
    ----------
    current : RunView or None
        The run that is explained.
    """

    changed = Signal(object)
    """Another run's view is the one shown, or None."""
    refused = Signal(str)
    """Why an overlay cannot be shown; "" when that is over."""

    plan_settled = Signal()
    """The form was edited and is at rest; the overlays have followed."""

    def __init__(self, form: Form, overlays: Overlays, is_busy: Callable[[], bool]) -> None:
        self._form, self._overlays, self._is_busy = form, overlays, is_busy
        self.current: RunView | None = None
        self._subject: Subject | None = None
        self._planner = Planner()
        self._is_updating = False
        self._problems: list[str] = []
        self._settle_soon = qdebounced(self._settle, timeout=REST_MS)

    def close(self) -> None:
        """Follow the form no more."""
        self._settle_soon.cancel()

    def show_run(self, view: "RunView | None") -> None:
        """Explain a run, or what is planned."""
        self.current = view
        self._subject = view.subject if view is not None else None
        self.update()
        self.changed.emit(view)

    def select(self, view: "RunView | None") -> None:
        """Explain a run whose layer was selected, if that is not what is explained.

        Overlays that come and go move the selection, too; that is not the user's wish.
        """
        if self._is_updating:
            return
        is_back = self._subject is None and view is not None and not view.subject.is_outdated
        if view is not self.current or is_back:
            self.show_run(view)

    def plan_edited(self) -> None:
        """Follow the form soon, when it is at rest."""
        self._settle_soon()

    def plan_changed(self) -> None:
        """Follow the form at once, unless a run is on."""
        if not self._is_busy():
            self._subject = None
            self.update()

    def update(self) -> None:
        """Show the overlays that are switched on."""
        wanted = self._form.wanted_overlays()
        subject: Subject | None = None
        try:
            if wanted:
                subject = self._wanted_subject()
            else:
                self._planner.forget()
        except SeamlessError as error:
            self._planner.forget()
            self.refused.emit(one_line(error))
        before, self._problems = self._problems, self._show(wanted if subject else set(), subject)
        if self._problems or before:
            self.refused.emit("\n".join(self._problems))

    def _settle(self) -> None:
        self.plan_changed()
        self.plan_settled.emit()

    def _wanted_subject(self) -> Subject:
        if self._subject is not None and self._subject.is_outdated:
            self._subject = None
        return self._subject or self._planner.subject(self._form.plan())

    def _show(self, wanted: set[str], subject: Subject | None) -> list[str]:
        self._is_updating = True
        try:
            return self._overlays.show(wanted, subject)
        finally:
            self._is_updating = False


def _is_same(plan: Plan, other: Plan | None) -> bool:
    """Return whether plans are of the same layer, and equal."""
    return (
        other is not None
        and plan.image is other.image
        and (plan.config, plan.level) == (other.config, other.level)
    )


def _image_facts(plan: Plan) -> Any:
    """Return what overlays are made from of an image that may change: its shape and place."""
    image = plan.image
    places = (image.scale, image.translate, image.rotate, image.shear, image.affine.affine_matrix)
    return (
        tuple(map(tuple, np.atleast_2d(image.level_shapes))),
        tuple(image.axis_labels),
        tuple(map(str, image.units)),
        [np.asarray(each).tolist() for each in places],
    )
