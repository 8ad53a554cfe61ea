"""Compare the cost model of scaling.py with what real runs do: patches, bytes, open sums.

    python benchmarks/scaling_check.py

Random voxels, so that nothing is smaller when compressed; a network that returns what it gets;
zarr in and out. What is counted: calls of the network; bytes that TensorStore reads and writes;
open sums after each patch; bytes that the process writes besides, which are sums.
Exits with 1 if a ratio is beyond its tolerance. Linux: some figures are from /proc.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
import torch
import zarr
from distributed import Client
from scaling import (
    amplification,
    cache_bytes,
    passed_bytes,
    read_back_bytes,
    row_bytes,
    scratch_bytes,
    written_bytes,
)

import napari_seamless as ns
from napari_seamless.cluster import ClusterRun, local_cluster
from napari_seamless.engine import accumulator
from napari_seamless.engine.blocks import BlockGrid
from napari_seamless.engine.box import Triple
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.needs import front_of
from napari_seamless.engine.sums import OpenSums
from napari_seamless.inference import InferenceRun
from napari_seamless.io.stores import zarr_layout

TOLERANCES = {
    "patches run": 0.0,
    "bytes read": 0.1,
    "bytes written": 0.1,
    "open sums": 0.15,
    "sums to disk": 0.25,
    "sums passed": 0.05,
}
"""How far measured / modelled may be from 1."""

ROOMY = 1 << 30

UNIT_VOXELS = 1 << 16
"""Voxels that are finished at once: few, so that a small volume has as many such units as a large
one has."""


@dataclass(frozen=True)
class Case:
    """A run to compare."""

    name: str
    shape: Triple
    patch: Triple
    overlap: float
    chunk: Triple
    memory: int = ROOMY

    @property
    def grid(self) -> PatchGrid:
        """Its patches."""
        return PatchGrid.regular(self.shape, self.patch, self.overlap)


CASES = (
    Case("chunks match", (96, 320, 320), (32, 64, 64), 0.5, (16, 32, 32)),
    Case("chunks do not match", (100, 330, 310), (24, 96, 80), 0.25, (20, 50, 70)),
    Case("flat patches", (40, 500, 500), (8, 128, 128), 0.5, (10, 64, 64)),
    Case("little overlap", (128, 384, 384), (32, 96, 96), 0.125, (32, 128, 128)),
    Case("little memory", (96, 1024, 256), (32, 64, 64), 0.5, (16, 32, 32), 42 << 20),
    Case("less memory", (160, 320, 320), (32, 64, 64), 0.5, (16, 32, 32), 6 << 20),
)
CLUSTER = Case("cluster", (128, 384, 384), (16, 64, 64), 0.5, (16, 64, 64))


class Counting(torch.nn.Module):
    """Returns what it gets, and adds a byte per patch to a file, whichever process it is in."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = str(file)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return `patches`."""
        with open(self.file, "ab") as file:
            file.write(b"." * len(patches))
        return patches


def counters() -> dict[str, int]:
    """Return what this process has read and written so far, in bytes."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    written = next(int(line.split()[1]) for line in lines if line.startswith("wchar"))
    store_read, store_written = (
        sum(value["value"] for metric in found for value in metric["values"])
        for found in (
            ts.experimental_collect_matching_metrics(f"/tensorstore/kvstore/file/bytes_{way}")
            for way in ("read", "written")
        )
    )
    return {"read": store_read, "stored": store_written, "other": written - store_written}


def since(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Return the differences of counters."""
    return {name: after[name] - before[name] for name in after}


def make_input(folder: Path, case: Case) -> str:
    """Write random voxels, and return where."""
    voxels = np.random.default_rng(0).integers(0, 256, case.shape, dtype=np.uint8)
    array = zarr.create_array(
        folder / "in.zarr", shape=case.shape, chunks=case.chunk, dtype="uint8", overwrite=True
    )
    array[...] = voxels
    return str(folder / "in.zarr")


def config_of(case: Case) -> ns.InferenceConfig:
    """Return the settings of a case."""
    return ns.InferenceConfig(
        patch_size=case.patch,
        overlap=case.overlap,
        batch_size=1,
        device="cpu",
        output_dtype="uint8",
    )


