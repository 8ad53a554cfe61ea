import pickle
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from napari_seamless import metrics
from napari_seamless.engine.errors import ConfigError, SourceError
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.source import ArraySource
from napari_seamless.metrics import VoxelMetrics, dice, evaluate, instance_metrics

VOXEL_KEYS = [
    "dice",
    "iou",
    "precision",
    "recall",
    "average_precision",
    "mean_squared_error",
    "voxels",
]
INSTANCE_KEYS = [
    "adapted_rand_error",
    "adapted_rand_precision",
    "adapted_rand_recall",
    "voi_split",
    "voi_merge",
    "voi",
]


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


@pytest.mark.slow
@given(st.integers(1, 400), st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
def test_it_does_not_depend_on_the_planes_read_at_a_time(voxels, seed, threshold):
    generator = np.random.default_rng(seed)
    prediction = generator.random((5, 6, 7), dtype=np.float32)
    prediction[generator.random(prediction.shape) < 0.3] = np.nan
    labels = generator.integers(0, 2, prediction.shape, dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.volumes, "SLAB_VOXELS", voxels)
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


# Counted voxels


def counted(*pairs, threshold=0.5):
    """Return what counting pairs of prediction and labels one after the other gives."""
    counts = VoxelMetrics(threshold)
    for prediction, labels in pairs:
        counts.update(prediction, labels)
    return counts.compute()


def by_definition(scores, truth, threshold=0.5):
    """Return the voxel metrics by their definitions, on flat arrays without NaN."""
    sklearn = pytest.importorskip("sklearn.metrics")
    found = scores > threshold
    return {
        "dice": sklearn.f1_score(truth, found),
        "iou": sklearn.jaccard_score(truth, found),
        "precision": sklearn.precision_score(truth, found),
        "recall": sklearn.recall_score(truth, found),
        "average_precision": sklearn.average_precision_score(truth, cut(scores)),
        "mean_squared_error": sklearn.mean_squared_error(truth, scores.astype(np.float64)),
        "voxels": scores.size,
    }


def cut(scores):
    """Return scores of 12 significant bits; between 0.5 and 1 it is 1 - score that has them."""
    near_1 = (scores > 0.5) & (scores <= 1)
    small = np.where(near_1, 1 - scores, scores).astype(np.float32)
    mantissa, exponent = np.frexp(small.astype(np.float64))
    small = np.ldexp(np.trunc(mantissa * 4096) / 4096, exponent)
    return np.where(near_1, 1 - small, small)


def binning_error(scores, truth):
    """Return how far off average precision may be: sum of (p / P) (m - 1) / n over the bins.

    A positive's exact precision is a / b, of a positives among b voxels as high as itself or
    higher. Its bin's end adds x positives among y voxels, x <= y <= m - 1, and b + y = n; since
    a <= b, |a / b - (a + x) / (b + y)| <= y / (b + y).
    """
    _, index, members = np.unique(-cut(scores), return_inverse=True, return_counts=True)
    positives = np.bincount(index, weights=truth)
    return np.sum(positives / truth.sum() * (members - 1) / np.cumsum(members))


def test_the_keys():
    assert list(counted((np.eye(4), np.eye(4)))) == VOXEL_KEYS
    assert list(evaluate(np.eye(4), np.eye(4))) == VOXEL_KEYS
    assert list(instance_metrics(np.eye(4, dtype=int), np.eye(4, dtype=int))) == INSTANCE_KEYS


def test_voxels_by_hand():
    scores, labels = np.array([[0.9, 0.8, 0.7, 0.2, 0.1]]), np.array([[1, 0, 5, 1, 0]])
    assert counted((scores, labels)) == pytest.approx(
        {
            "dice": 4 / 6,
            "iou": 2 / 4,
            "precision": 2 / 3,
            "recall": 2 / 3,
            "average_precision": (1 / 1 + 2 / 3 + 3 / 4) / 3,
            "mean_squared_error": (0.1**2 + 0.8**2 + 0.3**2 + 0.8**2 + 0.1**2) / 5,
            "voxels": 5,
        }
    )


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([np.float16, np.float32, np.float64]))
def test_values_are_those_of_scikit_learn(seed, dtype):
    generator = np.random.default_rng(seed)
    scores = generator.normal(0.5, 2, (1, 5, 6, 7)).astype(dtype)  # logits, of both signs
    labels = generator.integers(0, 3, (5, 6, 7))
    expected = by_definition(scores.ravel(), labels.ravel() > 0)
    assert counted((scores, labels)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["probabilities", "logits", "confident", "narrow"])
