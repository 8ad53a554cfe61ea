"""The checkpoints that were used last, remembered between sessions; trust in one never is."""

import json
from pathlib import Path

from qtpy.QtCore import QSettings

_KEY = "checkpoints"
_KEPT = 8


class RecentCheckpoints:
    """The checkpoints that were used last, newest first.

    Parameters
    ----------
    settings : QSettings, optional
        Where they are kept; by default the user's own settings of this plugin.
    """

    def __init__(self, settings: QSettings | None = None) -> None:
        self._settings = settings or QSettings(
            QSettings.Format.IniFormat, QSettings.Scope.UserScope, "napari-seamless", "widget"
        )

    def paths(self) -> list[Path]:
        """Return those that still exist."""
        try:
            kept = json.loads(self._settings.value(_KEY, "[]", str))
        except ValueError:  # a damaged file of settings; the next run writes it anew
            return []
        return [path for path in map(Path, kept) if path.exists()]

    def add(self, path: Path) -> None:
        """Put one at the top."""
        others = [each for each in self.paths() if each != path]
        newest = [str(each) for each in [path, *others]][:_KEPT]
        self._settings.setValue(_KEY, json.dumps(newest))
