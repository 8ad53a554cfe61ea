import contextlib
import gc
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch

import napari_seamless
from napari_seamless.engine.errors import OutputError, PredictionError, WriteError
from napari_seamless.engine.grid import Box
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.io import stores
from napari_seamless.io.sources import open_source
from napari_seamless.io.stores import open_store, versions

NAMES = ["out.h5", "out.hdf5", "out.tif", "out.TIFF", "out.ome.tif"]
KINDS = ["out.h5", "out.tif"]
DTYPES = ["float32", "float16", "uint8", "uint16"]

METADATA = {
    "status": "partial",
    "done": 3,
    "total": 8,
    "config": {"patch_size": [8, 128, 128], "overlap": 0.5, "blending": "gaussian"},
    "versions": {"torch": "2.13.0"},
    "checkpoint_sha256": "ab" * 32,
    "source": "Bündel ☃.h5::raw",
    "scale": (50.0, 4.6, 4.6),
    "translate": np.array([0, 10, 20]),
    "units": ["nanometer"] * 3,
    "seconds": np.float64(1.5),
    "labels": None,
    "checkpoint": Path("net.pt"),
}


@pytest.fixture
def arrays(prediction):
    """Everything that a run may keep: shapes, dtypes and names differ."""
    random = np.random.default_rng(2)
    return {
        "main": prediction.astype(np.float16),
        "spread": random.random((1, 5, 33, 40), dtype=np.float32),
        "labels": random.integers(0, 3, (1, 5, 33, 40), dtype=np.uint8),
        "heads/affinities": random.integers(0, 65536, (3, 5, 33, 40), dtype=np.uint16),
        "heads/half": random.random((2, 3, 17, 20), dtype=np.float32),
    }


@pytest.fixture
def prediction():
    values = np.random.default_rng(0).random((2, 5, 33, 40), dtype=np.float32)
    values[1, 3:, 10:] = np.nan
    return values


def lazy(values):
    """Return the values as the engine hands them over: computed when they are asked for."""
    return LazyArray(values.shape, values.dtype, lambda ranges: values[ranges].copy())


def read(path):
    """Return the voxels and facts of a written file, by other means than the project's own."""
    if path.suffix in (".h5", ".hdf5"):
        with h5py.File(path) as file:
            assert list(file) == ["main"]
            return file["main"][...], dict(file["main"].attrs)
    with tifffile.TiffFile(path) as tiff:
        (facts,) = tiff.shaped_metadata
        assert tiff.series[0].axes == "CZYX"
        return tiff.series[0].asarray(), facts


