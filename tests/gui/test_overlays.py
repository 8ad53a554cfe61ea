"""The overlays over a viewer model: what they show before, during and after a run, and when."""

from itertools import islice

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Labels

import napari_seamless as ns
import networks
from napari_seamless.engine.blending import weight_sum
from napari_seamless.engine.box import Box
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.seams import seam_score
from napari_seamless.gui.overlays import (
    OVERLAY_KEY,
    SWITCHES,
    CellState,
    Overlays,
    cells,
    planned,
    running,
    seam_line,
)
from napari_seamless.gui.overlays.overlays import NOT_SUMMED
from napari_seamless.gui.runs.request import Plan

pytestmark = pytest.mark.usefixtures("qapp")  # the throttles need Qt's timers

CONFIG = InferenceConfig(
    patch_size=(4, 16, 16), batch_size=1, device="cpu", normalization="none", disagreement=True
)
EVERYTHING = {switch.name for switch in SWITCHES}


def at_once(task, done) -> None:
    done(task())


class Stage:
    """Overlays over a viewer model with one image, and a run over that."""

    def __init__(self, data, config=CONFIG, **layer) -> None:
        self.viewer = ViewerModel()
        self.image = self.viewer.add_layer(Image(data, name="volume", **layer))
        self.plan = Plan(self.image, config)
        self.overlays = Overlays(self.viewer, at_once)
        self.lines: list[str] = []
        self.overlays.seams_scored.connect(self.lines.append)
        self.refreshed: list[str] = []

    def run(self, network=None, data=None, **arguments) -> ns.InferenceRun:
        data = self.image.data if data is None else data
        return ns.InferenceRun(data, network or networks.Ramp(), self.plan.config, **arguments)

    def layer(self, name: str):
        (layer,) = [each for each in self.viewer.layers if each.metadata.get(OVERLAY_KEY) == name]
        return layer

    def shown(self, name: str) -> np.ndarray:
        data = self.layer(name).data
        return np.asarray(data[0] if self.layer(name).multiscale else data)

    def count_refreshes(self, name: str) -> list[None]:
        seen: list[None] = []
        self.layer(name).events.set_data.connect(lambda _: seen.append(None))
        return seen


@pytest.fixture
def stage(volume):
    stage = Stage(volume, scale=(4, 2, 1))
    yield stage
    stage.overlays.close()


def test_before_a_run_its_end_is_shown_and_all_patches_wait(stage, volume):
    subject = planned(stage.plan)
    assert stage.overlays.show(EVERYTHING, subject) == []

    with stage.run() as run:
        for _ in run:
            pass
        np.testing.assert_array_equal(stage.shown("weights"), run.weights[0])
        np.testing.assert_array_equal(stage.shown("coverage"), run.coverage[0])
    assert set(np.unique(stage.shown("states"))) == {CellState.WAITING}
    assert np.isnan(stage.shown("seams")).all()
    assert np.isnan(stage.shown("disagreement")).all()
    assert stage.lines == ["seams: none known yet"]
    np.testing.assert_array_equal(subject.order(), np.arange(len(subject.grid)))
    for name in EVERYTHING:
        np.testing.assert_allclose(stage.layer(name).scale, (4, 2, 1))


def test_the_planned_order_begins_with_what_is_looked_at(stage):
    stage.viewer.dims.set_point(0, 4 * 11)
    subject = planned(stage.plan)
    stage.overlays.show({"order"}, subject)
    near = subject.grid.touching(Box((11, 0, 0), (12, 40, 40)))
    touching = np.arange(len(subject.grid)).reshape(subject.grid.counts)[near].size

    assert stage.layer("order").data[11].max() == touching
    assert stage.layer("order").data[0].min() == touching + 1


def test_during_a_run_states_and_order_are_those_of_the_run(stage):
    with stage.run() as run:
        list(islice(run, 3))
        subject = running(stage.plan, run)
        stage.overlays.show({"states", "order", "patch_ids"}, subject)
        states, ids, order = map(stage.shown, ("states", "patch_ids", "order"))

        done = np.flatnonzero(np.asarray(run.volumes[0].accumulator.states))
        assert done.tolist() == [0, 1, 2]
        assert set(np.unique(ids[states == CellState.DONE])) == {0, 1, 2}
        waiting = run.order(0)
        for rank in (1, 2, len(waiting)):
            assert set(np.unique(ids[order == rank])) == {waiting[rank - 1]}
        assert np.isnan(order[states == CellState.DONE]).all()
        for _ in run:
            pass
        assert set(np.unique(stage.shown("states"))) == {CellState.DONE}
        assert np.isnan(stage.shown("order")).all()


