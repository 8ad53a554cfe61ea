"""What a viewer asks of a run: look there only, another volume, one patch by itself."""

import threading

import numpy as np
import pytest
import torch

from engine.helpers import PATIENCE
from napari_seamless import InferenceConfig
from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import ConfigError, PredictionError, SourceError
from napari_seamless.engine.run import Run
from napari_seamless.engine.source import ArraySource

SHAPE = (8, 16, 16)
CONFIG = {
    "patch_size": (4, 8, 8),
    "overlap": 0.0,
    "device": "cpu",
    "normalization": "none",
    "blending": "constant",
}
PLANE = Box((5, 0, 0), (6, 16, 16))  # 4 of 8 patches touch it


class Doubled(torch.nn.Module):
    """Doubles; what is 7 anywhere in a patch makes it NaN."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        values = 2 * patches
        values[(patches == 7).flatten(1).any(1)] = torch.nan
        return values


def volume_of(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(SHAPE).astype(np.float32)


def run_of(*volumes: np.ndarray, **settings) -> Run:
    sources = [ArraySource(each) for each in volumes]
    return Run(sources, Doubled(), InferenceConfig(**{**CONFIG, **settings}))


class Drained:
    """Drains a run on a thread, and knows its events."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.events: list = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        for event in self.run:
            with self._changed:
                self.events.append(event)
                self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.events) >= count, PATIENCE)

    def wait_until_held(self) -> None:
        for _ in range(PATIENCE * 100):
            if self.run.is_waiting:
                return
            threading.Event().wait(0.01)
        raise AssertionError("the run does not wait")

    def join(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


def test_a_preview_predicts_what_is_looked_at_and_waits():
    run = run_of(volume_of())
    run.focus(PLANE)
    run.preview()
    drained = Drained(run)
    drained.wait_until_held()
    assert (run.done, run.total, run.status) == (4, 8, "running")
    live = np.asarray(run.live[0])
    np.testing.assert_array_equal(live[0, 4:], 2 * volume_of()[4:])
    assert np.isnan(live[0, :4]).all()

    run.focus(Box((0, 0, 0), (1, 8, 8)))
    drained.wait_for(5)
    drained.wait_until_held()
    assert run.done == 5

    run.preview(False)
    drained.join()
    assert (run.status, run.done) == ("complete", 8)
    np.testing.assert_array_equal(run.results()[0][0], 2 * volume_of())


def test_a_preview_that_waits_can_be_cancelled():
    run = run_of(volume_of())
    run.focus(PLANE)
    run.preview()
    drained = Drained(run)
    drained.wait_until_held()
    run.cancel()
    drained.join()
    assert (run.status, run.done) == ("partial", 4)


def test_a_forecast_of_a_preview_does_not_wait_for_somebody_to_look_elsewhere():
    run = run_of(volume_of())
    run.focus(Box((0, 0, 0), (1, 1, 1)))
    run.preview()
    assert run.forecast().patches == 8
    assert run.done == 1
    run.close()


def test_another_volume_is_next_when_it_is_looked_at_and_the_first_goes_on_later():
    volumes = [volume_of(seed) for seed in range(3)]
    run = run_of(*volumes)
    order = [next(run).vol_id, next(run).vol_id]
    run.focus(PLANE, 2)
    order += [next(run).vol_id for _ in range(3)]
    run.focus(PLANE, 0)
    order += [event.vol_id for event in run]
    assert order == [0, 0, *[2] * 3, *[0] * 6, *[1] * 8, *[2] * 5]
    assert run.status == "complete"
    for volume, result in zip(volumes, run.results(), strict=True):
        np.testing.assert_array_equal(result[0], 2 * volume)


def test_a_volume_that_was_left_for_another_is_kept_when_the_run_is_closed():
    run = run_of(volume_of(0), volume_of(1))
    next(run)
    run.focus(None, 1)
    next(run)
    run.close()
    assert (run.status, [run.progress(vol_id) for vol_id in (0, 1)]) == (
        "partial",
        [(1, 8), (1, 8)],
    )
    assert [run.metadata(vol_id)["status"] for vol_id in (0, 1)] == ["partial", "partial"]


def test_a_preview_of_a_series_predicts_the_time_point_that_is_shown():
    run = run_of(volume_of(0), volume_of(1))
    run.focus(PLANE, 1)
    run.preview()
    drained = Drained(run)
    drained.wait_until_held()
    assert [run.progress(vol_id)[0] for vol_id in (0, 1)] == [0, 4]
    run.focus(Box((0, 0, 0), (1, 1, 1)), 0)
    drained.wait_for(5)
    drained.wait_until_held()
    assert [run.progress(vol_id)[0] for vol_id in (0, 1)] == [1, 4]
    run.preview(False)
    drained.join()
    assert run.status == "complete"


def test_patches_that_become_nan_are_named_and_the_rest_goes_on():
    volume = volume_of()
    volume[1, 2, 12] = 7
    run = run_of(volume, batch_size=3)
    events = list(run)
    assert [event.done for event in events] == [3, 6, 8]
    assert (run.status, list(run.volumes[0].failed)) == ("partial", [1])
    result = run.results()[0][0]
    assert np.isnan(result[:4, :8, 8:]).all()
    expected = np.where(np.isnan(result), np.nan, 2 * volume)
    assert np.isnan(expected).sum() == 4 * 8 * 8
    np.testing.assert_array_equal(result, expected)
    assert run.metadata()["failed"] == [[[0, 0, 8], [4, 8, 16]]]


def test_a_first_patch_that_becomes_nan_does_not_end_the_run():
    volume = volume_of()
    volume[0, 0, 0] = 7
    run = run_of(volume)
    assert [event.done for event in run] == [*range(1, 9)]
    assert (run.status, list(run.volumes[0].failed)) == ("partial", [0])


def test_a_network_that_makes_nan_of_everything_is_said_after_a_few_patches():
    run = run_of(np.full((8, 32, 32), 7, np.float32))
    with pytest.raises(PredictionError, match="NaN or infinity"):
        list(run)
    assert (run.status, run.done) == ("failed", 0)


def test_one_patch_can_be_predicted_by_itself_during_the_run_and_after_it():
    run = run_of(volume_of())
    with pytest.raises(SourceError, match="has not begun"):
        run.predict_patch(0)
    next(run)
    for _ in range(2):
        for index, key in ((0, np.s_[:4, :8, :8]), (7, np.s_[4:, 8:, 8:])):
            patch, prediction = run.predict_patch(index)
            np.testing.assert_array_equal(patch[0], volume_of()[key])
            np.testing.assert_array_equal(prediction[0], 2 * volume_of()[key])
        list(run)


def test_patches_that_the_network_has_are_running():
    seen: list[list[int]] = []

    class Asks(Doubled):
        def forward(self, patches: torch.Tensor) -> torch.Tensor:
            seen.append(run.running())
            return super().forward(patches)

    config = InferenceConfig(**CONFIG, batch_size=3)
    run = Run([ArraySource(volume_of())], Asks(), config)
    assert run.running() == []
    for _ in run:
        assert run.running() == []
    assert seen == [[], [3, 4, 5], [6, 7]]  # the first batch comes before a schedule is made


def test_the_order_is_that_in_which_patches_will_run():
    run = run_of(volume_of())
    assert run.order().tolist() == [*range(8)]
    run.focus(PLANE)
    next(run)
    assert next(run).done == 2
    order = run.order().tolist()
    assert order[-4:] == [0, 1, 2, 3]
    assert set(order) < {*range(8)}


def test_the_disagreement_can_be_looked_at_while_it_grows():
    run = run_of(volume_of(), disagreement=True, overlap=0.5)
    next(run)
    partial = np.asarray(run.disagreement[0])
    assert partial.shape == (1, *SHAPE)
    assert np.nanmax(partial) < 1e-6
    assert np.isnan(partial).any()
    list(run)
    assert np.asarray(run.disagreement[0]).max() < 1e-6
    with pytest.raises(ConfigError, match="disagreement=True"):
        _ = run_of(volume_of()).disagreement


def test_a_new_focus_counts_for_the_order_at_once_and_that_order_is_kept():
    run = run_of(volume_of(), overlap=0.5, batch_size=1)
    with run:
        for _ in range(3):
            next(run)
        run.focus(PLANE)
        promised = run.order().tolist()
        ran, before = [], np.asarray(run.volumes[0].accumulator.states) != 0
        for _ in run:
            now = np.asarray(run.volumes[0].accumulator.states) != 0
            ran += np.flatnonzero(now & ~before).tolist()
            before = now

    assert ran == promised
    assert ran != sorted(ran)
