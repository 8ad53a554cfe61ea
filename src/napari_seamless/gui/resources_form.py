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

from napari_seamless.engine.config import OnError, OutputDtype
from napari_seamless.engine.errors import ConfigError
from napari_seamless.gui.fields import Fold
from napari_seamless.gui.request import check_output, is_unfinished

HERE, LOCAL, SCHEDULER = "this process", "workers on this machine", "a Dask scheduler"
CLUSTERS = (HERE, LOCAL, SCHEDULER)
"""What `cluster` may be."""

OUTPUT_FILTER = "OME-Zarr (*.zarr);;HDF5 (*.h5 *.hdf5);;TIFF (*.tif *.tiff)"


class ResourcesForm:
    """The fields of the output, and those of the fold `More`; what does not matter is hidden.

    Attributes
    ----------
    output_fields : list of Widget
        Beside each other in the form.
    more : Fold
        The others.
    """

    def __init__(self) -> None:
        self.output_fields = _output_fields()
        self.more = Fold("more", "More", _more_fields())
        self["cluster"].changed.connect(self._cluster_chosen)
        self["output"].changed.connect(self.forget_agreement)

    def __getitem__(self, name: str) -> Any:
        output, row = self.output_fields
        return next(field for field in [output, row, *row, *self.more.fields] if field.name == name)

    @property
    def fields(self) -> list[Any]:
        """All fields."""
        return [*self.output_fields, *self.more.fields]

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

    def check(self, layers: Sequence[Layer]) -> None:
        """Raise a SeamlessError if a run that reads these layers cannot write or run there."""
        if self.workers is not None and self.output is None:
            raise ConfigError("Workers need an output to write to; choose one, or this process")
        if self.output is not None:
            check_output(self.output, self.overwrite, list(layers))

    def ready(self) -> str:
        """Say what a run will do about its output."""
        output = self.output
        if output is not None and self.overwrite:
            return f"Ready: Run deletes {output.name} and starts anew"
        if output is not None and is_unfinished(output):
            return f"{output.name} holds an unfinished run: Run goes on with it"
        return "Ready"

    def ask_for_agreement(self) -> None:
        """Offer to delete what is at the output, if anything is."""
        output = self.output
        is_there = output is not None and (is_unfinished(output) or output.exists())
        if self["anew_row"].visible != is_there:
            self["anew_row"].visible = is_there

    def forget_agreement(self) -> None:
        """Take back that what is there is deleted."""
        with self["start_anew"].changed.blocked():
            self["start_anew"].value = False

    def _cluster_chosen(self, chosen: str) -> None:
        self["workers"].visible = chosen == LOCAL
        self["scheduler"].visible = chosen == SCHEDULER
        self.more.fit()


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
        text="Delete what is there and start anew",
        tooltip="Agree to it for the next run",
    )
    anew = Container(name="anew_row", widgets=[start_anew], labels=False, label=" ", visible=False)
    return [output, anew]


def _more_fields() -> list[Any]:
    """Return the fields that few need."""
    return [
        ComboBox(
            name="output_dtype",
            label="save as",
            choices=get_args(OutputDtype),
            tooltip="Type of the voxels of the output; integers hold 0 to 1 as 0 to their largest "
            "value",
        ),
        _memory_field(),
        CheckBox(
            name="skip_constant",
            label="skip constant",
            tooltip="Do not run patches whose input is the same value everywhere",
        ),
        ComboBox(
            name="on_error",
            choices=get_args(OnError),
            tooltip="If a part of the image cannot be read: stop, or continue without the patches "
            "that need it",
        ),
        *_cluster_fields(),
    ]


def _memory_field() -> FloatSpinBox:
    memory = FloatSpinBox(
        name="memory",
        value=0,
        min=0,
        max=1_000_000,
        step=1,
        tooltip="What the run may take for its data; the rest is on the disk. auto is a quarter "
        "of what is free",
    )
    memory.native.setSpecialValueText("auto")
    memory.native.setSuffix(" GiB")
    memory.native.setDecimals(1)
    return memory


def _cluster_fields() -> list[Any]:
    """Return the fields that say what runs the network; those that do not matter are hidden."""
    return [
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
