"""Measure on this machine what the cost model of docs/scaling.md needs: medians of five.

    python benchmarks/scaling_constants.py [CHECKPOINT [VOLUME]] [--patch-size 8,128,128]

CHECKPOINT is what `napari_seamless.load_model` reads, VOLUME what `open_source` reads, at most 1024
cubed of it; without them, the demo's network, untrained, and the demo's volume. Prints the line to
put into scaling.py.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

import napari_seamless as ns
from napari_seamless.demo.network import DemoUNet
from napari_seamless.demo.volume import demo_volume
from napari_seamless.engine.accumulator import BlendAccumulator
from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.windows import build_window
from napari_seamless.io.export import write_arrays
from napari_seamless.io.sources import open_source

LARGEST = 1024
INPUT_CHUNK: Triple = (16, 64, 64)


def median(work: Callable[[], object]) -> float:
    """Return the median seconds of five calls, after one that is not counted."""
    work()
    took = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def network_seconds(network: torch.nn.Module, patch: Triple) -> float:
    """Return the seconds of a network for one patch."""
    values = torch.rand(1, 1, *patch)
    network.eval()
    with torch.inference_mode():
        return median(lambda: network(values))


def stitching_seconds(shape: Triple, patch: Triple) -> float:
    """Return the seconds to blend and finish all patches of a volume, per voxel of a patch."""
    grid = PatchGrid.regular(shape, patch, 0.5)
    window, values = build_window(patch, "gaussian"), torch.rand(1, *patch)

    def blend() -> None:
        accumulator = BlendAccumulator(grid, window)
        for index in range(len(grid)):
            accumulator.add(index, values)

    return median(blend) / (len(grid) * math.prod(patch))


def decoding_seconds(voxels: NDArray[np.uint8], folder: Path) -> float:
    """Return the seconds to read and decode a byte of zarr, zstd."""
    path = folder / "in.zarr"
    array = zarr.create_array(path, shape=voxels.shape, chunks=INPUT_CHUNK, dtype=voxels.dtype)
    array[...] = voxels
    source, everything = open_source(path), Box.of_shape(voxels.shape)
    source.keep(0)
    seconds = median(lambda: source.read(everything)) / voxels.nbytes
    source.close()
    return seconds


def encoding_seconds(voxels: NDArray[np.uint8], folder: Path) -> float:
    """Return the seconds to encode and write a byte of zarr, its coarser levels included."""
    path = folder / "out.zarr"
    return (
        median(lambda: write_arrays(path, {"main": voxels[None]}, {}, overwrite=True))
        / voxels.nbytes
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("volume", nargs="?")
    parser.add_argument("--patch-size", default="8,128,128")
    options = parser.parse_args()
    z, y, x = map(int, options.patch_size.split(","))
    network = ns.load_model(options.checkpoint).module if options.checkpoint else DemoUNet()
    if options.volume:
        source = open_source(options.volume)
        shape = tuple(min(LARGEST, size) for size in source.shape[1:])
        voxels = source.read(Box.of_shape(shape))[0]
    else:
        voxels = demo_volume()[0]
    millions = z * y * x / 1e6
    seconds = network_seconds(network, (z, y, x))
    with tempfile.TemporaryDirectory() as folder:
        decoding = decoding_seconds(voxels, Path(folder))
        encoding = encoding_seconds(voxels, Path(folder))
    stitching = stitching_seconds(voxels.shape, (z, y, x))
    print(f"{torch.get_num_threads()} threads; patch {(z, y, x)}, volume {voxels.shape}")
    print(f"network   {seconds:.3f} s per patch, {seconds / millions:.3f} s per million voxels")
    print(f"stitching {stitching * 1e9:.1f} ns per voxel of a patch and channel")
    print(f"decoding  {1e-9 / decoding:.2f} GB/s")
    print(f"encoding  {1e-9 / encoding:.2f} GB/s")
    print(
        f"HERE = Machine(network={seconds / millions:.3g}, stitching={stitching * 1e6:.2g}, "
        f"decoding={decoding * 1e6:.2g}, encoding={encoding * 1e6:.2g})"
    )


if __name__ == "__main__":
    main()
