from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import properties, seeds
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.values import labelled, saved

KINDS = ["float32", "float16", "uint8", "uint16"]
NAN = np.nan


def row(*values):
    """A prediction of these values, (1, 1, 1, X)."""
    return np.array(values, np.float32).reshape(1, 1, 1, -1)


def listed(array):
    return np.asarray(array).ravel().tolist()


def predicted(shape=(3, 4, 5, 6), seed=0):
    """Values around 0 to 1, a part of them not predicted."""
    values = np.random.default_rng(seed).uniform(-0.2, 1.2, shape).astype(np.float32)
    values[:, :, 2:4, 1:] = NAN
    return values


class Backed:
    """A lazy prediction, with the regions that were read."""

    def __init__(self, values) -> None:
        self.reads = []
        self.values = values
        self.lazy = LazyArray(values.shape, np.float32, self.read)

    def read(self, ranges):
        self.reads.append(ranges)
        return self.values[ranges].copy()


class TestSaved:
    def test_float32_is_the_prediction_itself(self):
        prediction = Backed(predicted()).lazy
        assert saved(prediction, "float32") is prediction
        assert saved(prediction, "float32", 1.0) is prediction

    @pytest.mark.parametrize(
        ("dtype", "scale", "expected"),
        [
            ("uint8", None, [0, 0, 51, 128, 255, 255, 255, 0]),
            ("uint16", None, [0, 0, 13107, 32768, 65535, 65535, 65535, 0]),
            ("uint8", 1, [0, 0, 0, 0, 1, 2, 255, 0]),
            ("uint8", 10, [0, 0, 2, 5, 10, 15, 255, 0]),
            ("uint8", 0, [0] * 8),
        ],
    )
    def test_integers_are_scaled_rounded_and_clipped(self, dtype, scale, expected):
        prediction = row(-3e38, -1, 0.2, 0.5, 1, 1.5, 3e38, NAN)
        result = saved(prediction, dtype, scale)
        assert result.dtype == dtype
        assert result.shape == prediction.shape
        assert np.asarray(result).dtype == dtype
        assert listed(result) == expected

    @pytest.mark.parametrize("scale", [1, 1.0, 2])
    def test_half_goes_to_even(self, scale):
        halves = row(0.5, 1.5, 2.5, 3.5, 253.5, 254.5, 255.5, -0.5) / scale
        assert listed(saved(halves, "uint8", scale)) == [0, 2, 2, 4, 254, 254, 255, 0]

    @pytest.mark.parametrize("dtype", ["uint8", "uint16"])
    def test_rounded_once_beside_every_boundary(self, dtype):
        """The float32 just below, at and just above each half, by exact fractions."""
        most = np.iinfo(dtype).max
        steps = np.arange(0, most, 1 if most == 255 else 97)
        near = ((steps + 0.5) / most).astype(np.float32)
        near = np.concatenate(
            [near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(2))]
        )
        expected = [round(Fraction(float(value)) * most) for value in near]  # half to even
        assert listed(saved(row(*near), dtype)) == expected

    @pytest.mark.parametrize(
        ("dtype", "scale", "expected"),
        [
            ("float16", None, [-65504, -1, 0.5, 65504, 65504, NAN]),
            ("float16", 2, [-65504, -2, 1, 65504, 65504, NAN]),
            ("float32", 2, [-np.finfo("f4").max, -2, 1, 131020, np.finfo("f4").max, NAN]),
            ("float32", 1e300, [-np.finfo("f4").max] * 2 + [np.finfo("f4").max] * 3 + [NAN]),
        ],
    )
    def test_floats_are_clipped_to_what_is_finite(self, dtype, scale, expected):
        result = saved(row(-3e38, -1, 0.5, 65510, 3e38, NAN), dtype, scale)
        assert np.asarray(result).dtype == dtype
        np.testing.assert_array_equal(listed(result), np.array(expected, float))

    def test_floats_are_rounded_once(self):
        values = np.random.default_rng(0).random(1000, dtype=np.float32)
        by_ten = saved(row(*values), "float16", 10)
        np.testing.assert_array_equal(
            listed(by_ten), (values.astype(float) * 10).astype(np.float16)
        )
        # 1 + 2^-11 + 2^-30 is above the middle of two halves; by way of float32 it is the middle
        exact = row(1 / 3)
        scale = 3 * (1 + 2**-11 + 2**-30)
        assert listed(saved(exact, "float16", scale)) == [1 + 2**-10]

    def test_small_values_and_signs_do_not_warn(self):
        tiny = row(1e-45, -1e-45, -0.0, 1e-7)
        for dtype in KINDS:
            assert listed(saved(tiny, dtype, 1))[2] == 0

    @pytest.mark.parametrize("dtype", KINDS)
    def test_nothing_predicted(self, dtype):
        result = np.asarray(saved(np.full((2, 1, 2, 2), NAN, np.float32), dtype, 3))
        assert np.isnan(result).all() if result.dtype.kind == "f" else not result.any()

    @pytest.mark.parametrize("dtype", KINDS)
    def test_the_prediction_is_left_alone(self, dtype):
        prediction = predicted()
        np.asarray(saved(prediction, dtype, 2))
        np.testing.assert_array_equal(prediction, predicted())


