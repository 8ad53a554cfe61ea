"""The form of the plugin; what it does is the controller's."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, get_args

import napari
from magicgui.types import FileDialogMode
from magicgui.widgets import (
    CheckBox,
    ComboBox,
    Container,
    FileEdit,
    FloatSpinBox,
    Label,
    LineEdit,
    ProgressBar,
    PushButton,
    SpinBox,
    TupleEdit,
    Widget,
)
from napari.layers import Image, Labels
from qtpy.QtWidgets import QFileDialog, QLabel, QSizePolicy

from napari_seamless.engine.config import (
    ACTIVATIONS,
    TTA_CHOICES,
    Blending,
    InferenceConfig,
    Normalization,
    json_object,
)
from napari_seamless.engine.errors import ConfigError, ModelError, SeamlessError, one_line
from napari_seamless.gui.controller import Controller, State
from napari_seamless.gui.overlays import OVERLAY_KEY
from napari_seamless.gui.request import Request, source_of
from napari_seamless.gui.scores import check_labels
from napari_seamless.metrics import METRIC_NAMES
from napari_seamless.models import sniff_format

_PROBLEM = "color: #ff8a80;"
_OVERLAYS = ("weights", "coverage", "grid")


class BlendedInference(Container):
    """The dock widget `Blended inference`.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
        The viewer it is docked in.
    """

    def __init__(self, napari_viewer: "napari.viewer.Viewer") -> None:
        super().__init__()
        self._inputs = _inputs(napari_viewer)
        self._bar = ProgressBar(name="progress", visible=False)
        self._status = Label(name="status")
        self._truth = _labels_choice(napari_viewer)
        self._scores = Label(name="scores", visible=False)
        for lines in (self._status, self._scores):
            lines.native.setWordWrap(True)
            lines.native.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
        self.extend(
            [
                *self._inputs,
                self._truth,
                _controls(),
                _overlay_boxes(),
                _row(self._bar),
                _row(self._status),
                _row(self._scores),
            ]
        )
        _align_labels(self)
        self._busy = False
        self._controller = Controller(napari_viewer, self)
        self._connect()
        self._fit_checkpoint()
        self._validate()

    def __getattr__(self, name: str) -> Any:
        """Find a field by name, also one inside a row."""
        for child in object.__getattribute__(self, "_list"):
            if child.name == name:
                return child
            if isinstance(child, Container) and not isinstance(child, (FileEdit, TupleEdit)):
                for inner in child:
                    if inner.name == name:
                        return inner
        return object.__getattribute__(self, name)

    @property
    def controller(self) -> Controller:
        """What the form is a view of."""
        return self._controller

    def request(self) -> Request:
        """Return what is asked for, or raise a SeamlessError that says what cannot work."""
        image, config = self.plan()
        checkpoint = Path(self.checkpoint.value)
        if not self._has_checkpoint():
            raise ModelError("Choose a checkpoint: TorchScript, or a state dict (.pt, .pth)")
        architecture = arguments = None
        if sniff_format(checkpoint) == "torch_save":
            architecture = self.architecture.value.strip() or None
            if architecture is None:
                raise ModelError(
                    "This checkpoint is a state dict: name its architecture, "
                    "for example monai.networks.nets:UNet"
                )
            arguments = json_object(self.arguments.value or "{}", "arguments")
        return Request(image, checkpoint, architecture, arguments, config)

    def plan(self) -> tuple[Image, InferenceConfig]:
        """Return the image and the settings, or raise a SeamlessError."""
        if self.image.value is None:
            raise ConfigError("Open an image first, for example with File > Open Sample")
        source = source_of(self.image.value)  # says what kind of layer cannot be predicted
        truth = self.chosen_labels()
        if truth is not None:
            check_labels(truth, source)
        config = InferenceConfig(
            patch_size=tuple(self.patch_size.value),
            **{name: getattr(self, name).value for name in _SETTINGS},
        )
        return self.image.value, config

    def wanted_overlays(self) -> set[str]:
        """Return which overlays are switched on."""
        return {name for name in _OVERLAYS if getattr(self, f"show_{name}").value}

    def chosen_labels(self) -> Labels | None:
        """Return the labels layer to score against, if one is chosen."""
        layer: Labels | None = self._truth.value
        return layer

    def show_scores(self, scores: Mapping[str, float], of: str = "") -> None:
        """Show metrics in a small table under a line that says of what; without any, hide it."""
        rows = "".join(
            f"<tr><td>{label}</td><td style='padding-left: 24px'>{scores[name]:.3f}</td></tr>"
            for name, label in METRIC_NAMES.items()
            if name in scores
        )
        self._scores.value = f"{escape(of)}<table>{rows}</table>"
        self._scores.visible = bool(scores)

    def overlay_removed(self, name: str) -> None:
        """Switch off an overlay whose layer the user removed."""
        getattr(self, f"show_{name}").value = False

    def ask_where(self, suggestion: str) -> Path | None:
        """Ask for the file to export to."""
        chosen, kind = QFileDialog.getSaveFileName(
            self.native, "Export the prediction", suggestion, "HDF5 (*.h5);;TIFF (*.tif)"
        )
        if not chosen or Path(chosen).suffix:
            return Path(chosen) if chosen else None
        path = Path(f"{chosen}.tif" if "tif" in kind else f"{chosen}.h5")
        if path.exists():  # the dialog has asked about the name without a suffix only
            self.say(f"{path.name} exists; choose it in the dialog to replace it", problem=True)
            return None
        return path

    def set_state(self, state: State) -> None:
        """Enable what makes sense now; show the bar unless idle."""
        self._busy = state != "idle"
        for field in self._inputs:
            field.enabled = not self._busy
        self.run_button.enabled = not self._busy and self._problem() is None
        self.cancel_button.enabled = self._bar.visible = self._busy
        self.pause_button.enabled = state in ("running", "paused")
        self.pause_button.text = "Continue" if state == "paused" else "Pause"

    def set_progress(self, done: int, total: int) -> None:
        """Move the bar."""
        self._bar.max, self._bar.value = total, done

    def say(self, text: str, problem: bool = False) -> None:
        """Show one line of status."""
        self._status.value = text
        self._status.native.setStyleSheet(_PROBLEM if problem else "")

    def reset_choices(self, *args: Any) -> None:
        """Follow the viewer's layers: napari calls this when they change."""
        before = self.image.value
        super().reset_choices(*args)
        if self.image.value is not before:  # magicgui is silent when the last choice goes
            self._validate()
            self._controller.plan_changed()

    def _connect(self) -> None:
        self.run_button.changed.connect(self._controller.run)
        self.pause_button.changed.connect(self._controller.toggle_pause)
        self.cancel_button.changed.connect(self._controller.cancel)
        self.export_button.changed.connect(self._controller.export)
        for name in _OVERLAYS:
            getattr(self, f"show_{name}").changed.connect(self._controller.update_overlays)
        self._truth.changed.connect(self._controller.score)
        self._truth.changed.connect(self._validate)
        for field in self._inputs:
            field.changed.connect(self._validate)
        for name in ("image", "patch_size", "overlap", "blending"):
            getattr(self, name).changed.connect(self._controller.plan_changed)
        self.checkpoint.changed.connect(self._fit_checkpoint)
        self.native.destroyed.connect(self._controller.close)
        self.native_parent_changed.connect(self._close_if_removed)

    def _close_if_removed(self) -> None:
        """End everything when the dock is closed: napari takes the widget out and keeps it."""
        if self.native.parent() is None:
            self._controller.close()

    def _has_checkpoint(self) -> bool:
        return Path(self.checkpoint.value) != Path()

    def _fit_checkpoint(self) -> None:
        """Ask for an architecture only where the checkpoint needs one."""
        try:
            bare = self._has_checkpoint() and sniff_format(self.checkpoint.value) == "torch_save"
        except SeamlessError:
            bare = False  # `_validate` says what is wrong
        self.architecture.visible = self.arguments.visible = bare

    def _validate(self) -> None:
        """Say at once whether what the form asks for can work."""
        if self._busy:
            return
        problem = self._problem()
        self.say(problem or "Ready", problem=problem is not None)
        self.run_button.enabled = problem is None

    def _problem(self) -> str | None:
        """Return in one line why the form cannot be run, or None if it can."""
        try:
            self.request()
        except SeamlessError as error:
            return one_line(error)
        return None


