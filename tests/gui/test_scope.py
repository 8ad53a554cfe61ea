"""What part of an image is asked for, whichever way it is shown and drawn on."""

import numpy as np
import pytest
from magicgui.widgets import Container
from napari.components import ViewerModel

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError, SourceError
from napari_seamless.gui.space.scope import (
    DRAWN,
    PLANE,
    SCOPES,
    VIEW,
    WHOLE,
    named,
    region_of,
    scope_fields,
    times_of,
)
from napari_seamless.gui.space.view import camera_of

SHAPE = (12, 40, 60)


@pytest.fixture
def viewer() -> ViewerModel:
    return ViewerModel()


def over(viewer, shape=SHAPE, **layer):
    """Return an image of a shape, shown at its middle."""
    return viewer.add_image(np.zeros(shape, np.float32), name="em", **layer)


def look_at(viewer, centre, zoom, canvas=(100, 200)) -> None:
    """Have a canvas of so many pixels (height, width) show the world around a point."""
    viewer.canvas.size = canvas
    camera_of(viewer).center = (0, *centre)
    camera_of(viewer).zoom = zoom


def rectangle(y, x, *front) -> np.ndarray:
    """Return the corners of a rectangle over two ranges, on a plane."""
    return np.array([(*front, row, column) for row in y for column in x])[[0, 1, 3, 2]]


def test_the_whole_volume_is_no_region(viewer):
    image = over(viewer)

    assert region_of(WHOLE, None, viewer, image) is None
    assert SCOPES == ("whole volume", "current view", "current plane", "shapes")


def test_a_plane_is_all_of_what_the_slider_shows(viewer):
    image = over(viewer, scale=(4, 1, 1))
    viewer.dims.set_point(0, 4 * 7)

    assert region_of(PLANE, None, viewer, image) == ((7, 8), (0, 40), (0, 60))


def test_a_plane_is_that_of_the_axes_as_they_are_turned(viewer):
    image = over(viewer)
    viewer.dims.order = (2, 0, 1)  # slides along X
    viewer.dims.set_point(2, 33)

    assert region_of(PLANE, None, viewer, image) == ((0, 12), (0, 40), (33, 34))


def test_a_view_is_what_the_canvas_has_room_for(viewer):
    image = over(viewer)
    viewer.dims.set_point(0, 3)
    look_at(viewer, (20, 30), zoom=10)  # 10 x 20 voxels: 15 to 25 and 20 to 40

    assert region_of(VIEW, None, viewer, image) == ((3, 4), (15, 26), (20, 41))


def test_a_view_ends_where_the_image_does(viewer):
    image = over(viewer)
    viewer.dims.set_point(0, 11)
    look_at(viewer, (0, 59), zoom=10)

    assert region_of(VIEW, None, viewer, image) == ((11, 12), (0, 6), (49, 60))


def test_a_view_counts_scale_and_place_and_turned_axes(viewer):
    image = over(viewer, scale=(5, 2, 2), translate=(100, 0, 0))
    viewer.dims.order = (1, 0, 2)  # slides along Y, shows Z down and X across
    viewer.dims.set_point(1, 2 * 9)
    look_at(viewer, (100 + 5 * 6, 2 * 30), zoom=5)  # 20 x 40 of the world: 4 x 20 voxels

    assert region_of(VIEW, None, viewer, image) == ((4, 9), (9, 10), (20, 41))


def test_of_a_turned_image_a_view_is_the_box_around_the_screen(viewer):
    image = over(viewer, (40, 60), rotate=90)  # rows run along X of the world, columns up
    look_at(viewer, (-30, 20), zoom=10)
    corners = [image.world_to_data((y, x)) for y in (-35, -25) for x in (10, 30)]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)

    (z, y, x) = region_of(VIEW, None, viewer, image)

    assert z == (0, 1)
    assert (y[0], x[0]) == tuple(np.floor(low + 0.5))
    assert (y[1], x[1]) == tuple(np.ceil(high + 0.5))
    assert np.ptp(y) == 21  # what is 20 wide in the world is along Y here
    assert np.ptp(x) == 11


def test_of_a_level_the_view_is_in_its_voxels(viewer):
    fine = np.zeros((12, 40, 60), np.float32)
    image = viewer.add_image([fine, fine[:, ::2, ::2]], multiscale=True)
    viewer.dims.set_point(0, 5)
    look_at(viewer, (20, 30), zoom=10)

    assert region_of(VIEW, None, viewer, image, level=1) == ((5, 6), (7, 13), (10, 21))
    assert region_of(PLANE, None, viewer, image, level=1) == ((5, 6), (0, 20), (0, 30))


