"""Scores of the newest prediction, whenever it or the labels change."""

from collections.abc import Callable
from functools import partial
from typing import Any

from napari.layers import Image, Labels
from psygnal import Signal

from napari_seamless.gui.form import Form
from napari_seamless.gui.runs.live_layer import METADATA_KEY, LiveLayer
from napari_seamless.gui.runs.scores import scores_of
from napari_seamless.gui.runs.worker import Task


class Scoring:
    """Compares predictions with the labels that the form names, on a thread.

    Parameters
    ----------
    form : Form
        Shows the scores.
    start_task : callable
        Does it in the background; see `worker.start_task`.
    """

    scored = Signal(dict)
    """The metrics that are shown."""

    def __init__(self, form: Form, start_task: Callable[[Task, Callable[[Any], None]], None]):
        self._form = form
        self._start_task = start_task
        self._asked = 0

    def forget(self) -> None:
        """Show no scores; what is being computed is stale."""
        self._asked += 1
        self._form.show_scores({})

    def score(self, live: LiveLayer) -> None:
        """Compare a prediction with the chosen labels; without any, show nothing."""
        self.forget()
        truth = self._form.chosen_labels()
        if truth is not None:
            task = partial(scores_of, live.volume, truth.data)
            self._start_task(task, partial(self._scored, self._asked, live.layer, truth))

    def close(self) -> None:
        """Show nothing any more."""
        self._asked += 1

    def _scored(
        self, asked: int, layer: Image, truth: Labels, scores: dict[str, float] | str
    ) -> None:
        name = truth.name
        if asked != self._asked or self._form.chosen_labels() is not truth:
            return
        if isinstance(scores, str):
            self._form.say(f"Not scored: {scores}", problem=True)
            return
        self._form.show_scores(scores, f"{_described(layer)}, against {name}")
        self.scored.emit(scores)


def _described(layer: Image) -> str:
    """Return a prediction layer's name, and how much of it there is if not all."""
    facts = layer.metadata[METADATA_KEY]
    is_whole = facts["status"] == "complete"
    share = "" if is_whole else f", {facts['done']} of {facts['total']} patches"
    return f"{layer.name}{share}"
