"""How much sooner a plane that is looked at is done than in raster order.

    python benchmarks/watched_plane.py [--planes 128] [--trials 15]

A volume of 128 planes; a small network; the focus is put on a random plane once the run is under
way, and the time until every patch that touches it is blended is compared with that of a run
without focus, from the same moment; so is the number of batches, which no other load changes. In
raster order a plane is done on average at half of the run; some planes happen to come first and are
not sooner: the median counts.
"""

import argparse
import os
import sys
import time
from statistics import median

import numpy as np
import torch
from torch import nn

import napari_seamless as ns
from napari_seamless.engine.box import Box

SIZE = 192
PATCH_SIZE = (8, 64, 64)
AIM = 5.0


def network() -> nn.Module:
    """Return some convolutions, the same each time."""
    torch.manual_seed(0)
    layers = [nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 1, 3, padding=1)]
    return nn.Sequential(*layers)


def times_of(
    volume: np.ndarray, planes: list[int], focus: int | None
) -> dict[int, tuple[float, int]]:
    """Return after how many seconds and batches each of some planes was done.

    With a focus only that plane is waited for. The clock starts with the first batch done.
    """
    config = ns.InferenceConfig(patch_size=PATCH_SIZE, batch_size=4, device="cpu")
    run = ns.InferenceRun(volume, network(), config)
    boxes = {z: Box((z, 0, 0), (z + 1, *volume.shape[1:])) for z in planes}
    done: dict[int, tuple[float, int]] = {}
    with run:
        began = 0.0
        for batch, _ in enumerate(run):
            if not began:
                began = time.perf_counter()
                if focus is not None:
                    run.focus(boxes[focus])
            states = np.asarray(run.volumes[0].accumulator.states)
            grid = run.plan.volumes[0].grid
            for z in set(planes) - set(done):
                if states[grid.touching(boxes[z])].all():
                    done[z] = time.perf_counter() - began, batch
            if focus in done or len(done) == len(planes):
                break
    return done


def main() -> int:
    """Compare, say what was found, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--planes", type=int, default=128)
    parser.add_argument("--trials", type=int, default=15)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 255, (options.planes, SIZE, SIZE), dtype=np.uint8)
    planes = sorted(rng.choice(options.planes, options.trials, replace=False).tolist())
    times_of(volume[:16], [0], None)  # warm up
    raster = times_of(volume, planes, None)
    ratios, batches = [], []
    for z in planes:
        watched = times_of(volume, [z], z)[z]
        ratios.append(raster[z][0] / watched[0])
        batches.append((raster[z][1] + 1) / (watched[1] + 1))
        times = f"{watched[0]:6.2f} s, in raster order {raster[z][0]:6.2f} s"
        print(f"plane {z:4}: {times}, {ratios[-1]:.1f} times sooner")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"median: {median(ratios):.1f} times sooner (aim: {AIM:.0f} or more)")
    print(f"in batches: {median(batches):.1f} times sooner")
    return 0 if median(ratios) >= AIM else 1


if __name__ == "__main__":
    sys.exit(main())
