import json
import os
import subprocess
import sys

import dask.array as da
import numpy as np
import ome_zarr_models.v05
import pytest
import tensorstore as ts
import zarr
from napari_ome_zarr import napari_get_reader

from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import OutputError, WriteError
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.store import ArraySpec
from napari_seamless.io.stores import zarr_layout
from napari_seamless.io.stores.zarr_store import ZarrOutput

SHAPE = (20, 301, 290)
GRID = PatchGrid.regular(SHAPE, (8, 64, 64))
IDENTITY = {"config": {"patch_size": (8, 64, 64)}, "checkpoint": "ab" * 32}
FACTS = {
    "status": "running",
    "done": 0,
    "total": 80,
    "config": {"patch_size": [8, 64, 64]},
    "geometry": {
        "scale": [40.0, 4.0, 4.0],
        "translation": [80.0, 10.0, 20.0],
        "units": ["nanometer", "nanometer", ""],
    },
}
COMPLETE = {**FACTS, "status": "complete", "done": 80}
PARTIAL = {**FACTS, "status": "partial", "done": 33}
SPECS = {"main": ArraySpec(2, np.dtype("float32"))}
MANY = {
    "main": ArraySpec(2, np.dtype("float16")),
    "labels": ArraySpec(1, np.dtype("uint16"), is_labels=True),
    "spread": ArraySpec(1, np.dtype("float32")),
    "heads/affinities": ArraySpec(3, np.dtype("uint8")),
}


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    """Several units in each direction, of several chunks each."""
    monkeypatch.setattr(zarr_layout, "UNIT_VOXELS", 8 * 128 * 128)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.zarr"


def values_of(specs, shape=SHAPE, seed=0):
    random = np.random.default_rng(seed)
    return {
        name: (200 * random.random((spec.channels, *shape), np.float32)).astype(spec.dtype)
        for name, spec in specs.items()
    }


def begun(path, specs=SPECS, grid=GRID, identity=IDENTITY, time=0, facts=FACTS, **options):
    """Return store, chunks, and what is finished."""
    options.setdefault("chunk_size", (8, 64, 64))
    store = ZarrOutput(path, **options).at(time)
    chunks = store.layout(grid)
    return store, chunks, store.begin(specs, chunks, identity, facts)


def write(store, chunks, values, indices):
    for index in indices:
        box = chunks[index]
        store.write(index, box, {name: each[:, *box.slices] for name, each in values.items()})


def written(path, specs=SPECS, values=None, **options):
    """Write a complete output and return its values."""
    store, chunks, finished = begun(path, specs, **options)
    assert set(finished) == set()
    values = values or values_of(specs)
    write(store, chunks, values, range(len(chunks)))
    store.finish(COMPLETE)
    store.close()
    return values


def facts_of(path):
    return json.loads((path / "zarr.json").read_text())["attributes"]["napari-seamless"]


def coarser(values, factors=(1, 2, 2)):
    """Return the mean over blocks of (C, Z, Y, X), and over what is left of them at the ends."""
    values = values.astype(np.float64)
    for axis, by in enumerate(factors, start=1):
        starts = np.arange(0, values.shape[axis], by)
        counts = np.minimum(by, values.shape[axis] - starts)
        counts = counts.reshape([-1 if each == axis else 1 for each in range(4)])
        values = np.add.reduceat(values, starts, axis=axis) / counts
    return values


