import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import Layout, boxes, layouts, properties
from napari_seamless.engine.box import Box
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.grid import PatchGrid


def owners(chunks: ChunkGrid) -> np.ndarray:
    """Which chunk has each voxel, found by painting all of them."""
    owner = np.full(chunks.shape, -1)
    for index in range(len(chunks)):
        assert (owner[chunks[index].slices] == -1).all(), "chunks overlap"
        owner[chunks[index].slices] = index
    return owner


sizes = st.tuples(*[st.integers(1, 7)] * 3)


@st.composite
def chunk_grids(draw: st.DrawFn) -> ChunkGrid:
    if draw(st.booleans()):
        return ChunkGrid.at_starts(draw(layouts()).grid)
    return ChunkGrid.regular(draw(sizes), draw(sizes))


def test_regular_chunks_are_of_one_size_but_for_the_last():
    chunks = ChunkGrid.regular((5, 4, 7), (2, 4, 3))
    assert (chunks.shape, chunks.counts, len(chunks)) == ((5, 4, 7), (3, 1, 3), 9)
    assert chunks[0] == Box((0, 0, 0), (2, 4, 3))
    assert chunks[2] == Box((0, 0, 6), (2, 4, 7))
    assert chunks[3] == Box((2, 0, 0), (4, 4, 3))
    assert chunks[8] == Box((4, 0, 6), (5, 4, 7))
    assert chunks.facts == [[3, 1, 3], [2, 4, 3]]


def test_chunks_larger_than_the_volume_are_one():
    chunks = ChunkGrid.regular((2, 3, 4), (64, 64, 64))
    assert [*map(chunks.__getitem__, range(len(chunks)))] == [Box((0, 0, 0), (2, 3, 4))]


def test_chunks_at_starts_are_cut_along_z_and_y_only():
    grid = PatchGrid.regular((9, 8, 20), (4, 4, 4), 0.5)  # starts 0, 2, 4, 5 and 0, 2, 4
    edges = [each.tolist() for each in ChunkGrid.at_starts(grid).edges]
    assert edges == [[0, 2, 4, 5, 9], [0, 2, 4, 8], [0, 20]]


def test_chunks_of_a_volume_smaller_than_the_patch_begin_at_its_face():
    grid = PatchGrid.regular((3, 2, 2), (4, 8, 8), 0.5)
    assert [each.tolist() for each in ChunkGrid.at_starts(grid).edges] == [[0, 3], [0, 2], [0, 2]]


@pytest.mark.parametrize("index", [-1, 9, 100])
def test_a_chunk_that_is_not_there_is_refused(index):
    with pytest.raises(IndexError, match=f"chunk {index} is not in a grid of 9"):
        ChunkGrid.regular((5, 4, 7), (2, 4, 3))[index]


@properties(60)
@given(chunk_grids())
def test_chunks_hold_every_voxel_once_in_raster_order(chunks):
    owner = owners(chunks)
    assert owner.min() == 0
    firsts = [chunks[index].start for index in range(len(chunks))]
    assert firsts == sorted(firsts)
    assert sorted(set(owner.ravel().tolist())) == [*range(len(chunks))]


@properties(150)
@given(chunk_grids(), st.data())
def test_touching_finds_just_the_chunks_that_share_a_voxel(chunks, data):
    box = data.draw(boxes(chunks.shape))
    found = chunks.touching(box)
    assert found == sorted(set(owners(chunks)[box.slices].ravel().tolist()))
    away = tuple(data.draw(st.tuples(*[st.integers(-9, 9)] * 3)))
    moved = box.shifted(away)  # maybe partly or wholly outside
    inside = moved.intersection(Box.of_shape(chunks.shape))
    expected = set(owners(chunks)[inside.slices].ravel().tolist())
    assert chunks.touching(moved) == sorted(expected)


@pytest.mark.parametrize("box", [((2, 2, 2), (2, 4, 4)), ((0, 0, 3), (5, 4, 3))])
def test_an_empty_box_touches_nothing(box):
    assert ChunkGrid.regular((5, 4, 7), (2, 4, 3)).touching(Box(*box)) == []


@properties(40)
@given(layouts())
def test_no_patch_of_a_chunk_at_starts_starts_after_the_chunk_does(layout: Layout):
    """So that no smaller chunk would be finished earlier."""
    grid, chunks = layout.grid, ChunkGrid.at_starts(layout.grid)
    for index in range(len(chunks)):
        chunk = chunks[index]
        touching = [patch for patch in grid if all(patch.intersection(chunk).shape)]
        assert max(patch.start[0] for patch in touching) <= chunk.start[0]
        assert max(patch.start[1] for patch in touching) <= chunk.start[1]
