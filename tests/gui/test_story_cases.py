"""Layers and displays of all kinds, and what happens to them during a run, in a real viewer."""

import numpy as np
import pytest
from napari.layers._layer_actions import _convert_to_image, _split_rgb
from qtpy.QtCore import Qt

import networks
from napari_seamless.gui.space.view import camera_of

pytestmark = pytest.mark.slow

PATCHES = 5 * 4 * 4  # (12, 40, 40) in patches of (4, 16, 16) at overlap 0.5
FORETOLD = 3
"""So many batches are done when it is said what the run will take; events go on after that."""
TURNED = np.array(
    [
        [1, 0, 0, 3],
        [0, np.cos(0.5), -np.sin(0.5), 10],
        [0, np.sin(0.5), np.cos(0.5), -20],
        [0, 0, 0, 1],
    ]
)
OVERLAYS = {"coverage": "coverage", "states": "patch states", "grid": "patch grid"}
"""One of each kind of layer."""


@pytest.fixture
def gated(session_over, checkpoint_of):
    """Return a function: layer arguments -> a session whose run waits for `let_through`."""

    def build(data, **layer):
        session = session_over(data, **layer)
        session.choose(checkpoint_of(networks.Gated), networks.Gated)
        return session

    yield build
    networks.let_through(10_000)


@pytest.fixture
def alone(make_napari_viewer):
    """A viewer without layers, and the widget."""
    viewer = make_napari_viewer(show=True)
    _, widget = viewer.window.add_plugin_dock_widget("napari-seamless", "Blended inference")
    return viewer, widget


def switch(session, on: bool, names=OVERLAYS) -> None:
    for name in names:
        session.widget[f"show_{name}"].value = on


def test_a_turned_image_is_predicted_where_it_lies_and_the_view_is_followed(gated, volume):
    session = gated(volume, scale=(3, 1, 2), translate=(0, 7, 9), affine=TURNED)
    image = session.viewer.layers["volume"]
    session.viewer.dims.set_current_step(0, 0)
    session.press("run_button")
    networks.let_through(FORETOLD)
    session.wait_for_batches(2)
    camera = camera_of(session.viewer)
    camera.center, camera.zoom = image.data_to_world((0, 38, 38))[1:], 200
    session.qtbot.wait(400)
    corner = (0, 39, 39)
    assert np.isnan(session.live.data[corner])
    networks.let_through(3)  # the one under way, the first of the new view, and one not told yet
    session.wait_for_batches(FORETOLD + 2)
    assert session.live.data[corner] == pytest.approx(2 * volume[corner], rel=1e-6)
    switch(session, True)
    networks.let_through(PATCHES)
    assert session.wait_for_end().startswith("Done")

    np.testing.assert_allclose(np.asarray(session.live.data), 2 * volume, rtol=1e-6)
    for name in (session.live.name, *OVERLAYS.values()):
        layer = session.viewer.layers[name]
        for voxel in ((0, 0, 0), (11, 39, 39), (3, 20, 7)):
            np.testing.assert_allclose(
                layer.data_to_world(voxel), image.data_to_world(voxel), atol=1e-9
            )


def test_the_display_changes_during_a_run(gated, volume):
    session = gated(volume, scale=(4, 1, 1))
    dims = session.viewer.dims
    switch(session, True)
    session.press("run_button")
    for ndisplay, order in ((3, (0, 1, 2)), (2, (1, 2, 0)), (3, (2, 0, 1)), (2, (0, 1, 2))):
        before = session.facts["done"] if session.live is not None else 0
        dims.ndisplay, dims.order = ndisplay, order
        networks.let_through(6)
        session.wait_for_batches(before + 4)
        assert set(OVERLAYS.values()) <= {layer.name for layer in session.viewer.layers}
    networks.let_through(PATCHES)
    assert session.wait_for_end().startswith("Done")

    np.testing.assert_allclose(np.asarray(session.live.data), 2 * volume, rtol=1e-6)
    shown = dims.current_step[0]
    np.testing.assert_allclose(session.live._slice.image.raw, 2 * volume[shown], rtol=1e-6)


def test_the_image_is_deleted_during_its_run(gated, volume):
    session = gated(volume)
    switch(session, True)
    session.press("run_button")
    networks.let_through(FORETOLD)
    session.wait_for_batches(2)
    session.viewer.layers.remove("volume")
    session.viewer.dims.set_current_step(0, 9)
    networks.let_through(PATCHES)
    assert session.wait_for_end().startswith(f"Done: {PATCHES} patches.")

    np.testing.assert_allclose(np.asarray(session.live.data), 2 * volume, rtol=1e-6)
    assert session.facts["status"] == "complete"
    switch(session, False)
    assert [layer.name for layer in session.viewer.layers] == ["volume prediction"]


