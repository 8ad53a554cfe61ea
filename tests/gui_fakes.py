"""A form without a screen and a background without threads, for tests of the controller."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Labels

import networks
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.gui.checkpoint.opening import Choice
from napari_seamless.gui.controller import Controller
from napari_seamless.gui.runs.request import Plan, Request

CONFIG = InferenceConfig(patch_size=(4, 16, 16), batch_size=4, device="cpu")


class FakeForm:
    """Remembers what it was told."""

    def __init__(self, request: Request) -> None:
        self._requests = (request,)
        self.refusal: Exception | None = None
        self.overlays: set[str] = set()
        self.states: list[str] = []
        self.said: list[tuple[str, bool]] = []
        self.where: Path | None = None
        self.labels: Labels | None = None
        self.scores: list[dict[str, float]] = []
        self.forecasts: list[str] = []
        self.started = 0
        self.offered: list[tuple[str, Callable[[], None]]] = []
        self.filled: dict[str, object] = {}
        self.progress: list[tuple[int, int]] = []
        self.tuning: list[bool] = []
        self.stages: list[str] = []

    def chosen_labels(self) -> Labels | None:
        return self.labels

    def show_scores(self, scores, of: str = "") -> None:
        self.scores.append(dict(scores))
        self.scored_what = of

    def requests(self) -> list[Request]:
        if self.refusal:
            raise self.refusal
        return list(self._requests)

    def request(self) -> Request:
        return self._requests[0]

    def ask_for(self, *requests: Request) -> None:
        self._requests = requests

    def plan(self):
        return self.request().plan

    def fill(self, settings) -> None:
        self.filled.update(settings)

    def offer(self, actions) -> None:
        self.offered = list(actions)

    def show_forecast(self, text: str) -> None:
        self.forecasts.append(text)

    def run_started(self) -> None:
        self.started += 1

    def wanted_overlays(self) -> set[str]:
        return self.overlays

    def overlay_removed(self, name: str) -> None:
        self.overlays.discard(name)

    def ask_where(self, suggestion: str) -> Path | None:
        return self.where

    def set_state(self, state: str) -> None:
        self.states.append(state)

    def set_progress(self, done: int, total: int) -> None:
        self.progress.append((done, total))

    def set_tuning(self, is_tuning: bool) -> None:
        self.tuning.append(is_tuning)

    def show_stages(self, text: str) -> None:
        self.stages.append(text)

    def say(self, text: str, problem: bool = False) -> None:
        self.said.append((text, problem))


class Background:
    """Stands for the thread: holds a stream's messages until the test delivers them."""

    def __init__(self) -> None:
        self.streams = []

    def start(self, stream, receive) -> None:
        self.streams.append((stream.messages(), receive))

    def deliver(self, count: int, run: int = -1) -> None:
        messages, receive = self.streams[run]
        for message in islice(messages, count):
            receive(message)

    def deliver_all(self, run: int = -1) -> None:
        messages, receive = self.streams[run]
        for message in messages:
            receive(message)

    def close(self) -> None:
        """End the streams where they are, and with them their runs' threads."""
        for messages, _ in self.streams:
            messages.close()


class Stage(NamedTuple):
    controller: Controller
    form: FakeForm
    viewer: ViewerModel
    background: Background


def staged(checkpoint_of: Callable[[type], Path], volume: np.ndarray) -> Iterator[Stage]:
    """Yield a controller, its form, viewer and background; close it and look what is left."""
    viewer = ViewerModel()
    image = viewer.add_layer(Image(volume, name="volume", scale=(3, 1, 1)))
    form = FakeForm(
        Request(Plan(image, CONFIG), Choice(checkpoint_of(networks.Doubled), "networks:Doubled"))
    )
    background = Background()

    def at_once(task, done) -> None:
        done(task())

    def telling_at_once(job, told, done) -> None:
        done(job(told))

    controller = Controller(
        viewer,
        form,
        start=background.start,
        start_task=at_once,
        start_telling=telling_at_once,
    )
    yield Stage(controller, form, viewer, background)
    controller.close()
    background.close()
