import math

import numpy as np
import pytest

from napari_seamless.engine.box import Box
from napari_seamless.engine.geometry import Geometry
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.io.stores import zarr_layout
from napari_seamless.io.stores.pyramid import (
    all_there,
    halved,
    levels_of,
    share_of_pyramid,
)
from napari_seamless.io.stores.zarr_layout import ZarrLayout

ANISOTROPIC = Geometry((40.0, 4.0, 4.0), (0.0, 10.0, 20.0), ("nanometer",) * 3)


def layout_of(shape, patch_size, overlap=0.5, chunk_size=None, spacing="snap"):
    grid = PatchGrid.regular(shape, patch_size, overlap, spacing=spacing)
    return ZarrLayout.of(grid, chunk_size)


class TestLayout:
    @pytest.mark.parametrize(
        ("shape", "patch_size", "overlap", "chunk", "unit"),
        [
            ((2048, 2048, 2048), (128, 128, 128), 0.5, (64, 64, 64), (64, 256, 256)),
            ((100, 1000, 1000), (16, 160, 160), 0.5, (16, 160, 160), (16, 640, 320)),
            ((100, 1000, 1000), (18, 160, 160), (9, 80, 80), (18, 160, 160), (18, 640, 320)),
            ((500, 500, 500), (97, 97, 97), 0.0, (97, 97, 97), (97, 194, 194)),
            # one patch along an axis: any chunk does
            ((50, 200, 200), (64, 256, 256), 0.5, (50, 64, 64), (50, 256, 256)),
            # images
            ((1, 4096, 4096), (1, 512, 512), 0.5, (1, 256, 256), (1, 2048, 2048)),
            # plane by plane through a volume
            ((1000, 1000, 1000), (1, 512, 512), 0.5, (16, 128, 128), (16, 512, 512)),
            # tiny
            ((3, 4, 5), (2, 2, 2), 0.5, (3, 4, 5), (3, 4, 5)),
            ((1, 1, 1), (8, 8, 8), 0.5, (1, 1, 1), (1, 1, 1)),
            # too many units of the usual size
            ((20_000,) * 3, (128, 128, 128), 0.5, (64, 64, 64), (64, 1024, 1024)),
        ],
    )
    def test_sizes(self, shape, patch_size, overlap, chunk, unit):
        assert layout_of(shape, patch_size, overlap) == ZarrLayout(chunk, unit)

    @pytest.mark.parametrize("stride", range(1, 150))
    def test_units_end_where_patches_start_if_they_can(self, stride):
        """A chunk of 32 to 128 voxels can be a multiple of the stride, or a part of it."""
        layout = layout_of((999, 9999, 9999), (1000, 150, 150), (0, 150 - stride, 150 - stride))
        possible = any(e % stride == 0 or stride % e == 0 for e in range(32, 129))
        for edge, unit in zip(layout.chunk[1:], layout.unit[1:], strict=True):
            assert 32 <= edge <= 128
            assert unit % edge == 0
            assert (unit % stride == 0) == possible
        assert math.prod(layout.unit) <= zarr_layout.UNIT_VOXELS

    def test_the_shifted_last_patch_does_not_count(self):
        """Starts 0, 100, 165: of two distances, the larger one is the stride."""
        assert layout_of((1, 64, 365), (1, 64, 200)).chunk[2] == 300

    def test_even_spacing_that_fits_nothing(self):
        layout = layout_of((400, 1000, 1000), (100, 130, 130), 0.4, spacing="even")
        assert all(32 <= edge <= 128 for edge in layout.chunk)
        assert all(u % c == 0 for u, c in zip(layout.unit, layout.chunk, strict=True))

    def test_a_size_of_chunks_that_is_asked_for(self):
        layout = layout_of((100, 1000, 1000), (32, 64, 64), chunk_size=(7, 33, 33))
        assert layout.chunk == (7, 33, 33)
        assert layout.unit[0] == 7
        assert layout.unit[1] % 33 == layout.unit[2] % 33 == 0
        assert layout_of((3, 4, 5), (2, 2, 2), chunk_size=(64, 64, 64)).chunk == (3, 4, 5)

    def test_one_chunk_is_no_shard(self):
        assert not layout_of((3, 4, 5), (2, 2, 2)).is_sharded
        assert layout_of((100, 1000, 1000), (32, 64, 64)).is_sharded


