"""Runs that wait for one another, through the controller."""

from dataclasses import replace

import numpy as np
import pytest
from napari.layers import Image

import networks
from gui_fakes import CONFIG, staged
from napari_seamless.engine.errors import ConfigError
from napari_seamless.gui.checkpoint.opening import Choice
from napari_seamless.gui.runs.naming import name_of
from napari_seamless.gui.runs.request import Plan
from napari_seamless.gui.runs.worker import Ended

pytestmark = pytest.mark.usefixtures("qapp")  # the throttles need Qt's timers


@pytest.fixture
def stage(checkpoint_of, volume):
    """A controller, its form, viewer and background."""
    yield from staged(checkpoint_of, volume)


def with_settings(request, **settings):
    """Return a request with other settings."""
    config = request.plan.config.model_copy(update=settings)
    return replace(request, plan=replace(request.plan, config=config))


def status_of(layer) -> str:
    return layer.metadata["napari-seamless"]["status"]


def test_each_starts_when_the_one_before_has_ended_and_their_layers_stay(stage, volume):
    controller, form, viewer, background = stage
    first = form.request()
    controller.run()
    form.ask_for(with_settings(first, overlap=0.25))
    controller.run()
    form.ask_for(with_settings(first, overlap=0.25, blending="bump"))
    controller.run()
    assert [job.name for job in controller.queue] == [
        "volume prediction, overlap 0.25",
        "volume prediction, overlap 0.25, blending bump",
    ]
    assert len(background.streams) == 1

    for run in range(3):
        assert len(background.streams) == run + 1
        background.deliver_all(run)
    assert not controller.queue
    assert not controller.is_busy
    names = [
        "volume prediction",
        "volume prediction, overlap 0.25",
        "volume prediction, overlap 0.25, blending bump",
    ]
    assert [layer.name for layer in viewer.layers] == ["volume", *names]
    for name in names:
        assert status_of(viewer.layers[name]) == "complete"
        np.testing.assert_allclose(np.asarray(viewer.layers[name].data), 2 * volume, rtol=1e-6)
    config = viewer.layers[names[1]].metadata["napari-seamless"]["config"]
    assert config["overlap"] == 0.25


def test_it_is_said_which_of_how_many_is_on(stage):
    controller, form, background = stage.controller, stage.form, stage.background
    first = form.request()
    form.ask_for(first, with_settings(first, overlap=0.25), with_settings(first, overlap=0))
    controller.run()
    background.deliver(2)
    assert form.said[-1][0].startswith("1 of 3: ")
    background.deliver_all()
    assert form.said[-1][0] == "2 of 3: Opening Doubled.pt …"
    controller.drop(0)
    background.deliver_all()
    assert form.said[-1][0].startswith("2 of 2: Done: ")

    controller.run()
    controller.drop(1)
    controller.drop(0)
    background.deliver_all()
    assert form.said[-1][0] == "Done: 80 patches. Export writes the layer to a file."


def test_a_waiting_run_can_be_dropped_and_the_signal_tells(stage):
    controller, form, background = stage.controller, stage.form, stage.background
    changes = []
    controller.queue_changed.connect(lambda: changes.append([job.name for job in controller.queue]))
    first = form.request()
    form.ask_for(first, with_settings(first, overlap=0.25), with_settings(first, overlap=0))
    controller.run()
    controller.drop(0)
    assert changes[-1] == ["volume prediction, overlap 0"]
    controller.drop(7)  # is not there any more
    background.deliver_all()
    background.deliver_all()

    assert changes[-1] == []
    assert len(background.streams) == 2


def test_cancel_ends_the_present_run_only(stage):
    controller, form, viewer, background = stage
    first = form.request()
    form.ask_for(first, with_settings(first, overlap=0.25))
    controller.run()
    background.deliver(4)
    controller.cancel()
    background.deliver_all(0)
    assert controller.is_busy
    background.deliver_all(1)

    assert status_of(viewer.layers["volume prediction"]) == "partial"
    assert status_of(viewer.layers["volume prediction, overlap 0.25"]) == "complete"


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (networks.Exits, "the network ended the program (SystemExit: 3) on a batch"),
        (networks.Interrupts, "KeyboardInterrupt ended what was going on"),
    ],
)
def test_a_network_that_would_end_the_program_fails_its_run_only(
    stage, checkpoint_of, network, said
):
    controller, form, background = stage.controller, stage.form, stage.background
    first = form.request()
    choice = Choice(checkpoint_of(network), f"networks:{network.__name__}")
    form.ask_for(replace(first, choice=choice), first)
    controller.run()
    background.deliver_all()
    line, problem = form.said[-2]
    assert problem
    assert line.startswith(f"1 of 2: Failed: {said}")
    assert line.endswith(". The layer keeps 8 of 80 patches.")
    assert "\n" not in line
    networks.reset()
    background.deliver_all()

    assert form.said[-1][0].startswith("2 of 2: Done: 80 patches.")


