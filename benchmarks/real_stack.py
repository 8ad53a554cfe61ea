"""A real network on real sections: the whole run against its forward passes, and other packages.

    python benchmarks/real_stack.py [ROUNDS]

The small U-Net of `../shared/data` on a part of its stack, (20, 384, 384) voxels, patches of
(8, 128, 128) at overlap 0.5, batches of 4, one torch thread; and with the settings that tuning
finds. Not measured where that folder is absent. All take turns, each in a process of its own;
figures are medians of ROUNDS (5 if not given).
"""

import statistics
import sys
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from peers import PEERS, Timed, bare, in_turns, run_of, seamless
from torch import nn

import napari_seamless as ns

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PART = (20, 384, 384)
PATCH = (8, 128, 128)


def is_there() -> bool:
    """Return whether the data are; say so if not."""
    if not (DATA / "vnc_stack1.h5").exists():
        print(f"real stack: not measured, {DATA} is absent")
        return False
    return True


def stack() -> tuple[torch.Tensor, nn.Module]:
    """Return a float32 volume (1, Z, Y, X), and the network that is made for it."""
    z, y, x = PART
    with h5py.File(DATA / "vnc_stack1.h5") as file:
        raw = file["raw"][:z, :y, :x]
    network = ns.load_model(DATA / "vnc_unet_torchscript.pt").module
    return torch.from_numpy(np.float32(raw) / 255)[None], network


TUNED = "napari-seamless, tuned"
WAYS = {"napari-seamless": seamless, "bare loop": bare, **PEERS}


class Figures(NamedTuple):
    """What one run took and gave."""

    seconds: float
    over_network: float
    dice: float


@cache
def tuned_config() -> ns.InferenceConfig:
    """Return the settings that tuning finds for the stack, larger patches among them."""
    volume, network = stack()
    before = ns.InferenceConfig(
        patch_size=PATCH, overlap=0.5, batch_size=4, device="cpu", normalization="none"
    )
    tuning = ns.tune(volume.numpy(), network, before, patches="larger", seconds=20, remember=False)
    print(tuning, flush=True)
    return tuning.config


def run(name: str) -> Figures:
    """Predict the stack once in this process."""
    volume, network = stack()
    timed = Timed(network).eval()
    config = tuned_config() if name == TUNED else None
    begin = time.perf_counter()
    if config is None:
        logits = WAYS[name](volume, timed, PATCH, 0.5, 4)
    else:
        logits = torch.from_numpy(run_of(volume.numpy(), timed, config))
    seconds = time.perf_counter() - begin
    return Figures(seconds, seconds / timed.seconds, dice(logits[0].float().numpy() > 0))


def dice(predicted: np.ndarray) -> float:
    """Return the Dice coefficient against what experts have drawn."""
    z, y, x = PART
    with h5py.File(DATA / "vnc_stack1.h5") as file:
        drawn = file["membranes"][:z, :y, :x] > 0
    return 2 * float((predicted & drawn).sum()) / float(predicted.sum() + drawn.sum())


def measure(rounds: int) -> dict[str, Figures]:
    """Return the medians of each, and of the tuned run."""
    runs = in_turns(run, [TUNED, *WAYS], rounds)
    return {
        name: Figures(*map(statistics.median, zip(*each, strict=True)))
        for name, each in runs.items()
    }


if __name__ == "__main__":
    if not is_there():
        sys.exit()
    table = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
    ours = table["napari-seamless"].seconds
    for name, figures in table.items():
        print(
            f"  {name:24s} {figures.seconds:6.2f} s  {figures.seconds / ours:5.2f} times ours  "
            f"total / network {figures.over_network:.3f}  Dice {figures.dice:.4f}"
        )
