"""Why a voxel is so: the table at the pointer, its values, and one patch as layers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from napari.components import ViewerModel
from napari.layers import Image
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest

import networks
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.contributions import contributions
from napari_seamless.engine.run import Run
from napari_seamless.engine.source import ArraySource
from napari_seamless.gui.inspector.answers import Answers, Question
from napari_seamless.gui.inspector.inspector import FOLLOW_MS, NOTHING, OUTSIDE, REST_MS, Inspector
from napari_seamless.gui.overlays import OVERLAY_KEY, Overlays, planned
from napari_seamless.gui.runs.request import Plan
from napari_seamless.gui.runs.run_view import RunView
from napari_seamless.inference import InferenceRun

pytestmark = pytest.mark.usefixtures("qapp")

CONFIG = InferenceConfig(
    patch_size=(4, 16, 16), overlap=0.5, batch_size=1, device="cpu", normalization="none"
)


class Doubtful(networks.Doubled):
    """Depends on the place inside the patch, so that patches disagree."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image) * torch.linspace(0, 1, image.shape[-1])


class Tasks:
    """Does tasks when told to, in place of threads."""

    def __init__(self) -> None:
        self.waiting = []
        self.ran = 0

    def __call__(self, task, done) -> None:
        self.waiting.append((task, done))

    def do(self, count: int = 10_000) -> None:
        while self.waiting and count:
            task, done = self.waiting.pop(0)
            self.ran += 1
            count -= 1
            done(task())


class Stage:
    """A viewer with an image, a run on it, and the inspector, switched on."""

    def __init__(self, qtbot, data, module, config=CONFIG, *, steps=10_000, level=0, **layer):
        self.qtbot, self.tasks = qtbot, Tasks()
        self.viewer = ViewerModel()
        self.image = self.viewer.add_layer(Image(data, name="volume", **layer))
        self.inspector = Inspector(self.viewer, self.tasks)
        self.panel = self.inspector.native
        qtbot.addWidget(self.panel)
        self.plan = Plan(self.image, config, level)
        self.run = _opened(self.plan, module)
        self.view = RunView(self.viewer, Overlays(self.viewer), self.plan, self.run, "prediction")
        self.step(steps)
        self.inspector.watch(self.view)
        self.panel.switch.setChecked(True)

    def step(self, count: int) -> None:
        for _, event in zip(range(count), self.run, strict=False):
            if self.view.live is None:
                self.view.follow_plan()
                self.view.add_layer(event.dirty)
        if self.view.live is not None:
            self.view.live.close()

    def world_of(self, voxel, channel: int = 0, time: int = 0):
        live = self.view.live
        at = dict(zip("ZYX", voxel, strict=True), C=channel, T=time)
        return live.layer.data_to_world([at[letter] for letter in live.axes])

    def event(self, position, **more):
        return SimpleNamespace(
            position=tuple(position),
            view_direction=None,
            dims_displayed=list(self.viewer.dims.displayed),
            pos=(10.0, 10.0),
            button=1,
            modifiers=(),
            **{"type": "mouse_move", **more},
        )

    def move(self, position) -> None:
        """Move the pointer and let the table follow."""
        for callback in self.viewer.mouse_move_callbacks:
            callback(self.viewer, self.event(position))
        self.qtbot.wait(2 * FOLLOW_MS)

    def rest(self) -> None:
        self.wait_for(lambda: bool(self.tasks.waiting))
        self.tasks.do()

    def click(self, position, moved: float = 0) -> None:
        event = self.event(position, type="mouse_press")
        for callback in self.viewer.mouse_drag_callbacks:
            going = callback(self.viewer, event)
            if going is None or next(going, "ended") == "ended":
                continue
            if moved:
                event.type, event.pos = "mouse_move", (10.0 + moved, 10.0)
                next(going)
            event.type = "mouse_release"
            next(going, None)

    def pick(self, number: int) -> None:
        """Pick a patch and wait for its layers."""
        self.panel.picked.emit(number)
        self.wait_for(lambda: f"patch {number} window" in self.viewer.layers)

    def wait_for(self, condition) -> None:
        self.qtbot.waitUntil(condition, timeout=5000)

    def column(self, at: int) -> list[str]:
        table = self.panel.table
        return [table.data(table.index(row, at)) for row in range(table.rowCount())]

    @property
    def numbers(self) -> list[int]:
        return self.panel.table.patches

    @property
    def blended(self) -> float:
        return float(self.panel.result.text().split()[2])


