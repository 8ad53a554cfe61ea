"""Train the demo network on generated volumes and save it as TorchScript.

``python -m napari_seamless.demo.train [--output FILE] [--steps N] [--seed S]``

The shipped ``demo_unet.pt`` was made with the defaults (600 steps, seed 0) and torch 2.13.0 on two
CPU cores. Mean loss of its last 50 steps: 0.172. Dice at 0.5 on the demo volume: 0.935, both in one
piece and blended (patch (8, 96, 96), overlap 0.5, gaussian window, sigmoid per patch). Blended on
two volumes of other seeds that were not trained on: 0.933 and 0.934.
"""

from __future__ import annotations

import argparse
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from napari_seamless.demo import CHECKPOINT, PATCH_SIZE
from napari_seamless.demo.network import DemoUNet
from napari_seamless.demo.volume import demo_volume
from napari_seamless.metrics import dice

BATCH_SIZE = 4

_POOL = 6  # volumes drawn from at a time
_STEPS_PER_VOLUME = 16  # then the oldest is replaced by a new one

Volume = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def batches(seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless training batches from volumes that are generated on the way.

    Parameters
    ----------
    seed : int
        Seed of volumes and patches. The demo's own volume (its seed is 0) is never among them.

    Yields
    ------
    image : torch.Tensor
        float32 in 0..1, (B, 1, Z, Y, X).
    membranes : torch.Tensor
        float32, 0 or 1, (B, 1, Z, Y, X).
    """
    rng = np.random.default_rng(seed)
    pool: list[Volume] = []
    volume_seed = 1_000_000 * (seed + 1)
    while True:
        pool = [*pool[1 - _POOL :], demo_volume(seed=volume_seed)]
        volume_seed += 1
        for _ in range(_STEPS_PER_VOLUME):
            pairs = [_patch(pool[rng.integers(len(pool))], rng) for _ in range(BATCH_SIZE)]
            images, membranes = zip(*pairs, strict=True)
            yield _tensor(np.stack(images)) / 255, _tensor(np.stack(membranes))


def _patch(volume: Volume, rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    """The same random patch, randomly flipped and turned, of image and membranes."""
    starts = [rng.integers(n - p + 1) for n, p in zip(volume[0].shape, PATCH_SIZE, strict=True)]
    box = tuple(slice(s, s + p) for s, p in zip(starts, PATCH_SIZE, strict=True))
    flips = tuple(axis for axis in range(3) if rng.random() < 0.5)
    axes = (0, 2, 1) if rng.random() < 0.5 else (0, 1, 2)
    return [np.flip(array[box], flips).transpose(axes) for array in volume]


def _tensor(batch: NDArray[np.uint8]) -> torch.Tensor:
    tensor = torch.from_numpy(batch[:, None]).float()
    # CPUs train about twice as fast on this layout.
    return tensor.contiguous(memory_format=torch.channels_last_3d)


def membrane_loss(logits: torch.Tensor, membranes: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy plus soft Dice loss.

    Parameters
    ----------
    logits, membranes : torch.Tensor
        float32, (B, 1, Z, Y, X); `membranes` is 0 or 1.

    Returns
    -------
    torch.Tensor
        The mean loss of the batch, a scalar.
    """
    probability = torch.sigmoid(logits)
    shared = (probability * membranes).sum()
    dice = 2 * shared / (probability.sum() + membranes.sum() + 1)
    return functional.binary_cross_entropy_with_logits(logits, membranes) + 1 - dice


def train(steps: int, seed: int) -> tuple[DemoUNet, float]:
    """Train a new network, printing its progress.

    Parameters
    ----------
    steps : int
        Optimiser steps, one batch each.
    seed : int
        Seed of the weights and of the training data.

    Returns
    -------
    network : DemoUNet
        In evaluation mode.
    loss : float
        Mean loss of the last 50 steps.
    """
    torch.manual_seed(seed)
    network = DemoUNet().train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=steps)
    losses: list[float] = []
    start = time.perf_counter()
    for step, (image, membranes) in zip(range(1, steps + 1), batches(seed), strict=False):
        loss = membrane_loss(network(image), membranes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0 or step == steps:
            elapsed = time.perf_counter() - start
            print(f"step {step}: loss {np.mean(losses[-50:]):.4f}, {elapsed:.0f} s", flush=True)
    return network.eval(), float(np.mean(losses[-50:]))


def demo_dice(network: nn.Module) -> float:
    """Dice coefficient on the demo volume, predicted in one piece and cut at 0.5.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode; (B, 1, Z, Y, X) in 0..1 to logits of the same shape.

    Returns
    -------
    float
        0 (nothing in common) to 1 (the same voxels).
    """
    raw, membranes = demo_volume()
    with torch.inference_mode():
        predicted = torch.sigmoid(network(_tensor(raw[None]) / 255))[0].numpy()
    return dice(predicted, membranes)


def save(network: DemoUNet, path: Path) -> None:
    """Save as TorchScript, which loads without this package.

    Parameters
    ----------
    network : DemoUNet
        Saved in the mode it is in, training or evaluation.
    path : pathlib.Path
        File to write; replaced if it is there.
    """
    with warnings.catch_warnings():
        # Deprecated in torch, yet the file needs neither this package nor a fixed shape.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network), path)
    _strip_debug_records(path)


def _strip_debug_records(path: Path) -> None:
    """Drop the records that name the source files of the machine which trained the network."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith(".debug_pkl")]
        records = {name: archive.read(name) for name in names}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, record in records.items():
            archive.writestr(zipfile.ZipInfo(name), record)  # without the date


def main(arguments: list[str] | None = None) -> None:
    """Train, save and report; the command line of this script."""
    parser = argparse.ArgumentParser(description="Train the demo network on generated volumes.")
    parser.add_argument("--output", type=Path, default=CHECKPOINT, help="TorchScript file to write")
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and training data")
    options = parser.parse_args(arguments)
    network, loss = train(options.steps, options.seed)
    save(network, options.output)
    size = options.output.stat().st_size / 1000
    print(f"final loss {loss:.4f}, Dice {demo_dice(network):.4f}, {options.output} {size:.0f} kB")


if __name__ == "__main__":
    main()
