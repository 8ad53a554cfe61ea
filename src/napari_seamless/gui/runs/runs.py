"""Runs one after the other: the one that goes on, those that wait, those whose layers are there."""

from collections.abc import Sequence
from typing import Any

from napari.components import ViewerModel
from napari.layers import Layer
from psygnal import Signal

from napari_seamless.engine.errors import OutputError
from napari_seamless.gui.checkpoint.opening import Opener
from napari_seamless.gui.form import Form
from napari_seamless.gui.overlays import Overlays
from napari_seamless.gui.runs.live_layer import LiveLayer
from napari_seamless.gui.runs.naming import name_of, not_taken
from napari_seamless.gui.runs.queue import Job, Queue
from napari_seamless.gui.runs.request import Request, inputs_of
from napari_seamless.gui.runs.session import Session, Start


class Runs:
    """A queue of runs; the next one starts when the one before has ended, in whatever way.

    Parameters
    ----------
    viewer : ViewerModel
        Its layers are added to.
    form : Form
        Shows how far a run is.
    overlays : Overlays
        Kept above the predictions.
    opener : Opener
        Opens checkpoints.
    start : callable
        Drains a run in the background; see `worker.start_worker`.

    Attributes
    ----------
    queue : Queue
        Those that wait.
    session : Session or None
        The one that goes on, or the last one.
    """

    began = Signal(object)
    """A session, before its worker starts."""
    opened = Signal(object)
    """A session whose view is there."""
    replanned = Signal(object)
    """A session whose patches are others now."""
    progressed = Signal(int, int)
    """Patches of the run done, and in all."""
    said = Signal(str)
    """A line on how far the run is."""
    ended = Signal(object, object)
    """A session, and the error that ended it or None; the next one has not begun."""

    def __init__(
        self, viewer: ViewerModel, form: Form, overlays: Overlays, opener: Opener, start: Start
    ) -> None:
        self._viewer, self._form, self._overlays = viewer, form, overlays
        self._opener, self._start = opener, start
        self.queue = Queue()
        self.session: Session | None = None
        self._shown: list[Session] = []
        self._is_following, self._is_preview = True, False

    @property
    def is_busy(self) -> bool:
        """Whether a run is opening, running or paused."""
        return self.session is not None and self.session.is_running

    @property
    def is_preview(self) -> bool:
        """Whether only what is looked at is predicted."""
        return self._is_preview

    @property
    def lives(self) -> list[LiveLayer]:
        """The predictions that are in the viewer, the newest last."""
        return [session.live for session in self._shown if session.live is not None]

    def session_of(self, layer: Any) -> Session | None:
        """Return whose prediction a layer shows, if any."""
        for session in self._shown:
            if session.live is not None and session.live.layer is layer:
                return session
        return None

    def add(self, requests: Sequence[Request]) -> None:
        """Run what is asked for, after what is waiting.

        Raises
        ------
        SeamlessError
            If a layer is no volume, or two runs would write the same output; then none is added.
        """
        self.queue.add(self._jobs(requests))
        if not self.is_busy:
            self._start_next()

    def follow(self, is_following: bool) -> None:
        """Predict what is looked at first, from now on; or let the focus stay where it is."""
        self._is_following = is_following
        if self.session is not None:
            self.session.follow(is_following)

    def preview(self, is_preview: bool) -> None:
        """Predict only what is looked at, from now on; or all."""
        self._is_preview = is_preview
        if self.session is not None:
            self.session.preview(is_preview)

    def forget(self, layer: Layer) -> Session | None:
        """Let go of a layer that was removed, and end its run; return whose it was."""
        session = self.session_of(layer)
        if session is not None and session.live is not None:
            session.live.forget()
            self._shown.remove(session)
            session.dismiss()
        return session

    def close(self) -> None:
        """End the run after its batch, let the others not begin, and say nothing any more."""
        self.queue.clear()
        if self.session is not None:
            self.session.close()
        for live in self.lives:
            live.forget()

    def _jobs(self, requests: Sequence[Request]) -> list[Job]:
        ahead = [session.job for session in self._shown]
        pending = self.queue.waiting
        if self.session is not None and self.session.is_running:
            pending.insert(0, self.session.job)
        jobs: list[Job] = []
        for request in requests:
            others = [job.request for job in [*ahead, *pending, *jobs]]
            taken = {each.name for each in [*self._viewer.layers, *pending, *jobs]}
            name = not_taken(name_of(request, others), taken)
            job = Job(name, request, inputs_of(request))
            _check_output(job, [*pending, *jobs])
            jobs.append(job)
        return jobs

    def _start_next(self) -> None:
        job = self.queue.start_next()
        if job is None:
            return
        session = Session(
            self._viewer,
            self._form,
            self._overlays,
            job,
            is_following=self._is_following,
            is_preview=self._is_preview,
        )
        self.session = session
        session.opened.connect(lambda: self._opened(session))
        session.replanned.connect(lambda: self.replanned.emit(session))
        session.progressed.connect(lambda done, total: self.progressed.emit(done, total))
        session.said.connect(lambda line: self.said.emit(line))
        session.ended.connect(lambda error: self._ended(session, error))
        self.began.emit(session)
        session.begin(self._opener, self._start)

    def _opened(self, session: Session) -> None:
        self._shown.append(session)
        self.opened.emit(session)

    def _ended(self, session: Session, error: Exception | None) -> None:
        if session.live is None:
            self._shown = [each for each in self._shown if each is not session]
        try:
            self.ended.emit(session, error)
        finally:  # what goes wrong in showing it must not hold back the queue
            self._start_next()


def _check_output(job: Job, before: Sequence[Job]) -> None:
    """Raise OutputError if a job would write what one before it is yet to finish."""
    if job.output is not None and any(each.output == job.output for each in before):
        raise OutputError(
            f"{job.output.name} is what another run writes; choose another name, or wait for it"
        )
