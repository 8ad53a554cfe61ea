import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import RecordingSource, properties, seeds
from napari_seamless.engine import normalization
from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import ConfigError, SourceError
from napari_seamless.engine.normalization import Normalizer, normalizer_of
from napari_seamless.engine.source import ArraySource

MEASURED = ["minmax", "percentile", "zscore"]
DTYPES = [bool, "u1", "u2", ">u2", "u4", "u8", "i1", "i2", "i4", "f2", "f4", ">f4", "f8"]
SHAPE = (3, 5, 7, 6)


def volume(dtype, shape=SHAPE, seed=0):
    """Channels of different ranges; 16 bits sit on an offset that swallows a sum of squares."""
    random = np.random.default_rng(seed)
    kind = np.dtype(dtype).kind
    if kind == "b":
        return random.random(shape) < 0.4
    channel = np.arange(shape[0]).reshape(-1, 1, 1, 1)
    if kind == "f":
        return (random.normal(3 * channel, 1 + channel, shape)).astype(dtype)
    if np.dtype(dtype).itemsize == 1:
        return random.integers(0, 20 * (1 + channel), shape).astype(dtype)
    offset = 60000 if kind == "u" else -30000
    return (offset + random.integers(0, 1000 * (1 + channel), shape)).astype(dtype)


def by_numpy(array, how, percentiles=(1, 99)):
    """The normalised volume in float64, by plain numpy on the whole of it."""
    values = array.astype(np.float64)
    axes = (1, 2, 3)
    if how == "zscore":
        return (values - values.mean(axes, keepdims=True)) / values.std(axes, keepdims=True)
    ends = (0, 100) if how == "minmax" else percentiles
    low, high = np.percentile(values, ends, axis=axes, keepdims=True)
    return (values - low) / (high - low)


