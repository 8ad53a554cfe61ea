from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch

from engine.helpers import config_of
from napari_seamless.engine.channels import parse_ranges
from napari_seamless.engine.config import ACTIVATIONS
from napari_seamless.engine.errors import ConfigError, ModelError
from napari_seamless.engine.outputs import (
    Channels,
    activated,
    channels_of,
    finest,
    finisher,
    heads_of,
)


def head(channels: int = 1, size: int = 4) -> torch.Tensor:
    return torch.zeros(2, channels, size, size, size)


TWO_HEADS = Channels({"a": slice(0, 2), "b": slice(2, 5)}, "a", has_spread=False)
VALUES = np.random.default_rng(0).normal(0, 2, (2, 5, 1, 3, 2)).astype(np.float32)


def sigmoid(values):
    return 1 / (1 + np.exp(-values.astype(float)))


def softmax(values, axis=1):
    return np.exp(values.astype(float)) / np.exp(values.astype(float)).sum(axis, keepdims=True)


# ------------------------------------------------------------------------------ heads

Pair = namedtuple("Pair", "mask edge")


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (lambda one, other: one, ["0"]),
        (lambda one, other: (one, other), ["0", "1"]),
        (lambda one, other: [other, one], ["0", "1"]),
        (lambda one, other: Pair(one, other), ["0", "1"]),
        (lambda one, other: {"mask": one, "edge": other}, ["mask", "edge"]),
        (lambda one, other: OrderedDict(z=other, a=one), ["z", "a"]),
        (lambda one, other: {0: one, "": other}, ["0", "unnamed"]),
    ],
)
def test_heads_are_named_in_the_networks_order(made, names):
    one, other = head(1), head(2)
    output = made(one, other)
    given = [output] if output is one else list(getattr(output, "values", lambda: output)())
    heads = heads_of(output, None, 5)
    assert list(heads) == names
    for found, expected in zip(heads.values(), given, strict=True):
        assert found is expected


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (None, "nothing"),
        ((None, None), "nothing"),
        ("text", "str"),
        (3.5, "float"),
        (np.zeros(3), "ndarray"),
        ((), "nothing"),
        ({}, "nothing"),
        ([head(), [head()]], "list"),
        ({"a": head(), "b": {"c": head()}}, "dict"),
        ({"a": (head(),)}, "tuple"),
    ],
)
def test_what_holds_anything_but_tensors_is_refused_by_its_type(output, said):
    with pytest.raises(ModelError, match=rf"returned {said} where a tensor is needed") as caught:
        heads_of(output, None, 5)
    assert "\n" not in str(caught.value)
    assert "a tuple, list or dict of them" in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "chosen", "kept"),
    [
        ((8, 4, 2), None, ["0"]),
        ((2, 4, 8), None, ["2"]),
        ((8, 4, 8), None, ["0", "2"]),
        ((8, 4, 4), "2", ["1", "2"]),
        ((8, 4, 8), "2", ["0", "2"]),
    ],
)
def test_coarser_heads_than_the_chosen_or_the_largest_are_left_out(sizes, chosen, kept):
    heads = {str(index): head(size=size) for index, size in enumerate(sizes)}
    found = finest(heads, chosen)
    assert list(found) == kept
    assert all(found[name] is heads[name] for name in kept)


def test_a_head_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ModelError) as caught:
        heads_of({"mask": head(), "edge": head()}, "maks", 5)
    assert str(caught.value) == "head 'maks' does not exist; the network returns 'mask', 'edge'"


@pytest.mark.parametrize(
    ("chosen", "has_spread", "shown", "total", "spread_of_b"),
    [(None, False, "a", 5, None), ("b", True, "b", 10, slice(7, 10))],
)
def test_heads_lie_side_by_side_and_their_spread_after_them(
    chosen, has_spread, shown, total, spread_of_b
):
    channels = channels_of({"a": head(2), "b": head(3)}, chosen, has_spread)
    assert channels.heads == {"a": slice(0, 2), "b": slice(2, 5)}
    assert (channels.shown, channels.predicted, channels.total) == (shown, 5, total)
    if spread_of_b:
        assert channels.spread_of("b") == spread_of_b
        assert channels.spread_of("a") == slice(5, 7)


