import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import PATIENCE, boxes, layouts, properties
from napari_seamless.engine import pipeline
from napari_seamless.engine.box import Box
from napari_seamless.engine.control import Control, Focus
from napari_seamless.engine.errors import PredictionError, SourceError
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.pipeline import Batch, batches, load, predicted
from napari_seamless.engine.schedule import Schedule

ROW = PatchGrid.regular((1, 1, 12), (1, 1, 1), 0.0)  # 12 patches


class Line:
    """The parts around a pipeline: reads number `index` for patch `index`, predicts its double."""

    def __init__(self, grid: PatchGrid = ROW, size: int = 2, **others) -> None:
        self.control = Control()
        self.read_so_far: list[int] = []
        self.threads: set[int] = set()
        self.predicted: list[list[int]] = []
        self.fails: dict[int, Exception] = others.pop("fails", {})
        self.gate: threading.Event | None = None
        self.times: list[int] = []
        is_ahead = others.pop("is_ahead", False)
        self.schedule = Schedule(grid, **others)
        self.reader = ThreadPoolExecutor(1)
        self.batches = batches(
            self.schedule, size, self.reader, self.read, self.predict, self.control.may_go_on,
            lambda: self.control.has_new_focus(0), self.refocus, self.took, is_ahead=is_ahead,
        )  # fmt: skip

    def refocus(self, schedule: Schedule) -> None:
        focus = self.control.take_focus(0)
        schedule.focus(focus.box, focus.is_only)

    def took(self, patches: int, seconds: float) -> None:
        assert seconds >= 0
        self.times.append(patches)

    def read(self, index: int, out=None):
        self.threads.add(threading.get_ident())
        self.read_so_far.append(index)
        if self.gate is not None:
            assert self.gate.wait(PATIENCE)
        if isinstance(error := self.fails.get(index), SourceError):
            return error
        if error is not None:
            raise error
        return np.full((1, 1, 1, 1), index, np.float32)

    def predict(self, patches: np.ndarray) -> torch.Tensor:
        assert threading.get_ident() not in self.threads
        self.predicted.append(patches[:, 0, 0, 0, 0].astype(int).tolist())
        return torch.from_numpy(2 * patches)


def values_of(batch: Batch) -> list[float]:
    return [] if batch.predictions is None else batch.predictions.flatten().tolist()


@pytest.mark.parametrize("size", [1, 2, 5, 12, 20])
def test_every_patch_is_read_and_predicted_once_in_order(size):
    line, found = Line(size=size), []
    for batch in line.batches:
        assert values_of(batch) == [2.0 * index for index in batch.indices]
        assert batch.failed == {}
        found.append(list(batch.indices))
    assert found == [[*range(12)][i : i + size] for i in range(0, 12, size)] == line.predicted
    assert line.read_so_far == [*range(12)]
    assert len(line.threads) == 1


@pytest.mark.parametrize("size", [1, 2, 5])
def test_one_batch_is_read_ahead_and_no_more(size):
    line = Line(size=size)
    for number, _ in enumerate(line.batches, 1):
        assert len(line.read_so_far) <= min(12, (number + 1) * size)
    line = Line(size=size)
    next(line.batches)
    for _ in range(PATIENCE * 100):  # the next batch is read while nobody asks for it
        if len(line.read_so_far) == 2 * size:
            break
        threading.Event().wait(0.01)
    assert line.read_so_far == [*range(2 * size)]
    line.batches.close()


def test_only_what_waits_runs():
    waiting = np.zeros(ROW.counts, dtype=bool)
    waiting[..., [1, 4, 5, 11]] = True
    line = Line(size=3, waiting=waiting)
    assert [batch.indices for batch in line.batches] == [(1, 4, 5), (11,)]
    assert line.read_so_far == [1, 4, 5, 11]
    nothing = Line(waiting=np.zeros(ROW.counts, dtype=bool))
    assert (list(nothing.batches), nothing.read_so_far) == ([], [])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_patch_that_becomes_nan_fails_alone(value):
    def spoilt(patches: np.ndarray) -> torch.Tensor:
        values = torch.from_numpy(2 * patches)
        values[patches == 4] = value
        return values

    def read(index: int, out) -> np.ndarray:
        return np.full((1, 1, 1, 2), index, np.float32)

    batch = predicted(load([3, 4, 5], read), spoilt)
    assert batch.indices == (3, 5)
    assert values_of(batch) == [6, 6, 10, 10]
    assert list(batch.failed) == [4]
    assert "the network returned NaN or infinity" in str(batch.failed[4])

    alone = predicted(load([4], read), spoilt)
    assert (alone.indices, alone.predictions, list(alone.failed)) == ((), None, [4])


