"""How long importing, opening the widget, `--help` and the first patch of `predict` take.

xvfb-run -a python benchmarks/start.py

Medians of five processes each. The first patch is when the network is called, since the process was
started.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

IMPORT = (
    "import time; t = time.perf_counter(); import napari_seamless; print(time.perf_counter() - t)"
)
WIDGET = """
import time, napari
viewer = napari.Viewer(show=False)
t = time.perf_counter()
viewer.window.add_plugin_dock_widget("napari-seamless", "Blended inference")
print(time.perf_counter() - t)
viewer.close()
"""


NETWORK = """
import os, time
import psutil, torch
class Net(torch.nn.Conv3d):
    def __init__(self):
        super().__init__(1, 1, 3, padding=1)
    def forward(self, patches):
        print("first", time.time() - psutil.Process().create_time(), flush=True)
        os._exit(0)
"""


def first_patch(folder: Path) -> float:
    """Return the seconds until the command line calls a network."""
    (folder / "quick.py").write_text(NETWORK)
    np.save(folder / "volume.npy", np.zeros((8, 64, 64), np.uint8))
    torch.save(torch.nn.Conv3d(1, 1, 3, padding=1).state_dict(), folder / "net.pt")
    words = [sys.executable, "-m", "napari_seamless", "predict", "volume.npy"]
    words += ["--checkpoint", "net.pt", "--architecture", "quick:Net", "--patch-size", "8,64,64"]
    words += ["--device", "cpu", "--output", "out.h5", "--overwrite"]
    found = []
    for _ in range(5):
        run = subprocess.run(words, capture_output=True, text=True, cwd=folder, check=True)
        found.append(float(run.stdout.split("first")[1].split()[0]))
    return statistics.median(found)


def help_seconds() -> float:
    """Return how long `--help` takes."""
    found = []
    for _ in range(5):
        began = time.perf_counter()
        words = [sys.executable, "-m", "napari_seamless", "--help"]
        subprocess.run(words, capture_output=True, check=True)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def median_of_five(code: str) -> float:
    """Return the median of what five fresh processes print."""
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(5)
    ]
    return statistics.median(float(run.stdout.split()[-1]) for run in runs)


if __name__ == "__main__":
    print(f"import napari_seamless: {median_of_five(IMPORT):.3f} s (aim: 0.2 or less)")
    print(f"opening the widget:     {median_of_five(WIDGET):.3f} s (aim: 0.5 or less)")
    print(f"--help:                 {help_seconds():.3f} s (aim: 0.3 or less)")
    with tempfile.TemporaryDirectory() as folder:
        print(f"first patch:            {first_patch(Path(folder)):.2f} s (aim: 3 or less)")
