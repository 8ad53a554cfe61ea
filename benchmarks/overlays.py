"""How long the overlays of 10,000 patches take to appear, and to be drawn again.

xvfb-run -a python benchmarks/overlays.py [--repeats 5]

The volume is 160 x 2304 x 2304 (one value, no memory), its patches 32 x 128 x 128 at overlap 0.5:
9 x 35 x 35. Printed: seconds from switching an overlay on until napari has drawn it, their ratio to
the aim, and seconds for drawing it again; medians. In 3-D napari leaves out what is too large.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import napari
import numpy as np
from napari.layers import Image
from qtpy.QtWidgets import QApplication

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.gui.overlays import SWITCHES, Overlays, Subject, planned
from napari_seamless.gui.runs.request import Plan

AIM_SECONDS = 0.3
SHAPE = (160, 2304, 2304)
PATCH = (32, 128, 128)


def subject_over(viewer: napari.Viewer) -> Subject:
    """Return a planned run over an image of the viewer."""
    data = np.broadcast_to(np.uint8(7), SHAPE)
    image = viewer.add_layer(Image(data, name="volume", contrast_limits=(0, 255)))
    config = InferenceConfig(patch_size=PATCH, overlap=0.5, device="cpu", disagreement=True)
    return planned(Plan(image, config))


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long work takes, with what napari then draws."""
    QApplication.processEvents()
    began = time.perf_counter()
    work()
    QApplication.processEvents()
    return time.perf_counter() - began


def measure(overlays: Overlays, subject: Subject, name: str, repeats: int) -> tuple[float, float]:
    """Return the medians of an overlay's appearing, and of its being drawn again."""
    appearing, again = [], []
    for _ in range(repeats):
        overlays.show(set(), subject)
        appearing.append(seconds_of(lambda: overlays.show({name}, subject)))
        again.append(seconds_of(lambda: overlays.redraw(name)))
    overlays.show(set(), subject)
    return statistics.median(appearing), statistics.median(again)


def main() -> None:
    """Measure every overlay in 2-D, and in 3-D those that are drawn there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    viewer = napari.Viewer()
    subject = subject_over(viewer)
    overlays = Overlays(viewer, start_task=lambda task, done: None)
    print(f"{len(subject.grid):,} patches; seconds until drawn / aim {AIM_SECONDS}; drawn again")
    for ndisplay in (2, 3):
        viewer.layers["volume"].visible = ndisplay == 2
        viewer.dims.ndisplay = ndisplay
        overlays.view_moved()
        for switch in SWITCHES:
            appearing, again = measure(overlays, subject, switch.name, repeats)
            ratio = appearing / AIM_SECONDS
            print(f"{ndisplay}-D {switch.name:13} {appearing:.3f} {ratio:5.2f} {again:.3f}")
    viewer.close()


if __name__ == "__main__":
    main()
