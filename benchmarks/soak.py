"""Whether many short runs in one viewer leave anything behind.

    xvfb-run -a python benchmarks/soak.py [--runs 200] [--warm 40] [--trace]

After each run its layer is removed. Counted after the first runs and after the last: memory of the
process, threads, open files, callbacks of the viewer's events, and Python objects by their type;
printed is what grows, per run. What napari itself keeps of every worker that it ever started (a
record of a few KiB) is counted in, but told apart. `--trace`: also which
lines of code hold more memory (slow).
"""

import argparse
import gc
import os
import sys
import tempfile
import threading
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from responsiveness import end, fill_in, open_widget, wait_until

SHAPE, PATCH_SIZE = (8, 64, 64), (4, 32, 32)
MEMORY_AIM_KIB = 20.0
"""Per run: the allocator gives and takes in larger pieces; an array left behind is 128 KiB."""


def run_once(viewer: Any, widget: Any) -> None:
    """Run, wait for the end, and remove the layer."""
    lines: list[str] = []
    widget.controller.ended.connect(lines.append)
    widget.controller.run()
    wait_until(lambda: lines)
    widget.controller.ended.disconnect(lines.append)
    layer = widget.controller.live.layer
    if layer.metadata["napari-seamless"]["status"] != "complete":
        raise RuntimeError(lines[0])
    viewer.layers.remove(layer)


def callbacks(viewer: Any) -> int:
    """Return how many functions the viewer's events and those of its layers call."""
    emitters = [
        *viewer.dims.events.emitters.values(),
        *viewer.scene.camera.events.emitters.values(),
        *viewer.cursor.events.emitters.values(),
        *viewer.layers.events.emitters.values(),
        *viewer.layers.selection.events.emitters.values(),
        *(each for layer in viewer.layers for each in layer.events.emitters.values()),
    ]
    return sum(len(each.callbacks) for each in emitters)


def counts(viewer: Any) -> dict[str, float]:
    """Return what must not grow."""
    gc.collect()
    process = psutil.Process()
    return {
        "memory, KiB": process.memory_info().rss / 1024,
        "threads of Python": threading.active_count(),
        "threads": process.num_threads(),
        "open files": process.num_fds() if hasattr(process, "num_fds") else process.num_handles(),
        "callbacks": callbacks(viewer),
        "layers": len(viewer.layers),
    }


def kinds() -> Counter[str]:
    """Return how many Python objects of each type there are."""
    gc.collect()
    return Counter(f"{type(each).__module__}.{type(each).__name__}" for each in gc.get_objects())


def soak(options: argparse.Namespace, folder: Path) -> bool:
    """Run, print what grows, and return whether nothing does."""
    checkpoint = folder / "network.pt"
    torch.jit.script(torch.nn.Conv3d(1, 1, 3, padding=1)).save(str(checkpoint))
    volume = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
    viewer, widget = open_widget(volume, folder)
    fill_in(widget, checkpoint, patch_size=PATCH_SIZE, batch_size=8)
    series = []
    for number in range(options.runs + 1):
        if number >= options.warm and (number - options.warm) % 10 == 0:
            series.append((number, counts(viewer)))
        if number == options.warm:
            before = kinds()
            if options.trace:
                tracemalloc.start(4)
                traced = tracemalloc.take_snapshot()
        if number < options.runs:
            run_once(viewer, widget)
    is_level = report(series)
    is_level &= report_kinds(before, kinds(), options.runs - options.warm)
    if options.trace:
        found = tracemalloc.take_snapshot().compare_to(traced, "traceback")
        for each in found[:8]:
            print(f"{each.size_diff / 1024:8.1f} KiB, {each.count_diff} blocks")
            print("\n".join(each.traceback.format()))
    end(viewer, widget)
    return is_level


def report(series: list[tuple[int, dict[str, float]]]) -> bool:
    """Print each count's first and last value and its growth per run; return whether all rest."""
    is_level = True
    numbers = [number for number, _ in series]
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; from run {numbers[0]} on")
    for name in series[0][1]:
        values = [each[name] for _, each in series]
        slope = float(np.polyfit(numbers, values, 1)[0])
        most = MEMORY_AIM_KIB if name.startswith("memory") else 0.01
        is_level &= slope <= most
        verdict = "" if slope <= most else "   GROWS"
        print(f"{name:18} {values[0]:10,.0f} -> {values[-1]:10,.0f}, {slope:8.3f} a run{verdict}")
    return is_level


OURS = ("napari_seamless.", "torch.", "napari.layers", "napari._vispy", "numpy.")
"""Of these types nothing may be left behind; of others napari's own records are."""
OF_NAPARI = ("napari_seamless.gui.worker", "napari_seamless.gui.runs.worker")
"""Workers, which napari's list of tasks keeps."""


def report_kinds(before: Counter[str], after: Counter[str], runs: int) -> bool:
    """Print types of which every second run leaves an object; return whether none is ours."""
    grown = {name: after[name] - before[name] for name in after}
    left = {name: count for name, count in grown.items() if count >= 0.5 * runs}
    ours = {name for name in left if name.startswith(OURS) and not name.startswith(OF_NAPARI)}
    for name, count in sorted(left.items(), key=lambda each: -each[1]):
        verdict = "   GROWS" if name in ours else ""
        print(f"objects of {name}: {count / runs:.1f} more with each run{verdict}")
    return not ours


def main() -> int:
    """Soak, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--warm", type=int, default=40)
    parser.add_argument("--trace", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return 0 if soak(options, Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
