"""Settings that are typed: what they hold is what the settings of a run hold."""

from fractions import Fraction

import pytest

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.gui.panel.text_setting import (
    TextSetting,
    region_field,
    scale_field,
    times_field,
)


@pytest.mark.parametrize(
    ("make", "name", "typed", "held"),
    [
        (region_field, "region", "0:8,16:32, 0:64", ((0, 8), (16, 32), (0, 64))),
        (times_field, "time_points", "3", (3,)),
        (times_field, "time_points", "0:10:4", (0, 4, 8)),
        (times_field, "time_points", "0, 4,5", (0, 4, 5)),
        (scale_field, "output_scale", "1/2", (Fraction(1, 2),) * 3),
        (scale_field, "output_scale", "1,2, 2", (1, 2, 2)),
        (TextSetting, "head", "affinities", "affinities"),
    ],
)
def test_text_becomes_what_the_setting_holds_and_back(qtbot, make, name, typed, held):
    field = make(name=name, hint="all")
    field.value = typed
    assert field.value == held
    config = InferenceConfig(patch_size=(8, 8, 8), **{name: field.value})
    assert getattr(config, name) == held

    field.value = None
    assert field.text == ""
    field.value = held
    assert field.value == held


@pytest.mark.parametrize(
    ("make", "empty"), [(region_field, None), (times_field, None), (scale_field, (1, 1, 1))]
)
def test_no_text_is_the_default(qtbot, make, empty):
    field = make(name="some", hint="the default")
    assert field.value == empty
    assert field.native.placeholderText() == "the default"
    field.value = empty
    assert field.text == ""


@pytest.mark.parametrize(
    ("make", "typed"),
    [(region_field, "0:8,5"), (times_field, "a:b"), (scale_field, "1/0"), (scale_field, "no")],
)
def test_what_is_no_value_stays_as_it_is_typed(qtbot, make, typed):
    field = make(name="some", hint="")
    field.value = typed
    assert field.value == typed
