"""The controller alone: a fake form, a viewer model without a window, and no threads."""

from dataclasses import replace

import numpy as np
import pytest
from napari.layers import Image, Labels

import networks
from gui_fakes import CONFIG, staged
from napari_seamless.engine.errors import ConfigError
from napari_seamless.gui.checkpoint.opening import Choice
from napari_seamless.gui.overlays import OVERLAY_KEY, SWITCHES, CellState
from napari_seamless.gui.overlays.overlays import NOT_SUMMED
from napari_seamless.gui.runs.request import Plan, Request
from napari_seamless.gui.runs.worker import Ended

pytestmark = pytest.mark.usefixtures("qapp")  # the throttles need Qt's timers


@pytest.fixture
def stage(checkpoint_of, volume):
    """A controller, its form, viewer and background."""
    yield from staged(checkpoint_of, volume)


def ask_for(form, config) -> None:
    """Let a form ask for other settings."""
    request = form.request()
    form.ask_for(replace(request, plan=replace(request.plan, config=config)))


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
    background.deliver(4)
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
    background.deliver(4)
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
    controller.showing.update()
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
    background.deliver(4)
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
    form.ask_for(Request(Plan(viewer.layers[0], CONFIG), Choice(checkpoint, "networks:Cropping")))
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
    np.testing.assert_array_equal(coverage, controller.current.run.coverage[0])
    assert layer.metadata["napari-seamless"]["total"] == controller.current.run.total


class Exports:
    """Stands for the thread of an export: does the job when the test says so."""

    def __init__(self) -> None:
        self.jobs = []

    def start(self, job, told, done) -> None:
        self.jobs.append((job, told, done))

    def finish(self) -> None:
        job, told, done = self.jobs.pop()
        done(job(told))


@pytest.fixture
def exports(stage):
    """The stage's exports wait until they are told to go on."""
    exports = Exports()
    stage.controller._exports._exporter._start = exports.start
    return exports


def test_an_export_says_how_far_it_is_and_ends_idle(stage, exports, tmp_path):
    controller, form, _, background = stage
    controller.run()
    background.deliver_all()
    form.where = tmp_path / "out.h5"
    controller.export()
    assert form.states[-1] == "exporting"
    assert form.said[-1] == ("Writing out.h5 …", False)
    exports.finish()

    lines = [line for line, _ in form.said]
    assert lines[-2].startswith("Writing out.h5: ")
    done, total = form.progress[-1]
    assert f"{done} of {total} chunks" in lines[-2]
    assert done == total
    assert form.states[-1] == "idle"
    assert form.said[-1] == (f"Exported to {form.where}", False)


@pytest.mark.parametrize("suffix", [".h5", ".zarr", ".tif"])
@pytest.mark.parametrize("by", ["cancel", "export"])
def test_a_cancelled_export_leaves_nothing(stage, exports, tmp_path, suffix, by):
    controller, form, _, background = stage
    controller.run()
    background.deliver_all()
    form.where = tmp_path / f"out{suffix}"
    before = set(tmp_path.iterdir())
    controller.export()
    getattr(controller, by)()
    exports.finish()

    assert form.said[-1] == (f"Export cancelled; nothing of out{suffix} is left", False)
    assert set(tmp_path.iterdir()) == before
    assert form.states[-1] == "idle"


def test_cancel_during_a_run_and_an_export_ends_the_run_first(stage, exports, tmp_path):
    controller, form, _, background = stage
    controller.run()
    background.deliver(4)
    form.where = tmp_path / "out.h5"
    controller.export()
    controller.cancel()
    background.deliver_all()
    assert form.said[-1][0].startswith("Cancelled. The layer keeps")
    assert form.states[-1] == "exporting"
    exports.finish()

    assert form.said[-1][0].startswith("Exported to")


def test_what_the_run_will_take_is_shown_while_it_runs(stage):
    controller, form, background = stage.controller, stage.form, stage.background
    controller.run()
    background.deliver(3)  # opened, the first batch, foretold
    assert form.forecasts[-1].startswith("80 patches, each voxel computed 4.27 times, about ")
    assert "of memory" in form.forecasts[-1]
    background.deliver_all()

    assert form.forecasts[-1] == ""


