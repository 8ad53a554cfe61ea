import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import properties
from napari_seamless.engine.lazy import LazyArray


class Backed:
    """A lazy array over a numpy one, with the regions that were read."""

    def __init__(self, shape) -> None:
        self.array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        self.reads: list[tuple[slice, ...]] = []
        self.lazy = LazyArray(shape, np.float32, self.read)

    def read(self, key):
        assert all(
            isinstance(part, slice) and 0 <= part.start <= part.stop <= n and part.step is None
            for part, n in zip(key, self.array.shape, strict=True)
        )
        self.reads.append(key)
        return self.array[key].copy()


def whole_slices(size: int) -> st.SearchStrategy:
    ends = st.none() | st.integers(-size - 2, size + 2)
    steps = st.none() | st.sampled_from([1, 2, 3, -1, -2, -3])
    return st.builds(slice, ends, ends, steps)


def index_arrays(size: int) -> st.SearchStrategy:
    at = st.integers(-size, size - 1)
    return (
        st.lists(at, min_size=1, max_size=4)
        | st.lists(at, max_size=4).map(lambda picked: np.array(picked, dtype=np.int64))
        | st.lists(st.tuples(at, at), min_size=1, max_size=3).map(np.array)
        | st.lists(st.booleans(), min_size=size, max_size=size).map(np.array)
    )


@st.composite
def indexed(draw):
    """A shape, and a key that numpy takes for it; at most one index array, anywhere.

    Not drawn: an ellipsis that stands for no axis beside an index array, which makes numpy move
    axes.
    """
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple))
    key = [
        draw(st.integers(-n, n - 1) | st.integers(0, n - 1).map(np.int64) | whole_slices(n))
        for n in shape
    ]
    at_least = 0
    if draw(st.booleans()):
        at_least = 1
        axis = draw(st.integers(0, len(shape) - 1))
        key[axis] = draw(index_arrays(shape[axis]))
    if draw(st.booleans()):  # leave a stretch of axes to an ellipsis, or to nothing at the end
        first = draw(st.integers(0, len(key) - at_least))
        last = draw(st.integers(first + at_least, len(key)))
        key[first:last] = [Ellipsis]
        if draw(st.booleans()) and key[-1] is Ellipsis:
            key.pop()
    return shape, key[0] if len(key) == 1 and draw(st.booleans()) else tuple(key)


@properties(400)
@given(indexed())
def test_indexing_agrees_with_numpy_and_reads_no_more_than_needed(case):
    shape, key = case
    backed = Backed(shape)
    found, expected = backed.lazy[key], backed.array[key]
    assert np.shape(found) == np.shape(expected)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)

    (read,) = backed.reads
    if np.size(expected):
        picked = [coordinates[key] for coordinates in np.indices(shape)]
        assert read == tuple(slice(int(at.min()), int(at.max()) + 1) for at in picked)
    else:
        assert any(part.start == part.stop for part in read)


@pytest.mark.parametrize(
    ("key", "read"),
    [
        ((0, 10), (slice(0, 1), slice(10, 11), slice(0, 30), slice(0, 40))),
        ((slice(2, 3), slice(5, 6)), (slice(2, 3), slice(5, 6), slice(0, 30), slice(0, 40))),
        ((..., -1), (slice(0, 3), slice(0, 20), slice(0, 30), slice(39, 40))),
        (
            (0, 10, slice(20, 4, -5), slice(30, None, 3)),
            (slice(0, 1), slice(10, 11), slice(5, 21), slice(30, 40)),
        ),
        ((1, [7, 3, 3]), (slice(1, 2), slice(3, 8), slice(0, 30), slice(0, 40))),
    ],
)
def test_only_the_plane_or_piece_asked_for_is_read(key, read):
    backed = Backed((3, 20, 30, 40))
    np.testing.assert_array_equal(backed.lazy[key], backed.array[key])
    assert backed.reads == [read]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int64])
def test_index_arrays_and_scalars_of_small_integer_types_agree_with_numpy(dtype):
    backed = Backed((300, 2))
    at = np.array([5, 100, 7], dtype=dtype)
    np.testing.assert_array_equal(backed.lazy[at], backed.array[at])
    np.testing.assert_array_equal(backed.lazy[at[1]], backed.array[at[1]])
    if np.issubdtype(dtype, np.signedinteger):
        np.testing.assert_array_equal(backed.lazy[-at], backed.array[-at])


def test_an_empty_list_picks_nothing_as_in_numpy():
    backed = Backed((4, 5))
    assert backed.lazy[[]].shape == backed.array[[]].shape == (0, 5)


@pytest.mark.parametrize(
    "key",
    [
        4,
        -5,
        (0, 5),
        (0, -6),
        (0, 0, 6),
        [0, 4],
        (slice(None), [-6]),
        (0, 0, 0, 0),
        (0, 0, 0, ..., 0),
        (..., 0, ...),
        1.0,
        "a",
        None,
        (0, None),
        [0.5],
        np.array([True, False, True]),
        (0, np.ones((5, 5), dtype=bool)),
    ],
)
def test_what_is_no_index_or_out_of_range_is_an_index_error_and_reads_nothing(key):
    backed = Backed((4, 5, 6))
    with pytest.raises(IndexError):
        backed.lazy[key]
    assert backed.reads == []


def test_out_of_range_names_the_index_and_the_size():
    with pytest.raises(IndexError, match=r"index 7 .* axis of 5"):
        Backed((4, 5)).lazy[0, 7]


def test_it_says_what_it_is_without_reading():
    backed = Backed((3, 4, 5))
    lazy = backed.lazy
    assert (lazy.shape, lazy.ndim, lazy.size, lazy.nbytes, len(lazy)) == ((3, 4, 5), 3, 60, 240, 3)
    assert lazy.dtype == np.dtype("float32")
    assert repr(lazy) == "LazyArray(shape=(3, 4, 5), dtype=float32)"
    assert backed.reads == []


def test_numpy_makes_the_whole_array_of_it():
    backed = Backed((3, 4))
    whole = np.asarray(backed.lazy)
    assert type(whole) is np.ndarray
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole, backed.array)
    assert np.asarray(backed.lazy, dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.array(backed.lazy, copy=True), backed.array)
    assert np.max(backed.lazy) == 11
    np.testing.assert_array_equal(np.stack(list(backed.lazy)), backed.array)


def test_it_cannot_be_had_without_a_copy():
    with pytest.raises(ValueError, match="copy"):
        np.asarray(Backed((3, 4)).lazy, copy=False)


def test_nothing_is_cached():
    values = iter([1.0, 2.0])
    lazy = LazyArray((1, 1), np.float32, lambda key: np.full((1, 1), next(values), np.float32))
    assert (lazy[0, 0], lazy[0, 0]) == (1.0, 2.0)
