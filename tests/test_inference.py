"""What the composition root opens, it closes; what it is given, it leaves alone."""

import io
import json
import sys
from fractions import Fraction

import h5py
import numpy as np
import pytest
import tifffile
import torch
from tqdm import tqdm

import napari_seamless as ns
import networks
from napari_seamless.draining import advance, rescue
from napari_seamless.engine.errors import (
    ConfigError,
    ModelError,
    OutputError,
    SourceError,
    WriteError,
)
from napari_seamless.engine.source import ArraySource
from napari_seamless.evaluation import evaluate_files
from napari_seamless.metrics import evaluate
from outputs import facts_of
from outputs import read as read_output

CONFIG = ns.InferenceConfig(patch_size=(4, 8, 8), normalization="none", device="cpu")


@pytest.fixture
def volume():
    return np.random.default_rng(5).random((6, 12, 12), dtype=np.float32)


@pytest.fixture
def path(tmp_path, volume):
    with h5py.File(tmp_path / "volume.h5", "w") as file:
        file["raw"] = volume
        file["labels"] = (volume > 0.5).astype(np.uint8)
    return tmp_path / "volume.h5"


def predict(source, network=None, config=CONFIG, **options):
    return ns.predict(source, network or networks.Doubled(), config, progress=False, **options)


def settings(**changes):
    return ns.InferenceConfig(**{**CONFIG.model_dump(exclude_unset=True), **changes})


def test_a_path_an_array_and_a_source_give_the_same(volume, path):
    for source in (f"{path}::raw", volume, ArraySource(volume)):
        np.testing.assert_allclose(predict(source).array[0], 2 * volume, rtol=1e-6)


@pytest.mark.parametrize("library", ["dask", "zarr", "h5py"])
def test_any_array_like_is_read(volume, path, library):
    dask, zarr = pytest.importorskip("dask.array"), pytest.importorskip("zarr")
    with h5py.File(path) as file:
        source = {"dask": dask.from_array(volume), "zarr": zarr.array(volume), "h5py": file["raw"]}
        np.testing.assert_allclose(predict(source[library]).array[0], 2 * volume, rtol=1e-6)


def test_a_list_gives_an_array_per_volume(volume):
    arrays = predict([volume, volume[:3, :9]]).arrays

    np.testing.assert_allclose(arrays[0][0], 2 * volume, rtol=1e-6)
    np.testing.assert_allclose(arrays[1][0], 2 * volume[:3, :9], rtol=1e-6)


def test_a_source_that_was_given_can_be_used_again(volume):
    source = ArraySource(volume)
    for _ in range(2):
        np.testing.assert_allclose(predict(source, labels=source).array[0], 2 * volume, rtol=1e-6)


def test_a_patch_of_an_array_can_be_predicted_when_the_run_is_closed(volume):
    with ns.InferenceRun(volume, networks.Doubled(), CONFIG) as run:
        list(run)
    patch, prediction = run.predict_patch(0)
    np.testing.assert_array_equal(prediction, 2 * patch)
    np.testing.assert_array_equal(prediction[0], 2 * volume[tuple(map(slice, patch.shape[1:]))])


def test_a_file_is_closed_even_when_the_result_cannot_be_written(path, tmp_path):
    out = tmp_path / "out.h5"
    run = ns.InferenceRun(f"{path}::raw", networks.Doubled(), CONFIG, out)
    next(run)
    out.write_text("someone else's")
    with pytest.raises(WriteError, match="appeared"):
        run.close()

    with h5py.File(path, "r+") as file:  # fails while it is open for reading
        assert "raw" in file
    assert out.read_text() == "someone else's"


