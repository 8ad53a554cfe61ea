"""Zarr, N5 and precomputed on this machine, written by the libraries that own the formats."""

import contextlib
import json
import re
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorstore as ts
import zarr

from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import SourceError
from napari_seamless.engine.geometry import Geometry
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.source import read_patch
from napari_seamless.io.sources import open_series, open_source
from stored_volumes import CHANNELS, VOLUME, write_n5, write_ome, write_precomputed

BOX = Box((1, 3, 7), (4, 19, 29))
NANOMETERS = Geometry((40.0, 4.0, 8.0), (0.0, 0.0, 0.0), ("nanometer",) * 3)


def assert_holds(source, volume):
    """Assert that a source is the (C, Z, Y, X) volume, wholly and in part."""
    with contextlib.closing(source):
        assert source.shape == volume.shape
        whole = source.read(Box.of_shape(volume.shape[1:]))
        assert whole.dtype == volume.dtype
        np.testing.assert_array_equal(whole, volume)
        if volume.shape[1:] == VOLUME.shape:
            np.testing.assert_array_equal(source.read(BOX), volume[:, *BOX.slices])


def refusal(source):
    """Return the message that refuses a source, which must be one line."""
    with pytest.raises(SourceError) as caught:
        open_source(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestZarr:
    @pytest.mark.parametrize("inside", ["0", "x/y"])
    def test_an_array_has_nothing_in_it(self, tmp_path, inside):
        path = tmp_path / "a.zarr"
        zarr.create_array(path, data=VOLUME, chunks=(4, 4, 4))
        assert refusal(f"{path}::{inside}") == (
            f"{path}::{inside} is not there: {path} is an array; leave out '::{inside}'"
        )

    @pytest.mark.parametrize("zarr_format", [2, 3])
    @pytest.mark.parametrize(
        ("array", "expected"),
        [(VOLUME[0], VOLUME[None, :1]), (VOLUME, VOLUME[None]), (CHANNELS, CHANNELS)],
    )
    def test_an_array(self, tmp_path, zarr_format, array, expected):
        path = tmp_path / "a.zarr"
        zarr.create_array(path, data=array, chunks=(4,) * array.ndim, zarr_format=zarr_format)
        source = open_source(path)
        assert source.name == str(path)
        assert source.chunk_size == ((1, 4, 4) if array.ndim == 2 else (4, 4, 4))
        assert source.geometry == Geometry()
        assert source.time is None
        assert_holds(source, expected)

    def test_chunks_in_shards_are_read_one_by_one(self, tmp_path):
        zarr.create_array(tmp_path / "a.zarr", data=VOLUME, chunks=(2, 8, 8), shards=(4, 16, 16))
        source = open_source(tmp_path / "a.zarr")
        assert source.chunk_size == (2, 8, 8)
        assert_holds(source, VOLUME[None])

    def test_a_folder_needs_no_suffix(self, tmp_path):
        zarr.create_array(tmp_path / "stack", data=VOLUME)
        assert_holds(open_source(tmp_path / "stack"), VOLUME[None])
        assert_holds(open_source(f"zarr://{tmp_path / 'stack'}"), VOLUME[None])

    @pytest.mark.parametrize("zarr_format", [2, 3])
    @pytest.mark.parametrize("separator", ["::", "/"])
    def test_an_array_in_a_group(self, tmp_path, zarr_format, separator):
        group = zarr.create_group(tmp_path / "a.zarr", zarr_format=zarr_format)
        group.create_array("deep/raw", data=VOLUME)
        group.create_array("other", data=VOLUME + 1)
        assert_holds(open_source(f"{tmp_path / 'a.zarr'}{separator}deep/raw"), VOLUME[None])

    def test_the_only_array_needs_no_name(self, tmp_path):
        zarr.create_group(tmp_path / "a.zarr").create_array("deep/raw", data=VOLUME)
        assert_holds(open_source(tmp_path / "a.zarr"), VOLUME[None])

    def test_which_of_several(self, tmp_path):
        group = zarr.create_group(tmp_path / "a.zarr")
        for name in ("raw", "deep/both"):
            group.create_array(name, data=VOLUME)
        path = tmp_path / "a.zarr"
        assert refusal(path) == (
            f"{path} needs '::array' to say which array to read; {path} has deep/both, raw"
        )
        assert refusal(f"{path}::nope") == (
            f"{path}::nope holds no array; {path} has deep/both, raw"
        )

    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_names_of_axes_are_heeded(self, tmp_path, zarr_format):
        names = ("y", "x", "c", "z")
        array = zarr.create_array(
            tmp_path / "a.zarr",
            data=np.ascontiguousarray(CHANNELS.transpose(2, 3, 0, 1)),
            chunks=(6, 7, 2, 3),
            zarr_format=zarr_format,
            dimension_names=names if zarr_format == 3 else None,
        )
        if zarr_format == 2:
            array.attrs["_ARRAY_DIMENSIONS"] = list(names)
        source = open_source(tmp_path / "a.zarr")
        assert source.chunk_size == (3, 6, 7)
        assert_holds(source, CHANNELS)

    def test_other_names_of_axes_say_nothing(self, tmp_path):
        zarr.create_array(tmp_path / "a.zarr", data=VOLUME, dimension_names=("row", "q", None))
        assert_holds(open_source(tmp_path / "a.zarr"), VOLUME[None])

    def test_a_chunk_that_is_not_there_is_the_fill_value(self, tmp_path):
        array = zarr.create_array(
            tmp_path / "a.zarr", shape=(4, 4, 4), chunks=(2, 4, 4), dtype="u1", fill_value=7
        )
        array[:2] = 1
        with contextlib.closing(open_source(tmp_path / "a.zarr")) as source:
            whole = source.read(Box.of_shape((4, 4, 4)))
        assert (whole[0, :2] == 1).all()
        assert (whole[0, 2:] == 7).all()

    def test_a_damaged_chunk_is_an_error_at_its_place(self, tmp_path):
        path = tmp_path / "a.zarr"
        zarr.create_array(path, data=VOLUME, chunks=(1, 20, 30))
        (path / "c" / "3" / "0" / "0").write_bytes(b"damage")
        with contextlib.closing(open_source(path)) as source:
            for read in (source.read, lambda box: read_patch(source, box, "reflect")):
                with pytest.raises(SourceError) as caught:
                    read(Box((2, 0, 0), (4, 20, 30)))
                message = str(caught.value)
                assert message.startswith(f"{path} cannot be read at (2, 0, 0) to (4, 20, 30) (Z, ")
                assert "c/3/0/0" in message
                assert "kvstore" not in message
                assert message.count("cannot be read") == 1
            np.testing.assert_array_equal(source.read(Box((2, 0, 0), (3, 20, 30)))[0], VOLUME[2:3])

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("{", "zarr.json is damaged: it is no JSON"),
            ("[]", "holds no array"),
            ('{"zarr_format": 3, "node_type": "array", "shape": [3]}', "cannot be opened: "),
        ],
    )
    def test_damaged_metadata(self, tmp_path, content, said):
        (tmp_path / "a.zarr").mkdir()
        (tmp_path / "a.zarr" / "zarr.json").write_text(content)
        assert said in refusal(tmp_path / "a.zarr")

    def test_what_is_no_number_is_refused(self, tmp_path):
        zarr.create_array(tmp_path / "a.zarr", data=np.zeros((4, 4), "c8"))
        assert "a.zarr holds complex64; it must hold" in refusal(tmp_path / "a.zarr")

    def test_more_axes_than_a_series_has(self, tmp_path):
        zarr.create_array(tmp_path / "a.zarr", data=np.zeros((1,) * 6, "u1"))
        assert "a.zarr has shape (1, 1, 1, 1, 1, 1); it must be" in refusal(tmp_path / "a.zarr")