def test_the_order_of_a_run_that_holds_follows_what_is_looked_at(stage):
    with stage.run() as run:
        list(islice(run, 3))
        stage.overlays.show({"order"}, running(stage.plan, run))
        run.pause()
        stage.viewer.dims.set_point(0, 4 * 11)
        plane = Box((11, 0, 0), (12, 40, 40))
        run.focus(plane)
        stage.overlays.view_moved()
        grid = run.plan.volumes[0].grid
        touching = np.arange(len(grid)).reshape(grid.counts)[grid.touching(plane)].size

        order = stage.shown("order")
        assert order[11].max() == touching
        assert np.nanmin(order[0]) == touching + 1
        assert np.nanmax(order) == len(grid) - 3  # with what was read ahead
        run.resume()
        list(islice(run, 1))
        assert np.nanmax(stage.shown("order")[11]) < touching


def test_skipped_and_failed_patches_are_told_apart(volume):
    volume = np.where(np.arange(40) < 20, 1, volume).astype(np.float32)
    config = CONFIG.model_copy(update={"skip_constant": True, "overlap": (0.0, 0.0, 0.0)})
    stage = Stage(volume, config)
    with stage.run() as run:
        for _ in run:
            pass
        states = running(stage.plan, run).states()

    skipped = run.volumes[0].skipped
    assert skipped.any()
    np.testing.assert_array_equal(states == CellState.SKIPPED, skipped)
    np.testing.assert_array_equal(states == CellState.DONE, ~skipped)


def test_a_layer_is_drawn_again_only_if_a_shown_patch_has_changed(stage):
    stage.viewer.dims.set_point(0, 4 * 11)  # patches of the first planes do not reach it
    with stage.run() as run:
        next(run)
        stage.overlays.show({"states", "weights"}, running(stage.plan, run))
        stage.overlays.refresh()
        seen = [stage.count_refreshes(name) for name in ("states", "weights")]
        list(islice(run, 3))
        stage.overlays.refresh()
        assert [len(each) for each in seen] == [0, 0]
        stage.viewer.dims.set_point(0, 0)
        before = [len(each) for each in seen]
        list(islice(run, 1))
        stage.overlays.refresh()
        assert [len(each) - drawn for each, drawn in zip(seen, before, strict=True)] == [1, 1]
        stage.overlays.refresh()
        assert [len(each) - drawn for each, drawn in zip(seen, before, strict=True)] == [1, 1]


def test_the_weights_of_one_patch_are_shown_while_it_is_picked(stage):
    subject = planned(stage.plan)
    stage.overlays.show({"weights"}, subject)
    stage.overlays.pick(7)
    picked = np.zeros(subject.grid.counts, dtype=bool)
    picked.flat[7] = True
    window, box = subject.window, Box.of_shape(subject.grid.shape)

    expected = weight_sum(subject.grid, window, picked, box).astype(np.float32)
    np.testing.assert_array_equal(stage.shown("weights"), expected)
    assert stage.layer("weights").name == "blending weights of patch 7"
    assert stage.layer("weights").contrast_limits[1] == pytest.approx(window.matrix.max())
    stage.overlays.pick(None)
    assert stage.layer("weights").name == "blending weights"
    np.testing.assert_array_equal(stage.shown("weights"), subject.weights)


@pytest.mark.parametrize(
    ("blending", "lowest"),
    [("gaussian", 0.2), ("constant", 0.2), ("hann", 0.1926)],  # napari's slider ends at 0.2
)
def test_the_lowest_weight_is_drawn_well_above_none(volume, blending, lowest):
    stage = Stage(volume, CONFIG.model_copy(update={"blending": blending}))
    subject = planned(stage.plan)
    stage.overlays.show({"weights"}, subject)
    layer = stage.layer("weights")

    drawn = (subject.window.lowest / layer.contrast_limits[1]) ** layer.gamma
    assert drawn == pytest.approx(lowest, abs=1e-4)
    assert layer.gamma >= 0.2
    assert layer.colormap.map(np.array([0.0]))[0, 3] == 0
    assert (layer.colormap.map(np.array([0.15, 1]))[:, 3] == 1).all()
    np.testing.assert_array_equal(stage.shown("weights"), subject.weights)  # as they are


def test_one_weight_everywhere_is_drawn_without_gamma(volume):
    config = CONFIG.model_copy(update={"blending": "constant", "overlap": (0.0, 0.0, 0.0)})
    stage = Stage(volume[:, :32, :32], config)
    stage.overlays.show({"weights"}, planned(stage.plan))

    assert stage.layer("weights").gamma == 1
    assert tuple(stage.layer("weights").contrast_limits) == (0, 1)


