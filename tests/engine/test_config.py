import json
import math
from fractions import Fraction

import numpy as np
import pytest

from engine.helpers import MODES
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError

PATCH = (8, 128, 128)


def refusal(**settings) -> str:
    with pytest.raises(ConfigError) as caught:
        InferenceConfig(**{"patch_size": PATCH, **settings})
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "named", "allowed"),
    [
        ({"overlap": 1}, "overlap 1 ", "[0, 1)"),
        ({"overlap": 1.0}, "overlap 1.0 ", "[0, 1)"),
        ({"overlap": 50}, "overlap 50 ", "[0, 1)"),
        ({"overlap": -0.1}, "overlap -0.1 ", "[0, 1)"),
        ({"overlap": math.nan}, "overlap nan ", "[0, 1)"),
        ({"overlap": math.inf}, "overlap inf ", "[0, 1)"),
        ({"overlap": True}, "overlap True ", "[0, 1)"),
        ({"overlap": False}, "overlap False ", "[0, 1)"),
        ({"overlap": "half"}, "overlap 'half' ", "[0, 1)"),
        ({"overlap": None}, "overlap None ", "[0, 1)"),
        ({"patch_size": (8, 128)}, "patch_size (8, 128) ", "three positive integers (Z, Y, X)"),
        ({"patch_size": (8, 1 << 21, 8)}, "patch_size (8, 2097152, 8) ", "up to 1,048,576"),
        ({"output_scale": "1/0"}, "output_scale ", "positive fractions"),
        ({"patch_size": ()}, "patch_size () ", "three positive integers (Z, Y, X)"),
        (
            {"patch_size": (1, 8, 128, 128)},
            "patch_size (1, 8, 128, 128) ",
            "three positive integers (Z, Y, X)",
        ),
        ({"patch_size": 8}, "patch_size 8 ", "three positive integers (Z, Y, X)"),
        (
            {"patch_size": "8,128,128"},
            "patch_size '8,128,128' ",
            "three positive integers (Z, Y, X)",
        ),
        (
            {"patch_size": (0, 128, 128)},
            "patch_size (0, 128, 128) ",
            "three positive integers (Z, Y, X)",
        ),
        (
            {"patch_size": (8, -128, 128)},
            "patch_size (8, -128, 128) ",
            "three positive integers (Z, Y, X)",
        ),
        (
            {"patch_size": (8, 128, 1.5)},
            "patch_size (8, 128, 1.5) ",
            "three positive integers (Z, Y, X)",
        ),
        (
            {"patch_size": (8, 128, 128.0)},
            "patch_size (8, 128, 128.0) ",
            "three positive integers (Z, Y, X)",
        ),
        (
            {"patch_size": (8, True, 128)},
            "patch_size (8, True, 128) ",
            "three positive integers (Z, Y, X)",
        ),
        (
            {"patch_size": (8, "128", 128)},
            "patch_size (8, '128', 128) ",
            "three positive integers (Z, Y, X)",
        ),
        ({"patch_size": None}, "patch_size None ", "three positive integers (Z, Y, X)"),
        ({"batch_size": 0}, "batch_size 0 ", "greater than or equal to 1"),
        ({"batch_size": -4}, "batch_size -4 ", "greater than or equal to 1"),
        ({"batch_size": 2.0}, "batch_size 2.0 ", "integer"),
        ({"batch_size": True}, "batch_size True ", "integer"),
        ({"blending": "triangle"}, "blending 'triangle' ", "'gaussian', 'bump', "),
        ({"blending": None}, "blending None ", "'gaussian', 'bump', "),
        ({"activation": "relu"}, "activation 'relu' ", "none, sigmoid, softmax or tanh"),
        ({"normalization": "log"}, "normalization 'log' ", "'none', 'dtype', "),
        ({"padding": "wrap"}, "padding 'wrap' ", "'reflect', 'edge' or 'constant'"),
        ({"tta": "flips"}, "tta 'flips' ", "none, flip:AXES"),
        ({"tta": "flip:w"}, "tta 'flip:w' ", "none, flip:AXES"),
        ({"tta_mode": "sum"}, "tta_mode 'sum' ", "mean, min, max or median"),
        ({"output_scale": (1, 0, 1)}, "output_scale (1, 0, 1) ", "positive fractions"),
        ({"output_scale": (1, 1.2345, 1)}, "output_scale (1, 1.2345, 1) ", "denominators up to 64"),
        ({"output_scale": ("1/3", 1, 1)}, "output_scale (1/3, 1, 1) ", "patch_size"),
        ({"output_scale": ("a", 1, 1)}, "output_scale ('a', 1, 1) ", "positive fractions"),
        ({"overlap": (0.5, 0.5)}, "overlap (0.5, 0.5) ", "three of them (Z, Y, X)"),
        ({"overlap": 128}, "overlap 128 ", "fewer than 8"),
        ({"overlap": (2, 128, 0.5)}, "overlap 128 ", "fewer than 128"),
        ({"overlap": (2, 1.0, 0.5)}, "overlap 1.0 ", "fewer than 128"),
        ({"overlap": 2.5}, "overlap 2.5 ", "whole voxels"),
        ({"grid": "random"}, "grid 'random' ", "'snap' or 'even'"),
        ({"halo": (1, -1, 0)}, "halo (1, -1, 0) ", "three integers (Z, Y, X)"),
        ({"region": "0:8,0:64"}, "region '0:8,0:64' ", "z0:z1,y0:y1,x0:x1"),
        ({"region": "0:8,0:64,a:b"}, "region '0:8,0:64,a:b' ", "z0:z1,y0:y1,x0:x1"),
        ({"region": "0:8,9:9,0:64"}, "region ((0, 8), (9, 9), (0, 64)) ", "larger than its start"),
        ({"planes": "w"}, "planes 'w' ", "'zyx'"),
        ({"activation": "0:3=relu"}, "activation '0:3=relu' ", "none, sigmoid, softmax or tanh"),
        ({"normalization": "fixed"}, "normalization 'fixed' needs mean_std", "give the mean"),
        ({"mean_std": (0, 1)}, "mean_std (0.0, 1.0) ", "normalization 'fixed'"),
        (
            {"normalization": "fixed", "mean_std": (0, 0)},
            "mean_std (0.0, 0.0) ",
            "deviation must be above 0",
        ),
        ({"percentiles": (99, 1)}, "percentiles (99.0, 1.0) ", "two that rise"),
        ({"percentiles": (-1, 99)}, "percentiles (-1.0, 99.0) ", "[0, 100]"),
        ({"mc_samples": 4}, "mc_samples 4 ", "do_eval=False"),
        ({"spread": True}, "spread True ", "needs variants"),
        ({"offsets": [[0, 1]]}, "offsets [[0, 1]] ", "(z, y, x)"),
        (
            {"offsets": [[0, 1, 0]], "tta": "turn:yx"},
            "offset (0, 1, 0) of channel 0 ",
            "no channel has",
        ),
        ({"vectors": [[0, 1]]}, "vectors [[0, 1]] ", "(Z, Y, X)"),
        ({"vectors": [[0, 1, 1]]}, "(0, 1, 1)", "a channel of its own"),
        ({"output_dtype": "int8"}, "output_dtype 'int8' ", "'uint16'"),
        ({"intensity_scale": 0}, "intensity_scale 0 ", "greater than 0"),
        ({"labelling": "watershed"}, "labelling 'watershed' ", "'threshold'"),
        ({"do_eval": "maybe"}, "do_eval 'maybe' ", "boolean"),
        ({"device": "gpu"}, "device 'gpu' ", "auto, cpu, cuda, cuda:N or mps"),
        ({"device": "cuda:"}, "device 'cuda:' ", "auto, cpu, cuda, cuda:N or mps"),
        ({"device": "cuda:-1"}, "device 'cuda:-1' ", "auto, cpu, cuda, cuda:N or mps"),
        ({"device": "cpu "}, "device 'cpu ' ", "auto, cpu, cuda, cuda:N or mps"),
        ({"device": 0}, "device 0 ", "auto, cpu, cuda, cuda:N or mps"),
        ({"overlp": 0.5}, "overlp ", "not a setting"),
    ],
)
def test_a_bad_value_is_named_in_one_line_with_what_is_allowed(settings, named, allowed):
    message = refusal(**settings)
    assert named in message
    assert allowed in message
    assert "\n" not in message
    assert "pydantic" not in message