def test_average_precision_of_many_scores(kind):
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(3)
    truth = generator.random(200_000) < 0.1
    logits = (generator.normal(0, 1.5, truth.size) + 2 * truth - 1).astype(np.float32)
    scores = {
        "probabilities": 1 / (1 + np.exp(-logits)),
        "logits": logits,
        "confident": 1 / (1 + np.exp(-6 * logits)),  # many are almost 0 or almost 1
        "narrow": 0.5 + logits / 1000,
    }[kind]
    value = counted((scores[None], truth))["average_precision"]
    allowed = binning_error(scores, truth)
    exact = sklearn.average_precision_score(truth, scores)
    assert value == pytest.approx(sklearn.average_precision_score(truth, cut(scores)), rel=1e-9)
    assert abs(value - exact) <= allowed + 1e-12
    # narrow: all scores in about 50 bins; confident: the bound counts float32's own ties at 1 too
    assert kind in ("narrow", "confident") or allowed < 1e-3
    assert kind == "narrow" or abs(value - exact) < 1e-4


def test_average_precision_of_few_scores_is_exact():
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(4)
    truth = generator.random(10_000) < 0.3
    bytes_ = np.clip(generator.normal(100, 60, truth.size) + 50 * truth, 0, 255).astype(np.uint8)
    far = np.array([-np.inf, -3e38, -1.5, -1e-30, -0.0, 0.0, 1e-30, 1.5, 3e38, np.inf], np.float32)
    ranked = generator.integers(0, far.size, truth.size)
    level = np.unique(far, return_inverse=True)[1]  # -0.0 and 0.0 are one score
    for scores, same_order in (
        (bytes_, bytes_),
        (bytes_ / 255, bytes_),
        (far[ranked], level[ranked]),
        (far[ranked] > 0, far[ranked] > 0),
    ):
        value = counted((scores[None], truth))["average_precision"]
        assert value == pytest.approx(
            sklearn.average_precision_score(truth, same_order), rel=1e-12, abs=0
        )


def test_neighbouring_floats_of_twelve_bits_are_told_apart():
    rising = [
        -2049,
        -2048,
        -1.0005,
        -1,
        -0.5,
        0,
        1e-9,
        0.5,
        0.5002,
        0.9999,
        0.9999999,
        1,
        1.0001,
        2,
    ]
    scores = np.array([[*rising, 2048, 2049]])
    for ahead in range(scores.size):
        labels = np.arange(scores.size) >= ahead
        assert counted((scores, labels))["average_precision"] == 1


def test_what_is_nan_is_not_counted(volumes):
    prediction, labels = volumes
    missing = np.random.default_rng(1).random(prediction.shape) < 0.4
    prediction[missing] = np.nan
    expected = by_definition(prediction[~missing], labels[~missing[0]] > 0)
    assert counted((prediction, labels)) == pytest.approx(expected, rel=1e-12)
    assert evaluate(prediction, labels > 0) == pytest.approx(expected, rel=1e-12)


