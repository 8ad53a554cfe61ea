import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import MODES, Reference, boxes, layouts, properties, seeds, window_by_formula
from napari_seamless.engine.blending import (
    blend_bump,
    blend_gaussian,
    build_blending_matrix,
    build_window,
    coverage,
    weight_sum,
)
from napari_seamless.engine.errors import ConfigError
from napari_seamless.engine.grid import Box, PatchGrid

SIZES = [
    (8, 16, 16),
    (8, 128, 128),
    (5, 7, 6),
    (1, 16, 9),
    (4, 1, 5),
    (1, 1, 7),
    (1, 1, 1),
    (2, 2, 2),
]
ONE_STEP_OF_FLOAT32 = 1.2e-7


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("patch_size", SIZES)
def test_a_window_is_its_published_formula(patch_size, mode):
    matrix = build_blending_matrix(patch_size, mode)
    assert matrix.dtype == np.float32
    assert matrix.shape == patch_size
    np.testing.assert_allclose(
        matrix, window_by_formula(patch_size, mode), rtol=ONE_STEP_OF_FLOAT32, atol=0
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("patch_size", [*SIZES, (1, 300, 300), (64, 64, 64)])
def test_weights_are_positive_everywhere_corners_included(patch_size, mode):
    assert build_blending_matrix(patch_size, mode).min() >= np.float32(1e-4)


@pytest.mark.parametrize(
    ("mode", "patch_size", "expected"),
    [
        ("gaussian", (1, 1, 1), [1.0001]),
        ("gaussian", (1, 1, 3), [1e-4 + 3.7266531720786e-6, 1.0001, 1e-4 + 3.7266531720786e-6]),
        ("gaussian", (1, 3, 1), [1e-4 + 3.7266531720786e-6, 1.0001, 1e-4 + 3.7266531720786e-6]),
        ("bump", (1, 1, 1), [1.0001]),
        ("bump", (3, 1, 1), [0.013442434715896, 1.0001, 0.013442434715896]),
        ("constant", (1, 2, 2), [1, 1, 1, 1]),
    ],
)
def test_window_values_worked_out_by_hand(mode, patch_size, expected):
    found = build_blending_matrix(patch_size, mode)
    np.testing.assert_allclose(found.ravel(), expected, rtol=ONE_STEP_OF_FLOAT32, atol=0)


def test_gaussian_is_the_default_mode():
    np.testing.assert_array_equal(
        build_blending_matrix((3, 4, 5)), build_blending_matrix((3, 4, 5), mode="gaussian")
    )


@pytest.mark.parametrize("mode", MODES)
def test_windows_are_symmetric_and_peak_at_the_centre(mode):
    matrix = build_blending_matrix((5, 6, 7), mode)
    for axis in range(3):
        np.testing.assert_allclose(matrix, np.flip(matrix, axis), rtol=ONE_STEP_OF_FLOAT32)
    assert matrix[2, 2, 3] == matrix.max()


@pytest.mark.parametrize("patch_size", SIZES)
def test_blend_functions_are_the_windows(patch_size):
    for blend, mode in [(blend_gaussian, "gaussian"), (blend_bump, "bump")]:
        matrix = blend(patch_size)
        assert matrix.dtype == np.float32
        np.testing.assert_allclose(
            matrix, window_by_formula(patch_size, mode), rtol=ONE_STEP_OF_FLOAT32
        )


def test_gaussian_takes_sigma_and_mu():
    z, y, x = np.meshgrid(np.linspace(-1, 1, 3), [0.0], np.linspace(-1, 1, 5), indexing="ij")
    r = np.sqrt(z**2 + y**2 + x**2)
    expected = 1e-4 + np.exp(-((r - 0.5) ** 2) / (2 * 0.3**2))
    found = blend_gaussian((3, 1, 5), sigma=0.3, mu=0.5)
    np.testing.assert_allclose(found, expected, rtol=ONE_STEP_OF_FLOAT32)
    assert found[1, 0, 1] == found.max()  # half way out, where r = mu


def test_bump_takes_t():
    u = np.linspace(0, 1, 6)[1:-1]
    d = -((u * (1 - u)) ** -0.7)
    d = d.reshape(4, 1, 1) + d.reshape(1, 4, 1) + d.reshape(1, 1, 4)
    np.testing.assert_allclose(
        blend_bump((4, 4, 4), t=0.7), 1e-4 + np.exp(d - d.max()), rtol=ONE_STEP_OF_FLOAT32
    )


def test_unknown_window_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'triangle' .* gaussian, bump, constant"):
        build_blending_matrix((4, 4, 4), "triangle")


@pytest.mark.parametrize("patch_size", [(4, 4), (4, 4, 4, 4), (0, 4, 4), (4, -1, 4)])
def test_patch_size_that_is_not_three_positive_numbers_is_refused(patch_size):
    with pytest.raises(ConfigError, match="three positive integers"):
        build_blending_matrix(patch_size)


@pytest.mark.parametrize("patch_size", [(4, 4.5, 4), (4.0, 4.0, 4.0), ("4", "4", "4"), 4])
@pytest.mark.parametrize("mode", MODES)
def test_patch_size_that_is_not_whole_numbers_is_refused(patch_size, mode):
    with pytest.raises(ConfigError, match="three positive integers"):
        build_blending_matrix(patch_size, mode)


def fill(layout, mode, done) -> Reference:
    """Sum the windows of the patches done, one after the other."""
    reference = Reference(layout.shape, layout.patch_size, mode)
    nothing = np.zeros((1, *layout.patch_size))
    for start, is_in in zip(layout.positions, done.ravel(), strict=True):
        if is_in:
            reference.add(start, nothing)
    return reference


def assert_weights(layout, mode, done, box) -> None:
    reference = fill(layout, mode, done)
    window = build_window(layout.patch_size, mode)
    found = weight_sum(layout.grid, window, done, box)
    assert found.shape == box.shape
    np.testing.assert_allclose(found, reference.weights[box.slices], rtol=1e-12, atol=0)
    np.testing.assert_array_equal(coverage(layout.grid, done, box), reference.counts[box.slices])


@properties(150)
@given(st.data(), layouts(), st.sampled_from(MODES), seeds)
def test_weights_of_some_patches_agree_with_brute_force_in_any_box(data, layout, mode, seed):
    random = np.random.default_rng(seed)
    done = random.random(layout.grid.counts) < random.random()
    assert_weights(layout, mode, done, data.draw(boxes(layout.shape)))


@properties(60)
@given(st.data(), layouts(), st.sampled_from(MODES))
def test_weights_of_all_patches_are_the_sum_of_all_windows_in_any_box(data, layout, mode):
    done = np.ones(layout.grid.counts, dtype=bool)
    assert_weights(layout, mode, done, data.draw(boxes(layout.shape)))
    assert_weights(layout, mode, done, Box.of_shape(layout.shape))


@pytest.mark.parametrize("mode", MODES)
def test_no_patch_done_is_exactly_zero_weight(mode):
    grid = PatchGrid((6, 7, 8), (4, 4, 4), 0.5)
    none = np.zeros(grid.counts, dtype=bool)
    found = weight_sum(grid, build_window((4, 4, 4), mode), none, Box((1, 2, 3), (5, 7, 8)))
    np.testing.assert_array_equal(found, np.zeros((4, 5, 5)))
