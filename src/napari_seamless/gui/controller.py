"""The state of the widget's run: what the form asks for, what the worker reports, what is shown.

Form and viewer are given, so that this is tested without a screen. Every run has a generation
number; messages of an older one are dropped. All methods belong to the main thread.
"""

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from napari.components import ViewerModel
from napari.layers import Image, Labels
from napari.utils import progress
from psygnal import Signal
from superqt.utils import qthrottled

from napari_seamless.engine.errors import SeamlessError, one_line
from napari_seamless.gui.endings import last_line
from napari_seamless.gui.export import Exporter
from napari_seamless.gui.live_layer import METADATA_KEY, REFRESH_MS, LiveLayer
from napari_seamless.gui.opening import Opener
from napari_seamless.gui.overlays import Overlays, Subject, planned
from napari_seamless.gui.request import Plan, Request, inputs_of, open_run
from napari_seamless.gui.run_view import RunView, looked_at
from napari_seamless.gui.scores import scores_of
from napari_seamless.gui.view import camera_of
from napari_seamless.gui.worker import (
    Ended,
    Foretold,
    Message,
    Opened,
    RunStream,
    Task,
    start_task,
    start_telling,
    start_worker,
)

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.engine.events import Event
    from napari_seamless.engine.forecast import Forecast
    from napari_seamless.engine.run import Run

FOCUS_MS = 50
State = Literal["idle", "exporting", "opening", "running", "paused"]


class Form(Protocol):
    """What the controller needs of the form."""

    def request(self) -> Request:
        """Return what is asked for, or raise a SeamlessError that says what cannot work."""

    def plan(self) -> Plan:
        """Return what overlays before a run are made from, or raise a SeamlessError."""

    def wanted_overlays(self) -> set[str]:
        """Return which of "weights", "coverage" and "grid" are switched on."""

    def overlay_removed(self, name: str) -> None:
        """Switch off an overlay whose layer the user removed."""

    def chosen_labels(self) -> Labels | None:
        """Return the labels layer to score against, if one is chosen."""

    def show_scores(self, scores: Mapping[str, float], of: str = "") -> None:
        """Show metrics under a line that says of what; without any, show none."""

    def show_forecast(self, text: str) -> None:
        """Show what the run will take; "" hides it."""

    def ask_where(self, suggestion: str) -> Path | None:
        """Ask for the file to export to; None if the user changed their mind."""

    def run_started(self) -> None:
        """Take back what was agreed to for one run: that an output is replaced."""

    def set_state(self, state: State) -> None:
        """Enable what makes sense now; show the bar unless idle."""

    def set_progress(self, done: int, total: int) -> None:
        """Move the bar."""

    def say(self, text: str, problem: bool = False) -> None:
        """Show one line of status."""


