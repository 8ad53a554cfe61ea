"""Tuning from the form: the fastest settings are found in the background, and filled in."""

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from psygnal import Signal

from napari_seamless.engine.errors import ConfigError, one_line
from napari_seamless.engine.memory import give_back_memory
from napari_seamless.gui.checkpoint.opening import Opener
from napari_seamless.gui.runs.request import Inputs, Request, inputs_of
from napari_seamless.gui.runs.worker import Task

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.engine.tuned import Tuning


class Tuner:
    """Tunes one network at a time. All methods are the main thread's.

    Parameters
    ----------
    opener : Opener
        Opens checkpoints; a run waits until the network is free.
    start_task : callable
        Does work in the background; see `worker.start_task`.
    """

    found = Signal(dict)
    """Settings that are faster, as JSON has them; perhaps none."""
    ended = Signal(str, bool)
    """What came of it in one line, and whether that is a problem."""

    def __init__(
        self, opener: Opener, start_task: Callable[[Task, Callable[[Any], None]], None]
    ) -> None:
        self._opener, self._start_task = opener, start_task
        self._unwanted: threading.Event | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a network is being tuned."""
        return self._unwanted is not None

    def start(self, request: Request, patches: str) -> None:
        """Tune the network of a request; see `napari_seamless.tune` for `patches`.

        Raises
        ------
        SeamlessError
            If that cannot be.
        """
        if request.workers is not None:
            raise ConfigError("tuning measures this process; choose no workers for it")
        inputs, unwanted = inputs_of(request), threading.Event()
        self._unwanted = unwanted
        task = partial(self._tuned, request, inputs, patches, unwanted)
        self._start_task(task, partial(self._done, unwanted))

    def stop(self) -> None:
        """Try nothing more: what is best so far is taken."""
        if self._unwanted is not None:
            self._unwanted.set()

    def close(self) -> None:
        """Try nothing more, and say nothing any more."""
        self.stop()
        self._unwanted = None

    def _tuned(
        self, request: Request, inputs: Inputs, patches: Any, unwanted: threading.Event
    ) -> "Tuning | str":
        """Return what was found, or why nothing was; on a thread."""
        try:
            with self._opener.calling:
                model = self._opener.model(request.choice)
                from napari_seamless.tuning import tune

                return tune(
                    inputs.image,
                    model,
                    request.plan.config,
                    patches=patches,
                    may_go_on=lambda: not unwanted.is_set(),
                )
        except (Exception, SystemExit) as error:  # passed on to the user
            return one_line(error)
        finally:
            give_back_memory()

    def _done(self, unwanted: threading.Event, result: "Tuning | str") -> None:
        if self._unwanted is not unwanted:  # it was closed
            return
        self._unwanted = None
        if isinstance(result, str):
            self.ended.emit(f"Not tuned: {result}", True)
            return
        self.found.emit(dict(result.changed))
        self.ended.emit(f"Tuned: {result}", False)
