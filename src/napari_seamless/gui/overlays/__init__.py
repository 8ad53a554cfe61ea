"""Layers that explain a prediction: its weights, its patches, and how well these fit together."""

from napari_seamless.gui.overlays.cell_layers import state_legend
from napari_seamless.gui.overlays.lines import grid_lines
from napari_seamless.gui.overlays.names import OVERLAY_KEY, SWITCHES, Switch
from napari_seamless.gui.overlays.overlays import Overlays
from napari_seamless.gui.overlays.seam_line import seam_line
from napari_seamless.gui.overlays.subject import CellState, Subject, planned, running

__all__ = [
    "OVERLAY_KEY",
    "SWITCHES",
    "CellState",
    "Overlays",
    "Subject",
    "Switch",
    "grid_lines",
    "planned",
    "running",
    "seam_line",
    "state_legend",
]
