"""Cost against size: voxels per second from 16 to 1,024 million voxels, in memory.

    python benchmarks/sizes.py [LARGEST]

A network that returns its input, patches of 64 cubed at overlap 0.25, one torch thread; LARGEST
million voxels at the most (1,024 if not given). Medians of three, of a random order of sizes.
"""

import statistics
import sys
import time

import numpy as np
import torch
from peers import run_of

import napari_seamless as ns

SHAPES = ((256, 256, 256), (256, 512, 512), (512, 512, 1024), (1024, 1024, 1024))
CONFIG = ns.InferenceConfig(patch_size=(64, 64, 64), overlap=0.25, batch_size=4, device="cpu")


def measure(largest: int) -> dict[int, float]:
    """Return million voxels per second by the size of the volume, in million voxels."""
    speeds: dict[int, list[float]] = {}
    shapes = [shape for shape in SHAPES if np.prod(shape) <= largest << 20]
    rng = np.random.default_rng(0)
    for _ in range(3):
        for index in rng.permutation(len(shapes)):
            volume = np.broadcast_to(np.uint8(7), shapes[index])
            begin = time.perf_counter()
            run_of(volume, torch.nn.Identity(), CONFIG)
            size = volume.size >> 20
            speeds.setdefault(size, []).append(size / (time.perf_counter() - begin))
    return {size: statistics.median(each) for size, each in sorted(speeds.items())}


if __name__ == "__main__":
    torch.set_num_threads(1)
    table = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 1024)
    smallest = next(iter(table.values()))
    for size, speed in table.items():
        print(f"{size:5d} million voxels: {speed:5.1f} million per second, {speed / smallest:.2f}")
