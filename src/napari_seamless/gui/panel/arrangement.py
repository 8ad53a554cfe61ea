"""Which field stands where: the sections of the form, from top to bottom."""

from typing import Any

import napari
from magicgui.widgets import CheckBox, Container, Widget
from qtpy.QtWidgets import QWidget

from napari_seamless.gui.checkpoint.checkpoint_form import CheckpointForm
from napari_seamless.gui.overlays import SWITCHES, state_legend
from napari_seamless.gui.panel.fields import (
    debug_fields,
    image_fields,
    network_fields,
    patch_fields,
    rarer_image_fields,
    rarer_network_fields,
    rarer_patch_fields,
    tuning_fields,
)
from napari_seamless.gui.panel.lines import Lines
from napari_seamless.gui.panel.resources_form import ResourcesForm
from napari_seamless.gui.panel.sections import LARGER_FONT, Fold, Section, labelled, layout_of, row
from napari_seamless.gui.space.scope import scope_fields

_BOXES_PER_LINE = 3
_OTHERS = "Settings that have no field here: from a file, a preset, or tuned"


def sections(
    viewer: "napari.viewer.Viewer",
    model: CheckpointForm,
    resources: ResourcesForm,
    profile: QWidget,
    inspector: QWidget,
) -> list[Section]:
    """Return the sections of the form.

    Parameters
    ----------
    viewer : Viewer
        Its layers are offered.
    model, resources : CheckpointForm, ResourcesForm
        Parts of the form that have fields.
    profile, inspector : QWidget
        The picture of the window, and the table of patches.
    """
    others = Lines("others", label="also", visible=False, tooltip=_OTHERS)
    scores = Lines("scores", is_rich=True, visible=False, tooltip="Of the newest prediction")
    seams = Lines("seam_score", visible=False, tooltip="Jumps at patch faces against those inside")
    legend = Lines("legend", is_rich=True, visible=False, tooltip="The colours of States")
    legend.value = state_legend()
    image, *more = image_fields(viewer)
    tuning, finer = tuning_row(), _fold("patches_more", rarer_patch_fields())
    patches = [*patch_fields(), profile, tuning, finer]
    inputs = [image, _all_selected(), *scope_fields(viewer), *more]
    network = [*network_fields(), others, _fold("model_more", rarer_network_fields())]
    inputs.append(_fold("input_more", rarer_image_fields(viewer)))
    debug = [*overlay_boxes(), row(legend), row(seams), *debug_fields(viewer), scores, inspector]
    return [
        Section("model_section", "Model", [*model.fields, *network]),
        Section("input_section", "Input", inputs),
        Section("patches_section", "Patches", patches),
        Section("output_section", "Output", [*resources.fields, resources.more], is_open=False),
        Section("debug_section", "Debug", debug, is_open=False),
    ]


def tuning_row() -> Container[Widget]:
    """Return what tunes the settings, beside its label."""
    what, button = tuning_fields()
    return labelled(row(what, button, label=what.label))


def _fold(name: str, fields: list[Any]) -> Fold:
    return Fold(name, "Advanced", fields)


def _all_selected() -> CheckBox:
    return CheckBox(
        name="all_selected",
        text="all selected images",
        visible=False,
        tooltip="Predict all image layers that are selected in the layer list, one after the "
        "other, with the same settings",
    )


def overlay_boxes() -> list[Container[Widget]]:
    """Return the switches of the overlays, in lines with columns."""
    boxes = [
        CheckBox(name=f"show_{each.name}", text=each.text, tooltip=each.tooltip)
        for each in SWITCHES
    ]
    for first in range(_BOXES_PER_LINE):
        column = boxes[first::_BOXES_PER_LINE]
        width = max(box.native.sizeHint().width() for box in column)
        for box in column:
            box.min_width = round(LARGER_FONT * width)
    lines = range(0, len(boxes), _BOXES_PER_LINE)
    return [_from_left(row(*boxes[at : at + _BOXES_PER_LINE])) for at in lines]


def _from_left(line: Container[Widget]) -> Container[Widget]:
    layout_of(line.native).addStretch()
    return line