class TestOMEZarr:
    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    def test_finest_level_with_its_geometry(self, tmp_path, version):
        source = open_source(write_ome(tmp_path / "a.zarr", version))
        assert source.geometry == NANOMETERS
        assert_holds(source, CHANNELS)

    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    @pytest.mark.parametrize("name", ["1", "s1"])
    def test_another_level(self, tmp_path, version, name):
        source = open_source(f"{write_ome(tmp_path / 'a.zarr', version)}::{name}")
        assert source.geometry == Geometry((40.0, 8.0, 16.0), (0.0, 2.0, 4.0), ("nanometer",) * 3)
        assert_holds(source, CHANNELS[..., ::2, ::2])

    def test_no_such_level(self, tmp_path):
        path = write_ome(tmp_path / "a.zarr", "0.5")
        assert refusal(f"{path}::2") == f"{path} has nothing called '2'; its levels are 0 to 1"
        assert "has nothing called 'nope'" in refusal(f"{path}::nope")

    @pytest.mark.parametrize(
        ("axes", "array", "expected"),
        [
            ("zyx", VOLUME, VOLUME[None]),
            ("yx", VOLUME[0], VOLUME[None, :1]),
            ("zcyx", CHANNELS.swapaxes(0, 1), CHANNELS),
            ("tczyx", CHANNELS[None], CHANNELS),
            ("cyx", CHANNELS[:, 0], CHANNELS[:, :1]),
        ],
    )
    def test_axes(self, tmp_path, axes, array, expected):
        path = write_ome(tmp_path / "a.zarr", "0.4", axes, array)
        source = open_source(path)
        assert source.geometry.scale == (40.0 if "z" in axes else 1.0, 4.0, 8.0)
        assert_holds(source, expected)

    def test_an_image_in_a_group(self, tmp_path):
        zarr.create_group(tmp_path / "a.zarr")
        write_ome(tmp_path / "a.zarr" / "labels" / "cells", "0.5")
        source = open_source(f"{tmp_path / 'a.zarr'}::labels/cells")
        assert source.geometry == NANOMETERS
        assert_holds(source, CHANNELS)

    def test_first_image_of_a_conversion(self, tmp_path):
        group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
        group.attrs["bioformats2raw.layout"] = 3
        for number in (0, 1):
            write_ome(tmp_path / "a.zarr" / str(number), "0.4", array=CHANNELS + number)
        assert_holds(open_source(tmp_path / "a.zarr"), CHANNELS)
        assert_holds(open_source(f"{tmp_path / 'a.zarr'}::1"), CHANNELS + 1)

    def test_transformation_of_all_levels(self, tmp_path):
        path = write_ome(tmp_path / "a.zarr", "0.4")
        about = json.loads((path / ".zattrs").read_text())
        about["multiscales"][0]["coordinateTransformations"] = [
            {"type": "scale", "scale": [1, 0.5, 3, 2]},
            {"type": "translation", "translation": [0, 5, 6, 7]},
        ]
        (path / ".zattrs").write_text(json.dumps(about))
        geometry = open_source(f"{path}::1").geometry
        assert geometry.scale == (20.0, 24.0, 32.0)
        assert geometry.translation == (5.0, 2.0 * 3 + 6, 4.0 * 2 + 7)

    def test_axes_that_cannot_be_understood(self, tmp_path):
        path = write_ome(tmp_path / "a.zarr", "0.4")
        about = json.loads((path / ".zattrs").read_text())
        about["multiscales"][0]["axes"][0] = {"name": "angle"}
        (path / ".zattrs").write_text(json.dumps(about))
        assert re.search(
            r"a\.zarr describes its levels in a way .*axes \['angle', 'z', 'y', 'x'\] are not of",
            refusal(path),
        )
        assert_holds(open_source(f"{path / 's0'}"), CHANNELS)

    def test_metadata_of_another_array(self, tmp_path):
        path = write_ome(tmp_path / "a.zarr", "0.4", "zyx", CHANNELS)
        assert "has 4 axes, shape (2, 5, 20, 30), but its metadata names 3" in refusal(path)

    def test_a_level_that_is_missing(self, tmp_path):
        path = write_ome(tmp_path / "a.zarr", "0.5")
        (path / "s0" / "zarr.json").unlink()
        assert "a.zarr cannot be opened: NOT_FOUND" in refusal(path)


