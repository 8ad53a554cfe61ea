"""Files opened in a viewer through the plugin's readers."""

import json

import h5py
import numpy as np
import pytest
import zarr
from napari.layers import Image, Labels
from napari.utils.notifications import notification_manager
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QApplication

from napari_seamless.engine.errors import SourceError
from napari_seamless.gui.choice_dialog import ChoiceDialog
from napari_seamless.gui.readers import get_reader, read_hdf5
from stored_volumes import CHANNELS, VOLUME, write_n5, write_ome, write_precomputed


@pytest.fixture
def opened(make_napari_viewer):
    """Return a function: path -> the layers that a viewer has after opening it."""
    viewer = make_napari_viewer()

    def open_path(path) -> list:
        viewer.open(str(path), plugin="napari-seamless")
        return list(viewer.layers)

    return open_path


def assert_shows(layer, expected, level=0):
    """Assert that a layer's data is lazy, and holds the voxels, wholly and by the plane."""
    data = layer.data[level] if layer.multiscale else layer.data
    assert not isinstance(data, np.ndarray)
    assert data.shape == expected.shape
    np.testing.assert_array_equal(np.asarray(data), expected)
    plane = (slice(1, 2), *[slice(None)] * (expected.ndim - 1))
    np.testing.assert_array_equal(np.asarray(data[plane]), expected[plane])


