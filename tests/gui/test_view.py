"""What part of a layer is on the screen."""

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image

from napari_seamless.engine.box import Box
from napari_seamless.gui.space.view import shown_box


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ((0, 1, 2), Box((2, 0, 0), (3, 8, 12))),
        ((1, 0, 2), Box((0, 3, 0), (4, 4, 12))),
        ((2, 1, 0), Box((0, 0, 5), (4, 8, 6))),
    ],
)
def test_the_shown_box_follows_slider_and_axis_order(order, expected):
    viewer = ViewerModel()
    layer = viewer.add_layer(Image(np.zeros((4, 8, 12)), scale=(10, 2, 1), translate=(5, 0, 0)))
    viewer.dims.order = order
    viewer.dims.set_point(range(3), (25, 6, 5))

    assert shown_box(viewer, layer) == expected


def test_the_shown_box_is_the_visible_rectangle_once_drawn():
    viewer = ViewerModel()
    layer = viewer.add_layer(Image(np.zeros((4, 8, 12))))
    viewer.dims.set_point(0, 1)
    layer.corner_pixels = np.array([[0, 2, 3], [0, 5, 9]])

    assert shown_box(viewer, layer) == Box((1, 2, 3), (2, 6, 10))


def test_a_two_dimensional_image_is_one_plane():
    viewer = ViewerModel()
    layer = viewer.add_layer(Image(np.zeros((8, 12))))

    assert shown_box(viewer, layer) == Box((0, 0, 0), (1, 8, 12))


def test_in_three_dimensions_all_is_shown():
    viewer = ViewerModel(ndisplay=3)
    layer = viewer.add_layer(Image(np.zeros((4, 8, 12))))

    assert shown_box(viewer, layer) is None


def test_of_a_coarse_level_the_full_resolution_is_shown():
    full = np.zeros((4, 64, 64))
    viewer = ViewerModel()
    layer = viewer.add_layer(Image([full, full[:, ::2, ::2], full[:, ::4, ::4]], multiscale=True))
    viewer.dims.set_point(0, 0)
    layer.data_level = 2
    layer.corner_pixels = np.array([[0, 0, 0], [0, 15, 15]])

    assert shown_box(viewer, layer) == Box((0, 0, 0), (1, 64, 64))
