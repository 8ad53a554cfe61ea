"""The panel of the inspector: the patches at a voxel as a table, and what can be done with one."""

from typing import Any

from qtpy.QtCore import QAbstractTableModel, QModelIndex, Qt
from qtpy.QtCore import Signal as QtSignal  # type: ignore[attr-defined]
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QPushButton,
    QSizePolicy,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from napari_seamless.gui.inspector.explanation import Explanation

_COLUMNS = ("Patch", "Start z, y, x", "State", "Weight", "Value")
_TIPS = (
    "Number of the patch in raster order",
    "Where the patch starts, in voxels of the prediction",
    "What has become of the patch",
    "Blending weight at this voxel, and its share of all weight blended in there",
    "What the patch alone predicts at this voxel, in the channel on the screen",
)
_ROWS_SHOWN = 8
_ORIENTATION = Qt.Orientation
_VALUE = _COLUMNS.index("Value")


class PatchTable(QAbstractTableModel):
    """An explanation as a table: a row per patch."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self._explanation: Explanation | None = None

    def show(self, explanation: Explanation | None) -> None:
        """Show another explanation, or none."""
        before, after = self.patches, _patches_of(explanation)
        if before == after:
            self._explanation = explanation
            if after:
                end = self.index(len(after) - 1, len(_COLUMNS) - 1)
                self.dataChanged.emit(self.index(0, 0), end)
            return
        self.beginResetModel()
        self._explanation = explanation
        self.endResetModel()

    @property
    def patches(self) -> list[int]:
        """Raster indices, by row."""
        return _patches_of(self._explanation)

    @property
    def is_planned(self) -> bool:
        """Whether the patches are only planned, so that there is nothing to see of them."""
        return self._explanation is not None and self._explanation.is_planned

    def rowCount(self, parent: QModelIndex | None = None) -> int:  # noqa: N802
        """Return how many patches there are."""
        return 0 if parent is not None and parent.isValid() else len(self.patches)

    def columnCount(self, parent: QModelIndex | None = None) -> int:  # noqa: N802
        """Return how much is said of each."""
        return 0 if parent is not None and parent.isValid() else len(_COLUMNS)

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return the text of a cell, its tooltip, or how it is aligned."""
        if self._explanation is None or not index.isValid():
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            return self._explanation.row(index.row())[index.column()]
        if role == Qt.ItemDataRole.ToolTipRole:
            return self._explanation.tip(index.row())
        if role == Qt.ItemDataRole.TextAlignmentRole and index.column() in (0, _VALUE):
            return int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        return None

    def headerData(  # noqa: N802
        self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole
    ) -> Any:
        """Return the name of a column, or what it means."""
        if orientation != Qt.Orientation.Horizontal:
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            return _COLUMNS[section]
        return _TIPS[section] if role == Qt.ItemDataRole.ToolTipRole else None