def with_output(stage, output, **changes) -> Request:
    request = replace(stage.form.request(), output=output, **changes)
    stage.form.ask_for(request)
    return request


def test_a_cancelled_run_with_an_output_goes_on_when_run_is_pressed_again(stage, volume, tmp_path):
    controller, form, viewer, background = stage
    request = with_output(stage, tmp_path / "out.h5")
    controller.run()
    background.deliver(15)
    controller.cancel()
    background.deliver_all()
    line, problem = form.said[-1]
    assert line.startswith("Cancelled. out.h5 keeps ")
    assert line.endswith(" of 80 patches. Run goes on with it.")
    assert not problem
    assert request.resume

    before = len(networks.calls)
    controller.run()
    background.deliver_all()
    assert "already done" in next(text for text in reversed(form.forecasts) if text)
    assert len(networks.calls) - before < 20
    assert form.said[-1] == (f"Done: 80 patches. Written to {tmp_path / 'out.h5'}.", False)
    assert not request.resume
    layer = viewer.layers["volume prediction [1]"]
    np.testing.assert_allclose(np.asarray(layer.data), 2 * volume, rtol=1e-6)


def test_a_run_with_other_settings_is_refused_with_the_difference(stage, tmp_path):
    controller, form, _, background = stage
    request = with_output(stage, tmp_path / "out.zarr")
    controller.run()
    background.deliver(15)
    controller.cancel()
    background.deliver_all()
    other = Plan(request.plan.image, CONFIG.model_copy(update={"blending": "bump"}))
    with_output(stage, tmp_path / "out.zarr", plan=other)
    controller.run()
    background.deliver_all()
    line, problem = form.said[-1]
    assert problem
    assert '"gaussian"' in line
    assert '"bump"' in line

    with_output(stage, tmp_path / "out.zarr", overwrite=True)
    controller.run()
    background.deliver_all()
    assert form.said[-1][0].startswith("Done: 80 patches. Written to")


def test_only_what_a_mask_touches_is_run(stage, volume):
    controller, form, viewer, background = stage
    mask = np.zeros(volume.shape, np.uint8)
    mask[:4, :10, :10] = 1
    layer = viewer.add_layer(Labels(mask, name="mask"))
    form.ask_for(replace(form.request(), mask=layer))
    controller.run()
    background.deliver_all()

    assert form.said[-1][0].startswith("Done: 80 patches, ")
    assert "of them skipped" in form.said[-1][0]
    data = np.asarray(viewer.layers["volume prediction"].data)
    np.testing.assert_allclose(data[:4, :10, :10], 2 * volume[:4, :10, :10], rtol=1e-6)
    assert (data[-1] == 0).all()


def test_a_series_is_predicted_at_its_time_points(stage, volume):
    controller, form, viewer, background = stage
    movie = np.stack([volume, 10 * volume, 100 * volume])[:, np.newaxis]
    image = viewer.add_layer(Image(movie, name="movie", scale=(1, 1, 3, 1, 1)))
    config = CONFIG.model_copy(update={"time_points": (0, 2)})
    form.ask_for(replace(form.request(), plan=Plan(image, config)))
    form.overlays = {"coverage"}
    controller.run()
    background.deliver_all()

    layer = viewer.layers["movie prediction"]
    data = np.asarray(layer.data)
    assert data.shape == movie.shape
    np.testing.assert_allclose(data[[0, 2]], 2 * movie[[0, 2]], rtol=1e-6)
    assert np.isnan(data[1]).all()
    np.testing.assert_allclose(layer.scale, (1, 1, 3, 1, 1))
    assert layer.metadata["napari-seamless"]["total"] == 160
    coverage = np.asarray(viewer.layers["coverage"].data)
    assert coverage[0].min() == 1 + coverage[1].max()


def test_a_coarser_level_is_predicted_where_it_lies(stage, volume):
    controller, form, viewer, background = stage
    pyramid = [np.repeat(np.repeat(volume, 2, 1), 2, 2), volume]
    image = viewer.add_layer(
        Image(pyramid, multiscale=True, name="pyramid", scale=(4, 1, 1), translate=(0, 5, 5))
    )
    form.ask_for(replace(form.request(), plan=Plan(image, CONFIG, level=1)))
    controller.run()
    background.deliver_all()

    layer = viewer.layers["pyramid prediction"]
    np.testing.assert_allclose(np.asarray(layer.data), 2 * volume, rtol=1e-6)
    np.testing.assert_allclose(layer.scale, (4, 2, 2))
    np.testing.assert_allclose(layer.translate, (0, 5.5, 5.5))


