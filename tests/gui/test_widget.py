"""The form: what it refuses while one types, and how layers of other kinds fare."""

import subprocess
import sys

import numpy as np
import pytest

import networks

CONTRACT = [
    *("image", "checkpoint", "patch_size", "overlap", "blending", "batch_size", "device"),
    *("activation", "normalization", "tta", "show_weights", "show_coverage", "show_grid"),
    *("run_button", "pause_button", "cancel_button", "export_button"),
]
OTHERS = [
    *("output", "start_anew", "output_dtype", "labelling", "threshold", "fill_value"),
    *("output_scale", "memory", "cluster", "workers", "scheduler", "mask", "level", "scope"),
    *("scope_shapes", "region", "time_points", "skip_constant", "padding", "on_error", "halo"),
    *("grid", "head", "planes", "disagreement", "truth", "follow_view", "preview", "status"),
]
NAMES = [*CONTRACT, *OTHERS]


@pytest.fixture
def ready(session_over, checkpoint_of, volume):
    """A session whose form can be run."""
    session = session_over(volume)
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
    session.wait_for(lambda: session.status == "Ready")
    return session


def test_every_field_is_found_by_its_name(session_over, volume):
    widget = session_over(volume).widget

    assert [getattr(widget, name).name for name in NAMES] == NAMES
    assert [widget[name].name for name in NAMES] == NAMES
    with pytest.raises(AttributeError):
        widget.no_such_field  # noqa: B018


def test_the_form_says_what_is_missing_as_one_types(session_over, checkpoint_of, volume, tmp_path):
    session = session_over(volume)
    assert "Choose a checkpoint" in session.status
    assert not session.widget.run_button.enabled

    session.widget.checkpoint.value = tmp_path / "absent.pt"
    session.wait_for(lambda: "no such checkpoint" in session.status)
    assert "absent.pt" in session.status
    assert not session.widget.run_button.enabled
    web_page = tmp_path / "page.pt"
    web_page.write_text("<!DOCTYPE html><html></html>")
    session.widget.checkpoint.value = web_page
    session.wait_for(lambda: "web page" in session.status)
    assert not session.widget.architecture.visible

    session.widget.checkpoint.value = checkpoint_of(networks.Doubled)
    assert session.status == "Reading Doubled.pt …"
    assert session.widget.architecture.visible
    session.wait_for(lambda: "give architecture" in session.status)
    session.widget.architecture.value = "networks:Doubled"
    session.widget.arguments.value = "{oops"
    assert "not JSON" in session.status
    session.widget.arguments.value = "{}"
    session.wait_for(lambda: session.status == "Ready")
    assert session.widget.run_button.enabled


def test_labels_of_another_shape_are_refused_before_the_run(session_over, checkpoint_of, volume):
    session = session_over(volume)
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
    other = session.viewer.add_labels(np.ones((3, 4, 5), int), name="other")
    session.widget.truth.value = other

    assert "labels 'other' have shape (3, 4, 5)" in session.status
    assert "(12, 40, 40)" in session.status
    assert not session.widget.run_button.enabled
    session.widget.truth.value = None
    session.wait_for(lambda: session.status == "Ready")


def test_an_overlap_of_one_is_refused_by_the_field(session_over, volume):
    widget = session_over(volume).widget

    with pytest.raises(ValueError, match=r"1\.5"):
        widget.overlap.value = 1.5


def test_a_viewer_without_an_image_asks_for_one(make_napari_viewer):
    viewer = make_napari_viewer()
    _, widget = viewer.window.add_plugin_dock_widget("napari-seamless", "Blended inference")

    assert "Open an image first" in widget.status.value
    assert not widget.run_button.enabled


def test_what_only_opening_can_tell_ends_in_one_line(session_over, checkpoint_of, volume):
    session = session_over(volume)
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
    for architecture, message in (
        ("networks:NoSuch", "NoSuch"),
        ("no_such_package.nets:Net", "no_such_package"),
    ):
        session.widget.architecture.value = architecture
        session.press("run_button")
        line = session.wait_for_end()

        assert message in line
        assert "\n" not in line
        assert session.live is None
        session.wait_for(lambda: not session.widget.run_button.enabled)  # when it has been read
        assert message in session.status
        assert session.widget.architecture.enabled
        session.widget.architecture.value = "networks:Doubled"
        session.wait_for(lambda: session.widget.run_button.enabled and session.status == "Ready")


