import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import (
    FORMULAS,
    SEPARABLE,
    boxes,
    layouts,
    positions_by_rule,
    properties,
    seeds,
    window_by_formula,
)
from napari_seamless.engine.blending import (
    coverage,
    coverage_array,
    highest_coverage,
    highest_weight,
    weight_sum,
    weights_array,
)
from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import ConfigError
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.matrices import blend_bump, blend_gaussian, build_blending_matrix
from napari_seamless.engine.windows import WINDOWS, build_window, defaults_of

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
OF_FLOAT64 = 1e-12
"""Sums and logarithms of float64 weights agree to this, whatever the order of operations."""
EXP_4_5 = 0.011108996538242306

# ---------------------------------------------------------------------------------------- oracles


VARIANTS = [
    *((mode, {}) for mode in FORMULAS),
    ("gaussian", {"sigma": 0.3}),
    ("gaussian", {"sigma": 0.3, "mu": 0.5}),
    ("gaussian", {"pytc_v1": True}),
    ("gaussian", {"pytc_v1": True, "mu": 0.5}),
    ("bump", {"t": 0.7}),
    ("monai_gaussian", {"sigma_scale": 0.3}),
    ("nnunet_gaussian", {"sigma_scale": 0.3}),
]
variants = pytest.mark.parametrize(("mode", "arguments"), VARIANTS)


def sums_by_hand(shape, patch_size, starts, weights, done):
    """Weights and number of patches per voxel, one patch after the other."""
    sums, counts = np.zeros(shape), np.zeros(shape, dtype=int)
    for start, is_in in zip(starts, done.ravel(), strict=True):
        low = np.maximum(start, 0)
        high = np.maximum(low, np.minimum(np.add(start, patch_size), shape))
        if is_in and (high > low).all():
            inside = tuple(map(slice, low, high))
            sums[inside] += weights[tuple(map(slice, low - start, high - start))]
            counts[inside] += 1
    return sums, counts


# ----------------------------------------------------------------------------------- the windows


def test_every_window_has_its_formula():
    assert list(WINDOWS) == list(FORMULAS)


@variants
@pytest.mark.parametrize("patch_size", SIZES)
def test_a_window_is_its_published_formula(patch_size, mode, arguments):
    window = build_window(patch_size, mode, arguments)
    expected = window_by_formula(patch_size, mode, **arguments)
    assert window.patch_size == window.matrix.shape == patch_size
    np.testing.assert_allclose(window.in_float64(), expected, rtol=OF_FLOAT64, atol=0)
    np.testing.assert_allclose(window.matrix, expected, rtol=ONE_STEP_OF_FLOAT32, atol=0)
    assert window.lowest == pytest.approx(expected.min(), rel=OF_FLOAT64, abs=0)


@variants
@pytest.mark.parametrize("patch_size", SIZES)
def test_a_blending_matrix_is_float32(patch_size, mode, arguments):
    matrix = build_blending_matrix(patch_size, mode, **arguments)
    assert matrix.dtype == np.float32
    expected = window_by_formula(patch_size, mode, **arguments)
    np.testing.assert_allclose(matrix, expected, rtol=ONE_STEP_OF_FLOAT32, atol=0)


@variants
@pytest.mark.parametrize("patch_size", [*SIZES, (1, 300, 300), (1, 1000, 1000), (64, 64, 64)])
def test_weights_are_positive_and_finite_everywhere_corners_included(patch_size, mode, arguments):
    for matrix in [
        build_window(patch_size, mode, arguments).matrix,
        build_blending_matrix(patch_size, mode, **arguments),
    ]:
        assert matrix.min() > 0
        assert matrix.max() <= max(1.0001, *patch_size)


@pytest.mark.parametrize(
    ("mode", "lowest"),
    [
        ("gaussian", 1e-4),
        ("bump", 1e-4),
        ("constant", 1),
        ("hann", math.sin(math.pi / 65) ** 6),
        ("monai_gaussian", 1e-3),
        ("nnunet_gaussian", math.exp(-24)),
        ("wu_bump", math.exp(3 * 65**2 / 4 * (1 / (32 * 33) - 1 / 64))),
        ("distance_transform", 1),
    ],
)
def test_weight_of_a_corner(mode, lowest):
    window = build_window((64, 64, 64), mode)
    assert window.lowest == window.in_float64()[0, 0, 0] == window.in_float64().min()
    assert window.lowest == pytest.approx(lowest, rel=OF_FLOAT64, abs=0)