class TestLevels:
    def test_equal_voxels(self):
        levels = levels_of((100, 1000, 513), Geometry())
        assert [level.shape for level in levels] == [
            (100, 1000, 513),
            (50, 500, 257),
            (25, 250, 129),
        ]
        assert [level.factors for level in levels] == [(1, 1, 1), (2, 2, 2), (2, 2, 2)]

    def test_the_smallest_voxels_are_halved_first(self):
        levels = levels_of((100, 8000, 8000), ANISOTROPIC)
        assert [level.factors for level in levels[1:]] == [(1, 2, 2)] * 3 + [(2, 2, 2)] * 2
        assert levels[-1].shape == (25, 250, 250)
        assert levels[-1].geometry.scale == (160.0, 128.0, 128.0)

    def test_the_first_voxel_is_centred_on_those_it_is_made_of(self):
        levels = levels_of((100, 600, 600), ANISOTROPIC)
        assert [level.geometry.translation for level in levels] == [
            (0.0, 10.0, 20.0),
            (0.0, 12.0, 22.0),
            (0.0, 16.0, 26.0),
        ]
        assert {level.geometry.units for level in levels} == {("nanometer",) * 3}

    def test_small_volumes_have_one_level(self):
        assert len(levels_of((256, 256, 256), Geometry())) == 1
        assert len(levels_of((1, 1, 1), Geometry())) == 1

    def test_images_are_halved_along_two_axes(self):
        levels = levels_of((1, 1000, 1000), Geometry((0.1, 1.0, 1.0)))
        assert [level.shape for level in levels] == [(1, 1000, 1000), (1, 500, 500), (1, 250, 250)]
        assert levels[1].geometry.scale == (0.1, 2.0, 2.0)
        assert share_of_pyramid(levels) == pytest.approx(1 + 1 / 4 + 1 / 16)

    def test_a_long_axis_of_large_voxels_ends_as_well(self):
        assert max(levels_of((5000, 20, 20), ANISOTROPIC)[-1].shape) <= 256

    def test_voxels_below_a_box(self):
        fine, coarse = levels_of((9, 301, 301), ANISOTROPIC)
        assert coarse.shape == (9, 151, 151)
        box = coarse.finer_box(Box((2, 50, 100), (5, 60, 151)), fine)
        assert box == Box((2, 100, 200), (5, 120, 301))


class TestHalving:
    @pytest.mark.parametrize("shape", [(4, 6, 8), (5, 7, 9), (1, 3, 1)])
    @pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 2), (2, 1, 2)])
    @pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "uint16"])
    @pytest.mark.parametrize("missing", [0.0, 0.3, 1.0])
    def test_mean_of_what_is_there(self, shape, factors, dtype, missing):
        random = np.random.default_rng(0)
        values = (200 * random.random(shape)).astype(dtype)
        if dtype.startswith("float"):
            values[random.random(shape) < missing] = np.nan
        coarse = halved(values, factors, is_labels=False)
        assert coarse.dtype == dtype
        expected = np.full([-(-n // f) for n, f in zip(shape, factors, strict=True)], np.nan)
        for cell in np.ndindex(expected.shape):
            block = values[
                tuple(slice(i * f, (i + 1) * f) for i, f in zip(cell, factors, strict=True))
            ]
            if not np.isnan(block).all():
                expected[cell] = np.nanmean(block.astype(np.float64))
        if dtype.startswith("uint"):
            assert np.abs(coarse - expected).max() <= 0.5
        else:
            np.testing.assert_allclose(coarse, expected, rtol=1e-3 if dtype == "float16" else 1e-6)

    def test_labels_are_not_mixed(self):
        values = np.array([[[7, 7, 1], [7, 2, 3]]], np.uint16)
        np.testing.assert_array_equal(halved(values, (1, 2, 2), is_labels=True)[0, 0, 0], 7)
        random = np.random.default_rng(1).integers(0, 5, (6, 7, 8)).astype(np.uint8) * 50
        assert set(np.unique(halved(random, (2, 2, 2), is_labels=True))) <= set(np.unique(random))


def test_what_is_above_finished_units():
    finished = np.ones((3, 4, 5), bool)
    finished[2, 3, 4] = finished[0, 0, 1] = False
    above = all_there(finished, (2, 1, 2))
    assert above.shape == (2, 4, 3)
    assert np.argwhere(~above).tolist() == [[0, 0, 0], [1, 3, 2]]
