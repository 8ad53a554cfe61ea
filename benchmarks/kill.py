"""A run killed at 20 random moments, gone on with each time, against one that nobody interrupts.

    python benchmarks/kill.py [zarr|h5|tif] [--disk-full]

Each time a process of its own resumes the run and gets SIGKILL after a random time. What is
recorded as finished by then must have the very bits of the uninterrupted run, to the end. With
`--disk-full` it is the disk that fills up instead, at 5 random moments, and then gets room again;
this mounts a small tmpfs, which takes root and Linux. The moments are drawn from a fixed seed.
"""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np
import tifffile
import torch
import zarr
from numpy.typing import NDArray
from torch import nn

import napari_seamless as ns
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.errors import WriteError
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.io.journal import Journal
from napari_seamless.io.stores import open_store

SHAPE = (256, 64, 64)
CONFIG = ns.InferenceConfig(
    patch_size=(8, 32, 32), normalization="dtype", activation="sigmoid", device="cpu"
)
GRID = PatchGrid.regular(SHAPE, CONFIG.patch_size, 0.5)
PACE = 0.005
"""Seconds that the network takes for a patch."""
KILLS, FILLS = 20, 5
DISK_MIB = 24


class Uneven(nn.Module):
    """A network whose answer depends on the place in the patch, so that every weight matters."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image times a ramp along X."""
        time.sleep(PACE)
        return 4 * image * torch.linspace(-1, 1, image.shape[-1])


def volume() -> NDArray[np.uint8]:
    """Return the same voxels every time."""
    return np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)


def run(output: Path, begun: str = "") -> None:
    """Go on with the run at `output`; print `begun` when it is at work."""
    with ns.InferenceRun(volume(), Uneven(), CONFIG, output, resume=True) as running:
        for count, _ in enumerate(running):
            if count == 0 and begun:
                print(begun, flush=True)


def started(output: Path) -> subprocess.Popen[str]:
    """Start `run` and wait until it is at work."""
    words = [sys.executable, __file__, "run", str(output)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def voxels(output: Path) -> NDArray[np.float32]:
    """Return what an output has, or what is left of it."""
    path = output
    if not path.exists():
        path = Journal(output).folder / f"part{output.suffix}"
    if path.suffix == ".zarr":
        return np.asarray(zarr.open_array(path / "0", mode="r")[:])
    if path.suffix == ".tif":
        return np.asarray(tifffile.imread(path)).reshape(1, *SHAPE)
    with h5py.File(path) as file:
        return np.asarray(file["main"])


def same_bits(found: NDArray[np.float32], whole: NDArray[np.float32], at: set[int]) -> bool:
    """Return whether all these chunks have the bits of the uninterrupted run."""
    return all(
        found[:, *CHUNKS[i].slices].tobytes() == whole[:, *CHUNKS[i].slices].tobytes() for i in at
    )


def check(what: str, output: Path, whole: NDArray[np.float32], before: set[int]) -> set[int]:
    """Print how things stand after an interruption; return the recorded chunks."""
    recorded = Journal(output).finished()
    lost = before - recorded if Journal(output).exists else set()
    same = same_bits(voxels(output), whole, recorded) if recorded else True
    print(
        f"{what:34} {len(recorded):4} of {len(CHUNKS)} chunks recorded, {len(lost)} lost, "
        f"{'bit-identical' if same else 'DIFFERENT'}",
        flush=True,
    )
    if lost or not same:
        raise SystemExit("what was finished is not what it was")
    return recorded


def kill(output: Path, whole: NDArray[np.float32], seconds: float) -> None:
    """Kill the run at random moments; a run of `seconds` in all."""
    random, recorded = np.random.default_rng(1), set[int]()
    for number in range(1, KILLS + 1):
        process = started(output)
        wait = float(random.uniform(0, 2 * seconds / KILLS))
        time.sleep(wait)
        process.kill()
        process.wait()
        if not Journal(output).exists:
            print(f"complete before kill {number}")
            return
        recorded = check(f"kill {number:2}, after {wait:.3f} s", output, whole, recorded)


def fill(output: Path, whole: NDArray[np.float32], seconds: float) -> None:
    """Fill the disk at random moments, and make room again when the run has noticed."""
    random, recorded = np.random.default_rng(1), set[int]()
    ballast = output.with_name("ballast")
    for number in range(1, FILLS + 1):
        process = started(output)
        wait = float(random.uniform(0, seconds / FILLS))
        time.sleep(wait)
        try:
            with open(ballast, "wb", buffering=0) as file:
                while file.write(bytes(1 << 12)):
                    pass
        except OSError:
            pass
        _, said = process.communicate(timeout=120)
        ballast.unlink()
        if process.returncode == 0:
            print(f"complete: no room was needed any more at fill {number}")
            return
        print(f"  {said.strip().splitlines()[-1]}".replace(str(output.parent), "DISK"))
        recorded = check(f"disk full {number}, after {wait:.3f} s", output, whole, recorded)


def mount(folder: Path, stack: ExitStack) -> None:
    """Mount a small disk, or end with the reason why not."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise SystemExit("skipped: a small disk is mounted by root on Linux only")
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "seamless-kill", str(folder)]
    if subprocess.run(words, check=False).returncode:
        raise SystemExit("skipped: this machine does not permit mounting a small disk")
    stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)


def main(suffix: str, is_disk_full: bool) -> None:
    """Interrupt a run, finish it, and compare it with one that was left alone."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        disk = folder / "disk"
        disk.mkdir()
        if is_disk_full:
            mount(disk, stack)
        began = time.perf_counter()
        run(folder / f"whole.{suffix}")
        seconds = time.perf_counter() - began
        whole, output = voxels(folder / f"whole.{suffix}"), disk / f"out.{suffix}"
        print(f"{SHAPE}, {len(GRID)} patches, {seconds:.1f} s without interruption, .{suffix}")
        (fill if is_disk_full else kill)(output, whole, seconds)
        run(output)
        found = voxels(output)
    difference = float(np.abs(found - whole).max())
    print(f"complete: largest difference {difference:.3g}, {np.isnan(found).sum()} voxels missing")
    if not difference <= 1e-6:
        raise SystemExit("the result is not that of the uninterrupted run")


def chunks(suffix: str) -> ChunkGrid:
    """Return how such an output is cut into chunks."""
    return open_store(Path(tempfile.gettempdir()) / f"none.{suffix}").layout(GRID)


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["run"]:
        try:
            run(Path(words[1]), "begun")
        except WriteError as error:
            raise SystemExit(str(error)) from None
    else:
        names = [word for word in words if not word.startswith("-")]
        suffix = names[0] if names else "zarr"
        CHUNKS = chunks(suffix)
        main(suffix, "--disk-full" in words)
