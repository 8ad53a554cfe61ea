import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import as_they_run, boxes, layouts, properties
from napari_seamless.engine.box import Box
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.schedule import Schedule

GRID = PatchGrid.regular((8, 8, 8), (4, 4, 4), 0.5)  # 27 patches, starts 0, 2, 4


def unfocused(grid) -> list[int]:
    """Raster indices as they run."""
    starts = [tuple(start) for start in grid.positions.tolist()]
    return [starts.index(start) for start in as_they_run(starts)]


def in_order(layout_positions, patch_size, box, waiting) -> list[int]:
    """Touching patches nearest to the box's centre first, then the rest; ties in their order."""
    distances, rest = [], []
    for index in waiting:
        start = layout_positions[index]
        stop = np.add(start, patch_size)
        if np.all(start < np.array(box.stop)) and np.all(stop > np.array(box.start)):
            twice = (start + stop) - np.add(box.start, box.stop)
            distances.append((int(twice @ twice), len(distances), index))
        else:
            rest.append(index)
    return [index for *_, index in sorted(distances)] + rest


def test_raster_order_without_a_focus():
    schedule = Schedule(GRID)
    assert len(schedule) == 27
    assert [schedule.take(4) for _ in range(7)] == [
        list(range(i, min(i + 4, 27))) for i in range(0, 27, 4)
    ]
    assert len(schedule) == 0
    assert not schedule
    assert schedule.take(4) == []


def test_a_last_layer_that_is_shifted_back_runs_with_the_one_before():
    shifted = PatchGrid.regular((9, 4, 8), (4, 2, 4), 0.0)  # z 0, 4, 5; y 0, 2; x 0, 4
    assert Schedule(shifted).take(12) == [0, 1, 2, 3, 4, 8, 5, 9, 6, 10, 7, 11]
    schedule = Schedule(shifted)
    schedule.take(5)
    schedule.focus(None)
    assert schedule.take(7) == [8, 5, 9, 6, 10, 7, 11]
    even = PatchGrid.regular((12, 4, 8), (4, 2, 4), 0.0)
    assert Schedule(even).take(12) == list(range(12))


def test_indices_are_plain_integers():
    assert {type(index) for index in Schedule(GRID).take(27)} == {int}


def test_a_focus_on_one_corner_worked_out_by_hand():
    schedule = Schedule(GRID)
    schedule.focus(Box((7, 7, 7), (8, 8, 8)))  # only the last patch, of the last corner, reaches it
    assert schedule.take(27) == [26, *range(26)]


def test_a_focus_on_a_plane_worked_out_by_hand():
    schedule = Schedule(PatchGrid.regular((8, 4, 12), (4, 4, 4), 0.0))  # z: 0, 4; x: 0, 4, 8
    schedule.focus(Box((5, 0, 4), (6, 4, 12)))  # plane 5; its centre lies between the last two
    assert schedule.take(6) == [4, 5, 0, 1, 2, 3]


@pytest.mark.parametrize("box", [None, Box((0, 0, 50), (1, 1, 51)), Box((-9, 0, 0), (-8, 1, 1))])
def test_no_focus_or_one_that_touches_nothing_is_raster_order(box):
    schedule = Schedule(GRID)
    schedule.focus(Box((7, 7, 7), (8, 8, 8)))
    assert schedule.take(2) == [26, 0]
    schedule.focus(box)
    assert schedule.take(27) == list(range(1, 26))


def test_what_is_put_back_comes_next_and_is_sorted_in_by_a_focus():
    schedule = Schedule(GRID)
    assert schedule.take(3) == [0, 1, 2]
    taken = schedule.take(4)
    schedule.put_back(taken)
    assert len(schedule) == 24
    assert schedule.take(4) == taken == [3, 4, 5, 6]
    schedule.put_back(taken)
    schedule.focus(Box((7, 7, 7), (8, 8, 8)))
    assert schedule.take(6) == [26, 3, 4, 5, 6, 7]


def test_what_is_not_looked_at_can_be_held_back():
    schedule = Schedule(GRID)
    schedule.focus(Box((0, 0, 0), (1, 1, 3)), is_only=True)
    assert not schedule.is_held
    assert schedule.order.tolist() == [0, 1, *range(2, 27)]
    assert schedule.take(9) == [0, 1]
    assert schedule.take(9) == []
    assert (schedule.is_held, len(schedule)) == (True, 25)
    schedule.focus(Box((7, 7, 7), (8, 8, 8)), is_only=True)
    assert schedule.take(9) == [26]
    assert schedule.is_held
    schedule.focus(None)
    assert (schedule.is_held, schedule.take(3)) == (False, [2, 3, 4])
    assert len(schedule.take(99)) == 21
    schedule.focus(Box((7, 7, 7), (8, 8, 8)), is_only=True)
    assert not schedule.is_held


def test_only_what_waits_is_scheduled():
    waiting = np.zeros(GRID.counts, dtype=bool)
    waiting.flat[[2, 7, 26]] = True
    schedule = Schedule(GRID, waiting)
    assert len(schedule) == 3
    schedule.focus(Box((7, 7, 7), (8, 8, 8)))
    assert schedule.take(9) == [26, 2, 7]
    assert not schedule


@properties(100)
@given(st.data(), layouts())
def test_focus_agrees_with_brute_force_whatever_was_taken_before(data, layout):
    schedule = Schedule(layout.grid)
    positions = [np.array(start) for start in layout.positions]
    waiting = unfocused(layout.grid)
    while waiting:
        box = data.draw(st.none() | boxes(layout.shape))
        schedule.focus(box)
        count = data.draw(st.integers(1, 9))
        if box is None:
            expected = waiting[:count]
        else:
            expected = in_order(positions, layout.patch_size, box, waiting)[:count]
        assert schedule.take(count) == expected
        waiting = [index for index in waiting if index not in expected]
        assert len(schedule) == len(waiting)
