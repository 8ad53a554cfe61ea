"""Draws the pictures of docs/explanation/windows.md from the windows themselves.

For maintainers: matplotlib is not among the package's dependencies.

pip install matplotlib && python docs/make_plots.py
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from napari_seamless.engine.blending import Window, weight_sum
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.windows import WINDOWS, build_window

IMAGES = Path(__file__).parent / "images" / "windows"
PATCH_SIZE = (1, 1, 64)
SHAPE = (1, 1, 160)
COLOR = "#0f8b8d"
PATCHES = (("#9aa5b1", "-"), (COLOR, "--"), ("#e07a1f", "-"), ("#9aa5b1", "--"))
"""Colour and stroke; the two patches in the middle have a neighbour on both sides."""


def shares(window: Window) -> list[tuple[int, NDArray[np.float64]]]:
    """Return, for each patch at overlap 0.5, its start and its share of the weight sum."""
    grid = PatchGrid.regular(SHAPE, PATCH_SIZE, 0.5)
    everything = np.ones(grid.counts, dtype=bool)
    return [
        (box.start[2], window.in_float64()[0, 0] / weight_sum(grid, window, everything, box)[0, 0])
        for box in grid
    ]


def draw_profile(axes: Axes, window: Window) -> None:
    """Draw the weights of one patch."""
    profile = window.matrix[0, 0]
    axes.fill_between(np.arange(len(profile)), profile, step="mid", color=COLOR, alpha=0.2)
    axes.step(np.arange(len(profile)), profile, where="mid", color=COLOR)
    axes.set(title="weights of a patch", xlim=(-0.5, len(profile) - 0.5), xticks=range(0, 65, 16))
    axes.set_ylim(0, 1.08 * profile.max())


def draw_shares(axes: Axes, window: Window) -> None:
    """Draw what part of the prediction comes from which of the neighbours."""
    strokes = zip(shares(window), PATCHES, strict=True)
    for order, ((start, share), (color, stroke)) in enumerate(strokes):
        voxels = np.arange(start, start + len(share))
        axes.step(voxels, share, stroke, where="mid", color=color, zorder=2 + order % 2)
    axes.set(title="share of each neighbour, overlap 0.5", xticks=range(0, 161, 32))
    axes.set(xlim=(-0.5, SHAPE[2] - 0.5), ylim=(0, 1.08))


def main() -> None:
    """Write one picture per window."""
    plt.rcParams.update({"font.size": 8, "axes.titlesize": 8, "axes.spines.right": False})
    plt.rcParams.update({"axes.spines.top": False, "lines.linewidth": 1.4})
    for mode in WINDOWS:
        window = build_window(PATCH_SIZE, mode)
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(6.4, 1.9), layout="constrained", width_ratios=(1, 1.6)
        )
        draw_profile(left, window)
        draw_shares(right, window)
        for axes in (left, right):
            axes.set_xlabel("voxel")
        figure.savefig(IMAGES / f"{mode}.png", dpi=90, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    IMAGES.mkdir(parents=True, exist_ok=True)
    main()
