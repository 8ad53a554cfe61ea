"""The whole plugin in a real viewer on a (virtual) screen."""

import json
import threading

import numpy as np
import pytest
from qtpy.QtCore import QThreadPool

import napari_seamless as ns
import networks

PATCHES = 5 * 4 * 4  # (12, 40, 40) in patches of (4, 16, 16) at overlap 0.5
TOUCHING_A_PLANE = 2 * 4 * 4
FORETOLD = 3
"""So many batches are done when it is said what the run will take; events go on after that."""


def test_partial_planes_appear_before_the_end_and_hold_true_values(
    session_over, checkpoint_of, volume
):
    session = session_over(volume)
    session.choose(checkpoint_of(networks.Gated), networks.Gated)
    session.press("run_button")
    networks.let_through(5)
    session.wait_for_batches(5)

    plane = session.live._slice.image.raw  # what is on the screen
    seen = np.isfinite(plane)
    assert 0 < seen.sum() < seen.size
    shown = session.viewer.dims.current_step[0]
    np.testing.assert_allclose(plane[seen], 2 * volume[shown][seen], rtol=1e-6)
    assert session.facts["status"] == "running"
    assert (session.facts["done"], session.facts["total"]) == (5, PATCHES)

    networks.let_through(PATCHES)
    assert session.wait_for_end().startswith("Done")
    np.testing.assert_allclose(np.asarray(session.live.data), 2 * volume, rtol=1e-6)
    assert session.facts["status"] == "complete"
    assert session.facts["config"]["patch_size"] == [4, 16, 16]


def test_a_watched_plane_is_complete_long_before_the_volume(session_over, checkpoint_of, volume):
    session = session_over(volume)
    session.viewer.dims.set_current_step(0, 9)
    session.choose(checkpoint_of(networks.Gated), networks.Gated)
    session.press("run_button")
    # one batch may be under way before the first look at the screen
    networks.let_through(TOUCHING_A_PLANE + 1)
    session.wait_for_batches(TOUCHING_A_PLANE + 1)

    data = session.live.data
    np.testing.assert_allclose(data[9], 2 * volume[9], rtol=1e-6)
    assert np.isnan(data[1]).any()
    networks.let_through(PATCHES)
    session.wait_for_end()


def test_moving_the_slider_moves_the_focus(session_over, checkpoint_of, volume):
    session = session_over(volume)
    session.viewer.dims.set_current_step(0, 11)
    session.choose(checkpoint_of(networks.Gated), networks.Gated)
    session.press("run_button")
    networks.let_through(FORETOLD)
    session.wait_for_batches(2)
    session.viewer.dims.set_current_step(0, 1)
    session.qtbot.wait(200)  # the focus is moved at most every 50 ms
    networks.let_through(TOUCHING_A_PLANE)
    session.wait_for_batches(TOUCHING_A_PLANE + 2)

    np.testing.assert_allclose(session.live.data[1], 2 * volume[1], rtol=1e-6)
    networks.let_through(PATCHES)
    session.wait_for_end()


@pytest.mark.filterwarnings("default")  # an error filter hides that napari loses it
def test_a_network_that_raises_ends_with_the_form_enabled_and_one_line(
    session_over, checkpoint_of, volume
):
    session = session_over(volume)
    session.choose(checkpoint_of(networks.FailsLater), networks.FailsLater)
    session.press("run_button")
    line = session.wait_for_end()

    assert "can't allocate memory" in line
    assert "\n" not in line
    assert f"keeps 2 of {PATCHES} patches" in line
    assert session.status == line
    assert session.widget.run_button.enabled
    assert session.widget.patch_size.enabled
    assert not session.widget.cancel_button.enabled
    assert not session.widget.progress.visible
    assert session.facts["status"] == "failed"
    assert np.isfinite(np.asarray(session.live.data)).any()


def test_cancel_returns_within_one_batch_and_keeps_the_partial_layer(
    session_over, checkpoint_of, volume
):
    session = session_over(volume)
    session.choose(checkpoint_of(networks.Gated), networks.Gated)
    session.press("run_button")
    networks.let_through(3)
    session.wait_for_batches(3)
    session.press("cancel_button")
    networks.let_through(PATCHES)
    line = session.wait_for_end()

    assert len(networks.calls) <= 4  # three, and the one that may have been under way
    assert f"of {PATCHES} patches" in line
    assert session.facts["status"] == "partial"
    assert session.live in session.viewer.layers
    data = np.asarray(session.live.data)
    assert np.isnan(data).any()
    np.testing.assert_allclose(data[np.isfinite(data)], 2 * volume[np.isfinite(data)], rtol=1e-6)
    assert session.widget.run_button.enabled