def test_a_view_beside_the_image_is_refused(viewer):
    image = over(viewer)
    look_at(viewer, (20, 300), zoom=10)

    with pytest.raises(ConfigError, match="the current view is outside of layer 'em'; move to it"):
        region_of(VIEW, None, viewer, image)


def test_a_view_just_beside_a_coarse_voxel_is_refused(viewer):
    fine = np.zeros((40, 60), np.float32)
    image = viewer.add_image([fine, fine[::2, ::2]], multiscale=True)
    look_at(viewer, (-5.6, 30), zoom=10)  # ends at -0.6, the image begins at -0.5

    with pytest.raises(ConfigError, match="outside"):
        region_of(VIEW, None, viewer, image, level=1)


def test_a_plane_that_the_image_does_not_have_is_refused(viewer):
    image = over(viewer)
    viewer.add_image(np.zeros((30, 40, 60)))
    viewer.dims.set_point(0, 20)

    with pytest.raises(ConfigError, match="the current plane is outside of layer 'em'"):
        region_of(PLANE, None, viewer, image)


@pytest.mark.parametrize("scope", [VIEW, PLANE])
def test_a_display_in_3d_has_no_plane(viewer, scope):
    image = over(viewer)
    viewer.dims.ndisplay = 3

    with pytest.raises(ConfigError, match=f"3-D, which has no {scope}; change it to 2-D"):
        region_of(scope, None, viewer, image)
    assert region_of(WHOLE, None, viewer, image) is None


def test_a_rectangle_on_one_plane_reaches_through_all(viewer):
    image = over(viewer)
    shapes = viewer.add_shapes([rectangle((9.5, 19.5), (4.5, 34.5), 5)], ndim=3)

    assert region_of(DRAWN, shapes, viewer, image) == ((0, 12), (10, 20), (5, 35))


def test_every_voxel_that_a_rectangle_touches_counts(viewer):
    image = over(viewer)
    shapes = viewer.add_shapes([rectangle((9.6, 19.4), (4.4, 34.6), 5)], ndim=3)

    assert region_of(DRAWN, shapes, viewer, image) == ((0, 12), (10, 20), (4, 36))


def test_a_flat_layer_of_shapes_reaches_through_all_planes(viewer):
    image = over(viewer)
    shapes = viewer.add_shapes([rectangle((10, 19), (5, 34))], ndim=2)

    assert region_of(DRAWN, shapes, viewer, image) == ((0, 12), (10, 20), (5, 35))


def test_rectangles_on_several_planes_are_the_ends_of_a_box(viewer):
    image = over(viewer)
    drawn = [rectangle((10, 19), (5, 14), 3), rectangle((15, 29), (10, 34), 8)]
    shapes = viewer.add_shapes(drawn, ndim=3)

    assert region_of(DRAWN, shapes, viewer, image) == ((3, 9), (10, 30), (5, 35))


def test_a_rectangle_drawn_on_turned_axes_reaches_along_the_hidden_one(viewer):
    image = over(viewer)
    corners = rectangle((2, 7), (10, 19), 33)  # (x, z, y)
    shapes = viewer.add_shapes([corners[:, [1, 2, 0]]], ndim=3)

    assert region_of(DRAWN, shapes, viewer, image) == ((2, 8), (10, 20), (0, 60))


def test_other_shapes_count_as_the_box_around_them(viewer):
    image = over(viewer, (40, 60))
    triangle = np.array([(5, 10), (20, 30), (12, 40)])
    shapes = viewer.add_shapes([triangle], shape_type="polygon")

    assert region_of(DRAWN, shapes, viewer, image) == ((0, 1), (5, 21), (10, 41))


def test_what_is_drawn_is_in_the_world(viewer):
    image = over(viewer, scale=(5, 2, 4), translate=(0, 10, 0))
    shapes = viewer.add_shapes([rectangle((3, 13), (2, 6))], ndim=2, scale=(10, 10))

    # 30 to 130 and 20 to 60 of the world
    assert region_of(DRAWN, shapes, viewer, image) == ((0, 12), (10, 40), (5, 16))


def test_what_reaches_over_the_edge_ends_there(viewer):
    image = over(viewer)
    shapes = viewer.add_shapes([rectangle((-9, 5), (50, 90))], ndim=2)

    assert region_of(DRAWN, shapes, viewer, image) == ((0, 12), (0, 6), (50, 60))