@pytest.mark.parametrize(
    ("mode", "patch_size", "expected"),
    [
        ("gaussian", (1, 1, 1), [1.0001]),
        ("gaussian", (1, 1, 3), [1e-4 + 3.7266531720786e-6, 1.0001, 1e-4 + 3.7266531720786e-6]),
        ("gaussian", (1, 3, 1), [1e-4 + 3.7266531720786e-6, 1.0001, 1e-4 + 3.7266531720786e-6]),
        ("bump", (1, 1, 1), [1.0001]),
        ("bump", (3, 1, 1), [0.013442434715896, 1.0001, 0.013442434715896]),
        ("constant", (1, 2, 2), [1, 1, 1, 1]),
        ("hann", (1, 1, 1), [1]),
        ("hann", (1, 1, 2), [0.75, 0.75]),
        ("hann", (3, 1, 1), [0.5, 1, 0.5]),
        ("hann", (1, 3, 3), [0.25, 0.5, 0.25, 0.5, 1, 0.5, 0.25, 0.5, 0.25]),
        ("monai_gaussian", (1, 1, 1), [1]),
        ("monai_gaussian", (1, 2, 1), [0.1353352832366127, 0.1353352832366127]),
        ("monai_gaussian", (1, 1, 4), [EXP_4_5, 0.606530659712633, 0.606530659712633, EXP_4_5]),
        ("monai_gaussian", (2, 2, 4), [0.001, EXP_4_5, EXP_4_5, 0.001] * 4),
        ("nnunet_gaussian", (1, 1, 1), [1]),
        ("nnunet_gaussian", (1, 2, 1), [math.exp(-8), 1]),
        ("nnunet_gaussian", (2, 1, 2), [math.exp(-16), math.exp(-8), math.exp(-8), 1]),
        ("nnunet_gaussian", (1, 1, 3), [math.exp(-32 / 9), 1, math.exp(-32 / 9)]),
        ("nnunet_gaussian", (4, 1, 1), [math.exp(-8), math.exp(-2), 1, math.exp(-2)]),
        ("wu_bump", (1, 1, 1), [1]),
        ("wu_bump", (1, 3, 1), [0.7165313105737893, 1, 0.7165313105737893]),
        ("distance_transform", (1, 1, 1), [1]),
        ("distance_transform", (1, 1, 5), [1, 2, 3, 2, 1]),
        ("distance_transform", (1, 4, 1), [1, 2, 2, 1]),
        ("distance_transform", (3, 1, 4), [1, 1, 1, 1, 1, 2, 2, 1, 1, 1, 1, 1]),
        ("distance_transform", (3, 3, 3), [*[1] * 13, 2, *[1] * 13]),
    ],
)
def test_window_values_worked_out_by_hand(mode, patch_size, expected):
    found = build_blending_matrix(patch_size, mode)
    np.testing.assert_allclose(found.ravel(), expected, rtol=ONE_STEP_OF_FLOAT32, atol=0)


def test_gaussian_is_the_default_mode():
    np.testing.assert_array_equal(
        build_blending_matrix((3, 4, 5)), build_blending_matrix((3, 4, 5), mode="gaussian")
    )


@variants
def test_windows_are_symmetric(mode, arguments):
    even = 7 if mode == "nnunet_gaussian" else 6  # of 6 voxels, it has its peak at number 3
    matrix = build_blending_matrix((5, even, 9), mode, **arguments)
    for axis in range(3):
        np.testing.assert_allclose(matrix, np.flip(matrix, axis), rtol=ONE_STEP_OF_FLOAT32, atol=0)


@pytest.mark.parametrize(
    ("mode", "peak"),
    [
        ("gaussian", 1.0001),
        ("bump", 1.0001),
        ("constant", 1),
        ("hann", 1),
        ("monai_gaussian", 1),
        ("nnunet_gaussian", 1),
        ("wu_bump", 1),
        ("distance_transform", 3),
    ],
)
def test_windows_peak_at_the_centre(mode, peak):
    matrix = build_blending_matrix((5, 7, 9), mode)
    assert matrix[2, 3, 4] == matrix.max() == np.float32(peak)
    if mode != "constant":
        assert np.count_nonzero(matrix == matrix.max()) == (3 * 5 if mode[:4] == "dist" else 1)


