"""What `File > Open Sample` offers."""

from typing import Any

from napari_seamless.demo.volume import DEMO_SCALE, demo_volume

LayerData = tuple[Any, dict[str, Any], str]


def demo_layers() -> list[LayerData]:
    """Return the generated EM-like volume, and its membranes as a hidden labels layer."""
    raw, membranes = demo_volume()
    geometry = {"scale": DEMO_SCALE, "units": ("nm", "nm", "nm"), "axis_labels": ("z", "y", "x")}
    return [
        (raw, {"name": "EM-like volume", "colormap": "gray", **geometry}, "image"),
        (membranes, {"name": "membranes (truth)", "visible": False, **geometry}, "labels"),
    ]
