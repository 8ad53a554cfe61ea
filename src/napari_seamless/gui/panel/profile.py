"""A picture of the chosen window: what neighbouring patches weigh along one axis, and their sum."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QPainter, QPaintEvent, QPalette, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QWidget

from napari_seamless.engine.blending import weight_sum
from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.errors import SeamlessError
from napari_seamless.engine.grid import Overlap, PatchGrid, stride_of
from napari_seamless.engine.windows import build_window

SHOWN = 3
"""So many neighbouring patches are drawn."""
_HEIGHT = 84
_TEXT_HEIGHT = 17
_COLOURS = ("#3a7fc8", "#c2631c", "#0f8a5f")
"""Of patches, which stand side by side; to be seen on dark and on light."""

Curve = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Profile:
    """Weights along the longest axis of a patch, deep inside of a volume.

    Attributes
    ----------
    taper : ndarray of float64, shape (voxels of the patch,)
        Weights of one patch.
    starts : tuple of int
        Where the shown patches start in `total`; the first is 0.
    total : ndarray of float64
        Weight sum of all patches, from where the first shown patch starts to where the last ends.
    axis : str
        "z", "y" or "x".
    per_voxel : float
        How many patches predict a voxel on average, all three axes together.
    """

    taper: Curve
    starts: tuple[int, ...]
    total: Curve
    axis: str
    per_voxel: float

    @property
    def stride(self) -> int:
        """Voxels between neighbouring patches along the axis."""
        return self.starts[1]


def profile_of(
    patch_size: Triple,
    overlap: Overlap | tuple[Overlap, Overlap, Overlap],
    blending: str,
    arguments: Mapping[str, Any] | None = None,
) -> Profile:
    """Return the weights along the longest axis, of a patch that is one voxel thin in the others.

    Parameters
    ----------
    patch_size : tuple of int
        Voxels, (Z, Y, X).
    overlap : number, or one per axis
        What neighbours have in common, as in the settings.
    blending : str
        Name of the window.
    arguments : mapping, optional
        Its arguments.

    Raises
    ------
    ConfigError
        If there is no such window, or the overlap does not fit the patch.
    """
    overlaps = overlap if isinstance(overlap, tuple) else (overlap,) * 3
    strides = [stride_of(size, share) for size, share in zip(patch_size, overlaps, strict=True)]
    axis = max(range(3), key=lambda each: (patch_size[each], each))
    size, stride = patch_size[axis], strides[axis]
    window = build_window((1, 1, size), blending, arguments or {})
    before = -(-size // stride)  # patches that reach into the first one that is shown
    row = size + (2 * before + SHOWN - 1) * stride
    grid = _in_a_row(size, stride, row)
    total = weight_sum(grid, window, np.ones(grid.counts, bool), Box.of_shape((1, 1, row)))
    first, length = before * stride, size + (SHOWN - 1) * stride
    return Profile(
        window.in_float64().ravel(),
        tuple(number * stride for number in range(SHOWN)),
        total.ravel()[first : first + length],
        "zyx"[axis],
        float(np.prod([size / by for size, by in zip(patch_size, strides, strict=True)])),
    )


def _in_a_row(size: int, stride: int, length: int) -> PatchGrid:
    starts = np.arange(0, length - size + 1, stride, dtype=np.intp)
    return PatchGrid((1, 1, length), (1, 1, size), (np.zeros(1, np.intp),) * 2 + (starts,))


class ProfilePicture(QWidget):
    """Draws a profile: patches in colours, their sum as a line over them."""

    def __init__(self) -> None:
        super().__init__()
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setToolTip(
            "What three neighbouring patches weigh along their longest axis (in colours), and the "
            "sum of all patches, by which the blended values are divided. Where a patch weighs "
            "little, its neighbours decide"
        )
        self.profile: Profile | None = None

    def show_profile(self, profile: Profile | None) -> None:
        """Draw another profile; None, where there is no such window, draws nothing."""
        self.profile = profile
        self.update()

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return a width that a narrow form has."""
        return QSize(200, _HEIGHT)

    def paintEvent(self, event: QPaintEvent | None) -> None:  # noqa: N802
        """Draw it."""
        if self.profile is None:
            return
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        area = QRectF(0, _TEXT_HEIGHT + 2, self.width(), self.height() - _TEXT_HEIGHT - 3)
        text = self.palette().color(QPalette.ColorRole.WindowText)
        _draw_text(painter, caption(self.profile), text, self.width())
        _draw_curves(painter, self.profile, text, area)
        painter.end()


def caption(profile: Profile) -> str:
    """Return what is said over the picture."""
    return (
        f"stride {profile.stride} voxels along {profile.axis}, "
        f"{profile.per_voxel:.3g} patches per voxel"
    )


def _draw_text(painter: QPainter, text: str, colour: QColor, width: int) -> None:
    painter.setPen(colour)
    shown = painter.fontMetrics().elidedText(text, Qt.TextElideMode.ElideRight, width)
    painter.drawText(QRectF(0, 0, width, _TEXT_HEIGHT), Qt.AlignmentFlag.AlignLeft, shown)


def _draw_curves(painter: QPainter, profile: Profile, line: QColor, area: QRectF) -> None:
    highest = float(profile.total.max())
    per_voxel = area.width() / len(profile.total)
    for start, colour in zip(profile.starts, _COLOURS, strict=True):
        patch = QRectF(area)
        patch.setLeft(start * per_voxel)
        patch.setWidth(len(profile.taper) * per_voxel)
        fill = QColor(colour)
        painter.setPen(QPen(fill, 1.2))
        fill.setAlpha(60)
        painter.setBrush(fill)
        painter.drawPolygon(_under(profile.taper / highest, patch))
    painter.setBrush(Qt.BrushStyle.NoBrush)
    painter.setPen(QPen(line, 1.6))
    painter.drawPolyline(QPolygonF(_points(profile.total / highest, area)))


def _points(heights: Curve, area: QRectF) -> list[QPointF]:
    """Return points over an area; heights are 0 to 1, one per voxel, each in its middle."""
    across = area.left() + (np.arange(len(heights)) + 0.5) * area.width() / len(heights)
    down = area.bottom() - heights * area.height()
    return [QPointF(float(x), float(y)) for x, y in zip(across, down, strict=True)]


def _under(heights: Curve, area: QRectF) -> QPolygonF:
    first, last = QPointF(area.left(), area.bottom()), QPointF(area.right(), area.bottom())
    return QPolygonF([first, *_points(heights, area), last])


def profile_or_none(settings: Mapping[str, Any]) -> Profile | None:
    """Return the profile of what is typed, or None while that cannot work; the form says why."""
    window = settings["blending"], settings.get("blending_arguments")
    try:
        return profile_of(settings["patch_size"], settings["overlap"], *window)
    except SeamlessError:
        return None