# ------------------------------------------------------------------------------ activation


def apply(activation: str, values: np.ndarray = VALUES) -> np.ndarray:
    setting = parse_ranges(activation, ACTIVATIONS, "none", "activation")
    return activated(torch.from_numpy(values), setting, TWO_HEADS).numpy()


@pytest.mark.parametrize(
    ("activation", "parts"),
    [
        ("none", [lambda v: v]),
        ("sigmoid", [sigmoid]),
        ("tanh", [np.tanh]),
        ("softmax", [lambda v: np.concatenate([softmax(v[:, :2]), softmax(v[:, 2:])], 1)]),
        ("0:5=softmax", [softmax]),
        (
            "1:3=softmax,4:5=tanh",
            [lambda v: v[:, :1], lambda v: softmax(v[:, 1:3]), lambda v: v[:, 3:4],
             lambda v: np.tanh(v[:, 4:])],
        ),
        ("0:2=softmax,2:4=softmax",
         [lambda v: softmax(v[:, :2]), lambda v: softmax(v[:, 2:4]), lambda v: v[:, 4:]]),
    ],
)  # fmt: skip
def test_a_word_works_on_each_head_and_ranges_on_all_channels_side_by_side(activation, parts):
    expected = np.concatenate([part(VALUES) for part in parts], axis=1)
    np.testing.assert_allclose(apply(activation), expected, rtol=1e-6)


def test_no_activation_copies_nothing():
    values = torch.from_numpy(VALUES)
    setting = parse_ranges("none", ACTIVATIONS, "none", "activation")
    assert activated(values, setting, TWO_HEADS) is values


def test_a_range_past_the_last_channel_of_all_heads_is_refused():
    with pytest.raises(ConfigError, match=r"activation '4:6=tanh'.*there are 5 channels"):
        apply("4:6=tanh")


@pytest.mark.parametrize("value", [-1e4, -100, 0, 100, 1e4])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_logits_stay_finite(activation, value):
    values = np.full((1, 5, 1, 1, 1), value, np.float32)
    assert np.isfinite(apply(activation, values)).all()


# ------------------------------------------------------------------------------ after blending


def finish(values: np.ndarray, channels: Channels | None, activation: str) -> np.ndarray:
    config = config_of((1, 1, 1), activation=activation, blend_logits=True)
    finished = finisher(config, lambda: channels)
    assert finished is not None
    return finished(values)


def test_patches_that_are_activated_already_are_not_finished():
    assert finisher(config_of((1, 1, 1), activation="sigmoid"), lambda: TWO_HEADS) is None


@pytest.mark.parametrize(
    ("activation", "by_hand"),
    [
        ("sigmoid", sigmoid),
        ("softmax", lambda v: np.concatenate([softmax(v[:2], 0), softmax(v[2:], 0)])),
        ("none", lambda v: v),
    ],
)
def test_blended_logits_are_activated_and_the_spread_stays_as_it_is(activation, by_hand):
    with_spread = Channels(TWO_HEADS.heads, "a", has_spread=True)
    values = np.concatenate([VALUES[0], VALUES[1]])
    before = values.copy()
    found = finish(values, with_spread, activation)
    np.testing.assert_allclose(found[:5], by_hand(VALUES[0]), rtol=1e-6)
    np.testing.assert_array_equal(found[5:], VALUES[1])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_predicted_yet_stays_nan(activation):
    values = VALUES[0].copy()
    values[:, 0, 1, 1] = np.nan
    np.testing.assert_array_equal(np.isnan(finish(values, TWO_HEADS, activation)), np.isnan(values))


def test_finishing_before_the_channels_are_known_is_a_mistake_of_ours():
    with pytest.raises(AssertionError, match="before the channels are known"):
        finish(VALUES[0], None, "sigmoid")