def test_a_patch_that_cannot_be_read_is_named_at_the_end(stage, volume):
    controller, form, viewer, background = stage

    class Damaged:
        shape, dtype, ndim = volume.shape, volume.dtype, 3

        def __getitem__(self, key):
            z = range(*key[0].indices(12)) if isinstance(key[0], slice) else [key[0]]
            if 0 in z and key[0] != slice(0, 1):
                raise OSError("chunk 0.0.0 is damaged")
            return volume[key]

        def __array__(self, dtype=None, copy=None):
            return volume

    image = viewer.add_layer(
        Image(Damaged(), name="damaged", multiscale=False, contrast_limits=(1, 2))
    )
    config = CONFIG.model_copy(update={"on_error": "continue"})
    form.ask_for(replace(form.request(), plan=Plan(image, config)))
    controller.run()
    background.deliver_all()

    line, problem = form.said[-1]
    assert problem
    assert line.startswith("Done: 80 patches.")
    assert "patch at (0, 0, 0) (Z, Y, X) is missing" in line
    assert "chunk 0.0.0 is damaged" in line
    assert "(and 15 more)" in line


def test_a_prediction_too_large_for_3d_is_not_read_there(stage, volume, monkeypatch):
    controller, form, viewer, background = stage
    monkeypatch.setattr("napari_seamless.gui.space.view.LARGEST_IN_3D", 1000)
    form.overlays = {"weights"}
    controller.showing.update()
    controller.run()
    background.deliver_all()
    layers = [viewer.layers["volume prediction"], viewer.layers["blending weights"]]
    viewer.dims.ndisplay = 3
    assert [layer._slice.image.raw.size for layer in layers] == [1, 1]
    assert "too large for 3-D" in form.said[-1][0]
    np.testing.assert_allclose(np.asarray(layers[0].data), 2 * volume, rtol=1e-6)

    viewer.dims.ndisplay = 2
    shown = viewer.dims.current_step[0]
    np.testing.assert_allclose(layers[0]._slice.image.raw, 2 * volume[shown], rtol=1e-6)


def test_overlays_and_inspector_are_about_the_new_run_though_the_last_one_is_selected(stage):
    controller, form, viewer, background = stage
    form.overlays = {"states"}
    controller.showing.update()
    controller.run()
    background.deliver_all()
    first = viewer.layers["volume prediction"]
    viewer.layers.selection.active = first
    shown = []
    controller.run_changed.connect(shown.append)
    controller.run()
    background.deliver(1)
    opened = controller.current
    background.deliver(2)
    running = controller.current
    background.deliver_all()

    assert opened is running is controller.current
    assert {id(view) for view in shown} == {id(opened)}
    assert controller.current.live.layer is viewer.layers["volume prediction [1]"]
    assert (np.asarray(viewer.layers["patch states"].data) == CellState.DONE).any()


def test_a_run_whose_layer_comes_up_is_shown_though_another_was_selected_before(stage):
    controller, _, viewer, background = stage
    controller.run()
    background.deliver_all()
    first = controller.current
    controller.run()
    background.deliver(1)
    viewer.layers.selection.active = None
    viewer.layers.selection.active = viewer.layers["volume prediction"]
    assert controller.current is first
    background.deliver(1)

    assert viewer.layers.selection.active is viewer.layers["volume prediction [1]"]
    assert controller.current.live is controller.live


def test_the_remark_on_disagreement_goes_with_its_overlay(stage):
    controller, form, _, background = stage
    controller.run()
    background.deliver(1)
    form.overlays = {"disagreement"}
    controller.showing.update()
    assert form.said[-1] == (NOT_SUMMED, True)
    assert "the next run will sum it" in NOT_SUMMED
    form.overlays = set()
    controller.showing.update()

    line, problem = form.said[-1]
    assert line.startswith("Running 80 patches")
    assert NOT_SUMMED not in line
    assert not problem