def test_a_new_focus_puts_back_what_was_read_ahead():
    line = Line(size=2)
    assert next(line.batches).indices == (0, 1)
    line.control.focus(Box((0, 0, 8), (1, 1, 10)), 0)
    assert next(line.batches).indices == (8, 9)
    line.control.focus(None, 0)
    assert [batch.indices for batch in line.batches] == [(2, 3), (4, 5), (6, 7), (10, 11)]
    assert line.predicted == [[0, 1], [8, 9], [2, 3], [4, 5], [6, 7], [10, 11]]


def test_a_focus_after_the_last_batch_was_read_ahead_loses_nothing():
    line = Line(size=5)
    assert [next(line.batches).indices for _ in range(2)] == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]
    line.control.focus(Box((0, 0, 11), (1, 1, 12)), 0)
    assert [batch.indices for batch in line.batches] == [(11, 10)]


@properties(80)
@given(layouts(), st.integers(1, 5), st.data())
def test_whatever_is_looked_at_no_patch_is_lost_and_none_runs_twice(layout, size, data):
    line, found = Line(layout.grid, size), []
    for batch in line.batches:
        found.append(list(batch.indices))
        if data.draw(st.booleans()):
            view = data.draw(st.none() | boxes(layout.shape))
            line.control.focus(view, 0)
            rest = sorted(set(range(len(layout.grid))).difference(*found))
            schedule = Schedule(layout.grid, np.isin(np.arange(len(layout.grid)), rest))
            schedule.focus(view)
            expected = schedule.take(size)
            if (following := next(line.batches, None)) is None:
                assert rest == []
                break
            assert list(following.indices) == expected
            found.append(expected)
    everything = [*chain(*found)]
    assert sorted(everything) == [*range(len(layout.grid))]
    assert [*chain(*line.predicted)] == everything
    assert {len(each) for each in found[:-1]} <= {size}


def test_an_error_of_the_reading_thread_arrives_at_its_batch_and_ends_it():
    line = Line(size=2, fails={5: ValueError("boom")})
    assert [next(line.batches).indices for _ in range(2)] == [(0, 1), (2, 3)]
    with pytest.raises(ValueError, match="boom"):
        next(line.batches)
    assert line.predicted == [[0, 1], [2, 3]]
    assert list(line.batches) == []


def test_patches_that_cannot_be_read_are_told_apart_and_the_others_predicted():
    line = Line(size=3, fails={index: SourceError(f"hole {index}") for index in (1, 6, 7, 8)})
    found = list(line.batches)
    assert [batch.indices for batch in found] == [(0, 2), (3, 4, 5), (), (9, 10, 11)]
    assert [values_of(batch) for batch in found] == [[0, 4], [6, 8, 10], [], [18, 20, 22]]
    assert [{i: str(e) for i, e in batch.failed.items()} for batch in found] == [
        {1: "hole 1"}, {}, {i: f"hole {i}" for i in (6, 7, 8)}, {},
    ]  # fmt: skip
    assert found[2].predictions is None
    assert line.predicted == [[0, 2], [3, 4, 5], [9, 10, 11]]


@pytest.mark.parametrize("end", ["close", "cancel"])
def test_closing_or_cancelling_predicts_no_more(end):
    line = Line(size=2)
    next(line.batches)
    if end == "close":
        line.batches.close()
    else:
        line.control.cancel()
    assert list(line.batches) == []
    assert line.predicted == [[0, 1]]
    assert len(line.read_so_far) <= 4


def test_predicted_stacks_what_could_be_read():
    hole = SourceError("a hole")

    def read(index: int, out: np.ndarray | None) -> np.ndarray | SourceError:
        if index == 9:
            return hole
        if out is None or index == 8:  # 8 brings its own
            return np.full((2, 1, 1, 3), index, np.float32)
        out[...] = index
        return out

    batch = predicted(load([9, 7, 9, 8, 3, 9], read), torch.from_numpy)
    assert batch.indices == (7, 8, 3)
    assert batch.failed == {9: hole}
    expected = np.float32([7, 8, 3])[:, None, None, None, None] * np.ones((1, 2, 1, 1, 3))
    np.testing.assert_array_equal(batch.predictions, expected)


# ------------------------------------------------------------------------------ wishes


def test_a_focus_is_new_until_it_is_taken_and_kept_until_another():
    control, view = Control(), Box((0, 0, 0), (1, 2, 3))
    assert (control.has_new_focus(0), control.take_focus(0)) == (False, Focus())
    control.focus(view, 0)
    assert (control.has_new_focus(0), control.has_new_focus(1)) == (True, False)
    assert control.take_focus(0) == Focus(view)
    control.focus(view, 0)
    assert (control.has_new_focus(0), control.take_focus(0)) == (False, Focus(view))
    control.focus(None, 0)
    assert (control.has_new_focus(0), control.take_focus(0)) == (True, Focus())
    assert not control.has_new_focus(0)