_SETTINGS = (
    "overlap",
    "blending",
    "activation",
    "normalization",
    "tta",
    "batch_size",
    "device",
)


def _inputs(viewer: "napari.viewer.Viewer") -> list[Any]:
    """Return the fields that decide a run, in the order of the form."""
    return [
        ComboBox(
            name="image",
            choices=lambda box: _images(viewer),
            tooltip="Layer to predict: (Y, X), (Z, Y, X) or (C, Z, Y, X)",
        ),
        FileEdit(
            name="checkpoint",
            mode=FileDialogMode.EXISTING_FILE,
            filter="Checkpoints (*.pt *.pth *.ts);;All files (*)",
            tooltip="TorchScript, or a state dict with its architecture",
        ),
        LineEdit(
            name="architecture",
            tooltip="Network of a state dict: module.path:Class",
        ),
        LineEdit(name="arguments", value="{}", tooltip="Arguments of the network, as JSON"),
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


def _labels_choice(viewer: "napari.viewer.Viewer") -> ComboBox:
    return ComboBox(
        name="truth",
        label="labels",
        choices=lambda box: [layer for layer in viewer.layers if isinstance(layer, Labels)],
        nullable=True,
        tooltip="Labels layer to score the prediction against, foreground where not 0",
    )


def _controls() -> Container:
    return _row(
        PushButton(name="run_button", text="Run", tooltip="Predict the whole image"),
        PushButton(name="pause_button", text="Pause", enabled=False, tooltip="Pause or continue"),
        PushButton(
            name="cancel_button", text="Cancel", enabled=False, tooltip="Stop; keep what is done"
        ),
        PushButton(name="export_button", text="Export…", tooltip="Write the layer to a file"),
    )


def _overlay_boxes() -> Container:
    return _row(
        CheckBox(name="show_weights", text="Weights", tooltip="Blending weights so far"),
        CheckBox(name="show_coverage", text="Coverage", tooltip="Patches per voxel so far"),
        CheckBox(name="show_grid", text="Grid", tooltip="Where patches meet"),
    )


def _row(*widgets: Widget) -> Container:
    return Container(widgets=widgets, layout="horizontal", labels=False, label="")


def _align_labels(form: Container) -> None:
    """Give all labels one width; magicgui's own measure leaves out the style's larger font."""
    labels = form.native.findChildren(QLabel)
    width = round(1.2 * max(label.sizeHint().width() for label in labels))
    for label in labels:
        label.setMinimumWidth(width)
