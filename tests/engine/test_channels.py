import pytest

from napari_seamless.engine.channels import PerChannel, parse_ranges
from napari_seamless.engine.errors import ConfigError

WORDS = ("none", "sigmoid", "softmax", "tanh")


def parse(text: str) -> PerChannel:
    return parse_ranges(text, WORDS, "none", "activation")


def words(text: str, channels: int) -> list[str]:
    """The word of each channel; every channel is in exactly one part, in order."""
    parts = parse(text).parts(channels)
    assert [c for part, _ in parts for c in range(part.start, part.stop)] == list(range(channels))
    return [word for part, word in parts for _ in range(part.start, part.stop)]


def test_a_plain_word_is_for_all_channels():
    found = parse("sigmoid")
    assert (found.ranges, found.word) == ((), "sigmoid")
    assert found.parts(3) == [(slice(0, 3), "sigmoid")]


@pytest.mark.parametrize(
    ("text", "channels", "expected"),
    [
        ("0:3=sigmoid,3:4=tanh", 4, ["sigmoid"] * 3 + ["tanh"]),
        ("0:3=sigmoid,3:4=tanh", 6, ["sigmoid"] * 3 + ["tanh", "none", "none"]),
        ("1:2=tanh", 3, ["none", "tanh", "none"]),
        ("1:2=tanh,3:4=tanh", 4, ["none", "tanh", "none", "tanh"]),
        ("3:4=tanh,0:1=sigmoid", 4, ["sigmoid", "none", "none", "tanh"]),
        (" 0 : 1 = sigmoid , 1:2=tanh ", 2, ["sigmoid", "tanh"]),
        ("0:1=none", 1, ["none"]),
    ],
)
def test_ranges_are_half_open_and_the_default_fills_gaps(text, channels, expected):
    assert words(text, channels) == expected


def test_ranges_are_kept_in_rising_order_with_the_default():
    found = parse("3:4=tanh,0:3=sigmoid")
    assert found.ranges == ((0, 3, "sigmoid"), (3, 4, "tanh"))
    assert found.word == "none"


def test_neighbours_with_the_same_word_stay_apart():
    """Two softmaxes over two channels are not one over four."""
    parts = parse("0:2=softmax,2:4=softmax").parts(4)
    assert parts == [(slice(0, 2), "softmax"), (slice(2, 4), "softmax")]


def test_settings_are_frozen_values():
    assert parse("3:4=tanh,0:3=sigmoid") == parse("0:3=sigmoid,3:4=tanh")
    assert hash(parse("tanh")) == hash(parse("tanh"))
    with pytest.raises(AttributeError):
        parse("tanh").word = "none"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("relu", "'relu' is neither an allowed word nor a range"),
        ("", "'' is neither"),
        ("0:3=relu", "'relu' is not an allowed word"),
        ("0:3=Sigmoid", "'Sigmoid' is not an allowed word"),
        ("0:3", "'0:3' is neither"),
        ("0-3=tanh", "'0-3=tanh' is neither"),
        ("3=tanh", "'3=tanh' is neither"),
        ("-1:3=tanh", "'-1:3=tanh' is neither"),
        ("0:-1=tanh", "'0:-1=tanh' is neither"),
        ("0:=tanh", "'0:=tanh' is neither"),
        ("0:1.5=tanh", "'0:1.5=tanh' is neither"),
        ("0:3=tanh,", "'' is neither"),
        ("0:3=tanh;3:4=none", "is neither"),
        ("0:3=tanh\n4", "is neither"),
        ("sigmoid,3:4=tanh", "'sigmoid' is neither"),
        ("9" * 5000 + ":1=tanh", "is neither"),
        ("3:3=tanh", "3:3 holds no channel"),
        ("4:3=tanh", "4:3 holds no channel"),
        ("0:3=sigmoid,2:4=tanh", "0:3 and 2:4 overlap"),
        ("2:4=tanh,0:3=sigmoid", "0:3 and 2:4 overlap"),
        ("0:9=tanh,1:2=tanh,3:4=tanh", "0:9 and 1:2 overlap"),
        ("0:2=tanh,0:2=tanh", "0:2 and 0:2 overlap"),
    ],
)
def test_unusable_text_is_named_in_one_line_with_what_is_allowed(text, said):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith(f"activation {text!r} is not usable: ")
    assert said in message
    assert "choose none, sigmoid, softmax or tanh" in message
    assert "'0:3=none,3:4=tanh'" in message
    assert "\n" not in message


def test_a_single_allowed_word_is_listed_as_such():
    with pytest.raises(ConfigError, match="choose mean for all channels"):
        parse_ranges("max", ("mean",), "mean", "tta_mode")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_range_past_the_last_channel_is_refused_in_one_line(channels):
    with pytest.raises(ConfigError) as caught:
        parse("0:1=sigmoid,1:4=tanh").parts(channels)
    message = str(caught.value)
    assert message.startswith("activation '1:4=tanh' is not usable")
    assert f"there are {channels} channels" in message
    assert f"end every range at {channels} or before" in message
    assert "\n" not in message
