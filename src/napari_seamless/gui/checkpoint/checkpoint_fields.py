"""The fields of the checkpoint, as they are when the form opens."""

from typing import Any

from magicgui.types import FileDialogMode
from magicgui.widgets import CheckBox, ComboBox, Container, FileEdit, LineEdit, Widget
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCompleter

from napari_seamless.gui.checkpoint.parameters import ParametersPanel
from napari_seamless.gui.checkpoint.report_panel import ReportPanel
from napari_seamless.gui.panel.lines import Lines
from napari_seamless.models.networks.names import names
from napari_seamless.models.sniff import FORMATS_TEXT

_FILTER = (
    "Checkpoints (*.pt *.pth *.ts *.pt2 *.ckpt *.tar *.safetensors *.onnx *.zip plans.json "
    "rdf.yaml bioimageio.yaml inference.json inference.yaml);;All files (*)"
)


def checkpoint_fields() -> list[Any]:
    """Return the fields in the order of the form; most are hidden until a checkpoint needs them."""
    arguments = LineEdit(name="arguments", value="{}", tooltip="Arguments of the network, as JSON")
    channels = Lines("channels", tooltip="Of the network, as far as the checkpoint says")
    fields = [*_files(), _architecture(), arguments, ParametersPanel("parameters"), channels]
    for field in fields[1:]:
        field.visible = False
    return [*fields, _trust_row(), ReportPanel("report")]


def _files() -> list[Any]:
    file = FileEdit(
        name="checkpoint",
        mode=FileDialogMode.EXISTING_FILE,
        filter=_FILTER,
        tooltip=f"{FORMATS_TEXT}. Of a folder, choose a file in it: plans.json, rdf.yaml or "
        "configs/inference.json",
    )
    file.choose_btn.text = "Choose…"
    recent = ComboBox(name="recent", choices=(), tooltip="Checkpoints that were run last")
    weights = ComboBox(
        name="weights",
        choices=(),
        tooltip="Which of the sets of weights in the file: of the last step, averaged, a fold",
    )
    return [file, recent, weights]


def _architecture() -> LineEdit:
    field = LineEdit(
        name="architecture",
        tooltip="Network of a state dict: module.path:Class, or the name of a network of MONAI. "
        "Empty: the file is asked, or it is guessed",
    )
    completer = QCompleter(names(), field.native)
    completer.setCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)
    completer.setFilterMode(Qt.MatchFlag.MatchContains)
    field.native.setCompleter(completer)
    return field


def _trust_row() -> Container[Widget]:
    trust = CheckBox(
        name="trust",
        text="I trust this file: run the code in it",
        tooltip="The file brings code, which can do anything that you can: read, change and "
        "delete your files. Only for files from people you trust. Asked again each time",
    )
    return Container(name="trust_row", widgets=[trust], labels=False, label="", visible=False)
