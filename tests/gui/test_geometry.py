"""Layers made from an image lie in the world exactly as it does."""

import numpy as np
import pytest
from napari.layers import Image

from napari_seamless.gui.geometry import geometry_of

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
    layer = Image(np.zeros((4, 8, 12)), **geometry_of(image, 3))

    np.testing.assert_allclose(layer.data_to_world(point), image.data_to_world(point), atol=1e-9)
    assert layer.units == image.units
    assert layer.axis_labels == ("z", "y", "x")


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")
def test_a_channel_axis_is_added_in_front():
    image = Image(np.zeros((4, 8, 12)), **GEOMETRY)
    layer = Image(np.zeros((2, 4, 8, 12)), **geometry_of(image, 4))

    np.testing.assert_allclose(
        layer.data_to_world((1, 1, 2, 3)), (1, *image.data_to_world((1, 2, 3))), atol=1e-9
    )
    assert layer.axis_labels == ("channel", "z", "y", "x")


def test_a_channel_axis_is_left_out():
    image = Image(np.zeros((2, 4, 8, 12)), scale=(1, 5, 2, 3), translate=(0, 1, 2, 3))
    layer = Image(np.zeros((4, 8, 12)), **geometry_of(image, 3))

    np.testing.assert_allclose(layer.data_to_world((1, 1, 1)), (6, 4, 6))
