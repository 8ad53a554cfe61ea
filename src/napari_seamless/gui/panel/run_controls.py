"""The buttons, switches and lines of the form, connected with the controller of the runs."""

from collections.abc import Callable
from functools import partial
from typing import Any

from napari_seamless.engine.errors import SeamlessError
from napari_seamless.gui.controller import Controller
from napari_seamless.gui.inspector.inspector import Inspector
from napari_seamless.gui.overlays import SWITCHES
from napari_seamless.gui.overlays.showing import Planner
from napari_seamless.gui.panel.footer import Footer
from napari_seamless.gui.runs.request import Plan


class RunControls:
    """Passes on what is pressed and switched, and what the runs say.

    Parameters
    ----------
    field : callable
        Returns a field by its name.
    plan : callable
        Returns what the form asks for, or raises a SeamlessError.
    controller, footer, inspector : Controller, Footer, Inspector
        What is connected.
    """

    def __init__(
        self,
        field: Callable[[str], Any],
        plan: Callable[[], Plan],
        controller: Controller,
        footer: Footer,
        inspector: Inspector,
    ) -> None:
        self._field, self._plan = field, plan
        self._controller, self._footer, self._inspector = controller, footer, inspector
        self._planner = Planner()
        self._connect_fields()
        controller.preview_changed.connect(partial(setattr, field("preview"), "value"))
        controller.queue_changed.connect(self._show_queue)
        controller.problem.connect(self._show_details)
        controller.run_changed.connect(inspector.watch)
        controller.showing.plan_settled.connect(self._explain_changed)
        controller.progressed.connect(inspector.refresh)
        footer.queue.dropped.connect(controller.drop)
        inspector.native.switched.connect(self._explain_plan)

    def plan_changed(self) -> None:
        """Follow a changed form with the overlays and the inspector, when it is at rest."""
        self._controller.showing.plan_edited()

    def _connect_fields(self) -> None:
        controller = self._controller
        for name, act in {
            "run_button": controller.run,
            "pause_button": controller.toggle_pause,
            "cancel_button": controller.cancel,
            "export_button": controller.export,
            "follow_view": controller.set_follow,
            "preview": controller.set_preview,
            "truth": controller.score,
            "tune_button": lambda: controller.tune(self._field("tune_patches").value),
        }.items():
            self._field(name).changed.connect(act)
        self._field("show_disagreement").changed.connect(self._keep_disagreement)
        for each in SWITCHES:
            self._field(f"show_{each.name}").changed.connect(controller.showing.update)

    def _keep_disagreement(self, is_shown: bool) -> None:
        """Sum up in the next run what the user wants to see."""
        if is_shown:
            self._field("disagreement").value = True

    def _explain_changed(self) -> None:
        self._explain_plan(self._inspector.native.switch.isChecked())

    def _explain_plan(self, is_on: bool) -> None:
        """Let the inspector explain what is planned, if that can work."""
        try:
            self._inspector.plan(self._planner.subject(self._plan()) if is_on else None)
        except SeamlessError:  # the form says it
            self._inspector.plan(None)

    def _show_queue(self) -> None:
        self._footer.queue.show_names([job.name for job in self._controller.queue])

    def _show_details(self, line: str, details: str) -> None:
        self._footer.details.show_text(details)
