from fractions import Fraction

import numpy as np
import pytest
import torch

from engine.helpers import config_of
from napari_seamless.engine.box import Box
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError, SourceError
from napari_seamless.engine.plan import InferencePlan, resolve_device
from napari_seamless.engine.source import ArraySource


@pytest.fixture
def machine(monkeypatch):
    """Pretend to have some number of GPUs, and Apple's or not."""

    def pretend(gpus: int, apple: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)

    return pretend


@pytest.mark.parametrize(
    ("gpus", "apple", "name", "device"),
    [
        (0, False, "auto", "cpu"),
        (0, False, "cpu", "cpu"),
        (2, False, "auto", "cuda:0"),
        (2, False, "cpu", "cpu"),
        (2, False, "cuda", "cuda"),
        (2, False, "cuda:1", "cuda:1"),
        (0, True, "auto", "mps"),
        (0, True, "mps", "mps"),
    ],
)
def test_devices_that_are_there(machine, gpus, apple, name, device):
    machine(gpus, apple)
    assert resolve_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("gpus", "apple", "name", "choices"),
    [
        (0, False, "cuda", "choose one of auto, cpu"),
        (0, False, "cuda:0", "choose one of auto, cpu"),
        (0, False, "mps", "choose one of auto, cpu"),
        (2, False, "cuda:2", "choose one of auto, cuda:0, cuda:1, cpu"),
        (0, True, "cuda", "choose one of auto, mps, cpu"),
    ],
)
def test_devices_that_are_not_there_are_refused_with_those_that_are(
    machine, gpus, apple, name, choices
):
    machine(gpus, apple)
    with pytest.raises(ConfigError, match=f"'{name}' .*{choices}$"):
        resolve_device(name)


def sources(*shapes, dtype=np.uint8) -> list[ArraySource]:
    return [ArraySource(np.zeros(shape, dtype), f"v{i}") for i, shape in enumerate(shapes)]


def test_a_plan_holds_every_volume_with_its_own_grid():
    config = config_of((4, 4, 4), blending="bump")
    plan = InferencePlan.resolve(config, sources((8, 8, 8), (1, 4, 10, 2), (5, 4)))
    assert plan.config is config
    assert plan.device == torch.device("cpu")
    assert [
        (v.vol_id, v.name, v.shape, v.dtype, v.grid.shape, v.grid.counts) for v in plan.volumes
    ] == [
        (0, "v0", (1, 8, 8, 8), np.uint8, (8, 8, 8), (3, 3, 3)),
        (1, "v1", (1, 4, 10, 2), np.uint8, (4, 10, 2), (1, 4, 1)),
        (2, "v2", (1, 1, 5, 4), np.uint8, (1, 5, 4), (1, 2, 1)),
    ]
    assert [v.region.stop for v in plan.volumes] == [(8, 8, 8), (4, 10, 2), (1, 5, 4)]
    assert plan.patches == 27 + 4 + 2
    assert plan.window.matrix.shape == (4, 4, 4)
    assert plan.window.matrix[0, 0, 0] < plan.window.matrix[1, 1, 1]
    with pytest.raises(AttributeError):
        plan.device = None


@pytest.mark.parametrize(
    ("shapes", "overlap", "redundancy"),
    [
        ([(8, 8, 8)], 0.5, 27 * 64 / 512),
        ([(8, 8, 8)], 0.0, 1.0),
        ([(10, 8, 8)], 0.0, 12 * 64 / 640),  # the snapped patches are paid for
        ([(2, 4, 4)], 0.5, 64 / 32),  # and so is padding
        ([(8, 8, 8), (2, 4, 4)], 0.5, 28 * 64 / (512 + 32)),
    ],
)
def test_redundancy_is_voxels_computed_per_voxel_of_input(shapes, overlap, redundancy):
    plan = InferencePlan.resolve(config_of((4, 4, 4), overlap=overlap), sources(*shapes))
    assert plan.redundancy == pytest.approx(redundancy, rel=1e-12)


def test_no_volume_is_refused():
    with pytest.raises(SourceError, match="empty"):
        InferencePlan.resolve(config_of((4, 4, 4)), [])


def test_volumes_of_different_channels_are_refused_with_the_numbers():
    with pytest.raises(SourceError, match=r"\[1, 3, 1\] channels"):
        InferencePlan.resolve(config_of((4, 4, 4)), sources((8, 8, 8), (3, 8, 8, 8), (5, 4)))