def test_disagreement_and_seams_are_the_largest_of_all_channels(stage):
    with stage.run(networks.TwoChannels()) as run:
        for _ in run:
            pass
        stage.overlays.show({"disagreement", "seams"}, running(stage.plan, run))
        stage.overlays.refresh()
        disagreement = np.asarray(run.outputs(0)["disagreement"])

        assert disagreement.shape[0] == 2
        np.testing.assert_array_equal(stage.shown("disagreement"), disagreement.max(axis=0))
        limits = stage.layer("disagreement").contrast_limits
        assert limits[1] >= stage.layer("disagreement").data[0].max() > 0
        seams = stage.shown("seams")
        assert np.isnan(seams[0, 2, 2])  # no patch begins or ends there
        score = seam_score(run.live[0], run.plan.volumes[0].grid)
        assert stage.lines[-1] == f"seams: {score}; 1 is none"


def test_disagreement_that_was_not_asked_for_is_refused_with_a_line(volume):
    stage = Stage(volume, CONFIG.model_copy(update={"disagreement": False}))

    assert stage.overlays.show({"disagreement", "grid"}, planned(stage.plan)) == [NOT_SUMMED]
    assert len(stage.viewer.layers) == 2
    assert stage.layer("grid").name == "patch grid"


def test_a_score_that_nobody_waits_for_is_dropped(stage):
    tasks = []
    overlays = Overlays(stage.viewer, lambda task, done: tasks.append((task, done)))
    overlays.seams_scored.connect(stage.lines.append)
    with stage.run() as run:
        for _ in run:
            pass
        overlays.show({"seams"}, running(stage.plan, run))
        overlays.show(set(), None)
        ((task, done),) = tasks
        done(task())

    assert stage.lines == []


def test_a_seamless_prediction_scores_about_one_and_a_plain_tiling_more(volume):
    smooth = np.cumsum(volume - volume.mean(), axis=2).astype(np.float32)
    worst = {}
    for overlap in (0.0, 0.5):
        config = CONFIG.model_copy(update={"overlap": (overlap,) * 3, "activation": "none"})
        stage = Stage(smooth, config)
        with stage.run() as run:
            for _ in run:
                pass
            line = seam_line(running(stage.plan, run))
        worst[overlap] = float(line.split()[1])
        assert line.endswith("; 1 is none")

    assert worst[0.0] > 1.5 * worst[0.5]


def test_a_series_shows_the_patches_of_its_time_points(volume):
    series = np.stack([volume] * 3)
    config = CONFIG.model_copy(update={"time_points": (0, 2)})
    stage = Stage(series, config, axis_labels=("t", "z", "y", "x"))
    subject = planned(stage.plan)
    stage.overlays.show({"states", "patch_ids", "order", "weights"}, subject)

    for name, nothing in (("states", 0), ("patch_ids", -1), ("weights", np.nan)):
        assert (stage.layer(name).data[1] == nothing).all() or np.isnan(nothing)
        assert not (stage.layer(name).data[2] == nothing).all()
    assert np.isnan(stage.layer("order").data[1]).all()
    assert stage.layer("patch_ids").data[0].max() == len(subject.grid) - 1
    assert [subject.vol_id_at(time) for time in range(3)] == [0, None, 1]


def test_an_image_of_one_plane_gets_flat_overlays():
    flat = np.random.default_rng(0).random((64, 48), dtype=np.float32)
    stage = Stage(flat, CONFIG.model_copy(update={"patch_size": (1, 16, 16)}))
    stage.overlays.show(EVERYTHING, planned(stage.plan))

    for name in EVERYTHING - {"grid"}:
        assert stage.layer(name).data.shape == (64, 48)
    assert stage.layer("grid").data.shape[1:] == (2, 2)


def test_large_volumes_have_coarse_levels_for_three_dimensions():
    stage = Stage(np.broadcast_to(np.float32(0), (512, 1024, 1024)))
    stage.overlays.show({"states"}, planned(stage.plan))
    layer = stage.layer("states")

    assert layer.multiscale
    assert layer.data[-1].size <= 1 << 21
    assert (np.asarray(layer.data[-1]) == CellState.WAITING).all()


@pytest.mark.slow
def test_napari_reads_one_plane_of_a_large_volume(monkeypatch):
    """Of a level it asks for all planes of what is in view, and only then for the one shown."""
    asked = []
    monkeypatch.setattr(cells, "_leave_gaps", lambda region, *_: asked.append(region.shape))
    stage = Stage(np.broadcast_to(np.float32(0), (512, 1024, 1024)))
    stage.overlays.show({"states", "order"}, planned(stage.plan))
    for name in ("states", "order"):
        stage.overlays.redraw(name)

    assert asked
    assert {shape[0] for shape in asked} == {1}


