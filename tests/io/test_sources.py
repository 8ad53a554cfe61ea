import contextlib
import re
import subprocess
import sys

import dask.array
import h5py
import numpy as np
import pytest
import tifffile
import zarr

from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import SourceError
from napari_seamless.engine.source import ArraySource, read_patch
from napari_seamless.io.sources import open_source, open_sources

VOLUME = np.arange(5 * 20 * 30, dtype=np.uint16).reshape(5, 20, 30)
CHANNELS = np.arange(2 * 5 * 20 * 30, dtype=np.uint16).reshape(2, 5, 20, 30)
BOX = Box((1, 3, 7), (4, 19, 29))


def assert_holds(source, volume):
    """Assert that a source is the (C, Z, Y, X) volume, wholly and in part."""
    with contextlib.closing(source):
        assert source.shape == volume.shape
        whole = source.read(Box.of_shape(volume.shape[1:]))
        assert whole.dtype.newbyteorder("=") == volume.dtype
        np.testing.assert_array_equal(whole, volume)
        if volume.shape[1:] == VOLUME.shape:
            np.testing.assert_array_equal(source.read(BOX), volume[:, *BOX.slices])


def is_mapped(region):
    """Return whether a region is a view of a file mapped into memory."""
    while region is not None and not isinstance(region, np.memmap):
        region = region.base
    return region is not None


