"""What has become of each patch."""

import numpy as np
import pytest

from napari_seamless.engine.box import Box
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.states import PatchState, PatchStates

GRID = PatchGrid.regular((8, 16, 8), (4, 8, 8), 0.5)  # 3 x 3 x 1 patches
WAITING, DONE, SKIPPED, FAILED = PatchState


def states_of(**settled: PatchState) -> PatchStates:
    states = PatchStates(GRID)
    for index, state in settled.items():
        states.settle(int(index[1:]), state)
    return states


def test_states_are_those_that_were_noted():
    states = states_of(p0=DONE, p4=SKIPPED, p8=FAILED)

    expected = np.zeros((3, 3, 1))
    expected[0, 0, 0], expected[1, 1, 0], expected[2, 2, 0] = DONE, SKIPPED, FAILED
    np.testing.assert_array_equal(np.asarray(states), expected)
    assert states.count == 3
    assert [index in states for index in range(9)] == [i in (0, 4, 8) for i in range(9)]
    np.testing.assert_array_equal(np.flatnonzero(states.settled), [0, 4, 8])
    np.testing.assert_array_equal(np.flatnonzero(states.done), [0])
    np.testing.assert_array_equal(np.flatnonzero(states.failed), [8])


@pytest.mark.parametrize("state", [DONE, SKIPPED, FAILED])
def test_a_patch_is_settled_once(state):
    states = states_of(p4=state)
    with pytest.raises(ValueError, match="patch 4 was added before"):
        states.settle(4, DONE)


def test_a_box_knows_the_patches_that_touch_it():
    corner = Box((0, 0, 0), (1, 1, 1))
    middle = Box((3, 7, 0), (5, 9, 8))  # rows start at 0, 4, 8, planes at 0, 2, 4
    states = states_of(p0=DONE)
    assert states.waiting_in(corner) == 0
    assert states.first_waiting_in(corner) is None
    assert states.waiting_in(middle) == 8
    assert states.first_waiting_in(middle) == 1
    assert not states.is_failed_in(middle)
    states.settle(4, FAILED)
    assert states.is_failed_in(middle)
    assert not states.is_failed_in(corner)


def test_what_others_did_is_learned():
    states = states_of(p1=SKIPPED)
    states.learn((slice(0, 1), slice(0, 3), slice(0, 1)), failed=[2])

    assert np.asarray(states).ravel().tolist() == [DONE, SKIPPED, FAILED, *[WAITING] * 6]
    states.settle_all(np.ones(GRID.counts, bool))
    assert np.asarray(states).ravel().tolist() == [DONE, SKIPPED, FAILED, *[DONE] * 6]