@pytest.mark.parametrize(
    ("mode", "arguments"), [(mode, each) for mode, each in VARIANTS if "pytc_v1" not in each]
)
def test_an_axis_of_one_voxel_leaves_the_others_as_they_are(mode, arguments):
    flat = build_blending_matrix((1, 6, 7), mode, **arguments)
    for axis in (1, 2):
        standing = build_blending_matrix(
            tuple(np.insert((6, 7), axis, 1).tolist()), mode, **arguments
        )
        np.testing.assert_array_equal(np.squeeze(standing, axis), flat[0])
    if mode != "constant":
        assert flat.max() > flat.min()


def test_gaussian_as_v1_has_it_turns_a_plane_into_nearly_a_mean():
    plane = build_blending_matrix((1, 9, 9), "gaussian", pytc_v1=True)
    coordinate = np.linspace(-1, 1, 9)
    r = np.sqrt(1 + coordinate.reshape(9, 1) ** 2 + coordinate**2)
    expected = 1e-4 + np.exp(-(r**2) / (2 * 0.2**2))
    np.testing.assert_allclose(plane[0], expected, rtol=ONE_STEP_OF_FLOAT32)
    assert plane.max() / plane.min() < 1.04 < 5000 < build_blending_matrix((1, 9, 9)).max() / 2e-4


def test_v1_differs_at_axes_of_one_voxel_only():
    as_v1 = blend_gaussian((3, 4, 5), pytc_v1=True)
    np.testing.assert_array_equal(as_v1, blend_gaussian((3, 4, 5)))
    assert blend_gaussian((1, 1, 1), pytc_v1=True)[0, 0, 0] == np.float32(
        1e-4 + math.exp(-3 / 0.08)
    )


@pytest.mark.parametrize("patch_size", SIZES)
def test_blend_functions_are_the_windows(patch_size):
    for blend, mode in [(blend_gaussian, "gaussian"), (blend_bump, "bump")]:
        matrix = blend(patch_size)
        assert matrix.dtype == np.float32
        np.testing.assert_array_equal(matrix, build_blending_matrix(patch_size, mode))


def test_blend_gaussian_takes_sigma_and_mu_in_order():
    found = blend_gaussian((3, 1, 5), 0.3, 0.5)
    expected = window_by_formula((3, 1, 5), "gaussian", sigma=0.3, mu=0.5)
    np.testing.assert_allclose(found, expected, rtol=ONE_STEP_OF_FLOAT32)
    assert found[1, 0, 1] == found.max()  # half way out, where r = mu


def test_blend_bump_takes_t():
    expected = window_by_formula((4, 4, 4), "bump", t=0.7)
    np.testing.assert_allclose(blend_bump((4, 4, 4), 0.7), expected, rtol=ONE_STEP_OF_FLOAT32)


# ----------------------------------------------------------------------------- against the others


@pytest.mark.parametrize("sigma_scale", [0.125, 0.3])
@pytest.mark.parametrize("patch_size", [*SIZES, (96, 96, 96), (1, 512, 512)])
def test_monai_gaussian_is_monais_importance_map(patch_size, sigma_scale):
    utils = pytest.importorskip("monai.data.utils")
    found = build_blending_matrix(patch_size, "monai_gaussian", sigma_scale=sigma_scale)
    theirs = utils.compute_importance_map(patch_size, mode="gaussian", sigma_scale=sigma_scale)
    np.testing.assert_allclose(found, theirs.numpy(), rtol=1e-6, atol=0)
    if patch_size[0] == 1:
        flat = utils.compute_importance_map(
            patch_size[1:], mode="gaussian", sigma_scale=sigma_scale
        )
        np.testing.assert_allclose(found[0], flat.numpy(), rtol=1e-6, atol=0)


@pytest.fixture
def nnunets_gaussian(monkeypatch, tmp_path):
    """Return weights by nnU-Net, scaled to a largest of 1, in float64; it rounds them before."""
    for name in ("raw", "preprocessed", "results"):  # it prints a warning without them
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path))
    theirs = pytest.importorskip("nnunetv2.inference.sliding_window_prediction").compute_gaussian

    def compute(patch_size, sigma_scale=0.125, dtype=torch.float64):
        weights = theirs(
            patch_size,
            sigma_scale=sigma_scale,
            value_scaling_factor=10,
            dtype=dtype,
            device=torch.device("cpu"),
        )
        return weights.double().numpy() / 10

    return compute


