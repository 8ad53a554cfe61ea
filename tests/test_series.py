"""Time series: every time point is a volume, and all of them have one output."""

import json
import os

import h5py
import numpy as np
import pytest
import tifffile
import torch
import zarr

import napari_seamless as ns
import networks
from napari_seamless.cli import main
from napari_seamless.engine.errors import ConfigError, SourceError
from napari_seamless.inference import InferenceRun
from outputs import facts_of, read

SHAPE = (4, 1, 20, 24, 24)
CONFIG = ns.InferenceConfig(
    patch_size=(8, 12, 12), normalization="minmax", activation="sigmoid", device="cpu"
)
PATCHES = 4 * 3 * 3
"""Of one time point."""
SUFFIXES = ("zarr", "h5", "tif")


@pytest.fixture(scope="module")
def series():
    """Each time point is brighter than the one before, so that each has its own scale."""
    random = np.random.default_rng(3)
    return np.stack([random.random(SHAPE[1:], np.float32) * (t + 1) + t for t in range(SHAPE[0])])


@pytest.fixture(autouse=True)
def no_calls():
    networks.reset()


@pytest.fixture(scope="module")
def alone(series):
    """The prediction of each time point on its own."""
    networks.reset()
    return [predict(volume).array for volume in series]


def predict(source, out=None, config=CONFIG, network=None, **options):
    return ns.predict(source, network or networks.Ramp(), config, out, progress=False, **options)


def settings(**changes):
    return ns.InferenceConfig(**{**CONFIG.model_dump(exclude_unset=True), **changes})


