"""Which checkpoint the form names, and opening it once for all who need it."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seamless.engine.errors import SeamlessError, UntrustedError, one_line
from napari_seamless.engine.refusals import json_object
from napari_seamless.gui.checkpoint.loading import load_torch
from napari_seamless.models.parts import format_of, parts_of
from napari_seamless.models.reporting.report import ModelReport

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.models import Checkpoint, LoadedModel


@dataclass(frozen=True)
class Choice:
    """What the form says of a checkpoint.

    Attributes
    ----------
    path : Path
        The file or folder.
    architecture : str or None
        As in `load_model`.
    arguments : str
        Of the architecture, JSON.
    trust : bool
        Whether code in the file may be run.
    weights : str or None
        Which of several sets of weights.
    """

    path: Path
    architecture: str | None = None
    arguments: str = "{}"
    trust: bool = False
    weights: str | None = None


@dataclass(frozen=True)
class Reading:
    """What came of opening a checkpoint.

    Attributes
    ----------
    report : ModelReport or None
        What was found in it; None if it could not be opened at all.
    problem : str or None
        In one line why it cannot be run.
    needs_trust : bool
        Whether it could be opened if code in it were run.
    """

    report: ModelReport | None = None
    problem: str | None = None
    needs_trust: bool = False


class Opener:
    """Opens a checkpoint when it is first asked for, on whatever thread; keeps the newest.

    The form's look at a checkpoint and the run after it share what was opened. Who asks while it is
    being opened waits.

    Attributes
    ----------
    calling : Lock
        Held by whoever calls a network outside of a run. A run takes its network under it: a call
        may move the network to another device, or put it in another mode meanwhile.
    """

    def __init__(self) -> None:
        self.calling = threading.Lock()
        self._lock = threading.Lock()
        self._newest: tuple[object, Checkpoint] | None = None

    def checkpoint(self, choice: Choice) -> "Checkpoint":
        """Return what is in a checkpoint; opened anew if a file of it has changed.

        Raises
        ------
        ModelError
            If it cannot be opened.
        """
        load_torch()
        from napari_seamless.models import read_checkpoint

        with self._lock:
            key = (choice, _stamp(choice.path, choice.architecture))
            if self._newest is None or self._newest[0] != key:
                self._newest = None  # frees the network before the next one is made
                opened = read_checkpoint(
                    choice.path,
                    choice.architecture,
                    json_object(choice.arguments, "arguments"),
                    trust=choice.trust,
                    weights=choice.weights,
                )
                self._newest = (key, opened)
            return self._newest[1]

    def model(self, choice: Choice) -> "LoadedModel":
        """Return the network of a checkpoint, or raise a ModelError that says why not."""
        return self.checkpoint(choice).model()

    def read(self, choice: Choice, probed: bool) -> Reading:
        """Return what comes of opening a checkpoint; `probed` also tries it on small inputs."""
        try:
            checkpoint = self.checkpoint(choice)
        except (Exception, SystemExit) as error:  # passed on to the user
            return Reading(None, one_line(error), isinstance(error, UntrustedError))
        try:
            checkpoint.model()
            return Reading(checkpoint.probed() if probed else checkpoint.report)
        except (Exception, SystemExit) as error:  # passed on to the user
            return Reading(checkpoint.report, one_line(error), isinstance(error, UntrustedError))


def _stamp(path: Path, architecture: str | None) -> tuple[tuple[str, int, int], ...] | None:
    """Return what changes when a file of a checkpoint does: when it was written, its size."""
    try:
        stats = [(str(part), part.stat()) for part in parts_of(path, format_of(path, architecture))]
    except (SeamlessError, OSError):  # it is not there, or no checkpoint, which opening it says
        return None
    return tuple((name, status.st_mtime_ns, status.st_size) for name, status in stats)