class TestLabelled:
    def test_argmax(self):
        prediction = np.concatenate(
            [
                row(0.9, 0.1, 0.3, -1, 0, NAN),
                row(0.1, 0.2, 0.3, -2, NAN, NAN),
                row(0, 3, 0, 0, 0, 1),
            ]
        )
        labels = labelled(prediction, "argmax")
        assert labels.shape == (1, 1, 1, 6)
        assert labels.dtype == np.uint8
        assert np.asarray(labels).dtype == np.uint8
        assert listed(labels) == [0, 2, 0, 2, 0, 0]  # equals: the first; NaN: 0

    def test_argmax_as_numpys(self):
        prediction = predicted()
        expected = np.where(np.isnan(prediction[:1]), 0, prediction.argmax(axis=0)[None])
        np.testing.assert_array_equal(labelled(prediction, "argmax"), expected)

    @pytest.mark.parametrize(
        ("channels", "dtype"), [(1, "uint8"), (256, "uint8"), (257, "uint16"), (300, "uint16")]
    )
    def test_argmax_of_many_channels(self, channels, dtype):
        prediction = np.zeros((channels, 1, 1, 2), np.float32)
        prediction[-1, 0, 0, 1] = 1
        labels = labelled(prediction, "argmax")
        assert labels.dtype == dtype
        assert listed(labels) == [0, channels - 1]

    def test_threshold(self):
        prediction = row(0.4, 0.5, 0.6, NAN, -1, 2)
        labels = labelled(np.concatenate([prediction, -prediction]), "threshold")
        assert labels.shape == (2, 1, 1, 6)
        assert np.asarray(labels).dtype == np.uint8
        assert listed(labels) == [0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0]

    @pytest.mark.parametrize("threshold", [0.1, -0.1, 0, 0.7, 1e300, -1e300])
    def test_threshold_as_numpys(self, threshold):
        prediction = np.append(predicted(), row(0.1, 0.7)).astype(np.float32).reshape(1, 1, 1, -1)
        with np.errstate(over="ignore"):
            expected = (prediction > threshold).astype(np.uint8)
        np.testing.assert_array_equal(labelled(prediction, "threshold", threshold), expected)


ALL = {
    **{f"saved {dtype}": lambda of, dtype=dtype: saved(of, dtype, 100) for dtype in KINDS},
    "argmax": lambda of: labelled(of, "argmax"),
    "threshold": lambda of: labelled(of, "threshold"),
}


@pytest.mark.parametrize("name", ALL)
def test_only_what_is_asked_for_is_read(name):
    backed = Backed(predicted())
    result = ALL[name](backed.lazy)
    assert backed.reads == []
    channel = 2 if result.shape[0] > 2 else 0
    part = result[channel, 1:3, ::2, -1]
    assert part.shape == (2, 3)
    channels = slice(0, 3) if name == "argmax" else slice(channel, channel + 1)
    assert backed.reads == [(channels, slice(1, 3), slice(0, 5), slice(5, 6))]
    assert result[:0].shape == (0, 4, 5, 6)
    assert result[:, :, 3:3].shape == (result.shape[0], 4, 0, 6)


@pytest.mark.parametrize("name", ALL)
@given(seed=seeds, data=st.data())
@properties(30)
def test_pieces_agree_with_the_whole(name, seed, data):
    backed = Backed(predicted(seed=seed))
    result = ALL[name](backed.lazy)
    whole = np.asarray(result)
    assert whole.shape == result.shape
    assert whole.dtype == result.dtype
    key = tuple(
        slice(low := data.draw(st.integers(0, n - 1)), data.draw(st.integers(low, n)))
        for n in result.shape
    )
    np.testing.assert_array_equal(result[key], whole[key])
    assert result[key].dtype == result.dtype
