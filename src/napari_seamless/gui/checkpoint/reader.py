"""Looks into the checkpoint that the form names, in the background, and tells the form."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from superqt.utils import qdebounced

from napari_seamless.engine.errors import SeamlessError
from napari_seamless.gui.checkpoint.loading import load_torch
from napari_seamless.gui.checkpoint.opening import Choice, Opener, Reading
from napari_seamless.gui.runs.worker import Task, start_task

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.models.networks.architecture import Parameter

TYPING_MS = 300


class Form(Protocol):
    """What the reader needs of the form."""

    def choice(self) -> Choice | None:
        """Return which checkpoint is chosen, None if none is, or raise a SeamlessError."""

    def show_reading(self, reading: Reading | None) -> None:
        """Show what is in the checkpoint; None while it is being read, or if none is chosen."""

    def wants_probe(self) -> bool:
        """Return whether the report is looked at, so that the network shall be tried."""

    def show_parameters(self, parameters: "tuple[Parameter, ...]") -> None:
        """Show the parameters of the architecture that is named; none if there is none such."""


class Reader:
    """Keeps what is known of the chosen checkpoint up to date. All methods are the main thread's.

    Parameters
    ----------
    form : Form
        The view.
    opener : Opener
        Opens checkpoints, on a thread.
    start_task : callable
        Does work in the background; see `worker.start_task`.
    """

    def __init__(
        self,
        form: Form,
        opener: Opener,
        start_task: Callable[[Task, Callable[[Any], None]], None] = start_task,
    ) -> None:
        self._form = form
        self._opener = opener
        self._start_task = start_task
        self._generation = 0
        self.choice: Choice | None = None
        self._is_probed = False
        self.is_busy = False
        self.reading: Reading | None = None
        self._architecture: str | None = None
        self.read_soon = qdebounced(self.read, timeout=TYPING_MS)
        self._parameters_soon = qdebounced(self._find_parameters, timeout=TYPING_MS)

    def read(self) -> None:
        """Look into the checkpoint, if the form says another one, or more of it, than before."""
        try:
            choice = self._form.choice()
        except SeamlessError:
            choice = None  # the form says itself what is wrong
        is_probed = self._form.wants_probe()
        if choice == self.choice and (self._is_probed or not is_probed):
            return
        if choice != self.choice:
            self.reading = None
        self.choice, self._is_probed = choice, is_probed
        self._generation += 1
        self.is_busy = choice is not None
        self._form.show_reading(self.reading)
        if choice is not None:
            self._start_task(
                partial(self._opener.read, choice, is_probed),
                partial(self._done, self._generation),
            )

    def ask_for_parameters(self, architecture: str | None) -> None:
        """Find out what an architecture takes, when no more is typed."""
        self._architecture = architecture
        self._parameters_soon()

    def close(self) -> None:
        """Drop what is being read."""
        self._generation += 1
        self._architecture = None
        for soon in (self.read_soon, self._parameters_soon):
            soon.cancel()

    def _done(self, generation: int, reading: Reading) -> None:
        if generation != self._generation:
            return
        self.is_busy, self.reading = False, reading
        self._form.show_reading(reading)

    def _find_parameters(self) -> None:
        if self._architecture is None:
            self._form.show_parameters(())
        else:
            self._start_task(
                partial(_parameters, self._architecture),
                partial(self._parameters_found, self._architecture),
            )

    def _parameters_found(self, architecture: str, parameters: "tuple[Parameter, ...]") -> None:
        if architecture == self._architecture:
            self._form.show_parameters(parameters)


def _parameters(architecture: str) -> "tuple[Parameter, ...]":
    """Return what an architecture takes; nothing if there is none, which opening it says."""
    load_torch()
    from napari_seamless.models.networks.architecture import parameters_of

    try:
        return parameters_of(architecture)
    except SeamlessError:
        return ()