@pytest.mark.parametrize("sigma_scale", [0.125, 0.3])
@pytest.mark.parametrize(
    "patch_size",
    [*SIZES, (3, 3, 3), (28, 33, 96), (1, 511, 512), *((1, 1, n) for n in range(1, 99))],
)
def test_nnunet_gaussian_is_nnunets_window(nnunets_gaussian, patch_size, sigma_scale):
    """Its filter ends 4 sigma from the centre, which is beyond the patch: nothing is cut off."""
    window = build_window(patch_size, "nnunet_gaussian", {"sigma_scale": sigma_scale})
    theirs = nnunets_gaussian(patch_size, sigma_scale)
    np.testing.assert_allclose(window.in_float64(), theirs, rtol=1e-14, atol=0)
    theirs = nnunets_gaussian(patch_size, sigma_scale, torch.float32)
    np.testing.assert_allclose(window.matrix, theirs, rtol=2 * ONE_STEP_OF_FLOAT32, atol=0)
    if patch_size[0] == 1:
        flat = nnunets_gaussian(patch_size[1:], sigma_scale)
        np.testing.assert_allclose(window.in_float64()[0], flat, rtol=1e-14, atol=0)


@pytest.mark.parametrize("patch_size", [(8, 16, 16), (28, 33, 96), (64, 64, 64)])
def test_nnunet_gaussian_leaves_out_that_nnunet_rounds_to_float16(nnunets_gaussian, patch_size):
    weights = build_window(patch_size, "nnunet_gaussian").in_float64()
    theirs = nnunets_gaussian(patch_size, dtype=torch.float16)
    normal = weights > 6.2e-6
    np.testing.assert_allclose(theirs[normal], weights[normal], rtol=5e-4, atol=0)
    assert theirs.min() == pytest.approx(5.96e-9, rel=1e-3)
    assert weights.min() < 1e-10


@pytest.mark.parametrize("sigma_scale", [0.12, 0.1, 0.05])
def test_nnunet_gaussian_goes_on_where_a_thinner_one_of_nnunet_is_cut_off(
    nnunets_gaussian, sigma_scale
):
    weights = build_window((32, 33, 64), "nnunet_gaussian", {"sigma_scale": sigma_scale})
    theirs = nnunets_gaussian((32, 33, 64), sigma_scale)
    cut = theirs == theirs.min()
    assert 0 < cut.mean() < 1
    ours = weights.in_float64()
    np.testing.assert_allclose(ours[~cut], theirs[~cut], rtol=OF_FLOAT64, atol=0)
    np.testing.assert_allclose(ours[cut], theirs[cut], rtol=0, atol=math.exp(-8))


@pytest.mark.parametrize("length", [1, 2, 7, 64])
def test_hann_is_what_torchio_multiplies(length):
    theirs = torch.hann_window(length + 2, periodic=False, dtype=torch.float64)[1:-1]
    found = build_blending_matrix((1, length, 1), "hann")
    np.testing.assert_allclose(found.ravel(), theirs, rtol=ONE_STEP_OF_FLOAT32, atol=0)


@pytest.mark.parametrize(
    ("patch_size", "parts", "total"),
    [((63, 7, 15), 2, 1), ((1, 63, 63), 2, 1), ((15, 1, 11), 4, 4), ((1, 14, 8), 3, 2.25)],
)
def test_hann_adds_up_to_one_number_at_strides_that_divide_its_period(patch_size, parts, total):
    thick = [n > 1 for n in patch_size]
    strides = [(n + 1) // parts if n > 1 else 1 for n in patch_size]
    overlaps = tuple(n - s for n, s in zip(patch_size, strides, strict=True))
    shape = tuple(n + 4 * s for n, s in zip(patch_size, strides, strict=True))
    grid = PatchGrid.regular(shape, patch_size, overlaps)
    done = np.ones(grid.counts, dtype=bool)
    found = weight_sum(grid, build_window(patch_size, "hann"), done, Box.of_shape(shape))
    inner = tuple(
        slice(n - s, size - n + s) for n, s, size in zip(patch_size, strides, shape, strict=True)
    )
    assert total == pytest.approx((parts / 2) ** sum(thick))
    np.testing.assert_allclose(found[inner], total, rtol=OF_FLOAT64)


# ------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("mode", "patch_size", "dtype"),
    [
        ("gaussian", (96, 96, 96), np.float32),
        ("hann", (128, 128, 128), np.float32),
        ("nnunet_gaussian", (128, 128, 128), np.float32),
        ("distance_transform", (8, 128, 128), np.float32),
        ("wu_bump", (32, 32, 32), np.float32),
        ("wu_bump", (1, 64, 64), np.float32),
        ("wu_bump", (64, 64, 64), np.float64),
        ("wu_bump", (8, 128, 128), np.float64),
        ("wu_bump", (1, 1000, 1000), np.float64),
    ],
)
def test_a_matrix_is_float32_unless_that_would_round_small_products_off(mode, patch_size, dtype):
    window = build_window(patch_size, mode)
    assert window.matrix.dtype == dtype
    weight = window.in_float64()[0, 0, 0]
    for value in (1.0, 0.001, 1e-12, 1e-19):
        prediction = torch.tensor(value, dtype=torch.float32)
        product = (prediction * torch.from_numpy(window.matrix)[0, 0, 0]).double()
        assert product.item() / weight == pytest.approx(value, rel=1e-6, abs=0)


