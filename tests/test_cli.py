"""The command line, as a program: exit codes, one line per error, files left behind or not."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch

import networks
from napari_seamless.cli import main

TESTS = Path(__file__).parent


@pytest.fixture
def files(tmp_path):
    """A folder with a volume (10, 24, 24) uint8, its labels, and a network that doubles."""
    volume = np.random.default_rng(3).integers(0, 120, (10, 24, 24), dtype=np.uint8)
    with h5py.File(tmp_path / "volume.h5", "w") as file:
        file["raw"] = volume
        file["labels"] = (volume > 60).astype(np.uint8)
    torch.save(networks.Doubled().state_dict(), tmp_path / "net.pt")
    networks.reset()
    return tmp_path


def predict(folder, *options, source="volume.h5::raw", network="networks:Doubled"):
    return main(
        [
            "predict",
            str(folder / source),
            "--checkpoint",
            str(folder / "net.pt"),
            "--architecture",
            network,
            "--patch-size",
            "4,12,12",
            "--normalization",
            "none",
            "--device",
            "cpu",
            *options,
        ]
    )


def the_error(capsys) -> str:
    """Return the error line, and make sure that it is one line."""
    lines = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("napari-seamless")
    ]
    assert len(lines) == 1
    return lines[0]


def test_predict_writes_the_prediction_and_what_made_it(files, capsys):
    assert predict(files, "--output", str(files / "out.h5"), "--json", "--overlap", "0.25") == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["status"] == "complete"
    assert facts["patches"] == facts["of"] == len(networks.calls)
    with h5py.File(files / "volume.h5") as source, h5py.File(files / "out.h5") as out:
        np.testing.assert_allclose(out["main"][0], 2.0 * source["raw"][...], rtol=1e-6)
        config = json.loads(out["main"].attrs["config"])
        assert (config["patch_size"], config["overlap"]) == ([4, 12, 12], 0.25)
        assert len(out["main"].attrs["checkpoint_sha256"]) == 64


def test_predict_reads_and_writes_tiff(files):
    with h5py.File(files / "volume.h5") as file:
        volume = file["raw"][...]
    tifffile.imwrite(files / "volume.tif", volume)
    assert predict(files, "--output", str(files / "out.tif"), source="volume.tif") == 0

    np.testing.assert_allclose(
        tifffile.imread(files / "out.tif").squeeze(), 2.0 * volume, rtol=1e-6
    )


def test_labels_give_a_dice_coefficient(files, capsys):
    labels = str(files / "volume.h5::labels")
    code = predict(files, "--output", str(files / "out.h5"), "--labels", labels, "--json")

    assert code == 0
    # every grey value above 0 doubles to more than 0.5, so the prediction is nearly everywhere
    with h5py.File(files / "volume.h5") as file:
        found, truth = file["raw"][...] > 0, file["labels"][...] > 0
    expected = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert json.loads(capsys.readouterr().out)["dice"] == pytest.approx(expected, abs=1e-6)


def test_options_overrule_the_config_file(files, capsys):
    config = files / "run.json"
    config.write_text(json.dumps({"patch_size": [10, 24, 24], "overlap": 0.0, "batch_size": 2}))
    assert predict(files, "--output", str(files / "out.h5"), "--config", str(config), "--json") == 0

    assert json.loads(capsys.readouterr().out)["of"] == 3 * 2 * 2  # patches of 4,12,12
    assert networks.calls[0][0] == 2


@pytest.mark.parametrize(
    ("options", "source", "words"),
    [
        ((), "absent.h5::raw", ["absent.h5"]),
        ((), "volume.h5::absent", ["absent", "raw"]),
        (("--overlap", "1.0"), None, ["overlap", "1.0", "[0, 1)"]),
        (("--overlap", "-0.1"), None, ["overlap", "-0.1"]),
        (("--overlap", "nan"), None, ["overlap", "nan"]),
        (("--overlap", "half"), None, ["overlap", "half"]),
        (("--patch-size", "4,12"), None, ["patch_size"]),
        (("--patch-size", "4,x,12"), None, ["patch_size [4, 'x', 12]", "three positive integers"]),
        (("--batch-size", "0"), None, ["batch_size", "0"]),
        (("--blending", "tophat"), None, ["tophat", "gaussian"]),
        (("--device", "gpu"), None, ["gpu", "cpu"]),
        (("--device", "cuda:7"), None, ["cuda:7"]),
        (("--architecture", "networks:Absent"), None, ["Absent"]),
        (("--arguments", "{oops"), None, ["--arguments", "{oops", "JSON"]),
        (("--checkpoint", "nowhere.pt"), None, ["nowhere.pt"]),
        (("--config", "nowhere.json"), None, ["nowhere.json"]),
        (("--labels", "nowhere.h5"), None, ["nowhere.h5"]),
        (("--no-such-option",), None, ["--no-such-option"]),
    ],
)
def test_what_cannot_work_exits_with_2_and_one_line(files, capsys, options, source, words):
    extra = ["--output", str(files / "out.h5"), *options]
    try:
        code = predict(files, *extra, **({"source": source} if source else {}))
    except SystemExit as error:  # argparse
        code = error.code

    assert code == 2
    line = the_error(capsys)
    for word in words:
        assert word in line
    assert not (files / "out.h5").exists()


def test_a_pickle_is_refused_and_not_run(files, capsys):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (files / "harm",)

    (files / "net.pt").write_bytes(pickle.dumps(Bomb()))

    assert predict(files, "--output", str(files / "out.h5")) == 2
    assert "pickled" in the_error(capsys)
    assert not (files / "harm").exists()


def test_an_output_that_exists_is_kept_unless_overwrite(files, capsys):
    out = files / "out.h5"
    out.write_text("precious")

    assert predict(files, "--output", str(out)) == 2
    assert "--overwrite" in the_error(capsys)
    assert out.read_text() == "precious"
    assert predict(files, "--output", str(out), "--overwrite") == 0
    assert h5py.is_hdf5(out)


@pytest.mark.parametrize("name", ["volume.h5", "net.pt"])
def test_an_input_is_never_the_output(files, capsys, name):
    before = (files / name).read_bytes()

    assert predict(files, "--output", str(files / name), "--overwrite") == 2
    assert name in the_error(capsys)
    assert (files / name).read_bytes() == before


def test_a_config_need_not_be_complete(files):
    (files / "run.json").write_text('{"overlap": 0.0}')
    config = str(files / "run.json")

    assert predict(files, "--output", str(files / "out.h5"), "--config", config) == 0
    assert len(networks.calls) == 3 * 2 * 2


def test_a_patch_beyond_any_memory_is_refused(files, capsys):
    sizes = "999999,99999,99999"

    assert predict(files, "--output", str(files / "out.h5"), "--patch-size", sizes) == 2
    assert "patch_size (999999, 99999, 99999)" in the_error(capsys)


def test_a_disk_too_small_is_said_before_the_work_is_done(files, capsys, monkeypatch):
    usage = shutil.disk_usage(files)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    assert predict(files, "--output", str(files / "out.h5")) == 2
    line = the_error(capsys)
    assert "out.h5" in line
    assert "free" in line
    assert len(networks.calls) == 1  # the batch that tells how many channels there are
    assert not (files / "out.h5").exists()


def test_a_wrong_channel_count_is_named(files, capsys):
    torch.save(torch.nn.Conv3d(3, 1, 1).state_dict(), files / "net.pt")
    arguments = json.dumps({"in_channels": 3, "out_channels": 1, "kernel_size": 1})
    out = str(files / "out.h5")

    assert predict(files, "--arguments", arguments, "--output", out, network="torch.nn:Conv3d") == 2
    line = the_error(capsys)
    assert "channels" in line
    assert "(1, 1, 4, 12, 12)" in line
    assert not Path(out).exists()


def test_nan_in_the_input_is_named_with_its_place(files, capsys):
    volume = np.ones((10, 24, 24), np.float32)
    volume[9, 20, 3] = np.nan
    np.save(files / "volume.npy", volume)

    code = predict(files, "--output", str(files / "out.h5"), source="volume.npy")

    assert code == 2
    assert "(9, 20, 3)" in the_error(capsys)
    with h5py.File(files / "out.h5") as file:  # what came before is not lost
        assert file["main"].attrs["status"] == "failed"
        assert np.nanmax(file["main"][...]) == 2


def test_an_output_that_appears_meanwhile_is_kept_and_so_is_the_prediction(
    files, capsys, monkeypatch
):
    (files / "kept").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(files / "kept"))
    monkeypatch.setenv(
        "STARTED", str(files / "out.h5")
    )  # `Slow` makes this file at its second batch

    assert predict(files, "--output", str(files / "out.h5"), network="networks:Slow") == 1
    line = the_error(capsys)
    assert "appeared" in line
    assert f"the prediction is kept in {files / 'kept'}" in line
    assert "keeps" not in line
    assert (files / "out.h5").read_bytes() == b""


def test_a_network_that_fails_later_exits_with_1_and_keeps_what_was_done(files, capsys):
    code = predict(files, "--output", str(files / "out.h5"), network="networks:FailsLater")

    assert code == 1
    line = the_error(capsys)
    assert "can't allocate memory" in line
    assert f"{files / 'out.h5'} keeps 2 of" in line
    with h5py.File(files / "out.h5") as file:
        assert file["main"].attrs["status"] == "failed"
        assert int(file["main"].attrs["done"]) == 2
        assert np.isfinite(file["main"][...]).any()


def test_a_patch_larger_than_the_volume_is_padded(files):
    assert predict(files, "--output", str(files / "out.h5"), "--patch-size", "16,32,32") == 0

    with h5py.File(files / "volume.h5") as source, h5py.File(files / "out.h5") as out:
        np.testing.assert_allclose(out["main"][0], 2.0 * source["raw"][...], rtol=1e-6)


def test_inspect_says_what_is_inside(files, capsys):
    checkpoint = str(files / "net.pt")
    assert main(["inspect", checkpoint, "--architecture", "networks:Doubled", "--json"]) == 0

    report = json.loads(capsys.readouterr().out)
    assert report["format"] == "state dict"
    assert report["parameters"] == 1
    assert main(["inspect", checkpoint]) == 0
    assert "state dict" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_ctrl_c_exits_with_130_and_writes_the_partial_prediction(files):
    program = [sys.executable, "-m", "napari_seamless", "predict", str(files / "volume.h5::raw")]
    options = ["--checkpoint", str(files / "net.pt"), "--architecture", "networks:Slow"]
    sizes = ["--patch-size", "4,12,12", "--output", str(files / "out.h5"), "--device", "cpu"]
    process = subprocess.Popen(
        [*program, *options, *sizes],
        env={**os.environ, "PYTHONPATH": str(TESTS), "STARTED": str(files / "started")},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (files / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130, errors
    with h5py.File(files / "out.h5") as file:
        attributes = dict(file["main"].attrs)
    assert attributes["status"] == "partial"
    assert 0 < attributes["done"] < attributes["total"]