@pytest.mark.parametrize("paused", [False, True])
def test_closing_the_viewer_during_a_run_leaves_no_thread(
    session_over, checkpoint_of, volume, paused
):
    session = session_over(volume)
    before = {thread.ident for thread in threading.enumerate()}
    session.choose(checkpoint_of(networks.Gated), networks.Gated)
    session.press("run_button")
    networks.let_through(FORETOLD)
    session.wait_for_batches(2)
    if paused:
        session.press("pause_button")
    session.viewer.close()
    networks.let_through(PATCHES)

    assert QThreadPool.globalInstance().waitForDone(10_000)
    assert len(networks.calls) <= 4
    left = {thread.name for thread in threading.enumerate() if thread.ident not in before}
    assert not [name for name in left if "seamless" in name.lower()]


def test_closing_the_dock_ends_its_run(session_over, checkpoint_of, volume):
    session = session_over(volume)
    session.choose(checkpoint_of(networks.Gated), networks.Gated)
    session.press("run_button")
    networks.let_through(FORETOLD)
    session.wait_for_batches(2)
    layer = session.live
    session.viewer.window.remove_dock_widget(session.widget.native)
    networks.let_through(PATCHES)

    assert QThreadPool.globalInstance().waitForDone(10_000)
    assert len(networks.calls) <= 4
    assert layer.metadata["napari-seamless"]["status"] == "partial"


def test_pause_holds_the_run_and_continue_lets_it_go_on(session_over, checkpoint_of, volume):
    session = session_over(volume)
    session.choose(checkpoint_of(networks.Gated), networks.Gated)
    session.press("run_button")
    networks.let_through(FORETOLD)
    session.wait_for_batches(2)
    session.press("pause_button")
    networks.let_through(PATCHES)
    session.qtbot.wait(300)
    held = len(networks.calls)

    assert held <= FORETOLD + 1
    assert session.widget.pause_button.text == "Continue"
    assert session.status.startswith("Paused")
    session.press("pause_button")
    assert session.wait_for_end().startswith("Done")
    assert len(networks.calls) == PATCHES


def test_overlays_before_during_and_after_a_run_never_disturb_it(
    session_over, checkpoint_of, volume
):
    session = session_over(volume, scale=(4, 1, 1))
    session.choose(checkpoint_of(networks.Ramp), networks.Ramp)
    config = ns.InferenceConfig(patch_size=(4, 16, 16), device="cpu")
    expected = ns.predict(volume, networks.Ramp(), config, progress=False).array[0]
    networks.calls.clear()
    boxes = ("show_weights", "show_coverage", "show_grid")

    def switch(on: bool) -> None:
        for box in boxes:
            getattr(session.widget, box).value = on

    switch(True)
    planned = session.viewer.layers["coverage"].data
    assert planned[0].min() >= 1  # the whole plan, before anything ran
    session.press("run_button")
    session.wait_for_batches(3)
    switch(False)
    switch(True)
    assert session.wait_for_end().startswith("Done")

    assert len(networks.calls) == PATCHES
    np.testing.assert_allclose(np.asarray(session.live.data), expected, rtol=1e-6)
    layers = session.viewer.layers
    with ns.InferenceRun(volume, networks.Doubled(), config) as run:
        for _ in run:
            pass
        np.testing.assert_array_equal(layers["blending weights"].data[5], run.weights[0][5])
        np.testing.assert_array_equal(layers["coverage"].data[5], run.coverage[0][5])
    np.testing.assert_allclose(layers["blending weights"].scale, (4, 1, 1))
    np.testing.assert_allclose(layers["patch grid"].scale, (4, 1, 1))
    switch(False)
    assert {layer.name for layer in layers} == {"volume", "volume prediction"}


def test_removing_an_overlay_layer_switches_it_off(session_over, checkpoint_of, volume):
    session = session_over(volume)
    session.widget.show_grid.value = True
    session.viewer.layers.remove("patch grid")

    assert not session.widget.show_grid.value


def test_removing_the_live_layer_ends_its_run(session_over, checkpoint_of, volume):
    session = session_over(volume)
    session.choose(checkpoint_of(networks.Gated), networks.Gated)
    session.press("run_button")
    networks.let_through(FORETOLD)
    session.wait_for_batches(2)
    session.viewer.layers.remove(session.live)
    networks.let_through(PATCHES)
    session.wait_for_end()

    assert len(networks.calls) <= 4
    assert session.widget.run_button.enabled
    assert [layer.name for layer in session.viewer.layers] == ["volume"]  # it does not come back
    assert "keeps" not in session.status


