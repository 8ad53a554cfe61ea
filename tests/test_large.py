"""What is larger than its memory, damaged in the middle, or mostly empty."""

import functools
import http.server
import json
import os
import tempfile
import threading
import time

import h5py
import numpy as np
import pytest
import torch
import zarr

import napari_seamless as ns
import networks
from napari_seamless.cli import main
from napari_seamless.engine.errors import ConfigError, SourceError, WriteError
from outputs import facts_of, read

SHAPE = (32, 48, 40)
CONFIG = ns.InferenceConfig(patch_size=(8, 16, 16), normalization="none", device="cpu")
SUFFIXES = ("zarr", "h5", "tif")


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(11).random(SHAPE, dtype=np.float32)


@pytest.fixture(autouse=True)
def no_calls():
    networks.reset()


def predict(source, out=None, network=None, config=CONFIG, **options):
    return ns.predict(source, network or networks.Ramp(), config, out, progress=False, **options)


def settings(**changes):
    return ns.InferenceConfig(**{**CONFIG.model_dump(exclude_unset=True), **changes})


def run_of(source, out=None, config=CONFIG, **options):
    return ns.InferenceRun(source, networks.Ramp(), config, out, **options)


def command(folder, source, out, *options):
    """Run `predict` with `networks.Ramp`; return the exit code."""
    torch.save(networks.Ramp().state_dict(), folder / "net.pt")
    words = ["predict", str(source), "--checkpoint", str(folder / "net.pt")]
    words += ["--architecture", "networks:Ramp", "--patch-size", "8,16,16", "--device", "cpu"]
    words += ["--normalization", "none", "--output", str(out)]
    return main([*words, *options])


def said(capsys):
    """Return the summary, and the lines of errors without what they begin with."""
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if "error: " in line]
    return json.loads(out) if out else {}, [line.partition("error: ")[2] for line in lines]


def reached_by(run, patches):
    """Return which voxels these patches contribute to, shape (Z, Y, X)."""
    reached = np.zeros(run.plan.volumes[0].grid.shape, dtype=bool)
    for index in patches:
        reached[run.plan.volumes[0].grid[index].slices] = True
    return reached


def patches_that_touch(run, low, high):
    """Return the patches whose input has voxels of a box of the volume."""
    touching = []
    for index in range(len(run.plan.volumes[0].grid)):
        box = run.plan.volumes[0].input_box(index)
        ends = zip(box.start, box.stop, low, high, strict=True)
        if all(start < up and down < stop for start, stop, down, up in ends):
            touching.append(index)
    return touching


# ------------------------------------------------------------------------------ little memory


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_little_memory_gives_the_same_bits_and_its_files_are_removed(volume, tmp_path, suffix):
    expected = predict(volume, tmp_path / f"whole.{suffix}")
    assert isinstance(expected.array, np.ndarray)
    out = tmp_path / f"out.{suffix}"
    used = set()
    with run_of(volume, out, memory=50_000) as run:
        foretold = run.forecast()
        for _ in run:
            used.update(str(path) for path in tmp_path.glob(f"out.{suffix}.run/seamless-sums-*/*"))

    assert foretold.scratch > 0
    assert used
    assert sorted(os.listdir(tmp_path)) == [f"out.{suffix}", f"whole.{suffix}"]
    array = run.outputs()["main"]  # from the output, now that it is closed
    assert not isinstance(array, np.ndarray)
    np.testing.assert_array_equal(np.asarray(array), expected.array)
    np.testing.assert_array_equal(array[0, 7:9, 3], expected.array[0, 7:9, 3])
    lazy = predict(volume, tmp_path / f"lazy.{suffix}", memory=50_000).array
    assert not isinstance(lazy, np.ndarray)
    np.testing.assert_array_equal(np.asarray(lazy), expected.array)


def test_little_memory_without_an_output_uses_the_folder_for_temporary_files(
    volume, tmp_path, monkeypatch
):
    expected = predict(volume).array
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    used = set()
    with run_of(volume, memory=50_000) as run:
        for _ in run:
            used.update(tmp_path.glob("seamless-sums-*/*"))

    assert used
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(run.results()[0], expected)