def test_nan_in_the_image_names_the_place(session_over, checkpoint_of, volume):
    volume[3, 5, 7] = np.nan
    session = session_over(volume)
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
    session.press("run_button")
    line = session.wait_for_end()

    assert "(3, 5, 7)" in line
    assert "nan" in line


def test_an_rgb_image_is_refused_with_the_remedy(session_over, checkpoint_of):
    session = session_over(np.zeros((20, 20, 3), np.uint8), rgb=True)
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled)

    assert "RGB" in session.status
    assert "split" in session.status
    assert not session.widget.run_button.enabled


def test_a_two_dimensional_image_gives_a_two_dimensional_layer(session_over, checkpoint_of, volume):
    session = session_over(volume[0], scale=(3, 2))
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled, patch_size=(1, 16, 16))
    session.widget.show_grid.value = True
    session.press("run_button")
    assert session.wait_for_end().startswith("Done")

    np.testing.assert_allclose(np.asarray(session.live.data), 2 * volume[0], rtol=1e-6)
    np.testing.assert_allclose(session.live.scale, (3, 2))


def test_channels_keep_their_slider(session_over, checkpoint_of, volume):
    both = np.stack([volume, 3 * volume])
    session = session_over(both, scale=(1, 5, 2, 2))
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled, batch_size=4)
    session.press("run_button")
    assert session.wait_for_end().startswith("Done")

    np.testing.assert_allclose(np.asarray(session.live.data), 2 * both, rtol=1e-6)
    np.testing.assert_allclose(session.live.scale, (1, 5, 2, 2))
    assert networks.calls[0] == (4, 2, 4, 16, 16)


def test_a_multiscale_image_is_predicted_at_full_resolution(session_over, checkpoint_of, volume):
    session = session_over([volume, volume[:, ::2, ::2]], multiscale=True)
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled, batch_size=4)
    session.press("run_button")
    assert session.wait_for_end().startswith("Done")

    np.testing.assert_allclose(np.asarray(session.live.data), 2 * volume, rtol=1e-6)


def test_a_volume_smaller_than_the_patch_is_padded(session_over, checkpoint_of, volume):
    session = session_over(volume[:3, :10])
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled, patch_size=(8, 16, 16))
    session.press("run_button")
    assert session.wait_for_end().startswith("Done")

    np.testing.assert_allclose(np.asarray(session.live.data), 2 * volume[:3, :10], rtol=1e-6)


def test_opening_the_widget_loads_no_torch():
    code = "import sys, napari_seamless.gui.widget; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_the_sample_opens_with_its_truth_hidden(make_napari_viewer):
    viewer = make_napari_viewer()
    raw, truth = viewer.open_sample("napari-seamless", "demo")

    assert raw.data.shape == truth.data.shape == (32, 256, 256)
    assert not truth.visible
    np.testing.assert_allclose(raw.scale, (40, 8, 8))


def test_a_network_of_two_channels_adds_a_channel_slider(session_over, checkpoint_of, volume):
    session = session_over(volume, scale=(5, 2, 2))
    session.viewer.dims.set_current_step(0, 9)
    session.widget.show_grid.value = True
    session.choose(checkpoint_of(networks.TwoChannels), networks.TwoChannels, batch_size=4)
    session.press("run_button")
    assert session.wait_for_end().startswith("Done")

    np.testing.assert_allclose(
        np.asarray(session.live.data), np.stack([2 * volume, 6 * volume]), rtol=1e-6
    )
    np.testing.assert_allclose(session.live.scale, (1, 5, 2, 2))
    assert session.viewer.dims.ndim == 4
    assert session.viewer.dims.current_step[1] == 9


def test_overlays_are_no_images_to_predict_and_go_with_their_image(make_napari_viewer, volume):
    viewer = make_napari_viewer()  # not shown: software OpenGL may crash drawing what is removed
    viewer.add_image(volume, name="volume")
    _, widget = viewer.window.add_plugin_dock_widget("napari-seamless", "Blended inference")
    for box in ("show_weights", "show_coverage", "show_grid"):
        getattr(widget, box).value = True

    assert len(viewer.layers) == 4
    assert [layer.name for layer in widget.image.choices] == ["volume"]
    viewer.layers.remove("volume")
    assert widget.image.value is None
    assert len(viewer.layers) == 0
    assert "Open an image first" in widget.status.value
    assert not widget.run_button.enabled