def test_channels_of_class_indices():
    generator = np.random.default_rng(5)
    prediction = generator.random((3, 4, 5, 6))
    labels = generator.integers(0, 3, (4, 5, 6), dtype=np.uint8)
    one_hot = np.stack([labels == 0, labels == 1, labels == 2])
    expected = by_definition(prediction.ravel(), one_hot.ravel())
    for given_as in (labels, labels[None], one_hot, one_hot * 7, labels.astype(float)):
        assert counted((prediction, given_as)) == pytest.approx(expected, rel=1e-12)
        assert evaluate(prediction, given_as) == pytest.approx(expected, rel=1e-12)
    prediction[0, 2] = np.nan  # in one channel only
    known = ~np.isnan(prediction)
    expected = by_definition(prediction[known], one_hot[known])
    assert counted((prediction, labels)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("unknown", [3, 255, -1, 1.5])
def test_unknown_class_indices_are_named(unknown):
    labels = np.zeros((4, 5, 6), type(unknown))
    labels[1, 2, 3] = unknown
    counts = VoxelMetrics()
    with pytest.raises(SourceError, match=rf"hold {unknown}, .* 3 channels.* must be 0 to 2"):
        counts.update(np.zeros((3, 4, 5, 6)), labels)
    assert counts.compute()["voxels"] == 0


def test_one_channel_takes_any_label_as_foreground():
    labels = np.array([[[0, 1, 200]]])
    for given_as in (labels, labels[None]):
        assert counted((np.array([[[[0, 1, 1]]]]), given_as))["dice"] == 1


def test_tensors():
    prediction, labels = np.random.default_rng(6).random((2, 1, 4, 5)).astype(np.float32)
    labels = labels > 0.5
    expected = counted((prediction, labels))
    tensor = torch.tensor(prediction, requires_grad=True)
    assert counted((tensor, torch.tensor(labels))) == expected
    half = torch.tensor(prediction).bfloat16()
    assert counted((half, torch.tensor(labels))) == counted((half.float().numpy(), labels))


def test_merged_counts_are_those_of_one_pass():
    generator = np.random.default_rng(7)
    patches = [
        (generator.random((1, 3, 4, 5)), generator.integers(0, 2, (3, 4, 5))) for _ in range(6)
    ]
    patches[4][0][0, 1] = np.nan
    first, second = VoxelMetrics(0.3), VoxelMetrics(0.3)
    for patch in patches[:2]:
        first.update(*patch)
    for patch in patches[2:]:
        second.update(*patch)
    before = second.compute()
    first.merge(pickle.loads(pickle.dumps(second)))
    assert first.compute() == pytest.approx(counted(*patches, threshold=0.3), rel=1e-12)
    assert first.compute()["voxels"] == 6 * 60 - 20
    assert second.compute() == before
    first.merge(VoxelMetrics(0.3))
    assert first.compute() == pytest.approx(counted(*patches, threshold=0.3), rel=1e-12)


def test_thresholds():
    with pytest.raises(ConfigError, match=r"0\.5 and 0\.4 differ"):
        VoxelMetrics(0.5).merge(VoxelMetrics(0.4))
    for threshold in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="must be a finite number"):
            VoxelMetrics(threshold)


def test_values_that_are_not_defined():
    empty, full = np.zeros((1, 2, 3)), np.ones((1, 2, 3))
    nan = float("nan")

    def values(prediction, labels):
        return list(counted((prediction, labels)).values())

    expect = {"nan_ok": True}
    assert values(empty, empty) == pytest.approx([1, 1, nan, nan, nan, 0, 6], **expect)
    assert values(full, empty) == pytest.approx([0, 0, 0, nan, nan, 1, 6], **expect)
    assert values(empty, full) == pytest.approx([0, 0, nan, 0, 1, 1, 6], **expect)
    assert values(full, full) == [1, 1, 1, 1, 1, 0, 6]
    assert values(full * np.nan, full) == pytest.approx([nan] * 6 + [0], **expect)
    assert list(VoxelMetrics().compute().values()) == pytest.approx([nan] * 6 + [0], **expect)


def test_infinite_scores_make_the_squared_error_infinite_and_nothing_else():
    found = counted((np.array([[-np.inf, np.inf, 1e300]]), np.array([0, 1, 1])))
    assert found["mean_squared_error"] == np.inf
    assert found["dice"] == found["average_precision"] == 1


@pytest.mark.parametrize(
    ("prediction", "labels", "said"),
    [
        ((2, 4, 5), (4, 6), r"shape \(2, 4, 5\) and the labels \(4, 6\)"),
        ((2, 4, 5), (3, 4, 5), "must have the prediction's shape"),
        ((4, 5), (1, 4, 5), "that of one channel"),
        ((), (1,), r"shape \(\)"),
    ],
)
def test_patches_that_do_not_fit(prediction, labels, said):
    with pytest.raises(SourceError, match=said):
        VoxelMetrics().update(np.zeros(prediction), np.zeros(labels))


def test_patches_that_hold_no_numbers():
    with pytest.raises(SourceError, match=r"the labels holds <U1; give integers"):
        VoxelMetrics().update(np.zeros((1, 2)), np.array([["a", "b"]]))


# Segmentations


def whole(segmentation, labels):
    """Return the instance metrics of whole volumes, from scikit-image alone."""
    skimage = pytest.importorskip("skimage.metrics")
    error, over_instances, over_segments = skimage.adapted_rand_error(labels, segmentation)
    split, merge = skimage.variation_of_information(labels, segmentation, ignore_labels=(0,))
    values = (error, over_segments, over_instances, split, merge, split + merge)
    return dict(zip(INSTANCE_KEYS, values, strict=True))