class Watched(OpenSums):
    """Open sums that note the most bytes that they had."""

    peak = 0

    def take(self, *chunks: Any) -> dict[int, torch.Tensor]:
        """Return the sums of chunks; see `OpenSums`."""
        taken = super().take(*chunks)
        Watched.peak = max(Watched.peak, self.nbytes + self.bytes_on_disk)
        return taken


Row = tuple[str, float, float]
"""What, as modelled and as measured."""


def compare(case: Case, folder: Path) -> list[Row]:
    """Run a case in this process."""
    calls = folder / "calls"
    calls.write_bytes(b"")
    source, output = make_input(folder, case), folder / "out.zarr"
    with InferenceRun(
        source, Counting(calls), config_of(case), output, overwrite=True, memory=case.memory
    ) as run:
        before, Watched.peak = counters(), 0
        for _ in run:
            pass
        did = since(before, counters())
        chunks = run.volumes[0].accumulator.chunks
        sums = run.volumes[0].needs(run.channels, case.memory).shares.sums
    grid, voxels = case.grid, float(np.prod(case.shape))
    is_kept = cache_bytes(grid, case.chunk, 1) <= case.memory // 2
    times = amplification(grid, case.chunk, "layer" if is_kept else "row")
    rows = [
        ("patches run", len(grid), calls.stat().st_size),
        ("bytes read", times * voxels + read_back_bytes(case.shape, 1), did["read"]),
        ("bytes written", written_bytes(case.shape, 1), did["stored"]),
        ("open sums", front_of(grid, chunks, 1), Watched.peak),
    ]
    if sums < row_bytes(grid, chunks, 1):
        print("  sums to disk   not modelled: the memory does not hold a row of patches")
        return rows
    return [*rows, ("sums to disk", scratch_bytes(grid, chunks, 1, sums), _large(did["other"]))]


def compare_cluster(case: Case, folder: Path) -> list[Row]:
    """Run a case on two workers."""
    calls = folder / "calls"
    calls.write_bytes(b"")
    source, output = make_input(folder, case), folder / "out.zarr"
    with (
        local_cluster(2) as workers,
        Client(workers, set_as_default=False) as client,
        ClusterRun(source, Counting(calls), config_of(case), output, client, overwrite=True) as run,
    ):
        before = client.run(counters)
        for _ in run:
            pass
        after = client.run(counters)
        chunks = run.volumes[0].accumulator.chunks
    did = [since(before[worker], after[worker]) for worker in before]
    blocks = BlockGrid.of(case.grid, chunks, 1)
    return [
        ("patches run", len(case.grid), calls.stat().st_size),
        ("bytes written", written_bytes(case.shape, 1), sum(each["stored"] for each in did)),
        ("sums passed", passed_bytes(blocks, 1), sum(_large(each["other"]) for each in did)),
    ]


def _large(nbytes: int) -> int:
    """Return bytes written, without those of logs and notes."""
    return nbytes if nbytes > 1 << 20 else 0


def is_good(row: Row) -> bool:
    """Print how a measured figure compares with the model; return whether it is near enough."""
    what, modelled, measured = row
    ratio = measured / modelled if modelled else 1.0 + (measured > 0)
    good = abs(ratio - 1) <= TOLERANCES[what]
    print(
        f"  {what:14} model {modelled:>13,.0f}  measured {measured:>13,.0f}  "
        f"ratio {ratio:.3f}{'' if good else '  BEYOND ' + str(TOLERANCES[what])}"
    )
    return good


def main() -> int:
    """Compare all cases; return the exit code."""
    zarr_layout.UNIT_VOXELS = UNIT_VOXELS
    accumulator.OpenSums = Watched
    good = []
    with tempfile.TemporaryDirectory() as place:
        for case in (*CASES, CLUSTER):
            print(f"{case.name}: {case.shape}, patches {case.patch}, overlap {case.overlap:g}")
            rows = (compare_cluster if case is CLUSTER else compare)(case, Path(place))
            good += [is_good(row) for row in rows]
    return 0 if all(good) else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