class InspectorPanel(QWidget):
    """A switch, the voxel, the table, the blended value, and buttons."""

    switched = QtSignal(bool)
    """The inspector is switched on or off."""
    picked = QtSignal(int)
    """A patch is to be shown, by raster index."""
    middle_wanted = QtSignal()
    """The voxel in the middle of the picture is to be held, or let go of."""
    hidden = QtSignal()
    """No patch is to be shown any more."""

    def __init__(self) -> None:
        super().__init__()
        self.switch = QCheckBox("Inspect patches at the pointer")
        self.switch.setToolTip(
            "Point at a voxel: the table shows the patches that make it.\n"
            "Click in the picture to hold the voxel, click again to let go.\n"
            "Without a mouse: move the picture, and press Hold middle."
        )
        self.where, self.result, self.waiting = _lines(2), _lines(1), _lines(1)
        self.table = PatchTable(self)
        self.view = _view_of(self.table)
        self.middle_button = QPushButton("Hold middle")
        self.middle_button.setToolTip(
            "Hold the voxel in the middle of the picture, as a click there does; again to let go"
        )
        self.show_button = QPushButton("Show patch")
        self.show_button.setToolTip(
            "Add the patch's input, its prediction alone and its window as layers; "
            "a double click on the row, or Enter, does so, too"
        )
        self.hide_button = QPushButton("Hide patch")
        self.hide_button.setToolTip("Remove the layers of the patch")
        self._buttons = (self.middle_button, self.show_button, self.hide_button)
        self._arrange()
        self.switch.toggled.connect(self._toggled)
        self.view.activated.connect(self._pick)
        self.middle_button.clicked.connect(self.middle_wanted)
        self.show_button.clicked.connect(self._pick)
        self.hide_button.clicked.connect(self.hidden)
        self._toggled(False)

    def show_explanation(self, explanation: Explanation, *, is_held: bool = False) -> None:
        """Show why a voxel is as it is, and whether it is held."""
        self.table.show(explanation)
        if self.chosen is None and self.table.patches:
            self.view.selectRow(0)  # the one that counts most
        self.where.setText(explanation.where(is_held=is_held))
        self.result.setText(explanation.result())
        self._enable()

    def show_line(self, line: str) -> None:
        """Show a line instead of a voxel."""
        self.table.show(None)
        self.where.setText(line)
        self.result.setText("")
        self._enable()

    def show_waiting(self, line: str) -> None:
        """Say what becomes of the patch that is to be shown; "" when it is."""
        self.waiting.setText(line)
        self.waiting.setVisible(bool(line) and self.switch.isChecked())

    def set_hideable(self, is_hideable: bool) -> None:
        """Say whether a patch is shown."""
        self.hide_button.setEnabled(is_hideable)

    @property
    def chosen(self) -> int | None:
        """The patch whose row is selected."""
        row = self.view.currentIndex().row()
        return self.table.patches[row] if row >= 0 else None

    def _arrange(self) -> None:
        buttons = QHBoxLayout()
        for button in self._buttons:
            buttons.addWidget(button)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for part in (self.switch, self.where, self.view, self.result):
            layout.addWidget(part)
        layout.addLayout(buttons)
        layout.addWidget(self.waiting)
        layout.addStretch()
        self.waiting.hide()
        self.hide_button.setEnabled(False)

    def _toggled(self, is_on: bool) -> None:
        for part in (self.where, self.view, self.result, *self._buttons):
            part.setVisible(is_on)
        self.switched.emit(is_on)

    def _enable(self) -> None:
        self.show_button.setEnabled(self.chosen is not None and not self.table.is_planned)

    def _pick(self) -> None:
        if self.show_button.isEnabled() and self.chosen is not None:
            self.picked.emit(self.chosen)


def _patches_of(explanation: Explanation | None) -> list[int]:
    return [] if explanation is None else [each.index for each in explanation.patches]


def _lines(count: int) -> QLabel:
    """Return a label with room for so many lines, so that little moves when it says something."""
    label = QLabel()
    label.setWordWrap(True)
    label.setMinimumHeight(count * label.fontMetrics().lineSpacing() + 2)
    label.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Minimum)
    label.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label


def _view_of(table: PatchTable) -> QTableView:
    view = QTableView()
    view.setModel(table)
    view.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    view.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    view.setTabKeyNavigation(False)  # Tab leaves it; arrow keys choose a row
    view.setAccessibleName("Patches at the voxel")
    view.setToolTip("The patches that make the voxel; arrow keys choose one")
    view.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    header, numbers = (QHeaderView(way) for way in (_ORIENTATION.Horizontal, _ORIENTATION.Vertical))
    view.setHorizontalHeader(header)
    view.setVerticalHeader(numbers)
    numbers.hide()
    numbers.setDefaultSectionSize(view.fontMetrics().height() + 6)
    header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
    header.setStretchLastSection(True)
    for place in (1, 2):  # value and weight are what one looks for
        header.moveSection(header.count() - 1, place)
    rows = _ROWS_SHOWN * numbers.defaultSectionSize()
    view.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAsNeeded)
    view.setFixedHeight(rows + header.sizeHint().height() + 14)
    view.setStyleSheet("QTableView::item, QHeaderView::section { padding: 0 2px; }")
    return view