def test_little_memory_and_a_resume_give_the_same_bits(volume, tmp_path):
    expected = predict(volume, tmp_path / "whole.zarr").array
    out = tmp_path / "out.zarr"
    with run_of(volume, out, memory=50_000) as run:
        for event in run:
            if event.done == 90:
                run.cancel()
    predict(volume, out, memory=50_000, resume=True)

    np.testing.assert_array_equal(read(out), expected)


def test_no_memory_at_all_is_enough(volume, tmp_path):
    expected = predict(volume).array

    np.testing.assert_array_equal(predict(volume, tmp_path / "out.h5", memory=0).array, expected)


@pytest.mark.parametrize("memory", [-1, "2GB", 1e9])
def test_memory_that_is_no_number_of_bytes_is_refused(volume, memory):
    with pytest.raises(ConfigError, match=r"memory .* is no number of bytes"):
        predict(volume, memory=memory)
    assert networks.calls == []


def test_a_disk_too_small_for_the_open_sums_is_one_line(small_disk, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    large = np.zeros((32, 128, 128), np.float32)
    config = settings(patch_size=(16, 16, 16))  # 16 planes are open at once: 2 MiB of sums
    with pytest.raises(WriteError, match=r"open sums of .* do not fit .*free space") as caught:
        predict(large, config=config, memory=50_000)

    assert "\n" not in str(caught.value)
    assert str(small_disk) in str(caught.value)


def test_memory_is_given_in_words_on_the_command_line(volume, tmp_path, capsys):
    np.save(tmp_path / "volume.npy", volume)
    for memory in ("50KB", "1GB"):
        out = tmp_path / f"out_{memory}.h5"
        assert command(tmp_path, tmp_path / "volume.npy", out, "--memory", memory, "--json") == 0
    out, err = capsys.readouterr()
    little, much = (json.loads(line)["forecast"] for line in out.splitlines())

    assert little["scratch"] > 0 == much["scratch"]
    assert "of sums on the disk meanwhile" in err.splitlines()[0]
    np.testing.assert_array_equal(read(tmp_path / "out_50KB.h5"), read(tmp_path / "out_1GB.h5"))


def test_what_a_run_will_take_is_said_before_its_bar(volume, tmp_path, capsys):
    np.save(tmp_path / "volume.npy", volume)
    assert command(tmp_path, tmp_path / "volume.npy", tmp_path / "out.zarr", "--json") == 0
    out, err = capsys.readouterr()
    forecast = json.loads(out)["forecast"]

    line, *rest = err.splitlines()
    assert line.startswith("napari-seamless: 140 patches, each voxel computed 4.67 times, about ")
    assert "of memory, an output of 240 KiB before compression" in line
    assert any("140/140" in each for each in rest)
    assert forecast["patches"] == 7 * 5 * 4
    assert forecast["output"] == 4 * np.prod(SHAPE)
    assert (forecast["skipped"], forecast["resumed"], forecast["scratch"]) == (0, 0, 0)


# ------------------------------------------------------------------------------ damage

CHUNK = (8, 16, 20)
DAMAGED = ((8, 16, 20), (16, 32, 40))


@pytest.fixture(params=["zarr", "h5"])
def damaged(request, volume, tmp_path):
    """A volume whose second chunk along each axis is damaged."""
    if request.param == "zarr":
        path = tmp_path / "damaged.zarr"
        array = zarr.create_array(path, shape=SHAPE, chunks=CHUNK, dtype="float32")
        array[...] = volume
        (chunk,) = path.glob("**/c/1/1/1")
        chunk.write_bytes(b"\x00damage" + chunk.read_bytes()[20:])
        return str(path)
    path = tmp_path / "damaged.h5"
    with h5py.File(path, "w") as file:
        raw = file.create_dataset("raw", data=volume, chunks=CHUNK, fletcher32=True)
        at = raw.id.get_chunk_info_by_coord((8, 16, 20)).byte_offset
    with open(path, "r+b") as file:
        file.seek(at + 40)
        file.write(b"damage!!")
    return f"{path}::raw"


def test_a_damaged_chunk_stops_the_run_with_one_line(damaged, tmp_path, capsys):
    out = tmp_path / "out.zarr"
    assert command(tmp_path, damaged, out) == 2

    _, lines = said(capsys)
    assert len(lines) == 1
    assert lines[0].startswith(f"{damaged} cannot be read at (4, 8, 8) to (12, 24, 24) (Z, Y, X)")
    assert lines[0].endswith(f"; {out} keeps 25 of 140 patches")
    assert facts_of(out)["status"] == "failed"


@pytest.mark.parametrize("suffix", ["zarr", "h5"])
def test_a_run_can_continue_without_a_damaged_chunk(volume, damaged, tmp_path, capsys, suffix):
    out = tmp_path / f"out.{suffix}"
    expected = predict(volume).array
    options = ["--on-error", "continue", "--json"]
    assert command(tmp_path, damaged, out, *options) == 1

    with run_of(volume) as run:
        lost = patches_that_touch(run, *DAMAGED)
        reached = reached_by(run, lost)
        places = [run.plan.volumes[0].cores[index].start for index in lost]
    facts, lines = said(capsys)
    assert 0 < len(lost) < 140
    assert len(lines) == len(lost)
    for place, line in zip(places, lines, strict=True):
        assert line.startswith(f"patch at {place} (Z, Y, X) is missing: {damaged} cannot be read")
    assert facts["failures"] == lines
    main = read(out)[0]
    assert np.isnan(main[reached]).all()
    np.testing.assert_array_equal(main[~reached], expected[0][~reached])
    assert 0 < reached.mean() < 1


def test_what_is_missing_is_the_fill_value_in_integers(volume, damaged, tmp_path):
    config = settings(on_error="continue", output_dtype="uint8", fill_value=0.5)
    with pytest.warns(RuntimeWarning, match="is missing: .*damaged.* cannot be read"):
        predict(damaged, tmp_path / "out.h5", config=config)
    with run_of(volume) as run:
        reached = reached_by(run, patches_that_touch(run, *DAMAGED))
    predict(volume, tmp_path / "whole.h5", config=settings(output_dtype="uint8"))

    main, whole = read(tmp_path / "out.h5")[0], read(tmp_path / "whole.h5")[0]
    assert (main[reached] == 128).all()
    np.testing.assert_array_equal(main[~reached], whole[~reached])


def test_a_run_that_a_damaged_chunk_stopped_goes_on_without_it(volume, damaged, tmp_path):
    out = tmp_path / "out.zarr"
    with pytest.raises(SourceError, match="cannot be read"):
        predict(damaged, out)
    with pytest.warns(RuntimeWarning, match="is missing"):
        predict(damaged, out, config=settings(on_error="continue"), resume=True)

    with run_of(volume) as run:
        reached = reached_by(run, patches_that_touch(run, *DAMAGED))
    main = read(out)[0]
    assert np.isnan(main[reached]).all()
    np.testing.assert_array_equal(main[~reached], predict(volume).array[0][~reached])


class Flaky:
    """An array of which some voxels cannot be read while a run is under way, as long as it is on.

    A fingerprint of it is taken before the run.
    """

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.ndim = array, array.shape, array.dtype, array.ndim
        self.is_on = True

    def __getitem__(self, key):
        touches = all(
            part.start < high and low < part.stop
            for part, low, high in zip(key, *DAMAGED, strict=True)
        )
        if self.is_on and networks.calls and touches:
            raise OSError("the disk was away")
        return self.array[key]

    def __array__(self, dtype=None, copy=None):
        return self.array


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_patches_that_were_missing_are_tried_again_on_resume(volume, tmp_path, suffix):
    predict(volume, tmp_path / f"whole.{suffix}")
    source, out = Flaky(volume), tmp_path / f"out.{suffix}"
    config = settings(on_error="continue")
    networks.reset()
    with run_of(source, out, config) as run:
        list(run)
    grid, spoilt = run.plan.volumes[0].grid, run.volumes[0].failed
    assert run.status == "partial"
    assert (facts_of(out)["status"], int(facts_of(out)["done"])) == ("partial", 140)
    assert len(networks.calls) == 140 - len(spoilt) == run.volumes[0].ran

    source.is_on = False
    networks.reset()
    chunks = run.volumes[0].accumulator.chunks
    holes = {i for index in spoilt for i in chunks.touching(grid[index])}
    needed = {index for i in holes for index in range(140) if overlap(grid[index], chunks[i])}
    with run_of(source, out, config, resume=True) as again:
        list(again)
    assert again.status == "complete"
    assert again.volumes[0].ran == len(needed)
    assert len(needed) < 140 or suffix == "zarr"  # whose chunks are large
    assert sorted(os.listdir(tmp_path)) == [f"out.{suffix}", f"whole.{suffix}"]
    assert facts_of(out)["status"] == "complete"
    assert "failed" not in facts_of(out)
    np.testing.assert_array_equal(read(out), read(tmp_path / f"whole.{suffix}"))


def overlap(box, other):
    return not box.intersection(other).is_empty


def test_what_is_missing_still_is_said_again(damaged, tmp_path, capsys):
    out = tmp_path / "out.h5"
    options = ["--on-error", "continue", "--json"]
    assert command(tmp_path, damaged, out, *options) == 1
    first, lines = said(capsys)
    assert command(tmp_path, damaged, out, *options, "--resume") == 1
    second, again = said(capsys)

    assert first["status"] == second["status"] == facts_of(out)["status"] == "partial"
    assert first["missing"] == second["missing"] == len(lines) > 0
    assert first["ran"] == 140 - len(lines) > second["ran"]
    assert lines == again
    assert command(tmp_path, damaged, out, *options[:2], "--resume") == 1
    text = capsys.readouterr().out
    assert f"partial: 140 of 140 patches, {len(lines)} of them missing, in " in text


def test_nan_in_the_input_counts_as_damage(volume):
    spoilt = volume.copy()
    spoilt[20, 30, 5] = np.nan
    said = r"4 patches are missing, at .*: the volume holds nan .*\(20, 30, 5\)"
    with pytest.warns(RuntimeWarning, match=said):
        array = predict(spoilt, config=settings(on_error="continue")).array

    with run_of(volume) as run:
        reached = reached_by(run, patches_that_touch(run, (20, 30, 5), (21, 31, 6)))
    assert np.isnan(array[0][reached]).all()
    np.testing.assert_array_equal(array[0][~reached], predict(volume).array[0][~reached])


def test_if_nothing_can_be_read_the_run_fails(tmp_path):
    nothing = np.full(SHAPE, np.nan, np.float32)
    with pytest.raises(SourceError, match="the volume holds nan"):
        predict(nothing, tmp_path / "out.zarr", config=settings(on_error="continue"))
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------ emptiness


@pytest.fixture
def mask():
    mask = np.zeros(SHAPE, np.uint8)
    mask[10:14, 5:20, 8:30] = 3
    return mask


def patches_that_reach(run, mask):
    grid = run.plan.volumes[0].grid
    return [index for index in range(len(grid)) if mask[grid[index].slices].any()]


@pytest.mark.parametrize("suffix", ["zarr", "h5"])
def test_only_patches_that_reach_the_mask_run(volume, mask, tmp_path, capsys, suffix):
    out = tmp_path / f"out.{suffix}"
    np.save(tmp_path / "volume.npy", volume)
    np.save(tmp_path / "mask.npy", mask)
    options = ["--mask", str(tmp_path / "mask.npy"), "--fill-value=-3", "--json"]
    assert command(tmp_path, tmp_path / "volume.npy", out, *options) == 0
    out_text, err = capsys.readouterr()
    facts = json.loads(out_text)
    calls = len(networks.calls)

    with run_of(volume) as run:
        wanted = patches_that_reach(run, mask)
        reached = reached_by(run, wanted)
    assert 0 < len(wanted) < 70
    assert 0 not in wanted
    assert calls == len(wanted)
    assert (facts["patches"], facts["of"], facts["status"]) == (140, 140, "complete")
    assert facts["forecast"]["patches"] == len(wanted)
    assert facts["forecast"]["skipped"] == 140 - len(wanted)
    assert f"{len(wanted)} patches ({140 - len(wanted)} skipped)" in err
    assert facts_of(out)["skipped"] == 140 - len(wanted)
    main = read(out)[0]
    np.testing.assert_array_equal(main[~reached], -3)
    np.testing.assert_array_equal(main[mask > 0], predict(volume).array[0][mask > 0])
    assert np.isfinite(main).all()


def test_patches_of_constant_input_do_not_run(volume, tmp_path):
    flat = volume.copy()
    flat[:, 20:, :] = 0.25
    config = settings(skip_constant=True, fill_value=7)
    prediction = predict(flat, tmp_path / "out.zarr", config=config)
    calls = len(networks.calls)

    with run_of(flat) as run:
        boxes = [run.plan.volumes[0].grid[index] for index in range(140)]
    running = [index for index, box in enumerate(boxes) if np.ptp(flat[box.slices]) > 0]
    assert calls == len(running) < 140
    reached = reached_by(run, running)
    np.testing.assert_array_equal(prediction.array[0][~reached], 7)
    inside = np.zeros(SHAPE, bool)
    inside[:, :16] = True  # no patch that was skipped reaches here
    np.testing.assert_array_equal(prediction.array[0][inside], predict(flat).array[0][inside])
    facts = facts_of(tmp_path / "out.zarr")
    assert facts["skipped"] == 140 - len(running)
    assert facts["config"]["skip_constant"] is True


def test_skipping_goes_with_resume(volume, mask, tmp_path):
    config = settings(fill_value=7)
    expected = predict(volume, tmp_path / "whole.zarr", config=config, mask=mask).array
    out = tmp_path / "out.zarr"
    with run_of(volume, out, config, mask=mask) as run:
        for event in run:
            if event.done > 125:
                run.cancel()
    assert run.status == "partial"
    given = predict(volume, out, config=config, mask=mask, resume=True).array

    np.testing.assert_array_equal(np.asarray(given), expected)
    np.testing.assert_array_equal(read(out), expected)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((32, 48, 41), "(32, 48, 41)"), ((2, *SHAPE), "2 channels"), ((48, 40), "(1, 48, 40)")],
)
def test_a_mask_of_another_shape_is_refused(volume, tmp_path, capsys, shape, words):
    np.save(tmp_path / "volume.npy", volume)
    np.save(tmp_path / "mask.npy", np.ones(shape, np.uint8))
    options = ["--mask", str(tmp_path / "mask.npy")]
    assert command(tmp_path, tmp_path / "volume.npy", tmp_path / "out.h5", *options) == 2

    _, lines = said(capsys)
    assert len(lines) == 1
    assert lines[0].startswith(f"mask {tmp_path / 'mask.npy'} has shape")
    assert words in lines[0]
    assert "(32, 48, 40) (Z, Y, X)" in lines[0]
    assert networks.calls == []


