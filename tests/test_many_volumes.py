"""A list of volumes in one run: each is predicted, or reported while the others are finished."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager

import h5py
import numpy as np
import pytest
import tifffile
import torch

import napari_seamless as ns
import networks
from napari_seamless.cli import main
from napari_seamless.draining import drain
from napari_seamless.engine.errors import (
    ConfigError,
    ModelCallError,
    ModelError,
    OutputError,
    SourceError,
    WriteError,
)

CONFIG = ns.InferenceConfig(patch_size=(4, 8, 8), normalization="none", device="cpu")
SHAPES = [(6, 12, 12), (3, 20, 7), (9, 8, 15)]
PATCHES = [2 * 2 * 2, 1 * 4 * 1, 4 * 1 * 3]


@pytest.fixture
def volumes():
    random = np.random.default_rng(5)
    networks.reset()
    return [random.random(shape, dtype=np.float32) for shape in SHAPES]


@pytest.fixture
def folder(tmp_path, volumes):
    """A folder with a.npy, b.npy and c.npy, and a network that doubles."""
    for name, volume in zip("abc", volumes, strict=True):
        np.save(tmp_path / f"{name}.npy", volume)
    torch.save(networks.Doubled().state_dict(), tmp_path / "net.pt")
    return tmp_path


def predict(sources, network=None, config=CONFIG, **options):
    return ns.predict(sources, network or networks.Doubled(), config, progress=False, **options)


def run_of(sources, network=None, config=CONFIG, **options):
    return ns.InferenceRun(sources, network or networks.Doubled(), config, **options)


def command(folder, *options, names="abc", network="networks:Doubled", output="out_{vol_id}.h5"):
    """Run `predict` over volumes of the folder; return the exit code."""
    inputs = [str(folder / f"{name}.npy") for name in names]
    model = ["--checkpoint", str(folder / "net.pt"), "--architecture", network]
    settings = ["--patch-size", "4,8,8", "--normalization", "none", "--device", "cpu"]
    return main(["predict", *inputs, *model, *settings, "--output", str(folder / output), *options])


def error_lines(capsys) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix("napari-seamless: error: ") for line in lines if "error: " in line]


def outputs_in(folder) -> list[str]:
    return sorted(name for name in os.listdir(folder) if "out" in name)


def assert_doubled(path, volume) -> None:
    with h5py.File(path) as file:
        assert file["main"].attrs["status"] == "complete"
        np.testing.assert_allclose(file["main"][0], 2 * volume, rtol=1e-6)


class Raises:
    """An array-like whose last planes cannot be read."""

    shape, dtype = (9, 8, 8), np.dtype(np.float32)

    def __getitem__(self, key):
        if key[0].stop > 5:
            raise RuntimeError("the tape is torn\nsecond line")
        return np.ones(self.shape, self.dtype)[key]


def holding_nan(volume):
    spoilt = volume.copy()
    spoilt[-1, -1, -1] = np.nan
    return spoilt


# ------------------------------------------------------------------------------ what goes well


def test_each_volume_has_its_vol_id_shape_and_file(volumes, tmp_path):
    prediction = predict(volumes, output=tmp_path / "out_{vol_id}.h5")

    assert [array.shape for array in prediction.arrays] == [(1, *shape) for shape in SHAPES]
    assert prediction.failures == {}
    for vol_id, volume in enumerate(volumes):
        np.testing.assert_allclose(prediction.arrays[vol_id][0], 2 * volume, rtol=1e-6)
        assert_doubled(tmp_path / f"out_{vol_id}.h5", volume)


def test_events_count_the_patches_of_all_volumes_and_name_the_one_they_are_of(volumes):
    with run_of(volumes) as run:
        events = list(run)

    assert [event.vol_id for event in events] == [0] * 8 + [1] * 4 + [2] * 12
    assert [event.done for event in events] == list(range(1, 25))
    assert {event.total for event in events} == {sum(PATCHES)}
    assert [run.progress(vol_id) for vol_id in range(3)] == [(n, n) for n in PATCHES]


def test_normalisation_is_each_volumes_own():
    ramps = [np.linspace(0, high, 6 * 8 * 8).reshape(6, 8, 8) for high in (1, 50)]
    config = ns.InferenceConfig(patch_size=(4, 8, 8), normalization="minmax", device="cpu")
    arrays = predict(ramps, config=config).arrays

    np.testing.assert_allclose(arrays[0][0], 2 * ramps[0], atol=1e-6)
    np.testing.assert_allclose(arrays[1], arrays[0], atol=1e-6)


def test_scores_pool_the_voxels_of_all_volumes(volumes):
    labels = [volume > 0.7 for volume in volumes]
    metrics = predict(volumes, labels=labels).metrics
    found = np.concatenate([(2 * volume > 0.5).ravel() for volume in volumes])
    truth = np.concatenate([each.ravel() for each in labels])

    expected = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert metrics["dice"] == pytest.approx(expected, abs=1e-12)
    assert metrics["precision"] == pytest.approx((found & truth).sum() / found.sum(), abs=1e-12)


def test_names_of_files_become_names_of_outputs(folder, volumes):
    (folder / "out").mkdir()
    tifffile.imwrite(folder / "my stack.tif", volumes[1], photometric="minisblack")
    sources = [folder / "a.npy", folder / "my stack.tif"]
    predict(sources, output=folder / "out" / "{name}_{vol_id}_{name}.h5")

    assert sorted(os.listdir(folder / "out")) == ["a_0_a.h5", "my_stack_1_my_stack.h5"]
    assert_doubled(folder / "out" / "my_stack_1_my_stack.h5", volumes[1])


def test_several_volumes_may_go_into_a_folder(folder, volumes):
    (folder / "out").mkdir()
    predict([folder / "a.npy", folder / "b.npy"], output=folder / "out")

    assert sorted(os.listdir(folder / "out")) == ["a.h5", "b.h5"]
    assert_doubled(folder / "out" / "b.h5", volumes[1])


def test_one_volume_may_also_be_named_in_its_output(folder, volumes):
    assert command(folder, names="c", output="out_{name}.h5") == 0
    assert_doubled(folder / "out_c.h5", volumes[2])


def test_the_command_line_writes_every_volume_and_lists_them(folder, volumes, capsys):
    assert command(folder, "--json") == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["output"] == [str(folder / f"out_{vol_id}.h5") for vol_id in range(3)]
    assert (facts["status"], facts["patches"], facts["of"]) == ("complete", 24, 24)
    assert facts["failures"] == []
    for vol_id, volume in enumerate(volumes):
        assert_doubled(folder / f"out_{vol_id}.h5", volume)


def test_the_same_volume_may_be_there_twice(folder, volumes):
    assert command(folder, names="aa") == 0
    for vol_id in range(2):
        assert_doubled(folder / f"out_{vol_id}.h5", volumes[0])


# ------------------------------------------------------------------------------ one fails


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_volume_that_holds_nan_is_reported_and_the_others_are_finished(volumes, bad):
    sources = list(volumes)
    sources[bad] = holding_nan(volumes[bad])
    place = tuple(size - 1 for size in SHAPES[bad])
    said = rf"^volume {bad} holds nan at channel 0, \({place[0]}, {place[1]}, {place[2]}\)"
    with pytest.warns(RuntimeWarning, match=said) as warned:
        prediction = predict(sources)

    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert list(prediction.failures) == [bad]
    assert isinstance(prediction.failures[bad], SourceError)
    for vol_id, (array, volume) in enumerate(zip(prediction.arrays, volumes, strict=True)):
        if vol_id == bad:  # what was done is there, the patches with the NaN are not
            assert np.isnan(array[0, -1, -1, -1])
            np.testing.assert_allclose(array[0, 0, 0, 0], 2 * volume[0, 0, 0], rtol=1e-6)
        else:
            np.testing.assert_allclose(array[0], 2 * volume, rtol=1e-6)


def test_a_volume_that_raises_while_it_is_read_is_reported(volumes):
    with pytest.warns(RuntimeWarning, match=r"volume 1 .* the tape is torn$") as warned:
        prediction = predict([volumes[0], Raises(), volumes[2]])

    assert "\n" not in str(warned[0].message)
    assert list(prediction.failures) == [1]
    assert np.isfinite(prediction.arrays[1][0, :4]).all()
    assert np.isnan(prediction.arrays[1][0, 5:]).all()
    np.testing.assert_allclose(prediction.arrays[2][0], 2 * volumes[2], rtol=1e-6)


def test_a_damaged_chunk_fails_its_volume_only(folder, volumes, capsys):
    with h5py.File(folder / "bad.h5", "w") as file:
        raw = file.create_dataset("raw", data=volumes[2], chunks=(3, 8, 15), fletcher32=True)
        offset = raw.id.get_chunk_info(2).byte_offset
    with open(folder / "bad.h5", "r+b") as file:
        file.seek(offset + 40)
        file.write(b"damage!!")
    inputs = [str(folder / "bad.h5::raw"), str(folder / "a.npy")]
    model = ["--checkpoint", str(folder / "net.pt"), "--architecture", "networks:Doubled"]
    settings = ["--patch-size", "4,8,8", "--device", "cpu"]
    pattern = str(folder / "out_{name}.h5")

    assert main(["predict", *inputs, *model, *settings, "--output", pattern]) == 1
    (line,) = error_lines(capsys)
    assert line.startswith(f"{folder / 'bad.h5'}::raw cannot be read at (4, 0, 0)")
    assert line.endswith(f"; {folder / 'out_bad.h5'} keeps 6 of 12 patches")
    assert_doubled(folder / "out_a.h5", volumes[0])
    with h5py.File(folder / "out_bad.h5") as file:
        assert file["main"].attrs["status"] == "failed"
        np.testing.assert_allclose(file["main"][0, :4], 2 * volumes[2][:4], rtol=1e-6)


def test_a_constant_volume_fails_before_its_first_batch_and_leaves_no_file(folder, volumes, capsys):
    np.save(folder / "b.npy", np.full((3, 8, 8), 7, np.float32))

    assert command(folder, "--normalization", "minmax") == 1
    (line,) = error_lines(capsys)
    assert line.startswith(f"{folder / 'b.npy'} cannot be scaled by normalization 'minmax'")
    assert "keeps" not in line
    assert outputs_in(folder) == ["out_0.h5", "out_2.h5"]
    for vol_id in (0, 2):
        with h5py.File(folder / f"out_{vol_id}.h5") as file:
            assert file["main"].attrs["status"] == "complete"
            assert float(file["main"][...].max()) == 2


@pytest.mark.parametrize("first", [True, False])
def test_a_network_that_fails_on_one_volume_only_predicts_the_others(volumes, first):
    lone = volumes[0][:4, :8, :8]  # one patch
    sources = [lone, volumes[2]] if first else [volumes[2], lone]
    config = ns.InferenceConfig(
        patch_size=(4, 8, 8), normalization="none", device="cpu", batch_size=4
    )
    with pytest.warns(RuntimeWarning, match="Expected more than 1 value per channel"):
        prediction = predict(sources, networks.RefusesLonePatches(), config)

    (bad,) = prediction.failures
    assert bad == (0 if first else 1)
    assert isinstance(prediction.failures[bad], ModelCallError if first else RuntimeError)
    np.testing.assert_allclose(prediction.arrays[1 - bad][0], 2 * volumes[2], rtol=1e-6)


IN_THE_WAY_OF_THE_SECOND = """
import os, pathlib, networks
class Network(networks.Doubled):
    def forward(self, image):
        if len(networks.calls) == 5:  # the last batch of the second volume
            pathlib.Path(os.environ["OUT"]).touch()
        return super().forward(image)
