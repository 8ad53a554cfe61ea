"""What is looked at: focus, preview, and what is redrawn; through the controller."""

from dataclasses import replace

import numpy as np
import pytest
from napari.layers import Image

import networks
from gui_fakes import CONFIG, staged
from napari_seamless.engine.box import Box
from napari_seamless.gui.runs.request import Plan
from napari_seamless.gui.runs.run_view import looked_at

pytestmark = pytest.mark.usefixtures("qapp")  # the throttles need Qt's timers

TOUCHING_A_PLANE = 2 * 4 * 4


@pytest.fixture
def stage(checkpoint_of, volume):
    """A controller, its form, viewer and background; patches are predicted one by one."""
    for stage in staged(checkpoint_of, volume):
        ask_for(stage, batch_size=1)
        yield stage


def ask_for(stage, **settings):
    first = stage.form.request()
    config = CONFIG.model_copy(update=settings)
    stage.form.ask_for(replace(first, plan=replace(first.plan, config=config)))


def predicted(stage) -> np.ndarray:
    """Return where there is a prediction, (12, 40, 40)."""
    return np.isfinite(np.asarray(stage.controller.live.volume)[0])


def deliver_patches(stage, count):
    stage.background.deliver(2 + count)  # opened, and foretold after the first


def moved(stage, qtbot, **dims):
    """Move the slider and let the throttles tell."""
    stage.viewer.dims.set_current_step(0, dims["z"])
    qtbot.wait(120)


def test_a_run_begins_with_what_is_looked_at(stage):
    stage.viewer.dims.set_current_step(0, 9)
    stage.controller.run()
    deliver_patches(stage, TOUCHING_A_PLANE)

    assert predicted(stage)[9].all()
    assert not predicted(stage)[1].any()


def test_without_following_the_order_is_raster_order(stage, qtbot):
    stage.viewer.dims.set_current_step(0, 9)
    stage.controller.set_follow(False)
    stage.controller.run()
    deliver_patches(stage, 16)
    assert predicted(stage)[:4].all()
    moved(stage, qtbot, z=10)
    stage.background.deliver(4)

    assert not predicted(stage)[10].any()


def test_following_can_be_left_and_taken_up_during_a_run(stage, qtbot):
    stage.viewer.dims.set_current_step(0, 11)
    stage.controller.run()
    deliver_patches(stage, 2)
    stage.controller.set_follow(False)
    moved(stage, qtbot, z=0)
    stage.background.deliver(10)
    assert not predicted(stage)[0].any()  # the focus has stayed where it was
    assert predicted(stage)[11].any()
    stage.controller.set_follow(True)
    stage.background.deliver(16)

    assert predicted(stage)[0].all()


def test_a_preview_predicts_what_is_shown_and_waits(stage, qtbot):
    controller, form, viewer, background = stage
    told = []
    controller.preview_changed.connect(told.append)
    viewer.dims.set_current_step(0, 0)
    controller.set_preview(True)
    controller.run()
    deliver_patches(stage, 10)
    qtbot.wait(150)
    assert form.said[-1] == ("Previewing: 10 of 16 patches of what is shown", False)
    background.deliver(6)
    qtbot.wait(150)
    assert form.said[-1] == (
        "Previewing: 16 patches of what is shown, move to see more",
        False,
    )
    assert predicted(stage)[:4].all()
    assert not predicted(stage)[4:].any()  # the first patches reach to plane 4
    assert len(networks.calls) == 16

    moved(stage, qtbot, z=9)
    assert form.said[-1] == ("Previewing: 0 of 32 patches of what is shown", False)
    background.deliver(TOUCHING_A_PLANE)
    qtbot.wait(150)
    assert form.said[-1][0].startswith("Previewing: 32 patches of what is shown, move")
    assert predicted(stage)[9].all()

    controller.set_preview(False)
    background.deliver_all()
    assert form.said[-1][0].startswith("Done: 80 patches.")
    assert told == [True, False]


def test_a_preview_that_waits_can_be_cancelled(stage):
    stage.viewer.dims.set_current_step(0, 0)
    stage.controller.set_preview(True)
    stage.controller.run()
    deliver_patches(stage, 16)
    stage.controller.cancel()
    stage.background.deliver_all()

    assert stage.form.said[-1] == ("Cancelled. The layer keeps 16 of 80 patches.", False)


def test_a_preview_goes_on_with_the_next_run(stage):
    first = stage.form.request()
    stage.viewer.dims.set_current_step(0, 0)
    stage.controller.set_preview(True)
    stage.form.ask_for(first, first)
    stage.controller.run()
    deliver_patches(stage, 16)
    stage.controller.cancel()
    stage.background.deliver_all(0)
    deliver_patches(stage, 16)

    assert predicted(stage)[:4].all()
    assert not predicted(stage)[4:].any()


