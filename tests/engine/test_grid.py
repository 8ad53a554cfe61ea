import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import Layout, boxes, layouts, positions_by_rule, properties
from napari_seamless.engine.grid import Box, PatchGrid, stride_of

AXES = [
    # size, patch, overlap -> starts
    (12, 4, 0.0, [0, 4, 8]),  # fits exactly
    (10, 4, 0.5, [0, 2, 4, 6]),  # fits exactly
    (10, 4, 0.25, [0, 3, 6]),  # fits exactly
    (10, 4, 0.75, [0, 1, 2, 3, 4, 5, 6]),
    (10, 4, 0.0, [0, 4, 6]),  # the last one snaps back inside
    (9, 4, 0.5, [0, 2, 4, 5]),
    (11, 4, 0.25, [0, 3, 6, 7]),
    (5, 4, 0.5, [0, 1]),
    (5, 4, 0.0, [0, 1]),
    (4, 4, 0.5, [0]),  # as long as the patch
    (3, 4, 0.5, [0]),  # shorter: one patch, centred, the odd voxel of padding at the end
    (2, 4, 0.5, [-1]),
    (1, 4, 0.5, [-1]),
    (1, 5, 0.5, [-2]),
    (2, 9, 0.0, [-3]),
    (1, 1, 0.5, [0]),
    (3, 1, 0.0, [0, 1, 2]),  # a patch of one voxel
    (3, 1, 0.75, [0, 1, 2]),
    (7, 3, 0.5, [0, 1, 2, 3, 4]),  # int(1.5) = 1: never less overlap than asked
    (20, 10, 0.7, [0, 3, 6, 9, 10]),
    (13, 10, 0.99, [0, 1, 2, 3]),  # int(0.1) = 0: at least one voxel
    (128, 32, 0.5, [0, 16, 32, 48, 64, 80, 96]),
]


@pytest.mark.parametrize(("size", "patch", "overlap", "starts"), AXES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_starts_along_each_axis(axis, size, patch, overlap, starts):
    shape, patch_size = [1, 1, 1], [1, 1, 1]
    shape[axis], patch_size[axis] = size, patch
    found = [s.tolist() for s in PatchGrid.regular(tuple(shape), tuple(patch_size), overlap).starts]
    expected = [[0], [0], [0]]
    expected[axis] = starts
    assert found == expected


@pytest.mark.parametrize(
    ("patch", "overlap", "stride"),
    [(4, 0, 4), (4, 0.5, 2), (5, 0.5, 2), (4, 0.75, 1), (1, 0.5, 1), (3, 0.9, 1), (128, 0.3, 89)],
)
def test_stride_is_rounded_down_to_one_at_least(patch, overlap, stride):
    assert stride_of(patch, overlap) == stride


def test_patches_are_in_raster_order_with_x_fastest():
    grid = PatchGrid.regular((2, 5, 6), (4, 4, 3), 0.25)
    expected = [(-1, y, x) for y in (0, 1) for x in (0, 2, 3)]
    assert grid.counts == (1, 2, 3)
    assert len(grid) == 6
    assert grid.positions.tolist() == [list(start) for start in expected]
    assert [box.start for box in grid] == expected
    assert [box.stop for box in grid] == [(3, y + 4, x + 3) for _, y, x in expected]


@properties(150)
@given(layouts(longest_patch=9))
def test_length_items_and_positions_agree_with_the_rule(layout):
    grid = layout.grid
    expected = layout.positions
    assert len(grid) == len(expected) == np.prod(grid.counts)
    assert [box.start for box in grid] == expected
    assert [tuple(start) for start in grid.positions.tolist()] == expected
    assert {box.shape for box in grid} == {layout.patch_size}


@properties(100)
@given(layouts(longest_patch=9))
def test_every_voxel_is_covered_and_no_patch_leaves_the_volume_needlessly(layout):
    covered = np.zeros(layout.shape, dtype=bool)
    for box in layout.grid:
        covered[box.intersection(Box.of_shape(layout.shape)).slices] = True
        for start, stop, size in zip(box.start, box.stop, layout.shape, strict=True):
            if size >= stop - start:
                assert start >= 0
                assert stop <= size
            else:  # centred: the padding of both ends differs by one voxel at most
                assert 0 <= (stop - size) - (-start) <= 1
    assert covered.all()


@properties(150)
@given(st.data(), layouts())
def test_touching_agrees_with_brute_force(data, layout):
    around = tuple(n + 8 for n in layout.shape)
    # some reach over the volume's edge or lie outside
    box = data.draw(boxes(around)).shifted((-4, -4, -4))
    grid = layout.grid
    near = grid.touching(box)
    found = list(
        itertools.product(*(s[part].tolist() for s, part in zip(grid.starts, near, strict=True)))
    )
    expected = [
        start
        for start in layout.positions
        if all(
            s < high and s + p > low
            for s, p, low, high in zip(start, layout.patch_size, box.start, box.stop, strict=True)
        )
    ]
    assert found == expected


@pytest.mark.parametrize("index", [-1, 27, 1000])
def test_an_index_outside_the_grid_is_refused(index):
    grid = PatchGrid.regular((8, 8, 8), (4, 4, 4), 0.5)
    with pytest.raises(IndexError, match=rf"patch {index} .* 27 patches"):
        grid[index]


def test_the_oracle_itself_on_a_volume_written_out():
    assert positions_by_rule((3, 1, 5), (2, 2, 3), 0.5) == [
        (z, 0, x) for z in (0, 1) for x in (0, 1, 2)
    ]


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


def test_layouts_reach_the_cases_that_matter():
    """The strategy above would prove little if it never drew a padded or a snapped axis."""
    seen = set()

    @properties(150)
    @given(layouts())
    def look(layout: Layout) -> None:
        for size, patch, starts in zip(
            layout.shape, layout.patch_size, layout.grid.starts, strict=True
        ):
            seen.add("padded" if size < patch else "exact" if size == patch else "longer")
            if size == 1:
                seen.add("one voxel")
            if len(starts) > 2 and starts[-1] - starts[-2] != starts[1] - starts[0]:
                seen.add("snapped")

    look()
    assert seen == {"padded", "exact", "longer", "one voxel", "snapped"}
