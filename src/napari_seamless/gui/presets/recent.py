"""What is remembered between sessions; trust in a checkpoint never is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtpy.QtCore import QSettings

_CHECKPOINTS = "checkpoints"
_LAST_RUN = "last_run"
_KEPT = 8


def own_settings() -> QSettings:
    """Return the user's own settings of this plugin."""
    return QSettings(
        QSettings.Format.IniFormat, QSettings.Scope.UserScope, "napari-seamless", "widget"
    )


class RecentCheckpoints:
    """The checkpoints that were used last, newest first.

    Parameters
    ----------
    settings : QSettings, optional
        Where they are kept; by default the user's own settings of this plugin.
    """

    def __init__(self, settings: QSettings | None = None) -> None:
        self._settings = settings or own_settings()

    def paths(self) -> list[Path]:
        """Return those that still exist."""
        try:
            kept = json.loads(self._settings.value(_CHECKPOINTS, "[]", str))
        except ValueError:  # a damaged file of settings; the next run writes it anew
            return []
        return [path for path in map(Path, kept) if path.exists()]

    def add(self, path: Path) -> None:
        """Put one at the top."""
        others = [each for each in self.paths() if each != path]
        newest = [str(each) for each in [path, *others]][:_KEPT]
        self._settings.setValue(_CHECKPOINTS, json.dumps(newest))


class LastRun:
    """What the form said when a run was started last.

    Parameters
    ----------
    settings : QSettings, optional
        As in `RecentCheckpoints`.
    """

    def __init__(self, settings: QSettings | None = None) -> None:
        self._settings = settings or own_settings()

    def save(self, values: Mapping[str, Any]) -> None:
        """Remember values, which JSON can hold, by name."""
        self._settings.setValue(_LAST_RUN, json.dumps(dict(values)))

    def load(self) -> dict[str, Any]:
        """Return what was remembered; nothing if there is none, or it is damaged."""
        try:
            values = json.loads(self._settings.value(_LAST_RUN, "{}", str))
        except ValueError:  # as above
            return {}
        return values if isinstance(values, dict) else {}
