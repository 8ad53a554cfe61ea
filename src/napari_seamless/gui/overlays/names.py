"""Which overlays there are, and what their switches say."""

from dataclasses import dataclass

OVERLAY_KEY = "napari-seamless-overlay"
"""In a layer's metadata: that it is an overlay, and no image to predict from."""


@dataclass(frozen=True)
class Switch:
    """An overlay that can be switched on.

    Attributes
    ----------
    name : str
        What the code calls it.
    text : str
        What stands at its switch.
    tooltip : str
        What it shows, and what its colours mean.
    layer : str
        Name of its layer.
    """

    name: str
    text: str
    tooltip: str
    layer: str


SWITCHES = (
    Switch(
        "weights",
        "Weights",
        "Sum of the blending weights so far, or of the patch that is picked: purple little, "
        "yellow most",
        "blending weights",
    ),
    Switch(
        "coverage",
        "Coverage",
        "How many patches have reached each voxel so far; brighter is more",
        "coverage",
    ),
    Switch(
        "patch_ids",
        "Patch ids",
        "Which patch weighs most at each voxel; select its layer and point at a voxel to read the "
        "number",
        "patch ids",
    ),
    Switch(
        "states",
        "States",
        "What has become of each patch: blue waiting, yellow running, green done, grey skipped, "
        "vermilion failed",
        "patch states",
    ),
    Switch(
        "order",
        "Order",
        "In which order the waiting patches will run: yellow next, dark last",
        "patch order",
    ),
    Switch("grid", "Grid", "Where patches begin and end", "patch grid"),
    Switch(
        "disagreement",
        "Disagreement",
        "How far overlapping patches are apart: their weighted standard deviation, the largest of "
        "all channels; must be asked for before the run",
        "disagreement",
    ),
    Switch(
        "seams",
        "Seams",
        "How much the prediction jumps where patches begin and end, the largest of all channels",
        "seam map",
    ),
)
"""All overlays, in the order in which they are offered."""

NAMES = {switch.name: switch.layer for switch in SWITCHES}
"""Names of the layers."""