def pair_shares(segmentation, labels):
    """Return adapted Rand precision and recall by looking at every pair of voxels."""
    segmentation, labels = segmentation[labels != 0], labels[labels != 0]
    pair = ~np.eye(labels.size, dtype=bool)
    in_segment = (segmentation[:, None] == segmentation) & pair
    in_instance = (labels[:, None] == labels) & pair
    both = (in_segment & in_instance).sum()
    return both / in_segment.sum(), both / in_instance.sum()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.booleans())
def test_segmentations_are_compared_as_in_scikit_image(seed, voxels, in_blocks):
    generator = np.random.default_rng(seed)
    labels, segmentation = generator.integers(0, 5, (2, 5, 6, 7))
    if in_blocks:  # runs longer than a voxel, over the ends of rows and slabs
        labels, segmentation = (
            np.sort(each.ravel()).reshape(5, 6, 7) for each in (labels, segmentation)
        )
        segmentation = np.roll(segmentation, 17)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.volumes, "SLAB_VOXELS", voxels)
        found = instance_metrics(segmentation, labels)
    assert found == pytest.approx(whole(segmentation, labels), rel=1e-9, abs=1e-12)
    shares = found["adapted_rand_precision"], found["adapted_rand_recall"]
    assert shares == pytest.approx(pair_shares(segmentation, labels), rel=1e-9)


def test_a_merge_and_a_split_are_told_apart():
    labels = np.array([[1, 1, 2, 2]])
    merged = instance_metrics(np.array([[7, 7, 7, 7]]), labels)
    assert list(merged.values()) == pytest.approx([1 - 4 / 8, 4 / 12, 1, 0, 1, 1])
    split = instance_metrics(labels, np.array([[7, 7, 7, 7]]))
    assert list(split.values()) == pytest.approx([1 - 4 / 8, 1, 4 / 12, 1, 0, 1])


def test_only_the_background_of_the_labels_is_ignored():
    labels, segmentation = np.array([[0, 0, 1, 1, 1, 1]]), np.array([[5, 6, 7, 7, 7, 7]])
    assert list(instance_metrics(segmentation, labels).values()) == [0, 1, 1, 0, 0, 0]
    segmentation = np.array([[5, 6, 7, 7, 0, 0]])
    assert instance_metrics(segmentation, labels)["voi_split"] == 1


def test_numbers_of_segments_mean_nothing():
    generator = np.random.default_rng(8)
    labels, segmentation = generator.integers(0, 5, (2, 4, 5, 6))
    expected = instance_metrics(segmentation, labels)
    names = np.array([0, 2**63 + 1, 2**63, 2**64 - 1, 12], np.uint64)  # one apart in float64
    assert instance_metrics(names[segmentation], names[labels]) == pytest.approx(expected)
    assert instance_metrics(segmentation.astype(np.int8) - 2, labels) == pytest.approx(expected)


def test_segmentations_without_a_pair():
    zeros, ones = np.zeros((2, 3), int), np.ones((2, 3), int)
    assert np.isnan(list(instance_metrics(ones, zeros).values())).all()
    alone = np.arange(1, 7).reshape(2, 3)
    nan = float("nan")
    found = list(instance_metrics(alone, alone).values())
    assert found == pytest.approx([nan, nan, nan, 0, 0, 0], nan_ok=True)
    found = list(instance_metrics(alone, ones).values())
    assert found == pytest.approx([1, nan, 0, np.log2(6), 0, np.log2(6)], nan_ok=True)
    assert list(instance_metrics(ones > 0, ones > 0).values()) == [0, 1, 1, 0, 0, 0]


def test_segmentations_that_do_not_fit():
    ints = np.ones((4, 5, 6), int)
    with pytest.raises(SourceError, match=r"shape \(1, 4, 5, 6\) and the labels \(1, 4, 5, 5\)"):
        instance_metrics(ints, ints[..., :5])
    with pytest.raises(SourceError, match="instance metrics compare one channel"):
        instance_metrics(np.stack([ints, ints]), np.stack([ints, ints]))
    with pytest.raises(SourceError, match="the labels holds float64; instances are numbered"):
        instance_metrics(ints, ints / 2)


