"""Colours that the plugin chooses: read on dark and on light, told apart by all eyes."""

import re
from itertools import combinations, pairwise

import numpy as np
import pytest
from napari.utils.theme import get_theme
from qtpy.QtCore import QPoint
from qtpy.QtGui import QColor, QPalette
from qtpy.QtWidgets import QWidget
from skimage.color import deltaE_ciede2000, rgb2lab

from napari_seamless.gui.overlays import CellState, cell_layers, maps, state_legend
from napari_seamless.gui.overlays.cell_layers import STATE_COLORS
from napari_seamless.gui.panel import look, profile

THEMES = ("dark", "light")
READABLE, VISIBLE = 4.5, 3
"""WCAG 2.2, success criteria 1.4.3 (contrast of text) and 1.4.11 (of what is no text)."""
DIFFERENT = 15
"""In CIEDE2000; about 2 is a difference that one sees in colours side by side."""

EYES = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
"""What eyes make of linear RGB: Machado, Oliveira, Fernandes, "A Physiologically-based Model for
Simulation of Color Vision Deficiency", IEEE TVCG 15 (2009), severity 1."""


def rgb(color) -> np.ndarray:
    """Return a colour of any kind as 0 to 1, (3,)."""
    name = color if isinstance(color, (str, QColor)) else color.as_hex()
    return np.array(QColor(name).getRgbF()[:3])


def linear(color: np.ndarray) -> np.ndarray:
    """Return sRGB as intensities of light, IEC 61966-2-1."""
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """Return the contrast ratio of WCAG 2.2, 1 to 21."""
    dark, bright = sorted(float(linear(each) @ [0.2126, 0.7152, 0.0722]) for each in (one, other))
    return (bright + 0.05) / (dark + 0.05)


def lab_seen(color: str, eyes: str) -> np.ndarray:
    """Return what eyes see of a colour, in CIELAB."""
    light = np.clip(np.asarray(EYES[eyes]) @ linear(rgb(color)), 0, 1)
    seen = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return rgb2lab(seen)


def behind(widget: QWidget, root: QWidget) -> np.ndarray:
    """Return the colour of a widget near its right end, where it has no text."""
    at = widget.mapTo(root, QPoint(widget.width() - 12, widget.height() // 2))
    return rgb(root.grab().toImage().pixelColor(at))


def test_black_on_white_has_the_largest_contrast_and_grey_the_known_one():
    assert contrast(rgb("#000000"), rgb("#ffffff")) == pytest.approx(21)
    assert contrast(rgb("#777777"), rgb("#ffffff")) == pytest.approx(4.48, abs=0.01)


def test_problems_can_be_read_on_each_theme_also_after_a_change(session_over, volume, qtbot):
    session = session_over(volume)
    widget, seen = session.widget, []
    widget.region.value = "0:99,0:4,0:4"
    widget.say("Something failed", problem=True)
    line = widget.input_section.panel
    line.mark(True)
    assert line.toggleButton().text() == "▾ Input (problem)"
    for theme in THEMES:
        session.viewer.theme = theme
        qtbot.wait(100)
        text = widget.status.native.palette().color(QPalette.ColorRole.WindowText)
        header = line.toggleButton().palette().color(QPalette.ColorRole.ButtonText)
        assert contrast(rgb(text), rgb(get_theme(theme).background)) >= READABLE
        assert contrast(rgb(header), behind(line.toggleButton(), widget.native)) >= READABLE
        assert header == text
        seen.append(text.name())
    assert seen == [look.PROBLEM_ON_DARK, look.PROBLEM_ON_LIGHT]

    line.mark(False)
    widget.say("All is well")
    plain = widget.status.native.palette().color(QPalette.ColorRole.WindowText)
    assert plain == QColor(get_theme("light").text.as_hex())
    assert line.toggleButton().text() == "▾ Input"


@pytest.mark.parametrize("theme", THEMES)
def test_the_frame_of_a_wrong_field_and_of_the_focus_can_be_seen(theme):
    sheet, colours = look.style_of(get_theme(theme)), get_theme(theme)
    frames = {color for _, color in re.findall(r"border: (\d)px solid (#\w+)", sheet)}

    assert len(frames) == 2
    for frame in frames:
        assert contrast(rgb(frame), rgb(colours.background)) >= VISIBLE
        assert contrast(rgb(frame), rgb(colours.primary)) >= VISIBLE


@pytest.mark.parametrize("theme", THEMES)
def test_the_curves_of_patches_can_be_seen(theme):
    background = rgb(get_theme(theme).background)

    assert min(contrast(rgb(each), background) for each in profile._COLOURS) >= VISIBLE


@pytest.mark.parametrize("eyes", EYES)
def test_states_of_patches_can_be_told_apart_by_all_eyes(eyes):
    assert {*STATE_COLORS} == {*CellState}
    for one, other in combinations(STATE_COLORS, 2):
        seen = [lab_seen(STATE_COLORS[each], eyes) for each in (one, other)]
        assert deltaE_ciede2000(*seen) >= DIFFERENT, f"{one.name} and {other.name}"


def test_each_state_is_named_on_its_colour():
    chips = re.findall(r"background: (#\w+); color: (\w+)'>&nbsp;(\w+)&nbsp;", state_legend())

    assert {name: color for color, _, name in chips} == {
        state.name.lower(): color for state, color in STATE_COLORS.items()
    }
    for color, ink, name in chips:
        assert contrast(rgb(color), rgb(ink)) >= READABLE, name


def test_the_legend_is_there_while_states_are_shown(session_over, volume):
    widget = session_over(volume).widget
    assert widget.legend.native.isHidden()
    widget.show_states.value = True
    assert not widget.legend.native.isHidden()
    widget.show_states.value = False
    assert widget.legend.native.isHidden()


@pytest.mark.parametrize("colormap", [maps._unweighted_clear(), cell_layers._next_first()])
def test_scales_are_told_by_lightness_alone(colormap):
    lightness = rgb2lab(np.asarray(colormap.colors)[:, :3])[:, 0]
    steps = np.sign([after - before for before, after in pairwise(lightness)])

    assert len({*steps}) == 1
    assert np.ptp(lightness) > 60