def test_the_same_numbers_as_python(session_over, checkpoint_of, volume):
    session = session_over(volume)
    session.choose(
        checkpoint_of(networks.Ramp), networks.Ramp, batch_size=3, blending="bump", overlap=0.25
    )
    session.press("run_button")
    session.wait_for_end()
    config = ns.InferenceConfig(
        patch_size=(4, 16, 16), overlap=0.25, blending="bump", batch_size=3, device="cpu"
    )
    expected = ns.predict(volume, networks.Ramp(), config, progress=False).array[0]

    np.testing.assert_allclose(np.asarray(session.live.data), expected, rtol=1e-6)


def test_the_viewer_shows_three_dimensions(session_over, checkpoint_of, volume):
    session = session_over(volume)
    session.viewer.dims.ndisplay = 3
    session.widget.show_grid.value = True
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled, batch_size=8)
    session.press("run_button")

    assert session.wait_for_end().startswith("Done")
    np.testing.assert_allclose(np.asarray(session.live.data), 2 * volume, rtol=1e-6)


def test_export_writes_the_partial_layer_marked_as_partial(
    session_over, checkpoint_of, volume, tmp_path, monkeypatch
):
    import h5py
    from qtpy.QtWidgets import QFileDialog

    target = tmp_path / "partial.h5"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *args: (str(target), ""))
    geometry = {"scale": (50, 4.6, 4.6), "units": ("nm", "nm", "nm"), "shear": (0, 0, 0.5)}
    session = session_over(volume, **geometry)
    session.choose(checkpoint_of(networks.Gated), networks.Gated)
    session.press("run_button")
    networks.let_through(4)
    session.wait_for_batches(4)
    session.press("cancel_button")
    networks.let_through(1)
    session.wait_for_end()
    session.press("export_button")
    session.wait_for(lambda: session.status.startswith("Exported"))

    with h5py.File(target) as file:
        assert file["main"].attrs["status"] == "partial"
        np.testing.assert_array_equal(file["main"][0], np.asarray(session.live.data))
        assert json.loads(file["main"].attrs["scale"]) == [50, 4.6, 4.6]
        assert json.loads(file["main"].attrs["shear"]) == [[1, 0, 0], [0, 1, 0.5], [0, 0, 1]]
        assert json.loads(file["main"].attrs["units"]) == ["nanometer"] * 3
        assert len(file["main"].attrs["checkpoint_sha256"]) == 64


def test_export_without_a_prediction_says_so(session_over, volume):
    session = session_over(volume)
    session.press("export_button")

    assert "no prediction to export" in session.status


def test_scores_against_a_labels_layer_are_shown(session_over, checkpoint_of, volume):
    session = session_over(volume)
    truth = session.viewer.add_labels((volume > 1.25).astype(int), name="truth")
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
    assert session.widget.scores.native.isHidden()
    session.widget.truth.value = truth
    with session.qtbot.waitSignal(session.widget.controller.scored, timeout=15_000):
        session.press("run_button")

    assert not session.widget.scores.native.isHidden()
    share = np.mean(volume > 1.25)  # everything is predicted above 0.5
    assert f"<td>precision</td><td style='padding-left: 24px'>{share:.3f}</td>" in (
        session.widget.scores.value
    )
    session.widget.truth.value = None
    assert session.widget.scores.native.isHidden()


def test_labels_that_a_run_makes_are_a_layer_at_its_end(session_over, checkpoint_of, volume):
    session = session_over(volume, scale=(40, 8, 8))
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled, labelling="threshold")
    session.widget.threshold.value = 3.0
    session.viewer.layers["volume"].translate = (1, 2, 3)
    session.press("run_button")
    assert session.wait_for_end().startswith("Done")

    labels = session.viewer.layers["volume prediction labels"]
    assert session.viewer.layers.selection == {session.live}
    np.testing.assert_array_equal(np.asarray(labels.data), 2 * volume > 3)
    np.testing.assert_array_equal(labels.scale, (40, 8, 8))
    np.testing.assert_array_equal(labels.translate, (1, 2, 3))
    assert labels.data.dtype == np.uint8
    assert not labels.editable


def test_without_labels_there_is_no_such_layer(session_over, checkpoint_of, volume):
    session = session_over(volume)
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
    session.press("run_button")
    session.wait_for_end()

    assert [layer.name for layer in session.viewer.layers] == ["volume", "volume prediction"]
