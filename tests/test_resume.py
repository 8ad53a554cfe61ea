"""A run that was cancelled, failed or killed goes on from its finished chunks; none are lost."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import napari_seamless as ns
import networks
from napari_seamless.cli import main
from napari_seamless.engine.errors import ConfigError, OutputError, PredictionError, WriteError
from napari_seamless.io.journal import Journal
from napari_seamless.io.stores import open_store
from outputs import facts_of, read

SHAPE = (64, 24, 24)
CONFIG = ns.InferenceConfig(
    patch_size=(8, 12, 12), normalization="none", activation="sigmoid", device="cpu"
)
PATCHES = 15 * 3 * 3
SUFFIXES = ("zarr", "h5", "tif")

on_linux = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(7).random(SHAPE, dtype=np.float32)


@pytest.fixture(autouse=True)
def no_calls():
    networks.reset()


def predict(volume, out, network=None, config=CONFIG, **options):
    return ns.predict(volume, network or networks.Ramp(), config, out, progress=False, **options)


def settings(**changes):
    return ns.InferenceConfig(**{**CONFIG.model_dump(exclude_unset=True), **changes})


@pytest.fixture(scope="module")
def whole(volume, tmp_path_factory):
    """What a run that nobody interrupts writes, for each kind of output."""
    folder = tmp_path_factory.mktemp("whole")
    networks.reset()
    for suffix in SUFFIXES:
        predict(volume, folder / f"whole.{suffix}")
    return {suffix: read(folder / f"whole.{suffix}") for suffix in SUFFIXES}


def chunks_of(path, volume, config=CONFIG):
    """Return the grids of patches and of chunks."""
    with ns.InferenceRun(volume, networks.Ramp(), config) as run:
        grid = run.plan.volumes[0].grid
    return grid, open_store(path, resume=True).layout(grid)


def patches_still_needed(path, volume) -> set[int]:
    """Return the patches that share a voxel with a chunk that is not recorded."""
    grid, chunks = chunks_of(path, volume)
    finished = Journal(path).finished()
    boxes = [chunks[i] for i in range(len(chunks)) if i not in finished]
    cores = [
        grid[index].intersection(type(grid[index]).of_shape(SHAPE)) for index in range(len(grid))
    ]
    return {
        index
        for index, core in enumerate(cores)
        if any(np.prod(core.intersection(box).shape) > 0 for box in boxes)
    }


def assert_finished_are_as_in(whole, path, volume) -> int:
    """Check that recorded chunks have the very bits of an uninterrupted run; return how many."""
    _, chunks = chunks_of(path, volume)
    finished, found = Journal(path).finished(), read(path)
    for index in finished:
        part = (slice(None), *chunks[index].slices)
        np.testing.assert_array_equal(found[part], whole[part])
    return len(finished)


def assert_gone_on(path, volume, whole, **options):
    """Resume, and check that just what was missing has run and that nothing shows in the result."""
    needed = patches_still_needed(path, volume)
    assert 0 < len(needed) < PATCHES
    networks.reset()
    prediction = predict(volume, path, resume=True, **options)

    knows_its_channels = 0 if 0 in needed else 1  # the first batch is done again for them
    assert len(networks.calls) == len(needed) + knows_its_channels
    np.testing.assert_array_equal(read(path), whole)  # one patch at a time, in the same order
    np.testing.assert_array_equal(np.asarray(prediction.array), whole)
    assert facts_of(path)["status"] == "complete"
    assert int(facts_of(path)["done"]) == PATCHES
    assert not Journal(path).folder.exists()


# ------------------------------------------------------------------------------ interrupted


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_cancelled_run_goes_on(volume, tmp_path, whole, suffix):
    out = tmp_path / f"out.{suffix}"
    with ns.InferenceRun(volume, networks.Ramp(), CONFIG, out) as run:
        for event in run:
            if event.done == 77:
                run.cancel()

    assert facts_of(out)["status"] == "partial"
    known = np.isfinite(read(out))
    assert 0.4 < known.mean() < 0.8  # open chunks are there too, as they are
    np.testing.assert_array_equal(read(out)[known], np.asarray(run.live[0])[known])
    assert assert_finished_are_as_in(whole[suffix], out, volume) > 0
    assert_gone_on(out, volume, whole[suffix])


class Breaks(networks.Ramp):
    """Raises at its 78th batch."""

    def forward(self, image):
        if len(networks.calls) == 77:
            raise RuntimeError("device lost")
        return super().forward(image)


Breaks.__name__ = "Ramp"  # it is the same network to whoever resumes


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_run_goes_on(volume, tmp_path, whole, suffix):
    out = tmp_path / f"out.{suffix}"
    with pytest.raises(PredictionError, match="device lost") as caught:
        predict(volume, out, Breaks())

    assert caught.value.__notes__ == [f"{out} keeps 77 of {PATCHES} patches"]
    assert facts_of(out)["status"] == "failed"
    assert assert_finished_are_as_in(whole[suffix], out, volume) > 0
    assert_gone_on(out, volume, whole[suffix])


class BreaksLater(networks.Ramp):
    """Raises at the first patch of a second volume."""

    def forward(self, image):
        if len(networks.calls) == PATCHES:
            raise RuntimeError("device lost")
        return super().forward(image)


BreaksLater.__name__ = "Ramp"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_volume_that_fails_at_its_first_patch_says_so_and_goes_on(
    volume, tmp_path, whole, suffix
):
    pattern, out = tmp_path / f"{{vol_id}}.{suffix}", tmp_path / f"1.{suffix}"
    with pytest.warns(RuntimeWarning, match="device lost"):
        ns.predict([volume] * 2, BreaksLater(), CONFIG, pattern, progress=False)

    assert facts_of(tmp_path / f"0.{suffix}")["status"] == "complete"
    facts = facts_of(out)
    assert (facts["status"], int(facts["done"])) == ("failed", 0)
    assert np.isnan(read(out)).all()
    assert sorted(os.listdir(tmp_path)) == [f"0.{suffix}", out.name, f"{out.name}.run"]
    predict(volume, out, resume=True)
    np.testing.assert_array_equal(read(out), whole[suffix])
    assert facts_of(out)["status"] == "complete"


KILLED = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
import napari_seamless as ns
import networks
from napari_seamless.io.journal import Journal

folder, out, where, count = sys.argv[1:]
count = int(count)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def die_once_a_chunk_is_recorded():  # by then it is complete; another thread writes it
    while not Journal(Path(out)).finished():
        time.sleep(0.01)
    die()

if where == "batch":
    forward = networks.Ramp.forward
    networks.Ramp.forward = lambda self, image: (
        die_once_a_chunk_is_recorded() if len(networks.calls) == count else forward(self, image)
    )
else:  # the bytes of a chunk are written, and nothing says so yet
    record, seen = Journal.record, []
    Journal.record = lambda self, chunk: (
        die() if len(seen) == count else (seen.append(chunk), record(self, chunk))
    )
config = ns.InferenceConfig.from_json(open(folder + "/config.json").read())
volume = np.load(folder + "/volume.npy")
ns.predict(volume, networks.Ramp(), config, out, resume=True, progress=False)
"""