def test_limits_without_an_activation_follow_the_values(session_over, checkpoint_of):
    steps = np.zeros((12, 40, 40), np.float32)
    steps[:, 24:] = 500
    session = session_over(steps)
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
    session.press("run_button")
    assert session.wait_for_end().startswith("Done")

    assert session.live.contrast_limits[1] == pytest.approx(1000, rel=1e-5)


def test_a_name_without_suffix_gets_that_of_the_chosen_kind(
    session_over, volume, tmp_path, monkeypatch
):
    from qtpy.QtWidgets import QFileDialog

    typed = str(tmp_path / "out")
    session = session_over(volume)
    for kind, suffix in (
        ("OME-Zarr (*.zarr)", ".zarr"),
        ("HDF5 (*.h5 *.hdf5)", ".h5"),
        ("TIFF (*.tif *.tiff)", ".tif"),
    ):
        answer = (typed, kind)
        monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *args, answer=answer: answer)

        assert session.widget.ask_where("x.h5") == tmp_path / f"out{suffix}"
        (tmp_path / f"out{suffix}").touch()
        assert session.widget.ask_where("x.h5") is None
        assert f"out{suffix} exists" in session.status


def test_a_folder_is_not_offered_to_export_to_and_refused_in_words_of_the_form(
    session_over, volume, tmp_path, monkeypatch
):
    from qtpy.QtWidgets import QFileDialog

    offered = []

    def choose(parent, title, suggestion, kinds):
        offered.append(suggestion)
        return "p.zarr", kinds

    monkeypatch.setattr(QFileDialog, "getSaveFileName", choose)
    monkeypatch.chdir(tmp_path)
    session = session_over(volume)
    for name in ("p.zarr", "p 2.zarr"):
        (tmp_path / name).mkdir()

    assert session.widget.ask_where("p.zarr") is None
    assert offered == ["p 3.zarr"]
    assert session.status == "p.zarr exists; choose another name, or delete it first"


def test_an_unfinished_run_with_other_settings_is_refused_in_words_of_the_form(
    session_over, checkpoint_of, volume, tmp_path
):
    session = session_over(volume)
    session.choose(checkpoint_of(networks.Gated), networks.Gated)
    session.widget.output.value = tmp_path / "out.zarr"
    session.press("run_button")
    networks.let_through(9)
    session.wait_for_batches(4)
    session.press("cancel_button")
    networks.let_through(3)
    assert session.wait_for_end().endswith("Run goes on with it.")
    session.widget.overlap.value = 0.25
    networks.let_through(200)
    session.press("run_button")

    assert "--" in session.wait_for_end()  # what Python and the command line are told
    assert session.status.endswith(
        "choose another output, or tick 'Delete what is there and start anew'"
    )
    assert not session.widget.anew_row.native.isHidden()


def test_the_form_says_what_an_output_that_is_there_means(
    session_over, checkpoint_of, volume, tmp_path
):
    output = tmp_path / "out.h5"
    session = session_over(volume)
    session.choose(checkpoint_of(networks.Gated), networks.Gated)
    session.widget.output.value = output
    session.wait_for(lambda: session.status == "Ready")
    assert not session.widget.anew_row.visible
    session.press("run_button")
    networks.let_through(20)
    session.wait_for_batches(12)
    session.press("cancel_button")
    networks.let_through(1)
    assert session.wait_for_end().endswith("Run goes on with it.")

    session.widget.output.value = None
    session.widget.output.value = output
    assert session.status == "out.h5 holds an unfinished run: Run goes on with it"
    session.widget.start_anew.value = True
    assert session.status == "Ready: Run deletes out.h5 and starts anew"
    session.widget.start_anew.value = False
    networks.let_through(200)
    session.press("run_button")
    assert session.wait_for_end() == f"Done: 80 patches. Written to {output}."
    np.testing.assert_allclose(np.asarray(session.live.data), 2 * volume, rtol=1e-6)

    session.widget.output.value = None
    session.widget.output.value = output
    assert "out.h5 exists" in session.status
    assert not session.widget.run_button.enabled
    session.widget.start_anew.value = True
    assert session.widget.run_button.enabled
    session.press("run_button")
    assert not session.widget.start_anew.value  # agreed to for one run only
    assert session.wait_for_end().startswith("Done")


