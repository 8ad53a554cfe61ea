import zipfile

import numpy as np
import pytest
import torch

from napari_seamless.demo.network import DemoUNet
from napari_seamless.demo.train import CHECKPOINT, membrane_loss, save, train
from napari_seamless.demo.volume import demo_volume

# Torch warns of every use of TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def shipped():
    return torch.jit.load(CHECKPOINT).eval()


def dice(predicted, membranes):
    return 2 * np.sum(predicted & (membranes == 1)) / (predicted.sum() + membranes.sum())


def test_checkpoint_is_small():
    assert 100_000 < CHECKPOINT.stat().st_size < 600_000


def test_checkpoint_names_no_source_files():
    with zipfile.ZipFile(CHECKPOINT) as archive:
        assert archive.testzip() is None
        assert not [name for name in archive.namelist() if name.endswith(".debug_pkl")]


def test_checkpoint_finds_membranes_in_a_volume_it_never_saw(shipped):
    raw, membranes = demo_volume((12, 128, 128), seed=0)
    with torch.inference_mode():
        logits = shipped(torch.from_numpy(raw[None, None]).float() / 255)
    assert logits.shape == (1, 1, 12, 128, 128)
    assert dice(logits[0, 0].numpy() > 0, membranes) > 0.88


@pytest.mark.parametrize("shape", [(1, 1, 8, 96, 96), (3, 1, 5, 64, 48), (2, 1, 1, 32, 32)])
def test_checkpoint_runs_with_other_batch_and_patch_sizes(shipped, shape):
    torch.manual_seed(0)
    image = torch.rand(shape)
    with torch.inference_mode():
        together = shipped(image)
        alone = torch.cat([shipped(item[None]) for item in image])
    assert together.shape == shape
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_checkpoint_holds_the_weights_of_the_network(shipped):
    network = DemoUNet().eval()
    network.load_state_dict(shipped.state_dict())
    image = torch.rand(1, 1, 4, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(network(image), shipped(image), rtol=1e-4, atol=1e-4)


def test_saved_network_predicts_the_same(tmp_path):
    network = DemoUNet((4, 4, 4)).eval()
    save(network, tmp_path / "net.pt")
    image = torch.rand(2, 1, 3, 16, 16)
    with torch.inference_mode():
        loaded = torch.jit.load(tmp_path / "net.pt")(image)
        torch.testing.assert_close(loaded, network(image), rtol=1e-5, atol=1e-5)


def test_loss_of_a_perfect_and_of_an_opposite_prediction():
    membranes = (torch.arange(64) % 4 == 0).float().reshape(1, 1, 1, 8, 8)
    logits = 40 * membranes - 20
    # The one voxel of slack in the soft Dice: 1 - 2 * 16 / 33.
    assert membrane_loss(logits, membranes).item() == pytest.approx(1 / 33, abs=1e-6)
    assert membrane_loss(-logits, membranes).item() == pytest.approx(21, abs=1e-4)


def test_a_few_steps_reduce_the_loss():
    torch.manual_seed(0)
    raw, target = demo_volume((4, 64, 64), seed=5)
    image = torch.from_numpy(raw[None, None]).float() / 255
    membranes = torch.from_numpy(target[None, None]).float()
    network = DemoUNet((8, 8, 8))
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(12):
        loss = membrane_loss(network(image), membranes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_training_is_reproducible():
    first, loss = train(steps=2, seed=7)
    second, again = train(steps=2, seed=7)
    assert not first.training
    assert loss == pytest.approx(again, rel=1e-4)
    assert 0.5 < loss < 3
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