def _opened(plan, module):
    data = plan.image.data[plan.level] if plan.image.multiscale else plan.image.data
    if plan.times:
        sources = [ArraySource(data[time]) for time in plan.times]
        return Run(sources, module, plan.config)
    return Run([ArraySource(data)], module, plan.config)


@pytest.fixture
def stage_of(qtbot):
    stages = []

    def build(*args, **kwargs) -> Stage:
        stages.append(Stage(qtbot, *args, **kwargs))
        return stages[-1]

    yield build
    for stage in stages:
        stage.inspector.close()
        stage.run.close()


@pytest.mark.parametrize("voxel", [(0, 0, 0), (5, 20, 17), (11, 39, 39)])
def test_the_table_says_what_the_layer_is_made_of(stage_of, volume, voxel):
    stage = stage_of(volume, Doubtful())
    stage.move(stage.world_of(voxel))
    expected = contributions(
        stage.view.subject.grid,
        stage.view.subject.window,
        np.asarray(stage.run.volumes[0].accumulator.states),
        voxel,
    )
    assert stage.numbers == [each.index for each in expected]
    assert stage.column(1)[0] == ", ".join(map(str, expected[0].box.start))
    assert set(stage.column(2)) == {"done"}
    assert stage.column(4) == ["…"] * len(expected)

    stage.rest()
    ramp = np.linspace(0, 1, 16)
    wanted = [2 * volume[voxel] * ramp[each.voxel[2]] for each in expected]
    np.testing.assert_allclose([float(v) for v in stage.column(4)], wanted, rtol=1e-3)
    assert stage.blended == pytest.approx(stage.view.live.layer.data[voxel], abs=1e-5)
    assert "shows" not in stage.panel.result.text()  # nothing else than what was calculated


def test_the_shares_are_of_the_weight_that_is_in_already(stage_of, volume):
    stage = stage_of(volume, Doubtful(), steps=3)
    voxel = (1, 10, 18)  # of patches 1, 2, 5 and 6
    stage.move(stage.world_of(voxel))

    states = stage.column(2)
    assert states.count("done") == 2
    shares = [float(text.split("(")[1].split()[0]) for text in stage.column(3) if "(" in text]
    assert len(shares) == 2
    assert sum(shares) == pytest.approx(100, abs=0.6)
    stage.rest()
    assert stage.tasks.ran == 3  # two patches, and what the layer shows
    values = dict(zip(stage.column(0), stage.column(4), strict=True))
    assert values["5"] == values["6"] == ""
    assert stage.blended == pytest.approx(stage.view.live.layer.data[voxel], abs=1e-5)

    stage.step(10_000)
    stage.inspector.refresh()
    stage.qtbot.wait(2 * FOLLOW_MS)
    assert set(stage.column(2)) == {"done"}
    stage.rest()
    assert stage.blended == pytest.approx(stage.view.live.layer.data[voxel], abs=1e-5)


def test_a_voxel_that_no_patch_has_reached_has_no_value(stage_of, volume):
    stage = stage_of(volume, Doubtful(), steps=1)
    stage.move(stage.world_of((11, 39, 39)))
    stage.qtbot.wait(2 * REST_MS)

    assert stage.panel.result.text() == "Nothing is blended here yet"
    assert not stage.tasks.waiting


def test_values_are_asked_for_only_when_the_pointer_rests_and_kept(stage_of, volume):
    stage = stage_of(volume, Doubtful())
    for x in range(17, 23):
        stage.move(stage.world_of((5, 20, x)))
    assert not stage.tasks.waiting
    stage.rest()
    asked = stage.tasks.ran
    assert asked == len(stage.numbers) + 1

    stage.move(stage.world_of((5, 20, 21)))  # the same patches
    assert "…" not in stage.column(4)
    stage.rest()
    assert stage.tasks.ran == asked + 1  # what the layer shows there


