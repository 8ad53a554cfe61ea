"""The real EM stack and the network trained on it, against a plain loop in numpy."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

import napari_seamless as ns

PATCH = (8, 128, 128)
REGION = np.s_[0:20, 512:1024, 0:512]
"""A quarter of each section, to save time; it equals the crop of the whole."""


@pytest.fixture(scope="module")
def facts(real_data):
    return json.loads((real_data / "vnc_unet.json").read_text())


@pytest.fixture(scope="module")
def predicted(real_data, facts, tmp_path_factory) -> np.ndarray:
    """What the command line writes for a corner of the stack."""
    out = tmp_path_factory.mktemp("real") / "out.h5"
    command = f"predict {real_data}/vnc_stack1.h5::raw --output {out}"
    network = (
        f"--checkpoint {real_data}/vnc_unet_state_dict.pt --architecture {facts['architecture']}"
    )
    settings = "--patch-size 8,128,128 --overlap 0.5 --activation sigmoid --normalization dtype"
    settings += " --region 0:20,512:1024,0:512"
    words = [*command.split(), *network.split(), *settings.split(), "--batch-size", "4"]
    words += ["--arguments", json.dumps(facts["arguments"]), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "napari_seamless", *words], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-500:]
    with h5py.File(out) as file:
        return file["main"][...]


def test_the_membranes_are_found(real_data, predicted):
    with h5py.File(real_data / "vnc_stack1.h5") as file:
        truth = file["membranes"][REGION][16:20] > 0
    found = predicted[0, 16:20] > 0.5

    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) >= 0.78


@pytest.mark.slow
def test_it_equals_a_plain_loop_everywhere(real_data, predicted, facts):
    with h5py.File(real_data / "vnc_stack1.h5") as file:
        raw = file["raw"][...]
    network = ns.load_model(
        real_data / "vnc_unet_state_dict.pt", facts["architecture"], facts["arguments"]
    ).module

    np.testing.assert_allclose(predicted[0], plain_loop(raw, network)[REGION], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_flips_do_not_lower_the_dice(real_data, facts):
    """A corner, to save time; docs/reference/settings.md has what the whole stack gains."""
    with h5py.File(real_data / "vnc_stack1.h5") as file:
        raw, truth = file["raw"][12:20, :512, :512], file["membranes"][12:20, :512, :512]
    model = ns.load_model(
        real_data / "vnc_unet_state_dict.pt", facts["architecture"], facts["arguments"]
    )

    def dice_with(tta: str) -> float:
        config = ns.InferenceConfig(
            patch_size=PATCH, activation="sigmoid", batch_size=4, device="cpu", tta=tta
        )
        found = ns.predict(raw, model, config, progress=False).array[0, 4:] > 0.5
        return 2 * (found & (truth[4:] > 0)).sum() / (found.sum() + (truth[4:] > 0).sum())

    plain, flipped = dice_with("none"), dice_with("flip")

    assert plain > 0.7
    assert flipped >= plain


def plain_loop(raw: np.ndarray, network: torch.nn.Module) -> np.ndarray:
    """Return sum(w p) / sum(w) with the gaussian of PyTorch Connectomics 1.x, written out.

    Of the patches that reach the region; right inside of it only.
    """
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in PATCH), indexing="ij")
    distance = np.sqrt(sum(axis**2 for axis in axes))
    window = 1e-4 + np.exp(-(distance**2) / (2 * 0.2**2))
    weighted, weights = np.zeros(raw.shape), np.zeros(raw.shape)
    corners = [
        (z, y, x)
        for z in starts(0)
        for y in starts(1, raw.shape[1])
        for x in starts(2, raw.shape[2])
        if reaches(y, 1) and reaches(x, 2)
    ]
    for begin in range(0, len(corners), 4):
        batch = corners[begin : begin + 4]
        cuts = [
            tuple(slice(c, c + n) for c, n in zip(corner, PATCH, strict=True)) for corner in batch
        ]
        image = np.stack([raw[cut] for cut in cuts])[:, np.newaxis].astype(np.float32) / 255
        with torch.no_grad():
            outputs = torch.sigmoid(network(torch.from_numpy(image))).numpy()
        for cut, output in zip(cuts, outputs, strict=True):
            weighted[cut] += window * output[0]
            weights[cut] += window
    return np.divide(weighted, weights, out=np.full(raw.shape, np.nan), where=weights > 0)


def reaches(start: int, axis: int) -> bool:
    """Return whether a patch has voxels in the region, along an axis."""
    return start < REGION[axis].stop and start + PATCH[axis] > REGION[axis].start


def starts(axis: int, length: int = 20) -> list[int]:
    """Return where patches start along an axis of the stack."""
    size = PATCH[axis]
    return [*range(0, length - size, size // 2), length - size]