def test_a_prediction_is_deleted_with_its_overlays_during_its_run(gated, volume):
    session = gated(volume)
    session.press("run_button")
    networks.let_through(FORETOLD)
    session.wait_for_batches(2)
    switch(session, True, ["states"])  # software OpenGL crashes drawing if more go at once
    session.viewer.layers.remove(session.live)
    networks.let_through(PATCHES)
    session.wait_for_end()

    assert len(networks.calls) <= FORETOLD + 1
    assert not session.widget.controller.is_busy
    assert session.widget.controller.current is None
    assert "volume prediction" not in session.viewer.layers
    switch(session, False)
    assert [layer.name for layer in session.viewer.layers] == ["volume"]
    networks.let_through(PATCHES)
    session.press("run_button")
    assert session.wait_for_end().startswith("Done")
    np.testing.assert_allclose(np.asarray(session.live.data), 2 * volume, rtol=1e-6)


def test_all_layers_are_deleted_during_a_run(gated, volume):
    session = gated(volume)
    switch(session, True)
    session.press("run_button")
    networks.let_through(FORETOLD)
    session.wait_for_batches(2)
    session.viewer.layers.clear()
    networks.let_through(PATCHES)
    session.wait_for_end()

    assert len(networks.calls) <= FORETOLD + 1
    assert len(session.viewer.layers) == 0
    assert not session.widget.run_button.enabled
    assert not any(session.widget[f"show_{name}"].value for name in OVERLAYS)


def test_channels_of_an_rgb_image_are_predicted_once_it_is_split(session_over, checkpoint_of):
    colours = np.random.default_rng(3).integers(0, 256, (40, 40, 3), np.uint8)
    session = session_over(colours, rgb=True)
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled, patch_size=(1, 16, 16))
    session.press("run_button")
    assert not session.widget.run_button.enabled
    assert "split it first" in session.status
    _split_rgb(session.viewer.layers)
    green = next(layer for layer in session.viewer.layers if layer.colormap.name == "green")
    session.widget.image.value = green
    session.wait_for(lambda: session.status == "Ready")
    session.press("run_button")
    assert session.wait_for_end().startswith("Done")

    expected = colours[..., 1] * np.float32(2 / 255)
    np.testing.assert_allclose(np.asarray(session.live.data), expected, rtol=1e-6)


def test_labels_are_predicted_from_once_they_are_an_image(alone, checkpoint_of, qtbot):
    viewer, widget = alone
    cells = np.random.default_rng(3).integers(0, 256, (12, 40, 40), np.uint8)
    labels = viewer.add_labels(cells, name="cells")
    widget.checkpoint.value = checkpoint_of(networks.Doubled)
    widget.architecture.value = "networks:Doubled"
    widget.patch_size.value = (4, 16, 16)
    widget.activation.value = "none"
    assert not widget.run_button.enabled
    assert "layer 'cells' holds labels" in widget.status.value
    viewer.layers.selection = {labels}
    _convert_to_image(viewer.layers)
    qtbot.waitUntil(lambda: widget.status.value == "Ready", timeout=15_000)
    lines = []
    widget.controller.ended.connect(lines.append)
    widget.run_button.native.click()
    qtbot.waitUntil(lambda: bool(lines), timeout=15_000)

    assert lines[0].startswith("Done")
    expected = cells * np.float32(2 / 255)
    np.testing.assert_allclose(np.asarray(widget.controller.live.layer.data), expected, rtol=1e-6)


def test_nothing_happens_in_an_empty_viewer_until_there_is_an_image(alone, checkpoint_of, qtbot):
    viewer, widget = alone
    widget.checkpoint.value = checkpoint_of(networks.Doubled)
    widget.architecture.value = "networks:Doubled"
    for key in (Qt.Key.Key_F5, Qt.Key.Key_F6, Qt.Key.Key_F8):
        qtbot.keyClick(viewer.window._qt_window, key)
    for name in OVERLAYS:
        widget[f"show_{name}"].value = True
    widget.export_button.native.click()
    assert not widget.controller.is_busy
    assert len(viewer.layers) == 0
    viewer.dims.ndisplay = 3
    viewer.dims.ndisplay = 2
    viewer.add_image(np.ones((12, 40, 40), np.float32), name="volume")

    assert widget.image.value is viewer.layers["volume"]
    qtbot.waitUntil(lambda: widget.status.value == "Ready", timeout=15_000)
    assert widget.run_button.enabled
    assert {layer.name for layer in viewer.layers} == {"volume", *OVERLAYS.values()}
