"""Layers through napari's own saving: what is in the files, and what is refused."""

import dask.array as da
import h5py
import numpy as np
import pytest
import tifffile
import zarr
from napari.components import ViewerModel
from napari.layers import Image, Labels
from npe2 import PluginManager

from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import WriteError
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.gui import writers
from napari_seamless.io.sources import open_series, open_source

PLUGIN = "napari-seamless"
GEOMETRY = {"scale": (40, 8, 8), "translate": (100, 1, 2), "units": ("nm", "nm", "nm")}


@pytest.fixture(autouse=True)
def _with_plugin(npe2pm_with_seamless):
    """Let napari find the plugin."""


@pytest.fixture
def npe2pm_with_seamless(monkeypatch):
    manager = PluginManager()
    manager.discover()
    monkeypatch.setattr(PluginManager, "instance", lambda: manager)
    return manager


@pytest.fixture
def raw() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 255, (5, 20, 30), dtype=np.uint8)


def voxels_of(path) -> np.ndarray:
    source = open_source(str(path))
    try:
        return source.read(Box.of_shape(source.shape[1:]))
    finally:
        source.close()


def save(path, *layers) -> list[str]:
    viewer = ViewerModel()
    for layer in layers:
        viewer.add_layer(layer)
    return viewer.layers.save(str(path), plugin=PLUGIN)


@pytest.mark.parametrize("suffix", [".zarr", ".h5", ".tif"])
def test_an_image_is_saved_with_its_place(tmp_path, raw, suffix):
    path = tmp_path / f"out{suffix}"
    saved = save(path, Image(raw, name="raw", **GEOMETRY))

    assert saved == [str(path)]
    np.testing.assert_array_equal(voxels_of(path), raw[np.newaxis])
    geometry = open_source(str(path)).geometry
    np.testing.assert_allclose(
        np.array(geometry.scale) * (1 if suffix == ".zarr" else _micrometers(geometry)),
        (40, 8, 8),
    )


def _micrometers(geometry) -> float:
    return 1000 if geometry.units[0] == "micrometer" else 1


def test_labels_stay_names(tmp_path, raw):
    path = tmp_path / "out.zarr"
    names = raw.astype(np.int32) * 1000
    save(path, Labels(names, name="cells"))

    np.testing.assert_array_equal(voxels_of(path), names[np.newaxis])


def test_an_image_and_its_labels_share_a_file(tmp_path, raw):
    path = tmp_path / "out.h5"
    names = (raw > 100).astype(np.int32) * 7
    saved = save(path, Labels(names, name="cells"), Image(raw, name="raw"))

    assert saved == [str(path)]
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["main"][0], raw)
        np.testing.assert_array_equal(file["labels"][0], names)


def test_other_layers_get_a_file_each(tmp_path, raw):
    saved = save(tmp_path / "out.tif", Image(raw, name="one"), Image(raw[:2], name="two"))

    assert saved == [str(tmp_path / "out_one.tif"), str(tmp_path / "out_two.tif")]
    np.testing.assert_array_equal(np.squeeze(tifffile.imread(saved[1])), raw[:2])


def test_a_lazy_layer_is_never_read_as_a_whole(tmp_path):
    largest = 0

    def read(ranges):
        nonlocal largest
        shape = [each.stop - each.start for each in ranges]
        largest = max(largest, int(np.prod(shape)))
        z = np.arange(ranges[0].start, ranges[0].stop, dtype=np.uint16)
        return np.broadcast_to(z[:, None, None], shape).copy()

    lazy = LazyArray((600, 256, 256), np.uint16, read)
    path = tmp_path / "out.zarr"
    save(path, Image(lazy, name="lazy", contrast_limits=(0, 600), rgb=False, multiscale=False))

    assert largest <= lazy.size / 4
    written = zarr.open_group(path, mode="r")["0"]
    np.testing.assert_array_equal(written[0, :, 3, 4], np.arange(600))


def test_a_series_keeps_its_time_points(tmp_path):
    series = np.random.default_rng(1).random((3, 2, 4, 16, 18), dtype=np.float32)
    path = tmp_path / "out.zarr"
    save(path, Image(da.from_array(series, chunks=(1, 1, 2, 8, 9)), name="movie"))

    volumes = open_series(str(path))
    assert [volume.time for volume in volumes] == [0, 1, 2]
    np.testing.assert_array_equal(volumes[2].read(Box.of_shape((4, 16, 18))), series[2])


def test_labels_of_axes_tell_time_from_channels(tmp_path, raw):
    path = tmp_path / "out.zarr"
    both = np.stack([raw, raw[::-1]])
    save(path, Image(both, name="movie", axis_labels=("t", "z", "y", "x")))
    assert zarr.open_group(path, mode="r")["0"].shape == (2, 1, 5, 20, 30)

    path = tmp_path / "channels.zarr"
    save(path, Image(both, name="channels"))
    assert zarr.open_group(path, mode="r")["0"].shape == (2, 5, 20, 30)


def test_the_finest_level_of_a_pyramid_and_a_flat_image_are_written(tmp_path, raw):
    save(tmp_path / "a.h5", Image([raw, raw[:, ::2, ::2]], multiscale=True, name="pyramid"))
    save(tmp_path / "b.h5", Image(raw[0], name="flat"))

    np.testing.assert_array_equal(voxels_of(tmp_path / "a.h5")[0], raw)
    np.testing.assert_array_equal(voxels_of(tmp_path / "b.h5"), raw[np.newaxis, :1])


def test_rgb_is_refused_with_the_remedy(tmp_path):
    rgb = Image(np.zeros((8, 8, 3), np.uint8), rgb=True, name="photo")

    with pytest.raises(WriteError, match="'photo' is RGB; split it first"):
        save(tmp_path / "out.zarr", rgb)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_replaced_but_a_file_is(tmp_path, raw):
    save(tmp_path / "out.zarr", Image(raw, name="raw"))
    with pytest.raises(WriteError, match="exists"):
        save(tmp_path / "out.zarr", Image(raw + 1, name="raw"))
    np.testing.assert_array_equal(voxels_of(tmp_path / "out.zarr")[0], raw)

    save(tmp_path / "out.h5", Image(raw, name="raw"))
    save(tmp_path / "out.h5", Image(raw[::-1], name="raw"))
    np.testing.assert_array_equal(voxels_of(tmp_path / "out.h5")[0], raw[::-1])


def test_cancelled_at_its_bar_it_leaves_nothing(tmp_path, raw, monkeypatch):
    class Cancelled(writers.cancelable_progress):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.cancel()

    monkeypatch.setattr(writers, "cancelable_progress", Cancelled)
    written = writers.write_layers(str(tmp_path / "out.zarr"), [(raw, {"name": "raw"}, "image")])

    assert written == []
    assert not list(tmp_path.iterdir())


def test_other_kinds_of_layers_are_left_to_others(npe2pm_with_seamless):
    writer, _ = npe2pm_with_seamless.get_writer("out.zarr", ["image", "points"], PLUGIN)
    assert writer is None
    writer, _ = npe2pm_with_seamless.get_writer("out.tiff", ["labels"], PLUGIN)
    assert writer.display_name == "TIFF, chunk by chunk"


def test_a_folder_that_is_there_is_refused_in_words_of_the_dialog(tmp_path, raw):
    path = tmp_path / "out.zarr"
    save(path, Image(raw, name="raw"))
    with pytest.raises(WriteError) as caught:
        save(path, Image(raw + 1, name="raw"))

    assert str(caught.value) == "out.zarr exists; choose another name, or delete it first"
    np.testing.assert_array_equal(voxels_of(path), raw[np.newaxis])