def test_in_three_dimensions_all_waiting_patches_are_within_the_limits_of_their_order(stage):
    stage.overlays.show({"order"}, planned(stage.plan))
    layer = stage.layer("order")

    assert layer.contrast_limits[0] == np.nanmin(stage.shown("order")) == 1
    assert layer.contrast_limits[1] > np.nanmax(stage.shown("order"))
    assert layer.interpolation3d == "nearest"


def test_in_three_dimensions_waiting_patches_do_not_hide_the_others(stage):
    with stage.run() as run:
        list(islice(run, 3))
        stage.overlays.show({"states"}, running(stage.plan, run))
        stage.viewer.dims.ndisplay = 3
        assert set(np.unique(stage.shown("states"))) == {0, CellState.DONE}
        stage.viewer.dims.ndisplay = 2
        assert CellState.WAITING in stage.shown("states")


def test_the_status_bar_says_what_a_colour_means(stage):
    stage.overlays.show({"states"}, planned(stage.plan))

    status = stage.layer("states").get_status((0, 6, 6), dims_displayed=[1, 2], world=True)
    assert "state: waiting" in status["value"]


def test_overlays_cannot_be_painted_and_take_no_focus(stage):
    stage.viewer.layers.selection.active = stage.image
    stage.overlays.show({"states", "patch_ids"}, planned(stage.plan))

    assert stage.viewer.layers.selection.active is stage.image
    for name in ("states", "patch_ids"):
        assert isinstance(stage.layer(name), Labels)
        assert not stage.layer(name).editable


@pytest.mark.parametrize("count", [0, 1, 2])
def test_overlays_leave_the_selection_as_it_was_and_nobody_is_told(stage, count):
    other = stage.viewer.add_layer(Image(np.zeros((12, 40, 40)), name="other"))
    selection, told = stage.viewer.layers.selection, []
    selection.clear()
    selection.update([stage.image, other][:count])
    before, active = set(selection), selection.active
    selection.events.changed.connect(told.append)
    selection.events.active.connect(told.append)
    stage.overlays.show(EVERYTHING, planned(stage.plan))

    assert set(selection) == before
    assert selection.active is active
    assert told == []


def test_a_removed_layer_is_forgotten_and_only_what_is_wanted_stays(stage):
    subject = planned(stage.plan)
    stage.overlays.show({"states", "grid", "coverage"}, subject)
    layer = stage.layer("states")
    stage.viewer.layers.remove(layer)
    assert stage.overlays.forget(layer) == "states"
    assert stage.overlays.forget(layer) is None
    stage.overlays.show({"coverage"}, subject)
    assert [each.name for each in stage.viewer.layers] == ["volume", "coverage"]
    stage.overlays.show({"coverage"}, None)
    assert [each.name for each in stage.viewer.layers] == ["volume"]


def test_the_lines_of_the_shown_plane_are_redrawn_only_when_it_changes(stage):
    stage.overlays.show({"grid"}, planned(stage.plan))
    layer = stage.layer("grid")
    before = layer.data
    stage.overlays.view_moved()
    assert layer.data is before
    stage.viewer.dims.set_point(0, 4 * 7)
    stage.overlays.view_moved()
    assert (layer.data[:, 0, 0] == 7).all()


def test_overlays_that_are_closed_let_go_of_the_image(stage):
    before = len(stage.image.events.data.callbacks)
    stage.overlays.show({"grid"}, planned(stage.plan))
    assert len(stage.image.events.data.callbacks) == before + 1
    stage.overlays.close()
    assert len(stage.image.events.data.callbacks) == before
    stage.image.data = np.zeros((3, 4), np.float32)

    assert "patch grid" in stage.viewer.layers  # nothing is done any more


@pytest.mark.parametrize("error", [OSError("chunk 0.0.0 is damaged"), MemoryError("no memory")])
def test_an_image_that_cannot_be_read_is_said_in_the_line_of_the_seams(stage, error, monkeypatch):
    """The line is there, and the next question is answered again."""
    with stage.run() as run:
        for _ in run:
            pass
        subject = running(stage.plan, run)

        def read(ranges):
            raise error

        damaged = LazyArray((1, 12, 40, 40), np.float32, read)
        monkeypatch.setattr(type(subject), "prediction_of", lambda self, vol_id: damaged)

        assert seam_line(subject) == f"seams: {error}"
        assert seam_line(subject, is_wanted=lambda: False) == ""