def refused(source, how, **options):
    """Return the message of the refusal, which must be one line."""
    with pytest.raises(SourceError) as caught:
        normalizer_of(source, how, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestWithoutReading:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_none_only_changes_the_type(self, dtype):
        array = volume(dtype)
        source = RecordingSource(array)
        values = normalizer_of(source, "none")(array)
        assert source.boxes == []
        assert values.dtype == np.float32
        assert values.dtype.isnative
        np.testing.assert_array_equal(values, array.astype(np.float32))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_dtype_divides_unsigned_integers(self, dtype):
        array = volume(dtype)
        source = RecordingSource(array)
        values = normalizer_of(source, "dtype")(array)
        expected = array.astype(np.float32)
        if np.dtype(dtype).kind == "u":
            expected /= np.float32(np.iinfo(dtype).max)
        assert source.boxes == []
        np.testing.assert_array_equal(values, expected)

    @pytest.mark.parametrize("dtype", ["u1", "u2"])
    def test_dtype_gives_the_same_bits_for_every_value(self, dtype):
        every = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(1, 1, 1, -1)
        expected = every.astype(np.float32) / np.float32(np.iinfo(dtype).max)
        values = normalizer_of(ArraySource(every), "dtype")(every)
        assert values.tobytes() == expected.tobytes()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_fixed(self, dtype):
        array = volume(dtype)
        source = RecordingSource(array)
        values = normalizer_of(source, "fixed", mean_std=(4.5, 3.0))(array)
        assert source.boxes == []
        np.testing.assert_array_equal(values, ((array.astype(float) - 4.5) / 3).astype(np.float32))

    @pytest.mark.parametrize(
        "given_", [None, (0.0, 0.0), (0.0, -1.0), (np.nan, 1.0), (0.0, np.inf), (np.inf, 1.0)]
    )
    def test_fixed_needs_both_numbers(self, given_):
        with pytest.raises(ConfigError, match=r"^normalization 'fixed' has mean_std .* above 0$"):
            normalizer_of(ArraySource(volume("u1")), "fixed", mean_std=given_)

    def test_a_large_offset_is_rounded_once(self):
        """Near 2^24 float32 knows only even numbers; the differences must survive."""
        array = np.arange(2**25, 2**25 + 8, dtype=np.int32).reshape(1, 1, 1, -1)
        values = normalizer_of(ArraySource(array), "fixed", mean_std=(2.0**25, 1.0))(array)
        assert values.ravel().tolist() == list(range(8))

    def test_the_input_is_left_alone(self):
        for how in ("none", "dtype", "zscore"):
            array = volume("f4")
            values = normalizer_of(ArraySource(array), how)(array)
            values[...] = -1
            np.testing.assert_array_equal(array, volume("f4"))

    def test_batches_are_normalised_like_their_patches(self):
        array = volume("f4")
        normalizer = normalizer_of(ArraySource(array), "zscore")
        np.testing.assert_array_equal(normalizer(array[None])[0], normalizer(array))

    def test_it_is_a_value(self):
        one, other = (normalizer_of(ArraySource(volume("u1")), "minmax") for _ in range(2))
        assert one == other
        assert hash(one) == hash(other)
        with pytest.raises(AttributeError):
            one.shift = (0.0,)

    @pytest.mark.parametrize("scale", [1e-10, 1e-300])
    def test_values_that_become_too_large(self, scale):
        normalizer = Normalizer((0.0, 0.0), (1.0, scale))
        fits = normalizer(np.zeros((2, 1, 1, 1)))
        assert not fits.any()
        with pytest.raises(SourceError, match=r"too large for float32 .* choose another") as caught:
            normalizer(np.full((2, 1, 1, 1), 1e30))
        assert "\n" not in str(caught.value)


class TestStatistics:
    @pytest.mark.parametrize("slab", [1, 10, 50, 400, 10**6])
    @pytest.mark.parametrize("how", MEASURED)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_as_numpy_on_the_whole_volume(self, dtype, how, slab, monkeypatch):
        monkeypatch.setattr(normalization, "SLAB_VOXELS", slab)
        array = volume(dtype)
        values = normalizer_of(ArraySource(array), how, percentiles=(10, 85))(array)
        assert values.dtype == np.float32
        expected = by_numpy(array, how, (10, 85))
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("how", MEASURED)
    @pytest.mark.parametrize(
        "shape", [(1, 1, 1, 9), (2, 1, 9, 1), (1, 9, 1, 1), (2, 1, 4, 5), (1, 4, 1, 5)]
    )
    def test_axes_of_one_voxel(self, shape, how, monkeypatch):
        monkeypatch.setattr(normalization, "SLAB_VOXELS", 6)
        array = volume("f8", shape)
        values = normalizer_of(ArraySource(array), how)(array)
        np.testing.assert_allclose(values, by_numpy(array, how), rtol=1e-6, atol=1e-6)

    def test_what_becomes_of_the_ends(self):
        array = volume("u2")
        axes = (1, 2, 3)
        values = normalizer_of(ArraySource(array), "minmax")(array)
        assert values.min(axes).tolist() == [0, 0, 0]
        assert values.max(axes).tolist() == [1, 1, 1]
        values = normalizer_of(ArraySource(array), "percentile", (25, 75))(array)
        assert (values.min(axes) < -0.2).all()  # not clipped
        assert (values.max(axes) > 1.2).all()
        values = normalizer_of(ArraySource(array), "zscore")(array).astype(float)
        np.testing.assert_allclose(values.mean(axes), 0, atol=1e-6)
        np.testing.assert_allclose(values.std(axes), 1, atol=1e-6)

    @pytest.mark.parametrize("offset", [60000, -30000, 2**24])
    def test_a_large_offset_leaves_mean_and_deviation_exact(self, offset, monkeypatch):
        """A naive sum of squares is off by far more than this."""
        monkeypatch.setattr(normalization, "SLAB_VOXELS", 100)
        small = np.random.default_rng(1).integers(0, 3, (1, 20, 10, 10))
        dtype = {60000: np.uint16, -30000: np.int16, 2**24: np.int32}[offset]
        normalizer = normalizer_of(ArraySource((small + offset).astype(dtype)), "zscore")
        digit = abs(offset) * np.finfo(float).eps  # the last one of float64
        np.testing.assert_allclose(normalizer.shift[0] - offset, small.mean(), atol=digit)
        np.testing.assert_allclose(normalizer.scale[0], small.std(), rtol=1e-12 + digit)

    @given(
        seed=seeds,
        count=st.integers(1, 40),
        low=st.floats(0, 99),
        high=st.floats(0, 100),
        dtype=st.sampled_from(["u1", "i1", "i2", "i4", "f4", "f8"]),
        slab=st.integers(1, 50),
    )
    @properties(200)
    def test_percentiles_interpolate_as_numpys(self, seed, count, low, high, dtype, slab):
        random = np.random.default_rng(seed)
        array = random.integers(-100, 28, (1, 1, count, 1)).astype(dtype)
        low, high = sorted((low, high))
        expected = np.percentile(array.astype(float), (low, high))
        if dtype == "u1":
            expected = np.percentile(array, (low, high))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(normalization, "SLAB_VOXELS", slab)
            try:
                found = normalizer_of(ArraySource(array), "percentile", (low, high))
            except SourceError:
                assert abs(expected[1] - expected[0]) < 1e-11
                return
        np.testing.assert_allclose(found.shift[0], expected[0], rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(found.scale[0], expected[1] - expected[0], atol=1e-10)

    def test_percentiles_to_the_ends(self):
        for dtype in ("i2", "f4"):
            array = volume(dtype)
            ends = normalizer_of(ArraySource(array), "percentile", (0, 100))
            assert ends == normalizer_of(ArraySource(array), "minmax")


class TestReading:
    @pytest.mark.parametrize("slab", [1, 4, 11, 40, 10**6])
    @pytest.mark.parametrize("how", MEASURED)
    def test_every_voxel_is_read_once(self, how, slab, monkeypatch):
        monkeypatch.setattr(normalization, "SLAB_VOXELS", slab)
        source = RecordingSource(volume("f4"))
        normalizer_of(source, how)
        times = np.zeros(SHAPE[1:], int)
        for box in source.boxes:
            times[box.slices] += 1
            assert np.prod(box.shape) * SHAPE[0] <= max(slab, SHAPE[0])
        assert (times == 1).all()
        assert (len(source.boxes) == 1) == (slab == 10**6)

    @pytest.mark.parametrize("how", MEASURED)
    def test_a_volume_that_cannot_be_read(self, how):
        class Broken(ArraySource):
            def read(self, box):
                raise RuntimeError("the disk is gone\nlong story")

        assert refused(Broken(volume("u1"), "raw.h5"), how) == (
            "raw.h5 cannot be read at (0, 0, 0) to (5, 7, 6) (Z, Y, X): the disk is gone"
        )

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("how", MEASURED)
    def test_the_place_of_what_is_not_finite(self, how, bad, monkeypatch):
        monkeypatch.setattr(normalization, "SLAB_VOXELS", 3 * 6)
        array = volume("f4")
        array[1, 3, 4, 2] = bad
        assert refused(ArraySource(array, "raw.h5"), how).startswith(
            f"raw.h5 holds {bad} at channel 1, (3, 4, 2) (Z, Y, X)"
        )

    @pytest.mark.parametrize(
        ("how", "said"),
        [
            ("minmax", "all values are 0.1"),
            ("percentile", "percentiles 1 and 99 are both 0.1"),
            ("zscore", "all values are 0.1"),
        ],
    )
    def test_a_constant_channel(self, how, said, monkeypatch):
        monkeypatch.setattr(normalization, "SLAB_VOXELS", 100)
        array = volume("f8")
        array[1] = 0.1  # its mean is not 0.1 to the last digit
        assert refused(ArraySource(array, "raw.h5"), how) == (
            f"raw.h5 cannot be scaled by normalization {how!r}: in channel 1, {said}; "
            "choose none, dtype, or fixed with a mean_std"
        )

    @pytest.mark.parametrize("dtype", ["u1", "f4"])
    def test_percentiles_that_coincide(self, dtype):
        array = np.zeros((1, 10, 10, 10), dtype)
        array[0, 0, 0, :5] = 7
        assert "percentiles 1 and 99 are both 0;" in refused(ArraySource(array), "percentile")
        normalizer_of(ArraySource(array), "percentile", (1, 100))


class TestSampling:
    """Volumes beyond the limits, which the tests make small."""

    @pytest.fixture(autouse=True)
    def small_limits(self, monkeypatch):
        monkeypatch.setattr(normalization, "EXACT_VOXELS", 10 * 6 * 8)
        monkeypatch.setattr(normalization, "SAMPLE_VOXELS", 5 * 6 * 8)
        monkeypatch.setattr(normalization, "FEWEST_PLANES", 2)

    @staticmethod
    def planes_read(source):
        assert all(box.shape[0] == 1 for box in source.boxes)
        return sorted({box.start[0] for box in source.boxes})

    @pytest.mark.parametrize("slab", [16, 10**6])
    @pytest.mark.parametrize(
        ("how", "dtype", "count"),
        [
            ("minmax", "f4", 10),
            ("zscore", "f4", 10),
            ("percentile", "u2", 10),
            ("percentile", "f4", 5),
            ("percentile", "u4", 5),
        ],
    )
    def test_whole_planes_evenly_spaced(self, how, dtype, count, slab, monkeypatch):
        monkeypatch.setattr(normalization, "SLAB_VOXELS", slab)
        array = volume(dtype, (2, 33, 6, 8))
        source = RecordingSource(array)
        normalizer = normalizer_of(source, how)
        planes = self.planes_read(source)
        assert len(planes) == count
        gaps = np.diff(planes)
        assert gaps.max() - gaps.min() <= 1
        assert abs(planes[0] - (32 - planes[-1])) <= 1
        assert sum(np.prod(box.shape) for box in source.boxes) == count * 6 * 8
        expected = by_numpy(array[:, planes], how)
        np.testing.assert_allclose(normalizer(array[:, planes]), expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("how", MEASURED)
    @pytest.mark.parametrize("dtype", ["u1", "f4"])
    def test_as_many_as_the_limit_are_exact(self, how, dtype):
        depth = 5 if (how, dtype) == ("percentile", "f4") else 10
        source = RecordingSource(volume(dtype, (1, depth, 6, 8)))
        normalizer_of(source, how)
        assert [box.shape for box in source.boxes] == [(depth, 6, 8)]

    def test_at_least_a_few_planes_however_large(self):
        source = RecordingSource(volume("f4", (1, 9, 60, 80)))
        normalizer_of(source, "minmax")
        assert self.planes_read(source) == [2, 6]

    @pytest.mark.parametrize("slab", [80, 7 * 80, 10**6])
    @pytest.mark.parametrize("shape", [(2, 1, 60, 80), (2, 1, 1, 4800), (2, 9, 60, 80)])
    def test_of_planes_too_large_to_keep_voxels_all_over_them(self, shape, slab, monkeypatch):
        monkeypatch.setattr(normalization, "SLAB_VOXELS", slab)
        position = np.indices(shape)[2:].sum(axis=0).astype(np.float32)
        kept = []
        keep = normalization._Kept.add
        monkeypatch.setattr(
            normalization._Kept,
            "add",
            lambda self, values: (keep(self, values), kept.append(self))[0],
        )
        normalizer = normalizer_of(ArraySource(position), "percentile", (0, 100))
        taken = sum(part.size for part in kept[-1]._parts)
        assert taken == 0  # let go of once it is asked for
        assert normalizer.shift[0] < 0.05 * position.max()
        assert normalizer.shift[0] + normalizer.scale[0] > 0.95 * position.max()

    def test_what_is_kept_is_spread_over_rows_and_columns(self):
        planes, shape = 2, (1, 9, 60, 80)
        source = ArraySource(np.zeros(shape, np.float32))
        statistic = normalization._statistic("percentile", source, (1, 99), planes)
        index = np.arange(planes * 60 * 80)
        for part in np.split(index, [100, 101, 5000]):  # in any parts
            statistic.add(part)
        kept = np.concatenate(statistic._parts)
        assert 0.8 * 240 < kept.size <= 240
        assert len(set(np.diff(kept))) == 1
        plane, row, column = np.unravel_index(kept, (planes, 60, 80))
        assert set(plane) == {0, 1}
        assert set(row) == set(range(60))
        assert len(set(column)) == 80

    def test_a_constant_sample_says_that_it_is_one(self):
        array = np.zeros((1, 40, 6, 8), np.uint8)
        array[0, 0] = 1
        assert "all values are 0 in the 10 of 40 planes read;" in refused(
            ArraySource(array), "zscore"
        )


def test_slabs_are_in_storage_order():
    boxes = list(normalization._slabs((1, 3, 4, 5), range(3)))
    assert boxes == [Box((0, 0, 0), (3, 4, 5))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(normalization, "SLAB_VOXELS", 2 * 5 * 2)
        starts = [box.start for box in normalization._slabs((2, 3, 4, 5), range(3))]
    assert starts == list(itertools.product((0, 1, 2), (0, 2), (0,)))
