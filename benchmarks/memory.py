"""Memory that an in-memory run adds, as a ratio to its float32 output.

    python benchmarks/memory.py [SIZE]

One channel, SIZE cubed voxels (512 if not given), identity network, patches of 64 cubed at overlap
0.5, raster order. The resident memory before the run (libraries and the loaded input) is taken off
the peak during the run. Linux: figures are from /proc.
"""

import resource
import sys

import numpy as np
import torch

import napari_seamless as ns
from napari_seamless.inference import InferenceRun


def resident() -> int:
    """Return the bytes of memory that this process has now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def peak() -> int:
    """Return the most bytes of memory that this process has had; not, as rusage, its parent."""
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = (each for each in file if each.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure(size: int, patch: int) -> float:
    """Run once and return (peak during the run - memory before) / bytes of the output."""
    volume = np.random.default_rng(0).integers(0, 255, (size, size, size), dtype=np.uint8)
    config = ns.InferenceConfig(patch_size=(patch, patch, patch), batch_size=4, device="cpu")
    network = torch.nn.Identity()
    before, highest = resident(), 0
    with InferenceRun(volume, network, config) as run:
        for _ in run:
            highest = max(highest, resident())
        result = run.results()[0]
    highest = max(highest, peak())
    np.testing.assert_allclose(result[0, 0], volume[0] / np.float32(255), rtol=1e-6, atol=1e-7)
    print(
        f"patch {patch}: before {before / 2**20:.0f} MiB, peak {highest / 2**20:.0f} MiB, "
        f"output {result.nbytes / 2**20:.0f} MiB"
    )
    return (highest - before) / result.nbytes


if __name__ == "__main__":
    measure(64, 32)  # loads what torch loads late
    ratio = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 512, 64)
    print(f"added / output: {ratio:.2f} (aim: 1.4 or less)")
