"""What showing a run while it goes on costs it.

    xvfb-run -a -s "-screen 0 1600x1000x24" python benchmarks/streaming.py [--repeats 5]
        [--seconds 8]

The demo's network over planes of 2048 x 2048 voxels, patch by patch: without a viewer, and in the
real widget with the layer hidden and shown, one after the other, repeated. Compared is the time per
patch, from the first batch of a run to the last of the seconds that are measured: medians of the
ratios within one repetition.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from responsiveness import end, fill_in, open_widget, wait, wait_until

import napari_seamless as ns
from napari_seamless.demo import CHECKPOINT

SHAPE, PATCH_SIZE = (4, 2048, 2048), (4, 128, 128)
AIMS = {"hidden": 0.05, "shown": 0.15}


def pace(moments: list[tuple[float, int]]) -> float:
    """Return seconds per patch between the first moment and the last."""
    (began, first), (ended, last) = moments[0], moments[-1]
    return (ended - began) / (last - first)


def without_viewer(volume: np.ndarray, model: Any, config: Any, seconds: float) -> float:
    """Return seconds per patch of a run that is drained and not shown."""
    moments: list[tuple[float, int]] = []
    with ns.InferenceRun(volume, model, config) as run:
        for event in run:
            moments.append((time.perf_counter(), event.done))
            if moments[-1][0] - moments[0][0] > seconds:
                break
    return pace(moments)


def in_viewer(viewer: Any, widget: Any, seconds: float, is_shown: bool) -> float:
    """Return seconds per patch of a run in the widget; its layer is removed."""
    moments: list[tuple[float, int]] = []

    def note(done: int, total: int) -> None:
        moments.append((time.perf_counter(), done))

    widget.controller.run()
    wait_until(lambda: widget.controller.is_busy and widget.controller.live is not None)
    layer = widget.controller.live.layer
    layer.visible = is_shown
    wait(1)  # the picture of the first batch, and the forecast
    widget.controller.progressed.connect(note)
    wait(seconds)
    widget.controller.progressed.disconnect(note)
    widget.controller.cancel()
    wait_until(lambda: not widget.controller.is_busy)
    viewer.layers.remove(layer)
    return pace(moments)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Return the ratios of each repetition to the run without a viewer."""
    volume = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
    viewer, widget = open_widget(volume, folder)
    fill_in(widget, CHECKPOINT, patch_size=PATCH_SIZE, batch_size=1)
    wait(3)  # the estimate before the run is measured
    config, model = widget.requests()[0].plan.config, ns.load_model(CHECKPOINT)
    without_viewer(volume, model, config, 2)
    ratios: dict[str, list[float]] = {name: [] for name in AIMS}
    for _ in range(options.repeats):
        before = without_viewer(volume, model, config, options.seconds)
        paces = {name: in_viewer(viewer, widget, options.seconds, name == "shown") for name in AIMS}
        after = without_viewer(volume, model, config, options.seconds)
        for name, found in paces.items():
            ratios[name].append(2 * found / (before + after))
        print(
            f"load {os.getloadavg()[0]:.1f}; ms a patch: without a viewer "
            f"{1000 * before:.0f} and {1000 * after:.0f}, "
            + ", ".join(f"{name} {1000 * found:.0f}" for name, found in paces.items())
        )
    end(viewer, widget)
    return ratios


def main() -> int:
    """Measure, say what was found, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        costs = {name: median(each) - 1 for name, each in measure(options, Path(folder)).items()}
    for name, cost in costs.items():
        verdict = "" if cost <= AIMS[name] else "   MISSED"
        print(f"layer {name}: {cost:+.1%} of the run time (aim: {AIMS[name]:.0%} or less){verdict}")
    return 0 if all(cost <= AIMS[name] for name, cost in costs.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