def test_two_bad_values_are_both_named_in_one_line():
    message = refusal(overlap=-2, batch_size=0)
    assert "overlap -2 " in message
    assert "batch_size 0 " in message
    assert "\n" not in message


def test_a_missing_patch_size_is_named():
    with pytest.raises(ConfigError, match=r"^patch_size .*required"):
        InferenceConfig()


def test_a_config_error_is_a_value_error():
    with pytest.raises(ValueError, match="overlap"):
        InferenceConfig(patch_size=PATCH, overlap=1)


def test_defaults_are_those_of_the_contract():
    config = InferenceConfig(patch_size=PATCH)
    settings = {
        "patch_size": PATCH,
        "overlap": 0.5,
        "blending": "gaussian",
        "activation": "none",
        "normalization": "dtype",
        "padding": "reflect",
        "do_eval": True,
        "output_scale": (1, 1, 1),
        "tta": "none",
        "batch_size": 1,
        "device": "auto",
    }
    assert {name: getattr(config, name) for name in settings} == settings


@pytest.mark.parametrize("overlap", [0, 0.0, 0.25, 0.999])
def test_overlaps_from_zero_up_are_usable(overlap):
    assert InferenceConfig(patch_size=PATCH, overlap=overlap).overlap == overlap


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:12"])
def test_devices_are_usable_by_name(device):
    assert InferenceConfig(patch_size=PATCH, device=device).device == device


