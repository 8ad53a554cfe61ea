import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from napari_seamless.models.networks import strides as strides_module
from napari_seamless.models.networks.batch_statistics import input_statistics
from napari_seamless.models.networks.strides import StrideFit, set_strides, stride_fit

monai_nets = pytest.importorskip("monai.networks.nets", reason="needs MONAI")

FLAT, CUBE = (1, 2, 2), (2, 2, 2)
EITHER = (CUBE, FLAT)


def sections(seed: int) -> torch.Tensor:
    """Images of blobs, flat along z as in thick sections, (B, C, Z, Y, X), mean 0.5."""
    noise = np.random.default_rng(seed).standard_normal((2, 1, 16, 32, 32))
    image = gaussian_filter(noise, (0, 0, 0.6, 1.5, 1.5))
    return torch.from_numpy(0.5 + 0.2 * image / image.std()).float()


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks train many times faster on one core, if others use the cores as well."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(strides, steps=40, **arguments) -> nn.Module:
    """A network trained for a moment, to find bright blobs."""
    torch.manual_seed(0)
    channels = [8 * 2**level for level in range(len(strides) + 1)]
    network = monai_nets.UNet(
        3, 1, 1, channels=channels, strides=strides, **{"norm": "batch", **arguments}
    )
    adam = torch.optim.Adam(network.parameters(), 0.01)
    for step in range(steps):
        image = sections(step)
        target = (image > 0.6).float()
        loss = nn.functional.binary_cross_entropy_with_logits(network(image), target)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize("strides", [(FLAT,), (CUBE,), (CUBE, CUBE), (FLAT, FLAT)])
def test_the_strides_of_a_trained_network_are_found(strides):
    network = trained(strides, num_res_units=1)
    set_strides(network, [CUBE] * len(strides))

    found = stride_fit(network, [EITHER] * len(strides))

    assert found is not None
    assert found.strides == strides
    assert found.runner_up != strides
    assert found.margin > 1


@pytest.mark.parametrize("units", [0, 2])
def test_switched_strides_are_those_of_a_network_built_with_them(units):
    arguments = {"channels": (4, 6, 8), "num_res_units": units, "norm": "batch"}
    switched = monai_nets.UNet(3, 1, 2, strides=(2, 2), **arguments).eval()
    built = monai_nets.UNet(3, 1, 2, strides=(FLAT, CUBE), **arguments).eval()
    built.load_state_dict(switched.state_dict())
    image = sections(0)

    set_strides(switched, (FLAT, CUBE))

    with torch.no_grad():
        torch.testing.assert_close(switched(image), built(image))


@pytest.mark.parametrize(
    "mode", [torch.no_grad, pytest.param(torch.inference_mode, marks=pytest.mark.slow)]
)
def test_nothing_is_changed_by_the_search(mode):
    network = trained((FLAT,), steps=3).train()
    torch.set_num_threads(2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()

    with mode():
        found = [stride_fit(network, [EITHER]) for _ in range(2)]
        assert not torch.is_grad_enabled()

    assert found[0] == found[1]
    assert found[0] is not None
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == 2
    assert network.training
    assert network.model[0].conv.stride == FLAT
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.grad is not None for parameter in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_network_built_in_inference_mode_is_no_obstacle():
    with torch.inference_mode():
        network = monai_nets.UNet(3, 1, 1, channels=(4, 8), strides=(2,), norm="batch")
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.running_mean.fill_(0.1)
        assert stride_fit(network, [EITHER]) is not None


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_without_statistics_nothing_is_said(norm):
    network = monai_nets.UNet(3, 1, 1, channels=(4, 8), strides=(2,), norm=norm)

    assert stride_fit(network, [EITHER]) is None
    assert input_statistics(network) is None


def test_weights_that_are_not_finite_say_nothing():
    network = trained((FLAT,), steps=2)
    with torch.no_grad():
        network.model[2].conv.weight[:] = float("nan")
        network.model[1].submodule.conv.weight[:] = float("nan")

    assert stride_fit(network, [EITHER]) is None

    with torch.no_grad():
        network.model[0].conv.weight[:] = float("nan")

    assert stride_fit(network, [EITHER]) is None


def test_where_there_is_no_choice_nothing_is_tried():
    assert stride_fit(trained((FLAT,), steps=2), [(FLAT,)]) is None


def test_a_network_that_would_take_too_long_is_not_tried(monkeypatch):
    network = trained((FLAT,), steps=2)
    monkeypatch.setattr(strides_module, "_EFFORTS", ((4, 1e6), (2, 1e6)))

    assert stride_fit(network, [EITHER]) is None


def test_of_many_combinations_those_that_change_once_are_tried():
    candidates = strides_module._candidates([EITHER] * 5)

    assert len(candidates) == len(set(candidates)) == 10
    assert (FLAT, FLAT, CUBE, CUBE, CUBE) in candidates
    assert (CUBE, CUBE, CUBE, CUBE, FLAT) in candidates
    assert (CUBE,) * 5 in candidates
    assert (FLAT, CUBE, FLAT, CUBE, CUBE) not in candidates
    assert len(strides_module._candidates([EITHER] * 3)) == 8


def test_work_is_counted_in_multiplications():
    network = monai_nets.UNet(
        3, 1, 1, channels=(4, 8), strides=(2,), norm="batch", bias=False
    ).eval()
    down, bottom, up = 4 * 27 * 8**3, 8 * 4 * 27 * 8**3, 12 * 1 * 27 * 8**3

    assert strides_module._multiplications(network, (1, 1, 16, 16, 16)) == down + bottom + up


def test_a_close_race_is_not_called_clear():
    assert StrideFit((FLAT,), (CUBE,), 2.0).is_clear
    assert not StrideFit((FLAT,), (CUBE,), 1.1).is_clear


def test_what_the_input_was_like_is_told_by_the_first_layer():
    network = trained((FLAT,), steps=40)

    known = input_statistics(network)

    assert known is not None
    assert known.mean.item() == pytest.approx(0.5, abs=0.1)
    assert 0.1 < known.deviation < 0.3  # it was 0.2


def test_every_channel_of_the_input_has_a_mean():
    """A convolution whose output is known exactly: constant images, no padding."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6, momentum=1.0))
    image = torch.stack([torch.full((20, 20), 3.0), torch.full((20, 20), -1.0)])[None]
    network(image)

    known = input_statistics(network)

    assert known is None  # images that never change have no deviation

    network(image + 0.01 * torch.randn(1, 2, 20, 20))
    known = input_statistics(network)

    assert known is not None
    torch.testing.assert_close(known.mean, torch.tensor([3.0, -1.0]), atol=0.05, rtol=0)