def test_it_is_said_that_a_run_behind_a_preview_waits_for_its_end(stage, qtbot):
    controller, form, viewer, background = stage
    waits = "The next run starts when Preview is off"
    viewer.dims.set_current_step(0, 0)
    controller.set_preview(True)
    controller.run()
    deliver_patches(stage, 16)
    qtbot.wait(150)
    shown = "Previewing: 16 patches of what is shown, move to see more"
    assert form.said[-1][0] == shown
    controller.run()
    assert form.said[-1][0] == f"1 of 2: {shown}\n{waits}"
    controller.drop(0)
    assert form.said[-1][0] == shown

    controller.run()
    controller.cancel()
    assert form.said[-1][0] == "1 of 2: Cancelling …"
    background.deliver_all()
    deliver_patches(stage, 1)
    controller.run()
    assert form.said[-1][0].endswith(waits)
    controller.set_preview(False)
    assert waits not in form.said[-1][0]


def test_an_overlay_a_layer_or_a_setting_that_changes_leaves_the_run_alone(stage, volume):
    controller, form, viewer, background = stage
    image = viewer.layers["volume"]
    controller.run()
    deliver_patches(stage, 3)
    ask_for(stage, overlap=0.25, blending="bump")
    controller.plan_changed()
    image.data = np.zeros((3, 4, 5), np.float32)
    image.name = "renamed"
    viewer.add_layer(Image(volume, name="another"))
    viewer.layers.remove(image)
    background.deliver_all()

    layer = viewer.layers["volume prediction"]
    np.testing.assert_allclose(np.asarray(layer.data), 2 * volume, rtol=1e-6)
    assert layer.metadata["napari-seamless"]["config"]["overlap"] == 0.5
    assert form.said[-1][0].startswith("Done: 80 patches.")


def test_the_time_point_on_the_screen_is_the_volume_that_is_looked_at(stage, volume, qtbot):
    controller, form, viewer, background = stage
    movie = np.stack([volume, 10 * volume, 100 * volume])[:, np.newaxis]
    image = viewer.add_layer(Image(movie, name="movie"))
    config = CONFIG.model_copy(update={"time_points": (0, 2), "batch_size": 1})
    form.ask_for(replace(form.request(), plan=Plan(image, config)))
    viewer.dims.set_current_step(0, 2)
    controller.run()
    background.deliver(1)
    assert looked_at(viewer, controller.current.plan)[1] == 1
    viewer.dims.set_current_step(0, 0)
    assert looked_at(viewer, controller.current.plan)[1] == 0
    viewer.dims.set_current_step(0, 1)  # is not predicted
    assert looked_at(viewer, controller.current.plan)[1] == 0


def test_a_preview_follows_the_time_point(stage, volume, qtbot):
    controller, form, viewer, background = stage
    movie = np.stack([volume, 10 * volume, 100 * volume])[:, np.newaxis]
    image = viewer.add_layer(Image(movie, name="movie"))
    config = CONFIG.model_copy(update={"time_points": (0, 2), "batch_size": 1})
    form.ask_for(replace(form.request(), plan=Plan(image, config)))
    viewer.dims.point = (2, 0, 0, 0, 0)
    controller.set_preview(True)
    controller.run()
    deliver_patches(stage, 16)
    qtbot.wait(150)
    assert form.said[-1][0].startswith("Previewing: 16 patches of what is shown, move")
    shown = np.isfinite(np.asarray(controller.live.volume)[:, 0])
    assert shown[2, :4].all()
    assert not shown[0].any()
    viewer.dims.point = (0, 0, 0, 0, 0)
    qtbot.wait(150)
    background.deliver(16)

    shown = np.isfinite(np.asarray(controller.live.volume)[:, 0])
    assert shown[0, :4].all()
    assert not shown[:, 4:].any()
    controller.cancel()
    background.deliver_all()
    assert form.said[-1][0] == "Cancelled. The layer keeps 32 of 160 patches."


class Counted:
    """Counts how often a layer is drawn again."""

    def __init__(self, layer) -> None:
        self.count = 0
        layer.events.set_data.connect(self._drawn)

    def _drawn(self, event) -> None:
        self.count += 1


def test_a_patch_that_misses_what_is_shown_is_not_drawn(stage, qtbot):
    stage.viewer.dims.set_current_step(0, 0)
    stage.controller.run()
    deliver_patches(stage, 1)
    live = stage.controller.live
    qtbot.wait(250)  # until the throttle rests
    drawn = Counted(live.layer)
    live.mark(Box((1, 0, 0), (4, 40, 40)))
    qtbot.wait(250)
    assert drawn.count == 0

    stage.viewer.dims.set_current_step(0, 6)
    qtbot.wait(250)
    drawn.count = 0
    for start in (0, 0, 8):  # the last two, on both sides of the plane, wait for each other
        live.mark(Box((start, 0, 0), (start + 4, 40, 40)))
    qtbot.wait(250)
    assert drawn.count == 0
    live.mark(Box((6, 0, 0), (7, 1, 1)))
    qtbot.wait(250)
    assert drawn.count == 1


def test_a_layer_is_drawn_ten_times_a_second_at_most(stage, qtbot, monkeypatch):
    stage.viewer.dims.set_current_step(0, 0)
    stage.controller.run()
    deliver_patches(stage, 1)
    live = stage.controller.live
    drawn = Counted(live.layer)
    qtbot.wait(250)
    drawn.count = 0
    import time

    began = time.monotonic()
    while time.monotonic() - began < 1:
        live.mark(Box((0, 0, 0), (4, 40, 40)))
        qtbot.wait(1)
    taken = time.monotonic() - began

    assert 2 <= drawn.count <= 1 + taken / 0.1
