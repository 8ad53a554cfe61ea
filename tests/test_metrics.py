import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_seamless import metrics
from napari_seamless.engine.errors import SourceError
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.metrics import dice


@pytest.fixture
def volumes():
    generator = np.random.default_rng(0)
    return generator.random((1, 7, 9, 11), dtype=np.float32), generator.integers(0, 3, (7, 9, 11))


def expected(prediction, labels, threshold=0.5):
    """Return the coefficient by its definition, on whole arrays."""
    known = ~np.isnan(prediction)
    found, true = prediction[known] > threshold, labels[known] != 0
    return 2 * (found & true).sum() / (found.sum() + true.sum())


def test_by_hand():
    labels = np.array([[[0, 0, 7, 255]]])
    assert dice(np.array([[[0.0, 0.6, 0.7, 0.1]]]), labels) == 0.5
    assert dice(np.array([[[0.0, 0.1, 0.7, 0.9]]]), labels) == 1
    assert dice(np.array([[[0.9, 0.8, 0.1, 0.2]]]), labels) == 0
    assert dice(np.array([[[0.0, 0.5, 0.7, 0.9]]]), labels) == 1  # 0.5 itself is background
    assert dice(np.array([[[0.0, 0.5, 0.7, 0.9]]]), labels, threshold=0.8) == pytest.approx(2 / 3)


@given(st.integers(1, 400), st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
def test_it_does_not_depend_on_the_planes_read_at_a_time(voxels, seed, threshold):
    generator = np.random.default_rng(seed)
    prediction = generator.random((5, 6, 7), dtype=np.float32)
    prediction[generator.random(prediction.shape) < 0.3] = np.nan
    labels = generator.integers(0, 2, prediction.shape, dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "SLAB_VOXELS", voxels)
        assert dice(prediction, labels, threshold) == expected(prediction, labels, threshold)


def test_kinds_of_arrays(volumes, tmp_path):
    prediction, labels = volumes
    value = expected(prediction[0], labels)
    assert dice(prediction, labels) == value
    assert dice(prediction[0], labels) == value
    assert dice(prediction, labels[None].astype(bool)) == value
    assert dice(LazyArray(prediction.shape, np.float32, lambda r: prediction[r]), labels) == value
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["main"], file["labels"] = prediction, labels
        assert dice(file["main"], file["labels"]) == value
    assert isinstance(dice(prediction, labels), float)


def test_what_is_not_predicted_is_left_out(volumes):
    prediction, labels = volumes
    prediction[0, 3:] = np.nan
    assert dice(prediction, labels) == expected(prediction[0, :3], labels[:3])


def test_nothing_to_compare(volumes):
    nothing = np.zeros((2, 3, 4))
    assert dice(nothing, nothing) == 1
    assert np.isnan(dice(np.full((2, 3, 4), np.nan), nothing + 1))


def test_two_axes():
    assert dice(np.eye(4), np.eye(4)) == 1


@pytest.mark.parametrize(
    ("prediction", "labels", "said"),
    [
        ((1, 4, 5, 6), (4, 5, 7), r"shape \(1, 4, 5, 6\) and the labels \(1, 4, 5, 7\)"),
        ((2, 4, 5, 6), (4, 5, 6), r"shape \(2, 4, 5, 6\) and the labels \(1, 4, 5, 6\)"),
        ((2, 4, 5, 6), (2, 4, 5, 6), r"one channel of the same shape: choose one of each"),
        ((4, 5, 6), (3, 4, 5, 6, 7), r"the labels has shape|the labels"),
    ],
)
def test_shapes_that_do_not_fit(prediction, labels, said):
    with pytest.raises(SourceError, match=said):
        dice(np.zeros(prediction), np.zeros(labels))
