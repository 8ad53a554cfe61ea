"""The controller alone: a fake form, a viewer model without a window, and no threads."""

from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Labels
from napari.utils import progress

import networks
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError
from napari_seamless.gui.controller import Controller
from napari_seamless.gui.opening import Choice
from napari_seamless.gui.request import Request
from napari_seamless.gui.worker import Ended

pytestmark = pytest.mark.usefixtures("qapp")  # the throttles need Qt's timers


CONFIG = InferenceConfig(patch_size=(4, 16, 16), batch_size=4, device="cpu")


class FakeForm:
    """Remembers what it was told."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.refusal: Exception | None = None
        self.overlays: set[str] = set()
        self.states: list[str] = []
        self.said: list[tuple[str, bool]] = []
        self.where: Path | None = None
        self.labels: Labels | None = None
        self.scores: list[dict[str, float]] = []

    def chosen_labels(self) -> Labels | None:
        return self.labels

    def show_scores(self, scores, of: str = "") -> None:
        self.scores.append(dict(scores))
        self.scored_what = of

    def request(self) -> Request:
        if self.refusal:
            raise self.refusal
        return self._request

    def ask_for(self, request: Request) -> None:
        self._request = request

    def plan(self):
        return self._request.image, self._request.config

    def wanted_overlays(self) -> set[str]:
        return self.overlays

    def overlay_removed(self, name: str) -> None:
        self.overlays.discard(name)

    def ask_where(self, suggestion: str) -> Path | None:
        return self.where

    def set_state(self, state: str) -> None:
        self.states.append(state)

    def set_progress(self, done: int, total: int) -> None:
        pass

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


class Stage(NamedTuple):
    controller: Controller
    form: FakeForm
    viewer: ViewerModel
    background: Background


@pytest.fixture
def stage(checkpoint_of, volume):
    """A controller, its form, viewer and background."""
    viewer = ViewerModel()
    image = viewer.add_layer(Image(volume, name="volume", scale=(3, 1, 1)))
    form = FakeForm(
        Request(image, Choice(checkpoint_of(networks.Doubled), "networks:Doubled"), CONFIG)
    )
    background = Background()

    def at_once(task, done) -> None:
        done(task())

    controller = Controller(viewer, form, start=background.start, start_task=at_once)
    yield Stage(controller, form, viewer, background)
    controller.close()
    assert not progress._all_instances


def test_a_run_makes_one_layer_and_ends_idle(stage, volume):
    controller, form, viewer, background = stage
    controller.run()
    assert form.states == ["opening"]
    background.deliver_all()

    layer = viewer.layers["volume prediction"]
    np.testing.assert_allclose(np.asarray(layer.data), 2 * volume, rtol=1e-6)
    np.testing.assert_allclose(layer.scale, (3, 1, 1))
    assert layer.metadata["napari-seamless"]["status"] == "complete"
    assert form.states[-1] == "idle"
    assert form.said[-1] == ("Done: 80 patches. Export writes the layer to a file.", False)
    assert len(viewer.layers) == 2


def test_what_the_form_refuses_is_said_and_starts_nothing(stage):
    controller, form, background = stage.controller, stage.form, stage.background
    form.refusal = ConfigError("overlap 2 is not usable")
    controller.run()

    assert form.said == [("overlap 2 is not usable", True)]
    assert not background.streams
    assert not controller.is_busy


def test_a_second_run_does_not_start_while_one_is_busy(stage):
    controller, background = stage.controller, stage.background
    controller.run()
    controller.run()

    assert len(background.streams) == 1


def test_messages_of_a_closed_controller_are_dropped(stage):
    controller, form, viewer, background = stage
    controller.run()
    background.deliver(2)  # opened, and the first batch
    said, layers = len(form.said), len(viewer.layers)
    controller.close()
    background.deliver_all()

    assert (len(form.said), len(viewer.layers)) == (said, layers)
    assert len(networks.calls) == 1  # the run was cancelled with it


def test_a_message_that_arrives_while_one_is_handled_waits(stage):
    controller, form, viewer, background = stage
    controller.run()
    messages, receive = background.streams[-1]
    all_messages = list(messages)
    nested = iter(all_messages[1:])
    controller.progressed.connect(lambda done, total: [receive(m) for m in nested])
    receive(all_messages[0])
    receive(next(nested))

    assert form.said[-1][0].startswith("Done: 80")
    assert viewer.layers["volume prediction"].metadata["napari-seamless"]["done"] == 80


def test_cancel_says_what_is_kept(stage):
    controller, form, viewer, background = stage
    controller.run()
    background.deliver(3)
    controller.cancel()
    background.deliver_all()

    assert form.said[-1] == ("Cancelled. The layer keeps 8 of 80 patches.", False)
    assert viewer.layers["volume prediction"].metadata["napari-seamless"]["status"] == "partial"


def test_cancel_before_the_checkpoint_is_open_predicts_nothing(stage):
    controller, form, background = stage.controller, stage.form, stage.background
    controller.run()
    controller.cancel()
    background.deliver_all()

    assert form.said[-1] == ("Cancelled. Nothing is kept.", False)
    assert not networks.calls


def test_a_failure_that_is_no_error_of_ours_is_said_too(stage):
    controller, form, background = stage.controller, stage.form, stage.background
    controller.run()
    _, receive = background.streams[-1]
    receive(Ended(ZeroDivisionError("division by zero\nat some place")))

    assert form.said[-1] == ("Failed: division by zero.", True)
    assert form.states[-1] == "idle"


def test_two_runs_leave_two_layers_to_compare(stage):
    controller, viewer, background = stage.controller, stage.viewer, stage.background
    for _ in range(2):
        controller.run()
        background.deliver_all()

    names = [layer.name for layer in viewer.layers]
    assert names == ["volume", "volume prediction", "volume prediction [1]"]


def test_export_takes_the_selected_prediction(stage, tmp_path):
    import h5py

    controller, form, viewer, background = stage
    controller.run()
    background.deliver(3)
    controller.cancel()
    background.deliver_all()
    controller.run()
    background.deliver_all()
    viewer.layers.selection.active = viewer.layers["volume prediction"]  # the partial one
    form.where = tmp_path / "out.h5"
    controller.export()

    assert form.said[-1] == (f"Exported to {form.where}", False)
    with h5py.File(form.where) as file:
        assert file["main"].attrs["status"] == "partial"
        assert np.isnan(file["main"][...]).any()


def test_an_export_that_cannot_be_written_is_said(stage, tmp_path):
    controller, form, background = stage.controller, stage.form, stage.background
    controller.run()
    background.deliver_all()
    form.where = tmp_path / "out.png"
    controller.export()

    text, problem = form.said[-1]
    assert problem
    assert text.startswith("Not exported: ")
    assert ".png" in text


def test_overlays_lie_above_the_prediction_that_comes_after_them(stage):
    controller, form, viewer, background = stage
    form.overlays = {"grid", "coverage"}
    controller.update_overlays()
    controller.run()
    background.deliver_all()

    names = [layer.name for layer in viewer.layers]
    assert names.index("volume prediction") == 1
    assert set(names[2:]) == {"patch grid", "coverage"}


def test_a_finished_prediction_is_scored_against_the_chosen_labels(stage, volume):
    controller, form, viewer, background = stage
    form.labels = viewer.add_layer(Labels((2 * volume > 3).astype(int) * 7, name="truth"))
    scored = []
    controller.scored.connect(scored.append)
    controller.run()
    background.deliver_all()

    # 2 x (1 to 2) is above 0.5 everywhere, so that precision is the share of the foreground
    share = (2 * volume > 3).mean()
    assert form.scores[-1]["precision"] == pytest.approx(share)
    assert form.scores[-1]["recall"] == 1
    assert form.scored_what == "volume prediction, against truth"
    assert scored == form.scores[-1:]

    controller.run()
    assert form.scores[-1] == {}  # those of the last run are gone


def test_a_partial_prediction_is_scored_where_it_is(stage, volume):
    controller, form, viewer, background = stage
    form.labels = viewer.add_layer(Labels((2 * volume > 3).astype(int), name="truth"))
    controller.run()
    background.deliver(3)
    covered = ~np.isnan(np.asarray(controller.live.volume)[0])
    controller.cancel()
    background.deliver_all()

    assert form.scores[-1]["voxels"] == np.count_nonzero(covered) < volume.size
    assert form.scored_what == "volume prediction, 8 of 80 patches, against truth"


def test_labels_chosen_later_are_compared_and_those_of_another_shape_refused(stage, volume):
    controller, form, viewer, background = stage
    controller.run()
    background.deliver_all()
    assert form.scores == [{}, {}]
    form.labels = viewer.add_layer(Labels(np.ones(volume.shape, int), name="all"))
    controller.score()
    assert form.scores[-1]["recall"] == 1
    form.labels = viewer.add_layer(Labels(np.ones((3, 4, 5), int), name="other"))
    controller.score()

    assert form.scores[-1] == {}
    text, problem = form.said[-1]
    assert problem
    assert text.startswith("Not scored: ")
    assert "(1, 3, 4, 5)" in text


def test_the_grid_of_a_network_that_crops_is_shown_from_its_first_batch_on(stage, volume):
    controller, form, viewer, background = stage
    checkpoint = form.request().choice.path  # both networks have the same weights
    form.ask_for(Request(viewer.layers[0], Choice(checkpoint, "networks:Cropping"), CONFIG))
    form.overlays = {"coverage"}
    controller.run()
    background.deliver(1)
    before = np.asarray(viewer.layers["coverage"].data).shape
    background.deliver_all()

    layer = viewer.layers["volume prediction"]
    np.testing.assert_allclose(np.asarray(layer.data), 2 * volume, rtol=1e-6)
    coverage = np.asarray(viewer.layers["coverage"].data)
    assert coverage.shape == before == volume.shape
    assert coverage.min() == 1  # of the cores, which lie side by side at least
    np.testing.assert_array_equal(coverage, controller._run.coverage[0])
    assert layer.metadata["napari-seamless"]["total"] == controller._run.total
