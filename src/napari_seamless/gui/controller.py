"""The state of the widget's runs: what the form asks for, what the worker reports, what is shown.

Form and viewer are given, so that no screen is needed. All methods belong to the main thread.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from napari.components import ViewerModel
from psygnal import Signal

from napari_seamless.engine.errors import SeamlessError, one_line
from napari_seamless.gui.checkpoint.opening import Opener
from napari_seamless.gui.form import Form
from napari_seamless.gui.overlays import Overlays
from napari_seamless.gui.overlays.showing import Showing
from napari_seamless.gui.runs import worker
from napari_seamless.gui.runs.exporting import Exports
from napari_seamless.gui.runs.following import Following
from napari_seamless.gui.runs.live_layer import LiveLayer
from napari_seamless.gui.runs.problems import Remedy, details_of, remedies
from napari_seamless.gui.runs.queue import Job
from napari_seamless.gui.runs.request import Request
from napari_seamless.gui.runs.run_view import RunView
from napari_seamless.gui.runs.runs import Runs
from napari_seamless.gui.runs.scoring import Scoring
from napari_seamless.gui.runs.session import Session, Start
from napari_seamless.gui.runs.shortcuts import Shortcuts
from napari_seamless.gui.runs.status import Status
from napari_seamless.gui.runs.tuner import Tuner
from napari_seamless.gui.runs.worker import Task, start_task, start_worker


class Controller:
    """Mediates between the form, runs on a worker one after the other, and the viewer's layers.

    Parameters
    ----------
    viewer : ViewerModel
        Its layers are read and added to.
    form : Form
        The view.
    opener : Opener, optional
        Opens checkpoints.
    start, start_task, start_telling : callable
        Do work in the background; see `worker`.
    """

    progressed = Signal(int, int)
    """Patches done, and in all; after the layer was told."""
    ended = Signal(str)
    """The last line of a run, when it has ended in any way."""
    scored = Signal(dict)
    """The metrics of the newest prediction against the chosen labels, when they are shown."""
    queue_changed = Signal()
    """Other runs wait; see `queue`."""
    run_changed = Signal(object)
    """Another run's view is the one shown, or None; see `current`."""
    preview_changed = Signal(bool)
    """Whether only what is looked at is predicted."""
    problem = Signal(str, str)
    """One line with the remedy, and everything that is known as text of many lines."""

    def __init__(
        self,
        viewer: ViewerModel,
        form: Form,
        opener: Opener | None = None,
        start: Start | None = None,
        start_task: Callable[[Task, Callable[[Any], None]], None] = start_task,
        start_telling: Callable[..., None] | None = None,
    ) -> None:
        self._viewer, self._form = viewer, form
        start = start or partial(start_worker, viewer)
        start_telling = start_telling or partial(worker.start_telling, viewer)
        self._overlays = Overlays(viewer, start_task)
        opener = opener or Opener()
        self._runs = Runs(viewer, form, self._overlays, opener, start)
        self._tuner = Tuner(opener, start_task)
        self._showing = Showing(form, self._overlays, lambda: self._runs.is_busy)
        self._exports = Exports(viewer, form, start_telling)
        self._status = Status(form, self._runs, self._exports)
        self._scoring = Scoring(form, start_task)
        self._following = Following(viewer)
        self._shortcuts = Shortcuts(viewer, self._commands())
        self._connections: list[tuple[Any, Callable[..., None]]] = self._wanted_connections()
        for signal, slot in self._connections:
            signal.connect(slot)

    def _commands(self) -> dict[str, Callable[[], None]]:
        return {
            "run": self.run,
            "pause": self.toggle_pause,
            "preview": lambda: self.set_preview(not self._runs.is_preview),
            "cancel": self.cancel,
        }

    def _wanted_connections(self) -> list[tuple[Any, Callable[..., None]]]:
        runs, exports, layers = self._runs, self._exports, self._viewer.layers
        form = self._form
        return [
            (runs.began, self._began),
            (runs.opened, lambda session: self._showing.show_run(session.view)),
            (runs.replanned, lambda session: self._showing.show_run(session.view)),
            (runs.progressed, self._progressed),
            (runs.said, self._status.say),
            (runs.ended, self._ended),
            (runs.queue.changed, self._status.refresh),
            (runs.queue.changed, lambda: self.queue_changed.emit()),
            (exports.said, self._status.exporting),
            (exports.ended, self._status.exported),
            (self._tuner.found, form.fill),
            (self._tuner.ended, self._tuned),
            (self._scoring.scored, lambda scores: self.scored.emit(scores)),
            (self._showing.changed, lambda view: self.run_changed.emit(view)),
            (self._showing.refused, self._overlays_refused),
            (self._following.moved, self._view_moved),
            (self._following.dimensions_changed, self._dimensions_changed),
            (layers.events.removed, self._layer_removed),
            (layers.selection.events.active, lambda event: self._select(event.value)),
        ]

    @property
    def live(self) -> LiveLayer | None:
        """The layer of the newest run, if there is one yet and it is still in the viewer."""
        session = self._runs.session
        return session.live if session is not None else None

    @property
    def current(self) -> RunView | None:
        """The run that overlays are about: the newest, or the one whose layer is selected."""
        return self._showing.current

    @property
    def is_busy(self) -> bool:
        """Whether a run is opening, running or paused."""
        return self._runs.is_busy

    @property
    def overlays(self) -> Overlays:
        """The overlay layers."""
        return self._overlays

    @property
    def showing(self) -> Showing:
        """What overlays and the inspector are about."""
        return self._showing

    @property
    def queue(self) -> list[Job]:
        """The runs that wait for the present one, each with a `name` in one line."""
        return self._runs.queue.waiting

    @property
    def is_preview(self) -> bool:
        """Whether only what is looked at is predicted."""
        return self._runs.is_preview

    def run(self) -> None:
        """Run what the form asks for, now or after what is on; or say what cannot work."""
        try:
            requests = self._form.requests()
        except SeamlessError as error:
            self._refuse(error)
        else:
            self._add(requests)

    def drop(self, index: int) -> None:
        """Take a run out of the `queue`."""
        self._runs.queue.drop(index)

    def toggle_pause(self) -> None:
        """Pause the run, or go on with it."""
        if self._runs.session is not None:
            self._runs.session.toggle_pause()

    def set_follow(self, is_following: bool) -> None:
        """Predict what is looked at first; or stay there, and begin new runs layer after layer."""
        self._runs.follow(is_following)

    def set_preview(self, is_preview: bool) -> None:
        """Predict only what is looked at, and wait for more of that; or run all."""
        self._runs.preview(is_preview)
        session = self._runs.session
        if is_preview and session is not None and session.is_running and not session.can_preview:
            self._status.remark("This run is on workers, which cannot preview; the next one will")
        self._status.refresh()
        self.preview_changed.emit(is_preview)

    def cancel(self) -> None:
        """End the run after its batch, its layer stays as it is; the next of the queue begins.

        Without a run, end an export: nothing is left of it.
        """
        if self._runs.session is not None and self.is_busy:
            self._runs.session.cancel()
        elif self._exports.is_busy:
            self._form.say("Cancelling the export …")
            self._exports.cancel()

    def export(self) -> None:
        """Write the active prediction layer, or else the newest, to a file; or stop doing that."""
        self._exports.toggle(self._runs.lives)

    def tune(self, patches: str) -> None:
        """Find faster settings for what the form asks for, and fill them in; or stop doing that.

        Not while a run is on.
        """
        if self._tuner.is_busy:
            self._tuner.stop()
            return
        if self.is_busy:
            return
        try:
            self._tuner.start(self._form.requests()[0], patches)
        except SeamlessError as error:
            self._refuse(error)
        else:
            self._form.set_tuning(self._tuner.is_busy)

    def score(self) -> None:
        """Compare the newest prediction with the chosen labels, and show how good it is."""
        if self.live is None or self.is_busy:
            self._scoring.forget()
        else:
            self._scoring.score(self.live)

    def plan_changed(self) -> None:
        """Follow a changed form with the overlays, unless they show a run."""
        self._showing.plan_changed()

    def close(self) -> None:
        """Stop everything: the run ends after its batch, and no slot is called again."""
        for signal, slot in self._connections:
            signal.disconnect(slot)
        self._connections = []
        self._showing.close()
        self._shortcuts.close()
        self._following.close()
        self._overlays.close()
        self._tuner.close()
        self._scoring.close()
        self._exports.close()
        self._runs.close()

    def _add(self, requests: Sequence[Request]) -> None:
        self._status.remark("")
        try:
            self._runs.add(requests)
        except SeamlessError as error:
            self._refuse(error)
        else:
            self._form.run_started()
            self._form.offer([])

    def _refuse(self, error: SeamlessError) -> None:
        self._status.refuse(one_line(error))
        self.problem.emit(one_line(error), details_of(error, None, None))

    def _began(self, session: Session) -> None:
        self._tuner.stop()
        self._form.set_state("opening")
        self._scoring.forget()
        self._form.show_forecast("")
        self._status.say(f"Opening {session.job.request.choice.path.name} …")

    def _progressed(self, done: int, total: int) -> None:
        # its layer became active as it was added, when it was not known yet whose it is
        self._select(self._viewer.layers.selection.active)
        self.progressed.emit(done, total)

    def _tuned(self, line: str, is_problem: bool) -> None:
        self._form.set_tuning(False)
        if not self.is_busy:
            self._form.say(line, problem=is_problem)

    def _overlays_refused(self, line: str) -> None:
        if line:
            self._status.refuse(line)
        else:
            self._status.remark("")
            self._status.refresh()

    def _ended(self, session: Session, error: Exception | None) -> None:
        self._form.set_state("exporting" if self._exports.is_busy else "idle")
        self._form.show_forecast("")
        line, is_problem = session.last_line(error)
        if is_problem:
            self._tell_problem(session, line, error)
        self._status.ended(session.job.name, line, is_problem)
        self.score()
        self.ended.emit(line)
        self._overlays.refresh()

    def _tell_problem(self, session: Session, line: str, error: Exception | None) -> None:
        request = session.job.request
        run = session.view.run if session.view is not None else None
        self._form.offer(
            [(each.text, partial(self._try, each)) for each in remedies(error, request)]
        )
        self.problem.emit(line, details_of(error, request, run))

    def _try(self, remedy: Remedy) -> None:
        self._form.fill(remedy.settings)
        self._add([remedy.request])

    def _dimensions_changed(self) -> None:
        left_out = [live.layer.name for live in self._runs.lives if live.is_left_out]
        if left_out:
            self._form.say(f"{left_out[0]} is too large for 3-D; go back to 2-D to see it")

    def _view_moved(self) -> None:
        self._overlays.view_moved()
        session = self._runs.session
        if session is not None and not (session.view and session.view.subject.is_outdated):
            session.view_moved()

    def _select(self, layer: Any) -> None:
        """Explain the run whose prediction a layer shows, if it does."""
        if session := self._runs.session_of(layer):
            self._showing.select(session.view)

    def _layer_removed(self, event: Any) -> None:
        if overlay := self._overlays.forget(event.value):
            self._form.overlay_removed(overlay)
        session = self._runs.forget(event.value)
        if session is not None and session.view is self.current:
            self._showing.show_run(None)