def refusal(path, **options):
    """Return the message that refuses an output, which must be one line."""
    with pytest.raises(OutputError) as caught:
        open_store(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestWriting:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("hand_over", [np.asarray, lazy], ids=["ndarray", "lazy"])
    def test_what_is_written_is_read(self, tmp_path, prediction, name, hand_over):
        store = open_store(tmp_path / name)
        store.reserve(prediction.nbytes)
        assert os.listdir(tmp_path) == []
        store.write({"main": hand_over(prediction)}, METADATA)
        assert os.listdir(tmp_path) == [name]
        voxels, _ = read(tmp_path / name)
        assert voxels.dtype == np.float32
        np.testing.assert_array_equal(voxels, prediction)

    @pytest.mark.parametrize("name", KINDS)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("hand_over", [np.asarray, lazy], ids=["ndarray", "lazy"])
    def test_every_dtype_is_written_as_it_is(self, tmp_path, prediction, name, dtype, hand_over):
        values = prediction if dtype.startswith("float") else np.nan_to_num(60000 * prediction)
        values = values.astype(dtype)
        open_store(tmp_path / name).write({"main": hand_over(values)}, {})
        voxels, _ = read(tmp_path / name)
        assert voxels.dtype == dtype
        np.testing.assert_array_equal(voxels, values)
        with contextlib.closing(open_source(tmp_path / name)) as source:
            assert source.dtype == dtype
            np.testing.assert_array_equal(source.read(Box.of_shape(values.shape[1:])), values)

    @pytest.mark.parametrize("name", KINDS)
    @pytest.mark.parametrize(
        "shape",
        [(1, 1, 1, 1), (3, 4, 5, 6), (4, 1, 7, 3), (1, 3, 1, 9), (1, 4, 8, 1), (5, 3, 4, 3)],
    )
    def test_every_shape_is_read_back_as_a_source(self, tmp_path, name, shape):
        values = np.random.default_rng(1).random(shape, dtype=np.float32)
        open_store(tmp_path / name).write({"main": values}, {})
        with contextlib.closing(open_source(tmp_path / name)) as source:
            assert source.shape == shape
            np.testing.assert_array_equal(source.read(Box.of_shape(shape[1:])), values)

    @pytest.mark.parametrize("name", KINDS)
    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    def test_a_few_planes_at_a_time(self, tmp_path, prediction, name, dtype, monkeypatch):
        asked = []

        def part(ranges):
            asked.append(tuple((each.start, each.stop) for each in ranges[:2]))
            return prediction[ranges]

        prediction = prediction.astype(dtype)
        monkeypatch.setattr(stores, "SLAB_BYTES", 2 * prediction.itemsize * 33 * 40 + 1)
        lazily = LazyArray(prediction.shape, dtype, part)
        open_store(tmp_path / name).write({"main": lazily}, {})
        planes = [(0, 2), (2, 4), (4, 5)]
        assert asked == [((c, c + 1), each) for c in range(2) for each in planes]
        np.testing.assert_array_equal(read(tmp_path / name)[0], prediction)

    @pytest.mark.parametrize("name", KINDS)
    def test_it_gets_the_permissions_of_any_new_file(self, tmp_path, prediction, name):
        (tmp_path / "plain").write_text("")
        open_store(tmp_path / name).write({"main": prediction}, {})
        assert (tmp_path / name).stat().st_mode == (tmp_path / "plain").stat().st_mode

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows limits paths, not names")
    @pytest.mark.parametrize("name", KINDS)
    def test_long_names(self, tmp_path, prediction, name):
        path = tmp_path / ("n" * 240 + name)
        open_store(path).write({"main": prediction}, {})
        np.testing.assert_array_equal(read(path)[0], prediction)

    def test_hdf5_pads_next_to_nothing(self, tmp_path):
        values = np.ones((1, 2, 513, 700), np.float32)
        open_store(tmp_path / "out.h5").write({"main": values}, {})
        with h5py.File(tmp_path / "out.h5") as file:
            assert file["main"].chunks == (1, 1, 257, 350)
            assert file["main"].compression is None
        assert (tmp_path / "out.h5").stat().st_size < 1.01 * values.nbytes

    def test_tiff_is_one_page_per_plane_that_can_be_mapped(self, tmp_path, prediction):
        open_store(tmp_path / "out.tif").write({"main": prediction}, {})
        with tifffile.TiffFile(tmp_path / "out.tif") as tiff:
            assert not tiff.is_bigtiff
            assert not tiff.is_ome
            assert len(tiff.pages) == 10
            assert tiff.pages[0].shape == (33, 40)
        np.testing.assert_array_equal(tifffile.memmap(tmp_path / "out.tif"), prediction)

    def test_large_tiff_is_bigtiff(self, tmp_path, prediction, monkeypatch):
        monkeypatch.setattr(stores, "BIGTIFF_BYTES", prediction.nbytes - 1)
        open_store(tmp_path / "out.tif").write({"main": prediction}, METADATA)
        with tifffile.TiffFile(tmp_path / "out.tif") as tiff:
            assert tiff.is_bigtiff
        np.testing.assert_array_equal(read(tmp_path / "out.tif")[0], prediction)


class TestSeveralArrays:
    @pytest.mark.parametrize("hand_over", [np.asarray, lazy], ids=["ndarray", "lazy"])
    def test_hdf5_has_a_dataset_for_each(self, tmp_path, arrays, hand_over):
        given = {key: hand_over(array) for key, array in arrays.items()}
        open_store(tmp_path / "out.h5").write(given, METADATA)
        with h5py.File(tmp_path / "out.h5") as file:
            assert set(file) == {"main", "spread", "labels", "heads"}
            assert set(file["heads"]) == {"affinities", "half"}
            for name, array in arrays.items():
                assert file[name].dtype == array.dtype
                assert file[name].attrs["axes"] == "CZYX"
                np.testing.assert_array_equal(file[name][...], array)
            assert file["heads/half"].chunks == (1, 1, 17, 20)
            assert set(file["main"].attrs) == {*METADATA, "axes"}
            assert set(file["labels"].attrs) == {"axes"}

    @pytest.mark.parametrize("hand_over", [np.asarray, lazy], ids=["ndarray", "lazy"])
    @pytest.mark.parametrize("bigtiff", [False, True])
    def test_tiff_has_a_series_for_each(self, tmp_path, arrays, hand_over, bigtiff, monkeypatch):
        if bigtiff:
            monkeypatch.setattr(stores, "BIGTIFF_BYTES", 1000)
        given = {key: hand_over(array) for key, array in arrays.items()}
        open_store(tmp_path / "out.tif").write(given, METADATA)
        with tifffile.TiffFile(tmp_path / "out.tif") as tiff:
            assert tiff.is_bigtiff == bigtiff
            assert len(tiff.pages) == 10 + 5 + 5 + 15 + 6
            for series, (name, array) in zip(tiff.series, arrays.items(), strict=True):
                assert (series.name, series.axes) == (name, "CZYX")
                assert (series.shape, series.dtype) == (array.shape, array.dtype)
                np.testing.assert_array_equal(series.asarray(), array)
            facts, *others = tiff.shaped_metadata
        assert facts["config"] == METADATA["config"]
        assert others == [
            {"name": name, "axes": "CZYX", "shape": list(array.shape)}
            for name, array in list(arrays.items())[1:]
        ]

    @pytest.mark.parametrize("name", KINDS)
    def test_the_prediction_is_what_a_source_reads(self, tmp_path, arrays, name):
        open_store(tmp_path / name).write(arrays, METADATA)
        path = f"{tmp_path / name}::main" if name == "out.h5" else tmp_path / name
        with contextlib.closing(open_source(path)) as source:
            assert source.shape == arrays["main"].shape
            np.testing.assert_array_equal(source.read(Box.of_shape((5, 33, 40))), arrays["main"])

    def test_neighbours_of_one_shape_stay_apart(self, tmp_path, prediction):
        arrays = {"main": prediction, "spread": prediction + 1, "heads/1": prediction + 2}
        open_store(tmp_path / "out.tif").write(arrays, {})
        for index, array in enumerate(arrays.values()):
            read_back = tifffile.imread(tmp_path / "out.tif", series=index)
            np.testing.assert_array_equal(read_back, array)

    @pytest.mark.parametrize(("room", "bigtiff"), [(0, False), (-1, True)])
    def test_bigtiff_goes_by_the_sum(self, tmp_path, arrays, room, bigtiff, monkeypatch):
        total = sum(array.nbytes for array in arrays.values())
        monkeypatch.setattr(stores, "BIGTIFF_BYTES", total + room)
        open_store(tmp_path / "out.tif").write(arrays, {})
        with tifffile.TiffFile(tmp_path / "out.tif") as tiff:
            assert tiff.is_bigtiff == bigtiff

    @pytest.mark.parametrize("name", KINDS)
    def test_failure_of_a_later_one_leaves_nothing(self, tmp_path, prediction, name):
        def part(ranges):
            raise PredictionError("broken")

        arrays = {"main": prediction, "spread": LazyArray((1, 5, 33, 40), np.float32, part)}
        with pytest.raises(PredictionError, match="broken"):
            open_store(tmp_path / name).write(arrays, {})
        assert os.listdir(tmp_path) == []


class TestMetadata:
    def test_hdf5(self, tmp_path, prediction):
        open_store(tmp_path / "out.h5").write({"main": prediction}, METADATA)
        facts = read(tmp_path / "out.h5")[1]
        assert {key: facts[key] for key in ("status", "done", "total", "axes", "seconds")} == {
            "status": "partial",
            "done": 3,
            "total": 8,
            "axes": "CZYX",
            "seconds": 1.5,
        }
        assert facts["source"] == METADATA["source"]
        assert facts["checkpoint_sha256"] == "ab" * 32
        assert facts["checkpoint"] == "net.pt"
        for key in ("config", "versions", "units"):
            assert json.loads(facts[key]) == METADATA[key]
        assert json.loads(facts["scale"]) == [50, 4.6, 4.6]
        assert json.loads(facts["translate"]) == [0, 10, 20]
        assert json.loads(facts["labels"]) is None
        assert set(facts) == {*METADATA, "axes"}

    @pytest.mark.parametrize("name", ["out.tif", "out.ome.tif"])
    def test_tiff(self, tmp_path, prediction, name):
        open_store(tmp_path / name).write({"main": prediction}, METADATA)
        facts = read(tmp_path / name)[1]
        assert facts.pop("shape") == [2, 5, 33, 40]
        assert facts.pop("name") == "main"
        assert facts == {
            **METADATA,
            "axes": "CZYX",
            "scale": [50, 4.6, 4.6],
            "translate": [0, 10, 20],
            "seconds": 1.5,
            "checkpoint": "net.pt",
        }

    @pytest.mark.parametrize("name", KINDS)
    def test_long_text(self, tmp_path, prediction, name):
        open_store(tmp_path / name).write({"main": prediction}, {"log": "x" * 200_000})
        assert read(tmp_path / name)[1]["log"] == "x" * 200_000

    @pytest.mark.parametrize("name", KINDS)
    def test_versions_are_always_there(self, tmp_path, prediction, name):
        open_store(tmp_path / name).write({"main": prediction}, {})
        said = read(tmp_path / name)[1]["versions"]
        assert (json.loads(said) if isinstance(said, str) else said) == versions()

    def test_versions(self):
        assert versions() == {
            "napari-seamless": napari_seamless.__version__,
            "numpy": np.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }


class TestRefusals:
    @pytest.mark.parametrize(("name", "said"), [("out.png", "'.png'"), ("out", "'no suffix'")])
    def test_unknown_suffix(self, tmp_path, name, said):
        assert refusal(tmp_path / name) == (
            f"output {tmp_path / name} ends in {said}; it must be .h5, .hdf5, .tif, .tiff"
        )

    @pytest.mark.parametrize("name", KINDS)
    def test_existing_file(self, tmp_path, prediction, name):
        (tmp_path / name).write_text("precious")
        assert refusal(tmp_path / name) == (
            f"output {tmp_path / name} exists; "
            "pass --overwrite / overwrite=True or choose another name"
        )
        assert (tmp_path / name).read_text() == "precious"
        store = open_store(tmp_path / name, overwrite=True)
        assert (tmp_path / name).read_text() == "precious"
        store.write({"main": prediction}, {})
        np.testing.assert_array_equal(read(tmp_path / name)[0], prediction)
        assert os.listdir(tmp_path) == [name]

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_folder(self, tmp_path, overwrite):
        (tmp_path / "out.h5").mkdir()
        said = refusal(tmp_path / "out.h5", overwrite=overwrite)
        assert said == f"output {tmp_path / 'out.h5'} is a folder; name a file in it"

    def test_missing_folder(self, tmp_path):
        path = tmp_path / "nope" / "out.h5"
        assert refusal(path) == f"output {path}: no such folder: {path.parent}; make it first"

    def test_folder_that_may_not_be_written_to(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
        assert re.search("folder .* may not be written to", refusal(tmp_path / "out.h5"))

    def test_file_as_folder(self, tmp_path):
        (tmp_path / "file").write_text("")
        assert re.search("cannot be written|no such folder", refusal(tmp_path / "file" / "out.h5"))

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows limits paths, not names")
    def test_name_that_no_file_can_have(self, tmp_path):
        assert "cannot be written" in refusal(tmp_path / f"{'n' * 300}.h5")

    @pytest.mark.parametrize("name", KINDS)
    def test_disk_too_small(self, tmp_path, name):
        store = open_store(tmp_path / name)
        with pytest.raises(OutputError) as caught:
            store.reserve(1 << 50)
        assert re.fullmatch(
            rf"output {re.escape(str(tmp_path / name))} takes 1024 TiB and its disk has [\d.]+ "
            r"[KMGT]iB free: free space or choose another place",
            str(caught.value),
        )

    @pytest.mark.parametrize(
        ("size", "said"),
        [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (83886080, "80 MiB"),
            (3 << 29, "1.5 GiB"),
        ],
    )
    def test_sizes_are_readable(self, size, said):
        assert stores._readable(size) == said


class TestFailures:
    """Nothing is at the target's place, or beside it, unless everything is."""

    @pytest.mark.parametrize("name", KINDS)
    def test_file_that_appears_during_the_run_is_kept(self, tmp_path, prediction, name):
        store = open_store(tmp_path / name)
        (tmp_path / name).write_text("precious")
        with pytest.raises(WriteError, match=r"appeared during the run and was not replaced"):
            store.write({"main": prediction}, {})
        assert (tmp_path / name).read_text() == "precious"
        assert os.listdir(tmp_path) == [name]

    @pytest.mark.parametrize("name", KINDS)
    def test_folder_that_vanishes_during_the_run(self, tmp_path, prediction, name):
        (tmp_path / "sub").mkdir()
        store = open_store(tmp_path / "sub" / name)
        (tmp_path / "sub").rmdir()
        with pytest.raises(WriteError, match=r"could not be written: No such file or directory"):
            store.write({"main": prediction}, {})

    @pytest.mark.parametrize("error", [PredictionError("broken"), KeyboardInterrupt()])
    @pytest.mark.parametrize("name", KINDS)
    def test_failure_of_the_prediction_is_passed_on(self, tmp_path, name, error):
        def part(ranges):
            if ranges[0].start == 1:
                raise error
            return np.zeros([each.stop - each.start for each in ranges], np.float32)

        with pytest.raises(type(error)) as caught:
            open_store(tmp_path / name).write(
                {"main": LazyArray((2, 3, 4, 5), np.float32, part)}, {}
            )
        assert caught.value is error
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("name", KINDS)
    @pytest.mark.parametrize("limit", [0, 100, 3_000, 300_000, 1_800_000])
    def test_file_size_limit(self, tmp_path, name, limit):
        """A failing write as any user can have it: the disk quota of a shell, `ulimit -f`."""
        resource = pytest.importorskip("resource", reason="needs RLIMIT_FSIZE")
        store = open_store(tmp_path / name)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(WriteError) as caught:
                store.write({"main": np.ones((1, 8, 256, 256), np.float32)}, METADATA)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert str(caught.value) == (
            f"{tmp_path / name} could not be written: File too large: "
            "free space or choose another place"
        )
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("name", KINDS)
    @pytest.mark.parametrize("room", [4_096, 500_000])
    def test_full_disk(self, full_disk, prediction, name, room):
        (full_disk / "filler").write_bytes(bytes((1 << 20) - room))
        store = open_store(full_disk / name)
        with pytest.raises(OutputError, match=r"takes 2 MiB and its disk has .* free"):
            store.reserve(2 << 20)
        with pytest.raises(WriteError) as caught:
            store.write({"main": np.ones((1, 8, 256, 256), np.float32)}, METADATA)
        assert str(caught.value) == (
            f"{full_disk / name} could not be written: No space left on device: "
            "free space or choose another place"
        )
        assert os.listdir(full_disk) == ["filler"]
        (full_disk / "filler").unlink()
        store.write({"main": prediction}, METADATA)  # the same store, once there is space
        np.testing.assert_array_equal(read(full_disk / name)[0], prediction)

    @pytest.mark.parametrize("name", KINDS)
    def test_full_disk_leaves_the_old_file(self, full_disk, prediction, name):
        open_store(full_disk / name).write({"main": prediction}, {})
        with pytest.raises(WriteError, match="No space left on device"):
            open_store(full_disk / name, overwrite=True).write(
                {"main": np.ones((1, 8, 256, 256), np.float32)}, {}
            )
        assert os.listdir(full_disk) == [name]
        np.testing.assert_array_equal(read(full_disk / name)[0], prediction)


@pytest.fixture
def full_disk(tmp_path):
    """A disk of 1 MiB, where this is root on Linux and may mount one."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("needs root on Linux to mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "napari-seamless-tests", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine does not permit mounting a small disk")
    yield tmp_path
    gc.collect()  # mapped files keep a disk busy
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_name_that_is_no_text_is_written_with_question_marks(tmp_path):
    path = tmp_path / "out.h5"
    open_store(path).write(
        {"main": np.zeros((1, 1, 2, 2), np.float32)}, {"source": "caf\udce9.h5", "name": "é"}
    )
    with h5py.File(path) as file:
        assert file["main"].attrs["source"] == "caf?.h5"
        assert file["main"].attrs["name"] == "é"


def test_a_folder_that_is_gone_is_refused_in_one_line(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    store = open_store(folder / "out.h5")
    folder.rmdir()
    with pytest.raises(OutputError, match="cannot be written") as caught:
        store.reserve(10)
    assert "\n" not in str(caught.value)
