"""The part of the form that says which network runs, and shows what its checkpoint holds."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psygnal import Signal

from napari_seamless.engine.errors import SeamlessError
from napari_seamless.engine.refusals import json_object
from napari_seamless.gui.checkpoint.checkpoint_fields import checkpoint_fields
from napari_seamless.gui.checkpoint.opening import Choice, Opener, Reading
from napari_seamless.gui.checkpoint.reader import Reader
from napari_seamless.gui.presets.recent import RecentCheckpoints
from napari_seamless.models import sniff_format
from napari_seamless.models.opened import PICKLED
from napari_seamless.models.reporting.report import ModelReport

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.models.networks.architecture import Parameter

_ORIGINS = {"given": "arguments", "file": "file", "guessed": "guessed"}


class CheckpointForm:
    """The fields of the checkpoint; those that a checkpoint does not need are hidden.

    Parameters
    ----------
    opener : Opener
        Opens checkpoints, on a thread.
    recent : RecentCheckpoints
        Those used last.

    Attributes
    ----------
    fields : list of Widget
        In the order of the form.
    """

    chosen = Signal()
    """Another file was chosen."""
    edited = Signal()
    """What is said of the file has changed, or is now known of it."""
    settings_found = Signal(dict)
    """The settings that the checkpoint knows."""

    def __init__(self, opener: Opener, recent: RecentCheckpoints) -> None:
        self._recent = recent
        self._path = Path()
        self.fields = checkpoint_fields()
        self._by_name = {
            field.name: field
            for each in self.fields
            for field in ([each, *each] if each.name == "trust_row" else [each])
        }
        self._reader = Reader(self, opener)
        self._connect()

    def start(self) -> None:
        """Show what there is to choose from; the fields are in the form by now."""
        self._show_recent()
        self._choose()

    @property
    def reading(self) -> Reading | None:
        """What came of opening the checkpoint as the form now says it; None while it is read."""
        return self._reader.reading if self._chosen() == self._reader.choice else None

    @property
    def is_reading(self) -> bool:
        """Whether a checkpoint is chosen and not read yet."""
        return self._chosen() is not None and self.reading is None

    @property
    def file_name(self) -> str:
        """Name of the checkpoint's file."""
        return Path(self["checkpoint"].value).name

    def __getitem__(self, name: str) -> Any:
        return self._by_name[name]

    def choice(self) -> Choice | None:
        """Return which checkpoint is chosen, None if none is, or raise a SeamlessError."""
        path = Path(self["checkpoint"].value)
        if path == Path():
            return None
        trust, weights = bool(self["trust"].value), self["weights"].value
        if not is_offered(self["architecture"]):
            return Choice(path, trust=trust, weights=weights)
        arguments = self["arguments"].value or "{}"
        json_object(arguments, "arguments")
        return Choice(path, self._architecture(), arguments, trust, weights)

    def wants_probe(self) -> bool:
        """Return whether the report is looked at, so that the network shall be tried."""
        return bool(self["report"].is_open)

    def show_reading(self, reading: Reading | None) -> None:
        """Show what is in the checkpoint; None while it is being read, or if none is chosen."""
        report = None if reading is None else reading.report
        waiting = "Reading it …" if self.is_reading else "No checkpoint is chosen."
        problem = None if reading is None else reading.problem
        if report is not None and self._reader.is_busy:
            waiting = "trying small inputs …"
        self["report"].show_report(report, problem or waiting, self._reader.is_busy)
        if reading is not None and reading.needs_trust:
            self["trust_row"].visible = True
        self["channels"].visible = report is not None and report.in_channels is not None
        if report is not None:
            self["channels"].value = _channels_line(report)
            self._offer_weights(report)
            self._show_network(report)
            if problem is None and not self._reader.is_busy:
                self._remember()
            self.settings_found.emit(dict(report.settings))
        self.edited.emit()

    def show_parameters(self, parameters: "tuple[Parameter, ...]") -> None:
        """Show a field for each parameter of the architecture that is named."""
        self["parameters"].show_parameters(parameters, self["arguments"].value)

    def _remember(self) -> None:
        """Keep the checkpoint among the recent ones."""
        self._recent.add(Path(self["checkpoint"].value).absolute())
        self._show_recent()

    def close(self) -> None:
        """Drop what is being read."""
        self._reader.close()

    def _connect(self) -> None:
        self["checkpoint"].changed.connect(self._choose)
        self["recent"].changed.connect(self._choose_recent)
        for name in ("architecture", "arguments"):
            self[name].changed.connect(self._reader.read_soon)
        for name in ("weights", "trust"):
            self[name].changed.connect(self._reader.read)
        self["report"].panel.toggled.connect(self._reader.read)
        self["architecture"].changed.connect(self._ask_for_parameters)
        self["arguments"].changed.connect(self["parameters"].fill)
        self["parameters"].edited.connect(partial(setattr, self["arguments"], "value"))

    def _choose(self) -> None:
        """Start anew with another checkpoint, which may need to be told its architecture."""
        path, before = Path(self["checkpoint"].value), self._path
        self._path = path
        if before not in (Path(), path) and before.parent != path.parent:
            self._forget_network()  # in one folder are the checkpoints of one training
        self["architecture"].native.setPlaceholderText("")
        self["trust_row"].visible = self["weights"].visible = False
        with self["trust"].changed.blocked():
            self["trust"].value = False  # trust is in one file, and never remembered
        with self["weights"].changed.blocked():
            self["weights"].choices = ()
        is_bare = path != Path() and _may_need_architecture(path)
        self["architecture"].visible = self["arguments"].visible = is_bare
        self._ask_for_parameters()
        self.chosen.emit()
        self._reader.read()

    def _forget_network(self) -> None:
        for name, empty in (("architecture", ""), ("arguments", "{}")):
            with self[name].changed.blocked():
                self[name].value = empty

    def _choose_recent(self, path: Path | None) -> None:
        if path is not None and path != self["checkpoint"].value:
            self["checkpoint"].value = path

    def _show_recent(self) -> None:
        paths = self._recent.paths()
        with self["recent"].changed.blocked():
            self["recent"].choices = [
                ("choose one …", None),
                *((_short(path), path) for path in paths),
            ]
        self["recent"].visible = bool(paths)

    def _chosen(self) -> Choice | None:
        try:
            return self.choice()
        except SeamlessError:  # no such arguments: said elsewhere
            return None

    def _architecture(self) -> str | None:
        return self["architecture"].value.strip() or None

    def _ask_for_parameters(self) -> None:
        architecture = self._architecture() if is_offered(self["architecture"]) else None
        self._reader.ask_for_parameters(architecture)

    def _offer_weights(self, report: ModelReport) -> None:
        field = self["weights"]
        if report.other_weights and not is_offered(field):
            with field.changed.blocked():
                others = [(name, name) for name in report.other_weights]
                field.choices = [(report.weights or "those in use", None), *others]
            field.visible = True

    def _show_network(self, report: ModelReport) -> None:
        """Show what was guessed or found in the file where an architecture would be typed."""
        if report.format == PICKLED:  # it brings its network
            self["architecture"].visible = self["arguments"].visible = False
            self._reader.read()  # if anything was typed there, it no longer counts
        elif report.origin != "given":
            self["architecture"].native.setPlaceholderText(report.architecture or "")


def is_offered(field: Any) -> bool:
    """Return whether a field counts: also while its dock is behind another one, or folded."""
    return not field.native.isHidden()


def _may_need_architecture(path: Path) -> bool:
    """Return whether a checkpoint may have to be told its network."""
    try:
        return sniff_format(path) in ("torch_save", "safetensors", "pickle")
    except SeamlessError:
        return False  # reading it says what is wrong


def _channels_line(report: ModelReport) -> str:
    out = "" if report.out_channels is None else f", {report.out_channels} out"
    return f"{report.in_channels} in{out} ({_ORIGINS[report.origin]})"


def _short(path: Path) -> str:
    folder = path.parent.parent if path.parent.name == "configs" else path.parent
    return f"{path.name} ({folder.name})"