"""


def test_an_output_that_appears_meanwhile_is_kept_and_so_are_all_predictions(
    folder, volumes, capsys, monkeypatch
):
    (folder / "own.py").write_text(IN_THE_WAY_OF_THE_SECOND)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("OUT", str(folder / "out_1.h5"))
    code = command(folder, "--batch-size", "2", "--output-dtype", "uint8", network="own:Network")

    assert code == 1
    (line,) = error_lines(capsys)
    kept = folder / "out_1.h5.run" / "part.h5"
    assert line.startswith(
        f"{folder / 'b.npy'} failed: {folder / 'out_1.h5'} appeared during the run and was not "
        f"replaced: move it away and resume, the prediction is kept in {kept}"
    )
    assert (folder / "out_1.h5").read_bytes() == b""
    with h5py.File(kept) as file:  # as it would have been written
        expected = np.rint(np.minimum(255 * 2 * volumes[1].astype(float), 255))
        np.testing.assert_array_equal(file["main"][0], expected)
        assert file["main"].attrs["source"] == str(folder / "b.npy")
        assert file["main"].attrs["status"] == "complete"
    with h5py.File(folder / "out_2.h5") as file:
        assert file["main"].attrs["status"] == "complete"


def test_predictions_of_two_runs_that_cannot_be_written_do_not_replace_each_other(
    volumes, tmp_path, monkeypatch
):
    """Nothing of them is finished, so what there is goes elsewhere."""
    (tmp_path / "kept").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "kept"))
    for name in ("x", "y"):
        run = run_of(volumes[0], output=tmp_path / f"{name}.h5")
        next(run)
        (tmp_path / f"{name}.h5").touch()
        run.cancel()
        with run, pytest.raises(WriteError, match="appeared"):
            drain(run, progress=False)

    assert len(os.listdir(tmp_path / "kept")) == 2


@contextmanager
def files_limited_to(nbytes):
    """A failing write as any user can have it: the quota of a shell, `ulimit -f`."""
    resource = pytest.importorskip("resource", reason="needs RLIMIT_FSIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_size_limit_refuses_the_large_volume_and_spares_the_small(tmp_path):
    large, small = np.ones((8, 128, 128), np.float32), np.ones((4, 8, 8), np.float32)
    config = ns.InferenceConfig(patch_size=(8, 64, 64), normalization="none", device="cpu")
    networks.reset()
    said = "volume 0 failed: output .*out_0.h5 cannot be written: File too large"
    with files_limited_to(200_000), pytest.warns(RuntimeWarning, match=said):
        prediction = predict([large, small], config=config, output=tmp_path / "out_{vol_id}.h5")

    assert isinstance(prediction.failures[0], OutputError)
    assert len(networks.calls) == 1 + 1  # the room for the file is taken before the run goes on
    assert os.listdir(tmp_path) == ["out_1.h5"]
    np.testing.assert_allclose(prediction.arrays[1], 2, rtol=1e-6)


def test_a_chunk_that_exceeds_the_file_size_limit_fails_its_volume_only(tmp_path):
    random = np.random.default_rng(0)
    large, small = random.random((8, 128, 128), np.float32), np.ones((4, 8, 8), np.float32)
    config = ns.InferenceConfig(patch_size=(8, 64, 64), normalization="none", device="cpu")
    said = "out_0.zarr could not be written: File too large"
    with files_limited_to(200_000), pytest.warns(RuntimeWarning, match=said):
        prediction = predict([large, small], config=config, output=tmp_path / "out_{vol_id}.zarr")

    assert isinstance(prediction.failures[0], WriteError)
    np.testing.assert_allclose(prediction.arrays[1], 2, rtol=1e-6)
    networks.reset()
    again = predict(large, config=config, output=tmp_path / "out_0.zarr", resume=True)
    np.testing.assert_allclose(again.array[0], 2 * large, rtol=1e-6)


def test_a_network_error_and_a_failing_write_are_both_said_and_the_patches_are_kept(
    volumes, tmp_path
):
    class Breaks(networks.Doubled):
        """Fails at its third batch, with a file in the way of what it had."""

        def forward(self, image):
            if len(networks.calls) == 2:
                networks.calls.append(())
                (tmp_path / "out_0.h5").touch()
                raise RuntimeError("device lost")
            return super().forward(image)

    with pytest.warns(RuntimeWarning, match="device lost.*appeared.*is kept in"):
        prediction = predict(volumes[:2], Breaks(), output=tmp_path / "out_{vol_id}.h5")

    assert list(prediction.failures) == [0]
    with h5py.File(tmp_path / "out_0.h5.run" / "part.h5") as file:
        main, attributes = file["main"][0], dict(file["main"].attrs)
    assert (attributes["status"], attributes["done"]) == ("failed", 2)
    known = np.isfinite(main)
    assert 0 < known.sum() < known.size
    np.testing.assert_allclose(main[known], 2 * volumes[0][known], rtol=1e-6)


# ------------------------------------------------------------------------------ all fail


def test_if_every_volume_fails_the_first_error_is_raised(volumes):
    sources = [holding_nan(volume) for volume in volumes[:2]]
    with run_of(sources) as run, pytest.raises(SourceError, match="volume 0 holds nan"):
        drain(run, progress=False)

    assert run.status == "failed"
    assert {vol_id: str(error)[:18] for vol_id, error in run.failures.items()} == {
        0: "volume 0 holds nan",
        1: "volume 1 holds nan",
    }


def test_if_every_volume_fails_the_command_line_names_each_and_exits_with_2(folder, capsys):
    for name in "abc":
        np.save(folder / f"{name}.npy", np.full((3, 8, 8), 7, np.float32))

    assert command(folder, "--normalization", "zscore") == 2
    lines = error_lines(capsys)
    assert [line.partition(" cannot be scaled")[0] for line in lines] == [
        str(folder / f"{name}.npy") for name in "abc"
    ]
    assert outputs_in(folder) == []


def test_a_network_that_always_fails_is_said_for_each_volume_and_exits_with_2(folder, capsys):
    torch.save(torch.nn.Conv3d(3, 1, 1).state_dict(), folder / "net.pt")
    arguments = json.dumps({"in_channels": 3, "out_channels": 1, "kernel_size": 1})

    assert command(folder, "--arguments", arguments, network="torch.nn:Conv3d") == 2
    assert len(error_lines(capsys)) == 3
    assert outputs_in(folder) == []


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"labelling": "argmax"}, ConfigError, "labelling 'argmax' of a prediction with one"),
        ({"offsets": ((1, 0, 0), None)}, ConfigError, "2 offsets for 1 channels"),
        ({"activation": "0:1=tanh,1:2=sigmoid"}, ConfigError, "there are 1 channels"),
        ({"head": "nosuch"}, ModelError, "head 'nosuch' does not exist"),
    ],
)
def test_what_no_volume_can_do_ends_the_run_at_its_first_batch(volumes, settings, error, said):
    config = CONFIG.model_copy(update=settings)
    with pytest.raises(error, match=said):
        predict(volumes, config=config)

    assert len(networks.calls) == 1


# ------------------------------------------------------------------------------ cut short


def test_cancel_in_the_second_of_three_keeps_the_first_and_part_of_the_second(volumes, tmp_path):
    with run_of(volumes, output=tmp_path / "out_{vol_id}.h5") as run:
        for event in run:
            if event.done == PATCHES[0] + 3:
                run.cancel()

    assert (run.status, run.done, run.failures) == ("partial", 11, {})
    assert sorted(os.listdir(tmp_path)) == ["out_0.h5", "out_1.h5", "out_1.h5.run"]
    assert_doubled(tmp_path / "out_0.h5", volumes[0])
    with h5py.File(tmp_path / "out_1.h5") as file:
        attributes, main = dict(file["main"].attrs), file["main"][0]
    assert [attributes[name] for name in ("status", "done", "total")] == ["partial", 3, 4]
    covered = np.isfinite(main)
    assert 0 < covered.sum() < covered.size
    np.testing.assert_allclose(main[covered], 2 * volumes[1][covered], rtol=1e-6)
    assert run.metadata(0)["status"] == "complete"
    assert [run.metadata(2)[name] for name in ("status", "done")] == ["partial", 0]
    assert np.isnan(np.asarray(run.live[2])).all()


def test_cancel_after_a_failure_is_a_failed_run_that_goes_no_further(volumes):
    with run_of([holding_nan(volumes[0]), *volumes[1:]]) as run:
        for event in run:
            if event.vol_id == 1:
                run.cancel()

    assert (run.status, list(run.failures)) == ("failed", [0])
    assert run.progress(1) == (1, 4)
    assert run.progress(2) == (0, 12)


class Interrupts(networks.Doubled):
    """Ctrl-C at its fourth batch."""

    def forward(self, image):
        if len(networks.calls) == 3:
            raise KeyboardInterrupt
        return super().forward(image)


def test_ctrl_c_ends_the_whole_run(volumes, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        predict(volumes, Interrupts(), output=tmp_path / "out_{vol_id}.h5")

    assert len(networks.calls) == 3
    assert sorted(os.listdir(tmp_path)) == ["out_0.h5", "out_0.h5.run"]
    with h5py.File(tmp_path / "out_0.h5") as file:
        assert (file["main"].attrs["status"], file["main"].attrs["done"]) == ("partial", 3)


def test_ctrl_c_whose_partial_result_cannot_be_written_ends_the_whole_run(volumes, tmp_path):
    class InTheWay(Interrupts):
        def forward(self, image):
            if len(networks.calls) == 3:
                (tmp_path / "out_0.h5").touch()
            return super().forward(image)

    InTheWay.__name__ = "Doubled"  # another network would not go on with it
    with pytest.raises(WriteError, match="appeared") as caught:
        predict(volumes, InTheWay(), output=tmp_path / "out_{vol_id}.h5")

    assert len(networks.calls) == 3  # no other volume was begun
    assert caught.value.__notes__ == [
        "what is finished of 3 of 8 patches is kept; mend that, and resume"
    ]
    (tmp_path / "out_0.h5").unlink()
    with pytest.raises(OutputError, match=r"out_0\.h5: an unfinished run is there; pass --resume"):
        predict(volumes, output=tmp_path / "out_{vol_id}.h5")
    predict(volumes, output=tmp_path / "out_{vol_id}.h5", resume=True)
    for vol_id, volume in enumerate(volumes):
        assert_doubled(tmp_path / f"out_{vol_id}.h5", volume)


def test_leaving_a_run_in_the_first_of_two_volumes_says_that_it_cannot_be_written(
    volumes, tmp_path
):
    run = run_of(volumes[:2], output=tmp_path / "out_{vol_id}.h5")
    next(run)
    (tmp_path / "out_0.h5").touch()
    with pytest.raises(WriteError, match="appeared"):
        run.close()

    assert (run.status, run.unwritten, run.written) == ("failed", [0], set())


# ------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("out.h5", "out.h5 is one file for several volumes; put {vol_id} into it"),
        ("out_{name}.h5", "out_same.h5 is one file for several volumes; put {vol_id} into it"),
        ("out_{id}.h5", "has {id} in it; only {name} and {vol_id} stand for something"),
        ("out_{vol_id}_{}.h5", "has {} in it"),
    ],
)
def test_outputs_that_clash_are_refused_before_anything_runs(folder, volumes, output, said):
    sources = []
    for part in ("x", "y"):
        (folder / part).mkdir()
        sources.append(folder / part / "same.npy")
        np.save(sources[-1], volumes[0])
    with pytest.raises(ConfigError) as caught:
        predict(sources, output=folder / output)

    assert said in str(caught.value)
    assert networks.calls == []


def test_one_output_that_exists_refuses_the_whole_run(folder, capsys):
    (folder / "out_2.h5").write_text("precious")

    assert command(folder) == 2
    (line,) = error_lines(capsys)
    assert "out_2.h5 exists; pass --overwrite" in line
    assert (folder / "out_2.h5").read_text() == "precious"
    assert outputs_in(folder) == ["out_2.h5"]
    assert networks.calls == []


def test_an_output_that_is_another_volumes_input_is_refused(folder, volumes):
    with h5py.File(folder / "in_1.h5", "w") as file:
        file["raw"] = volumes[1]
    with pytest.raises(OutputError, match=r"in_1.h5 is also an input"):
        predict(
            [folder / "a.npy", folder / "in_1.h5"],
            output=folder / "in_{vol_id}.h5",
            overwrite=True,
        )


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([], "list of volumes is empty"),
        ([np.ones((4, 8, 8)), np.ones((2, 4, 8, 8))], r"\[1, 2\] channels"),
        ([np.ones((4, 8, 8)), np.ones((4, 0, 8))], r"volume 1 has shape \(4, 0, 8\)"),
        ([np.ones((4, 8, 8)), "absent.npy"], "no such file: absent.npy"),
        ([np.ones((4, 8, 8)), [1, 2]], "volume 1 is a list"),
    ],
)
def test_a_list_with_one_unusable_volume_is_refused_before_anything_runs(sources, said):
    networks.reset()
    with pytest.raises(SourceError, match=said):
        predict(sources)
    assert networks.calls == []


def test_a_region_must_be_inside_every_volume(volumes):
    config = ns.InferenceConfig(patch_size=(4, 8, 8), region="0:6,0:8,0:12", device="cpu")
    with pytest.raises(ConfigError, match=r"not inside volume 1, whose shape is \(3, 20, 7\)"):
        predict(volumes, config=config)


# ------------------------------------------------------------------------------ labels


@pytest.mark.parametrize("count", [1, 2, 4])
def test_labels_are_one_for_each_volume(volumes, count):
    with pytest.raises(ConfigError, match=f"labels are {count} for 3 volumes; give one each"):
        predict(volumes, labels=[np.zeros((6, 12, 12))] * count)
    assert networks.calls == []


def test_labels_in_the_wrong_order_are_refused_before_anything_runs(folder, capsys):
    code = command(folder, "--labels", *(str(folder / f"{name}.npy") for name in "acb"))

    assert code == 2
    (line,) = error_lines(capsys)
    assert line == (
        f"labels {folder / 'c.npy'} have shape (9, 8, 15); for {folder / 'b.npy'} they must have "
        "(3, 20, 7) (Z, Y, X): crop or resample them"
    )
    assert networks.calls == []
    assert outputs_in(folder) == []


def test_a_volume_that_failed_counts_in_the_scores_as_far_as_it_was_predicted(volumes):
    labels = [volume > 0.7 for volume in volumes]
    sources = [volumes[0], holding_nan(volumes[1]), np.full((9, 8, 15), np.nan)]
    with pytest.warns(RuntimeWarning, match="holds nan"):
        prediction = predict(sources, labels=labels)

    known = [np.isfinite(array[0]) for array in prediction.arrays]
    assert known[0].all()
    assert 0 < known[1].sum() < known[1].size
    assert not known[2].any()
    found = np.concatenate(
        [2 * volume[mask] > 0.5 for volume, mask in zip(volumes, known, strict=True)]
    )
    truth = np.concatenate([each[mask] for each, mask in zip(labels, known, strict=True)])
    expected = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert prediction.metrics["dice"] == pytest.approx(expected, abs=1e-12)
    assert prediction.metrics["voxels"] == sum(mask.sum() for mask in known)


# ------------------------------------------------------------------------------ as a program


@pytest.mark.skipif(sys.platform == "win32", reason="the shell's signals")
def test_ctrl_c_in_the_second_volume_exits_with_130_and_keeps_what_there_is(folder, volumes):
    """The network interrupts its own process, at a batch that is known."""
    (folder / "own.py").write_text(
        "import os, signal, networks\n"
        "class Interrupted(networks.Doubled):\n"
        "    def forward(self, image):\n"
        "        if len(networks.calls) == 9:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "        return super().forward(image)\n"
    )
    program = [sys.executable, "-m", "napari_seamless", "predict"]
    inputs = [str(folder / f"{name}.npy") for name in "abc"]
    model = ["--checkpoint", str(folder / "net.pt"), "--architecture", "own:Interrupted"]
    settings = ["--patch-size", "4,8,8", "--normalization", "none", "--device", "cpu", "--json"]
    path = os.pathsep.join([str(folder), os.path.dirname(networks.__file__)])
    done = subprocess.run(
        [*program, *inputs, *model, *settings, "--output", str(folder / "out_{name}.h5")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 130, done.stderr
    assert "cancelling after this batch" in done.stderr
    facts = json.loads(done.stdout)
    assert (facts["status"], facts["patches"]) == ("partial", 10)
    assert outputs_in(folder) == ["out_a.h5", "out_b.h5", "out_b.h5.run"]
    assert_doubled(folder / "out_a.h5", volumes[0])
    with h5py.File(folder / "out_b.h5") as file:
        assert (file["main"].attrs["status"], file["main"].attrs["done"]) == ("partial", 2)
