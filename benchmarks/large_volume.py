"""Peak memory of a run over a zarr volume larger than memory, and over one several times as deep.

    python benchmarks/large_volume.py [--planes 2048] [--size 2048] [--times 4] [--memory 1GB]
        [--folder DIR]

Voxels uint8, compressible; a network that returns what it gets, so that the output can be compared
with the input; zarr out. Each run is a process of its own, whose peak resident memory is what the
system says of it (`ru_maxrss`). A third run, of the smaller volume and without coarser levels of
the output, for which it is read back, counts patches and the bytes of stored chunks that are read.
`large_volume_widget.py` does the same through the widget. Linux.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
import torch

import napari_seamless as ns
from napari_seamless.inference import InferenceRun
from napari_seamless.io.stores import pyramid

CHUNK = (64, 128, 128)
PATCH = (32, 256, 256)
OVERLAP = 0.125
COMPARED = 20
"""Boxes, at random places."""

AIM_BYTES = 2 << 30
AIM_RATIO = 1.05
AIM_READ = 1.1


def make_volume(path: Path, shape: tuple[int, int, int]) -> None:
    """Write a volume that is small when compressed, unless it is there."""
    if path.exists():
        return
    grid = {"name": "regular", "configuration": {"chunk_shape": CHUNK}}
    codecs = [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 1}}]
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    metadata = {"shape": shape, "data_type": "uint8", "chunk_grid": grid, "codecs": codecs}
    store = ts.open({**spec, "metadata": metadata, "create": True}).result()
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (CHUNK[0] // 8, 1 + shape[1] // 8, 1 + shape[2] // 8), np.uint8)
    slab = coarse.repeat(8, 0).repeat(8, 1).repeat(8, 2)[:, : shape[1], : shape[2]]
    for z in range(0, shape[0], CHUNK[0]):
        planes = min(CHUNK[0], shape[0] - z)
        store[z : z + planes] = slab[:planes] + np.uint8(z // CHUNK[0])  # no two slabs are alike


def bytes_read() -> int:
    """Return the bytes that TensorStore has read from files."""
    found = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value["value"] for metric in found for value in metric["values"])


def bytes_in(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def peak_bytes() -> int:
    """Return the most bytes of memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def patch_of(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the patch size, not larger than the volume."""
    z, y, x = map(min, PATCH, shape)
    return z, y, x


class Counting(torch.nn.Identity):
    """Returns what it gets."""

    patches = 0

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return `patches`."""
        Counting.patches += len(patches)
        return patches


def run_here(source: Path, output: Path, memory: int, counted: bool) -> dict[str, Any]:
    """Run in this process; return what was measured."""
    if counted:
        pyramid.COARSEST = 1 << 40
    config = ns.InferenceConfig(
        patch_size=patch_of(shape_of(source)),
        overlap=OVERLAP,
        device="cpu",
        output_dtype="uint8",
    )
    with InferenceRun(
        str(source), Counting(), config, str(output), overwrite=True, memory=memory
    ) as run:
        forecast = {} if counted else run.forecast().facts  # it calls the network once more
        before, began = bytes_read(), time.perf_counter()
        for _ in run:
            pass
        return {
            "status": run.status,
            "seconds": time.perf_counter() - began,
            "peak": peak_bytes(),
            "forecast": forecast,
            "patches": Counting.patches / run.total,
            "amplification": (bytes_read() - before) / bytes_in(source),
        }


def run_in_process(script: str, *arguments: object) -> dict[str, Any]:
    """Run a script of this folder with `--child`, and return the JSON of its last line."""
    command = [sys.executable, script, "--child", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def shape_of(path: Path) -> tuple[int, int, int]:
    """Return (Z, Y, X) of a volume."""
    z, y, x = _open(path).shape[-3:]
    return z, y, x


def check_voxels(source: Path, output: Path) -> None:
    """Compare an output with the input in boxes at random places."""
    volume, prediction = _open(source), _open(output / "0")[0]
    rng = np.random.default_rng(1)
    for _ in range(COMPARED):
        starts = [int(rng.integers(0, max(1, size - 64))) for size in volume.shape]
        box = tuple(slice(start, start + 64) for start in starts)
        np.testing.assert_array_equal(prediction[box].read().result(), volume[box].read().result())


def _open(path: Path) -> ts.TensorStore:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    store = ts.open(spec, read=True).result()
    return store[tuple(slice(0, size) for size in store.shape)]


def report(small: dict[str, Any], deep: dict[str, Any], times: int) -> bool:
    """Print what two runs took, and return whether it is within the aims."""
    for name, run in (("volume", small), (f"{times} times", deep)):
        said = run["forecast"]
        forecast = (
            f" (forecast {said['memory'] / 2**20:,.0f} MiB, {said['seconds']:.0f} s of network)"
            if said
            else ""
        )
        print(
            f"{name:8} {run['status']}: peak {run['peak'] / 2**20:,.0f} MiB, "
            f"{run['seconds']:.1f} s{forecast}"
        )
    ratio = deep["peak"] / small["peak"]
    print(f"peak: aim {AIM_BYTES / 2**20:,.0f} MiB or less")
    print(f"deeper / volume: {ratio:.3f} (aim: {AIM_RATIO} or less)")
    return bool(small["peak"] <= AIM_BYTES and ratio <= AIM_RATIO)


def gigabytes(text: str) -> int:
    """Return the bytes that "1.5GB" means; a G is 1024 cubed."""
    return int(float(text.upper().removesuffix("GB")) * 2**30)


def parser(what: str | None) -> argparse.ArgumentParser:
    """Return what reads the command line of both scripts."""
    parser = argparse.ArgumentParser(description=(what or "").partition("\n")[0])
    parser.add_argument("--planes", type=int, default=2048)
    parser.add_argument("--size", type=int, default=2048, help="voxels along Y and X")
    parser.add_argument("--times", type=int, default=4, help="planes of the deeper volume")
    parser.add_argument("--memory", type=gigabytes, default="1GB", help="budget of a run")
    parser.add_argument("--folder", type=Path, help="where volumes are made, and kept")
    return parser


def volumes(options: argparse.Namespace, folder: Path) -> list[Path]:
    """Make both volumes, and return where they are."""
    paths = []
    for planes in (options.planes, options.planes * options.times):
        paths.append(folder / f"in-{planes}-{options.size}.zarr")
        make_volume(paths[-1], (planes, options.size, options.size))
    return paths


def main() -> int:
    """Run three times, say what was measured, and return the exit code."""
    options = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        small, deep = volumes(options, folder)
        runs = []
        for source in (small, deep):
            output = folder / f"out-{source.name}"
            runs.append(run_in_process(__file__, source, output, options.memory, 0))
            check_voxels(source, output)
            shutil.rmtree(output)
        output = folder / "counted.zarr"
        counted = run_in_process(__file__, small, output, options.memory, 1)
        shutil.rmtree(output)
    good = report(runs[0], runs[1], options.times)
    print(f"patches run / patches in the grid: {counted['patches']:.4f} (aim: 1)")
    print(f"bytes read / bytes stored: {counted['amplification']:.3f} (aim: {AIM_READ} or less)")
    good &= counted["patches"] == 1 and counted["amplification"] <= AIM_READ
    return 0 if good else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        source, output, memory, counted = sys.argv[2:]
        print(json.dumps(run_here(Path(source), Path(output), int(memory), counted == "1")))
    else:
        sys.exit(main())
