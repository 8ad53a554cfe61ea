import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import Layout, boxes, layouts, positions_by_rule, properties
from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import ConfigError
from napari_seamless.engine.grid import PatchGrid, stride_of

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


# ------------------------------------------------------------------------------ even spacing

EVEN = [
    # size, patch, overlap -> starts
    (12, 4, 0.0, [0, 4, 8]),  # fits exactly, as with a constant stride
    (128, 32, 0.5, [0, 16, 32, 48, 64, 80, 96]),
    (10, 4, 0.0, [0, 3, 6]),
    (9, 4, 0.5, [0, 2, 3, 5]),
    (11, 4, 0.25, [0, 2, 5, 7]),
    (17, 4, 0.0, [0, 3, 6, 10, 13]),
    (100, 32, 0.25, [0, 23, 45, 68]),
    (1000, 128, 0.5, [0, 62, 125, 187, 249, 311, 374, 436, 498, 561, 623, 685, 747, 810, 872]),
    (11, 4, 1, [0, 2, 5, 7]),  # overlap in voxels
    (12, 5, 3, [0, 2, 4, 5, 7]),
    (5, 4, 0.5, [0, 1]),
    (13, 10, 0.99, [0, 1, 2, 3]),
    (4, 4, 0.5, [0]),
    (2, 4, 0.5, [-1]),
    (1, 1, 0.5, [0]),
    (3, 1, 0.0, [0, 1, 2]),
]


def along_x(size: int, patch: int, overlap, **others) -> list[int]:
    """Starts along X of a volume of one row."""
    step = (1, 1, others.pop("step", 1))
    overlap = (0.0, 0.0, overlap)
    grid = PatchGrid.regular((1, 1, size), (1, 1, patch), overlap, step=step, **others)
    assert [starts.tolist() for starts in grid.starts[:2]] == [[0], [0]]
    return grid.starts[2].tolist()


@pytest.mark.parametrize(("size", "patch", "overlap", "starts"), EVEN)
def test_starts_that_are_spaced_evenly(size, patch, overlap, starts):
    assert along_x(size, patch, overlap, spacing="even") == starts


@properties(200)
@given(
    st.integers(1, 200), st.integers(1, 40), st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.75]),
    st.integers(1, 4),
)  # fmt: skip
def test_even_spacing_takes_as_many_patches_that_overlap_at_least_as_much(
    size, part, overlap, step
):
    patch = part * step
    snap = along_x(size, patch, overlap, step=step)
    even = along_x(size, patch, overlap, spacing="even", step=step)
    assert len(even) == len(snap)
    assert (even[0], even[-1]) == (snap[0], snap[-1])
    assert {start % step for start in even} == {0}
    gaps = np.diff(even)
    if len(gaps):
        assert gaps.min() >= step
        assert gaps.max() <= max(step, stride_of(patch, overlap))
        assert np.ptp(gaps) <= step
        assert 0 <= even[-1] + patch - size < step


# ------------------------------------------------------------------------------ overlap per axis


def test_overlap_per_axis_is_a_share_or_voxels():
    grid = PatchGrid.regular((10, 11, 9), (4, 4, 4), (0.5, 1, 3))
    assert [starts.tolist() for starts in grid.starts] == [
        [0, 2, 4, 6],
        [0, 3, 6, 7],
        [0, 1, 2, 3, 4, 5],
    ]
    even = PatchGrid.regular((10, 11, 9), (4, 4, 4), (0, 1, 0.25), spacing="even")
    assert [starts.tolist() for starts in even.starts] == [[0, 3, 6], [0, 2, 5, 7], [0, 2, 5]]


def test_overlap_in_voxels_for_all_axes():
    grid = PatchGrid.regular((9, 16, 30), (3, 8, 16), 2)
    assert [starts.tolist() for starts in grid.starts] == [
        [0, 1, 2, 3, 4, 5, 6],
        [0, 6, 8],
        [0, 14],
    ]


@pytest.mark.parametrize("overlap", [4, 5, -1, 1.0, 1.5, 3.0, -0.1])
def test_an_overlap_that_is_no_share_and_leaves_no_voxel_is_refused(overlap):
    with pytest.raises(
        ConfigError,
        match=rf"overlap {overlap} .* patch of 4 .* fewer than 4, or",
    ):
        PatchGrid.regular((9, 9, 9), (8, 8, 4), (0.5, 0.5, overlap))


# ------------------------------------------------------------------------------ steps and scales

