import numpy as np
import pytest

from napari_seamless.demo.volume import DEMO_SCALE, demo_volume


@pytest.fixture(scope="module")
def volume():
    return demo_volume((16, 128, 128), seed=3)


def test_shape_and_type(volume):
    raw, membranes = volume
    assert raw.shape == membranes.shape == (16, 128, 128)
    assert raw.dtype == membranes.dtype == np.uint8
    assert set(np.unique(membranes)) == {0, 1}
    assert DEMO_SCALE == (40.0, 8.0, 8.0)


@pytest.mark.slow
def test_default_is_the_demo_size_and_seed_zero():
    raw, membranes = demo_volume()
    assert raw.shape == membranes.shape == (32, 256, 256)
    again, _ = demo_volume((32, 256, 256), seed=0)
    np.testing.assert_array_equal(raw, again)


def test_same_seed_same_volume(volume):
    raw, membranes = demo_volume((16, 128, 128), seed=3)
    np.testing.assert_array_equal(raw, volume[0])
    np.testing.assert_array_equal(membranes, volume[1])


def test_other_seed_other_volume(volume):
    raw, membranes = demo_volume((16, 128, 128), seed=4)
    # Two unrelated masks that each cover a fifth differ in about a third of the voxels.
    assert np.mean(membranes != volume[1]) > 0.2
    assert abs(np.corrcoef(raw.ravel(), volume[0].ravel())[0, 1]) < 0.1


def test_grey_values_use_the_range_without_clipping_much(volume):
    raw, _ = volume
    assert 120 < raw.mean() < 180
    assert 30 < raw.std() < 60
    assert np.mean((raw == 0) | (raw == 255)) < 0.02


@pytest.mark.parametrize("seed", [0, 3, 11])
def test_membranes_are_a_fifth_of_every_section_and_darker(seed):
    raw, membranes = demo_volume((12, 160, 160), seed=seed)
    assert 0.15 < membranes.mean() < 0.30
    for section, mask in zip(raw, membranes == 1, strict=True):
        assert 0.08 < mask.mean() < 0.45
        assert section[mask].mean() < section[~mask].mean() - 25


def test_task_is_not_a_threshold(volume):
    raw, membranes = volume
    # Organelles and noise are as dark as membranes: no grey value separates the two.
    scores = []
    for grey in range(40, 200, 5):
        dark = raw < grey
        scores.append(2 * np.sum(dark & (membranes == 1)) / (dark.sum() + membranes.sum()))
    assert 0.5 < max(scores) < 0.8


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 64, 64), (3, 20, 100)])
def test_any_size_works(shape):
    raw, membranes = demo_volume(shape, seed=1)
    assert raw.shape == membranes.shape == shape


@pytest.mark.parametrize("shape", [(8, 8), (0, 8, 8)])
def test_bad_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"three positive sizes \(Z, Y, X\)"):
        demo_volume(shape)