class TestHDF5:
    def test_one_dataset(self, tmp_path, opened):
        path = tmp_path / "stack.h5"
        with h5py.File(path, "w") as file:
            file["raw"] = VOLUME
            file["raw"].attrs["element_size_um"] = [0.04, 0.004, 0.008]
            file["numbers"] = np.arange(5)
        (layer,) = opened(path)
        assert type(layer) is Image
        assert layer.name == "stack raw"
        np.testing.assert_allclose(layer.scale, [0.04, 0.004, 0.008])
        assert [str(unit) for unit in layer.units] == ["micrometer"] * 3
        assert layer.axis_labels == ("z", "y", "x")
        assert layer.contrast_limits == [VOLUME[2].min(), VOLUME[2].max()]
        assert_shows(layer, VOLUME)

    def test_several_datasets_without_a_window(self, tmp_path, opened):
        path = tmp_path / "many.h5"
        with h5py.File(path, "w") as file:
            for number in range(10):
                file[f"d{number}"] = VOLUME + number
        layers = opened(path)
        said = notification_manager.records[-1].message
        assert said.endswith("many.h5 has 10 images; the first 8 are opened: d0 to d7")
        assert [layer.name for layer in layers] == [f"many d{number}" for number in range(8)]
        assert_shows(layers[3], VOLUME + 3)

    @pytest.mark.parametrize(("accepts", "expected"), [(True, ["two b"]), (False, [])])
    def test_several_datasets_with_a_window(self, tmp_path, make_napari_viewer, accepts, expected):
        path = tmp_path / "two.h5"
        with h5py.File(path, "w") as file:
            file["a"], file["b"] = VOLUME, CHANNELS
        viewer = make_napari_viewer(show=True)
        lines = []

        def answer():
            (dialog,) = [
                each for each in QApplication.topLevelWidgets() if isinstance(each, ChoiceDialog)
            ]
            first, second = (dialog.images.item(row) for row in range(2))
            lines.extend([first.text(), second.text()])
            first.setCheckState(Qt.CheckState.Unchecked)
            second.setCheckState(Qt.CheckState.Checked)
            dialog.accept() if accepts else dialog.reject()

        QTimer.singleShot(200, answer)
        viewer.open(str(path), plugin="napari-seamless")
        assert lines == ["a   5 x 20 x 30   uint16", "b   2 x 5 x 20 x 30   uint16"]
        assert [layer.name for layer in viewer.layers] == expected

    def test_a_prediction(self, tmp_path, opened):
        path = tmp_path / "out.h5"
        main = np.linspace(0, 1, 600, dtype=np.float32).reshape(1, 5, 10, 12)
        geometry = {"scale": [2, 3, 4], "translation": [5, 6, 7], "units": ["nanometer"] * 3}
        facts = {"status": "complete", "config": {"activation": "sigmoid"}, "geometry": geometry}
        with h5py.File(path, "w") as file:
            file["main"] = main
            file["labels"] = (main > 0.5).astype(np.uint8)
            file["heads/edges"] = main * 5
            for key, value in facts.items():
                file["main"].attrs[key] = value if isinstance(value, str) else json.dumps(value)
        shown, head, labels = opened(path)
        assert [type(layer) for layer in (shown, head, labels)] == [Image, Image, Labels]
        assert [layer.visible for layer in (shown, head, labels)] == [True, False, True]
        assert head.contrast_limits[1] > 1
        assert shown.metadata["napari-seamless"] == facts
        assert shown.colormap.name == "magma"
        assert shown.contrast_limits == [0, 1]
        for layer in (shown, head, labels):
            np.testing.assert_array_equal(layer.scale, [2, 3, 4])
            np.testing.assert_array_equal(layer.translate, [5, 6, 7])
        assert_shows(shown, main[0])

    def test_nothing_to_show(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["text"], file["line"] = "words", np.arange(3)
        with pytest.raises(SourceError, match="has no dataset of 2 to 5 axes that holds numbers"):
            read_hdf5(str(tmp_path / "a.h5"))


class TestContainers:
    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    def test_ome_zarr_with_labels(self, tmp_path, opened, version):
        path = write_ome(tmp_path / "cells.zarr", version)
        write_ome(path / "labels" / "nuclei", version, "zyx", VOLUME)
        image, labels = opened(path)
        assert (type(image), type(labels)) == (Image, Labels)
        assert (image.name, labels.name) == ("cells", "cells labels/nuclei")
        assert image.multiscale
        assert labels.multiscale
        assert image.axis_labels == ("channel", "z", "y", "x")
        np.testing.assert_array_equal(image.scale, [1, 40, 4, 8])
        np.testing.assert_array_equal(labels.scale, [40, 4, 8])
        assert [str(unit) for unit in labels.units] == ["nanometer"] * 3
        assert_shows(image, CHANNELS)
        assert_shows(image, CHANNELS[..., ::2, ::2], level=1)
        assert_shows(labels, VOLUME)

    def test_a_movie(self, tmp_path, opened):
        movie = np.stack([CHANNELS[:1], CHANNELS[1:], CHANNELS[:1] + 1])
        (layer,) = opened(write_ome(tmp_path / "movie.zarr", "0.4", "tczyx", movie))
        assert layer.axis_labels == ("t", "z", "y", "x")
        assert_shows(layer, movie[:, 0])

    def test_a_prediction(self, tmp_path, opened):
        path = write_ome(tmp_path / "out.zarr", "0.5", array=CHANNELS / np.float32(700))
        facts = {"status": "partial", "config": {"activation": "tanh"}}
        zarr.open_group(path).attrs["napari-seamless"] = facts
        (layer,) = opened(path)
        assert layer.metadata["napari-seamless"] == facts
        assert layer.contrast_limits == [-1, 1]

    def test_a_plain_array(self, tmp_path, opened):
        zarr.create_array(tmp_path / "a.zarr", data=VOLUME.astype(np.uint8), chunks=(2, 8, 8))
        (layer,) = opened(tmp_path / "a.zarr")
        assert not layer.multiscale
        assert layer.contrast_limits == [0, 255]
        assert_shows(layer, VOLUME.astype(np.uint8))

    def test_n5(self, tmp_path, opened):
        write_n5(tmp_path / "a.n5" / "setup0" / "s0", VOLUME, {"resolution": [8, 4, 40]})
        write_n5(tmp_path / "a.n5" / "setup0" / "s1", VOLUME[:, ::2, ::2])
        write_n5(tmp_path / "a.n5" / "other", VOLUME + 1)
        other, setup = opened(tmp_path / "a.n5")
        assert (other.name, setup.name) == ("a other", "a setup0")
        np.testing.assert_array_equal(setup.scale, [40, 4, 8])
        assert_shows(other, VOLUME + 1)
        assert_shows(setup, VOLUME)
        assert_shows(setup, VOLUME[:, ::2, ::2], level=1)

    @pytest.mark.parametrize(("kind", "layer_type"), [("image", Image), ("segmentation", Labels)])
    def test_precomputed(self, tmp_path, opened, kind, layer_type):
        array = VOLUME[None].astype(np.uint32)
        (layer,) = opened(write_precomputed(tmp_path / "pre", array, kind))
        assert type(layer) is layer_type
        np.testing.assert_array_equal(layer.scale, [40, 4, 8])
        np.testing.assert_array_equal(layer.translate, [280, 200, 800])
        assert_shows(layer, array[0])

    def test_a_damaged_chunk_is_an_error_of_its_plane(self, tmp_path, opened):
        path = tmp_path / "a.zarr"
        zarr.create_array(path, data=VOLUME, chunks=(1, 20, 30))
        (layer,) = opened(path)
        (path / "c" / "4" / "0" / "0").write_bytes(b"damage")
        with pytest.raises(SourceError, match=r"a cannot be read: .*c/4/0/0"):
            layer.data[4]
        np.testing.assert_array_equal(layer.data[3], VOLUME[3])


@pytest.mark.parametrize("name", ["a.tif", "a.h5", "folder"])
def test_what_is_not_ours_is_left_to_others(tmp_path, name):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        (path / "info").write_text("words")
    if name == "a.tif":
        path.write_bytes(b"something")
    assert get_reader(str(path)) is None
    assert get_reader([str(path)]) is None
