"""The network of a preset: its checkpoint is filled in if it is found, and never trusted."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from magicgui.widgets import ComboBox
from magicgui.widgets.bases import ValueWidget

from napari_seamless.gui.panel.field_values import fill
from napari_seamless.gui.presets.recent import RecentCheckpoints
from napari_seamless.models.networks.names import names

_MONAI = "monai.networks.nets:"


class Network:
    """Fills in the fields that say which network runs.

    Parameters
    ----------
    fields : callable
        Returns the form's fields by name.
    recent : RecentCheckpoints
        Where a checkpoint is looked for, too.
    """

    names = ("checkpoint", "architecture", "arguments", "weights")
    """Its fields."""

    def __init__(
        self, fields: Callable[[], Mapping[str, ValueWidget[Any]]], recent: RecentCheckpoints
    ) -> None:
        self._fields, self._recent = fields, recent
        self._wanted_weights: tuple[Path, Any] | None = None

    def recall(self, values: Mapping[str, Any]) -> Path | None:
        """Fill in what the user had typed; return the checkpoint if it is no longer there."""
        text = values.get("checkpoint") or ""
        path = Path(str(text))
        if not text or not path.exists():
            return path if text else None
        for name in ("checkpoint", "architecture", "arguments"):
            if name in values:
                fill(self._fields()[name], values[name])
        self._wanted_weights = (path, values.get("weights"))
        return None

    def put(self, network: Mapping[str, Any], folder: Path | None) -> tuple[list[str], list[str]]:
        """Fill in what the facts of a run say.

        Parameters
        ----------
        network : mapping
            As in `run_facts.Found`.
        folder : Path or None
            Where a checkpoint is looked for that has no folder of its own.

        Returns
        -------
        tuple of two lists of str
            The fields that say it now, and what could not be filled in, and why.
        """
        taken, left_out = [], []
        text = network.get("checkpoint")
        if text and "checkpoint" in self._fields():
            path = self._find(Path(str(text)), folder)
            if path is None:
                left_out.append(f"checkpoint {text} (no such file here; choose it)")
            else:
                taken.append("checkpoint")
                if path != self._fields()["checkpoint"].value:
                    fill(self._fields()["checkpoint"], path)
        refused = self._put_architecture(network)
        taken += [] if refused or not self._is_named(network) else ["architecture"]
        if network.get("weights"):
            self._wanted_weights = (self._checkpoint, network["weights"])
            self.choose_weights()
        return taken, [*left_out, *refused]

    def choose_weights(self) -> None:
        """Choose the weights that are wanted, once the checkpoint has been read."""
        field = self._fields().get("weights")
        if self._wanted_weights is None or not isinstance(field, ComboBox):
            return
        path, weights = self._wanted_weights
        if path != self._checkpoint:
            self._wanted_weights = None
        elif field.choices:
            self._wanted_weights = None
            fill(field, weights if weights in field.choices else None)

    @property
    def _checkpoint(self) -> Path:
        field = self._fields().get("checkpoint")
        return Path() if field is None else Path(field.value)

    def _find(self, path: Path, folder: Path | None) -> Path | None:
        """Return the file that is meant: at its path, chosen now, or used before."""
        candidates = [self._checkpoint] if self._checkpoint.name == path.name else []
        if path.is_absolute():
            candidates.insert(0, path)
        elif folder is not None:
            candidates.insert(0, folder.absolute() / path)
        candidates += [each for each in self._recent.paths() if each.name == path.name]
        return next((each for each in candidates if each.exists()), None)

    def _is_named(self, network: Mapping[str, Any]) -> bool:
        """Return whether an architecture is to be typed: else the checkpoint says it itself."""
        is_given = network.get("architecture_origin") in (None, "given")
        return bool(network.get("architecture")) and is_given and "architecture" in self._fields()

    def _put_architecture(self, network: Mapping[str, Any]) -> list[str]:
        """Fill in an architecture of MONAI; another would be imported, which runs its code."""
        if not self._is_named(network):
            return []
        field, architecture = self._fields()["architecture"], str(network["architecture"])
        is_known = architecture.removeprefix(_MONAI) in names()
        if not is_known and architecture != field.value:
            return [f"architecture {architecture} (it would be imported; type it if you trust it)"]
        fill(field, architecture)
        arguments = network.get("arguments")
        if isinstance(arguments, Mapping):
            fill(self._fields()["arguments"], json.dumps(dict(arguments)))
        return []
