"""The fields of the form, as they are when it opens."""

from typing import Any, get_args

import napari
from magicgui.widgets import (
    CheckBox,
    ComboBox,
    Container,
    FloatSpinBox,
    LineEdit,
    PushButton,
    SpinBox,
    TupleEdit,
    Widget,
)
from napari.layers import Image, Labels
from qtpy.QtWidgets import QLabel
from superqt import QCollapsible

from napari_seamless.engine.config import (
    ACTIVATIONS,
    TTA_CHOICES,
    Blending,
    Normalization,
)
from napari_seamless.gui.overlays import OVERLAY_KEY


def inputs(viewer: "napari.viewer.Viewer") -> list[Any]:
    """Return the fields that decide a run, in the order of the form."""
    return [
        ComboBox(
            name="image",
            choices=lambda box: _images(viewer),
            tooltip="Layer to predict: (Y, X), (Z, Y, X), (C, Z, Y, X) or (T, C, Z, Y, X); a time "
            "axis of fewer axes is told by its label",
        ),
        ComboBox(
            name="level",
            choices=(0,),
            visible=False,
            tooltip="Which level of a multiscale image is predicted; 0 is the finest",
        ),
        LineEdit(
            name="time_points",
            visible=False,
            tooltip="Which time points are predicted: 3, 0:10 or 0:10:2; empty for all",
        ),
        TupleEdit(
            name="patch_size",
            value=(8, 128, 128),
            options={"min": 1, "max": 4096},
            tooltip="Voxels of one model input (Z, Y, X)",
        ),
        FloatSpinBox(
            name="overlap",
            value=0.5,
            min=0,
            max=0.99,
            step=0.05,
            tooltip="Share of a patch that its neighbour also covers",
        ),
        ComboBox(
            name="blending",
            choices=get_args(Blending),
            value="gaussian",
            tooltip="Window that weights each patch",
        ),
        SpinBox(
            name="batch_size", value=4, min=1, max=1024, tooltip="Patches per call of the network"
        ),
        ComboBox(
            name="device",
            choices=("auto", "cpu", "cuda", "mps"),
            tooltip="Where the network runs; auto takes a GPU if there is one",
        ),
        ComboBox(
            name="activation",
            choices=ACTIVATIONS,
            value="sigmoid",
            tooltip="Applied to each patch before blending",
        ),
        ComboBox(
            name="normalization",
            choices=[name for name in get_args(Normalization) if name != "fixed"],
            value="dtype",
            tooltip="dtype: unsigned integers are divided by their largest value; "
            "others use statistics of the whole image",
        ),
        ComboBox(
            name="tta",
            label="TTA",
            choices=TTA_CHOICES,
            tooltip="Test-time augmentation: flips along axes and turns in a plane, averaged",
        ),
    ]


def _images(viewer: "napari.viewer.Viewer") -> list[Image]:
    """Return the image layers of a viewer, without the overlays."""
    images = [layer for layer in viewer.layers if isinstance(layer, Image)]
    return [image for image in images if OVERLAY_KEY not in image.metadata]


def _labels(viewer: "napari.viewer.Viewer") -> list[Labels]:
    return [layer for layer in viewer.layers if isinstance(layer, Labels)]


def labels_choice(viewer: "napari.viewer.Viewer") -> ComboBox:
    """Return the field for a labels layer to score against."""
    return ComboBox(
        name="truth",
        label="labels",
        choices=lambda box: _labels(viewer),
        nullable=True,
        tooltip="Labels layer to score the prediction against, foreground where not 0",
    )


def mask_choice(viewer: "napari.viewer.Viewer") -> ComboBox:
    """Return the field for a layer outside of which nothing is predicted."""
    return ComboBox(
        name="mask",
        choices=lambda box: [*_images(viewer), *_labels(viewer)],
        nullable=True,
        tooltip="Only patches that touch a voxel of this layer that is not 0 are run",
    )


class Fold(Container):
    """Fields under a line that folds them away."""

    def __init__(self, name: str, title: str, fields: list[Any]) -> None:
        super().__init__(name=name, labels=False, label=" ")
        self.fields: Container[Any] = Container(widgets=fields, labels=True)
        self.fields.native.layout().setContentsMargins(0, 0, 0, 0)
        self.panel = QCollapsible(title)
        self.panel.setDuration(0)
        self.panel.addWidget(self.fields.native)
        self.native.layout().setContentsMargins(0, 0, 0, 0)
        self.native.layout().addWidget(self.panel)

    def fit(self) -> None:
        """Make room for the fields that are visible now."""
        if self.panel.isExpanded():
            self.panel.expand(animate=False)


def controls() -> Container:
    """Return the buttons of a run."""
    return row(
        PushButton(name="run_button", text="Run", tooltip="Predict the whole image"),
        PushButton(name="pause_button", text="Pause", enabled=False, tooltip="Pause or continue"),
        PushButton(
            name="cancel_button", text="Cancel", enabled=False, tooltip="Stop; keep what is done"
        ),
        PushButton(name="export_button", text="Export…", tooltip="Write the layer to a file"),
    )


def overlay_boxes() -> Container:
    """Return the switches of the overlays."""
    return row(
        CheckBox(name="show_weights", text="Weights", tooltip="Blending weights so far"),
        CheckBox(name="show_coverage", text="Coverage", tooltip="Patches per voxel so far"),
        CheckBox(name="show_grid", text="Grid", tooltip="Where patches meet"),
    )


def row(*widgets: Widget) -> Container:
    """Return widgets side by side."""
    return Container(widgets=widgets, layout="horizontal", labels=False, label="")


def label_width(form: Container) -> int:
    """Return a width for all fields' labels, with room for what marks those from a checkpoint.

    To be asked before the form is shown: magicgui's own measure leaves out the larger font of
    napari's style, which is the factor here.
    """
    labels = labels_of(form)
    mark = labels[0].fontMetrics().horizontalAdvance(" (file)")
    return round(1.2 * (max(label.sizeHint().width() for label in labels) + mark))


def labels_of(form: Container) -> list[QLabel]:
    """Return the labels beside the fields of a form."""
    folded = [field for fold in form if isinstance(fold, Fold) for field in fold.fields]
    texts = {field.label for field in [*form, *folded]}
    return [label for label in form.native.findChildren(QLabel) if label.text() in texts]
