"""Layers made from an image lie in the world exactly as it does."""

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.volume_plan import volume_plan
from napari_seamless.gui.runs.request import source_of
from napari_seamless.gui.space.geometry import Place, file_geometry, place_of
from napari_seamless.gui.space.scope import PLANE, region_of

GEOMETRY = {
    "scale": (5, 2, 3),
    "translate": (10, -4, 7),
    "rotate": (10, 20, 30),
    "shear": (0.1, 0.2, 0.3),
    "affine": np.array([[1, 0.1, 0, 4], [0, 1, 0.2, 5], [0.3, 0, 1, 6], [0, 0, 0, 1]], dtype=float),
    "units": ("nm", "um", "um"),
    "axis_labels": ("z", "y", "x"),
}


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")
@pytest.mark.parametrize("point", [(0, 0, 0), (1, 2, 3), (3, 7, 11)])
def test_a_voxel_of_the_new_layer_is_where_it_was(point):
    image = Image(np.zeros((4, 8, 12)), **GEOMETRY)
    layer = Image(np.zeros((4, 8, 12)), **Place(image).geometry("ZYX"))

    np.testing.assert_allclose(layer.data_to_world(point), image.data_to_world(point), atol=1e-9)
    assert layer.units == image.units
    assert layer.axis_labels == ("z", "y", "x")


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")
def test_a_channel_axis_is_added_in_front():
    image = Image(np.zeros((4, 8, 12)), **GEOMETRY)
    layer = Image(np.zeros((2, 4, 8, 12)), **Place(image).geometry("CZYX"))

    np.testing.assert_allclose(
        layer.data_to_world((1, 1, 2, 3)), (1, *image.data_to_world((1, 2, 3))), atol=1e-9
    )
    assert layer.axis_labels == ("channel", "z", "y", "x")


def test_a_channel_axis_is_left_out():
    image = Image(np.zeros((2, 4, 8, 12)), scale=(1, 5, 2, 3), translate=(0, 1, 2, 3))
    layer = Image(np.zeros((4, 8, 12)), **Place(image).geometry("ZYX"))

    np.testing.assert_allclose(layer.data_to_world((1, 1, 1)), (6, 4, 6))


def test_the_faces_of_coarser_voxels_are_where_those_of_the_finer_were():
    image = Image(np.zeros((4, 8, 12)), **{**GEOMETRY, "affine": np.eye(4), "rotate": (0, 0, 0)})
    place = Place(image, step=(1.0, 2.0, 4.0), origin=(0, 1, 2))
    layer = Image(np.zeros((4, 3, 1)), **place.geometry("ZYX"))

    # its first voxel spans 2 to 4 along Y and 8 to 12 along X, counted by faces
    np.testing.assert_allclose(
        layer.data_to_world((0, 0, 0)), image.data_to_world((0, 2.5, 9.5)), atol=1e-9
    )
    np.testing.assert_allclose(
        layer.data_to_world((2, 1, 0)), image.data_to_world((2, 4.5, 9.5)), atol=1e-9
    )
    np.testing.assert_allclose(place.inside(np.array([2, 4.5, 9.5])), (2, 1, 0))


def test_time_keeps_its_place_when_channels_come_in_front():
    image = Image(np.zeros((3, 4, 8, 12)), scale=(7, 5, 2, 3), axis_labels=("time", "z", "y", "x"))
    made = Place(image).geometry("CTZYX")

    np.testing.assert_allclose(made["scale"], (1, 7, 5, 2, 3))
    assert made["axis_labels"] == ("channel", "time", "z", "y", "x")


def test_a_file_says_the_scale_of_a_level_in_units_that_it_knows():
    geometry = file_geometry("ZYX", (40, 8, 8), (0, 10, 20), ("nm", "nm", "pixel"), (1, 2, 2))

    assert geometry.scale == (40, 16, 16)
    assert geometry.translation == (0, 14, 24)
    assert geometry.units == ("nanometer", "nanometer", "")


def part_of(image, region, level=0, **settings):
    """Return the place of the prediction of a region, and an empty layer over it."""
    config = InferenceConfig(patch_size=(2, 4, 4), region=region, **settings)
    volume = volume_plan(0, source_of(image, level), config, config.patch_size)
    place = place_of(image, level, volume)
    return place, Image(np.zeros(volume.grid.shape), **place.geometry("ZYX"))


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")
@pytest.mark.parametrize("point", [(0, 0, 0), (1, 2, 3)])
def test_a_region_lies_where_it_was_taken_from(point):
    image = Image(np.zeros((4, 8, 12)), **GEOMETRY)
    _, layer = part_of(image, "1:3,2:7,5:9")

    assert layer.data.shape == (2, 5, 4)
    there = np.add(point, (1, 2, 5))
    np.testing.assert_allclose(layer.data_to_world(point), image.data_to_world(there), atol=1e-9)
    assert layer.units == image.units


def test_a_region_of_a_level_lies_among_its_coarser_voxels():
    fine = np.zeros((4, 8, 12))
    image = Image([fine, fine[:, ::2, ::4]], multiscale=True, scale=(5, 2, 3), translate=(0, 7, 9))
    place, layer = part_of(image, "1:3,2:4,1:3", level=1)

    assert place.step == (1, 2, 4)
    assert layer.data.shape == (2, 2, 2)
    # voxel (2, 3, 2) of the level: rows 6 and 7, columns 8 to 11 of the finest
    np.testing.assert_allclose(
        layer.data_to_world((1, 1, 1)), image.data_to_world((2, 6.5, 9.5)), atol=1e-9
    )


def test_a_region_at_a_finer_output_lies_among_its_finer_voxels():
    image = Image(np.zeros((4, 8, 12)), scale=(5, 2, 3))
    _, layer = part_of(image, "1:3,2:7,5:9", output_scale=(1, 2, 2))

    assert layer.data.shape == (2, 10, 8)
    # the two voxels in place of one are centred a quarter of it to both sides
    np.testing.assert_allclose(
        layer.data_to_world((0, 1, 0)), image.data_to_world((1, 2.25, 4.75)), atol=1e-9
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_the_plane_that_was_shown_is_shown_of_its_prediction_too(order):
    viewer = ViewerModel()
    image = viewer.add_image(np.zeros((4, 8, 12)), scale=(5, 2, 3), translate=(-10, 0, 6))
    viewer.dims.order = order
    hidden = order[0]
    viewer.dims.set_current_step(hidden, 3)
    _, layer = part_of(image, region_of(PLANE, None, viewer, image))
    viewer.add_layer(layer)

    assert round(layer.world_to_data(viewer.dims.point)[hidden]) == 0
    sizes = [4, 8, 12]
    sizes[hidden] = 1
    assert layer.data.shape == tuple(sizes)
    np.testing.assert_allclose(layer.extent.world[:, order[1:]], image.extent.world[:, order[1:]])
