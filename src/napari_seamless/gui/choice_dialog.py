"""Asks which of several images of a file are to be opened."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QApplication,
    QDialog,
    QDialogButtonBox,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QVBoxLayout,
    QWidget,
)


@dataclass(frozen=True)
class Choosable:
    """One image that can be chosen.

    Attributes
    ----------
    name : str
        Of the image.
    shape : tuple of int, optional
        Of the image, where it is known.
    dtype : dtype, optional
        Likewise.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] | None = None

    @property
    def line(self) -> str:
        """What the list shows."""
        shape = " x ".join(map(str, self.shape))
        return "   ".join(str(each) for each in (self.name, shape, self.dtype or "") if each)


class ChoiceDialog(QDialog):
    """A list of images with a box to tick for each.

    Parameters
    ----------
    title : str
        The file they are in.
    offered : list of Choosable
        The images; the first one is ticked.
    parent : QWidget, optional
        The window it belongs to.
    """

    def __init__(self, title: str, offered: list[Choosable], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle(title)
        self.images = QListWidget()
        for number, each in enumerate(offered):
            item = QListWidgetItem(each.line)
            item.setData(Qt.ItemDataRole.UserRole, each.name)
            item.setFlags(item.flags() | Qt.ItemFlag.ItemIsUserCheckable)
            item.setCheckState(Qt.CheckState.Unchecked if number else Qt.CheckState.Checked)
            self.images.addItem(item)
        ok = QDialogButtonBox.StandardButton.Ok
        self.buttons = QDialogButtonBox(ok | QDialogButtonBox.StandardButton.Cancel)
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        for part in (QLabel("Open which images?"), self.images, self.buttons):
            layout.addWidget(part)
        self.resize(480, 320)

    def ticked(self) -> list[str]:
        """Return the names of the images that are ticked."""
        items = [self.images.item(row) for row in range(self.images.count())]
        return [
            item.data(Qt.ItemDataRole.UserRole)
            for item in items
            if item is not None and item.checkState() == Qt.CheckState.Checked
        ]


def choose(title: str, offered: list[Choosable]) -> list[str] | None:
    """Return the names of the images that the user ticks; None if there is nobody to ask.

    A dialog that is cancelled is no images.
    """
    window = _window()
    if window is None:
        return None
    dialog = ChoiceDialog(title, offered, window)
    accepted = dialog.exec() == QDialog.DialogCode.Accepted
    chosen = dialog.ticked() if accepted else []
    dialog.deleteLater()
    return chosen


def _window() -> QWidget | None:
    app = QApplication.instance()
    windows = app.topLevelWidgets() if isinstance(app, QApplication) else []
    return next((each for each in windows if each.isWindow() and each.isVisible()), None)