def tree(folder):
    """Return all files below a folder, with their bytes."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def refusal(path, **options):
    with pytest.raises(OutputError) as caught:
        begun(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestReading:
    def test_zarr_python(self, path):
        values = written(path)
        group = zarr.open_group(path, mode="r")
        assert sorted(group.array_keys()) == ["0", "1"]
        array = group["0"]
        np.testing.assert_array_equal(array[...], values["main"])
        assert array.metadata.dimension_names == ("c", "z", "y", "x")
        assert array.shards == (1, 8, 128, 128)
        assert array.chunks == (1, 8, 64, 64)
        assert np.isnan(array.fill_value)
        assert "ZstdCodec" in str(array.compressors)

    def test_dask(self, path):
        values = written(path)
        np.testing.assert_array_equal(da.from_zarr(path / "0").compute(), values["main"])

    def test_napari_ome_zarr(self, path):
        values = written(path, MANY)
        layers = napari_get_reader(str(path))(str(path))
        (image, labels) = layers
        assert (image[2], labels[2]) == ("image", "labels")
        assert image[1]["channel_axis"] == 0
        assert image[1]["scale"] == [40.0, 4.0, 4.0]
        assert image[1]["units"] == ("nanometer", "nanometer", None)
        assert image[1]["axis_labels"] == ("z", "y", "x")
        assert [level.shape for level in image[0]] == [(2, *SHAPE), (2, 20, 151, 145)]
        np.testing.assert_array_equal(np.asarray(image[0][0]), values["main"])
        np.testing.assert_array_equal(np.asarray(labels[0][0]), values["labels"])
        assert labels[1]["scale"][-3:] == [40.0, 4.0, 4.0]

    def test_ome_zarr_models(self, path):
        written(path, MANY)
        image = ome_zarr_models.v05.Image.from_zarr(zarr.open_group(path, mode="r"))
        (multiscale,) = image.ome_attributes.multiscales
        assert multiscale.name == "out"
        assert [axis.name for axis in multiscale.axes] == ["c", "z", "y", "x"]
        assert [axis.unit for axis in multiscale.axes] == [None, "nanometer", "nanometer", None]
        steps = [
            [transform.model_dump() for transform in dataset.coordinateTransformations]
            for dataset in multiscale.datasets
        ]
        assert [[dict(s)[s["type"]] for s in level] for level in steps] == [
            [[1, 40, 4, 4], [0, 80, 10, 20]],
            [[1, 40, 8, 8], [0, 80, 12, 22]],
        ]
        assert image.labels.label_paths == ["labels"]
        label = image.labels.get_image_labels_group("labels")
        assert label.attributes.ome.image_label.source.image == "../../"
        for name in ("spread", "heads/affinities"):
            group = zarr.open_group(path / name, mode="r")
            part = ome_zarr_models.v05.Image.from_zarr(group)
            assert part.ome_attributes.multiscales[0].name == name
        assert list(zarr.open_group(path / "heads", mode="r").group_keys()) == ["affinities"]

    def test_store_itself(self, path):
        store, chunks, _ = begun(path, MANY)
        values = values_of(MANY)
        write(store, chunks, values, range(len(chunks)))
        box = Box((3, 100, 7), (11, 301, 200))
        for name, each in values.items():
            voxels = store.read(name, box)
            assert voxels.dtype == each.dtype
            np.testing.assert_array_equal(voxels, each[:, *box.slices])

    @pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "uint16", "uint32", "int64"])
    @pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 5), (1, 70, 90), (9, 65, 3)])
    def test_every_dtype_and_shape(self, path, dtype, shape):
        specs = {"main": ArraySpec(2, np.dtype(dtype))}
        grid = PatchGrid.regular(shape, (4, 32, 32))
        values = written(path, specs, values_of(specs, shape), grid=grid, chunk_size=None)
        array = zarr.open_array(path / "0", mode="r")
        assert array.dtype == dtype
        np.testing.assert_array_equal(array[...], values["main"])

    @pytest.mark.parametrize("spacing", ["snap", "even"])
    def test_many_grids(self, path, spacing):
        grid = PatchGrid.regular((17, 211, 300), (6, 50, 70), (0.3, 0.5, 0.25), spacing=spacing)
        values = written(path, values=values_of(SPECS, (17, 211, 300)), grid=grid, chunk_size=None)
        np.testing.assert_array_equal(zarr.open_array(path / "0", mode="r")[...], values["main"])


def test_a_unit_is_written_once_and_never_read_before(path):
    def counted():
        found = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/")
        values = {each["name"].rsplit("/", 1)[1]: each["values"] for each in found}
        return [values[name][0]["value"] if values[name] else 0 for name in ("write", "bytes_read")]

    store, chunks, _ = begun(path)
    values = values_of(SPECS)
    for index in (0, 2):  # a whole one, and one that the end of the volume cuts
        writes, bytes_read = counted()
        write(store, chunks, values, [index])
        assert counted() == [writes + 2, bytes_read]  # a file per channel


class TestPyramid:
    def test_means_of_odd_sizes(self, path):
        values = written(path, MANY)
        for name, place, tolerance in [
            ("main", "1", {"rtol": 1e-3}),
            ("spread", "spread/1", {"rtol": 1e-6}),
            ("heads/affinities", "heads/affinities/1", {"atol": 0.5, "rtol": 0}),
        ]:
            stored = zarr.open_array(path / place, mode="r")[...]
            assert stored.shape[1:] == (20, 151, 145)
            np.testing.assert_allclose(stored, coarser(values[name]), **tolerance)

    def test_several_levels_of_equal_voxels(self, path):
        facts = {**FACTS, "geometry": {**FACTS["geometry"], "scale": [1.0, 1.0, 1.0]}}
        grid = PatchGrid.regular((37, 530, 300), (8, 64, 64))
        values = written(path, values=values_of(SPECS, grid.shape), grid=grid, facts=facts)
        once = zarr.open_array(path / "1", mode="r")[...]
        np.testing.assert_allclose(once, coarser(values["main"], (2, 2, 2)), rtol=1e-6)
        twice = zarr.open_array(path / "2", mode="r")[...]
        assert twice.shape == (2, 10, 133, 75)
        np.testing.assert_allclose(twice, coarser(once, (2, 2, 2)), rtol=1e-6)

    def test_nan_counts_for_nothing(self, path):
        values = values_of(SPECS)
        values["main"][:, :, 100:151, 50:151] = np.nan
        written(path, values=values)
        stored = zarr.open_array(path / "1", mode="r")[...]
        where = np.isnan(stored)
        assert where[:, :, 50:75, 25:75].all()
        assert where.sum() == 2 * 20 * 25 * 50
        np.testing.assert_allclose(
            stored[0, 3, 75, 30], values["main"][0, 3, 151, 60:62].mean(), rtol=1e-6
        )

    def test_labels_are_never_averaged(self, path):
        values = values_of(MANY)
        values["labels"] = np.random.default_rng(3).choice([3, 700, 9000], (1, *SHAPE)).astype("u2")
        written(path, MANY, values)
        stored = zarr.open_array(path / "labels/labels/1", mode="r")[...]
        assert np.unique(stored).tolist() == [3, 700, 9000]
        block = values["labels"][0, :, :2, :2].reshape(20, 4)
        for plane, voxel in zip(block, stored[0, :, 0, 0], strict=True):
            assert np.count_nonzero(plane == voxel) == max(np.unique(plane, return_counts=True)[1])

    def test_it_grows_with_the_chunks(self, path):
        store, chunks, _ = begun(path)
        assert chunks.counts == (3, 3, 3)
        values = values_of(SPECS)
        first = path / "1/c/0/0/0/0"
        for last, index in enumerate((0, 1, 3, 4)):
            assert not first.exists(), last
            write(store, chunks, values, [index])
        assert first.exists()
        np.testing.assert_allclose(
            zarr.open_array(path / "1", mode="r")[:, :8, :128, :128],
            coarser(values["main"][:, :8, :256, :256]),
            rtol=1e-6,
        )

    def test_it_covers_what_is_there_of_a_partial_result(self, path):
        store, chunks, _ = begun(path)
        values = values_of(SPECS)
        write(store, chunks, values, [0])
        box = chunks[4]
        store.write(None, box, {"main": values["main"][:, *box.slices]})
        store.finish(PARTIAL)
        stored = zarr.open_array(path / "1", mode="r")[...]
        expected = np.full((2, *SHAPE), np.nan)
        for index in (0, 4):
            part = (slice(None), *chunks[index].slices)
            expected[part] = values["main"][part]
        expected = coarser(expected)
        np.testing.assert_allclose(stored, expected, rtol=1e-6)
        assert np.isfinite(expected).sum() == 2 * 2 * 8 * 64 * 64
        before = tree(path)
        store.complete_pyramid()  # nothing is left to be done
        assert tree(path) == before


class TestFacts:
    def test_what_is_known_is_in_the_attributes(self, path):
        facts = {**COMPLETE, "metrics": {"dice": np.float64(0.5), "voi": float("nan")}}
        store, _, _ = begun(path)
        assert facts_of(path)["status"] == "running"
        store.finish(facts)
        known = facts_of(path)
        assert known["status"] == "complete"
        assert known["metrics"] == {"dice": 0.5, "voi": "NaN"}
        assert known["config"] == {"patch_size": [8, 64, 64]}
        assert known["identity"] == json.loads(json.dumps(IDENTITY))
        assert "numpy" in known["versions"]
        assert zarr.open_group(path, mode="r").attrs["napari-seamless"]["done"] == 80
        assert not path.with_name("out.zarr.run").exists()

    def test_what_was_never_written(self, path):
        store, _, _ = begun(path, MANY)
        store.finish(PARTIAL)
        group = zarr.open_group(path, mode="r")
        assert np.isnan(group["0"][...]).all()
        assert not group["labels/labels/0"][...].any()
        assert path.with_name("out.zarr.run").exists()

    def test_without_a_geometry(self, path):
        written(path, facts={"status": "running"})
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
        (multiscale,) = attributes["ome"]["multiscales"]
        assert multiscale["datasets"][0]["coordinateTransformations"] == [
            {"type": "scale", "scale": [1.0] * 4},
            {"type": "translation", "translation": [0.0] * 4},
        ]
        assert "unit" not in str(multiscale["axes"])

    @pytest.mark.parametrize("size", [-4.0, 0.0, float("nan"), float("inf")])
    def test_sizes_that_ome_zarr_does_not_know_are_refused(self, path, size):
        geometry = {**FACTS["geometry"], "scale": [40.0, size, 4.0]}
        line = refusal(path, facts={**FACTS, "geometry": geometry})
        assert f"OME-Zarr knows no voxels of size (40.0, {size}, 4.0)" in line
        assert os.listdir(path.parent) == []

    def test_units_that_ome_zarr_does_not_know_are_left_out(self, path):
        geometry = {**FACTS["geometry"], "units": ["pixel", "micrometer", "µm"]}
        begun(path, facts={**FACTS, "geometry": geometry})
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
        axes = attributes["ome"]["multiscales"][0]["axes"]
        assert [axis.get("unit") for axis in axes] == [None, None, "micrometer", None]


class TestTimes:
    def test_every_point_in_time(self, path):
        output = ZarrOutput(path, times=3, chunk_size=(8, 64, 64))
        series = [values_of(MANY, seed=time) for time in range(3)]
        for time, values in enumerate(series):
            store = output.at(time)
            chunks = store.layout(GRID)
            assert set(store.begin(MANY, chunks, IDENTITY, FACTS)) == set()
            write(store, chunks, values, range(len(chunks)))
            store.finish({**COMPLETE, "metrics": {"dice": time}})
            store.close()
            assert facts_of(path)["status"] == ("complete" if time == 2 else "running")
        assert [each["metrics"]["dice"] for each in facts_of(path)["times"].values()] == [0, 1, 2]
        group = zarr.open_group(path, mode="r")
        ome_zarr_models.v05.Image.from_zarr(group)
        assert group["0"].metadata.dimension_names == ("t", "c", "z", "y", "x")
        for time, values in enumerate(series):
            np.testing.assert_array_equal(group["0"][time], values["main"])
            np.testing.assert_allclose(group["1"][time], coarser(values["main"]), rtol=1e-3)
            np.testing.assert_array_equal(group["labels/labels/0"][time], values["labels"])
        image, _ = napari_get_reader(str(path))(str(path))
        assert image[1]["channel_axis"] == 1
        assert image[1]["scale"] == [1.0, 40.0, 4.0, 4.0]
        assert not path.with_name("out.zarr.run").exists()

    def test_resume_in_the_middle(self, path):
        output = ZarrOutput(path, times=2, chunk_size=(8, 64, 64))
        values = values_of(SPECS)
        for time, indices in [(0, range(27)), (1, [5, 6])]:
            store = output.at(time)
            chunks = store.layout(GRID)
            store.begin(SPECS, chunks, IDENTITY, FACTS)
            write(store, chunks, values, indices)
            if time == 0:
                store.finish(COMPLETE)
        del output, store
        output = ZarrOutput(path, resume=True, times=2, chunk_size=(8, 64, 64))
        first, second = output.at(0), output.at(1)
        chunks = first.layout(GRID)
        second.layout(GRID)
        assert set(first.begin(SPECS, chunks, IDENTITY, FACTS)) == set(range(27))
        assert set(second.begin(SPECS, chunks, IDENTITY, FACTS)) == {5, 6}
        write(second, chunks, values, set(range(27)) - {5, 6})
        second.finish(COMPLETE)
        assert facts_of(path)["status"] == "complete"
        for time in range(2):
            stored = zarr.open_array(path / "0", mode="r")[time]
            np.testing.assert_array_equal(stored, values["main"])

    def test_one_that_failed_is_how_all_ended(self, path):
        output = ZarrOutput(path, times=2)
        for time, status in enumerate(["failed", "complete"]):
            store = output.at(time)
            store.begin(SPECS, store.layout(GRID), IDENTITY, FACTS)
            store.finish({**FACTS, "status": status})
        assert facts_of(path)["status"] == "failed"
        assert path.with_name("out.zarr.run").exists()


class TestResume:
    def test_same_bytes_as_without_interruption(self, path, tmp_path):
        whole = tmp_path / "whole.zarr"
        values = written(whole, MANY)
        store, chunks, _ = begun(path, MANY)
        write(store, chunks, values, range(0, 20, 2))
        del store
        store, chunks, finished = begun(path, MANY, resume=True)
        assert set(finished) == set(range(0, 20, 2))
        write(store, chunks, values, sorted(set(range(27)) - set(finished)))
        store.finish(COMPLETE)
        voxels, expected = tree(path), tree(whole)
        del voxels["zarr.json"], expected["zarr.json"]  # which has the name
        assert voxels == expected

    def test_what_was_provisional_is_replaced(self, path, tmp_path):
        store, chunks, _ = begun(path)
        values = values_of(SPECS)
        write(store, chunks, values, [0, 1, 3])
        store.write(None, chunks[4], {"main": np.full((2, *chunks[4].shape), 7, np.float32)})
        store.finish(PARTIAL)
        assert (path / "1/c/0/0/0/0").exists()
        store, chunks, finished = begun(path, resume=True)
        assert set(finished) == {0, 1, 3}
        assert not (path / "0/c/0/0/1/1").exists()
        assert not (path / "1/c/0/0/0/0").exists()
        write(store, chunks, values, sorted(set(range(27)) - set(finished)))
        store.finish(COMPLETE)
        written(tmp_path / "whole.zarr")
        assert tree(path / "1") == tree(tmp_path / "whole.zarr" / "1")

    def test_a_level_that_a_killed_process_did_not_build(self, path):
        store, chunks, _ = begun(path)
        values = values_of(SPECS)
        write(store, chunks, values, range(27))
        store.close()
        (path / "1/c/0/1/0/0").unlink()
        (path / "1/c/1/0/1/1").unlink()
        store, _, finished = begun(path, resume=True)
        assert set(finished) == set(range(27))
        store.finish(COMPLETE)
        stored = zarr.open_array(path / "1", mode="r")[...]
        np.testing.assert_allclose(stored, coarser(values["main"]), rtol=1e-6)

    def test_a_chunk_whose_file_is_gone_is_not_finished(self, path):
        store, chunks, _ = begun(path, MANY)
        write(store, chunks, values_of(MANY), [0, 1, 2])
        store.close()
        (path / "heads/affinities/0/c/2/0/0/1").unlink()
        _, _, finished = begun(path, MANY, resume=True)
        assert set(finished) == {0, 2}

    def test_nothing_there_starts_anew(self, path):
        _, _, finished = begun(path, resume=True)
        assert set(finished) == set()
        assert facts_of(path)["status"] == "running"

    def test_a_complete_output_has_nothing_left_to_do(self, path):
        written(path)
        before = tree(path)
        store, _, finished = begun(path, resume=True)
        assert set(finished) == set(range(27))
        assert store.scratch is None
        store.close()
        assert tree(path) == before

    @pytest.mark.parametrize("status", ["running", "complete"])
    def test_another_run_is_refused(self, path, status):
        if status == "complete":
            written(path)
        else:
            begun(path)
        before = tree(path)
        other = {"config": {"patch_size": (8, 32, 64)}, "checkpoint": "ab" * 32}
        line = refusal(path, identity=other, resume=True)
        assert "its config patch_size is [8, 64, 64], now it is [8, 32, 64]" in line
        assert tree(path) == before

    @pytest.mark.parametrize(
        ("options", "difference"),
        [
            ({"chunk_size": (8, 32, 32)}, "layout chunk is [8, 64, 64], now it is [8, 32, 32]"),
            ({"specs": MANY}, 'arrays main dtype is "float32", now it is "float16"'),
        ],
    )
    def test_another_make_is_refused(self, path, options, difference):
        store, chunks, _ = begun(path)
        write(store, chunks, values_of(SPECS), [0])
        store.close()
        before = tree(path)
        assert difference in refusal(path, resume=True, **options)
        assert tree(path) == before

    def test_the_journal_is_gone(self, path):
        begun(path)
        (path.with_name("out.zarr.run") / "run.json").unlink()
        assert "without which it cannot be resumed, is gone" in refusal(path, resume=True)

    def test_a_damaged_description(self, path):
        store, _, _ = begun(path)
        (path / "zarr.json").write_text('{"zarr_format": 3, "node')
        assert "holds no run that could be gone on with" in refusal(path, resume=True)
        with pytest.raises(WriteError, match="describes no zarr 3 group"):
            store.finish(COMPLETE)

    def test_a_zarr_of_something_else(self, path):
        zarr.create_array(path, shape=(3,), dtype="u1")
        before = tree(path)
        assert "holds no run that could be gone on with" in refusal(path, resume=True)
        assert tree(path) == before

    def test_killed_before_anything_was_finished(self, path):
        begun(path)[0].close()
        store, chunks, finished = begun(path, resume=True)
        assert set(finished) == set()
        write(store, chunks, values_of(SPECS), [3])
        store.close()
        assert set(begun(path, resume=True)[2]) == {3}


class TestPlace:
    def test_what_exists_is_not_replaced(self, path):
        written(path)
        before = tree(path)
        line = refusal(path)
        assert line.startswith(f"output {path} exists; pass --overwrite / overwrite=True")
        assert tree(path) == before

    def test_an_unfinished_run_is_not_replaced(self, path):
        begun(path)
        assert "an unfinished run is there; pass --resume / resume=True" in refusal(path)

    def test_overwriting(self, path):
        written(path, MANY)
        values = written(path, values=values_of(SPECS, seed=1), overwrite=True)
        assert sorted(os.listdir(path.parent)) == ["out.zarr"]
        assert sorted(os.listdir(path)) == ["0", "1", "zarr.json"]
        np.testing.assert_array_equal(zarr.open_array(path / "0", mode="r")[...], values["main"])

    def test_overwriting_an_unfinished_run(self, path):
        store, chunks, _ = begun(path)
        write(store, chunks, values_of(SPECS), [0])
        store.close()
        _, _, finished = begun(path, overwrite=True, identity={"config": 2})
        assert set(finished) == set()
        assert np.isnan(zarr.open_array(path / "0", mode="r")[...]).all()

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("resume", [False, True])
    def test_other_folders_are_never_touched(self, path, overwrite, resume):
        path.mkdir()
        (path / "thesis.txt").write_text("two years")
        refusal(path, overwrite=overwrite, resume=resume)
        assert tree(path) == {"thesis.txt": b"two years"}
        assert os.listdir(path.parent) == ["out.zarr"]

    def test_a_file_is_never_replaced(self, path):
        path.write_text("two years")
        assert "is no zarr folder, so it is never replaced" in refusal(path, overwrite=True)
        assert path.read_text() == "two years"

    def test_it_appears_after_the_check(self, path):
        store = ZarrOutput(path).at()
        chunks = store.layout(GRID)
        zarr.create_array(path, shape=(3,), dtype="u1")
        with pytest.raises(OutputError, match="exists; pass --overwrite"):
            store.begin(SPECS, chunks, IDENTITY, FACTS)

    def test_a_folder_that_is_gone(self, path):
        folder = path.parent / "gone"
        folder.mkdir()
        store = ZarrOutput(folder / "out.zarr").at()
        chunks = store.layout(GRID)
        folder.rmdir()
        with pytest.raises(OutputError, match="gone") as caught:
            store.begin(SPECS, chunks, IDENTITY, FACTS)
        assert "\n" not in str(caught.value)

    def test_nothing_is_there_before_it_begins(self, path):
        store = ZarrOutput(path).at()
        store.layout(GRID)
        assert os.listdir(path.parent) == []

    def test_an_output_that_is_removed_while_it_is_written(self, path):
        store, chunks, _ = begun(path)
        subprocess.run(["rm", "-r", str(path)], check=True)
        with pytest.raises(WriteError, match="No such file or directory"):
            write(store, chunks, values_of(SPECS), [0])
        with pytest.raises(WriteError, match="No such file or directory"):
            store.finish(PARTIAL)


class TestRoom:
    def test_too_small_a_disk_is_said_before(self, path):
        grid = PatchGrid.regular((20_000,) * 3, (128, 128, 128))
        line = refusal(path, grid=grid, chunk_size=None)
        # 2 channels of float32, and 1/4 + 1/16 of them until Z is halved as well
        assert "takes 7" in line
        assert "TiB and its disk has" in line
        assert os.listdir(path.parent) == []

    def test_integers_are_taken_to_shrink(self, path):
        grid = PatchGrid.regular((20_000,) * 3, (128, 128, 128))
        specs = {"main": ArraySpec(4, np.dtype("uint8"))}
        facts = {"status": "running"}
        line = refusal(path, specs=specs, grid=grid, chunk_size=None, facts=facts)
        assert f"takes {20_000**3 * 8 / 7 / 2**40:.3f}" in line

    def test_full_disk(self, small_disk):
        path = small_disk / "out.zarr"
        grid = PatchGrid.regular((8, 128, 512), (8, 64, 64))
        specs = {"main": ArraySpec(2, np.dtype("uint8"))}
        store, chunks, _ = begun(path, specs, grid)
        noise = np.random.default_rng(0).integers(0, 256, (2, 8, 128, 512)).astype(np.uint8)
        with pytest.raises(WriteError) as caught:
            write(store, chunks, {"main": noise}, range(len(chunks)))
        assert str(caught.value) == (
            f"{path} could not be written: No space left on device: "
            "free space or choose another place"
        )
        store.close()
        flat = np.full((2, 8, 128, 512), 3, np.uint8)
        store, chunks, finished = begun(path, specs, grid, resume=True)
        assert set(finished) < set(range(4))
        for index in finished:  # they are whole
            part = (slice(None), *chunks[index].slices)
            np.testing.assert_array_equal(store.read("main", chunks[index]), noise[part])
        write(store, chunks, {"main": flat}, sorted(set(range(4)) - set(finished)))
        store.finish(COMPLETE)
        assert facts_of(path)["status"] == "complete"

    def test_file_size_limit(self, path):
        resource = pytest.importorskip("resource", reason="needs RLIMIT_FSIZE")
        store, chunks, _ = begun(path)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(WriteError, match="File too large: free space"):
                write(store, chunks, values_of(SPECS), [0])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        store.close()
        assert set(begun(path, resume=True)[2]) == set()


WORKER = """
import sys
from pathlib import Path
import numpy as np