def test_a_blending_matrix_below_float32_is_raised_to_its_smallest_number():
    matrix = build_blending_matrix((1, 400, 400), "wu_bump")
    expected = window_by_formula((1, 400, 400), "wu_bump")
    smallest = np.finfo(np.float32).tiny
    assert matrix.dtype == np.float32
    assert matrix.min() == smallest > expected.min()
    np.testing.assert_allclose(matrix, np.maximum(expected, smallest), rtol=1e-6, atol=0)


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("mode", "arguments", "said"),
    [
        (
            "triangle",
            {},
            "blending 'triangle' is unknown; choose one of gaussian, bump, constant, hann, "
            "monai_gaussian, nnunet_gaussian, wu_bump, distance_transform",
        ),
        (
            "gaussian",
            {"sigm": 1},
            "argument 'sigm' of blending 'gaussian' is unknown; it takes sigma, mu, pytc_v1",
        ),
        (
            "bump",
            {"t": 2.0, "sigma": 1},
            "argument 'sigma' of blending 'bump' is unknown; it takes t",
        ),
        ("hann", {"t": 1}, "argument 't' of blending 'hann' is unknown; it takes none"),
        (
            "gaussian",
            {"patch_size": (2, 2, 2)},
            "argument 'patch_size' of blending 'gaussian' is unknown; it takes sigma, mu, pytc_v1",
        ),
        (
            "gaussian",
            {"sigma": 0},
            "sigma 0 of blending 'gaussian' is not usable: "
            "give a finite number above 0, for example 0.2",
        ),
        (
            "gaussian",
            {"mu": math.nan},
            "mu nan of blending 'gaussian' is not usable: give a finite number, for example 0.0",
        ),
        (
            "gaussian",
            {"pytc_v1": 1},
            "pytc_v1 1 of blending 'gaussian' is not usable: give True or False, for example False",
        ),
        (
            "bump",
            {"t": -1.5},
            "t -1.5 of blending 'bump' is not usable: "
            "give a finite number above 0, for example 1.5",
        ),
        (
            "monai_gaussian",
            {"sigma_scale": "0.1"},
            "sigma_scale '0.1' of blending 'monai_gaussian' is not usable: "
            "give a finite number above 0, for example 0.125",
        ),
        (
            "bump",
            {"t": 1e5},
            "blending 'bump' on patch_size (4, 4, 4) has a smallest weight of nan; at least "
            "1.9e-270 is needed: choose a smaller patch, other arguments or another window",
        ),
    ],
)
def test_refusals_name_the_value_what_is_allowed_and_the_remedy(mode, arguments, said):
    for build in (
        lambda: build_window((4, 4, 4), mode, arguments),
        lambda: build_window(patch_size=(4, 4, 4), mode=mode, arguments=dict(arguments)),
    ):
        with pytest.raises(ConfigError) as caught:
            build()
        assert str(caught.value) == said


@pytest.mark.parametrize(
    "value", [0, -0.1, math.nan, math.inf, -math.inf, True, None, "1", 10**400]
)
@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("gaussian", "sigma"),
        ("bump", "t"),
        ("monai_gaussian", "sigma_scale"),
        ("nnunet_gaussian", "sigma_scale"),
    ],
)
def test_arguments_that_are_no_positive_number_are_refused(mode, name, value):
    with pytest.raises(ConfigError, match=rf"^{name} .* above 0"):
        build_blending_matrix((4, 4, 4), mode, **{name: value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, False, None, "0", [0.5]])
