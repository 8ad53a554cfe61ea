import numpy as np
import pytest
import torch

from engine.helpers import config_of
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