def test_the_last_line_says_that_memory_was_enough_for_smaller_batches_only(stage, checkpoint_of):
    form, background = stage.form, stage.background
    choice = Choice(checkpoint_of(networks.LittleMemory), "networks:LittleMemory")
    form.ask_for(replace(form.request(), choice=choice))
    stage.controller.run()
    background.deliver_all()
    fewer = "Memory was enough for 2 patches at a time, not for batches of 4."
    export = "Export writes the layer to a file."
    assert form.said[-1] == (f"Done: 80 patches. {export} {fewer}", False)

    stage.controller.run()
    background.deliver(3)
    stage.controller.cancel()
    background.deliver_all()
    assert form.said[-1] == (f"Cancelled. The layer keeps 8 of 80 patches. {fewer}", False)


def test_a_failed_run_does_not_stop_the_queue_and_is_told_at_the_end(stage, checkpoint_of):
    controller, form, viewer, background = stage
    first = form.request()
    failing = replace(
        first, choice=Choice(checkpoint_of(networks.FailsLater), "networks:FailsLater")
    )
    form.ask_for(failing, first)
    controller.run()
    background.deliver_all()
    assert form.said[-2][0].startswith("1 of 2: Failed: ")
    networks.reset()
    background.deliver_all()

    text, problem = form.said[-1]
    last, earlier = text.split("\n")
    assert last.startswith("2 of 2: Done: 80 patches.")
    assert earlier.startswith("volume prediction: Failed: ")
    assert problem
    assert status_of(viewer.layers["volume prediction, Doubled"]) == "complete"


def test_one_that_cannot_even_be_opened_does_not_stop_the_queue(stage, tmp_path):
    controller, form, background = stage.controller, stage.form, stage.background
    first = form.request()
    form.ask_for(replace(first, choice=Choice(tmp_path / "gone.pt")), first)
    controller.run()
    background.deliver_all()
    background.deliver_all()

    assert form.said[-1][0].startswith("2 of 2: Done: 80 patches.")
    assert "gone.pt" in form.said[-1][0]


def test_several_images_are_run_one_after_the_other(stage, volume):
    controller, form, viewer, background = stage
    other = viewer.add_layer(Image(3 * volume, name="other"))
    first = form.request()
    form.ask_for(first, replace(first, plan=Plan(other, CONFIG)))
    controller.run()
    background.deliver_all()
    background.deliver_all()

    np.testing.assert_allclose(
        np.asarray(viewer.layers["other prediction"].data), 6 * volume, rtol=1e-6
    )
    assert viewer.layers["other prediction"].scale[0] == 1
    assert form.started == 1


def test_what_waits_is_frozen_when_it_is_asked_for(stage, volume):
    controller, form, viewer, background = stage
    controller.run()
    controller.run()
    form.refusal = ConfigError("overlap 2 is not usable")
    image = viewer.layers["volume"]
    image.data = np.zeros_like(volume)
    viewer.layers.remove(image)
    background.deliver_all()
    background.deliver_all()

    data = np.asarray(viewer.layers["volume prediction [1]"].data)
    np.testing.assert_allclose(data, 2 * volume, rtol=1e-6)


def test_equal_runs_have_names_that_differ_and_their_layers_the_same(stage):
    controller, form, viewer, background = stage
    first = form.request()
    form.ask_for(first, first)
    controller.run()
    controller.run()
    names = ["volume prediction", *(f"volume prediction [{count}]" for count in (1, 2, 3))]
    assert [job.name for job in controller.queue] == names[1:]
    background.deliver_all()
    assert form.said[-1][0].startswith("2 of 4: ")
    controller.drop(0)
    for _ in range(2):
        background.deliver_all()
    assert [layer.name for layer in viewer.layers] == ["volume", *names[:2], names[3]]

    form.ask_for(first)
    controller.run()
    background.deliver_all()
    assert [layer.name for layer in viewer.layers][-1] == names[2]


def test_two_runs_do_not_write_the_same_file(stage, tmp_path):
    controller, form, background = stage.controller, stage.form, stage.background
    form.ask_for(replace(form.request(), output=tmp_path / "out.zarr"))
    controller.run()
    controller.run()

    assert not controller.queue
    text, problem = form.said[-1]
    assert problem
    assert text == "out.zarr is what another run writes; choose another name, or wait for it"
    background.deliver(2)
    assert form.said[-1][0].endswith(text)  # the run's progress does not hide it at once
    background.deliver_all()
    assert form.said[-1] == (f"Done: 80 patches. Written to {tmp_path / 'out.zarr'}.", False)


