import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given

from engine.helpers import boxes, properties
from napari_seamless.engine.box import Box, scaled_up

SCALE = (Fraction(2), Fraction(1, 2), Fraction(3, 2))


def test_box_of_shape_slices_and_shape():
    box = Box.of_shape((2, 3, 4))
    assert (box.start, box.stop, box.shape) == ((0, 0, 0), (2, 3, 4), (2, 3, 4))
    assert Box((1, 0, 2), (2, 3, 4)).slices == (slice(1, 2), slice(0, 3), slice(2, 4))
    volume = np.arange(24).reshape(2, 3, 4)
    assert volume[Box((1, 1, 2), (2, 2, 4)).slices].tolist() == [[[18, 19]]]


def test_box_is_frozen_hashable_and_compared_by_value():
    box = Box((0, 0, 0), (1, 2, 3))
    assert len({box, Box((0, 0, 0), (1, 2, 3)), Box((0, 0, 0), (1, 2, 4))}) == 2
    with pytest.raises(AttributeError):
        box.start = (1, 1, 1)


def test_box_shifted():
    assert Box((0, 1, 2), (3, 4, 5)).shifted((-1, 0, 10)) == Box((-1, 1, 12), (2, 4, 15))


def test_box_around_is_the_smallest_that_holds_all():
    parts = [Box((2, 0, 5), (3, 4, 6)), Box((0, 1, 7), (1, 2, 9))]
    assert Box.around(parts) == Box((0, 0, 5), (3, 4, 9))
    assert Box.around(parts[:1]) == parts[0]


@properties(150)
@given(boxes((5, 5, 5)), boxes((5, 5, 5)))
def test_intersection_holds_the_voxels_of_both(one, other):
    masks = np.zeros((2, 5, 5, 5), dtype=bool)
    masks[0][one.slices] = True
    masks[1][other.slices] = True
    common = one.intersection(other)
    found = np.zeros((5, 5, 5), dtype=bool)
    found[common.slices] = True
    np.testing.assert_array_equal(found, masks.all(axis=0))
    assert common.is_empty == (not masks.all(axis=0).any())
    assert min(common.shape) >= 0


def test_scaled_up_rounds_up():
    assert scaled_up((5, 9, 7), SCALE) == (10, 5, 11)
    assert scaled_up((1, 1, 2), SCALE) == (2, 1, 3)


def test_box_grown_by_a_margin_per_axis():
    assert Box((0, 5, 2), (4, 6, 9)).grown((1, 0, 3)) == Box((-1, 5, -1), (5, 6, 12))
    assert Box((0, 5, 2), (4, 6, 9)).grown((0, 0, 0)) == Box((0, 5, 2), (4, 6, 9))


@pytest.mark.parametrize(
    ("box", "scaled"),
    [
        (Box((0, 0, 0), (2, 2, 2)), Box((0, 0, 0), (4, 1, 3))),
        (Box((1, 1, 1), (2, 2, 2)), Box((2, 0, 1), (4, 1, 3))),  # rounded outwards
        (Box((3, 3, 3), (4, 6, 5)), Box((6, 1, 4), (8, 3, 8))),
        (Box((-1, -1, -1), (1, 1, 1)), Box((-2, -1, -2), (2, 1, 2))),  # below zero too
        (Box((-3, -3, -3), (-1, -1, -1)), Box((-6, -2, -5), (-2, 0, -1))),
    ],
)
def test_box_at_another_resolution_holds_all_that_it_touches(box, scaled):
    assert box.scaled(SCALE) == scaled


def test_box_within_the_array_of_another():
    frame, box = Box((2, -1, 4), (9, 8, 9)), Box((3, 0, 4), (5, 8, 6))
    assert box.within(frame) == (slice(1, 3), slice(1, 9), slice(0, 2))
    volume = np.arange(10 * 10 * 10).reshape(10, 10, 10)
    part = volume[2:9, 0:8, 4:9]
    inside = box.within(Box((2, 0, 4), (9, 8, 9)))
    np.testing.assert_array_equal(part[inside], volume[box.slices])


@pytest.mark.parametrize(
    ("voxels", "edges"),
    [
        (1, [1, 2, 3, 4, 5, 6]),  # a plane at least
        (12, [1, 2, 3, 4, 5, 6]),
        (23, [1, 2, 3, 4, 5, 6]),
        (24, [1, 3, 5, 6]),
        (36, [1, 4, 6]),
        (59, [1, 5, 6]),
        (60, [1, 6]),
        (10**9, [1, 6]),
    ],
)
def test_slabs_of_whole_planes(voxels, edges):
    box = Box((1, 2, 3), (6, 5, 7))  # planes of 12 voxels
    assert list(box.slabs(voxels)) == [
        Box((low, 2, 3), (high, 5, 7)) for low, high in itertools.pairwise(edges)
    ]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_box_without_voxels_has_no_slabs(axis):
    stop = [6, 5, 7]
    stop[axis] = (1, 2, 3)[axis]
    assert list(Box((1, 2, 3), tuple(stop)).slabs(24)) == []