def test_a_preview_is_news_to_every_volume_and_only_one_is_looked_at():
    control, view = Control(), Box((0, 0, 0), (1, 2, 3))
    control.focus(view, 1)
    assert control.looked_at == 1
    control.preview(True)
    assert control.take_focus(1) == Focus(view, is_only=True)
    elsewhere = control.take_focus(0)
    assert elsewhere.is_only
    assert elsewhere.box.is_empty
    control.preview(False)
    assert [control.has_new_focus(vol_id) for vol_id in (0, 1)] == [True, True]
    assert [control.take_focus(vol_id) for vol_id in (0, 1)] == [Focus(), Focus(view)]


@pytest.mark.parametrize(
    "news",
    [
        lambda control: control.focus(Box((0, 0, 0), (1, 1, 1)), 0),
        lambda control: control.focus(None, 1),
        lambda control: control.preview(False),
        lambda control: control.cancel(),
    ],
)
def test_whoever_waits_for_news_hears_them(news):
    control = Control()
    control.preview(True)
    control.take_focus(0)
    waiting = threading.Thread(target=control.wait_for_news, args=(control.news,), daemon=True)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    news(control)
    waiting.join(PATIENCE)
    assert not waiting.is_alive()


def test_a_preview_holds_the_rest_back_until_something_else_is_looked_at():
    line = Line(size=2)
    line.control.focus(Box((0, 0, 4), (1, 1, 7)), 0)
    line.control.preview(True)
    found = [next(line.batches) for _ in range(4)]
    assert [each and each.indices for each in found] == [(5, 4), (6,), None, None]
    line.control.focus(Box((0, 0, 6), (1, 1, 8)), 0)
    assert next(line.batches).indices == (7,)
    assert next(line.batches) is None
    line.control.preview(False)
    rest = list(line.batches)
    assert [each.indices for each in rest] == [(0, 1), (2, 3), (8, 9), (10, 11)]


def test_cancel_wakes_whoever_waits_in_a_pause():
    control, answers = Control(), []
    control.pause()
    waiting = threading.Thread(target=lambda: answers.append(control.may_go_on()), daemon=True)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    control.cancel()
    waiting.join(PATIENCE)
    assert answers == [False]


@pytest.fixture
def ahead(monkeypatch):
    """A line whose network is given the next batch before this one is looked at, as a GPU is."""
    monkeypatch.setattr(pipeline, "_array", lambda shape, is_pinned: np.empty(shape, np.float32))
    return lambda **others: Line(is_ahead=True, **others)


def test_a_gpu_is_given_the_next_batch_first(ahead):
    line = ahead()
    first = next(line.batches)
    assert first.indices == (0, 1)
    assert line.predicted == [[0, 1], [2, 3]]
    assert line.schedule.at_work == [0, 1, 2, 3]
    found = [first, *line.batches]
    assert [i for batch in found for i in batch.indices] == [*range(12)]
    assert [values_of(batch) for batch in found] == [[4 * i, 4 * i + 2] for i in range(6)]
    assert line.times == [2] * 6


def test_what_a_gpu_was_given_is_looked_at_when_the_run_is_cancelled(ahead):
    line = ahead()
    found = [next(line.batches)]
    line.control.cancel()
    found += line.batches
    assert [batch.indices for batch in found] == [(0, 1), (2, 3)]
    assert line.predicted == [[0, 1], [2, 3]]


def test_what_a_gpu_was_given_before_one_that_fails_is_not_lost(ahead):
    line = ahead(fails={4: PredictionError("no")})
    found = [next(line.batches)]
    found.append(next(line.batches))
    assert [batch.indices for batch in found] == [(0, 1), (2, 3)]
    with pytest.raises(PredictionError, match="no"):
        next(line.batches)


def test_a_gpu_is_looked_at_before_the_rest_is_held_back(ahead):
    line = ahead()
    line.control.preview(True)
    line.control.focus(Box((0, 0, 0), (1, 1, 4)), 0)
    found = [next(line.batches) for _ in range(3)]
    assert sorted(i for batch in found[:2] if batch for i in batch.indices) == [0, 1, 2, 3]
    assert found[2] is None


def test_a_gpu_that_fails_late_says_so(ahead, monkeypatch):
    class Late:
        def __init__(self, values: torch.Tensor) -> None:
            pass

        def __bool__(self) -> bool:
            raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(pipeline, "Finiteness", Late)
    with pytest.raises(
        PredictionError, match=r"failed on a batch .* \(2, 1, 1, 1, 1\): CUDA error"
    ):
        next(ahead().batches)