class TestN5:
    @pytest.mark.parametrize(("array", "expected"), [(VOLUME, VOLUME[None]), (CHANNELS, CHANNELS)])
    def test_dataset(self, tmp_path, array, expected):
        write_n5(tmp_path / "a.n5" / "deep" / "raw", array)
        source = open_source(f"{tmp_path / 'a.n5'}::deep/raw")
        assert source.chunk_size == (5, 8, 8)
        assert_holds(source, expected)
        assert_holds(open_source(tmp_path / "a.n5"), expected)
        assert_holds(open_source(tmp_path / "a.n5" / "deep" / "raw"), expected)

    @pytest.mark.parametrize(
        "attributes",
        [
            {"resolution": [8, 4, 40], "units": ["nm"] * 3},
            {"resolution": [8, 4, 40], "units": ["nm"] * 3, "axes": ["x", "y", "z"]},
            {"resolution": [40, 4, 8], "units": ["nm"] * 3, "axes": ["z", "y", "x"]},
            {"pixelResolution": {"dimensions": [8, 4, 40], "unit": "nm"}},
            {"pixelResolution": [8, 4, 40], "unit": "nm"},
            {
                "transform": {
                    "axes": ["z", "y", "x"],
                    "scale": [40, 4, 8],
                    "translate": [0, 0, 0],
                    "units": ["nm"] * 3,
                }
            },
        ],
        ids=["bare", "axes", "axes-c", "viewer", "list", "cosem"],
    )
    def test_geometry(self, tmp_path, attributes):
        source = open_source(write_n5(tmp_path / "a.n5" / "raw", VOLUME, attributes))
        assert source.geometry == NANOMETERS
        assert_holds(source, VOLUME[None])

    @pytest.mark.parametrize(
        ("axes", "order"), [(["x", "y", "c", "z"], "zcyx"), (["z", "c", "y", "x"], "zcyx")]
    )
    def test_axes(self, tmp_path, axes, order):
        array = CHANNELS.transpose(["czyx".index(axis) for axis in order])
        path = write_n5(tmp_path / "a.n5" / "raw", array, {"axes": axes})
        assert_holds(open_source(path), CHANNELS)

    def test_levels(self, tmp_path):
        path = tmp_path / "a.n5" / "setup0"
        write_n5(path / "s0", VOLUME)
        write_n5(path / "s1", VOLUME[:, ::2, ::2], {"downsamplingFactors": [2, 2, 1]})
        (path / "attributes.json").write_text(
            json.dumps({"pixelResolution": {"dimensions": [8, 4, 40], "unit": "nm"}})
        )
        source = open_source(f"{tmp_path / 'a.n5'}::setup0")
        assert source.geometry == NANOMETERS
        assert_holds(source, VOLUME[None])
        coarse = open_source(f"{tmp_path / 'a.n5'}::setup0/1")
        assert coarse.geometry == Geometry((40.0, 8.0, 16.0), (0.0, 2.0, 4.0), ("nanometer",) * 3)
        assert_holds(coarse, VOLUME[None, :, ::2, ::2])

    def test_a_damaged_block_is_an_error_at_its_place(self, tmp_path):
        path = write_n5(tmp_path / "a.n5" / "raw", VOLUME)
        (path / "1" / "0" / "0").write_bytes(b"damage")
        with contextlib.closing(open_source(path)) as source:
            with pytest.raises(SourceError, match=r"raw cannot be read at \(0, 0, 8\) to .*1/0/0"):
                source.read(Box((0, 0, 8), (5, 8, 16)))
            box = Box((0, 0, 0), (5, 20, 8))
            np.testing.assert_array_equal(source.read(box)[0], VOLUME[box.slices])


