"""What a prediction depends on, of networks of which it is known."""

import numpy as np
import pytest
import torch
from torch import nn

from engine.helpers import config_of
from napari_seamless.engine.errors import ModelError
from napari_seamless.engine.receptive_field import measure_receptive_field
from napari_seamless.engine.run import Run
from napari_seamless.engine.source import ArraySource

CPU = torch.device("cpu")


def stacked(*kernels: tuple[int, int, int]) -> nn.Module:
    """Convolutions one after the other, zero-padded to keep the size."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for kernel in kernels:
        layers += [nn.Conv3d(1, 1, kernel, padding="same"), nn.LeakyReLU()]
    return nn.Sequential(*layers).eval()


class Pooled(nn.Module):
    """A convolution, pooled by `size` and back, and what was there before."""

    def __init__(self, size: tuple[int, int, int] = (1, 2, 4)) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv3d(1, 1, 3, padding=1)
        self.pool = nn.AvgPool3d(size)
        self.inner = nn.Conv3d(1, 1, 3, padding=1)
        self.up = nn.Upsample(scale_factor=size)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        first = self.first(image)
        result: torch.Tensor = first + self.up(self.inner(self.pool(first)))
        return result


class Placed(nn.Module):
    """Adds where a voxel is along X."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * (1 + torch.arange(image.shape[-1], dtype=image.dtype))


class Jumpy(nn.Module):
    """Depends on its far end without a gradient."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + image[..., :1].detach().round()


def measured(module: nn.Module, patch=(8, 8, 16), **settings):
    return measure_receptive_field(module, config_of(patch, **settings), CPU)


@pytest.mark.parametrize(
    ("kernels", "margin"),
    [
        ([(1, 1, 1)], (0, 0, 0)),
        ([(1, 3, 5)], (0, 1, 2)),
        ([(3, 3, 3), (1, 5, 9)], (1, 3, 5)),
        ([(3, 9, 9)] * 4, (4, 16, 16)),  # more than the patch has beside its middle
    ],
)
def test_the_margin_of_convolutions_is_half_their_kernels(kernels, margin):
    field = measured(stacked(*kernels))
    assert field.margin == margin
    assert field.step == (1, 1, 1)


def test_the_step_is_what_pooling_takes_together():
    field = measured(Pooled())
    assert field.step == (1, 2, 4)
    # the convolutions reach 1 and 1 cell; a voxel may be at either end of its cell
    assert field.margin == (2, 4, 8)


def test_a_network_of_planes_sees_its_plane_only():
    torch.manual_seed(0)
    network = nn.Conv2d(1, 2, (3, 7), padding="same").eval()
    field = measured(network)
    assert (field.margin, field.step) == ((0, 1, 3), (1, 1, 1))
    three = measured(nn.Conv2d(1, 2, (3, 7), padding="same").eval(), planes="zyx")
    assert three.margin == (1, 3, 3)  # across X, Y is the longer side


@pytest.mark.parametrize(
    ("network", "line"),
    [
        (nn.InstanceNorm3d(1), "depends on all of its input along Z"),
        (Placed(), "is not shift-invariant: .* along X"),
        (Jumpy(), r"depends on more than the \(0, 0, 0\) voxels"),
        (nn.Conv3d(1, 1, 3), r"returns \(6, 6, 14\) of \(8, 8, 16\) voxels"),
        (stacked((1, 1, 1)).requires_grad_(requires_grad=False), None),
    ],
)
def test_networks_that_a_halo_cannot_stand_for_are_refused(network, line):
    if line is None:  # weights that are not learned any more are no reason
        assert measured(network).margin == (0, 0, 0)
        return
    with pytest.raises(ModelError, match=line) as caught:
        measured(network)
    assert "\n" not in str(caught.value)


def test_a_network_without_a_gradient_is_refused():
    class Numb(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(image.detach().numpy() * 2)

    with pytest.raises(ModelError, match=r"receptive field cannot be measured .*; use an overlap"):
        measured(Numb())


def test_another_resolution_is_refused():
    with pytest.raises(ModelError, match=r"output_scale .* keep the resolution only"):
        measured(stacked((1, 1, 1)), output_scale=2)


@pytest.mark.parametrize("network", [stacked((3, 3, 5), (1, 5, 3)), Pooled()])
@pytest.mark.parametrize("shape", [(16, 24, 32), (11, 23, 37), (5, 9, 50)])
def test_patches_with_a_halo_say_what_one_pass_says(network, shape):
    volume = np.random.default_rng(2).random((1, *shape), dtype=np.float32)
    config = config_of((4, 8, 16), normalization="none", padding="constant", activation="tanh")
    field = measure_receptive_field(network, config, CPU)
    tiled = field.config(config)
    assert tiled.overlap == 0
    assert tiled.halo == field.halo

    one = tiled.changed({"patch_size": [-(-size // 16) * 16 for size in shape], "overlap": 0})
    # centred in one patch, the volume must not start between two cells
    assert all(start % by == 0 for start, by in zip(starts(one, volume), field.step, strict=True))
    np.testing.assert_allclose(
        predicted(volume, network, tiled), predicted(volume, network, one), atol=1e-6
    )


def starts(config, volume):
    with Run([ArraySource(volume)], nn.Identity(), config) as run:
        return run.plan.volumes[0].cores[0].start


def predicted(volume, network, config):
    with Run([ArraySource(volume)], network, config) as run:
        for _ in run:
            pass
        return run.results()[0]
