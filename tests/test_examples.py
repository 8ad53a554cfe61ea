"""The examples run as they are, and do what they say."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import zarr

import napari_seamless as ns
from napari_seamless.demo import CHECKPOINT

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def python(tmp_path):
    """Run Python with some words in a process of its own; returns what it prints."""

    own = {
        "XDG_CONFIG_HOME": str(tmp_path / "config"),  # what the widget remembers of its user
        "OMP_NUM_THREADS": "1",  # threads that wait for each other take most of the time here
    }

    def run_python(*words: str, **more: str) -> str:
        ended = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**os.environ, **own, **more},
            timeout=240,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run_python


@pytest.fixture
def run(python):
    """Run an example; returns what it prints."""
    return lambda name, *arguments: python(str(EXAMPLES / name), *arguments)


def numbers_of(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.\d+", text)]


def test_headless_leaves_a_volume_that_was_resumed(run, tmp_path):
    printed = run("headless.py", str(tmp_path))
    assert "partial 8 of 15 patches" in printed
    assert int(re.search(r"\((\d+) already done\)", printed)[1]) > 0
    assert f"complete {tmp_path / 'prediction.zarr'}" in printed
    assert numbers_of(printed.splitlines()[-1])[0] > 0.8
    group = zarr.open_group(tmp_path / "prediction.zarr", mode="r")
    prediction = group["0"][:]
    assert prediction.shape == (1, 64, 48, 48)
    assert np.isfinite(prediction).all()


def test_a_network_with_heads_and_a_smaller_output(run):
    first, second, third = run("custom_network.py").splitlines()
    assert first == "main (1, 12, 96, 96)"
    assert second == "heads/texture (1, 12, 96, 96)"
    assert "what one pass over the volume gives" in third


def test_a_cluster_gives_the_same(run):
    pytest.importorskip("distributed")
    printed = run("dask_cluster.py")
    assert "complete 4 of 4 patches" in printed
    assert "2 workers" in printed
    assert "the same as without a cluster" in printed


SUBMIT = """#!/bin/sh
cp "$1" "job-$$"
setsid sh "job-$$" > "log-$$" 2>&1 &
echo "Submitted batch job $$"
"""
CANCEL = """#!/bin/sh
echo "$@" >> cancelled
"""
AS_ON_SLURM = """
import sys
import cluster_slurm as example
small = {"device": "cpu", "patch_size": (8, 32, 32), "batch_size": 1}
example.CONFIG, example.JOBS = example.CONFIG.changed(small), 2
example.main(*sys.argv[1:])
"""


def test_the_jobs_of_slurm_are_workers(python, tmp_path):
    """With commands in place of SLURM's own, which start a job at once, on this machine."""
    pytest.importorskip("dask_jobqueue")
    for name, text in {"sbatch": SUBMIT, "scancel": CANCEL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    volume = np.random.default_rng(0).integers(0, 256, (8, 80, 80), dtype=np.uint8)
    np.save(tmp_path / "in.npy", volume)
    shutil.copy(CHECKPOINT, tmp_path / "net.pt")
    words = ["-c", AS_ON_SLURM, "in.npy", "net.pt", "out.zarr"]
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert "complete out.zarr" in python(*words, PATH=path, PYTHONPATH=str(EXAMPLES))

    jobs = sorted(tmp_path.glob("job-*"))
    assert len(jobs) == 2
    for job in jobs:
        wanted = {"-p gpu", "--cpus-per-task=4", "-t 12:00:00", "--gres=gpu:1"}
        assert wanted <= set(re.findall("^#SBATCH (.*)$", job.read_text(), re.MULTILINE))
    numbers = {job.name.removeprefix("job-") for job in jobs}
    assert set((tmp_path / "cancelled").read_text().split()) == numbers

    config = ns.InferenceConfig(patch_size=(8, 32, 32), overlap=0.5, device="cpu")
    expected = ns.predict(volume, CHECKPOINT, config, progress=False).array
    group = zarr.open_group(tmp_path / "out.zarr", mode="r")
    np.testing.assert_allclose(group["0"][:], expected, rtol=1e-6, atol=1e-6)


def test_the_better_checkpoint_has_the_better_scores(run):
    _, trained, noisy, difference, _, largest = run("compare_checkpoints.py").splitlines()
    dice, *_, precision = numbers_of(trained)
    other_dice, *_, other_precision = numbers_of(noisy)
    assert dice > 0.85 > other_dice
    assert precision > other_precision
    assert 0 < numbers_of(difference)[0] < 0.5
    one, other = numbers_of(largest)
    assert abs(one - other) > 0.5


def test_seams_are_found_where_patches_meet(run):
    printed = run("find_a_seam.py")
    scores = dict(re.findall(r"^((?:constant|gaussian|hann) +0\.\d+)(.*)$", printed, re.MULTILINE))
    assert len(scores) == 4
    assert all(len(numbers_of(each)) == 3 for each in scores.values())
    places = re.findall(r"patches meet at ([ZYX]) = (\d+): it jumps (-?\d\.\d+) more", printed)
    assert [place[:2] for place in places] == [("Z", "4"), ("Y", "32"), ("X", "32")]
    assert all(float(excess) > 0 for *_, excess in places)
    z, y, x = map(int, re.search(r"\(Z, Y, X\) \((\d+), (\d+), (\d+)\)", printed).groups())
    assert z in (3, 4) or y in (31, 32) or x in (31, 32)


def test_a_viewer_from_a_script_takes_its_picture_and_closes(run, tmp_path):
    printed = run("live_in_napari.py", "--screenshot", str(tmp_path / "live.png"))
    assert "EM prediction (12, 96, 96) complete" in printed
    picture = imageio.imread(tmp_path / "live.png")
    assert picture.std() > 0