class TestPrecomputed:
    @pytest.mark.parametrize("prefix", ["", "precomputed://", "precomputed://file://"])
    def test_axes_offset_and_geometry(self, tmp_path, prefix):
        path = write_precomputed(tmp_path / "pre", CHANNELS)
        source = open_source(f"{prefix}{path}")
        assert source.chunk_size == (4, 8, 8)
        assert source.geometry == Geometry(
            (40.0, 4.0, 8.0), (7 * 40.0, 50 * 4.0, 100 * 8.0), ("nanometer",) * 3
        )
        assert_holds(source, CHANNELS)

    def test_another_resolution(self, tmp_path):
        path = write_precomputed(tmp_path / "pre", CHANNELS)
        info = json.loads((path / "info").read_text())
        scale = info["scales"][0]
        coarse = {**scale, "key": "coarse", "size": [15, 10, 5], "resolution": [16, 8, 40]}
        info["scales"].append({**coarse, "voxel_offset": [50, 25, 7]})
        (path / "info").write_text(json.dumps(info))
        source = open_source(f"{path}::1")
        assert source.shape == (2, 5, 10, 15)
        assert source.geometry.scale == (40.0, 8.0, 16.0)
        assert "has nothing called '2'; its levels are 0 to 1" in refusal(f"{path}::2")


def bytes_read() -> int:
    """Return how many bytes this process has read from files."""
    return int(Path("/proc/self/io").read_text(encoding="ascii").split()[1])