sys.path.insert(0, str(Path(sys.argv[5]).parent))
from test_zarr_store import GRID, MANY, ZarrOutput, zarr_layout

zarr_layout.UNIT_VOXELS = 8 * 128 * 128
path, first, step = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
values = {name.replace("|", "/"): each for name, each in np.load(sys.argv[4]).items()}
store = ZarrOutput(path, resume=True, chunk_size=(8, 64, 64)).at()
chunks = store.layout(GRID)
store.attach(MANY, chunks)
for index in range(first, len(chunks), step):
    box = chunks[index]
    store.write(index, box, {name: each[:, *box.slices] for name, each in values.items()})
"""


@pytest.fixture
def worker(path, tmp_path):
    """Return what starts another process that writes every so-manieth chunk of MANY."""
    (tmp_path / "worker.py").write_text(WORKER)
    voxels = {name.replace("/", "|"): each for name, each in values_of(MANY).items()}
    np.savez(tmp_path / "values.npz", **voxels)

    def start(first, step):
        arguments = [tmp_path / "worker.py", path, first, step, tmp_path / "values.npz", __file__]
        return subprocess.Popen([sys.executable, *map(str, arguments)])

    return start


class TestProcesses:
    def test_two_write_different_chunks(self, path, tmp_path, worker):
        values = written(tmp_path / "whole.zarr", MANY)
        main, _, _ = begun(path, MANY)
        workers = [worker(first, 2) for first in range(2)]
        assert [each.wait(timeout=120) for each in workers] == [0, 0]
        for name, each in values.items():
            np.testing.assert_array_equal(main.read(name, Box.of_shape(SHAPE)), each)
        before = set(tree(path / "1"))
        main.finish(COMPLETE)
        assert set(tree(path / "1")) == before  # the workers have built all of it
        for folder in ("0", "1", "labels", "heads", "spread"):
            assert tree(path / folder) == tree(tmp_path / "whole.zarr" / folder)

    @pytest.mark.parametrize(
        "wanted", [5, *(pytest.param(each, marks=pytest.mark.slow) for each in (1, 17))]
    )
    def test_killed_while_it_writes(self, path, tmp_path, worker, wanted):
        whole, journal = tmp_path / "whole.zarr", path.with_name("out.zarr.run")
        values = written(whole, MANY)
        begun(path, MANY)
        process = worker(0, 1)
        while process.poll() is None:
            if sum(log.stat().st_size for log in journal.glob("finished-*.log")) >= 2 * wanted:
                process.kill()
        process.wait()
        store, chunks, finished = begun(path, MANY, resume=True)
        assert len(finished) >= min(wanted, 10)
        for name, each in values.items():
            for index in finished:
                part = (slice(None), *chunks[index].slices)
                np.testing.assert_array_equal(store.read(name, chunks[index]), each[part])
        write(store, chunks, values, sorted(set(range(27)) - set(finished)))
        store.finish(COMPLETE)
        for folder in ("0", "1", "labels", "heads", "spread"):
            assert tree(path / folder) == tree(whole / folder)

    def test_one_that_joined_can_finish(self, path):
        store, chunks, _ = begun(path)
        joined = ZarrOutput(path, resume=True).at()
        joined.attach(SPECS, chunks)
        write(store, chunks, values_of(SPECS), range(27))
        store.close()
        joined.finish(COMPLETE)
        assert facts_of(path)["identity"] == json.loads(json.dumps(IDENTITY))
        assert set(begun(path, resume=True)[2]) == set(range(27))

    def test_nobody_has_begun(self, path):
        chunks = ZarrOutput(path).at().layout(GRID)
        with pytest.raises(OutputError, match="holds no run"):
            ZarrOutput(path).at().attach(SPECS, chunks)

    def test_others_have_begun(self, path):
        _, chunks, _ = begun(path)
        with pytest.raises(OutputError, match="its arrays main channels is 2, now it is 3"):
            ZarrOutput(path, resume=True).at().attach(
                {"main": ArraySpec(3, np.dtype("float32"))}, chunks
            )