def test_mu_that_is_no_finite_number_is_refused(value):
    with pytest.raises(ConfigError, match=r"^mu .* give a finite number, "):
        blend_gaussian((4, 4, 4), mu=value)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5)])
def test_numbers_of_numpy_are_numbers(value):
    expected = window_by_formula((4, 4, 4), "gaussian", mu=0.5)
    found = build_window((4, 4, 4), "gaussian", {"mu": value}).in_float64()
    np.testing.assert_allclose(found, expected, rtol=OF_FLOAT64)


@pytest.mark.parametrize("mode", ["gaussian", "monai_gaussian"])
def test_a_bell_thinner_than_any_voxel_is_its_floor(mode):
    name, floor = next(iter(defaults_of(mode))), {"gaussian": 1e-4, "monai_gaussian": 1e-3}[mode]
    matrix = build_blending_matrix((3, 3, 3), mode, **{name: 1e-320})
    assert matrix[1, 1, 1] == np.float32(max(1, 1 + floor * (mode == "gaussian")))
    assert np.count_nonzero(matrix == np.float32(floor)) == 26


@pytest.mark.parametrize("patch_size", [(1, 4096, 4096), (4096, 1, 1), (4096, 4096, 4096)])
def test_a_window_whose_corners_weigh_nothing_is_refused(patch_size):
    with pytest.raises(ConfigError, match=r"smallest weight of 0; .* a smaller patch"):
        build_window(patch_size, "wu_bump")


def test_a_bell_without_a_floor_that_is_too_thin_is_refused():
    with pytest.raises(ConfigError, match=r"smallest weight of 0; .* other arguments"):
        build_blending_matrix((4, 4, 4), "nnunet_gaussian", sigma_scale=0.01)


def test_the_defaults_of_a_window_can_be_asked_for():
    assert defaults_of("gaussian") == {"sigma": 0.2, "mu": 0.0, "pytc_v1": False}
    assert defaults_of("bump") == {"t": 1.5}
    assert defaults_of("monai_gaussian") == {"sigma_scale": 0.125}
    assert defaults_of("nnunet_gaussian") == {"sigma_scale": 0.125}
    for mode in ("constant", "hann", "wu_bump", "distance_transform"):
        assert defaults_of(mode) == {}


@pytest.mark.parametrize(
    "patch_size",
    [(4, 4), (4, 4, 4, 4), (0, 4, 4), (4, -1, 4), (4, 4.5, 4), (4.0, 4.0, 4.0), ("4", "4", "4"), 4],
)
@pytest.mark.parametrize("mode", WINDOWS)
def test_patch_size_that_is_not_three_positive_whole_numbers_is_refused(patch_size, mode):
    with pytest.raises(ConfigError, match="three positive integers"):
        build_blending_matrix(patch_size, mode)


# ------------------------------------------------------------------------------- sums of weights


def assert_sums(grid, starts, mode, arguments, done, box) -> None:
    weights = window_by_formula(grid.patch_size, mode, **arguments)
    sums, counts = sums_by_hand(grid.shape, grid.patch_size, starts, weights, done)
    found = weight_sum(grid, build_window(grid.patch_size, mode, arguments), done, box)
    assert found.shape == box.shape
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, sums[box.slices], rtol=OF_FLOAT64, atol=0)
    np.testing.assert_array_equal(coverage(grid, done, box), counts[box.slices])


@variants
@properties(40)
@given(st.data(), layouts(), seeds)
def test_weights_of_some_patches_agree_with_brute_force_in_any_box(
    mode, arguments, data, layout, seed
):
    random = np.random.default_rng(seed)
    done = random.random(layout.grid.counts) < random.random()
    box = data.draw(boxes(layout.shape))
    assert_sums(layout.grid, layout.positions, mode, arguments, done, box)


@variants
@properties(15)
@given(st.data(), layouts())
def test_weights_of_all_patches_are_the_sum_of_all_windows_in_any_box(
    mode, arguments, data, layout
):
    done = np.ones(layout.grid.counts, dtype=bool)
    for box in (data.draw(boxes(layout.shape)), Box.of_shape(layout.shape)):
        assert_sums(layout.grid, layout.positions, mode, arguments, done, box)


