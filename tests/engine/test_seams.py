"""How much a prediction jumps at the faces of patches."""

import numpy as np
import pytest

from napari_seamless.engine import seams
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.seams import SeamScore, faces_of, seam_map, seam_score

GRID = PatchGrid.regular((6, 8, 12), (6, 4, 6), 0.5)  # y: 0, 2, 4; x: 0, 3, 6


def ramp() -> np.ndarray:
    """Rises by 1 per plane, 2 per row and 3 per column."""
    z, y, x = np.indices(GRID.shape)
    return (z + 2 * y + 3 * x).astype(np.float32)[None]


def lazy(values: np.ndarray) -> LazyArray:
    return LazyArray(values.shape, values.dtype, lambda ranges: values[ranges])


def test_faces_are_where_patches_begin_or_end_inside_the_volume():
    assert [each.tolist() for each in faces_of(GRID)] == [[], [2, 4, 6], [3, 6, 9]]


def test_a_ramp_has_no_seams():
    score = seam_score(ramp(), GRID)
    assert score.inside == (1.0, 2.0, 3.0)
    assert np.isnan(score.at_faces[0])
    assert score.at_faces[1:] == (2.0, 3.0)
    assert score.ratios[1:] == (1.0, 1.0)
    assert score.worst == 1.0
    assert str(score) == "1.00 (Y 1.00, X 1.00)"


def test_a_step_at_one_of_three_faces_counts_a_third():
    stepped = ramp()
    stepped[..., 6:] += 9
    score = seam_score(stepped, GRID)
    assert score.at_faces[2] == pytest.approx((3 + 12 + 3) / 3)
    assert score.inside[2] == 3.0
    assert score.worst == pytest.approx(2.0)
    assert score.ratios[1] == 1.0


def test_a_step_away_from_faces_is_no_seam():
    stepped = ramp()
    stepped[..., 5:] += 9
    assert seam_score(stepped, GRID).worst == 1.0
    assert seam_score(stepped, GRID).ratios[2] < 1


def test_what_is_not_known_does_not_count():
    partial = ramp()
    partial[:, :, :, 5:] = np.nan
    partial[:, :, :, 3:5] += 5  # a step at x = 3, the only face that is known
    score = seam_score(partial, GRID)
    assert score.at_faces[2] == 8.0
    assert score.inside[2] == 3.0
    assert np.isnan(seam_score(np.full_like(partial, np.nan), GRID).worst)
    assert str(seam_score(np.full_like(partial, np.nan), GRID)) == "none known"


def test_a_constant_with_a_step_is_infinitely_worse_at_the_step():
    flat = np.zeros((1, *GRID.shape), np.float32)
    assert np.isnan(seam_score(flat, GRID).worst)
    flat[..., 3:] = 1
    assert seam_score(flat, GRID).worst == np.inf
    assert SeamScore((0, 0, 1), (0, 0, 0)).ratios[2] == np.inf


def test_of_many_planes_some_are_read_evenly_spaced(monkeypatch):
    monkeypatch.setattr(seams, "MOST_PLANES", 2)
    stepped = ramp()
    stepped[..., 6:] += 9  # the middle one of three faces is left out
    assert seam_score(stepped, GRID).at_faces[2] == 3.0


def test_the_map_has_what_is_more_than_beside_a_face_on_both_sides_of_it():
    values = np.concatenate([ramp(), 10 * ramp()])
    values[0, ..., 6:] += 100
    found = np.asarray(seam_map(lazy(values), GRID))

    expected = np.full(GRID.shape, np.nan, np.float32)
    for row in (2, 4, 6):
        expected[:, row - 1 : row + 1] = 0
    for column in (3, 9):
        expected[..., column - 1 : column + 1] = 0
    expected[..., 5:7] = 100
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_where_nothing_is_known_beside_a_face_the_map_has_the_whole_jump():
    values = ramp()
    values[..., :2] = np.nan
    values[..., 4:] = np.nan  # known are the two voxels at the face x = 3
    values[..., 3] += 7
    found = np.asarray(seam_map(lazy(values), GRID))
    np.testing.assert_allclose(found[0, 0, 2:4], 10)
    assert np.isnan(found[0, 0, [*range(2), *range(4, 12)]]).all()


def test_a_part_of_the_map_is_that_part_of_the_whole():
    values = np.random.default_rng(0).random((1, *GRID.shape)).astype(np.float32)
    values[:, :, :, 8:] = np.nan
    whole = seam_map(lazy(values), GRID)
    for key in (np.s_[2:3, :, :], np.s_[:, 3:4, :], np.s_[0:1, 4:5, 6:7], np.s_[3:4, 1:3, 5:9]):
        np.testing.assert_array_equal(whole[key], np.asarray(whole)[key])
