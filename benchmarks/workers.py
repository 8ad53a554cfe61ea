"""How much faster two workers are than one, and whether they write the same bytes.

    python benchmarks/workers.py [SIZE]

A volume of SIZE cubed voxels (96 if not given) to OME-Zarr, with a network that is most of the
work; each worker is a process of one thread. What is measured is a run from its start to its end,
with all that workers do to get at the network and the volume. Not measured is the start of the
processes and of the libraries in them: a run over a small volume comes first.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from distributed import Client
from torch import nn

import napari_seamless as ns
from napari_seamless.cluster import ClusterRun, local_cluster
from napari_seamless.cluster.connection import quiet
from napari_seamless.draining import drain

CONFIG = ns.InferenceConfig(patch_size=(16, 48, 48), batch_size=2, device="cpu")


def network() -> nn.Module:
    """Return some convolutions, the same each time."""
    torch.manual_seed(0)
    layers = [nn.Conv3d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv3d(16, 1, 3, padding=1))


def seconds(volume: np.ndarray, workers: int, folder: Path) -> float:
    """Return how long a run on so many workers takes."""
    folder.mkdir()
    with quiet(), local_cluster(workers) as cluster, Client(cluster) as client:
        client.wait_for_workers(workers)
        for name, part in (("warm", volume[:24]), ("out", volume)):
            with ClusterRun(part, network(), CONFIG, folder / f"{name}.zarr", client) as run:
                began = time.perf_counter()
                drain(run, progress=False)
                taken = time.perf_counter() - began
    return taken


def content(folder: Path) -> dict[str, bytes]:
    """Return all files of an output."""
    files = (each for each in sorted(folder.rglob("*")) if each.is_file())
    return {str(each.relative_to(folder)): each.read_bytes() for each in files}


def main(size: int) -> None:
    """Compare one worker with two."""
    volume = np.random.default_rng(0).integers(0, 255, (size, size, size), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as place:
        places = {workers: Path(place) / str(workers) for workers in (1, 2)}
        times = {workers: seconds(volume, workers, at) for workers, at in places.items()}
        one, two = (content(at / "out.zarr") for at in places.values())
    for workers, taken in times.items():
        print(f"{workers} worker(s) of one thread: {taken:.1f} s")
    print(f"2 workers are {times[1] / times[2]:.2f} times as fast as 1 (aim: 1.7 or more)")
    print(f"same bytes: {one == two} ({len(one)} files)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 96)
