"""The whole story as a user goes through it, in a real viewer on a (virtual) screen.

A picture of each step is kept in the folder that `STORY_PICTURES` names, else in the test's own.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt, QThreadPool
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QFileDialog

import napari_seamless as ns
from napari_seamless.demo import CHECKPOINT, PATCH_SIZE
from napari_seamless.engine.box import Box
from napari_seamless.engine.states import PatchState
from napari_seamless.gui.overlays import SWITCHES
from napari_seamless.gui.overlays.subject import CellState
from napari_seamless.gui.space.view import camera_of

SIZE = 128
REGION = ((0, 32), (0, SIZE), (0, SIZE))
"""A corner of the sample, so that 5 x 2 x 2 patches do."""
PATCHES, IN_A_PLANE = 20, 4
SETTINGS = {
    "patch_size": PATCH_SIZE,
    "overlap": 0.25,
    "batch_size": 1,
    "activation": "sigmoid",
    "normalization": "dtype",
    "device": "cpu",
}
FIRST_PLANE, NEXT_PLANE = 3, 29  # each is in one layer of patches only
_ROWS = 1 + ((np.arange(SIZE) >= 72) & (np.arange(SIZE) < 96))
COVERAGE = np.outer(_ROWS, _ROWS)
"""Patches per voxel of such a plane at the end: they are 96 wide and 72 apart."""


class Story:
    """A viewer and the widget; what a user does with them, and what they see."""

    def __init__(self, viewer, qtbot, pictures: Path) -> None:
        self.viewer, self.qtbot, self._pictures = viewer, qtbot, pictures
        viewer.window.resize(1500, 950)
        self.raw = viewer.open_sample("napari-seamless", "demo")[0].data
        _, self.widget = viewer.window.add_plugin_dock_widget(
            "napari-seamless", "Blended inference"
        )
        self.lines: list[str] = []
        self.widget.controller.ended.connect(self._ended)  # psygnal keeps no plain functions
        self._count = 0

    def _ended(self, line: str) -> None:
        self.lines.append(line)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        self.qtbot.waitUntil(condition, timeout=60_000)

    def press(self, button: str) -> None:
        self.widget[button].native.click()

    def picture(self, name: str) -> None:
        """Keep a picture of the whole window."""
        self._count += 1
        path = self._pictures / f"{self._count:02} {name}.png"
        self.qtbot.wait(150)
        picture = self.viewer.screenshot(str(path), canvas_only=False, flash=False)
        assert picture.std() > 0
        assert path.stat().st_size > 0

    def pause(self) -> None:
        """Hold the run, and wait for the patch that it is at."""
        self.press("pause_button")
        before = -1
        while before != self.done:
            before = self.done
            self.wait_for(lambda: not self.run.running(0))
            self.qtbot.wait(300)
        assert self.status.startswith("Paused")

    def end(self) -> str:
        self.wait_for(lambda: bool(self.lines))
        return self.lines.pop()

    @property
    def status(self) -> str:
        return self.widget.status.value

    @property
    def layer(self):
        live = self.widget.controller.live
        return None if live is None else live.layer

    @property
    def facts(self) -> dict:
        return self.layer.metadata["napari-seamless"]

    @property
    def done(self) -> int:
        return 0 if self.layer is None else self.facts["done"]

    @property
    def run(self):
        return self.widget.controller.current.run

    @property
    def drawn(self) -> np.ndarray:
        """What is on the screen of the prediction, (Y, X)."""
        return self.layer._slice.image.raw

    def states(self) -> np.ndarray:
        return np.asarray(self.run.volumes[0].accumulator.states)

    def patches_done(self) -> set[int]:
        return set(np.flatnonzero(self.states() == PatchState.DONE))

    def touching(self, plane: int) -> set[int]:
        """Return the patches that reach a plane, by raster index."""
        grid = self.run.plan.volumes[0].grid
        numbers = np.arange(len(grid)).reshape(grid.counts)
        near = grid.touching(Box((plane, 0, 0), (plane + 1, SIZE, SIZE)))
        return set(numbers[near].ravel().tolist())


@pytest.fixture
def story(make_napari_viewer, qtbot, tmp_path):
    pictures = Path(os.environ.get("STORY_PICTURES") or tmp_path / "pictures")
    pictures.mkdir(parents=True, exist_ok=True)
    story = Story(make_napari_viewer(show=True), qtbot, pictures)
    yield story
    story.widget.controller.close()
    assert QThreadPool.globalInstance().waitForDone(60_000)


@pytest.fixture
def expected(story) -> np.ndarray:
    """What Python gives for the same, float32 (32, SIZE, SIZE)."""
    config = ns.InferenceConfig(**{**SETTINGS, "batch_size": 4}, region=REGION)
    prediction = ns.predict(story.raw, str(CHECKPOINT), config, progress=False)
    return np.asarray(prediction.array[0])


def test_the_whole_story(story, expected, tmp_path, monkeypatch):
    the_sample_is_open(story)
    the_checkpoint_is_chosen(story)
    the_run_shows_partial_planes(story, expected)
    the_slider_decides_what_comes_next(story, expected)
    overlays_come_and_go_and_leave_the_run_alone(story)
    a_voxel_is_explained(story)
    a_cancelled_run_is_kept(story, expected)
    output = tmp_path / "membranes.zarr"
    a_run_with_an_output_is_cancelled(story, output)
    run_goes_on_with_what_was_done(story, output, expected)
    the_result_is_exported_and_opened_again(story, tmp_path / "exported.h5", monkeypatch)


def the_sample_is_open(story):
    raw, truth = story.viewer.layers
    assert raw.data.shape == truth.data.shape == (32, 256, 256)
    assert (raw.visible, truth.visible) == (True, False)
    assert story.widget.image.value is raw
    assert not story.widget.run_button.enabled  # there is no checkpoint yet
    story.viewer.dims.set_current_step(0, FIRST_PLANE)
    story.picture("the sample")


def the_checkpoint_is_chosen(story):
    story.widget.checkpoint.value = CHECKPOINT
    for name, value in SETTINGS.items():
        story.widget[name].value = value
    story.widget.region.value = "0:32,0:128,0:128"
    story.widget.disagreement.value = True
    story.wait_for(lambda: story.status == "Ready")
    story.wait_for(lambda: f"{PATCHES} patches" in story.widget.forecast.value)
    assert story.widget.run_button.enabled
    story.picture("ready")


def the_run_shows_partial_planes(story, expected):
    story.press("run_button")
    story.wait_for(lambda: story.done >= 1)
    story.pause()
    assert story.widget.pause_button.text == "Continue"
    assert (story.facts["status"], story.facts["total"]) == ("running", PATCHES)
    assert story.facts["done"] == len(story.patches_done())
    done, looked_at = story.patches_done(), story.touching(FIRST_PLANE)
    assert done <= looked_at or looked_at <= done  # these came before all others
    coverage = np.asarray(story.run.coverage[0][FIRST_PLANE])
    story.wait_for(lambda: np.array_equal(np.isfinite(story.drawn), coverage > 0))
    is_final = coverage == COVERAGE
    assert is_final.any()
    np.testing.assert_allclose(story.drawn[is_final], expected[FIRST_PLANE][is_final], atol=1e-5)
    assert np.isnan(np.asarray(story.layer.data[NEXT_PLANE])).all()
    story.picture("the first patches")


def the_slider_decides_what_comes_next(story, expected):
    before = story.patches_done()
    wanted = story.touching(NEXT_PLANE)
    assert not wanted & before
    story.viewer.dims.set_current_step(0, NEXT_PLANE)
    story.qtbot.wait(200)  # the focus is moved at most every 50 ms
    story.press("pause_button")
    story.wait_for(lambda: wanted <= story.patches_done())
    story.pause()
    others = story.patches_done() - before - wanted
    assert len(others) <= 2, "one was read ahead, one came after the plane was done"
    story.wait_for(lambda: np.isfinite(story.drawn).all())  # it was drawn, not only computed
    np.testing.assert_allclose(story.drawn, expected[NEXT_PLANE], atol=1e-5)
    story.picture("another plane")


def overlays_come_and_go_and_leave_the_run_alone(story):
    names = [layer.name for layer in story.viewer.layers]
    done = story.done
    looks = {
        "weights": weights_are_those_of_the_plane,
        "coverage": coverage_is_that_of_the_plane,
        "patch_ids": ids_are_raster_indices,
        "states": states_are_those_of_the_run,
        "order": order_is_that_of_the_run,
        "grid": lambda story, layer: len(layer.data) > 0,
        "disagreement": disagreement_is_where_patches_overlap,
        "seams": lambda story, layer: layer.data.shape == story.layer.data.shape,
    }
    for switch in SWITCHES:
        box = story.widget[f"show_{switch.name}"]
        box.value = True
        [layer] = [each for each in story.viewer.layers if each.name not in names]
        assert layer.name == switch.layer
        np.testing.assert_allclose(layer.scale[-2:], (8, 8))
        assert looks[switch.name](story, layer), switch.name
        story.picture(f"overlay {switch.text.lower()}")
        if switch.name == "seams":
            story.wait_for(lambda: bool(story.widget.seam_score.value))
        box.value = False
        assert [layer.name for layer in story.viewer.layers] == names
    assert story.done == done
    assert story.run.status == "running"


def plane_of(layer) -> np.ndarray:
    """Return what an overlay has at the plane, in full resolution."""
    data = layer.data[0] if layer.multiscale else layer.data
    return np.asarray(data[NEXT_PLANE])


def weights_are_those_of_the_plane(story, layer) -> bool:
    window = ns.build_blending_matrix(PATCH_SIZE, mode="gaussian")
    plane = plane_of(layer)
    at = NEXT_PLANE - 24  # of the patches that start at plane 24
    return bool(
        np.isclose(plane[10, 10], window[at, 10, 10], rtol=1e-5)
        and np.isclose(plane[80, 10], window[at, 80, 10] + window[at, 8, 10], rtol=1e-5)
    )


def coverage_is_that_of_the_plane(story, layer) -> bool:
    return np.array_equal(plane_of(layer), COVERAGE)


def ids_are_raster_indices(story, layer) -> bool:
    return set(np.unique(plane_of(layer))) == story.touching(NEXT_PLANE)


def states_are_those_of_the_run(story, layer) -> bool:
    shown = plane_of(layer)
    first = np.asarray(layer.data[0][15] if layer.multiscale else layer.data[15])
    waiting = not story.patches_done() & story.touching(15)
    return set(np.unique(shown)) <= {0, CellState.DONE} and (
        not waiting or CellState.WAITING in np.unique(first)
    )


def order_is_that_of_the_run(story, layer) -> bool:
    data = layer.data[0] if layer.multiscale else layer.data
    ranks = np.unique(np.asarray(data)[np.isfinite(np.asarray(data))])
    waiting = len(story.run.order(0))
    return bool(np.isnan(plane_of(layer)).all()) and ranks.max() == waiting


def disagreement_is_where_patches_overlap(story, layer) -> bool:
    plane = plane_of(layer)
    return plane[:72, :72].max() < 1e-6 < plane[72:96, 72:96].max()


def a_voxel_is_explained(story):
    camera = camera_of(story.viewer)
    camera.center, camera.zoom = (84 * 8, 84 * 8), 1.0  # where four patches overlap
    panel = story.widget._inspector.native
    story.widget.debug_section.panel.expand()
    panel.switch.setChecked(True)
    story.qtbot.wait(100)
    canvas = story.viewer.window._qt_viewer.canvas.native
    middle = canvas.rect().center()
    for offset in (0, 1):
        QTest.mouseMove(canvas, middle + QPoint(offset, 0))
    story.wait_for(lambda: len(panel.table.patches) == 4)
    left, none = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    QTest.mouseClick(canvas, left, none, middle)
    assert "held" in panel.where.text()
    story.wait_for(lambda: "…" not in panel.result.text())
    voxel = tuple(map(int, panel.where.text().split(" (z")[0].removeprefix("Voxel ").split(", ")))
    assert voxel[0] == NEXT_PLANE
    np.testing.assert_allclose(voxel[1:], (84, 84), atol=2)
    shown = float(story.layer.data[voxel])
    assert float(panel.result.text().split()[2]) == pytest.approx(shown, abs=1e-5)
    assert blended_by_hand(panel.table) == pytest.approx(shown, abs=1e-5)
    story.picture("a voxel explained")
    the_patch_is_shown(story, panel, voxel)
    panel.switch.setChecked(False)
    story.viewer.reset_view()


def blended_by_hand(table) -> float:
    """Return the blended value of what the table says of each patch."""
    window = ns.build_blending_matrix(PATCH_SIZE, mode="gaussian")
    weights, values = [], []
    for row in range(table.rowCount()):
        first, value = table.data(table.index(row, 0), Qt.ItemDataRole.ToolTipRole).split("\n")
        inside = tuple(map(int, first.split("its voxel ")[1].split(", ")))
        weights.append(window[inside])
        values.append(float(value.removeprefix("channel 0: ")))
    return float(np.average(values, weights=weights))


def the_patch_is_shown(story, panel, voxel):
    number = panel.chosen
    panel.show_button.click()
    names = [f"patch {number} {what}" for what in ("input", "prediction", "window")]
    story.wait_for(lambda: all(name in story.viewer.layers for name in names))
    given, predicted, window = (story.viewer.layers[name] for name in names)
    world = story.layer.data_to_world(voxel)
    inside = tuple(round(at) for at in predicted.world_to_data(world))
    assert float(given.data[inside]) == pytest.approx(story.raw[voxel] / 255, abs=1e-6)
    expected = ns.build_blending_matrix(PATCH_SIZE, mode="gaussian")
    assert float(window.data[inside]) == pytest.approx(expected[inside], rel=1e-5)
    table = panel.table
    text = table.data(table.index(0, 0), Qt.ItemDataRole.ToolTipRole)
    assert float(predicted.data[inside]) == pytest.approx(
        float(text.split("channel 0: ")[1]), abs=1e-5
    )
    story.picture("a patch alone")
    panel.hide_button.click()
    story.wait_for(lambda: not any(name in story.viewer.layers for name in names))


def a_cancelled_run_is_kept(story, expected):
    story.press("cancel_button")
    line = story.end()
    assert line == f"Cancelled. The layer keeps {story.done} of {PATCHES} patches."
    assert story.facts["status"] == "partial"
    data = np.asarray(story.layer.data)
    assert data.shape == expected.shape
    assert np.isnan(data).any()
    np.testing.assert_allclose(data[NEXT_PLANE], expected[NEXT_PLANE], atol=1e-5)
    story.picture("cancelled")


def a_run_with_an_output_is_cancelled(story, output):
    story.viewer.dims.set_current_step(0, FIRST_PLANE)
    story.widget.output.value = output
    story.press("run_button")
    story.wait_for(lambda: story.done > 0 and bool(story.run.volumes[0].accumulator.finished))
    story.press("cancel_button")
    line = story.end()
    assert line.startswith("Cancelled. membranes.zarr keeps ")
    assert line.endswith(f" of {PATCHES} patches. Run goes on with it.")
    assert story.facts["status"] == "partial"
    story.picture("cancelled with an output")


def run_goes_on_with_what_was_done(story, output, expected):
    seen: list[int] = []

    def progressed(done: int, total: int) -> None:
        seen.append(done)

    story.widget.controller.progressed.connect(progressed)
    story.press("run_button")
    assert story.end() == f"Done: {PATCHES} patches. Written to {output}."
    assert len(seen) <= PATCHES - IN_A_PLANE  # a chunk was finished, with at least these
    assert seen[-1] == PATCHES
    assert story.facts["status"] == "complete"
    np.testing.assert_allclose(np.asarray(story.layer.data), expected, atol=1e-5)
    [opened, *_] = story.viewer.open(output, plugin="napari-seamless")
    np.testing.assert_allclose(np.squeeze(np.asarray(opened.data)), expected, atol=1e-5)
    story.viewer.layers.remove(opened)
    story.picture("done")


def the_result_is_exported_and_opened_again(story, target, monkeypatch):
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *args: (str(target), ""))
    story.press("export_button")
    story.wait_for(lambda: story.status.startswith("Exported"))
    [opened] = story.viewer.open(target, plugin="napari-seamless")
    np.testing.assert_array_equal(np.squeeze(np.asarray(opened.data)), np.asarray(story.layer.data))
    np.testing.assert_allclose(opened.scale[-3:], (40, 8, 8))
    assert opened.metadata["napari-seamless"]["status"] == "complete"
    story.picture("opened again")
