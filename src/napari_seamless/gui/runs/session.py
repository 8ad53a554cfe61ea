"""One run between its worker and the viewer's layers."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from napari.components import ViewerModel
from psygnal import Signal

from napari_seamless.engine.box import Box
from napari_seamless.gui.checkpoint.opening import Opener
from napari_seamless.gui.form import Form
from napari_seamless.gui.overlays import Overlays
from napari_seamless.gui.runs.endings import last_line
from napari_seamless.gui.runs.inbox import Inbox
from napari_seamless.gui.runs.live_layer import METADATA_KEY, LiveLayer
from napari_seamless.gui.runs.progress import RunProgress
from napari_seamless.gui.runs.queue import Job
from napari_seamless.gui.runs.request import open_run
from napari_seamless.gui.runs.run_view import RunView, looked_at
from napari_seamless.gui.runs.worker import Ended, Foretold, Message, Opened, RunStream

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.engine.events import Event
    from napari_seamless.engine.forecast import Forecast
    from napari_seamless.engine.run import Run

Start = Callable[[RunStream, Callable[[Message], None]], None]


class Session:
    """One run, from the moment it is wanted until its last message.

    Parameters
    ----------
    viewer : ViewerModel
        Its layers are added to.
    form : Form
        Shows how far the run is.
    overlays : Overlays
        Kept above the prediction.
    job : Job
        What is run.
    is_following : bool
        Whether patches that are looked at come first.
    is_preview : bool
        Whether no others are predicted.

    Attributes
    ----------
    view : RunView or None
        None until the checkpoint is open.
    is_paused : bool
        Whether the user holds it.
    """

    opened = Signal()
    """The view is there."""
    replanned = Signal()
    """The view's patches are others, now that the network's output is known."""
    progressed = Signal(int, int)
    """Patches done, and in all; after the layer was told."""
    said = Signal(str)
    """A line on how far it is."""
    ended = Signal(object)
    """Nothing follows; carries the error that ended it, or None."""

    def __init__(
        self,
        viewer: ViewerModel,
        form: Form,
        overlays: Overlays,
        job: Job,
        *,
        is_following: bool = True,
        is_preview: bool = False,
    ) -> None:
        self._viewer, self._form, self._overlays = viewer, form, overlays
        self.job = job
        self.view: RunView | None = None
        self.is_paused = False
        self._is_following, self._is_preview = is_following, is_preview
        self._is_dismissed = False
        self._stream: RunStream | None = None
        self._progress: RunProgress | None = None
        self._inbox = Inbox(self._handle)

    @property
    def is_running(self) -> bool:
        """Whether it has begun and not ended."""
        return self._stream is not None

    @property
    def live(self) -> LiveLayer | None:
        """The prediction's layer, once there is one and while it is in the viewer."""
        return self.view.live if self.view is not None else None

    @property
    def can_preview(self) -> bool:
        """Whether it can predict only what is looked at: processes of their own cannot."""
        return self.job.request.workers is None

    @property
    def is_previewing(self) -> bool:
        """Whether it goes on, be it waiting, until it shall predict more than what is looked at."""
        is_wanted = self._stream is not None and not self._stream.is_cancelled
        return is_wanted and self._is_preview and self.can_preview

    def begin(self, opener: Opener, start: Start) -> None:
        """Start the worker."""
        request = self.job.request
        box, vol_id = looked_at(self._viewer, request.plan)
        is_preview = self._is_preview and self.can_preview
        focus = (box if self._is_following or is_preview else None, vol_id)
        opening = partial(open_run, request, opener, self.job.inputs, *focus)
        opening = partial(_previewing, opening) if is_preview else opening
        self._stream = RunStream(opening, self.job.name)
        start(self._stream, self._inbox.receive)

    def toggle_pause(self) -> None:
        """Pause the run, or go on with it."""
        if self.view is None or not self.is_running:
            return
        self.is_paused = not self.is_paused
        self._form.set_state("paused" if self.is_paused else "running")
        if self.is_paused:
            self.view.run.pause()
            self.said.emit("Paused")
        else:
            self.view.run.resume()
            self._say_how_far()

    def cancel(self) -> None:
        """End the run after its batch; its layer stays, marked partial."""
        if self._stream is not None:
            self._stream.cancel()
            self.said.emit("Cancelling …")

    def follow(self, is_following: bool) -> None:
        """Let the focus move with the view from now on, or stay where it is."""
        self._is_following = is_following
        self.view_moved()

    def preview(self, is_preview: bool) -> None:
        """Predict only what is looked at, or all."""
        self._is_preview = is_preview
        if self.view is not None and self.is_running and self.can_preview:
            self.view.run.preview(is_preview)
            self._say_how_far()

    def view_moved(self) -> None:
        """Tell the run what is looked at; it re-orders its patches before the next batch."""
        if self.view is not None and self.is_running and self._is_following:
            self.view.focus()
            if self._is_preview:
                self._say_how_far()

    def dismiss(self) -> None:
        """Let go of a layer that was removed, and end its run: nobody wants to see it."""
        self._is_dismissed = True
        if self.view is not None:
            self.view.live = None
        self.cancel()

    def close(self) -> None:
        """End the run after its batch, and say nothing any more."""
        self._inbox.close()
        if self._stream is not None:
            self._stream.cancel()
            if self.live is not None:
                self.live.layer.metadata[METADATA_KEY]["status"] = "partial"
        if self._progress is not None:
            self._progress.close()

    def last_line(self, error: Exception | None) -> tuple[str, bool]:
        """Say how it ended and what to do now; and whether that is a problem."""
        run = self.view.run if self.view is not None else None
        return last_line(run, error, self.live is not None, self.job.request.output)

    def _handle(self, message: Message) -> None:
        if isinstance(message, Opened):
            self._opened(message.run)
        elif isinstance(message, Foretold):
            self._foretold(message.forecast)
        elif isinstance(message, Ended):
            self._ended(message)
        else:
            self._blended(message)

    def _opened(self, run: "Run") -> None:
        plan = self.job.request.plan
        self.view = RunView(self._viewer, self._overlays, plan, run, self.job.name)
        if self.can_preview:
            run.preview(self._is_preview)  # it may have been changed while it was opened
        self._progress = RunProgress(self._form, run.total, self._say_how_far)
        if self._stream is not None and not self._stream.is_cancelled:
            self._form.set_state("running")
            self.said.emit(f"Running {run.total:,} patches on {run.plan.device}: the first batch …")
        self.view_moved()
        self.opened.emit()

    def _foretold(self, forecast: "Forecast") -> None:
        self._form.show_forecast(str(forecast))
        if self._progress is not None:  # what need not run does not count for the pace
            self._progress.settled(forecast.resumed + forecast.skipped)

    def _blended(self, event: "Event") -> None:
        view = self.view
        if view is None or self._is_dismissed:
            return
        if view.live is None:
            self._show_first(view, event.dirty)
        view.mark(event)
        view.describe(event)
        if self._progress is not None:
            self._progress.show_soon(event.done, event.total)
        self.progressed.emit(event.done, event.total)

    def _show_first(self, view: RunView, dirty: Box) -> None:
        if view.follow_plan():
            self.replanned.emit()
        view.add_layer(dirty)

    def _say_how_far(self) -> None:
        if self._progress is None or self.view is None or self.is_paused or not self.is_running:
            return
        if self.is_previewing:
            self.said.emit(_preview_line(*self.view.patches_shown()))
        else:
            self.said.emit("\n".join([self._progress.line(), *self._notes(self.view.run)]))
        self._form.show_stages(str(self.view.run.stages))

    def _notes(self, run: "Run") -> list[str]:
        asked, now = self.job.request.plan.config.batch_size, run.batch_size
        return [_batch_line(asked, now)] if now < asked else []

    def _ended(self, ended: Ended) -> None:
        self._stream = None
        if self._progress is not None:
            self._progress.close()
        try:
            if self.view is not None and self.view.live is not None:
                self.view.describe()
                self._form.show_stages(str(self.view.run.stages))
                self.view.live.close()
                self.view.add_labels()
        finally:  # an error in drawing must not hold the form and the queue
            self.ended.emit(ended.error)


def _preview_line(shown: int, left: int) -> str:
    if left:
        return f"Previewing: {shown - left:,} of {shown:,} patches of what is shown"
    return f"Previewing: {shown:,} patches of what is shown, move to see more"


def _batch_line(asked: int, now: int) -> str:
    patches = f"{now} patches" if now > 1 else "1 patch"
    return f"Out of memory with batches of {asked} patches; going on with {patches} at a time"


def _previewing(opening: "Callable[[], Run]") -> "Run":
    """Open a run that predicts only what is looked at, from its first batch on."""
    run = opening()
    run.preview(True)
    return run
