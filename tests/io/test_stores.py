import contextlib
import json
import os
import platform
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch

import napari_seamless
from napari_seamless.engine.box import Box
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.errors import OutputError, WriteError
from napari_seamless.engine.store import ArraySpec
from napari_seamless.io.sources import open_source
from napari_seamless.io.stores import (
    open_series,
    open_store,
    tiff,
    versions,
    voxel_file,
)
from outputs import facts_of
from store_runs import COMPLETE, IDENTITY, PARTIAL, begin, part_of, put, write_chunks

NAMES = ["out.h5", "out.hdf5", "out.tif", "out.TIFF", "out.ome.tif"]
KINDS = ["out.h5", "out.tif"]
DTYPES = ["float32", "float16", "uint8", "uint16", "int64"]

METADATA = {
    "status": "complete",
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
def prediction():
    values = np.random.default_rng(0).random((2, 5, 33, 40), dtype=np.float32)
    values[1, 3:, 10:] = np.nan
    return values


@pytest.fixture
def arrays(prediction):
    """Everything that a run may keep: channels, dtypes and names differ."""
    random = np.random.default_rng(2)
    return {
        "main": prediction.astype(np.float16),
        "spread": random.random((1, 5, 33, 40), dtype=np.float32),
        "labels": random.integers(0, 3, (1, 5, 33, 40), dtype=np.uint8),
        "heads/affinities": random.integers(0, 65536, (3, 5, 33, 40), dtype=np.uint16),
        "heads/half": random.random((2, 5, 33, 40), dtype=np.float32),
    }


def read(path):
    """Return the voxels and facts of a written file, by other means than the project's own."""
    if path.suffix in (".h5", ".hdf5"):
        with h5py.File(path) as file:
            assert list(file) == ["main"]
            return file["main"][...], dict(file["main"].attrs)
    with tifffile.TiffFile(path) as file:
        (facts,) = file.shaped_metadata
        return file.series[0].asarray(), facts


def refusal(path, **options):
    """Return the message that refuses an output, which must be one line."""
    with pytest.raises(OutputError) as caught:
        open_store(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestWriting:
    @pytest.mark.parametrize("name", NAMES)
    def test_what_is_written_is_read(self, tmp_path, prediction, name):
        store = open_store(tmp_path / name)
        assert os.listdir(tmp_path) == []
        chunks, finished = begin(store, {"main": prediction})
        assert (len(chunks), finished) == (4 * 4, set())
        write_chunks(store, chunks, {"main": prediction})
        assert os.listdir(tmp_path) == [f"{name}.run"]
        store.finish(METADATA)
        assert os.listdir(tmp_path) == [name]
        voxels, _ = read(tmp_path / name)
        assert voxels.dtype == np.float32
        np.testing.assert_array_equal(voxels, prediction)

    @pytest.mark.parametrize("name", KINDS)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_dtype_is_written_as_it_is(self, tmp_path, prediction, name, dtype):
        values = prediction if dtype.startswith("float") else np.nan_to_num(60000 * prediction)
        values = values.astype(dtype)
        put(tmp_path / name, values)
        voxels, _ = read(tmp_path / name)
        assert voxels.dtype == dtype
        np.testing.assert_array_equal(voxels, values)

    def test_byte_order(self, tmp_path, prediction):
        values = prediction.astype(">f4")
        for name, stored in (("out.h5", ">f4"), ("out.tif", "=f4")):
            put(tmp_path / name, values)
            voxels, _ = read(tmp_path / name)
            assert voxels.dtype == np.dtype(stored)
            np.testing.assert_array_equal(voxels, prediction)

    @pytest.mark.parametrize(("name", "stored"), [("out.h5", np.bool_), ("out.tif", np.uint8)])
    def test_truth_takes_a_byte(self, tmp_path, prediction, name, stored):
        put(tmp_path / name, prediction > 0.5)
        voxels, _ = read(tmp_path / name)
        assert voxels.dtype == stored
        np.testing.assert_array_equal(voxels, prediction > 0.5)

    @pytest.mark.parametrize("name", KINDS)
    @pytest.mark.parametrize(
        "shape",
        [(1, 1, 1, 1), (3, 4, 5, 6), (4, 1, 7, 3), (1, 3, 1, 9), (1, 4, 8, 1), (5, 3, 4, 3)],
    )
    def test_every_shape_is_read_back_as_a_source(self, tmp_path, name, shape):
        values = np.random.default_rng(1).random(shape, dtype=np.float32)
        put(tmp_path / name, values)
        with contextlib.closing(open_source(tmp_path / name)) as source:
            assert source.shape == shape
            np.testing.assert_array_equal(source.read(Box.of_shape(shape[1:])), values)

    @pytest.mark.parametrize("name", KINDS)
    def test_any_box_is_written_and_read_where_it_is(self, tmp_path, name):
        """Runs of voxels: parts of rows, whole rows, whole planes, all of it."""
        shape = (2, 4, 6, 5)
        expected = np.zeros(shape, np.float32)
        store = open_store(tmp_path / name)
        begin(store, {"main": expected})
        random = np.random.default_rng(3)
        for _ in range(100):
            ends = [sorted(random.choice(size + 1, 2, replace=False)) for size in shape[1:]]
            ends = [
                end if random.random() < 0.6 else (0, n)
                for end, n in zip(ends, shape[1:], strict=True)
            ]
            box = Box(*(tuple(int(end[i]) for end in ends) for i in range(2)))
            values = random.random((2, *box.shape), dtype=np.float32)
            store.write(0, box, {"main": values})
            expected[(slice(None), *box.slices)] = values
            np.testing.assert_array_equal(store.read("main", box), values)
        np.testing.assert_array_equal(store.read("main", Box.of_shape(shape[1:])), expected)

    @pytest.mark.parametrize("name", KINDS)
    def test_what_was_written_is_read_after_the_end_too(self, tmp_path, arrays, name):
        store = open_store(tmp_path / name)
        chunks, _ = begin(store, arrays)
        write_chunks(store, chunks, arrays)
        for end in (lambda: store.finish(COMPLETE), store.close, store.close):
            end()
            for key, array in arrays.items():
                np.testing.assert_array_equal(
                    store.read(key, chunks[5]), part_of(arrays, chunks[5])[key]
                )
                assert store.read(key, chunks[5]).dtype == array.dtype

    @pytest.mark.parametrize("name", KINDS)
    def test_without_positioned_writes(self, tmp_path, arrays, name, monkeypatch):
        """As on Windows."""
        monkeypatch.setattr(voxel_file, "_HAS_POSITIONS", False)
        for each in ("pread", "pwrite", "posix_fallocate", "fdatasync"):
            monkeypatch.delattr(os, each, raising=False)
        put(tmp_path / name, arrays)
        store = open_store(tmp_path / name, resume=True)
        chunks, finished = begin(store, arrays)
        assert len(finished) == len(chunks)
        for key, array in arrays.items():
            np.testing.assert_array_equal(store.read(key, Box.of_shape((5, 33, 40))), array)

    def test_values_of_another_shape_are_no_voxels(self, tmp_path, prediction):
        store = open_store(tmp_path / "out.h5")
        chunks, _ = begin(store, {"main": prediction})
        with pytest.raises(ValueError, match="reshape"):
            store.write(0, chunks[0], {"main": prediction})

    @pytest.mark.parametrize("name", KINDS)
    def test_it_gets_the_permissions_of_any_new_file(self, tmp_path, prediction, name):
        (tmp_path / "plain").write_text("")
        put(tmp_path / name, prediction)
        assert (tmp_path / name).stat().st_mode == (tmp_path / "plain").stat().st_mode

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows limits paths, not names")
    @pytest.mark.parametrize("name", KINDS)
    def test_long_names(self, tmp_path, prediction, name):
        path = tmp_path / ("n" * 240 + name)
        put(path, prediction)
        np.testing.assert_array_equal(read(path)[0], prediction)

    def test_hdf5_is_contiguous_and_adds_next_to_nothing(self, tmp_path):
        values = np.ones((1, 2, 513, 700), np.float32)
        put(tmp_path / "out.h5", values)
        with h5py.File(tmp_path / "out.h5") as file:
            assert (file["main"].chunks, file["main"].compression) == (None, None)
            offset = file["main"].id.get_offset()
        assert (tmp_path / "out.h5").stat().st_size < values.nbytes + 8192
        mapped = np.memmap(tmp_path / "out.h5", np.float32, "r", offset, values.shape)
        np.testing.assert_array_equal(mapped, values)

    def test_tiff_is_one_page_per_plane_that_can_be_mapped(self, tmp_path, prediction):
        put(tmp_path / "out.tif", prediction)
        with tifffile.TiffFile(tmp_path / "out.tif") as file:
            assert not file.is_bigtiff
            assert not file.is_ome
            assert len(file.pages) == 10
            assert file.pages[0].shape == (33, 40)
        np.testing.assert_array_equal(tifffile.memmap(tmp_path / "out.tif"), prediction)

    def test_large_tiff_is_bigtiff(self, tmp_path, prediction, monkeypatch):
        monkeypatch.setattr(tiff, "BIGTIFF_BYTES", prediction.nbytes - 1)
        put(tmp_path / "out.tif", prediction, METADATA)
        with tifffile.TiffFile(tmp_path / "out.tif") as file:
            assert file.is_bigtiff
        np.testing.assert_array_equal(read(tmp_path / "out.tif")[0], prediction)

    @pytest.mark.parametrize("name", KINDS)
    def test_a_file_larger_than_memory_costs_only_what_is_written(self, tmp_path, name):
        """8 TB of nothing: what libraries write around it is made in memory, and not the rest."""
        from napari_seamless.io.stores.hdf5 import HDF5Form

        form = HDF5Form() if name == "out.h5" else tiff.TIFFForm()
        skeleton = form.compose(
            {"main": ((2, 1000, 32000, 32000), np.dtype(np.float32))},
            {"axes": "CZYX", "status": "running"},
        )
        assert skeleton.size > 8 * 1000 * 32000**2
        assert sum(len(content) for _, content in skeleton.pieces) < 2 << 20


class TestSeveralArrays:
    def test_hdf5_has_a_dataset_for_each(self, tmp_path, arrays):
        put(tmp_path / "out.h5", arrays, METADATA)
        with h5py.File(tmp_path / "out.h5") as file:
            assert set(file) == {"main", "spread", "labels", "heads"}
            assert set(file["heads"]) == {"affinities", "half"}
            for name, array in arrays.items():
                assert file[name].dtype == array.dtype
                assert file[name].attrs["axes"] == "CZYX"
                np.testing.assert_array_equal(file[name][...], array)
            assert set(file["main"].attrs) == {*METADATA, "axes", "identity"}
            assert set(file["labels"].attrs) == {"axes"}

    @pytest.mark.parametrize("bigtiff", [False, True])
    def test_tiff_has_a_series_for_each(self, tmp_path, arrays, bigtiff, monkeypatch):
        if bigtiff:
            monkeypatch.setattr(tiff, "BIGTIFF_BYTES", 1000)
        put(tmp_path / "out.tif", arrays, METADATA)
        with tifffile.TiffFile(tmp_path / "out.tif") as file:
            assert file.is_bigtiff == bigtiff
            assert len(file.pages) == 10 + 5 + 5 + 15 + 10
            for series, (name, array) in zip(file.series, arrays.items(), strict=True):
                assert (series.name, series.axes) == (name, "CZYX")
                assert (series.shape, series.dtype) == (array.shape, array.dtype)
                np.testing.assert_array_equal(series.asarray(), array)
            facts, *others = file.shaped_metadata
        assert facts["config"] == METADATA["config"]
        assert others == [
            {"name": name, "axes": "CZYX", "shape": list(array.shape)}
            for name, array in list(arrays.items())[1:]
        ]

    @pytest.mark.parametrize("name", KINDS)
    def test_the_prediction_is_what_a_source_reads(self, tmp_path, arrays, name):
        put(tmp_path / name, arrays, METADATA)
        path = f"{tmp_path / name}::main" if name == "out.h5" else tmp_path / name
        with contextlib.closing(open_source(path)) as source:
            assert source.shape == arrays["main"].shape
            np.testing.assert_array_equal(source.read(Box.of_shape((5, 33, 40))), arrays["main"])

    def test_neighbours_of_one_shape_stay_apart(self, tmp_path, prediction):
        arrays = {"main": prediction, "spread": prediction + 1, "heads/1": prediction + 2}
        put(tmp_path / "out.tif", arrays)
        for index, array in enumerate(arrays.values()):
            read_back = tifffile.imread(tmp_path / "out.tif", series=index)
            np.testing.assert_array_equal(read_back, array)

    @pytest.mark.parametrize(("room", "bigtiff"), [(0, False), (-1, True)])
    def test_bigtiff_goes_by_the_sum(self, tmp_path, arrays, room, bigtiff, monkeypatch):
        total = sum(array.nbytes for array in arrays.values())
        monkeypatch.setattr(tiff, "BIGTIFF_BYTES", total + room)
        put(tmp_path / "out.tif", arrays)
        with tifffile.TiffFile(tmp_path / "out.tif") as file:
            assert file.is_bigtiff == bigtiff


class TestMetadata:
    def test_hdf5(self, tmp_path, prediction):
        put(tmp_path / "out.h5", prediction, METADATA)
        facts = read(tmp_path / "out.h5")[1]
        assert {key: facts[key] for key in ("status", "done", "total", "axes", "seconds")} == {
            "status": "complete",
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
        assert json.loads(facts["identity"]) == IDENTITY
        assert set(facts) == {*METADATA, "axes", "identity"}

    @pytest.mark.parametrize("name", ["out.tif", "out.ome.tif"])
    def test_tiff(self, tmp_path, prediction, name):
        put(tmp_path / name, prediction, METADATA)
        facts = read(tmp_path / name)[1]
        assert facts.pop("shape") == [2, 5, 33, 40]
        assert facts.pop("name") == "main"
        assert facts == {
            **METADATA,
            "axes": "CZYX",
            "identity": IDENTITY,
            "scale": [50, 4.6, 4.6],
            "translate": [0, 10, 20],
            "seconds": 1.5,
            "checkpoint": "net.pt",
        }

    @pytest.mark.parametrize("name", KINDS)
    def test_facts_of_any_length_may_come_at_the_end(self, tmp_path, arrays, name):
        store = open_store(tmp_path / name)
        chunks, _ = begin(store, arrays, {"status": "running", "log": "y" * 9000})
        write_chunks(store, chunks, arrays)
        for length in (200_000, 10):
            store.finish({**PARTIAL, "log": "x" * length})
            with contextlib.closing(open_source(tmp_path / name)) as source:
                np.testing.assert_array_equal(
                    source.read(Box.of_shape((5, 33, 40))), arrays["main"]
                )
        store.finish({**COMPLETE, "log": "x" * 30})
        if name == "out.tif":
            with tifffile.TiffFile(tmp_path / name) as file:
                assert file.shaped_metadata[0]["log"] == "x" * 30
                for series, array in zip(file.series, arrays.values(), strict=True):
                    np.testing.assert_array_equal(series.asarray(), array)
        else:
            with h5py.File(tmp_path / name) as file:
                assert file["main"].attrs["log"] == "x" * 30
                for key, array in arrays.items():
                    np.testing.assert_array_equal(file[key][...], array)
        assert (tmp_path / name).stat().st_size < 20_000 + sum(a.nbytes for a in arrays.values())

    @pytest.mark.parametrize("name", KINDS)
    def test_a_running_file_can_be_read(self, tmp_path, prediction, name):
        store = open_store(tmp_path / name)
        chunks, _ = begin(store, {"main": prediction}, {"status": "running"})
        write_chunks(store, chunks, {"main": prediction}, [0, 1])
        part = tmp_path / f"{name}.run" / f"part{Path(name).suffix}"
        voxels, facts = read(part)
        assert facts["status"] == "running"
        np.testing.assert_array_equal(voxels[:, 0, :16], prediction[:, 0, :16])

    @pytest.mark.parametrize("name", KINDS)
    def test_versions_are_always_there(self, tmp_path, prediction, name):
        put(tmp_path / name, prediction)
        said = read(tmp_path / name)[1]["versions"]
        assert (json.loads(said) if isinstance(said, str) else said) == versions()

    def test_versions(self):
        found = versions()
        torch_found = found.pop("torch").partition("+")[0]  # which build may be left out

        assert torch_found == torch.__version__.partition("+")[0]
        assert found == {
            "napari-seamless": napari_seamless.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        }

    def test_a_name_that_is_no_text_is_written_with_question_marks(self, tmp_path):
        facts = {**COMPLETE, "source": "caf\udce9.h5", "name": "é"}
        put(tmp_path / "out.h5", np.zeros((1, 1, 2, 2), np.float32), facts)
        with h5py.File(tmp_path / "out.h5") as file:
            assert file["main"].attrs["source"] == "caf?.h5"
            assert file["main"].attrs["name"] == "é"


GEOMETRY = {
    "scale": [50.0, 4.0, 8.0],
    "translation": [0.0, 10.0, 20.0],
    "units": ["nanometer", "nanometer", "angstrom"],
}


class TestGeometry:
    def test_hdf5_says_the_size_of_voxels_in_micrometers(self, tmp_path, arrays):
        put(tmp_path / "out.h5", arrays, {**COMPLETE, "geometry": GEOMETRY})
        with h5py.File(tmp_path / "out.h5") as file:
            for name in arrays:
                np.testing.assert_allclose(
                    file[name].attrs["element_size_um"], [0.05, 0.004, 0.0008]
                )
            assert json.loads(file["main"].attrs["geometry"]) == GEOMETRY

    def test_tiff_says_pixels_per_centimeter(self, tmp_path, prediction):
        put(tmp_path / "out.tif", prediction, {**COMPLETE, "geometry": GEOMETRY})
        with tifffile.TiffFile(tmp_path / "out.tif") as file:
            for page in file.pages:
                page = page.aspage()
                assert page.resolutionunit == tifffile.RESUNIT.CENTIMETER
                assert page.resolution == pytest.approx((1.25e7, 2.5e6))  # X, Y
            assert file.shaped_metadata[0]["geometry"] == GEOMETRY

    @pytest.mark.parametrize("unit", ["", "pixel", "second"])
    def test_what_is_no_length_is_not_said(self, tmp_path, prediction, unit):
        geometry = {**GEOMETRY, "units": ["nanometer", "nanometer", unit]}
        for name in KINDS:
            put(tmp_path / name, prediction, {**COMPLETE, "geometry": geometry})
        assert "element_size_um" not in read(tmp_path / "out.h5")[1]
        with tifffile.TiffFile(tmp_path / "out.tif") as file:
            assert file.pages[0].resolutionunit == tifffile.RESUNIT.NONE


class TestTimes:
    @pytest.fixture
    def series(self):
        return np.random.default_rng(4).random((3, 2, 5, 33, 40), dtype=np.float32)

    @pytest.mark.parametrize("name", KINDS)
    def test_time_points_go_to_one_array(self, tmp_path, series, name):
        stores = open_series(tmp_path / name, 3)
        for store, volume in zip(stores, series, strict=True):
            assert os.listdir(tmp_path) in ([], [f"{name}.run"])
            chunks, finished = begin(store, {"main": volume})
            assert finished == set()
            write_chunks(store, chunks, {"main": volume})
            np.testing.assert_array_equal(
                store.read("main", chunks[3]), part_of({"main": volume}, chunks[3])["main"]
            )
            store.finish(COMPLETE)
        assert os.listdir(tmp_path) == [name]
        voxels, facts = read(tmp_path / name)
        assert (facts["status"], facts["axes"]) == ("complete", "TCZYX")
        np.testing.assert_array_equal(voxels, series)
        if name == "out.tif":
            with tifffile.TiffFile(tmp_path / name) as file:
                assert file.series[0].axes == "TCZYX"

    @pytest.mark.parametrize("name", KINDS)
    def test_one_that_ends_early_is_gone_on_with(self, tmp_path, series, name):
        first, second, third = open_series(tmp_path / name, 3)
        chunks, _ = begin(first, {"main": series[0]})
        write_chunks(first, chunks, {"main": series[0]})
        first.finish(COMPLETE)
        begin(second, {"main": series[1]})
        write_chunks(second, chunks, {"main": series[1]}, [0, 1, 2])
        second.finish({"status": "failed"})
        begin(third, {"main": series[2]})
        write_chunks(third, chunks, {"main": series[2]})
        third.finish(COMPLETE)
        third.close()
        assert sorted(os.listdir(tmp_path)) == [name, f"{name}.run"]
        voxels, facts = read(tmp_path / name)
        assert facts["status"] == "failed"
        np.testing.assert_array_equal(voxels[[0, 2]], series[[0, 2]])
        assert np.isnan(voxels[1]).sum() == voxels[1].size - sum(
            2 * np.prod(chunks[i].shape) for i in range(3)
        )

        stores = open_series(tmp_path / name, 3, resume=True)
        left = [begin(store, {"main": each})[1] for store, each in zip(stores, series, strict=True)]
        everything = set(range(len(chunks)))
        assert left == [everything, {0, 1, 2}, everything]
        write_chunks(stores[1], chunks, {"main": series[1]}, everything - {0, 1, 2})
        stores[1].finish(COMPLETE)
        assert os.listdir(tmp_path) == [name]
        np.testing.assert_array_equal(read(tmp_path / name)[0], series)

    @pytest.mark.parametrize("name", [*KINDS, "out.zarr"])
    def test_what_is_known_of_every_time_point_is_kept(self, tmp_path, series, name):
        """Of the first one although the run is killed after it, of the second as resumed."""
        known = [
            {"status": "complete", "done": 9, "metrics": {"dice": 0.5 + t}, "failed": [[[t]]]}
            for t in range(3)
        ]
        stores = open_series(tmp_path / name, 3)
        chunks, _ = begin(stores[0], {"main": series[0]})
        write_chunks(stores[0], chunks, {"main": series[0]})
        stores[0].finish({**known[0], "geometry": GEOMETRY})
        begin(stores[1], {"main": series[1]})
        write_chunks(stores[1], chunks, {"main": series[1]}, [0])
        stores[0].close()

        stores = open_series(tmp_path / name, 3, resume=True)
        for store, volume, facts in zip(stores, series, known, strict=True):
            _, finished = begin(store, {"main": volume})
            write_chunks(store, chunks, {"main": volume}, {*range(len(chunks))} - finished)
            if facts is not known[0]:
                store.finish({**facts, "geometry": GEOMETRY})
        facts = facts_of(tmp_path / name)
        times = facts["times"]
        assert (json.loads(times) if isinstance(times, str) else times) == {
            str(time): each for time, each in enumerate(known)
        }
        assert facts["status"] == "complete"
        assert not {"metrics", "failed", "done"} & set(facts)  # of which time point?
        assert "geometry" in facts


class TestRefusals:
    @pytest.mark.parametrize(("name", "said"), [("out.png", "'.png'"), ("out", "'no suffix'")])
    def test_unknown_suffix(self, tmp_path, name, said):
        assert refusal(tmp_path / name) == (
            f"output {tmp_path / name} ends in {said}; it must be .h5, .hdf5, .tif, .tiff, .zarr"
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
        chunks, _ = begin(store, {"main": prediction})
        write_chunks(store, chunks, {"main": prediction})
        assert (tmp_path / name).read_text() == "precious"
        store.finish(COMPLETE)
        np.testing.assert_array_equal(read(tmp_path / name)[0], prediction)
        assert os.listdir(tmp_path) == [name]

    @pytest.mark.parametrize("name", [*KINDS, "out.zarr"])
    @pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
    def test_a_link_to_nothing(self, tmp_path, name, options):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
        assert refusal(tmp_path / name, **options) == (
            f"output {tmp_path / name} is a link to {tmp_path / 'nowhere'}, which is not there; "
            "remove the link or choose another name"
        )
        assert (tmp_path / name).is_symlink()

    @pytest.mark.parametrize("name", [*KINDS, "out.zarr"])
    @pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
    def test_a_file_where_the_journal_shall_be(self, tmp_path, name, options):
        (tmp_path / f"{name}.run").write_text("precious")
        assert refusal(tmp_path / name, **options) == (
            f"{tmp_path / name}.run is needed as a folder for what a run leaves and is none; move "
            "it away or choose another output"
        )
        assert (tmp_path / f"{name}.run").read_text() == "precious"

    @pytest.mark.parametrize(
        ("output", "remedy"),
        [
            ("s3://bucket/out.zarr", None),
            ("gs://bucket/out.h5", None),
            ("https://host/out.tif", None),
            (Path("s3://bucket/out.zarr"), None),
            ("file:///tmp/a%20b/out.zarr", "/tmp/a b/out.zarr"),
            ("file://localhost/tmp/out.h5", "/tmp/out.h5"),
            (Path("file:///tmp/out.tif"), "/tmp/out.tif"),
        ],
    )
    def test_a_url(self, output, remedy):
        plain = f"give the plain path: {remedy}"
        copy = "give a path, and copy the output there when it is complete"
        assert refusal(output) == (
            f"output {output} is a URL; outputs are written to local or shared disks: "
            f"{plain if remedy else copy}"
        )

    def test_a_folder_may_be_called_as_a_url_begins(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "s3:").mkdir()
        put(Path("s3:/out.h5"), {"main": np.ones((1, 5, 33, 40), np.float32)})
        assert os.listdir(tmp_path / "s3:") == ["out.h5"]

    def test_a_name_that_no_file_has(self):
        assert "no file has such a name" in refusal("a\0b.h5")

    @pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
    def test_folder(self, tmp_path, options):
        (tmp_path / "out.h5").mkdir()
        said = refusal(tmp_path / "out.h5", **options)
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
        chunks = ChunkGrid.regular((1 << 10, 1 << 18, 1 << 20), (1 << 10, 1 << 10, 1 << 10))
        with pytest.raises(OutputError) as caught:
            store.begin({"main": ArraySpec(1, np.dtype(np.float32))}, chunks, {}, COMPLETE)
        assert re.fullmatch(
            rf"output {re.escape(str(tmp_path / name))} takes 1 PiB and its disk has [\d.]+ "
            r"[KMGT]iB free: free space or choose another place",
            str(caught.value),
        )
        assert os.listdir(tmp_path) == []


class TestFailures:
    """At the target's place is nothing, or what was there, unless it is whole."""

    @pytest.mark.parametrize("name", KINDS)
    def test_file_that_appears_during_the_run_is_kept(self, tmp_path, prediction, name):
        store = open_store(tmp_path / name)
        chunks, _ = begin(store, {"main": prediction})
        write_chunks(store, chunks, {"main": prediction})
        (tmp_path / name).write_text("precious")
        with pytest.raises(WriteError, match=r"appeared during the run and was not replaced"):
            store.finish(COMPLETE)
        assert (tmp_path / name).read_text() == "precious"

        store = open_store(tmp_path / name, resume=True)
        with pytest.raises(OutputError, match=r"exists beside the unfinished run .* move it away"):
            begin(store, {"main": prediction})
        (tmp_path / name).unlink()
        put(tmp_path / name, prediction, resume=True)
        np.testing.assert_array_equal(read(tmp_path / name)[0], prediction)

    @pytest.mark.parametrize("name", KINDS)
    def test_file_that_appears_before_the_first_batch(self, tmp_path, prediction, name):
        store = open_store(tmp_path / name)
        (tmp_path / name).write_text("precious")
        with pytest.raises(OutputError, match=f"{name} exists; pass --overwrite"):
            begin(store, {"main": prediction})
        assert os.listdir(tmp_path) == [name]

    @pytest.mark.parametrize("name", KINDS)
    def test_folder_that_is_gone(self, tmp_path, prediction, name):
        (tmp_path / "sub").mkdir()
        store = open_store(tmp_path / "sub" / name)
        (tmp_path / "sub").rmdir()
        with pytest.raises(OutputError, match="no such folder") as caught:
            begin(store, {"main": prediction})
        assert "\n" not in str(caught.value)

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps folders of open files")
    @pytest.mark.parametrize("name", KINDS)
    def test_folder_that_vanishes_during_the_run(self, tmp_path, prediction, name):
        (tmp_path / "sub").mkdir()
        store = open_store(tmp_path / "sub" / name)
        chunks, _ = begin(store, {"main": prediction})
        (tmp_path / "sub").rename(tmp_path / "elsewhere")
        with pytest.raises(WriteError, match=r"could not be written: No such file or directory"):
            write_chunks(store, chunks, {"main": prediction})
        with pytest.raises(WriteError, match=r"could not be written: No such file or directory"):
            store.finish(PARTIAL)

    @pytest.mark.parametrize("name", KINDS)
    @pytest.mark.parametrize("limit", [0, 3_000, 300_000, 1_800_000])
    def test_file_size_limit(self, tmp_path, name, limit):
        """A failing write as any user can have it: the disk quota of a shell, `ulimit -f`."""
        resource = pytest.importorskip("resource", reason="needs RLIMIT_FSIZE")
        store = open_store(tmp_path / name)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OutputError) as caught:
                begin(store, {"main": np.ones((1, 8, 256, 256), np.float32)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert str(caught.value) == (
            f"output {tmp_path / name} cannot be written: File too large: choose another place"
        )
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("name", KINDS)
    def test_full_disk_is_said_before_the_run(self, small_disk, prediction, name):
        (small_disk / "filler").write_bytes(bytes(500_000))
        store = open_store(small_disk / name)
        with pytest.raises(OutputError) as caught:
            begin(store, {"main": np.ones((1, 8, 256, 256), np.float32)})
        assert re.fullmatch(
            rf"output {re.escape(str(small_disk / name))} takes 2[.]00\d MiB and its disk has "
            r"[\d.]+ KiB free: free space or choose another place",
            str(caught.value),
        )
        assert os.listdir(small_disk) == ["filler"]
        (small_disk / "filler").unlink()
        chunks, _ = begin(store, {"main": prediction})  # the same store, once there is space
        write_chunks(store, chunks, {"main": prediction})
        store.finish(COMPLETE)
        np.testing.assert_array_equal(read(small_disk / name)[0], prediction)

    @pytest.mark.parametrize("name", KINDS)
    def test_a_run_that_has_begun_has_its_room(self, small_disk, prediction, name):
        store = open_store(small_disk / name)
        chunks, _ = begin(store, {"main": prediction})
        write_chunks(store, chunks, {"main": prediction}, [0])  # the journal has its page, too
        fill(small_disk)
        write_chunks(store, chunks, {"main": prediction})
        with pytest.raises(WriteError) as caught:
            store.finish({**COMPLETE, "log": "x" * 100_000})
        assert str(caught.value) == (
            f"{small_disk / name} could not be written: No space left on device: "
            "free space or choose another place"
        )
        assert not (small_disk / name).exists()
        store.close()

        (small_disk / "filler").unlink()
        store = open_store(small_disk / name, resume=True)
        assert begin(store, {"main": prediction})[1] == set(range(len(chunks)))
        store.finish({**COMPLETE, "log": "x" * 100_000})
        np.testing.assert_array_equal(read(small_disk / name)[0], prediction)

    @pytest.mark.parametrize("name", KINDS)
    def test_a_chunk_that_cannot_be_recorded_is_not_finished(self, small_disk, prediction, name):
        store = open_store(small_disk / name)
        chunks, _ = begin(store, {"main": prediction})
        fill(small_disk)
        with pytest.raises(WriteError, match="No space left on device"):
            write_chunks(store, chunks, {"main": prediction}, [0])
        (small_disk / "filler").unlink()
        write_chunks(store, chunks, {"main": prediction}, [1])
        store.close()
        store = open_store(small_disk / name, resume=True)
        assert begin(store, {"main": prediction})[1] == {1}

    @pytest.mark.parametrize("name", KINDS)
    def test_full_disk_leaves_the_old_file(self, small_disk, prediction, name):
        put(small_disk / name, prediction)
        with pytest.raises(OutputError, match="its disk has"):
            put(small_disk / name, np.ones((1, 8, 256, 256), np.float32), overwrite=True)
        assert os.listdir(small_disk) == [name]
        np.testing.assert_array_equal(read(small_disk / name)[0], prediction)


def fill(disk):
    """Leave no byte free."""
    with open(disk / "filler", "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
