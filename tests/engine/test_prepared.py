"""Layout, graph, precision and threads: the same numbers, computed otherwise."""

import pytest
import torch
from torch import nn

from engine.helpers import config_of
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError, ModelError
from napari_seamless.engine.prepared import PreparedNetwork, _rounding
from napari_seamless.engine.run import Run
from napari_seamless.engine.source import ArraySource

CPU = torch.device("cpu")


class Seen(nn.Module):
    """A convolution that notes what it is called with, and how."""

    def __init__(self, axes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.convolution = (nn.Conv2d if axes == 2 else nn.Conv3d)(2, 3, 3, padding=1)
        self.calls: list[tuple[bool, torch.dtype, int]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.convolution(image)
        self.calls.append((image.is_contiguous(), result.dtype, torch.get_num_threads()))
        return result


def called(module: nn.Module, given: torch.Tensor, **settings) -> torch.Tensor:
    module.eval()
    with torch.inference_mode():
        return PreparedNetwork(module, config_of((4, 4, 4), **settings), CPU)(given)


@pytest.mark.parametrize("axes", [2, 3])
def test_channels_lie_last_in_the_input_and_the_weights(axes):
    network, given = Seen(axes), torch.rand(2, 2, *(6,) * axes)
    plain = called(network, given)
    assert network.calls[-1][0]
    last = called(network, given, channels_last=True)

    assert not network.calls[-1][0]
    assert network.convolution.weight.stride(1) == 1
    torch.testing.assert_close(last, plain, rtol=1e-5, atol=1e-6)
    called(network, given)  # and back
    assert network.calls[-1][0]
    assert network.convolution.weight.is_contiguous()


def test_a_frozen_network_is_recorded_once():
    network, given = Seen(), torch.rand(2, 2, 6, 6, 6)
    expected = called(network, given)
    frozen = PreparedNetwork(network, config_of((4, 4, 4), graph="frozen"), CPU)
    with torch.inference_mode():
        results = [frozen(given) for _ in range(4)]
        shorter = frozen(given[:1])

    count = len(network.calls)
    with torch.inference_mode():
        frozen(given)
    assert len(network.calls) == count
    for result in results:
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shorter, expected[:1], rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_network_is_frozen_as_well():
    scripted, given = torch.jit.script(nn.Conv3d(2, 1, 3).eval()), torch.rand(1, 2, 5, 5, 5)
    expected = called(scripted, given)
    torch.testing.assert_close(called(scripted, given, graph="frozen"), expected)


def test_a_graph_that_cannot_be_made_is_one_line():
    class Odd(nn.Module):
        def forward(self, image: torch.Tensor) -> object:
            return {"size": object()}

    with pytest.raises(ModelError, match=r"graph 'frozen' cannot be made .* use graph='eager'$"):
        called(Odd(), torch.rand(1, 2, 4, 4, 4), graph="frozen")


def test_a_compiled_network_gives_the_same(monkeypatch):
    compiled = []

    def compiles(module):
        compiled.append(module)
        return lambda given: module(given)

    monkeypatch.setattr(torch, "compile", compiles)
    network, given = Seen(), torch.rand(1, 2, 4, 4, 4)
    torch.testing.assert_close(called(network, given, graph="compiled"), called(network, given))
    assert compiled == [network]


def test_threads_are_set_for_the_call_only():
    before, network = torch.get_num_threads(), Seen()
    called(network, torch.rand(1, 2, 4, 4, 4), threads=before + 3)
    assert network.calls[-1][2] == before + 3
    assert torch.get_num_threads() == before


def test_half_precision_is_used_where_it_is_safe():
    network, given = Seen(), torch.rand(1, 2, 4, 4, 4)
    half = called(network, given, precision="bfloat16")
    assert network.calls[-1][1] == torch.bfloat16
    assert network.convolution.weight.dtype == torch.float32
    error = (half.float() - called(network, given)).abs().max()
    assert 0 < error < 1e-2
    assert network.calls[-1][1] == torch.float32


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_what_the_settings_say_on_a_gpu_and_put_back(tf32):
    parts = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [part.allow_tf32 for part in parts]
    with _rounding(tf32, torch.device("cuda")):
        assert [part.allow_tf32 for part in parts] == [tf32, tf32]
    assert [part.allow_tf32 for part in parts] == before


def test_half_precision_is_refused_on_a_cpu():
    source = ArraySource(torch.zeros(1, 4, 4, 4).numpy())
    config = InferenceConfig(patch_size=(4, 4, 4), device="cpu", precision="float16")
    with pytest.raises(ConfigError, match=r"precision 'float16' is for GPUs: .* use float32"):
        Run([source], Seen(), config)