@pytest.mark.parametrize("blending", MODES)
def test_windows_are_usable_by_name(blending):
    assert InferenceConfig(patch_size=PATCH, blending=blending).blending == blending


def test_a_list_of_three_numbers_is_a_patch_size():
    assert InferenceConfig(patch_size=[8, 128, 128]).patch_size == PATCH


OTHER_THAN_DEFAULT = {
    "patch_size": (4, 5, 6),
    "overlap": (0.25, 1, 2),
    "grid": "even",
    "halo": (0, 2, 3),
    "step": (1, 4, 2),
    "region": ((0, 8), (1, 9), (2, 10)),
    "time_points": (0, 2),
    "skip_constant": True,
    "fill_value": 0.5,
    "on_error": "continue",
    "padding": "edge",
    "blending": "bump",
    "blending_arguments": {"t": 2.0},
    "planes": "zyx",
    "output_scale": ("1/2", 2, 2),
    "head": "membrane",
    "activation": "0:1=softmax,1:2=tanh",
    "blend_logits": True,
    "normalization": "fixed",
    "percentiles": (0.5, 99.5),
    "mean_std": (0.5, 0.25),
    "do_eval": False,
    "mc_samples": 5,
    "tta": "flip:yx+turn:yx",
    "tta_mode": "0:1=median",
    "spread": True,
    "disagreement": True,
    "offsets": ((0, 1, 0), (0, 0, 1), None, None),
    "vectors": ((None, 2, 3),),
    "output_dtype": "uint8",
    "intensity_scale": 100.0,
    "labelling": "argmax",
    "threshold": 0.25,
    "batch_size": 3,
    "device": "cuda:1",
    "precision": "bfloat16",
    "tf32": True,
    "channels_last": True,
    "graph": "frozen",
    "threads": 2,
}


def test_json_and_back_is_the_same_config():
    config = InferenceConfig(**OTHER_THAN_DEFAULT)
    text = config.to_json()
    assert InferenceConfig.from_json(text) == config
    assert json.loads(text) == json.loads(json.dumps(OTHER_THAN_DEFAULT))


def test_every_setting_is_tried_in_json_and_explained():
    assert set(OTHER_THAN_DEFAULT) == set(InferenceConfig.model_fields)
    default = InferenceConfig(patch_size=PATCH)
    for name, field in InferenceConfig.model_fields.items():
        assert field.description, name
        assert getattr(InferenceConfig(**OTHER_THAN_DEFAULT), name) != getattr(default, name)


@pytest.mark.parametrize("scale", [0.5, "1/2", Fraction(1, 2)])
def test_a_scale_is_any_way_of_writing_a_fraction(scale):
    assert InferenceConfig(patch_size=PATCH, output_scale=(scale, 2, 1)).output_scale == (
        Fraction(1, 2),
        2,
        1,
    )


def test_one_scale_is_for_all_axes():
    assert InferenceConfig(patch_size=PATCH, output_scale=2).output_scale == (2, 2, 2)
    assert InferenceConfig(patch_size=PATCH, output_scale="1/2").output_scale == (0.5, 0.5, 0.5)


def test_overlaps_are_shares_or_voxels():
    assert InferenceConfig(patch_size=PATCH, overlap=(1, 0.5, 16)).overlap == (1, 0.5, 16)
    assert InferenceConfig(patch_size=PATCH, overlap=np.int64(4)).overlap == 4
    assert InferenceConfig(patch_size=PATCH, overlap=[0, 0, 0]).overlap == (0, 0, 0)


def test_json_overlap_survives_bit_by_bit():
    config = InferenceConfig(patch_size=PATCH, overlap=1 / 3)
    assert InferenceConfig.from_json(config.to_json()).overlap == 1 / 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[1, 2]", "JSON object, not list"),
        ('"patch_size"', "JSON object, not str"),
        ("{}", "patch_size is required"),
        ('{"patch_size": [8, 8, 8], "overlap": 1.5}', "overlap 1.5 "),
        ('{"patch_size": [8, 8, 8], "colour": "red"}', "colour is not a setting"),
        ('{"patch_size": [8, 8, 8], "overlap": NaN}', "overlap nan "),
    ],
)
def test_unusable_json_is_refused_in_one_line(text, said):
    with pytest.raises(ConfigError) as caught:
        InferenceConfig.from_json(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_does_not_change():
    config = InferenceConfig(patch_size=PATCH)
    with pytest.raises(ValueError, match="frozen"):
        config.overlap = 0.75
    with pytest.raises(ValueError, match="frozen"):
        del config.overlap
    assert config.overlap == 0.5


def test_equal_settings_are_equal_and_hash_alike():
    one, other = (InferenceConfig(patch_size=PATCH, overlap=o) for o in (0.5, 0.25))
    assert one != other
    assert len({one, other, InferenceConfig(patch_size=list(PATCH))}) == 2
