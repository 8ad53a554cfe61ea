"""A run on a thread worker, and every way in which it can end, as messages to the main thread."""

import atexit
import contextlib
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Union

import superqt.utils
from napari.components import ViewerModel
from napari.qt.threading import FunctionWorker, GeneratorWorker
from napari.utils.task_status import Status
from qtpy.QtCore import QObject, QThreadPool
from qtpy.QtCore import Signal as QtSignal  # type: ignore[attr-defined]

from napari_seamless.engine.errors import EndedError, PredictionError
from napari_seamless.engine.memory import give_back_memory

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.engine.events import Event
    from napari_seamless.engine.forecast import Forecast
    from napari_seamless.engine.run import Run


# A script may end without Qt's event loop, which would have napari wait: what goes on then would
# find that Qt is gone, and end the program with a crash.
atexit.register(superqt.utils.WorkerBase.await_workers)


@dataclass(frozen=True, slots=True)
class Opened:
    """The checkpoint is loaded and everything checked; batches follow."""

    run: "Run"


@dataclass(frozen=True, slots=True)
class Foretold:
    """The first batches are done, so that it is known what the run will take."""

    forecast: "Forecast"


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing follows. Without an error the run says itself whether it is complete."""

    error: Exception | None = None


Message = Union[Opened, Foretold, "Event", Ended]


class RunStream:
    """Opens a run, drains it and closes it, all on the thread that iterates.

    Parameters
    ----------
    open_run : callable
        Loads the checkpoint and returns the run; slow, so not for the main thread.
    name : str
        What is predicted, as napari says it when it asks whether to close.
    """

    def __init__(self, open_run: Callable[[], "Run"], name: str = "") -> None:
        self.name = name
        self._open_run: Callable[[], Run] | None = open_run
        self._run: Run | None = None
        self._lock = threading.Lock()
        self._cancelled = False

    def cancel(self) -> None:
        """End the run before its next batch, also if it is paused or not open yet."""
        with self._lock:
            self._cancelled = True
            if self._run is not None:
                self._run.cancel()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def messages(self) -> Generator[Message]:
        """Yield `Opened`, an `Event` per batch, and `Ended` whatever happens.

        `Foretold` follows the first batch, so that its picture is there while the network's pace
        is measured.

        napari's worker loses a RuntimeError that its function raises, and every failure of torch is
        one; so an error is a message here.
        """
        try:
            run = self._open()
            with run:
                yield Opened(run)
                yield from islice(run, 1)
                yield from self._foretold(run)
                yield from run
            del run
            ended = Ended()
        except GeneratorExit:
            raise
        except BaseException as error:  # passed on to the user: a thread has nobody to tell
            ended = Ended(error if isinstance(error, Exception) else _broken_off(error))
        self._release()
        yield ended

    def _release(self) -> None:
        """Let go of the run: napari keeps its workers as long as the window is there."""
        with self._lock:
            self._run = self._open_run = None
        give_back_memory()  # a viewer stays open for long

    def _foretold(self, run: "Run") -> Generator[Foretold]:
        if self._cancelled:
            return
        with contextlib.suppress(EndedError):  # cancelled before anybody could know
            yield Foretold(run.forecast())

    def _open(self) -> "Run":
        assert self._open_run is not None, "a stream is drained once"
        run = self._open_run()
        with self._lock:
            self._run = run
            if self._cancelled:
                run.cancel()
        return run


def _broken_off(error: BaseException) -> PredictionError:
    """Return an error that says what would have ended a program, as Ctrl-C does."""
    broken = PredictionError(
        f"{type(error).__name__} ended what was going on; let the network's code raise an error "
        "in its place"
    )
    broken.__cause__ = error
    return broken


@contextlib.contextmanager
def _taking_no_place() -> Generator[None]:
    """Leave the place of this thread in Qt's pool to others meanwhile.

    The pool has as many as there are cores. Runs that last for hours, or are paused, would take
    them all, and nothing else of the program would ever begin.
    """
    pool = QThreadPool.globalInstance()
    assert pool is not None, "there is one as long as there is a program"
    pool.releaseThread()
    try:
        yield
    finally:
        pool.reserveThread()


class _PlainRun(superqt.utils.WorkerBase[Any]):
    """Runs as superqt's workers do, but leaves Python's warnings alone, and takes no place.

    Those catch them on their thread, though that is global: of two that overlap, one leaves its own
    hook in place, which swallows every later warning of the program.
    """

    def run(self) -> None:
        """Do the work, and tell of its end; called by Qt, on a thread."""
        with _taking_no_place():
            self._run()

    def _run(self) -> None:
        self.started.emit()
        self._running = True
        try:
            result = self.work()
        except BaseException as error:  # told on the main thread; here it would end the program
            self.errored.emit(error if isinstance(error, Exception) else _broken_off(error))
        else:
            self.returned.emit(result)
        self._running = False
        self.finished.emit()
        self._finished.emit(self)


class JobWorker(_PlainRun, FunctionWorker):  # type: ignore[misc]  # napari has no types
    """A worker that calls a function."""


class RunWorker(_PlainRun, GeneratorWorker):  # type: ignore[misc]  # napari has no types
    """A worker whose `quit`, called by napari when the program ends, cancels the run.

    The worker itself is left to finish: aborted, it would not close the run.
    """

    def __init__(self, function: Callable[..., Any], stream: RunStream) -> None:
        super().__init__(function)
        self._stream = stream

    def quit(self) -> None:
        """Cancel the run; the worker ends with it."""
        self._stream.cancel()


class Named(partial[Any]):
    """A function of which napari says what it does, when it asks whether to close."""

    text = ""

    def __repr__(self) -> str:
        return self.text


def named(text: str, function: Callable[..., Any], *arguments: Any) -> Named:
    """Return a function with its arguments, called `text` where napari names what is going on."""
    made = Named(function, *arguments)
    made.text = text
    return made


Task = Callable[[], Any]
"""Work to be done once. What goes wrong it returns, in one line: it must not raise."""


def start_task(task: Task, done: Callable[[Any], None]) -> None:
    """Do a task on a thread; `done` gets what it returns on the main thread.

    napari does not ask before it closes while one goes on: nothing is lost with it.
    """
    worker = superqt.utils.create_worker(task, _worker_class=JobWorker, _start_thread=False)
    worker.returned.connect(done)
    worker.start()


Tell = Callable[[Any], None]
"""Passes something on to the main thread; may be called on any."""


class _Relay(QObject):
    """Its signal carries things from a thread to the main one."""

    told = QtSignal(object)


def start_telling(viewer: ViewerModel, job: Callable[[Tell], Any], told: Tell, done: Tell) -> None:
    """Do a job on a thread; the main thread gets what the job tells meanwhile, and returns.

    napari asks before it closes the viewer while one goes on; `named` says what it does.
    """
    relay = _Relay()
    relay.told.connect(told)

    def end(result: Any) -> None:
        relay.deleteLater()
        done(result)

    worker = superqt.utils.create_worker(
        job, relay.told.emit, _worker_class=JobWorker, _start_thread=False
    )
    worker.returned.connect(end)
    _announce(viewer, worker, repr(job))
    worker.start()


def start_worker(
    viewer: ViewerModel, stream: RunStream, receive: Callable[[Message], None]
) -> None:
    """Drain a stream on a thread; `receive` gets its messages on the main thread.

    napari asks before it closes the viewer while the run goes on, and cancels it.
    """
    worker = superqt.utils.create_worker(
        stream.messages, stream, _worker_class=RunWorker, _start_thread=False
    )
    worker.yielded.connect(receive)
    _announce(viewer, worker, f"blended inference ({stream.name})", stream.cancel)
    worker.start()


def _announce(
    viewer: ViewerModel,
    worker: superqt.utils.WorkerBase[Any],
    text: str,
    cancel: Callable[[], None] | None = None,
) -> None:
    """Tell the window of a viewer what a worker does, and how that is cancelled.

    napari's own `create_worker` tells the window that is in front, so that closing another viewer
    would cancel a run, and closing its own would not ask.
    """
    window: Any = getattr(viewer, "window", None)
    window = getattr(window, "__wrapped__", window)  # what plugins get shows no private names
    if not hasattr(window, "_register_task_status"):  # no screen, or a napari that has it elsewhere
        return
    task = window._register_task_status("napari-seamless", Status.BUSY, text, cancel)
    worker.finished.connect(partial(window._update_task_status, task, Status.COMPLETED, text))