STEPS = [
    # size, patch, overlap, step -> starts
    (10, 4, 0.5, 2, [0, 2, 4, 6]),  # the step divides all
    (9, 4, 0.5, 2, [0, 2, 4, 6]),  # the last patch reaches a voxel over the end
    (9, 4, 0.0, 2, [0, 4, 6]),
    (9, 4, 0.25, 2, [0, 2, 4, 6]),  # a stride of 3 is rounded down
    (9, 4, 0.75, 2, [0, 2, 4, 6]),  # 1 is below the step
    (14, 6, 0.5, 3, [0, 3, 6, 9]),
    (14, 6, 0.0, 3, [0, 6, 9]),
    (6, 4, 0.5, 4, [0, 4]),
    (8, 8, 0.5, 4, [0]),
    (7, 8, 0.5, 4, [0]),
    (3, 8, 0.5, 2, [-2]),  # centred as well as the step allows
    (3, 8, 0.5, 4, [0]),
    (1, 8, 0.5, 3, [-3]),
    (2, 2, 0.0, 2, [0]),
    (5, 2, 0.0, 2, [0, 2, 4]),
]


@pytest.mark.parametrize(("size", "patch", "overlap", "step", "starts"), STEPS)
def test_starts_in_steps(size, patch, overlap, step, starts):
    assert along_x(size, patch, overlap, step=step) == starts
    covered = {voxel for start in starts for voxel in range(start, start + patch)}
    assert covered >= set(range(size))


@pytest.mark.parametrize(
    ("size", "patch", "overlap", "step", "starts"),
    [
        (13, 4, 0.0, 2, [0, 4, 6, 10]),
        (14, 4, 0.0, 2, [0, 4, 6, 10]),
        (20, 6, 0.0, 3, [0, 6, 9, 15]),
        (20, 6, 0.5, 3, [0, 3, 6, 9, 12, 15]),
    ],
)
def test_evenly_spaced_starts_in_steps(size, patch, overlap, step, starts):
    assert along_x(size, patch, overlap, spacing="even", step=step) == starts


SCALE = (Fraction(2), Fraction(1, 2), Fraction(3, 2))


def test_a_grid_at_another_resolution():
    grid = PatchGrid.regular((5, 9, 7), (3, 4, 4), 0.5, step=(1, 2, 2))
    assert [starts.tolist() for starts in grid.starts] == [[0, 1, 2], [0, 2, 4, 6], [0, 2, 4]]
    scaled = grid.scaled(SCALE)
    assert [starts.tolist() for starts in scaled.starts] == [[0, 2, 4], [0, 1, 2, 3], [0, 3, 6]]
    assert (scaled.shape, scaled.patch_size) == ((10, 5, 11), (6, 2, 6))  # 4.5 and 10.5 round up
    assert scaled[len(grid) - 1] == Box((4, 3, 6), (10, 5, 12))


def test_a_grid_shorter_than_its_patch_at_another_resolution():
    grid = PatchGrid.regular((1, 3, 1), (4, 8, 8), 0.5, step=(1, 2, 2))
    assert [starts.tolist() for starts in grid.starts] == [[-1], [-2], [-2]]
    scaled = grid.scaled(SCALE)
    assert [starts.tolist() for starts in scaled.starts] == [[-2], [-1], [-3]]
    assert (scaled.shape, scaled.patch_size) == ((2, 2, 2), (8, 4, 12))


# ------------------------------------------------------------------------------ parts of a grid


def test_only_the_patches_that_touch_a_box_in_the_same_frame():
    grid = PatchGrid.regular((10, 10, 10), (4, 4, 4), 0.5)  # starts 0, 2, 4, 6
    part = grid.only(Box((4, 0, 9), (5, 10, 10)))
    assert (part.shape, part.patch_size) == ((10, 10, 10), (4, 4, 4))
    assert [starts.tolist() for starts in part.starts] == [[2, 4], [0, 2, 4, 6], [6]]
    assert part[0] == Box((2, 0, 6), (6, 4, 10))
    assert grid.counts == (4, 4, 4)


def test_the_patches_in_the_frame_of_a_box():
    grid = PatchGrid.regular((10, 10, 10), (4, 4, 4), 0.5)
    box = Box((4, 0, 9), (5, 10, 10))
    part = grid.only(box).cropped(box)
    assert part.shape == (1, 10, 1)
    assert [starts.tolist() for starts in part.starts] == [[-2, 0], [0, 2, 4, 6], [-3]]
    assert part[0] == Box((-2, 0, -3), (2, 4, 1))


@properties(100)
@given(st.data(), layouts())
def test_only_and_cropped_are_the_patches_that_share_a_voxel_moved(data, layout):
    box = data.draw(boxes(layout.shape))
    grid = layout.grid
    near = [patch for patch in grid if not patch.intersection(box).is_empty]
    assert list(grid.only(box)) == near
    offset = tuple(-low for low in box.start)
    assert list(grid.only(box).cropped(box)) == [patch.shifted(offset) for patch in near]


# ------------------------------------------------------------------------------ boxes