class Controller:
    """Mediates between the form, a run on a worker, and the viewer's layers.

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

    def __init__(
        self,
        viewer: ViewerModel,
        form: Form,
        opener: Opener | None = None,
        start: Callable[[RunStream, Callable[[Message], None]], None] = start_worker,
        start_task: Callable[[Task, Callable[[Any], None]], None] = start_task,
        start_telling: Callable[..., None] = start_telling,
    ) -> None:
        self._viewer = viewer
        self._form = form
        self._opener = opener or Opener()
        self._start = start
        self._start_task = start_task
        self._generation = 0
        self._is_closed = False
        self._is_dismissed = False
        self._stream: RunStream | None = None
        self._request: Request | None = None
        self._view: RunView | None = None
        self._subject: Subject | None = None
        self._lives: list[LiveLayer] = []
        self._bar: progress | None = None
        self._inbox: deque[tuple[int, Message]] = deque()
        self._is_receiving = False
        self._paused = False
        self._overlays = Overlays(viewer)
        self._exporter = Exporter(start_telling)
        self._export_line = ""
        self._move_focus = qthrottled(self._focus_on_view, timeout=FOCUS_MS)
        self._show_progress_soon = qthrottled(self._show_progress, timeout=REFRESH_MS)
        self._connections: list[tuple[Any, Callable[..., None]]] = []
        self._connect()

    def _connect(self) -> None:
        viewer, events = self._viewer, self._viewer.dims.events
        self._connections = [
            (events.point, self._view_moved),
            (events.order, self._view_moved),
            (events.ndisplay, self._view_moved),
            (events.ndisplay, self._dimensions_changed),
            (camera_of(viewer).events.center, self._view_moved),
            (camera_of(viewer).events.zoom, self._view_moved),
            (viewer.layers.events.removed, self._layer_removed),
            (self._exporter.progressed, self._exporting),
            (self._exporter.ended, self._exported),
        ]
        for signal, slot in self._connections:
            signal.connect(slot)

    @property
    def live(self) -> LiveLayer | None:
        """The layer of the newest run, if there is one yet and it is still in the viewer."""
        return self._view.live if self._view is not None else None

    @property
    def is_busy(self) -> bool:
        """Whether a run is opening, running or paused."""
        return self._stream is not None

    def run(self) -> None:
        """Start what the form asks for, or say what cannot work."""
        if self.is_busy:
            return
        try:
            request = self._form.request()
            inputs = inputs_of(request)
        except SeamlessError as error:
            self._form.say(one_line(error), problem=True)
            return
        self._generation += 1
        self._request, self._view, self._subject = request, None, None
        focus = looked_at(self._viewer, request.plan)
        self._stream = RunStream(partial(open_run, request, self._opener, inputs, *focus))
        self._paused = self._is_dismissed = False
        self._form.run_started()
        self._form.set_state("opening")
        self._form.show_scores({})
        self._form.show_forecast("")
        self._form.say(f"Opening {request.choice.path.name} …")
        self._start(self._stream, partial(self._receive, self._generation))

    def toggle_pause(self) -> None:
        """Pause the run, or go on with it."""
        if self._view is None or not self.is_busy:
            return
        self._paused = not self._paused
        self._form.set_state("paused" if self._paused else "running")
        if self._paused:
            self._view.run.pause()
            self._form.say("Paused")
        else:
            self._view.run.resume()
            self._form.say("Running")

    def cancel(self) -> None:
        """End the run after its batch; its layer stays, marked partial. Without a run, an export's.

        An export ends before its next chunk, and nothing is left of it.
        """
        if self._stream is not None:
            self._form.say("Cancelling …")
            self._stream.cancel()
        elif self._exporter.is_busy:
            self._form.say("Cancelling the export …")
            self._exporter.cancel()

    def export(self) -> None:
        """Write the active prediction layer, or else the newest, to a file the user names.

        While one is written, stop that.
        """
        if self._exporter.is_busy:
            self._exporter.cancel()
            return
        live = self._to_export()
        if live is None:
            self._form.say("There is no prediction to export yet; run one first", problem=True)
            return
        path = self._form.ask_where(f"{live.layer.name}.zarr")
        if path is None:
            return
        if str(path.absolute()) == live.layer.metadata[METADATA_KEY].get("output"):
            self._form.say(f"{path} holds this prediction; choose another name", problem=True)
        else:
            self._exporter.write(path, live)

    def score(self) -> None:
        """Compare the newest prediction with the chosen labels, and show how good it is."""
        self._form.show_scores({})
        truth = self._form.chosen_labels()
        if truth is None or self.live is None or self.is_busy:
            return
        self._start_task(
            partial(scores_of, self.live.volume, truth.data),
            partial(self._scored, self._generation, truth),
        )

    def _scored(self, generation: int, truth: Labels, scores: dict[str, float] | str) -> None:
        if self._is_closed or self.live is None:
            return
        name = truth.name
        if generation != self._generation or self._form.chosen_labels() is not truth:
            return
        if isinstance(scores, str):
            self._form.say(f"Not scored: {scores}", problem=True)
            return
        self._form.show_scores(scores, f"{_described(self.live.layer)}, against {name}")
        self.scored.emit(scores)

    def update_overlays(self) -> None:
        """Show the overlays that are switched on, of the run or of the one being planned."""
        wanted = self._form.wanted_overlays()
        subject: Subject | None = None
        try:
            if wanted:
                subject = self._subject or planned(self._form.plan())
        except SeamlessError as error:
            self._form.say(one_line(error), problem=True)
        self._overlays.show(wanted if subject else set(), subject)

    def plan_changed(self) -> None:
        """Follow a changed form with the overlays, unless they show a run."""
        if not self.is_busy:
            self._subject = None
            self.update_overlays()

    def close(self) -> None:
        """Stop everything: the run ends after its batch, and no slot is called again."""
        self._is_closed = True
        for signal, slot in self._connections:
            signal.disconnect(slot)
        self._connections = []
        for soon in (self._move_focus, self._show_progress_soon, self._overlays.mark):
            soon.cancel()
        for live in self._lives:
            live.forget()
        self._exporter.close()
        if self._stream is not None:
            self._stream.cancel()
            if self.live is not None:
                self.live.layer.metadata[METADATA_KEY]["status"] = "partial"
        self._close_bar()

    def _receive(self, generation: int, message: Message) -> None:
        """Handle messages one after the other.

        napari's progress bar lets Qt deliver the next message while one is still handled.
        """
        self._inbox.append((generation, message))
        if not self._is_receiving:
            self._empty_inbox()

    def _empty_inbox(self) -> None:
        self._is_receiving = True
        try:
            while self._inbox:
                self._handle(*self._inbox.popleft())
        finally:
            self._is_receiving = False
            if self._inbox:  # a message that could not be handled must not hold back the run's end
                self._empty_inbox()

    def _handle(self, generation: int, message: Message) -> None:
        if generation != self._generation or self._is_closed:
            return
        if isinstance(message, Opened):
            self._opened(message.run)
        elif isinstance(message, Foretold):
            self._foretold(message.forecast)
        elif isinstance(message, Ended):
            self._ended(message)
        else:
            self._blended(message)

    def _opened(self, run: "Run") -> None:
        if self._request is None:
            return
        self._view = RunView(self._viewer, self._overlays, self._request.plan, run)
        self._subject = self._view.subject
        self._form.set_state("running")
        self._bar = progress(total=run.total, desc="Blended inference", unit=" patches")
        self._form.set_progress(0, run.total)
        self._form.say(f"Running {run.total:,} patches on {run.plan.device}: the first batch …")
        self._focus_on_view()
        self.update_overlays()

    def _foretold(self, forecast: "Forecast") -> None:
        self._form.show_forecast(str(forecast))
        if self._bar is not None:  # what need not run does not count for the pace
            settled = forecast.resumed + forecast.skipped
            self._bar.initial = self._bar.n = self._bar.last_print_n = settled

    def _blended(self, event: "Event") -> None:
        if self._view is None or self._is_dismissed:
            return
        if self._view.live is None:
            self._follow_plan(self._view)
            self._lives.append(self._view.add_layer(event.dirty))
        self._view.describe()
        self._view.mark(event)
        self._show_progress_soon(event.done, event.total)
        self.progressed.emit(event.done, event.total)

    def _follow_plan(self, view: RunView) -> None:
        """Show the patches as they are, now that the network's output is known."""
        if self._bar is not None and view.follow_plan():
            self._bar.total = view.run.total
            self._subject = view.subject
            self.update_overlays()

    def _show_progress(self, done: int, total: int) -> None:
        if self._bar is None:
            return
        self._form.set_progress(done, total)
        if not self._paused:
            line = _progress_line(self._bar, done, total)
            self._form.say("\n".join(filter(None, [line, self._export_line])))
        self._bar.update(done - self._bar.n)  # last: Qt may handle the run's end inside

    def _ended(self, ended: Ended) -> None:
        view, self._stream = self._view, None
        self._show_progress_soon.cancel()
        self._close_bar()
        if view is not None and view.live is not None:
            view.describe()
            view.live.close()
        self._overlays.refresh()
        self._form.set_state(self._at_rest)
        self._form.show_forecast("")
        run = view.run if view is not None else None
        output = self._request.output if self._request is not None else None
        line, is_problem = last_line(run, ended.error, self.live is not None, output)
        self._form.say(line, problem=is_problem)
        self.score()
        self.ended.emit(line)

    @property
    def _at_rest(self) -> State:
        return "exporting" if self._exporter.is_busy else "idle"

    def _to_export(self) -> LiveLayer | None:
        active = self._viewer.layers.selection.active
        for live in self._lives:
            if live.layer is active:
                return live
        return self._lives[-1] if self._lives else None

    def _exporting(self, line: str, done: int, total: int) -> None:
        """Show how far an export is; a run's own line and bar come first."""
        self._export_line = line
        if not self.is_busy:
            self._form.set_state("exporting")
            self._form.set_progress(done, max(1, total))
            self._form.say(line)

    def _exported(self, line: str, problem: bool) -> None:
        self._export_line = ""
        if not self.is_busy:
            self._form.set_state("idle")
        self._form.say(line, problem)

    def _dimensions_changed(self, event: Any = None) -> None:
        left_out = [live.layer.name for live in self._lives if live.is_left_out]
        if left_out:
            self._form.say(f"{left_out[0]} is too large for 3-D; go back to 2-D to see it")

    def _view_moved(self, event: Any = None) -> None:
        self._move_focus()

    def _focus_on_view(self) -> None:
        """Tell the run what is looked at; it re-orders its patches before the next batch."""
        self._overlays.view_moved()
        if self._view is not None and self.is_busy:
            self._view.focus()

    def _layer_removed(self, event: Any) -> None:
        if overlay := self._overlays.forget(event.value):
            self._form.overlay_removed(overlay)
        for live in [live for live in self._lives if live.layer is event.value]:
            live.forget()
            self._lives.remove(live)
            if self._view is not None and live is self._view.live:
                self._view.live = None
                self._is_dismissed = True
                if self.is_busy:
                    self.cancel()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _described(layer: Image) -> str:
    """Return a prediction layer's name, and how much of it there is if not all."""
    facts = layer.metadata[METADATA_KEY]
    is_whole = facts["status"] == "complete"
    return layer.name + ("" if is_whole else f", {facts['done']} of {facts['total']} patches")


def _progress_line(bar: progress, done: int, total: int) -> str:
    if not done:
        return f"0 of {total:,} patches"
    rate = bar.format_dict["rate"] or done / max(bar.format_dict["elapsed"], 1e-3)
    left = progress.format_interval((total - done) / max(rate, 1e-9))
    return f"{done:,} of {total:,} patches, {rate:.1f} patches/s, {left} left"