def test_a_run_that_goes_on_does_not_put_off_what_is_asked(stage_of, volume):
    stage = stage_of(volume, Doubtful(), steps=2)
    stage.move(stage.world_of((1, 3, 10)))
    for _ in range(3 * REST_MS // FOLLOW_MS):
        stage.inspector.refresh()
        stage.qtbot.wait(FOLLOW_MS)

    assert stage.tasks.waiting
    stage.tasks.do()
    assert stage.numbers[0] in {0, 1}
    assert stage.column(4)[0] != "…"


def test_an_answer_about_another_voxel_changes_nothing(stage_of, volume):
    stage = stage_of(volume, Doubtful())
    stage.move(stage.world_of((0, 0, 0)))
    stage.wait_for(lambda: bool(stage.tasks.waiting))
    stage.move(stage.world_of((11, 39, 39)))
    before = stage.column(0), stage.column(4)
    stage.tasks.do(1)

    assert (stage.column(0), stage.column(4)) == before


def test_an_answer_of_a_run_that_is_not_watched_any_more_is_dropped(stage_of, volume):
    stage = stage_of(volume, Doubtful())
    stage.click(stage.world_of((5, 20, 17)))
    assert stage.tasks.waiting
    stage.inspector.watch(None)
    stage.tasks.do()

    assert stage.panel.where.text() == NOTHING
    assert stage.tasks.ran == 1  # only the one that was at work
    assert stage.numbers == []


def test_a_click_holds_the_voxel_and_a_second_one_lets_go(stage_of, volume):
    stage = stage_of(volume, Doubtful())
    stage.click(stage.world_of((5, 20, 17)))
    assert "held" in stage.panel.where.text()
    stage.tasks.do()
    assert "…" not in stage.column(4)  # without waiting for the pointer to rest
    stage.move(stage.world_of((0, 0, 0)))
    assert stage.panel.where.text().startswith("Voxel 5, 20, 17 ")

    stage.click(stage.world_of((0, 0, 0)))
    assert stage.panel.where.text().startswith("Voxel 0, 0, 0 ")
    assert "held" not in stage.panel.where.text()


def test_a_drag_holds_nothing(stage_of, volume):
    stage = stage_of(volume, Doubtful())
    stage.click(stage.world_of((5, 20, 17)), moved=20)

    assert "held" not in stage.panel.where.text()
    assert stage.numbers == []


def test_the_slider_moves_the_voxel_at_the_pointer(stage_of, volume):
    stage = stage_of(volume, Doubtful(), scale=(3, 1, 1))
    stage.viewer.dims.set_point(0, 6)
    stage.move((6, 20, 17))
    assert stage.panel.where.text() == "Voxel 2, 20, 17 (z, y, x)\nWorld 6, 20, 17"
    stage.viewer.dims.set_point(0, 27)
    stage.qtbot.wait(2 * FOLLOW_MS)

    assert stage.panel.where.text().startswith("Voxel 9, 20, 17 ")


def test_beside_the_volume_nothing_is_explained(stage_of, volume):
    stage = stage_of(volume, Doubtful())
    stage.move((5, 41, 20))

    assert stage.panel.where.text() == OUTSIDE
    assert stage.numbers == []


def test_switched_off_it_leaves_no_callbacks(stage_of, volume):
    stage = stage_of(volume, Doubtful())
    viewer = stage.viewer

    def counts():
        return (
            len(viewer.mouse_move_callbacks),
            len(viewer.mouse_drag_callbacks),
            len(viewer.dims.events.point.callbacks),
            len(viewer.layers.events.removed.callbacks),
        )

    on = counts()
    stage.panel.switch.setChecked(False)
    off = counts()
    assert tuple(a - b for a, b in zip(on, off, strict=True)) == (1, 1, 1, 1)
    for _ in range(3):
        stage.panel.switch.setChecked(True)
        stage.panel.switch.setChecked(False)
    assert counts() == off
    stage.panel.switch.setChecked(True)
    stage.inspector.close()
    assert counts() == off
    stage.inspector.close()


def test_removing_the_prediction_ends_the_explanation(stage_of, volume):
    stage = stage_of(volume, Doubtful())
    stage.move(stage.world_of((5, 20, 17)))
    stage.viewer.layers.remove(stage.view.live.layer)

    assert stage.panel.where.text() == NOTHING
    assert stage.numbers == []


def test_a_planned_run_is_explained_without_values(stage_of, volume):
    stage = stage_of(volume, Doubtful())
    stage.inspector.plan(planned(stage.plan))
    stage.inspector.watch(None)
    stage.move((5, 20, 17))

    assert len(stage.numbers) == 8
    assert set(stage.column(2)) == {"planned"}
    assert set(stage.column(4)) == {""}
    assert stage.panel.result.text() == "8 patches will be blended here"
    assert not stage.panel.show_button.isEnabled()


AFFINE = np.eye(4)
AFFINE[:3, 3] = 5, 7, 9
AFFINE[1:3, 1:3] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
CASES = {
    "plain": ({}, {}),
    "rotated": ({"scale": (3, 1, 0.5), "translate": (10, 20, 30), "affine": AFFINE}, {}),
    "halo": ({"scale": (3, 1, 0.5)}, {"halo": (1, 4, 4)}),
    "region": ({"affine": AFFINE}, {"region": ((2, 9), (9, 37), (5, 40))}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_patch_is_shown_at_its_place(stage_of, volume, case):
    layer, settings = CASES[case]
    stage = stage_of(volume, Doubtful(), CONFIG.model_copy(update=settings), **layer)
    voxel = (5, 20, 17)
    stage.click(stage.world_of(voxel))
    stage.tasks.do()
    stage.panel.view.selectRow(2)
    number = stage.numbers[2]
    stage.panel.show_button.click()
    stage.wait_for(lambda: f"patch {number} window" in stage.viewer.layers)

    given, prediction, window = (
        stage.viewer.layers[f"patch {number} {what}"] for what in ("input", "prediction", "window")
    )
    box = stage.view.subject.grid[number]
    inside = tuple(np.subtract(voxel, box.start))
    world = stage.world_of(voxel)
    for each in (prediction, window):
        assert each.data.shape == (4, 16, 16)
        np.testing.assert_allclose(each.data_to_world(inside), world, atol=1e-9)
        assert OVERLAY_KEY in each.metadata
    assert prediction.data[inside] == pytest.approx(float(stage.column(4)[2]), rel=1e-3)
    assert window.data[inside] == stage.view.subject.window.matrix[inside]
    # the input's voxels are those of the image, wherever in the world they are
    at = np.rint(stage.image.world_to_data(world)).astype(int)
    read = np.rint(given.world_to_data(world)).astype(int)
    assert given.data[tuple(read)] == volume[tuple(at)]
    np.testing.assert_allclose(given.data_to_world(read), world, atol=1e-9)


def test_another_patch_takes_the_place_of_the_first(stage_of, volume):
    stage = stage_of(volume, Doubtful())
    stage.viewer.layers.selection.active = stage.image
    voxel = (5, 20, 17)
    stage.click(stage.world_of(voxel))
    stage.tasks.do()
    first, second = stage.numbers[:2]
    stage.pick(first)
    layers = list(stage.viewer.layers[2:])
    stage.pick(second)

    names = [layer.name for layer in stage.viewer.layers]
    assert names[2:] == [f"patch {second} {what}" for what in ("input", "prediction", "window")]
    assert list(stage.viewer.layers[2:]) == layers  # napari takes long to replace them
    inside = tuple(np.subtract(voxel, stage.view.subject.grid[second].start))
    assert layers[1].data[inside] == pytest.approx(float(stage.column(4)[1]), rel=1e-3)
    np.testing.assert_allclose(layers[1].data_to_world(inside), voxel)
    assert stage.viewer.layers.selection.active is stage.image

    stage.panel.hide_button.click()
    stage.wait_for(lambda: len(stage.viewer.layers) == 2)
    assert not stage.panel.hide_button.isEnabled()


def test_the_prediction_of_a_patch_lets_its_input_be_seen(stage_of, volume):
    stage = stage_of(volume, networks.Doubled())
    stage.view.live.layer.colormap = "green"
    stage.move(stage.world_of((3, 11, 13)))
    stage.rest()
    number = stage.numbers[0]
    stage.pick(number)
    given, predicted, window = stage.viewer.layers[-3:]

    assert [each.name.split()[-1] for each in (given, predicted, window)] == [
        *("input", "prediction", "window")
    ]
    assert predicted.colormap.name == "green"
    assert predicted.opacity == 0.5
    assert predicted.blending.startswith("translucent")
    assert window.blending == "additive"


def test_a_patch_whose_layer_was_removed_is_shown_anew(stage_of, volume):
    stage = stage_of(volume, Doubtful())
    stage.click(stage.world_of((5, 20, 17)))
    stage.tasks.do()
    first, second = stage.numbers[:2]
    stage.pick(first)
    stage.viewer.layers.remove(f"patch {first} input")
    stage.pick(second)

    names = [layer.name for layer in stage.viewer.layers]
    assert names[2:] == [f"patch {second} {what}" for what in ("input", "prediction", "window")]


def test_a_patch_that_is_hidden_at_once_leaves_nothing(stage_of, volume):
    stage = stage_of(volume, Doubtful())
    stage.click(stage.world_of((5, 20, 17)))
    stage.tasks.do()
    stage.panel.picked.emit(stage.numbers[0])
    stage.inspector.watch(None)
    stage.qtbot.wait(100)

    assert len(stage.viewer.layers) == 2


def test_a_patch_not_known_yet_is_shown_when_it_is_predicted(stage_of, volume):
    stage = stage_of(volume, Doubtful(), steps=2)
    stage.move(stage.world_of((1, 3, 18)))
    waiting = stage.numbers[stage.column(2).index("waiting")]
    stage.panel.picked.emit(waiting)
    assert stage.panel.waiting.text() == f"Predicting patch {waiting} …"
    stage.move(stage.world_of((11, 39, 39)))  # another voxel does not change that
    stage.tasks.do()

    stage.wait_for(lambda: f"patch {waiting} prediction" in stage.viewer.layers)
    assert stage.panel.waiting.text() == ""


def test_what_goes_wrong_is_said_in_the_table(stage_of, volume):
    stage = stage_of(volume, Doubtful())

    def broken(index, vol_id):
        raise RuntimeError("no memory\nsecond line")

    stage.run.predict_patch = broken
    stage.click(stage.world_of((5, 20, 17)))
    stage.tasks.do()

    assert set(stage.column(4)) == {"?"}
    assert stage.panel.result.text() == "no memory"
    stage.panel.picked.emit(stage.numbers[0])
    assert stage.panel.waiting.text() == "no memory"
    assert len(stage.viewer.layers) == 2


def test_the_channel_on_the_screen_counts(stage_of, volume):
    stage = stage_of(volume, networks.TwoChannels())
    voxel = (5, 20, 17)
    stage.viewer.dims.set_point(0, 1)
    stage.click(stage.world_of(voxel, channel=1))
    stage.tasks.do()

    assert "channel 1" in stage.panel.where.text()
    assert stage.blended == pytest.approx(6 * volume[voxel], rel=1e-5)
    table = stage.panel.table
    tip = table.data(table.index(0, 4), Qt.ItemDataRole.ToolTipRole)
    assert f"channel 0: {2 * volume[voxel]:.6g}" in tip
    stage.viewer.dims.set_point(0, 0)  # the slider of the channels, while the voxel is held
    stage.qtbot.wait(2 * FOLLOW_MS)
    assert stage.blended == pytest.approx(2 * volume[voxel], rel=1e-5)


def test_only_the_head_that_is_shown_counts(stage_of, volume):
    config = CONFIG.model_copy(update={"head": "dark"})
    stage = stage_of(volume, networks.TwoHeads(), config)
    voxel = (5, 20, 17)
    stage.click(stage.world_of(voxel))
    stage.tasks.do()

    assert stage.blended == pytest.approx(1 - volume[voxel], abs=1e-5)


def test_blended_logits_are_told_from_what_the_layer_shows(stage_of, volume):
    config = CONFIG.model_copy(update={"activation": "sigmoid", "blend_logits": True})
    stage = stage_of(volume, networks.Doubled(), config)
    voxel = (5, 20, 17)
    stage.click(stage.world_of(voxel))
    stage.tasks.do()

    logit = 2 * volume[voxel]
    assert stage.blended == pytest.approx(logit, rel=1e-5)
    shown = float(stage.panel.result.text().split()[-1])
    assert shown == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-5)


def test_the_time_point_on_the_screen_counts(stage_of, volume):
    series = np.stack([volume, 3 * volume])
    stage = stage_of(series, networks.Doubled(), axis_labels=("time", "z", "y", "x"))
    voxel = (5, 20, 17)
    stage.click(stage.world_of(voxel, time=1))
    stage.tasks.do()
    assert "time 1" in stage.panel.where.text()
    assert stage.blended == pytest.approx(6 * volume[voxel], rel=1e-5)

    number = stage.numbers[0]
    stage.pick(number)
    layer = stage.viewer.layers[f"patch {number} prediction"]
    inside = (0, *np.subtract(voxel, stage.view.subject.grid[number].start))
    np.testing.assert_allclose(layer.data_to_world(inside), (1, *voxel))
    assert layer.data[inside] == pytest.approx(6 * volume[voxel], rel=1e-5)


def test_a_time_point_outside_the_run_is_said(stage_of, volume):
    series = np.stack([volume, 3 * volume])
    config = CONFIG.model_copy(update={"time_points": (1,)})
    stage = stage_of(series, networks.Doubled(), config, axis_labels=("time", "z", "y", "x"))
    stage.move(stage.world_of((5, 20, 17), time=0))

    assert stage.panel.where.text() == "Time point 0 is not part of this run"


def test_a_coarse_level_of_a_plane(stage_of):
    plane = 1 + np.random.default_rng(3).random((80, 80), dtype=np.float32)
    config = CONFIG.model_copy(update={"patch_size": (1, 16, 16)})
    stage = stage_of(
        [plane, plane[::2, ::2]], Doubtful(), config, level=1, multiscale=True, scale=(2, 2)
    )
    voxel = (0, 20, 17)
    stage.click(stage.world_of(voxel))
    assert stage.panel.where.text().startswith("Voxel 0, 20, 17 ")
    stage.tasks.do()
    assert stage.blended == pytest.approx(stage.view.live.layer.data[20, 17], abs=1e-5)

    stage.pick(stage.numbers[0])
    given = stage.viewer.layers[f"patch {stage.numbers[0]} input"]
    start = stage.view.subject.grid[stage.numbers[0]].start
    at = tuple(np.subtract(voxel, start))[1:]
    assert given.data[at] == plane[40, 34]
    np.testing.assert_allclose(given.data_to_world(at), stage.world_of(voxel))


def test_an_output_of_another_resolution(stage_of, volume):
    config = InferenceConfig(**CONFIG.model_dump() | {"output_scale": (1, "1/2", "1/2")})
    stage = stage_of(volume, networks.Halved(), config)
    voxel = (5, 10, 8)
    stage.click(stage.world_of(voxel))
    stage.tasks.do()
    assert stage.panel.where.text().startswith("Voxel 5, 10, 8 ")
    assert stage.blended == pytest.approx(2 * volume[5, 20, 16], abs=1e-5)

    number = stage.numbers[0]
    stage.pick(number)
    layer = stage.viewer.layers[f"patch {number} prediction"]
    inside = tuple(np.subtract(voxel, stage.view.subject.grid[number].start))
    assert layer.data[inside] == pytest.approx(2 * volume[5, 20, 16], abs=1e-5)
    np.testing.assert_allclose(layer.data_to_world(inside), stage.world_of(voxel))


class NotANumber(networks.Doubled):
    """Returns NaN for inputs above 5."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image) * (float("nan") if image.max() > 5 else 1)


def test_a_failed_patch_is_named(stage_of, volume):
    spoilt = volume.copy()
    spoilt[0, 0, 0] = 9
    stage = stage_of(spoilt, NotANumber(), CONFIG.model_copy(update={"on_error": "continue"}))
    stage.move(stage.world_of((0, 3, 9)))  # of patch 1, too

    assert sorted(stage.column(2)) == ["done", "failed"]
    assert stage.panel.result.text() == "No value: patch 0 failed"
    stage.rest()
    values = dict(zip(stage.column(0), stage.column(4), strict=True))
    assert values["0"] == "nan"
    assert float(values["1"]) == pytest.approx(2 * volume[0, 3, 9], rel=1e-3)


def test_in_three_dimensions_the_brightest_voxel_behind_the_pointer_counts(stage_of, volume):
    bright = volume.copy()
    bright[7, 20, 17] = 50
    stage = stage_of(bright, networks.Doubled(), scale=(3, 1, 1))
    stage.viewer.dims.ndisplay = 3
    for callback in stage.viewer.mouse_move_callbacks:
        event = stage.event((-50, 20, 17))
        event.view_direction = np.array([1.0, 0.0, 0.0])
        callback(stage.viewer, event)
    stage.qtbot.wait(2 * FOLLOW_MS)

    assert stage.panel.where.text().startswith("Voxel 7, 20, 17 ")
    z, y, x = map(float, stage.panel.where.text().split("World ")[1].split(", "))
    assert (y, x) == (20, 17)
    assert abs(z - 21) <= 1.5  # somewhere in the voxel

    event = stage.event((-50, 90, 17))
    event.view_direction = np.array([1.0, 0.0, 0.0])
    stage.viewer.mouse_move_callbacks[-1](stage.viewer, event)
    stage.qtbot.wait(2 * FOLLOW_MS)
    assert stage.panel.where.text() == OUTSIDE


def test_transposed_axes_point_at_the_same_voxel(stage_of, volume):
    stage = stage_of(volume, Doubtful())
    stage.viewer.dims.order = (2, 0, 1)
    stage.viewer.dims.set_point(2, 17)
    stage.move((5, 20, 17))
    assert stage.panel.where.text().startswith("Voxel 5, 20, 17 ")
    stage.viewer.dims.set_point(2, 3)
    stage.qtbot.wait(2 * FOLLOW_MS)

    assert stage.panel.where.text().startswith("Voxel 5, 20, 3 ")


def test_the_real_pointer_follows_and_holds_with_real_threads(make_napari_viewer, qtbot, volume):
    viewer = make_napari_viewer(show=True)
    image = viewer.add_layer(Image(volume))
    inspector = Inspector(viewer)
    qtbot.addWidget(inspector.native)
    plan = Plan(image, CONFIG)
    run = _opened(plan, Doubtful())
    view = RunView(viewer, Overlays(viewer), plan, run, "prediction")
    *_, last = run
    data = view.add_layer(last.dirty).layer.data
    inspector.watch(view)
    inspector.native.switch.setChecked(True)
    qtbot.wait(100)
    canvas = viewer.window._qt_viewer.canvas.native
    middle = canvas.rect().center()
    for offset in (0, 1):
        QTest.mouseMove(canvas, middle + QPoint(offset, 0))
    qtbot.waitUntil(lambda: bool(inspector.native.table.patches), timeout=5000)
    left, none = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    QTest.mouseClick(canvas, left, none, middle)
    assert "held" in inspector.native.where.text()
    where = inspector.native.where.text().split(" (z")[0].removeprefix("Voxel ")
    z, y, x = map(int, where.split(", "))
    assert z == viewer.dims.current_step[0]
    assert abs(y - 20) <= 1
    assert abs(x - 20) <= 1
    qtbot.waitUntil(lambda: "…" not in inspector.native.result.text(), timeout=10_000)
    value = float(inspector.native.result.text().split()[2])
    assert value == pytest.approx(data[z, y, x], abs=1e-5)
    QTest.mouseClick(canvas, left, none, middle)
    assert "held" not in inspector.native.where.text()
    inspector.close()
    run.close()


def test_answers_are_kept_within_their_bytes_and_asked_one_at_a_time():
    tasks, told = Tasks(), []
    answers = Answers(tasks, lambda key, answer: told.append(key), limit=4000)
    questions = [Question(i, lambda i=i: (np.full(100, i, float),)) for i in range(4)]
    answers.want(questions)
    assert len(tasks.waiting) == 1
    tasks.do()

    assert told == [0, 1, 2, 3]
    assert 2 * 800 <= answers.nbytes <= 4000
    assert answers.get(1) is None
    np.testing.assert_array_equal(answers.get(3)[0], 3)


def test_a_question_at_work_is_not_asked_twice():
    tasks, told = Tasks(), []
    answers = Answers(tasks, lambda key, answer: told.append(key))
    for _ in range(3):
        answers.want([Question("a", lambda: (np.zeros(1),))])
    tasks.do()

    assert told == ["a"]


def test_values_are_those_before_they_were_rounded_to_be_saved(qtbot, volume, tmp_path):
    viewer, tasks = ViewerModel(), Tasks()
    image = viewer.add_layer(Image(volume))
    inspector = Inspector(viewer, tasks)
    qtbot.addWidget(inspector.native)
    plan = Plan(image, CONFIG.model_copy(update={"output_dtype": "uint8", "intensity_scale": 40.0}))
    run = InferenceRun(volume, Doubtful(), plan.config, tmp_path / "out.zarr")
    view = RunView(viewer, Overlays(viewer), plan, run, "prediction")
    for event in run:
        if view.live is None:
            view.add_layer(event.dirty)
    inspector.watch(view)
    inspector.native.switch.setChecked(True)
    event = SimpleNamespace(position=(5, 20, 17), view_direction=None, dims_displayed=[1, 2])
    viewer.mouse_move_callbacks[-1](viewer, event)
    qtbot.waitUntil(lambda: bool(tasks.waiting), timeout=10 * REST_MS)
    tasks.do()

    value = float(inspector.native.result.text().split()[2].rstrip(";"))
    assert value == pytest.approx(float(view.live.layer.data[5, 20, 17]), abs=0.5 / 40)
    inspector.close()
    run.close()