def test_masks_are_one_for_each_volume(volume):
    with pytest.raises(ValueError, match="masks are 1 for 2 inputs; give one each"):
        predict([volume, volume], mask=[np.ones(SHAPE)])


# ------------------------------------------------------------------------------ elsewhere


@pytest.fixture
def server(tmp_path):
    """Return a server of the folder, which forbids some of it; and where it is."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if "forbidden" in self.path:
                self.send_error(403)
            else:
                super().do_GET()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *words):
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", ["forbidden.zarr", "absent.zarr"])
def test_a_url_that_cannot_be_read_is_one_line(server, tmp_path, capsys, name):
    began = time.monotonic()
    assert command(tmp_path, f"{server}/{name}", tmp_path / "out.zarr") == 2

    assert time.monotonic() - began < 20  # it does not try again and again
    _, lines = said(capsys)
    assert len(lines) == 1
    assert name in lines[0]
    assert os.listdir(tmp_path) == ["net.pt"]


def test_nobody_at_that_address_is_one_line(tmp_path, capsys):
    assert command(tmp_path, "http://127.0.0.1:9/volume.zarr", tmp_path / "out.zarr") == 2

    _, lines = said(capsys)
    assert len(lines) == 1
    assert "127.0.0.1:9/volume.zarr" in lines[0]


def test_a_url_is_read(server, volume, tmp_path):
    zarr.create_array(tmp_path / "in.zarr", data=volume, chunks=(8, 16, 20))

    np.testing.assert_array_equal(predict(f"{server}/in.zarr").array, predict(volume).array)
