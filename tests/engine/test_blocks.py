"""Blocks against brute force: every patch has one owner, every chunk its right contributors."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import properties
from napari_seamless.engine.blocks import (
    BLOCK_BYTES,
    FEW_BLOCKS,
    LONG,
    MANY_BLOCKS,
    BlockGrid,
    within,
)
from napari_seamless.engine.box import Box
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.grid import PatchGrid

AXIS = st.tuples(
    st.integers(1, 60),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    st.integers(1, 20),
)


def build(axes, channels=1):
    shape, patch, overlap, chunk = zip(*axes, strict=True)
    grid = PatchGrid.regular(shape, patch, tuple(overlap))
    return BlockGrid.of(grid, ChunkGrid.regular(shape, chunk), channels)


def members(blocks, block):
    numbers = np.arange(len(blocks.grid)).reshape(blocks.grid.counts)
    return numbers[blocks.cells(block)].ravel().tolist()


@properties(40)
@given(st.tuples(AXIS, AXIS, AXIS))
def test_every_patch_is_in_exactly_one_block(axes):
    blocks = build(axes)
    owned = [patch for block in range(len(blocks)) for patch in members(blocks, block)]
    assert sorted(owned) == list(range(len(blocks.grid)))
    assert all(members(blocks, block) for block in range(len(blocks)))


SMALL = st.tuples(
    st.integers(1, 14), st.integers(1, 5), st.sampled_from([0.0, 0.5]), st.integers(1, 7)
)


def cut_at_random(axes, random):
    """Blocks that are cut anywhere."""
    shape, patch, overlap, chunk = zip(*axes, strict=True)
    grid = PatchGrid.regular(shape, patch, tuple(overlap))
    cuts = tuple(
        np.array([0, *np.flatnonzero(random.random(count - 1) < 0.4) + 1, count])
        for count in grid.counts
    )
    return BlockGrid(grid, ChunkGrid.regular(shape, chunk), cuts)


@properties(60)
@given(st.tuples(SMALL, SMALL, SMALL), st.integers(0, 2**32 - 1))
def test_reach_and_contributors_are_those_of_brute_force(axes, seed):
    random = np.random.default_rng(seed)
    blocks = cut_at_random(axes, random)
    grid, chunks = blocks.grid, blocks.chunks
    wanted = random.random(grid.counts) < 0.5
    owner = np.empty(len(grid), dtype=int)
    for block in range(len(blocks)):
        owner[members(blocks, block)] = block
    starts = np.array([box.start for box in grid])
    stops = starts + grid.patch_size
    reached: dict[int, list[int]] = {block: [] for block in range(len(blocks))}
    for chunk in range(len(chunks)):
        box = chunks[chunk]
        near = ((starts < box.stop) & (stops > box.start)).all(axis=1)
        for block in sorted(set(owner[near])):
            reached[block].append(chunk)
        assert blocks.contributors(chunk, wanted) == sorted(set(owner[near & wanted.ravel()]))
        everyone = np.ones_like(wanted)
        assert blocks.contributors(chunk, everyone) == sorted(set(owner[near]))
    for block in range(len(blocks)):
        assert blocks.chunks_of(block) == reached[block]
        low = starts[owner == block].min(axis=0).clip(min=0)
        high = stops[owner == block].max(axis=0).clip(max=grid.shape)
        assert blocks.reach(block) == Box(tuple(low.tolist()), tuple(high.tolist()))


@properties(30)
@given(st.tuples(SMALL, SMALL, SMALL), st.integers(0, 2**32 - 1))
def test_a_frame_holds_all_patches_that_reach_its_boxes_under_their_numbers(axes, seed):
    blocks = cut_at_random(axes, np.random.default_rng(seed))
    boxes = [blocks.chunks[chunk] for chunk in blocks.chunks_of(0)]
    grid, cells = blocks.frame(boxes)
    numbers = blocks.numbers(cells)
    assert [blocks.grid[number] for number in numbers] == list(grid)
    needed = {
        number
        for number, box in enumerate(blocks.grid)
        if any(not box.intersection(each).is_empty for each in boxes)
    }
    assert needed <= set(numbers.tolist())


def test_the_key_tells_cuts_apart():
    def key(cuts, chunk=4):
        grid = PatchGrid.regular((1, 1, 40), (1, 1, 4), (0.0, 0.0, 0.5))
        chunks = ChunkGrid.regular((1, 1, 40), (1, 1, chunk))
        return BlockGrid(grid, chunks, (np.array([0, 1]), np.array([0, 1]), np.array(cuts))).key

    assert key([0, 10, 19]) == key([0, 10, 19])
    assert len({key([0, 10, 19]), key([0, 9, 19]), key([0, 19]), key([0, 10, 19], 5)}) == 4


def test_a_chunk_of_one_block_only_is_private():
    grid = PatchGrid.regular((1, 1, 40), (1, 1, 4), (0.0, 0.0, 0.5))  # 19 patches, stride 2
    blocks = BlockGrid(
        grid,
        ChunkGrid.regular((1, 1, 40), (1, 1, 4)),
        tuple(map(np.array, ([0, 1], [0, 1], [0, 10, 19]))),
    )
    wanted = np.ones(grid.counts, dtype=bool)
    owners = [blocks.contributors(chunk, wanted) for chunk in range(10)]
    # patches 0 to 9 reach 0 to 22, the others 20 to 40: chunk 5 is 20 to 24
    assert owners == [[0]] * 5 + [[0, 1]] + [[1]] * 4
    wanted[0, 0, 10:12] = False
    assert blocks.contributors(5, wanted) == [0]  # nobody else has anything in it


def test_blocks_start_where_chunks_do_if_that_is_near():
    shape = (1, 1, 1200)
    grid = PatchGrid.regular(shape, (1, 1, 20), (0.0, 0.0, 0.5))  # starts are multiples of 10
    for chunk in (60, 80, 110):
        chunks = ChunkGrid.regular(shape, (1, 1, chunk))
        cuts = BlockGrid.of(grid, chunks, 1).cuts[2]
        count = len(cuts) - 1
        assert count <= max(len(chunks), FEW_BLOCKS)
        moved = 0
        for i, cut in enumerate(cuts[1:-1].tolist(), 1):
            even, quarter = i * 119 // count, 119 // (4 * count)
            near = [at for at in range(even - quarter, even + quarter + 1) if at * 10 % chunk == 0]
            assert cut in (near or [even])
            moved += cut != even
        assert moved


def test_a_block_holds_sums_of_a_bounded_number_of_bytes():
    shape = (4096, 4096, 4096)
    grid = PatchGrid.regular(shape, (32, 128, 128), 0.5)
    blocks = BlockGrid.of(grid, ChunkGrid.regular(shape, (64, 512, 512)), 3)
    sizes = [8 * 3 * math.prod(blocks.reach(block).shape) for block in range(len(blocks))]
    assert max(sizes) < 1.5 * BLOCK_BYTES  # cuts were moved to the edges of chunks
    assert np.median(sizes) > BLOCK_BYTES / 3


@pytest.mark.parametrize(
    ("counts", "least"),
    [((20, 20, 20), MANY_BLOCKS), ((4, 4, 4), 8), ((1, 16, 16), 16), ((1, 1, 3), 1)],
)
def test_there_are_enough_blocks_for_several_workers(counts, least):
    shape = tuple(4 * (count + 1) if count > 1 else 8 for count in counts)
    grid = PatchGrid.regular(shape, (8, 8, 8), 0.5)
    assert grid.counts == counts
    blocks = BlockGrid.of(grid, ChunkGrid.regular(shape, (4, 4, 4)), 1)
    assert len(blocks) >= least
    lengths = [
        np.diff(cuts).min() for cuts, count in zip(blocks.cuts, counts, strict=True) if count > 1
    ]
    assert min(lengths) >= (LONG if least > 8 else 1)


def test_more_channels_make_smaller_blocks():
    shape = (512, 512, 512)
    grid = PatchGrid.regular(shape, (32, 32, 32), 0.5)
    chunks = ChunkGrid.regular(shape, (64, 64, 64))
    few, many = (BlockGrid.of(grid, chunks, channels) for channels in (8, 64))
    assert len(many) > len(few)


def test_patches_have_a_place_in_a_frame():
    cells = (slice(2, 4), slice(0, 1), slice(5, 6))
    assert within(cells, (slice(1, 9), slice(0, 2), slice(3, 7))) == (
        slice(1, 3),
        slice(0, 1),
        slice(2, 3),
    )


def test_a_block_that_is_not_there_is_refused():
    blocks = build([(8, 4, 0.5, 4)] * 3)
    with pytest.raises(IndexError, match=f"block {len(blocks)} is not in a grid"):
        blocks.cells(len(blocks))
