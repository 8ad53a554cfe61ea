"""Which axes a layer has, and what becomes of them in arrays made from it."""

import numpy as np
import pytest
from napari.layers import Image

from napari_seamless.engine.lazy import LazyArray
from napari_seamless.gui.runs.last_region import LastRegion
from napari_seamless.gui.space.axes import axes_named, axes_of, axes_of_prediction
from napari_seamless.gui.space.series import stacked, with_axes


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("-2", "-1"), "YX"),
        (("z", "y", "x"), "ZYX"),
        (("-3", "-2", "-1"), "ZYX"),
        (("Time", "y", "x"), "TYX"),
        (("c", "y", "x"), "CYX"),
        (("-4", "-3", "-2", "-1"), "CZYX"),
        (("t", "z", "y", "x"), "TZYX"),
        (("t", "channel", "y", "x"), "TCYX"),
        (("-5", "-4", "-3", "-2", "-1"), "TCZYX"),
        (("channel", "t", "z", "y", "x"), "CTZYX"),
        (("a", "b", "c", "d", "e", "f"), ""),
    ],
)
def test_labels_tell_what_shape_cannot(labels, expected):
    assert axes_named(labels) == expected


def test_an_image_without_labels_is_told_by_its_axes():
    assert axes_of(Image(np.zeros((2, 3, 4, 5, 6)))) == "TCZYX"


@pytest.mark.parametrize(
    ("image", "channels", "expected"),
    [
        ("YX", 1, "YX"),
        ("ZYX", 3, "CZYX"),
        ("CZYX", 1, "ZYX"),
        ("CZYX", 2, "CZYX"),
        ("TZYX", 1, "TZYX"),
        ("TZYX", 2, "CTZYX"),  # napari lines layers up at their last axes
        ("TCZYX", 1, "TCZYX"),
    ],
)
def test_a_prediction_has_the_sliders_of_its_image(image, channels, expected):
    assert axes_of_prediction(image, channels) == expected


def test_axes_are_moved_added_and_left_out():
    values = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    volume = LazyArray(values.shape, values.dtype, lambda ranges: values[ranges])

    np.testing.assert_array_equal(
        with_axes(volume, "TCYX", "CTYX")[1:, :, 2], values[:, 1:, 2].swapaxes(0, 1)
    )
    np.testing.assert_array_equal(with_axes(volume, "TCYX", "CZYX")[...], values[0][:, np.newaxis])


def test_time_points_without_a_volume_are_missing():
    ones = LazyArray(
        (1, 2, 3), np.float32, lambda r: np.ones([s.stop - s.start for s in r], np.float32)
    )
    series = stacked({1: ones}, 3)

    assert series.shape == (3, 1, 2, 3)
    assert np.isnan(series[0]).all()
    assert (series[1] == 1).all()
    counts = LazyArray((1,), np.uint16, lambda r: np.full(1, 7, np.uint16))
    np.testing.assert_array_equal(stacked({0: counts}, 2)[...], [[7], [0]])


def test_of_a_region_seen_before_only_what_changed_is_read():
    values, asked = np.zeros((4, 8, 8), np.float32), []

    def read(ranges):
        asked.append(ranges)
        return values[ranges].copy()

    region = LastRegion(LazyArray(values.shape, np.float32, read))
    assert not region.array[2].any()
    values[...] = 5
    assert not region.array[2].any()  # nobody has said so
    region.mark((slice(0, 4), slice(0, 8), slice(6, 8)))
    seen = region.array[2]

    np.testing.assert_array_equal(seen[:, 6:], 5)
    np.testing.assert_array_equal(seen[:, :6], 0)
    assert asked[1:] == [(slice(2, 3), slice(0, 8), slice(6, 8))]
    np.testing.assert_array_equal(region.array[3], 5)  # another region is read as a whole
    region.forget()
    np.testing.assert_array_equal(region.array[2], 5)