def refusal(source):
    """Return the message that refuses a source, which must be one line."""
    with pytest.raises(SourceError) as caught:
        open_source(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def hdf5(tmp_path):
    path = tmp_path / "stack.h5"
    with h5py.File(path, "w") as file:
        file["raw"] = VOLUME
        file["deep/both"] = CHANNELS
        file["plane"] = VOLUME[0]
    return path


class TestArrays:
    @pytest.mark.parametrize(
        "wrap",
        [
            np.asarray,
            lambda array: dask.array.from_array(array, chunks=4),
            lambda array: zarr.array(array, chunks=(2, 8, 8)),
        ],
        ids=["numpy", "dask", "zarr"],
    )
    def test_array_like(self, wrap):
        source = open_source(wrap(VOLUME))
        assert source.name == "the volume"
        assert_holds(source, VOLUME[None])

    def test_hdf5_dataset(self, hdf5):
        with h5py.File(hdf5) as file:
            assert_holds(open_source(file["raw"], "raw"), VOLUME[None])

    def test_a_source_is_returned_as_it_is(self):
        source = ArraySource(VOLUME)
        assert open_source(source) is source

    def test_anything_else_is_refused(self):
        assert refusal(42) == (
            "the volume is a int; give an array (Y, X), (Z, Y, X) or (C, Z, Y, X)"
        )

    def test_complex_is_refused(self):
        assert "holds complex64; it must hold" in refusal(VOLUME.astype("c8"))


class TestHDF5:
    def test_named_dataset(self, hdf5):
        source = open_source(f"{hdf5}::raw")
        assert source.name == f"{hdf5}::raw"
        assert_holds(source, VOLUME[None])

    @pytest.mark.parametrize("suffix", [".hdf5", ".hdf", ".H5"])
    def test_every_suffix(self, hdf5, suffix):
        assert_holds(open_source(f"{hdf5.rename(hdf5.with_suffix(suffix))}::raw"), VOLUME[None])

    def test_four_and_two_axes(self, hdf5):
        assert_holds(open_source(f"{hdf5}::deep/both"), CHANNELS)
        assert_holds(open_source(f"{hdf5}::/plane"), VOLUME[None, :1])

    def test_only_dataset_needs_no_name(self, tmp_path):
        path = tmp_path / "one.h5"
        with h5py.File(path, "w") as file:
            file["volumes/raw"] = VOLUME
        source = open_source(path)
        assert source.name == f"{path}::volumes/raw"
        assert_holds(source, VOLUME[None])

    def test_name_is_the_callers(self, hdf5):
        with contextlib.closing(open_source(f"{hdf5}::raw", "cells")) as source:
            assert source.name == "cells"

    def test_which_of_several(self, hdf5):
        assert refusal(hdf5) == (
            f"{hdf5} needs '::dataset' to say which dataset to read; "
            "it has deep/both (2, 5, 20, 30), plane (20, 30), raw (5, 20, 30)"
        )

    @pytest.mark.parametrize("name", ["nope", "deep", "raw/nope"])
    def test_no_such_dataset(self, hdf5, name):
        assert refusal(f"{hdf5}::{name}").startswith(
            f"{hdf5} has no dataset {name!r}; it has deep/both (2, 5, 20, 30), plane (20, 30), raw"
        )

    def test_many_datasets_are_not_all_named(self, tmp_path):
        with h5py.File(tmp_path / "many.h5", "w") as file:
            for index in range(14):
                file[f"d{index:02}"] = VOLUME[0]
        message = refusal(tmp_path / "many.h5")
        assert message.endswith("d09 (20, 30) and 4 more")

    def test_no_datasets(self, tmp_path):
        h5py.File(tmp_path / "none.h5", "w").close()
        assert refusal(tmp_path / "none.h5").endswith("; it has none")

    def test_empty_datasets(self, tmp_path):
        with h5py.File(tmp_path / "empty.h5", "w") as file:
            file["null"] = h5py.Empty("f4")
            file["zero"] = np.zeros((0, 4, 4))
        assert refusal(f"{tmp_path / 'empty.h5'}::null").endswith("null is empty")
        assert "shape (0, 4, 4)" in refusal(f"{tmp_path / 'empty.h5'}::zero")

    def test_not_hdf5(self, tmp_path):
        path = tmp_path / "text.h5"
        path.write_text("not HDF5")
        assert re.match(r".*text\.h5 is damaged or no HDF5 file: .*signature", refusal(path))

    def test_cut_short(self, hdf5):
        hdf5.write_bytes(hdf5.read_bytes()[:3000])
        assert "is damaged or no HDF5 file" in refusal(f"{hdf5}::raw")

    @pytest.mark.parametrize("dataset", ["raw", "nope", "text"])
    def test_file_is_closed(self, hdf5, dataset):
        with h5py.File(hdf5, "a") as file:
            file["text"] = "words"
        with contextlib.suppress(SourceError):
            open_source(f"{hdf5}::{dataset}").close()
        h5py.File(hdf5, "a").close()  # refused while the file is open for reading

    def test_damaged_chunk_is_an_error_at_its_place(self, tmp_path):
        path = tmp_path / "chunks.h5"
        with h5py.File(path, "w") as file:
            data = file.create_dataset("raw", data=VOLUME, chunks=(1, 20, 30), fletcher32=True)
            offset = data.id.get_chunk_info(3).byte_offset
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(b"damage")
        with contextlib.closing(open_source(path)) as source:
            with pytest.raises(SourceError, match=r"raw cannot be read at \(3, 0, 0\) to \(4, 2"):
                read_patch(source, Box((3, 0, 0), (4, 20, 30)), "reflect")
            np.testing.assert_array_equal(source.read(Box((2, 0, 0), (3, 20, 30)))[0], VOLUME[2:3])


class TestTIFF:
    """Axes as tifffile's letters; what is written is what must come out as (C, Z, Y, X)."""

    @pytest.mark.parametrize("compression", [None, "zlib"])
    @pytest.mark.parametrize(
        ("array", "axes", "expected"),
        [
            (VOLUME[0], "YX", VOLUME[None, :1]),
            (VOLUME, "ZYX", VOLUME[None]),
            (VOLUME, "QYX", VOLUME[None]),
            (VOLUME, "TYX", VOLUME[None]),
            (VOLUME, "CYX", VOLUME[:, None]),
            (CHANNELS, "CZYX", CHANNELS),
            (CHANNELS, "QQYX", CHANNELS),
            (CHANNELS.swapaxes(0, 1), "ZCYX", CHANNELS),
            (CHANNELS[:, :1], "CZYX", CHANNELS[:, :1]),
            (CHANNELS[:1], "CZYX", CHANNELS[:1]),
            (CHANNELS[:, :, :, :1], "CZYX", CHANNELS[:, :, :, :1]),
        ],
    )
    def test_axes(self, tmp_path, array, axes, expected, compression):
        tifffile.imwrite(
            tmp_path / "a.tif",
            np.ascontiguousarray(array),
            photometric="minisblack",
            metadata={"axes": axes},
            compression=compression,
        )
        source = open_source(tmp_path / "a.tif")
        assert source.name == str(tmp_path / "a.tif")
        assert_holds(source, expected)

    @pytest.mark.parametrize(
        "options",
        [
            {"metadata": None},
            {"byteorder": ">"},
            {"tile": (16, 16)},
            {"tile": (16, 16, 16), "volumetric": True},
            {"imagej": True, "metadata": {"axes": "ZYX"}},
            {"ome": True, "metadata": {"axes": "ZYX"}},
            {"bigtiff": True},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_kinds_of_tiff(self, tmp_path, options):
        path = tmp_path / "a.tiff"
        tifffile.imwrite(path, VOLUME, photometric="minisblack", **options)
        assert_holds(open_source(path), VOLUME[None])

    def test_pages_of_several_planes(self, tmp_path):
        planes = np.arange(2 * 4 * 8 * 8, dtype=np.uint8).reshape(2, 4, 8, 8)
        options = {"photometric": "rgb", "planarconfig": "separate", "metadata": {"axes": "CZYX"}}
        tifffile.imwrite(tmp_path / "a.tif", planes, compression="zlib", **options)
        assert_holds(open_source(tmp_path / "a.tif"), planes)

    def test_uncompressed_is_not_read_before_it_is_asked_for(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", VOLUME, photometric="minisblack")
        with contextlib.closing(open_source(tmp_path / "a.tif")) as source:
            assert is_mapped(source.read(BOX))

    def test_first_of_several_series(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
            tiff.write(VOLUME, photometric="minisblack")
            tiff.write(VOLUME[0, :3])
        assert_holds(open_source(tmp_path / "a.tif"), VOLUME[None])

    @pytest.mark.parametrize("shape", [(8, 8, 3), (5, 8, 8, 3)])
    def test_colour_is_refused(self, tmp_path, shape):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros(shape, np.uint8), photometric="rgb")
        assert re.search(
            r"holds colour \(axes Q?YXS, .*convert it to grey", refusal(tmp_path / "a.tif")
        )

    @pytest.mark.parametrize("axes", ["TZYX", "TCYX", "TZCYX"])
    def test_a_series_is_no_volume(self, tmp_path, axes):
        array = np.zeros((2, 3, 4, 8, 8)[-len(axes) :], np.uint8)
        tifffile.imwrite(
            tmp_path / "a.tif", array, photometric="minisblack", metadata={"axes": axes}
        )
        message = refusal(tmp_path / "a.tif")
        assert f"a.tif is a series of {len(array)} time points (axes {axes}, shape" in message
        assert message.endswith("choose one with time_points")

    def test_complex_is_refused(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.complex64))
        assert "holds complex64" in refusal(tmp_path / "a.tif")

    @pytest.mark.parametrize("size", [0, 5, 8, 200, 3000])
    def test_cut_short(self, tmp_path, size):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, VOLUME, photometric="minisblack")
        path.write_bytes(path.read_bytes()[:size])
        assert re.search("damaged or no TIFF file|holds no image", refusal(path))

    def test_compression_that_needs_a_package(self, tmp_path, monkeypatch):
        def asarray(self):
            raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

        tifffile.imwrite(tmp_path / "a.tif", VOLUME, photometric="minisblack", compression="zlib")
        monkeypatch.setattr(tifffile.TiffPage, "asarray", asarray)
        assert refusal(tmp_path / "a.tif").endswith("needs a package: pip install imagecodecs")

    def test_damaged_page_is_an_error_at_its_place(self, tmp_path):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, VOLUME, photometric="minisblack", compression="zlib")
        with tifffile.TiffFile(path) as tiff:
            offset = tiff.pages[3].dataoffsets[0]
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(b"damage")
        with contextlib.closing(open_source(path)) as source:
            with pytest.raises(SourceError, match=r"at \(3, 0, 0\) .*page 3 cannot be decoded"):
                read_patch(source, Box((3, 0, 0), (4, 20, 30)), "reflect")
            np.testing.assert_array_equal(source.read(Box((2, 0, 0), (3, 20, 30)))[0], VOLUME[2:3])


class TestNumPy:
    def test_it_is_mapped(self, tmp_path):
        np.save(tmp_path / "a.npy", VOLUME)
        source = open_source(tmp_path / "a.npy")
        assert is_mapped(source.read(BOX))
        assert_holds(source, VOLUME[None])

    def test_fortran_order(self, tmp_path):
        np.save(tmp_path / "a.npy", np.asfortranarray(VOLUME))
        assert_holds(open_source(str(tmp_path / "a.npy")), VOLUME[None])

    def test_no_pickle_is_read(self, tmp_path):
        np.save(tmp_path / "a.npy", np.array([{}], dtype=object))
        assert "is damaged or no NumPy file" in refusal(tmp_path / "a.npy")

    @pytest.mark.parametrize("content", [b"", b"hello", "half"])
    def test_damaged(self, tmp_path, content):
        path = tmp_path / "a.npy"
        np.save(path, VOLUME)
        path.write_bytes(path.read_bytes()[:3000] if content == "half" else content)
        assert "is damaged or no NumPy file" in refusal(path)

    def test_empty_array(self, tmp_path):
        np.save(tmp_path / "a.npy", np.zeros((0, 3, 3)))
        assert "it must be (Y, X)" in refusal(tmp_path / "a.npy")


class TestPaths:
    @pytest.mark.parametrize("name", ["nope.h5::raw", "nope.tif", "nope"])
    def test_no_such_file(self, tmp_path, name):
        assert refusal(tmp_path / name) == f"no such file: {tmp_path / name.partition('::')[0]}"

    def test_folder(self, tmp_path):
        assert refusal(tmp_path).startswith(
            f"{tmp_path} is a folder; give a file: FILE.h5::dataset"
        )

    @pytest.mark.parametrize(("name", "said"), [("a.png", "'.png'"), ("a", "'no suffix'")])
    def test_unknown_suffix(self, tmp_path, name, said):
        (tmp_path / name).write_bytes(b"something")
        assert refusal(tmp_path / name) == (
            f"{tmp_path / name} ends in {said}; "
            "it must be FILE.h5::dataset, .hdf5, .hdf, .tif, .tiff or .npy"
        )

    def test_dataset_of_a_file_that_has_none(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", VOLUME[0])
        assert refusal(f"{tmp_path / 'a.tif'}::raw").endswith("leave out '::raw'")


class TestSeveral:
    def test_one(self):
        (source,) = open_sources(VOLUME)
        assert_holds(source, VOLUME[None])

    @pytest.mark.parametrize("kind", [list, tuple])
    def test_list(self, hdf5, kind):
        given = ArraySource(CHANNELS, "given")
        sources = open_sources(kind([f"{hdf5}::raw", VOLUME, given]))
        assert [source.name for source in sources] == [f"{hdf5}::raw", "volume 1", "given"]
        assert_holds(sources[0], VOLUME[None])
        assert_holds(sources[1], VOLUME[None])
        assert_holds(sources[2], CHANNELS)

    def test_empty_list(self):
        with pytest.raises(SourceError, match="list of volumes is empty"):
            open_sources([])

    def test_those_opened_are_closed_when_one_fails(self, hdf5):
        given = ArraySource(VOLUME, "given")
        with pytest.raises(SourceError, match=r"no such file: nope\.h5"):
            open_sources([f"{hdf5}::raw", given, "nope.h5::raw"])
        h5py.File(hdf5, "a").close()  # refused while the file is open for reading
        assert_holds(given, VOLUME[None])  # not ours to close


def test_real_stack(real_data):
    with contextlib.closing(open_source(f"{real_data / 'vnc_stack1.h5'}::raw")) as source:
        assert source.shape == (1, 20, 1024, 1024)
        assert source.dtype == np.uint8
        box = Box((3, 250, 250), (6, 262, 270))
        with h5py.File(real_data / "vnc_stack1.h5") as file:
            np.testing.assert_array_equal(source.read(box)[0], file["raw"][box.slices])
    message = refusal(real_data / "vnc_stack1.h5")
    assert message.endswith("it has membranes (20, 1024, 1024), raw (20, 1024, 1024)")


def test_no_torch_is_imported():
    code = "import sys, napari_seamless.io.sources, napari_seamless.io.stores; "
    code += "sys.exit('torch' in sys.modules or 'zarr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["~nosuchuser/volume.h5", "x" * 5000 + ".h5"])
def test_a_name_that_no_file_can_have_is_refused_in_one_line(name):
    with pytest.raises(SourceError) as caught:
        open_source(name)
    assert "\n" not in str(caught.value)
