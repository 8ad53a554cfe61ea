"""A run on a GPU, fed from zarr: how busy it is kept, beside MONAI, and half precision.

    python benchmarks/gpu.py [--device cuda:0] [--shape 256,1024,1024] [--features 32] [--rounds 5]

A U-Net of random weights over uint8 voxels, patches of (32, 128, 128) at overlap 0.5, batches of 4.
"Busy" is the time of the network alone, called with as many batches one after the other and waited
for once, over the time of the run: what the run adds is what the GPU waits for. Needs numpy, torch,
tensorstore and what the engine's settings need, pydantic and psutil; MONAI if it is there. On a CPU
it runs as well, to try it.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorstore as ts
import torch
from peers import monai
from torch import nn

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError
from napari_seamless.engine.run import Run
from napari_seamless.engine.source import ArraySource

PATCH = (32, 128, 128)
BATCH = 4


class UNet(nn.Module):
    """Three levels, one output channel."""

    def __init__(self, features: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.ModuleList(
            [
                _block(1, features),
                _block(features, 2 * features),
                _block(2 * features, 4 * features),
            ]
        )
        self.up = nn.ModuleList(
            [_block(6 * features, 2 * features), _block(3 * features, features)]
        )
        self.last = nn.Conv3d(features, 1, 1)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return probabilities (B, 1, Z, Y, X)."""
        fine = self.down[0](patches)
        middle = self.down[1](nn.functional.max_pool3d(fine, 2))
        coarse = self.down[2](nn.functional.max_pool3d(middle, 2))
        for part, skipped in zip(self.up, (middle, fine), strict=True):
            larger = nn.functional.interpolate(coarse, scale_factor=2)
            coarse = part(torch.cat([larger, skipped], dim=1))
        return torch.sigmoid(self.last(coarse))


def _block(inside: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Conv3d(inside, out, 3, padding=1), nn.BatchNorm3d(out), nn.ReLU())


def stored(folder: Path, shape: tuple[int, ...]) -> ts.TensorStore:
    """Return a zarr volume of random voxels, some alike so that it can be compressed."""
    store = ts.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(folder / "volume.zarr")},
            "metadata": {
                "shape": shape,
                "data_type": "uint8",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": (32, 128, 128)}},
                "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 1}}],
            },
            "create": True,
        }
    ).result()
    coarse = np.random.default_rng(0).integers(0, 256, [-(-size // 4) for size in shape], np.uint8)
    store[...] = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)[tuple(map(slice, shape))]
    return store


def wait(device: torch.device) -> None:
    """Wait until a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return how long some work takes."""
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began


def predicted(volume: ts.TensorStore, network: nn.Module, config: InferenceConfig) -> np.ndarray:
    """Run the engine."""
    with Run([ArraySource(volume)], network, config) as run:
        for _ in run:
            pass
        print(f"    {run.total} patches, {run.stages.seconds}")
        return run.results()[0]


def network_alone(network: nn.Module, device: torch.device, batches: int) -> None:
    """Call a network with as many batches."""
    given = torch.rand(BATCH, 1, *PATCH, device=device)
    with torch.inference_mode():
        for _ in range(batches):
            network(given)


def main() -> None:
    """Measure in turns, and print medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--shape", default="256,1024,1024")
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda":
        print(torch.cuda.get_device_name(device))
    shape = tuple(int(each) for each in options.shape.split(","))
    network = UNet(options.features).eval().to(device)
    base = InferenceConfig(patch_size=PATCH, overlap=0.5, batch_size=BATCH, device=options.device)
    for module in (torch.backends.cudnn, torch.backends.cuda.matmul):
        module.allow_tf32 = False  # as in the settings
    with tempfile.TemporaryDirectory() as folder:
        volume = stored(Path(folder), shape)
        with Run([ArraySource(volume)], network, base) as run:
            batches = -(-run.total // BATCH)
        given = torch.from_numpy(np.float32(volume.read().result()) / 255)[None].to(device)
        exact = predicted(volume, network, base)
        found: dict[str, list[float]] = {}
        ways: dict[str, Callable[[], object]] = {
            "run": lambda: predicted(volume, network, base),
            "network alone": lambda: network_alone(network, device, batches),
            "MONAI": lambda: monai(given, network, PATCH, 0.5, BATCH),
        }
        for precision in ("bfloat16", "float16"):
            half = base.changed({"precision": precision})
            ways[precision] = lambda half=half: predicted(volume, network, half)
        ways["tf32"] = lambda: predicted(volume, network, base.changed({"tf32": True}))
        for _ in range(options.rounds):
            for name, way in [*ways.items()]:
                try:
                    found.setdefault(name, []).append(seconds_of(way, device))
                except (ImportError, ConfigError) as error:
                    print(f"{name}: not measured, {error}")
                    del ways[name], found[name]
        medians = {name: statistics.median(each) for name, each in found.items()}
        for name, seconds in medians.items():
            print(f"  {name:16s} {seconds:7.2f} s  {seconds / medians['run']:5.2f} of a run")
        print(f"  busy {medians['network alone'] / medians['run']:.3f} (aim 0.95 or more)")
        for name in ("bfloat16", "float16", "tf32"):
            if name in ways:
                half = {"tf32": True} if name == "tf32" else {"precision": name}
                off = np.abs(predicted(volume, network, base.changed(half)) - exact).max()
                print(f"  {name}: largest difference {off:.1e} (aim 1e-2 or less)")


if __name__ == "__main__":
    main()