def test_labels_give_metrics_and_must_fit(volume, path):
    metrics = predict(volume, labels=f"{path}::labels").metrics
    found, truth = 2 * volume > 0.5, volume > 0.5
    expected = 2 * (found & truth).sum() / (found.sum() + truth.sum())

    assert metrics["dice"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(SourceError, match=r"\(3, 12, 12\).*\(6, 12, 12\)"):
        predict(volume, labels=np.zeros((3, 12, 12)))


def test_what_is_no_network_is_refused(volume):
    with pytest.raises(ModelError, match="int is no network"):
        ns.predict(volume, 3, CONFIG)


def test_several_volumes_do_not_go_into_one_file(volume, tmp_path):
    with pytest.raises(ConfigError, match="several volumes"):
        predict([volume, volume], output=tmp_path / "out.h5")


def test_the_network_is_left_as_it_was(volume):
    network = torch.nn.Sequential(torch.nn.BatchNorm3d(1), torch.nn.Dropout()).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    ns.predict(volume, network, CONFIG, progress=False)

    assert all(part.training for part in network.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


class Intruder(networks.Doubled):
    """Puts a file where the prediction shall go, at a certain batch."""

    def __init__(self, out, batch):
        super().__init__()
        self.out, self.batch = out, batch

    def forward(self, image):
        networks.calls.append(())
        if len(networks.calls) == self.batch:
            self.out.write_text("someone else's")
        return image * self.factor


def test_an_output_that_appears_before_the_first_batch_is_done_ends_the_run(volume, tmp_path):
    networks.reset()
    out = tmp_path / "out.h5"
    with pytest.raises(OutputError, match=r"out\.h5 exists; pass --overwrite"):
        predict(volume, Intruder(out, 1), output=out)

    assert len(networks.calls) == 1
    assert out.read_text() == "someone else's"
    assert [each.name for each in tmp_path.iterdir()] == ["out.h5"]


@pytest.mark.parametrize("suffix", ["h5", "tif"])
def test_a_prediction_whose_place_is_taken_meanwhile_is_kept_beside_it(volume, tmp_path, suffix):
    networks.reset()
    out = tmp_path / f"out.{suffix}"
    with pytest.raises(WriteError, match="appeared during the run and was not replaced") as caught:
        predict(volume, Intruder(out, 3), output=out)

    part = tmp_path / f"out.{suffix}.run" / f"part.{suffix}"
    assert f"the prediction is kept in {part}" in str(caught.value)
    assert out.read_text() == "someone else's"
    np.testing.assert_allclose(read(part)["main"][0], 2 * volume, rtol=1e-6)
    assert metadata(part)["status"] == "complete"
    out.unlink()  # the remedy that the line names
    networks.reset()
    again = predict(volume, Intruder(out, 99), output=out, resume=True)
    assert len(networks.calls) == 1  # the batch that tells how many channels there are
    np.testing.assert_array_equal(read(out)["main"], again.array)
    np.testing.assert_allclose(again.array[0], 2 * volume, rtol=1e-6)
    assert [each.name for each in tmp_path.iterdir()] == [out.name]


def test_what_is_done_of_one_open_chunk_is_kept_elsewhere_if_its_place_is_taken(
    volume, tmp_path, monkeypatch
):
    """Nothing is finished yet, so there is nothing to resume; what there is goes elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    networks.reset()
    out = tmp_path / "out.h5"
    run = ns.InferenceRun(volume, Intruder(out, 2), CONFIG, out)
    assert [next(run).done, next(run).done] == [1, 2]
    with pytest.raises(WriteError, match="appeared"):
        run.close()

    assert run.unwritten == [0]
    note = rescue(0, run.files(0), run.metadata(0))
    (kept,) = elsewhere.iterdir()
    assert note == f"the prediction is kept in {kept}"
    main = read(kept)["main"][0]
    known = np.isfinite(main)
    assert 0 < known.sum() < known.size
    np.testing.assert_allclose(main[known], 2 * volume[known], rtol=1e-6)
    assert [metadata(kept)[name] for name in ("status", "done")] == ["partial", 2]
    assert out.read_text() == "someone else's"


def test_a_program_without_a_console_can_predict(volume, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    prediction = ns.predict(volume, networks.Doubled(), CONFIG, progress=True)
    np.testing.assert_allclose(prediction.array[0], 2 * volume, rtol=1e-6)


# ------------------------------------------------------------------------------ labels


REGION = ((1, 5), (2, 11), (0, 7))
PART = tuple(slice(*ends) for ends in REGION)


@pytest.mark.parametrize("of", ["volume", "region"])
def test_with_a_region_labels_may_be_the_volumes_or_the_regions(volume, of):
    truth = volume > 0.7
    given = truth if of == "volume" else truth[PART]
    prediction = predict(volume, config=settings(region=REGION), labels=given)

    assert prediction.array.shape == (1, 4, 9, 7)
    found, inside = 2 * volume[PART] > 0.5, truth[PART]
    assert prediction.metrics["voxels"] == 4 * 9 * 7
    assert prediction.metrics["precision"] == pytest.approx(
        (found & inside).sum() / found.sum(), abs=1e-12
    )


def test_labels_of_another_shape_are_refused_with_every_shape_that_fits(volume):
    networks.reset()
    with pytest.raises(SourceError) as caught:
        predict(volume, config=settings(region=REGION), labels=np.zeros((5, 12, 12)))

    assert str(caught.value) == (
        "the labels have shape (5, 12, 12); for the volume they must have (6, 12, 12) or, of "
        "the region, (4, 9, 7) (Z, Y, X): crop or resample them"
    )
    assert networks.calls == []


def test_labels_have_the_resolution_of_the_prediction(volume):
    half = Fraction(1, 2)
    config = settings(output_scale=(1, half, half))
    expected = 2 * volume[:, ::2, ::2]
    truth = expected > 1.2
    prediction = predict(volume, networks.Halved(), config, labels=truth)

    np.testing.assert_allclose(prediction.array[0], expected, rtol=1e-6)
    found = expected > 0.5
    assert prediction.metrics["iou"] == pytest.approx(
        (found & truth).sum() / (found | truth).sum(), abs=1e-12
    )
    with pytest.raises(SourceError, match=r"\(6, 12, 12\); .* \(6, 6, 6\)"):
        predict(volume, networks.Halved(), config, labels=volume > 0.5)


def test_labels_of_several_channels_are_class_numbers_or_a_channel_each(volume):
    classes = (volume > 0.2).astype(np.int64)
    channels = np.stack([classes == 0, classes == 1])
    config = settings(threshold=0.9)
    metrics = predict(volume, networks.TwoChannels(), config, labels=classes).metrics
    found = np.stack([2 * volume, 6 * volume]) > 0.9

    expected = 2 * (found & channels).sum() / (found.sum() + channels.sum())
    assert metrics["dice"] == pytest.approx(expected, abs=1e-12)
    one_each = predict(volume, networks.TwoChannels(), config, labels=channels)
    assert one_each.metrics == metrics


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.full((6, 12, 12), 2), "no metrics: the labels hold 2, and the prediction has 2"),
        (np.zeros((3, 6, 12, 12)), r"no metrics: .* the labels \(3, 6, 12, 12\)"),
        (np.full((6, 12, 12), np.nan), "no metrics: the labels holds nan"),
    ],
)
def test_labels_that_cannot_be_compared_after_all_do_not_cost_the_prediction(volume, labels, said):
    with pytest.warns(RuntimeWarning, match=said) as warned:
        prediction = predict(volume, networks.TwoChannels(), labels=labels)

    assert prediction.metrics is None
    assert warned[0].filename == __file__
    np.testing.assert_allclose(prediction.array[1], 6 * volume, rtol=1e-6)


def test_labels_are_closed_even_if_those_of_another_volume_do_not_fit(volume, path):
    with (
        ns.InferenceRun([volume, volume], networks.Doubled(), CONFIG) as run,
        pytest.raises(SourceError, match="labels 1 have shape"),
    ):
        run.open_labels([f"{path}::labels", np.zeros((1, 2, 3))])

    with h5py.File(path, "r+") as file:  # fails while it is open for reading
        assert "labels" in file


def test_labels_are_never_replaced_by_the_prediction(volume, path):
    before = path.read_bytes()
    with pytest.raises(OutputError, match="is also an input"):
        predict(volume, output=path, labels=f"{path}::labels", overwrite=True)
    assert path.read_bytes() == before


# ------------------------------------------------------------------------------ what is saved


def read(path) -> dict[str, np.ndarray]:
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as tiff:
            names = [facts["name"] for facts in tiff.shaped_metadata]
            series = [each.asarray().reshape(facts["shape"]) for each, facts in
                      zip(tiff.series, tiff.shaped_metadata, strict=True)]  # fmt: skip
            return dict(zip(names, series, strict=True))
    with h5py.File(path) as file:
        found: dict[str, np.ndarray] = {}
        file.visititems(
            lambda name, item: found.update({name: item[...]}) if hasattr(item, "shape") else None
        )
        return found


def metadata(path) -> dict:
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as tiff:
            return tiff.shaped_metadata[0]
    with h5py.File(path) as file:
        attributes = dict(file["main"].attrs)
    return {**attributes, "config": json.loads(attributes["config"])}


def converted(values, dtype, scale):
    """By hand: scaled, rounded to nearest and clipped, once."""
    exact = values.astype(np.float64) * scale
    if np.issubdtype(dtype, np.integer):
        exact = np.clip(np.rint(exact), 0, np.iinfo(dtype).max)
    return exact.astype(dtype)


@pytest.mark.parametrize("suffix", ["h5", "tif"])
@pytest.mark.parametrize(
    ("dtype", "given", "scale"),
    [
        ("uint8", None, 255),
        ("uint8", 100.0, 100),
        ("uint16", None, 65535),
        ("uint16", 1000.0, 1000),
        ("float16", None, 1),
        ("float16", 10.0, 10),
        ("float32", 10.0, 10),
    ],
)
def test_what_is_saved_is_rounded_and_clipped_once(volume, tmp_path, suffix, dtype, given, scale):
    signed = volume - 0.2  # from -0.4 to 1.6 once it is doubled
    exact = predict(signed).array
    config = settings(output_dtype=dtype, intensity_scale=given)
    out = tmp_path / f"out.{suffix}"
    prediction = predict(signed, config=config, output=out)

    np.testing.assert_array_equal(prediction.array, exact)  # in Python it is what was predicted
    saved = read(out)["main"]
    assert saved.dtype == dtype
    np.testing.assert_array_equal(saved, converted(exact, np.dtype(dtype), scale))
    if dtype.startswith("u") and given is None:
        assert saved.min() == 0
        assert saved.max() == scale


@pytest.mark.parametrize("suffix", ["h5", "tif"])
def test_labels_spread_and_heads_are_saved_beside_the_prediction(volume, tmp_path, suffix):
    out = tmp_path / f"out.{suffix}"
    config = settings(
        output_dtype="uint8", labelling="threshold", threshold=0.6, tta="flip:x", spread=True,
        head="dark",
    )  # fmt: skip
    prediction = predict(volume, networks.TwoHeads(), config, output=out)

    saved = read(out)
    assert list(prediction.outputs[0]) == ["main", "spread", "labels", "heads/bright"]
    assert set(saved) == set(prediction.outputs[0])
    np.testing.assert_allclose(prediction.array[0], 1 - volume, atol=1e-6)
    np.testing.assert_array_equal(saved["labels"], (prediction.array > 0.6).astype(np.uint8))
    assert saved["labels"].max() == 1  # not scaled
    for name in ("main", "spread", "heads/bright"):
        expected = converted(prediction.outputs[0][name], np.dtype(np.uint8), 255)
        np.testing.assert_array_equal(saved[name], expected, err_msg=name)
    np.testing.assert_allclose(
        prediction.outputs[0]["heads/bright"][0], 2 * volume, rtol=1e-6, atol=1e-7
    )


def test_argmax_says_which_channel_is_the_largest(volume, tmp_path):
    out = tmp_path / "out.h5"
    config = settings(labelling="argmax", output_dtype="uint16")
    prediction = predict(volume - 0.5, networks.TwoChannels(), config, output=out)

    labels = read(out)["labels"]
    assert (labels.shape, labels.dtype) == ((1, *volume.shape), np.uint8)
    np.testing.assert_array_equal(labels[0], volume > 0.5)  # six times it is more if positive
    np.testing.assert_array_equal(labels, prediction.outputs[0]["labels"])


@pytest.mark.parametrize("suffix", ["h5", "tif"])
def test_the_config_in_a_file_makes_the_same_file_again(volume, tmp_path, suffix):
    half = Fraction(1, 2)
    config = settings(
        patch_size=(4, 8, 8), overlap=(2, 0.25, 0.5), output_scale=(1, half, half),
        region=((0, 4), (0, 12), (2, 12)), blending_arguments={"sigma": 0.3}, batch_size=3,
        normalization="fixed", mean_std=(0.5, 0.25), offsets=((1, 0, 0),), halo=(0, 2, 2),
        activation="0:1=sigmoid", output_dtype="uint16", intensity_scale=1000,
    )  # fmt: skip
    first, second = tmp_path / f"first.{suffix}", tmp_path / f"second.{suffix}"
    predict(volume, networks.Halved(), config, output=first)
    again = ns.InferenceConfig(**metadata(first)["config"])
    predict(volume, networks.Halved(), again, output=second)

    assert again == config
    np.testing.assert_array_equal(read(second)["main"], read(first)["main"])
    assert read(first)["main"].shape == (1, 4, 6, 5)
    facts = metadata(first)
    assert [facts[name] for name in ("status", "network", "source")] == [
        "complete", "Halved", "the volume",
    ]  # fmt: skip


# ------------------------------------------------------------------------------ evaluate_files


@pytest.mark.parametrize("suffix", ["h5", "tif"])
@pytest.mark.parametrize(
    ("dtype", "scale"), [("uint8", None), ("uint16", None), ("float16", 3.0), ("uint8", 100.0)]
)
def test_a_prediction_that_was_saved_scaled_is_compared_as_it_was_predicted(
    volume, path, tmp_path, suffix, dtype, scale
):
    out = tmp_path / f"out.{suffix}"
    config = settings(output_dtype=dtype, intensity_scale=scale, activation="tanh")
    probabilities = predict(volume, config=config, output=out).array
    scores = evaluate_files(out, f"{path}::labels", threshold=0.6)
    exact = evaluate(probabilities, volume > 0.5, 0.6)

    error = {"uint8": 0.5 / (scale or 255), "uint16": 0.5 / 65535, "float16": 2**-11}[dtype]
    assert scores["mean_squared_error"] == pytest.approx(exact["mean_squared_error"], abs=2 * error)
    with h5py.File(path) as file:
        truth = file["labels"][...] > 0
    multiplied = scale or {"uint8": 255, "uint16": 65535}[dtype]
    found = read(out)["main"][0].astype(float) / multiplied > 0.6
    assert scores["dice"] == pytest.approx(
        2 * (found & truth).sum() / (found.sum() + truth.sum()), abs=1e-12
    )
    assert 0.3 < scores["dice"] < 1


def test_a_saved_head_is_scaled_back_too_and_saved_labels_are_not(volume, path, tmp_path):
    out = tmp_path / "out.h5"
    config = settings(output_dtype="uint8", labelling="threshold", threshold=0.6, head="dark")
    predict(volume, networks.TwoHeads(), config, output=out)
    truth = f"{path}::labels"

    bright = evaluate_files(f"{out}::heads/bright", truth)
    assert bright["mean_squared_error"] == pytest.approx(
        np.square(np.minimum(2 * volume, 1) - (volume > 0.5)).mean(), abs=0.003
    )
    labels = evaluate_files(f"{out}::labels", truth)
    found, wanted = volume < 0.4, volume > 0.5  # none in common
    assert (labels["dice"], labels["recall"]) == (0, 0)
    assert labels["mean_squared_error"] == pytest.approx((found | wanted).mean(), abs=1e-12)


def test_a_saved_prediction_can_be_compared_as_a_segmentation_all_the_same(volume, path, tmp_path):
    out = tmp_path / "out.h5"
    predict(volume, config=settings(output_dtype="uint8"), output=out)

    assert "adapted_rand_error" in evaluate_files(out, f"{path}::labels", kind="segmentation")
    assert "dice" in evaluate_files(out, f"{path}::labels")


@pytest.mark.parametrize("config", ["", "{oops", "[1]", '{"patch_size": 3}', '"uint8"', 7])
def test_another_programs_files_are_compared_as_they_are(path, tmp_path, config):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file, h5py.File(path) as labels:
        file["main"] = 3 * labels["labels"][...] + np.arange(12, dtype=np.uint8)
        file["main"].attrs["config"] = config

    assert "adapted_rand_error" in evaluate_files(other, f"{path}::labels")


@pytest.mark.parametrize("suffix", ["h5", "tif"])
def test_a_prediction_of_a_region_is_evaluated_against_labels_of_the_whole(
    volume, path, tmp_path, suffix
):
    out = tmp_path / f"out.{suffix}"
    config = CONFIG.model_copy(update={"region": ((1, 5), (2, 11), (0, 12))})
    ns.predict(volume, networks.Doubled(), config, out, progress=False)
    part = (slice(1, 5), slice(2, 11), slice(0, 12))
    found, truth = 2 * volume[part] > 0.5, volume[part] > 0.5
    expected = 2 * (found & truth).sum() / (found.sum() + truth.sum())

    assert evaluate_files(out, f"{path}::labels")["dice"] == pytest.approx(expected, abs=1e-6)


def test_labels_of_instances_give_their_metrics_too(volume):
    instances = np.zeros(volume.shape, np.int32)
    instances[:, :5], instances[:, 7:] = 1, 2
    source = np.where(instances > 0, 1, 0).astype(np.float32)
    metrics = predict(source, labels=instances).metrics

    assert metrics["dice"] == 1
    assert metrics["voi"] == metrics["adapted_rand_error"] == 0
    joined = source.copy()
    joined[0, 5:7, 0] = 1
    assert predict(joined, labels=instances).metrics["voi_merge"] == pytest.approx(1, abs=0.01)


@pytest.fixture
def instances(volume):
    """Labels of two instances, and a volume that a network doubles to exactly them."""
    labels = np.zeros(volume.shape, np.int32)
    labels[:, :5], labels[:, 7:] = 1, 2
    return np.where(labels > 0, 1, 0).astype(np.float32), labels


@pytest.mark.parametrize("suffix", ["zarr", "h5", "tif"])
def test_metrics_that_do_not_fit_the_memory_are_left_out_with_a_line(instances, tmp_path, suffix):
    source, labels = instances
    out, needs = tmp_path / f"out.{suffix}", 5 * labels.size
    with pytest.warns(RuntimeWarning, match=r"adapted Rand error .* are left out") as caught:
        metrics = predict(source, output=out, labels=labels, memory=needs - 1).metrics

    (line,) = [str(each.message) for each in caught]
    assert "they take 4.219 KiB of memory where 4.218 KiB may be used; give more memory" in line
    assert (metrics["dice"], metrics["voxels"]) == (1, labels.size)
    assert "voi" not in metrics
    assert facts_of(out)["status"] == "complete"
    written = facts_of(out)["metrics"]
    assert (json.loads(written) if isinstance(written, str) else written) == metrics
    mask = (labels > 0).astype(np.uint8)  # no instances, so nothing is left out
    assert predict(source, labels=mask, memory=0).metrics["dice"] == 1
    enough = predict(source, output=out, overwrite=True, labels=labels, memory=10 * needs).metrics
    assert enough["voi"] == 0


@pytest.mark.parametrize("suffix", ["zarr", "h5", "tif"])
def test_an_output_is_complete_whatever_becomes_of_its_metrics(volume, instances, tmp_path, suffix):
    """Here the labels are an array that fails when it is read."""

    class Failing:
        shape, dtype, ndim = volume.shape, np.dtype(np.int32), 3

        def __getitem__(self, key):
            raise MemoryError

        __array__ = None

    out = tmp_path / f"out.{suffix}"
    with pytest.warns(RuntimeWarning, match="no metrics: ") as caught:
        prediction = predict(volume, output=out, labels=Failing())

    assert len(caught) == 1
    assert prediction.metrics is None
    np.testing.assert_allclose(prediction.array[0], 2 * volume, rtol=1e-6)
    np.testing.assert_array_equal(read_output(out), prediction.array)
    facts = facts_of(out)
    assert facts["status"] == "complete"
    assert "metrics" not in facts
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_library_that_fails_while_metrics_are_computed_is_one_line(
    instances, tmp_path, monkeypatch
):
    """Connected parts come of SciPy; the prediction is written before they are asked for."""
    source, labels = instances
    monkeypatch.setitem(sys.modules, "scipy.ndimage", None)
    monkeypatch.delattr("scipy.ndimage")
    out = tmp_path / "out.zarr"
    with pytest.warns(
        RuntimeWarning, match="no metrics: the metrics could not be computed"
    ) as found:
        prediction = predict(source, output=out, labels=labels)

    assert "'napari-seamless evaluate'" in str(found[0].message)
    assert prediction.metrics is None
    assert facts_of(out)["status"] == "complete"


# ------------------------------------------------------------------------------ progress


def test_a_bar_has_the_pace_of_what_runs():
    bar = tqdm(total=100, file=io.StringIO())
    advance(bar, 90, 90)
    known = bar.format_dict
    assert (known["n"], known["initial"], known["rate"] or 0) == (90, 90, 0)
    advance(bar, 92, 90)
    advance(bar, 97, 95)  # another volume begins, of which 5 are done
    known = bar.format_dict
    assert known["n"] - known["initial"] == 2
    bar.close()
    hidden = tqdm(total=100, disable=True)
    advance(hidden, 97, 95)
    assert hidden.n == 0