def test_a_device_that_is_not_there_is_refused_by_the_plan(machine):
    machine(0)
    with pytest.raises(ConfigError, match="cuda:7"):
        InferencePlan.resolve(
            InferenceConfig(patch_size=(4, 4, 4), device="cuda:7"), sources((4, 4))
        )


def axes_of(grid) -> list[list[int]]:
    """Starts along Z, Y and X."""
    return [starts.tolist() for starts in grid.starts]


def volume_of(shape, patch_size=(4, 4, 4), **settings):
    """The plan of one volume."""
    (volume,) = InferencePlan.resolve(config_of(patch_size, **settings), sources(shape)).volumes
    return volume


def test_without_region_scale_and_halo_prediction_and_source_have_one_frame():
    volume = volume_of((8, 9, 3))
    assert axes_of(volume.cores) == axes_of(volume.grid) == [[0, 2, 4], [0, 2, 4, 5], [0]]
    assert (volume.region, volume.whole, volume.origin) == (
        Box((0, 0, 0), (8, 9, 3)), (8, 9, 3), (0, 0, 0)
    )  # fmt: skip
    assert volume.context == (0, 0, 0)
    assert volume.input_box(1) == volume.cores[1] == Box((0, 2, 0), (4, 6, 4))
    assert volume.output_box(Box((1, 2, 3), (4, 5, 6))) == Box((1, 2, 3), (4, 5, 6))


def test_a_halo_is_context_around_the_same_patches():
    config = config_of((4, 4, 4), halo=(1, 0, 3))
    plan = InferencePlan.resolve(config, sources((8, 8, 8)))
    assert (plan.input_size, plan.core_size) == ((6, 4, 10), (4, 4, 4))
    assert plan.window.patch_size == (4, 4, 4)
    (volume,) = plan.volumes
    assert volume.context == (1, 0, 3)
    assert axes_of(volume.grid) == [[0, 2, 4]] * 3
    assert volume.input_box(0) == Box((-1, 0, -3), (5, 4, 7))
    assert volume.input_box(26) == Box((3, 4, 1), (9, 8, 11))
    assert plan.redundancy == pytest.approx(27 * 240 / 512, rel=1e-12)


def test_a_region_holds_the_patches_that_touch_it_in_its_own_frame():
    plan = InferencePlan.resolve(
        config_of((4, 4, 4), region="4:5,0:10,9:10"), sources((10, 10, 10))
    )
    (volume,) = plan.volumes
    assert axes_of(volume.cores) == [[2, 4], [0, 2, 4, 6], [6]]
    assert axes_of(volume.grid) == [[-2, 0], [0, 2, 4, 6], [-3]]
    assert volume.grid.shape == (1, 10, 1)
    assert (volume.whole, volume.origin) == ((10, 10, 10), (4, 0, 9))
    assert volume.output_box(Box((4, 3, 8), (6, 4, 9))) == Box((0, 3, -1), (2, 4, 0))
    assert plan.patches == 8
    assert plan.redundancy == pytest.approx(8 * 64 / 10, rel=1e-12)


def test_an_output_at_another_resolution_has_its_own_grid_and_window():
    config = config_of((4, 4, 4), output_scale=(2, 0.5, "3/2"))
    plan = InferencePlan.resolve(config, sources((5, 9, 7)))
    assert plan.window.patch_size == (8, 2, 6)
    (volume,) = plan.volumes
    assert axes_of(volume.cores) == [[0, 1], [0, 2, 4, 6], [0, 2, 4]]
    assert axes_of(volume.grid) == [[0, 2], [0, 1, 2, 3], [0, 3, 6]]
    assert volume.grid.shape == volume.whole == (10, 5, 11)
    assert volume.scale == (Fraction(2), Fraction(1, 2), Fraction(3, 2))
    assert volume.output_box(Box((1, 3, 1), (2, 4, 2))) == Box((2, 1, 1), (4, 2, 3))


def test_a_region_at_another_resolution_is_rounded_out_to_whole_steps():
    volume = volume_of((20, 20, 20), output_scale=(2, 0.5, "3/2"), region="5:9,5:9,5:9")
    assert volume.region == Box((5, 5, 5), (9, 9, 9))
    assert axes_of(volume.cores) == [[2, 4, 6, 8]] * 3
    assert volume.origin == (10, 2, 6)  # of 5, 4 and 4
    assert volume.grid.shape == (8, 3, 9)  # of 5:9, 4:10 and 4:10
    assert axes_of(volume.grid) == [[-6, -2, 2, 6], [-1, 0, 1, 2], [-3, 0, 3, 6]]
    assert volume.whole == (40, 10, 30)
    assert volume.output_box(Box((5, 6, 7), (6, 7, 8))) == Box((0, 1, 4), (2, 2, 6))