def saved(series, folder, kind):
    """Write a series as a file that says its axes, or that has five of them."""
    path = folder / f"series.{kind}"
    if kind == "npy":
        np.save(path, series)
    elif kind == "zarr":
        zarr.create_array(path, data=series, chunks=(1, 1, 8, 16, 16))
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file["raw"] = series
        return f"{path}::raw"
    else:
        axes = {"axes": "TCZYX"}
        tifffile.imwrite(path, series, ome=True, metadata=axes, photometric="minisblack")
    return str(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", ["npy", "zarr", "h5", "ome.tif"])
def test_a_series_in_any_format_gives_one_output_of_all_its_time_points(
    series, alone, tmp_path, kind, suffix
):
    out = tmp_path / f"out.{suffix}"
    prediction = predict(saved(series, tmp_path, kind), out)

    assert len(prediction.arrays) == 4
    for array, expected in zip(prediction.arrays, alone, strict=True):
        np.testing.assert_array_equal(array, expected)
    assert read(out).shape == SHAPE
    np.testing.assert_array_equal(read(out), np.stack(alone))
    facts = facts_of(out)
    assert (facts["status"], facts["axes"] if suffix != "zarr" else "TCZYX") == (
        "complete",
        "TCZYX",
    )
    assert len([name for name in os.listdir(tmp_path) if name.startswith("out")]) == 1


def test_an_array_of_five_axes_is_a_series(series, alone):
    for array, expected in zip(predict(series).arrays, alone, strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_time_points_can_be_chosen(series, alone, tmp_path, suffix):
    out = tmp_path / f"out.{suffix}"
    predict(series, out, settings(time_points="1:4:2"))

    assert read(out).shape == (2, *SHAPE[1:])
    np.testing.assert_array_equal(read(out), np.stack([alone[1], alone[3]]))
    assert len(networks.calls) == 2 * PATCHES


def test_time_points_on_the_command_line(series, alone, tmp_path, capsys):
    np.save(tmp_path / "series.npy", series)
    torch.save(networks.Ramp().state_dict(), tmp_path / "net.pt")
    words = ["predict", str(tmp_path / "series.npy"), "--checkpoint", str(tmp_path / "net.pt")]
    words += ["--architecture", "networks:Ramp", "--patch-size", "8,12,12", "--device", "cpu"]
    words += ["--normalization", "minmax", "--activation", "sigmoid", "--json"]
    out = tmp_path / "out.zarr"

    assert main([*words, "--output", str(out), "--time-points", "0:2"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["patches"], facts["of"]) == (2 * PATCHES, 2 * PATCHES)
    assert facts["output"] == [str(out)]
    np.testing.assert_array_equal(read(out), np.stack(alone[:2]))
    assert main([*words, "--output", str(tmp_path / "no.zarr"), "--time-points", "0:9"]) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "error: " in each]
    assert "has no time point 4; it has 4, 0 to 3" in line
    assert not (tmp_path / "no.zarr").exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "stop",
    [
        PATCHES + 20,
        *(pytest.param(at, marks=pytest.mark.slow) for at in (PATCHES // 2, 2 * PATCHES)),
    ],
)
def test_a_series_is_gone_on_with_where_it_was_left(series, alone, tmp_path, suffix, stop):
    out = tmp_path / f"out.{suffix}"
    with InferenceRun(series, networks.Ramp(), CONFIG, out) as run:
        for event in run:
            if event.done == stop:
                run.cancel()

    assert run.status == "partial"
    assert facts_of(out)["status"] == "partial"
    partial = read(out)
    known = np.isfinite(partial) & (partial != 0)
    np.testing.assert_allclose(partial[0][known[0]], alone[0][known[0]], atol=0.5)
    for time in range(stop // PATCHES):
        np.testing.assert_array_equal(partial[time], alone[time])
    assert not known[3].any()
    networks.reset()
    prediction = predict(series, out, resume=True)

    full = stop // PATCHES
    assert len(networks.calls) <= 4 * PATCHES - full * PATCHES + 1
    np.testing.assert_array_equal(read(out), np.stack(alone))
    for array, expected in zip(prediction.arrays, alone, strict=True):
        np.testing.assert_array_equal(np.asarray(array), expected)
    assert facts_of(out)["status"] == "complete"
    assert os.listdir(tmp_path) == [out.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("bad", [0, 2, 3])
def test_a_time_point_that_is_never_begun_is_missing_in_the_output(
    series, alone, tmp_path, suffix, bad
):
    flat = series.copy()
    flat[bad] = 7  # cannot be scaled between its least and its most
    out = tmp_path / f"out.{suffix}"
    with pytest.warns(RuntimeWarning, match=f"t={bad} .*cannot be scaled"):
        predict(flat, out)

    assert facts_of(out)["status"] == "failed"
    for time in {*range(4)} - {bad}:
        np.testing.assert_array_equal(read(out)[time], alone[time])
    assert np.isnan(read(out)[bad]).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_ctrl_c_between_two_time_points_leaves_an_output(series, alone, tmp_path, suffix):
    class Interrupted(networks.Ramp):
        def forward(self, image):
            if len(networks.calls) == 2 * PATCHES:
                raise KeyboardInterrupt
            return super().forward(image)

    out = tmp_path / f"out.{suffix}"
    with pytest.raises(KeyboardInterrupt):
        predict(series, out, network=Interrupted())

    assert facts_of(out)["status"] == "partial"
    np.testing.assert_array_equal(read(out)[:2], np.stack(alone[:2]))
    assert np.isnan(read(out)[2:]).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_time_point_that_cannot_be_read_is_reported_and_the_others_are_finished(
    series, alone, tmp_path, suffix
):
    spoilt = series.copy()
    spoilt[1, 0, -1, -1, -1] = np.nan
    config = settings(normalization="none")
    expected = [predict(volume, config=config).array for volume in series]
    out = tmp_path / f"out.{suffix}"
    with pytest.warns(RuntimeWarning, match="t=1 holds nan"):
        prediction = predict(spoilt, out, config)

    assert list(prediction.failures) == [1]
    for time in (0, 2, 3):
        np.testing.assert_array_equal(read(out)[time], expected[time])
    assert np.isnan(read(out)[1, 0, -1, -1, -1])
    facts = facts_of(out)
    times = facts["times"] if isinstance(facts["times"], dict) else json.loads(facts["times"])
    assert facts["status"] == "failed"
    assert [times[str(time)]["status"] for time in range(4)] == [
        *("complete", "failed", "complete", "complete")
    ]
    assert [times[str(time)]["done"] == PATCHES for time in range(4)] == [True, False, True, True]


@pytest.mark.parametrize("suffix", ["zarr", "h5"])
def test_one_cause_of_many_time_points_is_said_once(series, tmp_path, capsys, suffix):
    spoilt = series.copy()
    spoilt[:3, 0, -1, -1, -1] = np.nan
    np.save(tmp_path / "series.npy", spoilt)
    torch.save(networks.Ramp().state_dict(), tmp_path / "net.pt")
    words = ["predict", str(tmp_path / "series.npy"), "--checkpoint", str(tmp_path / "net.pt")]
    words += ["--architecture", "networks:Ramp", "--patch-size", "8,12,12", "--device", "cpu"]
    words += ["--normalization", "none", "--output", str(tmp_path / f"out.{suffix}"), "--json"]

    assert main(words) == 1
    out, err = capsys.readouterr()
    (line,) = [each for each in err.splitlines() if "error: " in each]
    assert f"{tmp_path / 'series.npy'} t=0 and 2 more time points holds nan" in line
    assert json.loads(out)["failures"] == [line.partition("error: ")[2]]
    spoilt[3] = spoilt[0]
    np.save(tmp_path / "series.npy", spoilt)
    assert main([*words, "--overwrite"]) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "error: " in each]
    assert "t=0 and 3 more time points holds nan" in line


def test_different_causes_are_said_one_by_one(series, tmp_path):
    spoilt = series.copy()
    spoilt[0, 0, -1, -1, -1] = spoilt[2, 0, -1, -1, -2] = np.nan
    with pytest.warns(RuntimeWarning, match="holds nan") as caught:
        predict(spoilt, tmp_path / "out.zarr", settings(normalization="none"))

    lines = [str(each.message) for each in caught]
    assert len(lines) == 2
    assert "t=0 holds nan" in lines[0]
    assert "t=2 holds nan" in lines[1]


def test_labels_of_a_series_are_a_series(series, alone, tmp_path):
    truth = (series[:, 0] > series[:, 0].mean(axis=(1, 2, 3), keepdims=True)).astype(np.uint8)
    prediction = predict(series, labels=truth[:, None])
    found = np.stack(alone)[:, 0] > 0.5

    expected = 2 * (found & (truth > 0)).sum() / (found.sum() + truth.sum())
    assert prediction.metrics["dice"] == pytest.approx(expected, abs=1e-12)
    assert prediction.metrics["voxels"] == series.size
    with pytest.raises(ConfigError, match="labels are 3 for 4 volumes"):
        predict(series, labels=truth[:3, None])


def test_labels_as_output_are_a_series_too(series, alone, tmp_path):
    for suffix in SUFFIXES:
        out = tmp_path / f"out.{suffix}"
        predict(series, out, settings(labelling="threshold", threshold=0.6))
        labels = read(out, "labels")
        np.testing.assert_array_equal(labels, np.stack(alone) > 0.6)


@pytest.mark.parametrize("times", [1, 4])
def test_a_mask_is_for_all_time_points_or_a_series(series, alone, times):
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, :, 4:8, 4:8, 4:8] = 1
    given = mask[0, 0] if times == 1 else mask
    prediction = predict(series, mask=given)

    assert len(networks.calls) < 4 * PATCHES
    for time in range(4):
        part = mask[time] > 0
        np.testing.assert_array_equal(prediction.arrays[time][part], alone[time][part])
        assert (prediction.arrays[time][:, -1] == 0).all()  # the fill value


def test_a_series_and_a_volume_in_one_run_have_an_output_each(series, alone, tmp_path):
    prediction = predict([series[:2], series[3, 0]], tmp_path / "out_{vol_id}.zarr")

    assert len(prediction.arrays) == 3
    np.testing.assert_array_equal(read(tmp_path / "out_0.zarr"), np.stack(alone[:2]))
    np.testing.assert_array_equal(read(tmp_path / "out_1.zarr"), alone[3])


def test_a_volume_has_no_time_points(series):
    with pytest.raises(SourceError, match="no time axis; leave out the time points"):
        predict(series[0], config=settings(time_points=(0,)))
    assert networks.calls == []
