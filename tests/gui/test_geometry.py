"""Layers made from an image lie in the world exactly as it does."""

import numpy as np
import pytest
from napari.layers import Image

from napari_seamless.gui.geometry import Place, file_geometry

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