def test_a_region_at_the_end_of_a_volume_that_the_step_does_not_divide():
    volume = volume_of((9, 9, 9), output_scale=(0.5, 0.5, 0.5), region="8:9,7:9,0:9")
    assert (volume.whole, volume.origin, volume.grid.shape) == ((5, 5, 5), (4, 3, 0), (1, 2, 5))
    assert axes_of(volume.cores) == [[6], [4, 6], [0, 2, 4, 6]]
    assert axes_of(volume.grid) == [[-1], [-1, 0], [0, 1, 2, 3]]


@pytest.mark.parametrize("spacing", ["snap", "even"])
def test_spacing_and_overlap_reach_the_grid(spacing):
    volume = volume_of((10, 11, 9), grid=spacing, overlap=(0, 1, 0.25))
    expected = {
        "snap": [[0, 4, 6], [0, 3, 6, 7], [0, 3, 5]],
        "even": [[0, 3, 6], [0, 2, 5, 7], [0, 2, 5]],
    }
    assert axes_of(volume.cores) == expected[spacing]


def test_a_narrowed_plan_has_smaller_cores_with_more_context():
    given = sources((12, 12, 12), (8, 6, 3))
    plan = InferencePlan.resolve(config_of((8, 8, 8), region="0:6,0:6,0:3"), given)
    narrow = plan.narrowed((4, 6, 8), given)
    assert (narrow.core_size, narrow.input_size) == ((4, 6, 8), (8, 8, 8))
    assert narrow.window.patch_size == (4, 6, 8)
    first, second = narrow.volumes
    assert first.context == second.context == (2, 1, 0)
    assert axes_of(first.cores) == [[0, 2, 4], [0, 3], [0]]
    assert axes_of(second.cores) == [[0, 2, 4], [0], [-2]]
    assert first.input_box(0) == Box((-2, -1, 0), (6, 7, 8))
    assert (plan.core_size, plan.patches, narrow.patches) == ((8, 8, 8), 4 + 1, 6 + 3)


def test_an_overlap_in_voxels_that_does_not_fit_what_comes_out_is_refused():
    given = sources((20, 20, 20))
    plan = InferencePlan.resolve(config_of((8, 8, 8), overlap=5), given)
    assert axes_of(plan.narrowed((6, 8, 8), given).volumes[0].cores)[0] == list(range(15))
    with pytest.raises(ConfigError, match="overlap 5 does not fit a patch of 4 voxels"):
        plan.narrowed((4, 8, 8), given)


def test_a_patch_that_torch_cannot_index_is_refused():
    with pytest.raises(
        ConfigError, match=r"\(1280, 1280, 1280\) .* has 2,159,976,000 voxels"
    ) as no:
        InferencePlan.resolve(config_of((1280, 1280, 1280), halo=(10, 4, 5)), sources((4, 4)))
    assert "2,147,483,647" in str(no.value)


def test_settings_that_are_no_config_are_refused():
    with pytest.raises(ConfigError, match="config is a dict; give an InferenceConfig"):
        InferencePlan.resolve({"patch_size": (4, 4, 4)}, sources((4, 4)))


def test_patches_start_at_multiples_of_the_step_and_may_reach_outside():
    volume = volume_of((9, 9, 9), patch_size=(4, 4, 4), overlap=0, step=(1, 2, 4))
    assert axes_of(volume.cores) == [[0, 4, 5], [0, 4, 6], [0, 4, 8]]
    assert volume.grid.shape == (9, 9, 9)
    region = volume_of((9, 9, 9), overlap=0, step=(1, 2, 4), region="0:9,0:9,5:8")
    assert axes_of(region.cores) == [[0, 4, 5], [0, 4, 6], [4]]
    assert region.origin == (0, 0, 5)


def test_the_step_of_an_output_scale_and_that_of_the_settings_both_hold():
    volume = volume_of((20, 20, 20), output_scale=(1, 0.5, "1/4"), step=(1, 3, 2), overlap=0.5)
    assert [starts[1] for starts in axes_of(volume.cores)] == [2, 6, 4]
