import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import layouts, properties, seeds
from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import SourceError
from napari_seamless.engine.geometry import Geometry
from napari_seamless.engine.source import ArraySource, part_of, read_patch, spatial_shape


class ArrayLike:
    """Has just what the contract asks for, and keeps the keys it was indexed with."""

    def __init__(self, array: np.ndarray) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self.keys: list[tuple[slice, ...]] = []
        self._array = array

    def __getitem__(self, key):
        self.keys.append(key)
        return self._array[key]


@pytest.mark.parametrize(
    ("shape", "as_4d"),
    [
        ((5, 6), (1, 1, 5, 6)),
        ((4, 5, 6), (1, 4, 5, 6)),
        ((1, 5, 6), (1, 1, 5, 6)),
        ((3, 4, 5, 6), (3, 4, 5, 6)),
        ((1, 1, 1, 1), (1, 1, 1, 1)),
    ],
)
def test_shapes_of_two_three_and_four_axes(shape, as_4d):
    array = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    source = ArraySource(array, "v")
    assert source.shape == as_4d
    assert spatial_shape(source) == as_4d[1:]
    assert source.dtype == np.uint16
    assert source.name == "v"
    whole = source.read(Box.of_shape(as_4d[1:]))
    assert whole.dtype == np.uint16
    np.testing.assert_array_equal(whole, array.reshape(as_4d))


@pytest.mark.parametrize(
    ("shape", "key"),
    [
        ((9, 9), (slice(2, 4), slice(3, 8))),
        ((9, 9, 9), (slice(0, 1), slice(2, 4), slice(3, 8))),
        ((2, 9, 9, 9), (slice(None), slice(0, 1), slice(2, 4), slice(3, 8))),
    ],
)
def test_only_the_box_is_read(shape, key):
    array = ArrayLike(np.random.default_rng(0).random(shape))
    box = Box((0, 2, 3), (1, 4, 8))
    voxels = ArraySource(array).read(box)
    assert array.keys == [key]
    np.testing.assert_array_equal(voxels, array._array[key].reshape(-1, 1, 2, 5))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint64, np.float16, np.float64])
def test_real_numbers_of_any_type_are_read_as_they_are(dtype):
    source = ArraySource(np.ones((2, 3), dtype))
    assert source.dtype == dtype
    assert source.read(Box((0, 0, 0), (1, 2, 3))).dtype == dtype


def test_a_dtype_that_wraps_numpys_is_understood():
    class Wrapped:
        numpy_dtype = np.dtype("uint8")

    array = ArrayLike(np.ones((2, 3), np.uint8))
    array.dtype = Wrapped()
    assert ArraySource(array).dtype == np.uint8


