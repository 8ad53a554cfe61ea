import numpy as np
import pytest
import torch
from torch import nn

import napari_seamless as ns
from napari_seamless.engine.errors import ModelError
from napari_seamless.models.graphs.fixed import FixedInput, settings_of


class Exact(nn.Module):
    """Takes one shape only, as a graph that was recorded with it; keeps what it was given."""

    def __init__(self, shape, made=lambda batch: batch * 2):
        super().__init__()
        self.taken = shape
        self.made = made
        self.calls = []

    def forward(self, batch):
        for size, wanted in zip(batch.shape, self.taken, strict=True):
            assert wanted in (None, size)
        self.calls.append(batch[:, 0, ..., 0].flatten(1)[:, 0].tolist())
        return self.made(batch)


def numbered(count, shape=(1, 2, 2, 2)):
    """Return patches whose values are their number."""
    return torch.arange(float(count)).reshape(-1, *[1] * len(shape)).expand(count, *shape).clone()


class TestBatches:
    @pytest.mark.parametrize("size", [1, 4])
    @pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9])
    def test_any_number_of_patches(self, size, count):
        network = Exact((size, 1, 2, 2, 2))
        batch = numbered(count)
        made = FixedInput(network, network.taken)(batch)
        torch.testing.assert_close(made, batch * 2, rtol=0, atol=0)
        assert len(network.calls) == -(-count // size)
        assert {len(call) for call in network.calls} == {size}

    def test_last_piece_is_filled_with_its_last_patch(self):
        network = Exact((4, 1, 2, 2, 2))
        FixedInput(network, network.taken)(numbered(6))
        assert network.calls == [[0, 1, 2, 3], [4, 5, 5, 5]]

    def test_free_batch_goes_through_at_once(self):
        network = Exact((None, 1, 2, 2, 2))
        FixedInput(network, network.taken)(numbered(6))
        assert network.calls == [[0, 1, 2, 3, 4, 5]]

    @pytest.mark.parametrize("kind", [tuple, list])
    def test_several_outputs(self, kind):
        network = Exact((2, 1, 2, 2, 2), lambda batch: kind([batch + 1, None, batch[:, :, :1]]))
        batch = numbered(3)
        first, nothing, part = FixedInput(network, network.taken)(batch)
        torch.testing.assert_close(first, batch + 1)
        torch.testing.assert_close(part, batch[:, :, :1])
        assert nothing is None

    def test_named_and_nested_outputs(self):
        network = Exact((2, 1, 2, 2, 2), lambda batch: {"a": batch, "b": (batch * 3, batch.sum())})
        batch = numbered(5)
        made = FixedInput(network, network.taken)(batch)
        assert list(made) == ["a", "b"]
        torch.testing.assert_close(made["b"][0], batch * 3)
        assert made["b"][1].ndim == 0


class TestRefusals:
    @pytest.mark.parametrize(
        ("shape", "given", "said"),
        [
            (
                (1, 1, 8, 16, 16),
                (1, 1, 8, 16, 20),
                "the network takes patches of (8, 16, 16) only, not (8, 16, 20); set patch_size to "
                "that, less twice the halo if there is one",
            ),
            ((1, 1, None, 16, 16), (2, 1, 8, 8, 16), "takes patches of (any, 16, 16) only, not"),
            ((1, 1, 16, 16), (2, 1, 8, 16), "takes planes of (16, 16) only, not (8, 16); set"),
            ((None, 3, 8, 8, 8), (1, 1, 8, 8, 8), "takes 3 channels, not 1; give a volume that"),
            ((None, 1, 8, 8, 8), (1, 3, 8, 8, 8), "takes 1 channel, not 3; give a volume that"),
            ((None, 1, None, None), (1, 1, 8, 8, 8), "is 2-D and was given (1, 1, 8, 8, 8); set p"),
            ((None, 1, 8, 8, 8), (1, 1, 8, 8), "is 3-D and was given (1, 1, 8, 8); set planes='no"),
        ],
    )
    def test_input_of_another_shape(self, shape, given, said):
        network = Exact(shape)
        with pytest.raises(ModelError) as caught:
            FixedInput(network, shape)(torch.zeros(given))
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not network.calls

    def test_network_of_no_images(self):
        with pytest.raises(ModelError, match=r"an input of 2 axes, \(any, 10\); give one that"):
            FixedInput(nn.Identity(), (None, 10))


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        (None, {}),
        ((2, 1, 8, 16, 16), {"planes": "none", "patch_size": (8, 16, 16), "batch_size": 2}),
        ((None, 1, None, 16, 16), {"planes": "none"}),
        ((None, 1, 16, 32), {"planes": "z", "patch_size": (1, 16, 32)}),
    ],
)
def test_settings(shape, settings):
    assert settings_of(shape) == settings
    if "patch_size" in settings:
        ns.InferenceConfig(**settings)


class TestEngine:
    """A whole run with a network that takes one size and one number of patches only."""

    volume = np.random.default_rng(0).random((12, 20, 20)).astype(np.float32)

    def predict(self, network, **settings):
        settings = {"overlap": 0.5, "device": "cpu", "normalization": "none"} | settings
        config = ns.InferenceConfig(**settings)
        return np.asarray(ns.predict(self.volume, network, config, progress=False).array)

    @pytest.mark.parametrize("batch_size", [1, 3, 4, 6])
    def test_same_as_the_free_network(self, batch_size):
        torch.manual_seed(0)
        free = nn.Conv3d(1, 2, 3, padding=1)
        recorded = torch.nn.Sequential(Exact((4, 1, 8, 8, 8)), free)
        settings = {"patch_size": (8, 8, 8), "batch_size": batch_size}
        made = self.predict(FixedInput(recorded, (4, 1, 8, 8, 8)), **settings)
        doubled = torch.nn.Sequential(Exact((None,) * 5), free)
        np.testing.assert_allclose(made, self.predict(doubled, **settings), atol=1e-6)
        assert made.shape == (2, 12, 20, 20)

    def test_valid_convolutions_with_the_halo_that_they_cut_off(self):
        torch.manual_seed(0)
        valid = nn.Conv3d(1, 1, 3)
        network = FixedInput(nn.Sequential(Exact((1, 1, 8, 8, 8)), valid), (1, 1, 8, 8, 8))
        made = self.predict(network, patch_size=(6, 6, 6), halo=(1, 1, 1), padding="reflect")
        padded = np.pad(2 * self.volume, 1, mode="reflect")
        whole = valid(torch.from_numpy(padded)[None, None])[0].detach().numpy()
        np.testing.assert_allclose(made, whole, atol=1e-5)

    def test_wrong_patch_size_is_one_line(self):
        network = FixedInput(Exact((1, 1, 8, 8, 8)), (1, 1, 8, 8, 8))
        with pytest.raises(ModelError, match=r"takes patches of \(8, 8, 8\) only, not \(8, 8, 16"):
            self.predict(network, patch_size=(8, 8, 16))

    def test_planes(self):
        network = FixedInput(Exact((4, 1, 8, 8)), (4, 1, 8, 8))
        made = self.predict(network, patch_size=(3, 8, 8), planes="z", batch_size=2)
        np.testing.assert_allclose(made[0], 2 * self.volume, rtol=1e-6)