def test_what_holds_all_of_the_image_is_no_region(viewer):
    image = over(viewer)
    shapes = viewer.add_shapes([rectangle((-9, 90), (-9, 90))], ndim=2)

    assert region_of(DRAWN, shapes, viewer, image) is None


@pytest.mark.parametrize(
    ("drawn", "line"),
    [
        ([], "layer 'roi' is empty; draw a rectangle"),
        ([rectangle((50, 90), (0, 10))], "drawn in layer 'roi' is outside of layer 'em'; draw on"),
        ([rectangle((5, 5), (0, 10), 3)], "drawn in layer 'roi' is a line or a point"),
    ],
)
def test_what_is_drawn_and_cannot_be_is_said(viewer, drawn, line):
    image = over(viewer)
    shapes = viewer.add_shapes(drawn or None, ndim=drawn[0].shape[1] if drawn else 3, name="roi")

    with pytest.raises(ConfigError, match=line):
        region_of(DRAWN, shapes, viewer, image)


def test_shapes_must_be_chosen(viewer):
    with pytest.raises(ConfigError, match="Choose a Shapes layer"):
        region_of(DRAWN, None, viewer, over(viewer))


def test_colours_are_refused_whatever_part_of_them(viewer):
    image = viewer.add_image(np.zeros((40, 60, 3), np.uint8), rgb=True, name="stained")

    for scope in SCOPES:
        with pytest.raises(SourceError, match="'stained' is RGB; split it first"):
            region_of(scope, None, viewer, image)


def test_of_a_series_the_view_is_of_the_shown_time_point(viewer):
    image = over(viewer, (5, *SHAPE), axis_labels=("t", "z", "y", "x"))
    viewer.dims.set_point((0, 1), (3, 7))

    assert region_of(PLANE, None, viewer, image) == ((7, 8), (0, 40), (0, 60))
    assert times_of(PLANE, "", viewer, image) == "3"
    assert times_of(VIEW, " 0:2 ", viewer, image) == "0:2"
    assert times_of(WHOLE, "", viewer, image) is None
    assert times_of(DRAWN, "", viewer, image) is None
    assert times_of(PLANE, "1", viewer, over(viewer)) is None


def test_a_time_point_that_the_image_does_not_have_is_refused(viewer):
    image = over(viewer, (5, *SHAPE), axis_labels=("t", "z", "y", "x"))
    viewer.add_image(np.zeros((9, *SHAPE)))
    viewer.dims.set_point(0, 7)

    with pytest.raises(ConfigError, match="outside of layer 'em'"):
        times_of(PLANE, "", viewer, image)


def test_channels_do_not_count(viewer):
    image = over(viewer, (3, *SHAPE))
    viewer.dims.set_point((0, 1), (2, 7))
    shapes = viewer.add_shapes([rectangle((10, 19), (5, 14), 2, 7)], ndim=4)

    assert region_of(PLANE, None, viewer, image) == ((7, 8), (0, 40), (0, 60))
    assert region_of(DRAWN, shapes, viewer, image) == ((0, 12), (10, 20), (5, 15))


def test_a_region_is_one_that_the_settings_take(viewer):
    image = over(viewer)
    viewer.dims.set_point(0, 3)
    config = InferenceConfig(patch_size=(4, 16, 16), region=region_of(PLANE, None, viewer, image))

    assert config.box.slices == (slice(3, 4), slice(0, 40), slice(0, 60))
    assert named("em", config) == "em prediction [3, 0:40, 0:60]"
    assert named("em", InferenceConfig(patch_size=(4, 16, 16))) == "em prediction"


def test_the_field_for_shapes_is_there_only_when_it_counts(make_napari_viewer, qtbot):
    viewer = make_napari_viewer()
    over(viewer)
    scope, shapes = scope_fields(viewer)
    form = Container(widgets=[scope, shapes])
    qtbot.addWidget(form.native)
    form.show()

    assert (scope.name, scope.value, shapes.name) == ("scope", WHOLE, "scope_shapes")
    assert (shapes.visible, shapes.value) == (False, None)
    scope.value = DRAWN
    assert shapes.visible
    roi = viewer.add_shapes([rectangle((10, 19), (5, 14))], ndim=2, name="roi")
    shapes.reset_choices()
    assert shapes.value is roi  # the only one need not be chosen
    scope.value = VIEW
    assert not shapes.visible
