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

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import SeamlessError, one_line
from napari_seamless.gui.export import export_metadata, write_volume
from napari_seamless.gui.live_layer import METADATA_KEY, REFRESH_MS, LiveLayer
from napari_seamless.gui.opening import Opener
from napari_seamless.gui.overlays import Overlays, Subject, planned, running
from napari_seamless.gui.request import Request, open_run, source_of
from napari_seamless.gui.scores import scores_of
from napari_seamless.gui.view import camera_of, shown_box
from napari_seamless.gui.worker import (
    Ended,
    Message,
    Opened,
    RunStream,
    Task,
    start_task,
    start_worker,
)

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.engine.run import Event, Run

FOCUS_MS = 50
State = Literal["idle", "opening", "running", "paused"]


class Form(Protocol):
    """What the controller needs of the form."""

    def request(self) -> Request:
        """Return what is asked for, or raise a SeamlessError that says what cannot work."""

    def plan(self) -> tuple[Image, InferenceConfig]:
        """Return the image and settings alone, which overlays before a run are made from."""

    def wanted_overlays(self) -> set[str]:
        """Return which of "weights", "coverage" and "grid" are switched on."""

    def overlay_removed(self, name: str) -> None:
        """Switch off an overlay whose layer the user removed."""

    def chosen_labels(self) -> Labels | None:
        """Return the labels layer to score against, if one is chosen."""

    def show_scores(self, scores: Mapping[str, float], of: str = "") -> None:
        """Show metrics under a line that says of what; without any, show none."""

    def ask_where(self, suggestion: str) -> Path | None:
        """Ask for the file to export to; None if the user changed their mind."""

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
    start, start_task : callable
        Do work in the background; see `start_worker` and `start_task`.
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
        self._run: Run | None = None
        self._subject: Subject | None = None
        self._live: LiveLayer | None = None
        self._lives: list[LiveLayer] = []
        self._bar: progress | None = None
        self._inbox: deque[tuple[int, Message]] = deque()
        self._is_receiving = False
        self._paused = False
        self._overlays = Overlays(viewer)
        self._move_focus = qthrottled(self._focus_on_view, timeout=FOCUS_MS)
        self._show_progress_soon = qthrottled(self._show_progress, timeout=REFRESH_MS)
        self._connections: list[tuple[Any, Callable[..., None]]] = [
            (viewer.dims.events.point, self._view_moved),
            (viewer.dims.events.order, self._view_moved),
            (viewer.dims.events.ndisplay, self._view_moved),
            (camera_of(viewer).events.center, self._view_moved),
            (camera_of(viewer).events.zoom, self._view_moved),
            (viewer.layers.events.removed, self._layer_removed),
        ]
        for signal, slot in self._connections:
            signal.connect(slot)

    @property
    def live(self) -> LiveLayer | None:
        """The layer of the newest run, if there is one yet and it is still in the viewer."""
        return self._live

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
            source = source_of(request.image)
        except SeamlessError as error:
            self._form.say(one_line(error), problem=True)
            return
        self._generation += 1
        self._request, self._run, self._subject, self._live = request, None, None, None
        self._stream = RunStream(
            partial(open_run, request, self._opener, source, shown_box(self._viewer, request.image))
        )
        self._paused = self._is_dismissed = False
        self._form.set_state("opening")
        self._form.show_scores({})
        self._form.say(f"Opening {request.choice.path.name} …")
        self._start(self._stream, partial(self._receive, self._generation))

    def toggle_pause(self) -> None:
        """Pause the run, or go on with it."""
        if self._run is None or not self.is_busy:
            return
        self._paused = not self._paused
        self._form.set_state("paused" if self._paused else "running")
        if self._paused:
            self._run.pause()
            self._form.say("Paused")
        else:
            self._run.resume()
            self._form.say("Running")

    def cancel(self) -> None:
        """End the run after its batch; its layer stays, marked partial."""
        if self._stream is not None:
            self._form.say("Cancelling …")
            self._stream.cancel()

    def export(self) -> None:
        """Write the active prediction layer, or else the newest, to a file the user names."""
        live = self._to_export()
        if live is None:
            self._form.say("There is no prediction to export yet; run one first", problem=True)
            return
        path = self._form.ask_where(f"{live.layer.name}.h5")
        if path is None:
            return
        self._form.say(f"Writing {path.name} …")
        metadata = export_metadata(live.layer)
        self._start_task(
            partial(write_volume, path, live.volume, metadata), partial(self._exported, path)
        )

    def score(self) -> None:
        """Compare the newest prediction with the chosen labels, and show how good it is."""
        self._form.show_scores({})
        truth = self._form.chosen_labels()
        if truth is None or self._live is None or self.is_busy:
            return
        self._start_task(
            partial(scores_of, self._live.volume, truth.data),
            partial(self._scored, self._generation, truth),
        )

    def _scored(self, generation: int, truth: Labels, scores: dict[str, float] | str) -> None:
        if self._is_closed or self._live is None:
            return
        name = truth.name
        if generation != self._generation or self._form.chosen_labels() is not truth:
            return
        if isinstance(scores, str):
            self._form.say(f"Not scored: {scores}", problem=True)
            return
        self._form.show_scores(scores, f"{_described(self._live.layer)}, against {name}")
        self.scored.emit(scores)

    def update_overlays(self) -> None:
        """Show the overlays that are switched on, of the run or of the one being planned."""
        wanted = self._form.wanted_overlays()
        subject: Subject | None = None
        try:
            if wanted:
                subject = self._subject or self._planned()
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
        if self._stream is not None:
            self._stream.cancel()
            if self._live is not None:
                self._live.layer.metadata[METADATA_KEY]["status"] = "partial"
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
        elif isinstance(message, Ended):
            self._ended(message)
        else:
            self._blended(message)

    def _opened(self, run: "Run") -> None:
        if self._request is None:
            return
        self._run = run
        self._subject = running(self._request.image, run)
        self._form.set_state("running")
        self._bar = progress(total=run.total, desc="Blended inference", unit=" patches")
        self._form.set_progress(0, run.total)
        self._form.say(f"Running {run.total} patches on {run.plan.device}")
        self._focus_on_view()
        self.update_overlays()

    def _blended(self, event: "Event") -> None:
        if self._run is None or self._request is None or self._is_dismissed:
            return
        if self._live is None:
            self._follow_plan()
            self._live = LiveLayer(
                self._viewer,
                self._request.image,
                self._run.live[0],
                f"{self._request.image.name} prediction",
                self._request.config.activation,
                event.dirty,
                self._run.metadata(),
            )
            self._lives.append(self._live)
            self._overlays.raise_to_top()
        self._describe()
        self._live.mark(event.dirty)
        self._overlays.mark()
        self._show_progress_soon(event.done, event.total)
        self.progressed.emit(event.done, event.total)

    def _follow_plan(self) -> None:
        """Show the patches as they are, now that the network's output is known."""
        if self._bar is None or self._request is None or self._run is None or not self._subject:
            return
        if self._subject.grid is not self._run.plan.volumes[0].grid:
            self._bar.total = self._run.total
            self._subject = running(self._request.image, self._run)
            self.update_overlays()

    def _show_progress(self, done: int, total: int) -> None:
        if self._bar is None:
            return
        self._form.set_progress(done, total)
        if not self._paused:
            self._form.say(_progress_line(self._bar, done, total))
        self._bar.update(done - self._bar.n)  # last: Qt may handle the run's end inside

    def _ended(self, ended: Ended) -> None:
        run, self._stream = self._run, None
        self._show_progress_soon.cancel()
        self._close_bar()
        if self._live is not None and run is not None:
            self._describe()
            self._live.close()
        self._overlays.refresh()
        self._form.set_state("idle")
        line = _last_line(run, ended.error, self._live is not None)
        self._form.say(line, problem=ended.error is not None)
        self.score()
        self.ended.emit(line)

    def _to_export(self) -> LiveLayer | None:
        active = self._viewer.layers.selection.active
        for live in self._lives:
            if live.layer is active:
                return live
        return self._lives[-1] if self._lives else None

    def _exported(self, path: Path, problem: str | None) -> None:
        if self._is_closed:
            return
        if problem is not None:
            self._form.say(f"Not exported: {problem}", problem=True)
        else:
            self._form.say(f"Exported to {path}")

    def _describe(self) -> None:
        """Keep the layer's metadata true."""
        if self._live is not None and self._run is not None:
            facts = {"status": self._run.status, "done": self._run.done}
            self._live.layer.metadata[METADATA_KEY].update(facts)

    def _planned(self) -> Subject:
        image, config = self._form.plan()
        return planned(image, source_of(image), config)

    def _view_moved(self, event: Any = None) -> None:
        self._move_focus()

    def _focus_on_view(self) -> None:
        """Tell the run what is looked at; it re-orders its patches before the next batch."""
        self._overlays.view_moved()
        if self._run is not None and self._request is not None and self.is_busy:
            self._run.focus(shown_box(self._viewer, self._request.image))

    def _layer_removed(self, event: Any) -> None:
        if overlay := self._overlays.forget(event.value):
            self._form.overlay_removed(overlay)
        for live in [live for live in self._lives if live.layer is event.value]:
            live.forget()
            self._lives.remove(live)
            if live is self._live:
                self._live = None
                self._is_dismissed = True
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
    rate = bar.format_dict["rate"] or done / max(bar.format_dict["elapsed"], 1e-3)
    left = progress.format_interval((total - done) / rate)
    return f"{done} of {total} patches, {rate:.1f} patches/s, {left} left"


def _last_line(run: "Run | None", error: Exception | None, has_layer: bool) -> str:
    """Say how it ended and what to do now."""
    kept = ""
    if has_layer and run is not None and run.done < run.total:
        kept = f" The layer keeps {run.done} of {run.total} patches."
    if error is not None:
        return f"Failed: {one_line(error)}.{kept}"
    if run is None or run.status != "complete":
        return f"Cancelled.{kept or ' Nothing is kept.'}"
    return f"Done: {run.total} patches. Export writes the layer to a file."