def test_switching_an_overlay_on_before_a_run_leaves_the_others(stage):
    controller, form, viewer, _ = stage
    form.overlays = {"grid", "states"}
    controller.showing.update()
    grid, states = viewer.layers["patch grid"], viewer.layers["patch states"]
    form.overlays = {"grid", "states", "coverage"}
    ask_for(form, form.request().plan.config.model_copy())  # the same settings
    controller.showing.update()
    assert viewer.layers["patch grid"] is grid
    assert viewer.layers["patch states"] is states

    ask_for(form, CONFIG.model_copy(update={"overlap": 0.25}))
    controller.plan_changed()
    assert viewer.layers["patch grid"] is not grid


def test_an_image_that_is_scaled_gets_its_overlays_anew(stage):
    controller, form, viewer, _ = stage
    form.overlays = {"coverage"}
    controller.showing.update()
    viewer.layers["volume"].scale = (7, 2, 2)
    controller.plan_changed()

    np.testing.assert_allclose(viewer.layers["coverage"].scale, (7, 2, 2))


def test_a_plan_that_changes_often_is_drawn_once_when_it_rests(stage, qtbot):
    controller, form, viewer, _ = stage
    form.overlays = {"grid"}
    controller.showing.update()
    grid, settled = viewer.layers["patch grid"], []
    controller.showing.plan_settled.connect(lambda: settled.append(viewer.layers["patch grid"]))
    for overlap in (0.0, 0.1, 0.25):
        ask_for(form, CONFIG.model_copy(update={"overlap": overlap}))
        controller.showing.plan_edited()
        assert viewer.layers["patch grid"] is grid
    qtbot.waitUntil(lambda: bool(settled), timeout=10_000)

    [after] = settled
    assert after is not grid


def test_a_plan_edited_before_closing_is_not_drawn(stage, qtbot):
    controller, form, viewer, _ = stage
    form.overlays = {"grid"}
    controller.showing.plan_edited()
    active = viewer.layers.selection.events.active
    before = len(active.callbacks) if hasattr(active, "callbacks") else len(active)
    controller.close()
    after = len(active.callbacks) if hasattr(active, "callbacks") else len(active)
    assert after == before - 1
    qtbot.wait(500)

    assert [layer.name for layer in viewer.layers] == ["volume"]


def test_selecting_a_result_brings_its_overlays_back_after_a_field_has_changed(stage):
    controller, form, viewer, background = stage
    form.overlays = {"states"}
    controller.run()
    background.deliver_all()
    viewer.layers.selection.active = viewer.layers["volume"]
    controller.plan_changed()
    states = np.asarray(viewer.layers["patch states"].data)
    assert set(np.unique(states)) == {CellState.WAITING}
    viewer.layers.selection.active = viewer.layers["volume prediction"]

    states = np.asarray(viewer.layers["patch states"].data)
    assert set(np.unique(states)) == {CellState.DONE}


@pytest.mark.parametrize("shape", [(40, 40), (2, 12, 40, 40), (2, 3, 12, 40, 40), (12, 30, 50)])
@pytest.mark.parametrize(
    "batches", [3, *(pytest.param(each, marks=pytest.mark.slow) for each in (0, 100))]
)
def test_overlays_go_when_the_image_gets_another_shape(stage, shape, batches):
    controller, form, viewer, background = stage
    form.overlays = {switch.name for switch in SWITCHES} - {"disagreement"}
    controller.showing.update()
    if batches:
        controller.run()
        background.deliver(batches)
    assert "patch grid" in viewer.layers
    viewer.layers["volume"].data = np.zeros(shape, np.float32)
    kept = [layer for layer in viewer.layers if OVERLAY_KEY in layer.metadata]
    for _ in range(2):
        viewer.dims.set_point(0, 1)
        viewer.dims.ndisplay = 5 - viewer.dims.ndisplay
        controller._view_moved()
    assert not kept

    if batches:
        background.deliver_all()
        assert form.said[-1][0].startswith("Done: 80 patches.")
    controller.plan_changed()
    assert viewer.layers["coverage"].data.shape[-2:] == shape[-2:]