class TestCache:
    @pytest.fixture(params=["zarr", "n5", "h5"])
    def source(self, request, tmp_path):
        path = tmp_path / f"a.{request.param}"
        if request.param == "zarr":
            zarr.create_array(path, data=VOLUME, chunks=(2, 8, 8))
        elif request.param == "n5":
            write_n5(path, VOLUME)
        else:
            with h5py.File(path, "w") as file:
                file.create_dataset("raw", data=VOLUME, chunks=(2, 8, 8), compression="gzip")
        with contextlib.closing(open_source(path)) as source:
            yield source

    @pytest.mark.parametrize("nbytes", [0, 1, 300, 1 << 20])
    def test_what_is_kept_does_not_change_what_is_read(self, source, nbytes):
        source.keep(nbytes)
        for _ in range(2):
            np.testing.assert_array_equal(source.read(BOX)[0], VOLUME[BOX.slices])

    def test_many_threads_read_at_once_while_what_is_kept_changes(self, source):
        wrong = []

        def read():
            for _ in range(20):
                if not np.array_equal(source.read(BOX)[0], VOLUME[BOX.slices]):
                    wrong.append(True)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for nbytes in (1000, 0, 5000):
            source.keep(nbytes)
        for thread in threads:
            thread.join()
        assert not wrong

    @pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs /proc to count bytes")
    @pytest.mark.parametrize("kind", ["zarr", "shards", "h5"])
    def test_a_pass_of_patches_decodes_each_chunk_once(self, tmp_path, kind):
        volume = np.random.default_rng(0).integers(0, 255, (48, 100, 100), dtype=np.uint8)
        chunk, path = (10, 24, 24), tmp_path / f"large.{kind.replace('shards', 'zarr')}"
        if kind == "h5":
            with h5py.File(path, "w") as file:
                file.create_dataset("raw", data=volume, chunks=chunk, compression="gzip")
        else:
            shards = (20, 48, 72) if kind == "shards" else None
            zarr.create_array(path, data=volume, chunks=chunk, shards=shards)
        files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
        stored = sum(each.stat().st_size for each in files)
        with contextlib.closing(open_source(path)) as source:
            layer, row = 10 * 120 * 120, 10 * 24 * 120
            source.keep(3 * layer + row)  # patches of 16 planes touch up to 3 layers
            before = bytes_read()
            for box in PatchGrid.regular(volume.shape, (16, 32, 40), 0.5):
                source.read(box)
            assert bytes_read() - before < 1.1 * stored
            source.keep(row)
            before = bytes_read()
            for box in PatchGrid.regular(volume.shape, (16, 32, 40), 0.5):
                source.read(box)
            assert bytes_read() - before > 2 * stored

    def test_reading_after_closing_is_an_error(self, source):
        source.close()
        source.close()
        with pytest.raises(SourceError):
            source.read(BOX)


class TestSeries:
    MOVIE = np.arange(3 * 2 * 5 * 20 * 30, dtype=np.uint16).reshape(3, 2, 5, 20, 30)

    @pytest.mark.parametrize("axes", ["tczyx", "cztyx"])
    def test_of_ome_zarr(self, tmp_path, axes):
        array = self.MOVIE.transpose(["tczyx".index(axis) for axis in axes])
        path = write_ome(tmp_path / "movie.zarr", "0.5", axes, array)
        sources = open_series(path)
        assert [source.name for source in sources] == [f"{path} t={t}" for t in range(3)]
        assert [source.time for source in sources] == [0, 1, 2]
        assert {source.geometry for source in sources} == {NANOMETERS}
        for source, volume in zip(sources, self.MOVIE, strict=True):
            assert_holds(source, volume)

    def test_without_channels(self, tmp_path):
        path = write_ome(tmp_path / "movie.zarr", "0.4", "tzyx", self.MOVIE[:, 0])
        _, source = open_series(path, time_points=[0, 2])
        assert_holds(source, self.MOVIE[2, :1])


class TestHanded:
    """Arrays that are open already."""

    def test_tensorstore(self, tmp_path):
        path = write_precomputed(tmp_path / "pre", CHANNELS)
        spec = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{path}/"}
        store = ts.open(spec).result().T  # (C, Z, Y, X), from (0, 7, 50, 100)
        source = open_source(store)
        assert source.chunk_size == (4, 8, 8)
        assert_holds(source, CHANNELS)

    def test_zarr(self, tmp_path):
        array = zarr.create_array(tmp_path / "a.zarr", data=VOLUME, chunks=(2, 8, 8))
        source = open_source(array)
        assert source.chunk_size == (2, 8, 8)
        assert_holds(source, VOLUME[None])