def test_deleting_the_layer_of_a_run_starts_the_next_one(stage):
    controller, form, viewer, background = stage
    first = form.request()
    form.ask_for(first, with_settings(first, overlap=0.25))
    controller.run()
    background.deliver(2)
    viewer.layers.remove("volume prediction")
    background.deliver_all(0)
    background.deliver_all(1)

    assert [layer.name for layer in viewer.layers] == ["volume", "volume prediction, overlap 0.25"]


def test_closing_drops_what_waits(stage):
    controller, background = stage.controller, stage.background
    controller.run()
    controller.run()
    controller.close()
    background.deliver_all()

    assert len(background.streams) == 1
    assert not controller.queue


def test_pause_holds_its_run_only(stage):
    controller, form, background = stage.controller, stage.form, stage.background
    controller.run()
    background.deliver(2)
    controller.run()
    controller.toggle_pause()
    assert form.states[-1] == "paused"
    assert form.said[-1][0] == "1 of 2: Paused"
    controller.cancel()
    background.deliver_all(0)
    background.deliver(2, run=1)
    assert form.states[-1] == "running"
    background.deliver_all(1)

    assert form.said[-1][0].startswith("2 of 2: Done")


def test_a_run_kept_partial_is_gone_on_with_behind_another(stage, tmp_path, volume):
    controller, form, viewer, background = stage
    first = form.request()
    kept = replace(first, output=tmp_path / "out.h5")
    form.ask_for(kept)
    controller.run()
    background.deliver(15)
    controller.cancel()
    background.deliver_all()
    form.ask_for(with_settings(first, overlap=0.25), kept)
    controller.run()
    background.deliver_all()
    before = len(networks.calls)
    background.deliver_all()

    assert 0 < len(networks.calls) - before < 20
    assert form.said[-1][0] == f"2 of 2: Done: 80 patches. Written to {tmp_path / 'out.h5'}."
    data = np.asarray(viewer.layers["volume prediction, overlap 0.5"].data)
    np.testing.assert_allclose(data, 2 * volume, rtol=1e-6)


def test_another_selected_prediction_is_the_one_that_overlays_are_about(stage):
    controller, form, viewer, background = stage
    shown = []
    controller.run_changed.connect(shown.append)
    first = form.request()
    form.ask_for(first, with_settings(first, overlap=0.25))
    controller.run()
    background.deliver_all()
    background.deliver_all()
    assert controller.current is shown[1]
    assert controller.current.run.plan.config.overlap == 0.25
    viewer.layers.selection.active = viewer.layers["volume prediction"]
    assert controller.current is shown[0] is shown[2]
    assert controller.current.run.plan.config.overlap == 0.5
    assert controller.live.layer.name == "volume prediction, overlap 0.25"
    viewer.layers.remove("volume prediction")

    assert controller.current is None
    assert shown[3] is None


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "volume prediction"),
        ({"batch_size": 8}, "volume prediction, batch size 8"),
        ({"patch_size": (8, 16, 16)}, "volume prediction, patch size 8x16x16"),
        ({"region": ((0, 4), (0, 9), (8, 9))}, "volume prediction [0:4, 0:9, 8]"),
        ({"do_eval": False}, "volume prediction, do eval off"),
        (
            {"overlap": 0.25, "blending": "bump", "tta": "flip", "spread": True},
            "volume prediction, overlap 0.25, blending bump, tta flip, …",
        ),
    ],
)
def test_a_name_says_what_differs(stage, changes, name):
    first = stage.form.request()
    assert name_of(with_settings(first, **changes), [first]) == name


def test_names_tell_other_images_checkpoints_levels_and_masks_apart(stage, tmp_path, volume):
    first, viewer = stage.form.request(), stage.viewer
    other = replace(first, choice=replace(first.choice, path=tmp_path / "net2.pt"))
    assert name_of(other, [first]) == "volume prediction, net2"
    image = viewer.add_layer(Image(volume, name="second"))
    assert name_of(replace(other, plan=replace(first.plan, image=image)), [first]) == (
        "second prediction"
    )
    coarse = replace(first, plan=replace(first.plan, level=1), mask=image)
    assert name_of(coarse, [first]) == "volume prediction, level 1, in second"
    assert name_of(first, [coarse]) == "volume prediction, level 0, no mask"


def test_an_error_of_a_worker_that_is_none_of_ours_starts_the_next_one(stage):
    controller, background = stage.controller, stage.background
    controller.run()
    controller.run()
    _, receive = background.streams[0]
    receive(Ended(ZeroDivisionError("division by zero")))
    assert len(background.streams) == 2
    background.deliver_all(1)
    assert not controller.is_busy