# Whole volumes


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(1, 900), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_volumes_do_not_depend_on_the_planes_read_at_a_time(voxels, channels, seed):
    generator = np.random.default_rng(seed)
    prediction = generator.random((channels, 5, 6, 7), dtype=np.float32)
    prediction[generator.random(prediction.shape) < 0.3] = np.nan
    labels = generator.integers(0, channels, (5, 6, 7))
    expected = counted((prediction, labels))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.volumes, "SLAB_VOXELS", voxels)
        assert evaluate(prediction, labels) == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_at_most_so_many_voxels_are_read_at_a_time(monkeypatch):
    monkeypatch.setattr(metrics.volumes, "SLAB_VOXELS", 200)
    read = []
    volume = np.random.default_rng(9).random((2, 9, 6, 7))

    def at(ranges):
        read.append(volume[ranges].size)
        return volume[ranges]

    evaluate(LazyArray(volume.shape, volume.dtype, at), volume[:1] > 2)
    assert read == [168, 168, 168, 168, 84]  # two planes of two channels, then the last plane


def test_the_kind_follows_from_what_the_prediction_holds(monkeypatch):
    monkeypatch.setattr(metrics.volumes, "SLAB_VOXELS", 1)  # the third value comes in another slab
    labels = np.array([[[0, 1, 1]], [[0, 2, 2]]])
    segmentation = np.array([[[0, 4, 4]], [[0, 4, 5]]], np.uint16)
    assert evaluate(segmentation, labels) == whole(segmentation, labels)
    mask = np.minimum(segmentation, 1)
    for probabilities in (mask, mask > 0, mask.astype(float), segmentation.astype(float)):
        assert list(evaluate(probabilities, labels > 0)) == VOXEL_KEYS
    assert evaluate(mask, labels)["dice"] == 1
    assert evaluate(mask, labels, kind="segmentation") == whole(mask, labels)
    assert evaluate(segmentation, labels, 4.5, kind="probability")["recall"] == 1 / 4


def test_opened_sources_are_read_and_named():
    labels = np.array([[0, 1, 1]])
    source = ArraySource(labels * 0.9, "a.h5::main")
    assert evaluate(source, ArraySource(labels))["dice"] == 1
    with pytest.raises(SourceError, match=r"a\.h5::main has shape .* and the labels"):
        evaluate(source, labels[:, :2])


@pytest.mark.parametrize(
    ("prediction", "labels"),
    [((4, 5, 6), (4, 5, 7)), ((2, 4, 5, 6), (3, 4, 5, 6)), ((4, 5, 6), (2, 4, 5, 6))],
)
def test_volumes_that_do_not_fit(prediction, labels):
    with pytest.raises(SourceError, match=r"and the labels \(.*labels must cover the same voxels"):
        evaluate(np.zeros(prediction), np.zeros(labels))


def test_settings_that_are_refused():
    with pytest.raises(ConfigError, match="kind is 'instances'; it must be 'probability'"):
        evaluate(np.eye(4), np.eye(4), kind="instances")
    with pytest.raises(ConfigError, match="threshold is nan"):
        evaluate(np.eye(4), np.eye(4), float("nan"))


def test_importing_it_is_quick():
    code = (
        "import sys, napari_seamless.metrics;"
        "print({'torch', 'skimage', 'scipy', 'sklearn'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_labels_that_are_not_finite_are_refused():
    labels = np.zeros((2, 3, 4), np.float32)
    labels[1, 2, 3] = np.nan
    with pytest.raises(SourceError, match="labels hold NaN"):
        evaluate(np.zeros((2, 3, 4), np.float32), labels)


def test_connected_parts_of_a_foreground_are_compared_with_instances():
    labels = np.zeros((2, 6, 12), np.uint16)
    labels[:, 1:5, 1:4], labels[:, 1:5, 5:8], labels[:, 1:5, 9:11] = 7, 300, 9
    prediction = (labels > 0).astype(np.float32)
    assert evaluate(prediction, labels)["voi"] == 0
    assert evaluate(prediction, labels)["dice"] == 1

    prediction[:, 2, 4] = 1  # joins the first two
    parts, _ = ndimage.label(prediction > 0.5)
    expected = instance_metrics(parts, labels)
    scores = evaluate(prediction, labels)
    assert scores["voi_merge"] == pytest.approx(expected["voi_merge"]) != 0
    assert scores["voi_split"] == 0
    assert scores["adapted_rand_error"] == pytest.approx(expected["adapted_rand_error"])


def test_a_mask_gives_no_instance_metrics():
    mask = np.zeros((2, 3, 4), np.uint8)
    mask[0] = 1
    assert "voi" not in evaluate(mask.astype(np.float32), mask)
