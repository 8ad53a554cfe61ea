"""The part of the form that says where a run writes to, and what it runs on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from magicgui.types import FileDialogMode
from magicgui.widgets import (
    CheckBox,
    ComboBox,
    Container,
    FileEdit,
    FloatSpinBox,
    LineEdit,
    SpinBox,
)
from napari.layers import Layer

from napari_seamless.engine.config import Labelling, OutputDtype
from napari_seamless.engine.errors import ConfigError
from napari_seamless.gui.panel.sections import Fold
from napari_seamless.gui.panel.text_setting import scale_field
from napari_seamless.gui.runs.request import check_output, is_unfinished

HERE, LOCAL, SCHEDULER = "this process", "workers on this machine", "a Dask scheduler"
CLUSTERS = (HERE, LOCAL, SCHEDULER)
"""What `cluster` may be."""

ANEW = "Delete what is there and start anew"
"""The text of the box by which a user agrees to it."""

_FORM_WORDS = (
    ("--overwrite / overwrite=True to start anew", f"tick {ANEW!r}"),
    (
        "--overwrite / overwrite=True or choose another name",
        f"choose another name, or tick {ANEW!r}",
    ),
    ("run again with --overwrite / overwrite=True", f"tick {ANEW!r} and run again"),
)
"""What the engine advises, and what that is in the form."""

OUTPUT_FILTER = "OME-Zarr (*.zarr);;HDF5 (*.h5 *.hdf5);;TIFF (*.tif *.tiff)"


class ResourcesForm:
    """The fields of the output, and of what a run may take; what does not matter is hidden.

    Attributes
    ----------
    fields : list of Widget
        Those that stand in the section itself.
    more : Fold
        The others.
    """

    def __init__(self) -> None:
        self.fields = _output_fields()
        self.more = Fold("output_more", "Advanced", [*_saving_fields(), *_machine_fields()])
        self._by_name = {
            field.name: field for field in (*self.fields, *self.fields[1], *self.more.parts)
        }
        self["cluster"].changed.connect(self._cluster_chosen)
        self["labelling"].changed.connect(self._labelling_chosen)
        self["output"].changed.connect(self.forget_agreement)

    def __getitem__(self, name: str) -> Any:
        return self._by_name[name]

    @property
    def output(self) -> Path | None:
        """Where the prediction is written; None if it stays in memory."""
        path: Path | None = self["output"].value
        return None if path is None or path == Path() else path.expanduser()

    @property
    def overwrite(self) -> bool:
        """Whether the user agreed that what is there is deleted."""
        return self.output is not None and bool(self["start_anew"].value)

    @property
    def memory(self) -> int | None:
        """Bytes for the run; None leaves it to the run."""
        gibibytes = float(self["memory"].value)
        return round(gibibytes * 2**30) if gibibytes else None

    @property
    def workers(self) -> int | str | None:
        """So many processes, or the address of a scheduler; None for this process.

        Raises
        ------
        ConfigError
            If the address is missing.
        """
        chosen = self["cluster"].value
        if chosen == HERE:
            return None
        if chosen == LOCAL:
            return int(self["workers"].value)
        address = str(self["scheduler"].value).strip()
        if not address:
            raise ConfigError("Give the scheduler's address, such as tcp://10.0.0.1:8786")
        return address

    def check(self, output: Path | None, layers: Sequence[Layer], may_exist: bool = False) -> None:
        """Raise a SeamlessError if a run that reads these layers cannot write or run there."""
        if self.workers is not None and output is None:
            raise ConfigError("Workers need an output to write to; choose one, or this process")
        if output is not None:
            check_output(output, self.overwrite or may_exist, list(layers))

    def ready(self, outputs: Sequence[Path]) -> str:
        """Say what a run will do about its outputs."""
        there = [each.name for each in outputs if _is_there(each)]
        unfinished = [each.name for each in outputs if is_unfinished(each)]
        if there and self.overwrite:
            return f"Ready: Run deletes {' and '.join(there)} and starts anew"
        if unfinished:
            return f"{unfinished[0]} holds an unfinished run: Run goes on with it"
        return "Ready"

    def ask_for_agreement(self, outputs: Sequence[Path]) -> None:
        """Offer to delete what is at the outputs, if anything is."""
        is_there = any(map(_is_there, outputs))
        if self["anew_row"].visible != is_there:
            self["anew_row"].visible = is_there

    def forget_agreement(self) -> None:
        """Take back that what is there is deleted."""
        with self["start_anew"].changed.blocked():
            self["start_anew"].value = False

    def _cluster_chosen(self, chosen: str) -> None:
        self["workers"].visible = chosen == LOCAL
        self["scheduler"].visible = chosen == SCHEDULER

    def _labelling_chosen(self, chosen: str) -> None:
        self["threshold"].visible = chosen == "threshold"


def in_form_words(line: str) -> str:
    """Return a line in which options of the command line are called what they are in the form."""
    for said, meant in _FORM_WORDS:
        line = line.replace(f"pass {said}", meant).replace(said, meant)
    return line


def _is_there(output: Path) -> bool:
    return is_unfinished(output) or output.exists()


def _output_fields() -> list[Any]:
    """Return the fields that say where a run writes to."""
    output = FileEdit(
        name="output",
        mode=FileDialogMode.OPTIONAL_FILE,
        filter=OUTPUT_FILTER,
        nullable=True,
        value=None,
        tooltip="Where the prediction is written while it grows: .zarr (OME-Zarr), .h5 or .tif; "
        "a run that did not get to its end goes on from there. Empty: it is in memory",
    )
    output.line_edit.native.setPlaceholderText("in memory")
    output.choose_btn.text = "Choose…"
    start_anew = CheckBox(
        name="start_anew",
        text=ANEW,
        tooltip="Agree to it for the next run",
    )
    anew = Container(name="anew_row", widgets=[start_anew], labels=False, label="", visible=False)
    return [output, anew, _dtype_field()]


def _dtype_field() -> ComboBox:
    return ComboBox(
        name="output_dtype",
        label="save as",
        choices=get_args(OutputDtype),
        tooltip="Type of the voxels of the output; integers hold 0 to 1 as 0 to their largest "
        "value",
    )


def _saving_fields() -> list[Any]:
    """Return what finished voxels become, for those who know it."""
    return [
        ComboBox(
            name="labelling",
            choices=get_args(Labelling),
            tooltip="Labels, written to the output as well: the number of the largest channel, or "
            "1 where a channel is above the threshold",
        ),
        FloatSpinBox(
            name="threshold",
            value=0.5,
            min=-1e6,
            max=1e6,
            step=0.05,
            visible=False,
            tooltip="Of the labels, in units of the prediction: 0 to 1 after a sigmoid",
        ),
        FloatSpinBox(
            name="fill_value",
            label="fill value",
            value=0.0,
            min=-1e6,
            max=1e6,
            step=1,
            tooltip="Value of voxels that no patch has reached: outside the mask, or constant",
        ),
        scale_field(
            name="output_scale",
            hint="1",
            label="output scale",
            tooltip="Output voxels per input voxel, for networks that change the resolution: 2, "
            "1/2, or per axis (Z, Y, X) 1,2,2",
        ),
    ]


def _memory_field() -> FloatSpinBox:
    memory = FloatSpinBox(
        name="memory",
        value=0,
        min=0,
        max=1_000_000,
        step=1,
        tooltip="What the run may take for its data, in GiB; the rest is on the disk. auto is a "
        "quarter of what is free",
    )
    memory.native.setSpecialValueText("auto")
    memory.native.setSuffix(" GiB")
    memory.native.setDecimals(1)
    return memory


def _machine_fields() -> list[Any]:
    """Return the fields that say what runs the network; those that do not matter are hidden."""
    return [
        _memory_field(),
        ComboBox(
            name="cluster",
            label="run on",
            choices=CLUSTERS,
            tooltip="Where the network runs. Workers need an output to write to",
        ),
        SpinBox(
            name="workers", value=2, min=1, max=1024, visible=False, tooltip="Processes to start"
        ),
        LineEdit(
            name="scheduler",
            visible=False,
            tooltip="Address of a Dask scheduler, as it prints it: tcp://10.0.0.1:8786",
        ),
    ]
