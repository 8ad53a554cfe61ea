"""Which patches make a voxel, and with what weight."""

import numpy as np
import pytest

from napari_seamless.engine.blending import weight_sum
from napari_seamless.engine.box import Box
from napari_seamless.engine.contributions import contributions
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.states import PatchState
from napari_seamless.engine.windows import build_window

GRID = PatchGrid.regular((1, 8, 16), (1, 8, 8), 0.5)  # patches start at x = 0, 4, 8
WINDOW = build_window((1, 8, 8), "gaussian")


def states_of(*states: int) -> np.ndarray:
    return np.array(states, np.uint8).reshape(GRID.counts)


def test_weights_are_those_of_the_window_and_add_up_to_the_weight_sum():
    states = states_of(1, 1, 0)
    found = contributions(GRID, WINDOW, states, (0, 3, 6))

    assert [each.index for each in found] == [1, 0]
    assert [each.voxel for each in found] == [(0, 3, 2), (0, 3, 6)]
    assert [each.box for each in found] == [Box((0, 0, 4), (1, 8, 12)), Box((0, 0, 0), (1, 8, 8))]
    assert [each.weight for each in found] == [WINDOW.matrix[0, 3, 2], WINDOW.matrix[0, 3, 6]]
    total = weight_sum(GRID, WINDOW, states == 1, Box((0, 3, 6), (1, 4, 7))).item()
    assert sum(each.weight for each in found) == pytest.approx(total, rel=1e-6)
    assert [each.share for each in found] == [
        pytest.approx(each.weight / total, rel=1e-6) for each in found
    ]


def test_only_patches_that_are_in_have_a_share():
    found = contributions(GRID, WINDOW, states_of(1, 3, 0), (0, 0, 6))
    shares = {each.index: (each.state, each.share) for each in found}
    assert shares == {0: (PatchState.DONE, 1.0), 1: (PatchState.FAILED, 0.0)}

    waiting = contributions(GRID, WINDOW, states_of(0, 0, 0), (0, 0, 6))
    assert [each.share for each in waiting] == [0.0, 0.0]


def test_a_patch_larger_than_the_volume_reaches_every_voxel():
    grid = PatchGrid.regular((1, 4, 4), (1, 8, 8), 0.5)
    (only,) = contributions(grid, WINDOW, np.ones(grid.counts, np.uint8), (0, 0, 0))
    assert only.voxel == (0, 2, 2)
    assert only.share == 1.0


def test_a_voxel_outside_is_refused():
    with pytest.raises(IndexError, match=r"\(0, 8, 0\) is outside a volume of \(1, 8, 16\)"):
        contributions(GRID, WINDOW, states_of(0, 0, 0), (0, 8, 0))