@pytest.mark.parametrize(
    ("array", "said"),
    [
        ([[1, 2], [3, 4]], "list"),
        (7, "int"),
        (None, "NoneType"),
        (np.zeros(5), "(5,)"),
        (np.zeros((1, 1, 1, 1, 1)), "(1, 1, 1, 1, 1)"),
        (np.zeros(()), "()"),
        (np.zeros((4, 0, 4)), "(4, 0, 4)"),
        (np.zeros((2, 2), complex), "complex128"),
        (np.array([["a", "b"]]), "<U1"),
        (np.array([[None, 1]]), "object"),
    ],
)
def test_what_is_no_volume_is_refused_in_one_line_with_its_name(array, said):
    with pytest.raises(SourceError) as caught:
        ArraySource(array, "cells.h5")
    assert str(caught.value).startswith("cells.h5 ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_closing_lets_go_of_the_array():
    source = ArraySource(np.zeros((2, 2)))
    source.close()
    with pytest.raises(TypeError):
        source.read(Box((0, 0, 0), (1, 1, 1)))


@properties(100)
@given(layouts(), st.sampled_from(["reflect", "edge", "constant"]), st.integers(1, 2), seeds)
def test_patches_are_cut_from_the_padded_volume(layout, padding, channels, seed):
    shape = (channels, *layout.shape)
    volume = np.random.default_rng(seed).integers(1, 200, shape).astype(np.uint8)
    source = ArraySource(volume)
    low = [max(0, p - n) // 2 for p, n in zip(layout.patch_size, layout.shape, strict=True)]
    high = [max(0, p - n) - b for p, n, b in zip(layout.patch_size, layout.shape, low, strict=True)]
    padded = np.pad(volume, [(0, 0), *zip(low, high, strict=True)], mode=padding)
    for box in layout.grid:
        patch = read_patch(source, box, padding)
        assert patch.dtype == np.uint8
        np.testing.assert_array_equal(patch, padded[:, *box.shifted(tuple(low)).slices])


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        ("reflect", [2, 1, 2, 3, 2, 1]),
        ("edge", [1, 1, 2, 3, 3, 3]),
        ("constant", [0, 1, 2, 3, 0, 0]),
    ],
)
def test_padding_worked_out_by_hand(padding, expected):
    source = ArraySource(np.array([[1, 2, 3]], np.int16))
    patch = read_patch(source, Box((0, 0, -1), (1, 1, 5)), padding)
    assert patch.tolist() == [[[expected]]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("value", "called"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_what_is_not_finite_is_refused_with_its_position(dtype, value, called):
    volume = np.zeros((2, 4, 5, 6), dtype)
    volume[1, 2, 3, 4] = value
    source = ArraySource(volume, "cells.h5")
    with pytest.raises(SourceError) as caught:
        read_patch(source, Box((1, 2, 3), (4, 5, 6)), "reflect")
    message = str(caught.value)
    assert message.startswith(f"cells.h5 holds {called} at channel 1, (2, 3, 4) ")
    assert "\n" not in message


def test_the_position_of_what_is_not_finite_is_the_volumes_in_a_padded_patch_too():
    volume = np.zeros((1, 2, 6), np.float32)
    volume[0, 1, 4] = np.nan
    with pytest.raises(SourceError, match=r"channel 0, \(0, 1, 4\)"):
        read_patch(ArraySource(volume), Box((-1, -1, 3), (3, 3, 6)), "reflect")


def test_what_is_not_finite_outside_the_patch_does_not_matter():
    volume = np.zeros((1, 4, 4), np.float32)
    volume[0, 3, 3] = np.nan
    assert read_patch(ArraySource(volume), Box((0, 0, 0), (1, 3, 3)), "edge").max() == 0


def test_a_volume_that_cannot_be_read_is_named_with_the_place():
    class Torn(ArrayLike):
        def __getitem__(self, key):
            raise OSError("chunk is torn\nat byte 7")

    source = ArraySource(Torn(np.zeros((4, 4, 4))), "cells.zarr")
    with pytest.raises(SourceError) as caught:
        read_patch(source, Box((1, 0, -1), (3, 4, 5)), "edge")
    message = str(caught.value)
    assert message.startswith("cells.zarr cannot be read at (1, 0, 0) to (3, 4, 4)")
    assert "chunk is torn" in message
    assert "\n" not in message
    assert isinstance(caught.value.__cause__, OSError)


class TestHowItIsStored:
    @pytest.mark.parametrize(
        ("shape", "chunks", "expected"),
        [
            ((4, 5, 6), None, (4, 5, 6)),
            ((4, 5, 6), (2, 5, 3), (2, 5, 3)),
            ((4, 5, 6), (8, 8, 8), (4, 5, 6)),
            ((4, 5, 6), ((3, 1), (2, 2, 1), (6,)), (3, 2, 6)),
            ((5, 6), (2, 3), (1, 2, 3)),
            ((2, 4, 5, 6), (1, 2, 3, 4), (2, 3, 4)),
            ((4, 5, 6), (2, 5), (4, 5, 6)),
        ],
    )
    def test_chunk_size_is_what_the_array_says(self, shape, chunks, expected):
        array = ArrayLike(np.zeros(shape))
        array.chunks = chunks
        assert ArraySource(array).chunk_size == expected

    def test_what_is_said_counts_more(self):
        geometry = Geometry((4.0, 1.0, 1.0), units=("nanometer",) * 3)
        source = ArraySource(np.zeros((4, 5, 6)), chunk_size=(1, 5, 6), geometry=geometry)
        assert source.chunk_size == (1, 5, 6)
        assert source.geometry is geometry

    def test_an_array_is_of_no_series_and_has_voxels_of_size_one(self):
        source = ArraySource(np.zeros((4, 5, 6)))
        source.keep(100)
        assert source.time is None
        assert source.geometry == Geometry()

    def test_a_part_is_stored_as_the_whole(self):
        source = ArraySource(np.zeros((4, 5, 6)), chunk_size=(1, 2, 3))
        assert part_of(source, (1, 0, 0), (2, 5, 6)).chunk_size == (1, 2, 3)


def test_a_source_that_says_itself_what_is_wrong_is_quoted_as_it_is():
    class Damaged(ArraySource):
        def read(self, box):
            raise SourceError("chunk 3 is damaged")

    with pytest.raises(SourceError) as caught:
        read_patch(Damaged(np.zeros((4, 4, 4))), Box((0, 0, 0), (4, 4, 4)), "edge")
    assert str(caught.value) == "chunk 3 is damaged"
