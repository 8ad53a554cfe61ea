"""Series: one source for each time point, over one open file."""

import contextlib

import dask.array
import h5py
import numpy as np
import pytest
import tifffile
import zarr

from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import SourceError
from napari_seamless.engine.source import ArraySource
from napari_seamless.io.sources import level_of, open_series, open_source, open_sources

MOVIE = np.arange(3 * 2 * 4 * 6 * 8, dtype=np.uint16).reshape(3, 2, 4, 6, 8)
WHOLE = Box.of_shape((4, 6, 8))


def write(path):
    match path.suffix:
        case ".h5":
            with h5py.File(path, "w") as file:
                file.create_dataset("movie", data=MOVIE, chunks=(1, 2, 2, 6, 8))
        case ".npy":
            np.save(path, MOVIE)
        case ".tif":
            tifffile.imwrite(
                path,
                MOVIE,
                photometric="minisblack",
                metadata={"axes": "TCZYX"},
                compression="zlib",
            )
        case ".zarr":
            zarr.create_array(path, data=MOVIE, chunks=(1, 2, 2, 6, 8))
    return path


def assert_holds(source, volume):
    assert source.shape == volume.shape
    np.testing.assert_array_equal(source.read(WHOLE), volume)
    box = Box((1, 2, 3), (3, 6, 7))
    np.testing.assert_array_equal(source.read(box), volume[:, *box.slices])


@pytest.mark.parametrize("name", ["movie.h5", "movie.npy", "movie.tif", "movie.zarr"])
class TestFiles:
    def test_every_time_point(self, tmp_path, name):
        sources = open_series(write(tmp_path / name))
        assert [source.time for source in sources] == [0, 1, 2]
        label = f"{tmp_path / name}::movie" if name.endswith("h5") else str(tmp_path / name)
        assert [source.name for source in sources] == [f"{label} t={t}" for t in range(3)]
        for source, volume in zip(sources, MOVIE, strict=True):
            with contextlib.closing(source):
                assert_holds(source, volume)

    def test_chosen_ones(self, tmp_path, name):
        second, first = open_series(write(tmp_path / name), "movie", time_points=[2, 0])
        assert (second.name, second.time) == ("movie t=2", 2)
        second.close()
        second.close()
        assert_holds(first, MOVIE[0])  # the file is still open
        first.close()
        if name.endswith("h5"):
            h5py.File(tmp_path / name, "a").close()  # refused while the file is open for reading

    def test_it_is_no_volume(self, tmp_path, name):
        with pytest.raises(SourceError, match=r"3 time points \(axes TCZYX, .*with time_points$"):
            open_source(write(tmp_path / name))
        if name.endswith("h5"):
            h5py.File(tmp_path / name, "a").close()

    @pytest.mark.parametrize(
        ("times", "said"),
        [([3], "has no time point 3; it has 3, 0 to 2"), ([-1], "no time point -1"), ([], "asked")],
    )
    def test_no_such_time_point(self, tmp_path, name, times, said):
        with pytest.raises(SourceError, match=said):
            open_series(write(tmp_path / name), time_points=times)
        if name.endswith("h5"):
            h5py.File(tmp_path / name, "a").close()


class TestArrays:
    @pytest.mark.parametrize("wrap", [np.asarray, dask.array.asarray], ids=["numpy", "dask"])
    def test_five_axes(self, wrap):
        sources = open_series(wrap(MOVIE))
        assert sources[1].name == "the volume t=1"
        assert_holds(sources[1], MOVIE[1])

    def test_a_single_time_point_is_a_volume(self):
        source = open_source(MOVIE[:1], "one")
        assert (source.name, source.time) == ("one", None)
        assert_holds(source, MOVIE[0])
        (chosen,) = open_series(MOVIE[:1], time_points=[0])
        assert chosen.time == 0

    def test_a_volume_has_no_time_points(self):
        (source,) = open_series(MOVIE[0])
        assert source.time is None
        with pytest.raises(SourceError, match="the volume has no time axis"):
            open_series(MOVIE[0], time_points=[0])
        with pytest.raises(SourceError, match="given is one volume"):
            open_series(ArraySource(MOVIE[0], "given"), time_points=[0])

    def test_six_axes(self):
        with pytest.raises(SourceError, match=r"shape \(1, 3, 2, 4, 6, 8\); it must be"):
            open_series(MOVIE[None])

    def test_chunks_as_stored(self):
        source = open_series(dask.array.from_array(MOVIE, chunks=(1, 2, 3, 4, 5)))[0]
        assert source.chunk_size == (3, 4, 5)
        assert open_source(MOVIE[0]).chunk_size == (4, 6, 8)


def test_a_series_in_a_list_is_as_many_volumes(tmp_path):
    given = ArraySource(MOVIE[0], "given")
    sources = open_sources([MOVIE[2], write(tmp_path / "movie.zarr"), given])
    assert [source.name.rpartition(" ")[2] for source in sources] == [
        "0",
        "t=0",
        "t=1",
        "t=2",
        "given",
    ]
    assert_holds(sources[0], MOVIE[2])
    assert_holds(sources[3], MOVIE[2])
    first, last = open_sources(MOVIE, time_points=[0, 2])
    assert_holds(first, MOVIE[0])
    assert_holds(last, MOVIE[2])


def test_levels_of_a_layer():
    from napari.layers import Image

    coarse = MOVIE[0, 0, :, ::2, ::2]
    data = Image([MOVIE[0, 0], coarse], multiscale=True).data
    assert level_of(data).shape == (4, 6, 8)
    assert level_of(data, 1).shape == (4, 3, 4)
    assert level_of(MOVIE) is MOVIE
    with pytest.raises(SourceError, match="no level 2; there are 2"):
        level_of(data, 2)
    assert_holds(open_source(data), MOVIE[:1, 0])