@variants
@properties(25)
@given(st.data(), layouts(), seeds, st.booleans())
def test_weights_of_patches_that_reach_outside_of_the_volume(
    mode, arguments, data, layout, seed, all_in
):
    """Cut to a part of its volume, a grid has patches over every face, and some quite outside."""
    part = data.draw(boxes(layout.shape))
    grid = layout.grid.cropped(part)
    starts = np.subtract(layout.positions, part.start)
    done = np.random.default_rng(seed).random(grid.counts) < (2 if all_in else 0.5)
    for box in (data.draw(boxes(grid.shape)), Box.of_shape(grid.shape)):
        assert_sums(grid, starts, mode, arguments, done, box)
    found = highest_weight(grid, build_window(grid.patch_size, mode, arguments))
    weights = window_by_formula(grid.patch_size, mode, **arguments)
    sums, counts = sums_by_hand(grid.shape, grid.patch_size, starts, weights, done | True)
    assert found >= sums.max() * (1 - OF_FLOAT64)
    assert found <= weights.max() * counts.max() * (1 + OF_FLOAT64)
    assert highest_coverage(grid) == counts.max()


@pytest.mark.parametrize("mode", ["constant", "hann", "nnunet_gaussian", "wu_bump"])
def test_highest_weight_is_exact_without_a_floor(mode):
    shape, patch_size = (9, 11, 13), (4, 5, 6)
    grid = PatchGrid.regular(shape, patch_size, 0.5)
    starts = positions_by_rule(shape, patch_size, 0.5)
    everything = np.ones(grid.counts, dtype=bool)
    weights = window_by_formula(patch_size, mode)
    sums, _ = sums_by_hand(shape, patch_size, starts, weights, everything)
    found = highest_weight(grid, build_window(patch_size, mode))
    assert found == pytest.approx(sums.max(), rel=OF_FLOAT64)


@variants
def test_no_patch_done_is_exactly_zero_weight(mode, arguments):
    grid = PatchGrid.regular((6, 7, 8), (4, 4, 4), 0.5)
    none = np.zeros(grid.counts, dtype=bool)
    window = build_window((4, 4, 4), mode, arguments)
    found = weight_sum(grid, window, none, Box((1, 2, 3), (5, 7, 8)))
    np.testing.assert_array_equal(found, np.zeros((4, 5, 5)))


@variants
def test_an_empty_box_has_no_weights(mode, arguments):
    grid = PatchGrid.regular((6, 3, 8), (4, 4, 4), 0.5)
    done = np.ones(grid.counts, dtype=bool)
    window = build_window((4, 4, 4), mode, arguments)
    for start in (0, 3, 6):
        found = weight_sum(grid, window, done, Box((start, 0, 0), (start, 3, 8)))
        assert found.shape == (0, 3, 8)


@variants
def test_lazy_arrays_compute_what_is_looked_at(mode, arguments):
    grid = PatchGrid.regular((9, 7, 8), (4, 4, 4), 0.5)
    starts = positions_by_rule((9, 7, 8), (4, 4, 4), 0.5)
    done = np.random.default_rng(0).random(grid.counts) < 0.5
    weights = window_by_formula((4, 4, 4), mode, **arguments)
    sums, counts = sums_by_hand((9, 7, 8), (4, 4, 4), starts, weights, done)
    window = build_window((4, 4, 4), mode, arguments)
    plane = weights_array(grid, window, lambda: done)[4]
    assert plane.dtype == np.float32
    np.testing.assert_allclose(plane, sums[4], rtol=1e-6, atol=0)
    np.testing.assert_array_equal(coverage_array(grid, lambda: done)[:, 2], counts[:, 2])


@variants
def test_a_separable_window_keeps_three_lines_and_a_dense_one_its_patch(mode, arguments):
    window = build_window((20, 30, 40), mode, arguments)
    if mode in SEPARABLE and not arguments.get("mu"):
        assert vars(window).keys() == {"tapers", "floor"}
        assert [len(taper) for taper in window.tapers] == [20, 30, 40]
    else:
        assert vars(window).keys() == {"weights"}
        assert window.weights.shape == (20, 30, 40)


def test_naming_the_windows_loads_neither_scipy_nor_torch():
    code = "import sys, napari_seamless.engine.blending; print({'scipy', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
