"""The numbers under the picture of the window."""

import numpy as np
import pytest

from napari_seamless.engine.errors import ConfigError
from napari_seamless.engine.windows import build_window
from napari_seamless.gui.panel.profile import caption, profile_of, profile_or_none


def test_hann_windows_of_half_overlap_add_up_to_one():
    profile = profile_of((1, 8, 63), (0.5, 0.5, 31), "hann")

    assert (profile.axis, profile.stride, profile.starts) == ("x", 32, (0, 32, 64))
    np.testing.assert_allclose(profile.total, 1, rtol=1e-12)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("blending", ["gaussian", "monai_gaussian", "distance_transform"])
def test_the_sum_is_that_of_all_patches_in_a_long_row(blending, overlap):
    profile = profile_of((4, 40, 10), overlap, blending)
    stride = max(1, int(40 * (1 - overlap)))
    taper = build_window((1, 1, 40), blending).in_float64().ravel()
    row = np.zeros(40 + 40 * stride)
    for start in range(0, 40 * stride + 1, stride):
        row[start : start + 40] += taper

    assert profile.axis == "y"
    np.testing.assert_array_equal(profile.taper, taper)
    first = 20 * stride
    np.testing.assert_allclose(profile.total, row[first : first + 40 + 2 * stride], rtol=1e-12)


def test_it_says_how_often_a_voxel_is_predicted():
    assert profile_of((8, 128, 128), 0.5, "gaussian").per_voxel == 8
    assert profile_of((1, 128, 128), 0.5, "gaussian").per_voxel == 4
    said = caption(profile_of((8, 128, 128), 0.25, "gaussian"))
    assert said == "stride 96 voxels along x, 2.37 patches per voxel"


def test_arguments_of_the_window_count():
    wide = profile_of((1, 1, 65), 0.5, "gaussian", {"sigma": 0.5})
    assert wide.taper[0] == pytest.approx(1e-4 + np.exp(-2), rel=1e-12)


def test_what_cannot_work_has_no_profile():
    settings = {"patch_size": (8, 8, 8), "overlap": 8, "blending": "gaussian"}
    with pytest.raises(ConfigError, match="overlap 8"):
        profile_of((1, 8, 8), 8, "gaussian")
    assert profile_or_none(settings) is None
    assert profile_or_none(settings | {"overlap": 4}).stride == 4