def test_an_output_that_cannot_be_is_refused_as_one_types(
    session_over, checkpoint_of, volume, tmp_path
):
    session = session_over(volume)
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
    session.widget.output.value = tmp_path / "out.png"
    session.wait_for(lambda: ".zarr" in session.status)
    assert not session.widget.run_button.enabled
    session.widget.output.value = tmp_path / "no" / "out.zarr"
    assert "no such folder" in session.status


def test_workers_need_an_output_and_a_scheduler_an_address(
    session_over, checkpoint_of, volume, tmp_path
):
    session = session_over(volume)
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
    session.widget.cluster.value = "workers on this machine"
    session.wait_for(lambda: "Workers need an output" in session.status)
    session.widget.output.value = tmp_path / "out.zarr"
    session.wait_for(lambda: session.status == "Ready")
    assert session.widget.requests()[0].workers == 2
    session.widget.cluster.value = "a Dask scheduler"
    assert "tcp://" in session.status
    session.widget.scheduler.value = "tcp://10.0.0.1:8786"
    assert session.widget.requests()[0].workers == "tcp://10.0.0.1:8786"
    session.widget.cluster.value = "this process"
    assert session.widget.requests()[0].workers is None


def test_settings_of_the_fold_reach_the_run(session_over, checkpoint_of, volume):
    session = session_over(volume)
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
    session.wait_for(lambda: session.status == "Ready")
    assert session.widget.requests()[0].memory is None
    session.widget.memory.value = 1.5
    session.widget.skip_constant.value = True
    session.widget.on_error.value = "continue"
    session.widget.output_dtype.value = "uint8"
    (request,) = session.widget.requests()

    assert request.memory == 3 * 2**29
    assert request.plan.config.skip_constant
    assert request.plan.config.on_error == "continue"
    assert request.plan.config.output_dtype == "uint8"


def test_a_mask_of_another_shape_is_refused(session_over, checkpoint_of, volume):
    session = session_over(volume)
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
    session.widget.mask.value = session.viewer.add_labels(np.ones((3, 4, 5), int), name="small")

    assert "mask 'small' has shape (1, 3, 4, 5)" in session.status
    assert not session.widget.run_button.enabled
    session.widget.mask.value = session.viewer.add_labels(np.ones(volume.shape, int), name="all")
    session.wait_for(lambda: session.status == "Ready")
    assert session.widget.requests()[0].mask.name == "all"


def test_time_points_are_asked_for_where_there_is_time(session_over, checkpoint_of, volume):
    movie = np.stack([volume, 3 * volume])
    session = session_over(movie, axis_labels=("t", "z", "y", "x"), scale=(9, 5, 2, 2))
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled, batch_size=8)
    assert session.widget.time_points.visible
    session.widget.time_points.value = "5"
    session.wait_for(lambda: "time point 5" in session.status)
    session.widget.time_points.value = "1"
    session.widget.show_grid.value = True
    session.viewer.dims.set_current_step(0, 1)
    session.press("run_button")
    assert session.wait_for_end().startswith("Done: 80 patches")

    data = np.asarray(session.live.data)
    np.testing.assert_allclose(data[1], 2 * movie[1], rtol=1e-6)
    assert np.isnan(data[0]).all()
    np.testing.assert_allclose(session.live.scale, (9, 5, 2, 2))


def test_the_level_of_a_pyramid_is_chosen(session_over, checkpoint_of, volume):
    session = session_over([volume, volume[:, ::2, ::2]], multiscale=True)
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled, batch_size=8)
    assert session.widget.level.visible
    session.widget.level.value = 1
    session.widget.show_coverage.value = True
    session.press("run_button")
    assert session.wait_for_end().startswith("Done")

    np.testing.assert_allclose(np.asarray(session.live.data), 2 * volume[:, ::2, ::2], rtol=1e-6)
    np.testing.assert_allclose(session.live.scale, (1, 2, 2))
    np.testing.assert_allclose(session.viewer.layers["coverage"].scale, (1, 2, 2))
