"""Which patch each voxel belongs to, and the lines where patches begin and end."""

import numpy as np
import pytest

from napari_seamless.engine.blending import weight_sum
from napari_seamless.engine.box import Box
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.volume_plan import window_of
from napari_seamless.gui.overlays import grid_lines
from napari_seamless.gui.overlays.cells import cell_levels, cells_along, level_shapes
from napari_seamless.gui.overlays.cropped import Cropped


def test_a_voxel_belongs_to_the_patch_with_the_nearest_centre_of_two_to_the_first():
    starts = np.array([0, 4, 7])  # patches of 8: centres 3.5, 7.5, 10.5; midlines 5.5, 9

    owners = cells_along(starts, 8, np.arange(15.0))

    np.testing.assert_array_equal(owners, [0] * 6 + [1] * 4 + [2] * 5)


@pytest.mark.parametrize("blending", ["gaussian", "bump", "hann", "monai_gaussian", "wu_bump"])
def test_the_patch_of_a_cell_weighs_most_there(blending):
    config = InferenceConfig(patch_size=(4, 6, 8), blending=blending, overlap=0.6)
    grid = PatchGrid.regular((7, 13, 21), (4, 6, 8), 0.6)
    window, box = window_of(config, (4, 6, 8)), Box.of_shape(grid.shape)
    numbers = np.arange(len(grid)).reshape(grid.counts)
    owner = np.asarray(cell_levels(grid, lambda: numbers, np.int32)[0])
    each = [weight_sum(grid, window, numbers == index, box) for index in range(len(grid))]

    np.testing.assert_allclose(
        np.take_along_axis(np.array(each), owner[np.newaxis], axis=0)[0],
        np.max(each, axis=0),
        rtol=1e-9,
    )


def test_a_plane_has_gaps_between_wide_cells_along_the_axes_that_are_looked_at():
    grid = PatchGrid.regular((4, 48, 48), (2, 16, 48), 0)
    volume = cell_levels(grid, lambda: np.ones(grid.counts, np.uint8), np.uint8, gap=0)[0]

    plane = volume[2]  # a cell begins here along Z, but nothing is seen of that
    assert np.flatnonzero((plane == 0).all(axis=1)).tolist() == [16, 32]
    assert plane.sum() == 46 * 48


def test_coarse_levels_show_the_same_cells():
    shape = (100, 400, 400)
    grid = PatchGrid.regular(shape, (50, 100, 100), 0)
    numbers = np.arange(len(grid), dtype=np.int32).reshape(grid.counts)
    levels = cell_levels(grid, lambda: numbers, np.int32)

    assert [level.shape for level in levels] == level_shapes(shape)
    assert level_shapes(shape) == [shape, (100, 200, 200), (100, 100, 100)]
    for level in levels:
        step = [full // coarse for full, coarse in zip(shape, level.shape, strict=True)]
        sampled = np.asarray(levels[0])[:: step[0], :: step[1], :: step[2]]
        np.testing.assert_array_equal(np.asarray(level), sampled)


def test_what_is_looked_through_has_few_voxels_but_all_cells_and_each_where_it_is():
    grid = PatchGrid.regular((160, 2304, 2304), (32, 128, 128), 0.5)
    numbers = np.arange(len(grid), dtype=np.int32).reshape(grid.counts)
    levels = cell_levels(grid, lambda: numbers, np.int32, is_looked_through=True)
    last = np.asarray(levels[-1])

    assert [level.shape for level in levels[:-1]] == level_shapes(grid.shape)
    assert last.shape == (32, 105, 105)  # 9 x 35 x 35 patches
    np.testing.assert_array_equal(np.unique(last), np.arange(len(grid)))
    steps = [full / few for full, few in zip(grid.shape, last.shape, strict=True)]
    for axis, (starts, step) in enumerate(zip(grid.starts, steps, strict=True)):
        midlines = (starts[:-1] + starts[1:] + grid.patch_size[axis]) / 2
        line = last[tuple(slice(None) if each == axis else 0 for each in range(3))]
        drawn = step * (1 + np.flatnonzero(np.diff(line)))
        assert np.abs(drawn - midlines).max() <= step / 2


def test_a_level_is_not_made_that_would_be_about_as_large():
    grid = PatchGrid.regular((40, 40, 40), (4, 4, 4), 0.5)
    levels = cell_levels(grid, lambda: np.zeros(grid.counts), float, is_looked_through=True)

    assert [level.shape for level in levels] == [(40, 40, 40)]


def test_of_a_level_that_is_cropped_first_only_the_plane_is_computed():
    values, asked = np.arange(3 * 5 * 7).reshape(3, 5, 7), []

    def read(ranges):
        asked.append(ranges)
        return values[ranges]

    level = Cropped(LazyArray(values.shape, values.dtype, read))
    crop = level[:, 1:4, 2:]
    assert (crop.shape, asked) == ((3, 3, 5), [])
    np.testing.assert_array_equal(np.asarray(crop[1, :, :]), values[1, 1:4, 2:])
    np.testing.assert_array_equal(crop[..., -1], values[:, 1:4, -1])
    assert asked[0] == (slice(1, 2), slice(1, 4), slice(2, 7))
    np.testing.assert_array_equal(level[2], values[2])
    np.testing.assert_array_equal(level[::2, ::-1, 1:4:2], values[::2, ::-1, 1:4:2])
    np.testing.assert_array_equal(level, values)


def test_the_lines_of_a_plane_are_the_faces_of_all_patches_once():
    grid = PatchGrid.regular((4, 6, 10), (4, 4, 4), 0.5)  # Y starts 0, 2; X starts 0, 2, 4, 6
    lines = grid_lines(grid, 0, 3)

    along_y = lines[lines[:, 1, 1] > 0]
    along_x = lines[lines[:, 1, 2] > 0]
    np.testing.assert_array_equal(sorted(along_y[:, 0, 2]), [-0.5, 1.5, 3.5, 5.5, 7.5, 9.5])
    np.testing.assert_array_equal(sorted(along_x[:, 0, 1]), [-0.5, 1.5, 3.5, 5.5])
    assert (lines[:, 0, 0] == 3).all()
    assert (along_y[:, 1] == (0, 6, 0)).all()
    assert (along_x[:, 1] == (0, 0, 10)).all()


def test_the_lattice_has_a_line_per_crossing_of_faces():
    grid = PatchGrid.regular((4, 6, 10), (4, 4, 4), 0.5)  # faces: 2 in Z, 4 in Y, 6 in X

    assert len(grid_lines(grid, None, 0)) == 4 * 6 + 2 * 6 + 2 * 4


def test_a_lattice_of_too_many_lines_is_drawn_on_the_faces_of_the_volume():
    grid = PatchGrid.regular((80, 80, 80), (2, 2, 2), 0)  # 41 faces along each axis

    lines = grid_lines(grid, None, 0)
    assert len(lines) == 3 * 4 * 40
    assert (np.isin(lines[:, 0], (-0.5, 79.5)).sum(axis=1) >= 2).all()


def test_ten_thousand_patches_need_few_lines():
    grid = PatchGrid.regular((80, 1000, 1000), (16, 64, 64), 0.5)
    assert len(grid) > 8_000

    assert len(grid_lines(grid, 0, 0)) < 100