@pytest.fixture
def killed(tmp_path, volume):
    """Return what kills a run of a process of its own at some place."""
    np.save(tmp_path / "volume.npy", volume)
    (tmp_path / "config.json").write_text(CONFIG.to_json())

    def run(out, where, count):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path), str(out), where, str(count)],
            env={**os.environ, "PYTHONPATH": str(Path(networks.__file__).parent)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr

    return run


@on_linux
@pytest.mark.parametrize(
    "suffix", ["zarr", *(pytest.param(each, marks=pytest.mark.slow) for each in ("h5", "tif"))]
)
def test_a_killed_run_goes_on(volume, tmp_path, whole, killed, suffix):
    out = tmp_path / f"out.{suffix}"
    killed(out, "batch", 60)
    first = assert_finished_are_as_in(whole[suffix], out, volume)
    assert first > 0
    killed(out, "record", 1)  # the second chunk of the run that went on with it

    assert assert_finished_are_as_in(whole[suffix], out, volume) == first + 1
    assert_gone_on(out, volume, whole[suffix])


@on_linux
def test_a_run_killed_before_its_first_chunk_is_begun_anew(volume, tmp_path, whole, killed):
    out = tmp_path / "out.zarr"
    killed(out, "record", 0)

    assert Journal(out).finished() == set()
    predict(volume, out, resume=True)
    assert len(networks.calls) == PATCHES
    np.testing.assert_array_equal(read(out), whole["zarr"])


@pytest.mark.slow
@on_linux
def test_ctrl_c_and_then_resume_on_the_command_line(volume, tmp_path):
    """The network interrupts its own process, at a batch that is known."""
    np.save(tmp_path / "volume.npy", volume)
    torch.save(networks.Ramp().state_dict(), tmp_path / "net.pt")
    (tmp_path / "own.py").write_text(
        "import os, signal, networks\n"
        "class Network(networks.Ramp):\n"
        "    def forward(self, image):\n"
        "        if len(networks.calls) == int(os.environ['AT']):\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "        return super().forward(image)\n"
    )

    def program(out, at, *options):
        words = [sys.executable, "-m", "napari_seamless", "predict", str(tmp_path / "volume.npy")]
        words += ["--checkpoint", str(tmp_path / "net.pt"), "--architecture", "own:Network"]
        words += ["--patch-size", "8,12,12", "--normalization", "none", "--device", "cpu"]
        path = os.pathsep.join([str(tmp_path), str(Path(networks.__file__).parent)])
        return subprocess.run(
            [*words, "--output", str(out), "--json", *options],
            env={**os.environ, "PYTHONPATH": path, "AT": str(at)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    out = tmp_path / "out.zarr"
    assert program(out, 80).returncode == 130
    with pytest.raises(OutputError, match="an unfinished run is there; pass --resume"):
        predict(volume, out)
    needed = len(patches_still_needed(out, volume))
    done = program(out, -1, "--resume")

    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["status"], facts["patches"], facts["of"]) == ("complete", PATCHES, PATCHES)
    assert facts["forecast"]["resumed"] == PATCHES - needed
    assert facts["forecast"]["patches"] == facts["ran"] == needed
    assert facts["voxels_per_second"] > 0
    again = json.loads(program(out, -1, "--resume").stdout)
    assert (again["status"], again["patches"], again["ran"]) == ("complete", PATCHES, 0)
    assert again["voxels_per_second"] == 0
    assert f"{needed} patches ({PATCHES - needed} already done)" in done.stderr
    predict(volume, tmp_path / "whole.zarr", config=settings(activation="none"))
    np.testing.assert_array_equal(read(out), read(tmp_path / "whole.zarr"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_arrays_of_an_output_go_on(volume, tmp_path, suffix):
    config = settings(
        output_dtype="uint8", labelling="threshold", tta="flip:x", spread=True, head="dark"
    )
    out, whole = tmp_path / f"out.{suffix}", tmp_path / f"whole.{suffix}"
    expected = predict(volume, whole, networks.TwoHeads(), config).outputs[0]
    with ns.InferenceRun(volume, networks.TwoHeads(), config, out) as run:
        for event in run:
            if event.done == 77:
                run.cancel()
    given = predict(volume, out, networks.TwoHeads(), config, resume=True).outputs[0]

    assert list(given) == ["main", "spread", "labels", "heads/bright"]
    for name, array in given.items():
        np.testing.assert_array_equal(read(out, name), read(whole, name), err_msg=name)
        # of what was finished before, as precise as it is stored
        np.testing.assert_allclose(array, expected[name], atol=0.5 / 255 + 1e-6, err_msg=name)
    np.testing.assert_array_equal(given["labels"], read(out, "labels"))


def test_a_run_may_be_interrupted_again_and_again(volume, tmp_path, whole):
    out, finished = tmp_path / "out.zarr", []
    for count in (20, 45, 30, 25):
        with ns.InferenceRun(volume, networks.Ramp(), CONFIG, out, resume=True) as run:
            for step, _ in enumerate(run):
                if step == count:
                    run.cancel()
        finished.append(len(Journal(out).finished()))
        assert assert_finished_are_as_in(whole["zarr"], out, volume) == finished[-1]

    assert finished == sorted(finished)
    assert finished[-1] > finished[0]
    if Journal(out).exists:
        assert_gone_on(out, volume, whole["zarr"])


# ------------------------------------------------------------------------------ what may differ


@pytest.fixture(scope="module")
def cancelled(volume, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cancelled")
    for suffix in SUFFIXES:
        with ns.InferenceRun(volume, networks.Ramp(), CONFIG, folder / f"out.{suffix}") as run:
            for event in run:
                if event.done == 77:
                    run.cancel()
    return folder


@pytest.fixture
def left(cancelled, tmp_path):
    """A folder with out.zarr, out.h5 and out.tif, each of a run that was cancelled."""
    networks.reset()
    return shutil.copytree(cancelled, tmp_path, dirs_exist_ok=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_settings_of_the_machine_may_differ(volume, left, whole, suffix):
    out = left / f"out.{suffix}"
    config = settings(batch_size=4, device="auto", on_error="continue")
    finished = Journal(out).finished()
    _, chunks = chunks_of(out, volume)
    before = {index: read(out)[:, *chunks[index].slices] for index in finished}
    predict(volume, out, config=config, resume=True)

    assert max(shape[0] for shape in networks.calls) == 4
    after = read(out)
    for index, values in before.items():
        np.testing.assert_array_equal(after[:, *chunks[index].slices], values)
    np.testing.assert_allclose(after, whole[suffix], rtol=1e-6)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_setting_may_be_said_or_left_to_its_default(volume, tmp_path, is_first):
    said = {"planes": "none", "head": "bright", "intensity_scale": 255, "patch_size": (8, 12, 12)}
    configs = [settings(output_dtype="uint8"), settings(output_dtype="uint8", **said)]
    config, other = configs if is_first else configs[::-1]
    out = tmp_path / "out.zarr"
    with ns.InferenceRun(volume, networks.TwoHeads(), config, out) as run:
        for event in run:
            if event.done == 77:
                run.cancel()
    predict(volume, out, networks.TwoHeads(), other, resume=True)

    assert facts_of(out)["status"] == "complete"
    decided = facts_of(out)["identity"]["config"]
    assert (decided["planes"], decided["head"], decided["intensity_scale"]) == (
        "none",
        "bright",
        255,
    )


class Other(networks.Doubled):
    """A network of another name."""


def weighing(factor):
    network = networks.Ramp()
    torch.nn.init.constant_(network.factor, factor)
    return network


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": settings(overlap=0.25)}, "its config overlap is .*0.5.*, now it is .*0.25"),
        ({"config": settings(blending="hann")}, 'its config blending is "gaussian", now it is "h'),
        ({"config": settings(output_dtype="uint8")}, 'config output_dtype is "float32", now'),
        ({"config": settings(region="0:8,0:24,0:24")}, "config region is null, now it is"),
        ({"network": Other()}, 'its network is "Ramp", now it is "Other"'),
        ({"network": weighing(3.0)}, "its network_weights is"),
        ({"volume": 1}, "its input is .*voxels"),
        ({"mask": np.ones(SHAPE, np.uint8)}, "its input is .*, now it is .*"),
    ],
)
def test_another_run_is_refused_and_the_difference_is_named(volume, left, suffix, changes, said):
    out = left / f"out.{suffix}"
    before = read(out)
    changes = dict(changes)
    source = volume + np.float32(changes.pop("volume", 0))
    with pytest.raises(OutputError, match=said) as caught:
        predict(source, out, resume=True, **changes)

    assert "is of another run" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(networks.calls) <= 1
    np.testing.assert_array_equal(read(out), before)
    assert Journal(out).finished()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_voxels_from_another_place_are_the_same_input(volume, left, whole, suffix):
    np.save(left / "moved.npy", volume)
    predict(left / "moved.npy", left / f"out.{suffix}", resume=True)

    np.testing.assert_array_equal(read(left / f"out.{suffix}"), whole[suffix])


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("a.npy", ["--overlap", "0.25"], "config overlap"),
        ("b.npy", [], "input"),
        ("a.npy", ["--checkpoint", "b.pt"], "checkpoint_sha256"),
        ("a.npy", ["--mask", "mask.npy"], "input"),
    ],
)
def test_another_run_exits_with_2_and_one_line(
    volume, tmp_path, capsys, monkeypatch, name, options, said
):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", volume)
    np.save("b.npy", 1 - volume)
    np.save("mask.npy", np.ones(SHAPE, np.uint8))
    torch.save(weighing(2.0).state_dict(), "a.pt")
    torch.save(weighing(3.0).state_dict(), "b.pt")
    words = ["--architecture", "networks:Doubled", "--patch-size", "8,12,12", "--device", "cpu"]
    words += ["--normalization", "none", "--output", "out.h5"]
    model = ns.load_model("a.pt", architecture="networks:Doubled")
    config = ns.InferenceConfig(patch_size=(8, 12, 12), normalization="none", device="cpu")
    with ns.InferenceRun("a.npy", model, config, "out.h5") as run:
        for event in run:
            if event.done == 77:
                run.cancel()

    code = main(["predict", name, "--checkpoint", "a.pt", *words, "--resume", *options])
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert code == 2
    assert len(lines) == 1
    assert f"out.h5.run is of another run: its {said}" in lines[0]
    assert main(["predict", "a.npy", "--checkpoint", "a.pt", *words, "--resume"]) == 0
    np.testing.assert_allclose(read(tmp_path / "out.h5")[0], 2 * volume, rtol=1e-6)


# ------------------------------------------------------------------------------ nothing there


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_resume_with_nothing_there_starts_anew(volume, tmp_path, whole, suffix):
    out = tmp_path / f"out.{suffix}"
    predict(volume, out, resume=True)

    assert len(networks.calls) == PATCHES
    np.testing.assert_array_equal(read(out), whole[suffix])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_resume_of_a_complete_output_returns_at_once(volume, tmp_path, whole, suffix):
    out = tmp_path / f"out.{suffix}"
    predict(volume, out)
    networks.reset()
    prediction = predict(volume, out, resume=True)

    assert len(networks.calls) == 1  # the batch that tells how many channels there are
    np.testing.assert_array_equal(np.asarray(prediction.array), whole[suffix])
    np.testing.assert_array_equal(read(out), whole[suffix])
    assert facts_of(out)["status"] == "complete"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_a_run_left_is_neither_replaced_nor_gone_on_with_unasked(volume, left, suffix):
    out = left / f"out.{suffix}"
    before = read(out)
    with pytest.raises(OutputError, match=r"unfinished run is there; pass --resume .*--overwrite"):
        predict(volume, out)

    assert networks.calls == []
    np.testing.assert_array_equal(read(out), before)
    predict(volume, out, config=settings(overlap=0.0), overwrite=True)
    assert len(networks.calls) == 8 * 2 * 2  # all of another run
    assert facts_of(out)["status"] == "complete"
    assert not Journal(out).folder.exists()


def test_resume_needs_an_output(volume):
    with pytest.raises(ConfigError, match="resume needs the output"):
        predict(volume, None, resume=True)


def test_to_resume_and_to_replace_are_not_asked_for_at_once(volume, left, capsys):
    out, before = left / "out.zarr", read(left / "out.zarr")
    with pytest.raises(ConfigError, match="resume goes on with what is at the output"):
        predict(volume, out, resume=True, overwrite=True)
    words = ["predict", "a.npy", "--checkpoint", "a.pt", "--output", str(out)]
    with pytest.raises(SystemExit) as caught:
        main([*words, "--resume", "--overwrite"])

    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "--overwrite: not allowed with argument --resume" in lines[0]
    assert networks.calls == []
    np.testing.assert_array_equal(read(out), before)


def test_another_programs_file_is_not_gone_on_with(volume, tmp_path):
    (tmp_path / "out.h5").write_text("precious")
    with pytest.raises(OutputError, match="holds no run that could be resumed"):
        predict(volume, tmp_path / "out.h5", resume=True)
    assert (tmp_path / "out.h5").read_text() == "precious"


# ------------------------------------------------------------------------------ full disks


@pytest.fixture
def small_disk(tmp_path):
    """Return what mounts a disk of so many KiB."""
    mounted = []

    def mount(kib):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "napari-seamless-tests", str(folder)]
        if sys.platform != "linux" or subprocess.run(words, check=False).returncode:
            pytest.skip("needs root and Linux, to mount a small disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def large():
    return np.random.default_rng(8).random((64, 64, 64), dtype=np.float32)  # 1 MiB as written


LARGE = ns.InferenceConfig(patch_size=(8, 32, 32), normalization="none", device="cpu")


class Fills(networks.Ramp):
    """At a certain batch, fills the disk but for a few KiB."""

    def __init__(self, disk, at):
        super().__init__()
        self.disk, self.at = disk, at

    def forward(self, image):
        if len(networks.calls) == self.at:
            usage = os.statvfs(self.disk)
            left = usage.f_bavail * usage.f_frsize
            # a chunk written aside meanwhile may leave no room for all of it: full all the same
            with contextlib.suppress(OSError), open(self.disk / "ballast", "wb", 0) as ballast:
                ballast.write(bytes(max(0, left - (64 << 10))))
        return super().forward(image)


Fills.__name__ = "Ramp"


def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on_when_there_is_room(
    large, small_disk, tmp_path
):
    disk = small_disk(4096)
    out = disk / "out.zarr"
    with pytest.raises(WriteError, match="No space left on device: free space") as caught:
        predict(large, out, Fills(disk, 50), LARGE)

    assert "\n" not in str(caught.value)
    whole = tmp_path / "whole.zarr"
    (disk / "ballast").unlink()
    kept = len(Journal(out).finished())
    assert kept > 0
    networks.reset()
    predict(large, out, config=LARGE, resume=True)
    assert len(networks.calls) < 15 * 3 * 3
    predict(large, whole, config=LARGE)
    np.testing.assert_array_equal(read(out), read(whole))
    assert facts_of(out)["status"] == "complete"


@pytest.mark.parametrize("suffix", ["h5", "tif"])
def test_room_for_a_file_is_taken_before_the_run_goes_on(large, small_disk, suffix):
    disk = small_disk(4096)
    out = disk / f"out.{suffix}"
    predict(large, out, Fills(disk, 50), LARGE)  # no room but what it has already

    assert facts_of(out)["status"] == "complete"
    assert len(networks.calls) == 15 * 3 * 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_that_is_too_small_is_said_before_the_run(
    large, small_disk, tmp_path, capsys, suffix
):
    out = small_disk(796) / f"out.{suffix}"
    np.save(tmp_path / "large.npy", large)
    torch.save(networks.Ramp().state_dict(), tmp_path / "net.pt")
    words = ["predict", str(tmp_path / "large.npy"), "--checkpoint", str(tmp_path / "net.pt")]
    words += ["--architecture", "networks:Ramp", "--patch-size", "8,32,32", "--device", "cpu"]

    assert main([*words, "--output", str(out)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    assert f"output {out} takes 1" in lines[0]
    assert re.search("its disk has 79. KiB free: free space or choose another place", lines[0])
    assert len(networks.calls) == 1
    assert os.listdir(out.parent) == []


@pytest.mark.slow
def test_random_moments_of_a_kill_lose_nothing(volume, tmp_path, whole):
    """As `benchmarks/kill.py`, with one process and few moments."""
    if sys.platform == "win32":
        pytest.skip("Windows has no SIGKILL")
    np.save(tmp_path / "volume.npy", volume)
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    slowly = "import time, networks\nfrom networks import Ramp\nquick = Ramp.forward\n"
    slowly += "Ramp.forward = lambda *given: (time.sleep(0.01), quick(*given))[1]\n" + KILLED
    out, random = tmp_path / "out.h5", np.random.default_rng(1)
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", slowly, str(tmp_path), str(out), "batch", "-1"],
            env={**os.environ, "PYTHONPATH": str(Path(networks.__file__).parent)},
        )
        known, began = Journal(out).finished(), time.monotonic()
        while process.poll() is None and Journal(out).finished() == known:
            assert time.monotonic() < began + 60
            time.sleep(0.005)
        time.sleep(float(random.uniform(0, 0.3)))
        process.kill()
        process.wait()
        assert known < Journal(out).finished()
        assert_finished_are_as_in(whole["h5"], out, volume)

    assert_gone_on(out, volume, whole["h5"])
