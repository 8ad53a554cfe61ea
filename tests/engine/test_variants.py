"""Several answers per patch, end to end: flips, turns, samples, and when they are activated."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from engine.helpers import (
    FakeStore,
    Ramps,
    Recorded,
    RecordingSource,
    Reference,
    assert_blended,
    config_of,
    patch_of,
    positions_by_rule,
    positive_volume,
)
from napari_seamless.engine.errors import ConfigError, ModelError
from napari_seamless.engine.predictor import Predictor
from napari_seamless.engine.run import Run
from napari_seamless.engine.source import ArraySource


class Makes(Recorded):
    """Returns what a function makes of its input."""

    def __init__(self, function=lambda x: x) -> None:
        super().__init__()
        self.function = function

    def predict(self, x):
        return self.function(x)


def run_of(network, volume, patch_size, store=None, **settings) -> Run:
    config = config_of(patch_size, **settings)
    return Run([RecordingSource(volume)], network, config, [store] if store else [])


def outputs_of(network, volume, patch_size, **settings) -> dict[str, np.ndarray]:
    run = run_of(network, volume, patch_size, **settings)
    list(run)
    return {name: np.asarray(array) for name, array in run.outputs().items()}


# ------------------------------------------------------------------------------ flips and turns

FLIPS = {
    "none": [()],
    "flip:x": [(), (3,)],
    "flip:yx": [(), (2,), (3,), (2, 3)],
    "flip:zyx": [(), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)],
}
COMBINE = {"mean": np.mean, "min": np.min, "max": np.max, "median": np.median}


def flipped_answers(network: Ramps, patch: np.ndarray, tta: str) -> np.ndarray:
    """What the network makes of a patch (C, z, y, x) in every orientation, turned back."""
    return np.stack(
        [np.flip(network.by_hand(np.flip(patch, axes)), axes) for axes in FLIPS[tta]]
    )  # fmt: skip


@pytest.mark.parametrize("mode", COMBINE)
@pytest.mark.parametrize("tta", FLIPS)
def test_variants_of_each_patch_are_combined_and_then_blended(tta, mode):
    shape, patch_size = (5, 9, 8), (4, 6, 4)
    volume, network = positive_volume((1, *shape)), Ramps(patch_size, 2)
    run = run_of(network, volume, patch_size, tta=tta, tta_mode=mode)
    reference = Reference(shape, patch_size, "gaussian", 2)
    positions = iter(positions_by_rule(shape, patch_size, 0.5))
    for _ in run:
        start = next(positions)
        answers = flipped_answers(network, patch_of(volume, start, patch_size), tta)
        reference.add(start, COMBINE[mode](answers, axis=0))
        assert_blended(np.asarray(run.live[0]), reference.blended)
    assert len(network.inputs) == len(FLIPS[tta]) * run.total


def test_every_range_of_channels_is_combined_in_its_own_way():
    shape, patch_size = (4, 6, 6), (4, 6, 6)
    volume, network = positive_volume((1, *shape)), Ramps(patch_size, 5)
    found = outputs_of(
        network, volume, patch_size, tta="flip:zyx", tta_mode="0:1=min,1:2=max,3:5=median"
    )["main"]
    answers = flipped_answers(network, volume, "flip:zyx")
    for channel, mode in enumerate(["min", "max", "mean", "median", "median"]):
        expected = COMBINE[mode](answers[:, channel], axis=0)
        np.testing.assert_allclose(found[channel], expected, rtol=1e-6)


def test_the_spread_is_the_deviation_of_the_variants_of_each_patch_blended():
    shape, patch_size = (5, 9, 8), (4, 6, 4)
    volume, network = positive_volume((1, *shape)), Ramps(patch_size, 2)
    run = run_of(network, volume, patch_size, tta="flip:yx", spread=True, tta_mode="max")
    reference = Reference(shape, patch_size, "gaussian", 4)
    positions = iter(positions_by_rule(shape, patch_size, 0.5))
    for _ in run:
        start = next(positions)
        answers = flipped_answers(network, patch_of(volume, start, patch_size), "flip:yx")
        reference.add(start, np.concatenate([answers.max(0), answers.std(0)]))
        assert_blended(np.asarray(run.live[0]), reference.blended[:2])
        spread = np.asarray(run.outputs()["spread"])
        # Not 1e-6: where variants nearly agree, the spread is their difference in float32.
        np.testing.assert_allclose(spread, reference.blended[2:], rtol=1e-5, atol=1e-6)
    assert list(run.outputs()) == ["main", "spread"]


def test_the_spread_of_another_head_is_that_heads():
    volume = positive_volume((1, 2, 2, 4))

    def two(v):
        ramp = torch.arange(4.0)
        return {"a": v + ramp, "b": v + 10 * ramp}

    outputs = outputs_of(Makes(two), volume, (2, 2, 4), tta="flip:x", spread=True, head="b")
    assert list(outputs) == ["main", "spread", "heads/a"]
    expected = np.broadcast_to(np.float32([15, 5, 5, 15]), volume.shape)
    np.testing.assert_allclose(outputs["spread"], expected, rtol=1e-6)
    np.testing.assert_allclose(outputs["main"], volume + 15, rtol=1e-6)
    np.testing.assert_allclose(outputs["heads/a"], volume + 1.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("tta", "turns"),
    [("turn:yx", range(4)), ("turn:zx", range(4)), ("flip:zyx+turn:yx", range(4))],
)
@pytest.mark.parametrize("patch_size", [(4, 4, 4), (2, 4, 6)])
def test_turns_are_numpys_also_of_patches_that_are_not_square(tta, turns, patch_size):
    volume = positive_volume((1, *patch_size))
    plane = (1, 3) if "zx" in tta else (2, 3)
    flips = FLIPS["flip:zyx"] if "flip" in tta else [()]

    def ramp(shape):
        z, y, x = np.indices(shape)
        return z + 10 * y + 100 * x

    answers = {}
    for turn in turns:
        for axes in flips:
            turned = np.flip(np.rot90(volume, turn, plane), axes)
            answer = turned + ramp(turned.shape[1:])
            back = np.rot90(np.flip(answer, axes), -turn, plane)
            answers[np.round(back, 3).tobytes()] = back  # of 32 flips and turns, 16 differ
    network = Makes(lambda v: v + torch.from_numpy(ramp(v.shape[2:])))
    found = outputs_of(network, volume, patch_size, tta=tta, spread=True)
    exact = np.stack(list(answers.values())).astype(float)
    assert len(network.inputs) == len(exact) == (16 if "flip" in tta else 4)
    np.testing.assert_allclose(found["main"], exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found["spread"], exact.std(0), rtol=1e-6)


def test_the_volume_is_read_once_per_patch():
    source = RecordingSource(positive_volume((5, 9, 8)))
    network = Makes()
    settings = {"tta": "flip:zyx+turn:yx", "planes": "zyx", "batch_size": 4}
    run = Run([source], network, config_of((4, 6, 6), **settings))
    list(run)
    assert sorted(source.positions((4, 6, 6))) == positions_by_rule((5, 9, 8), (4, 6, 6), 0.5)
    assert len(network.inputs) == 16 * 3 * -(-run.total // 4)
    assert_blended(run.results()[0], positive_volume((1, 5, 9, 8)))


@pytest.mark.parametrize(
    ("patch_size", "tta", "calls"),
    [
        ((1, 4, 6), "flip:zyx", 4),
        ((1, 4, 1), "flip:zyx", 2),
        ((1, 1, 1), "flip:zyx", 1),
        ((1, 4, 4), "flip:zyx+turn:yx", 8),
        ((1, 4, 4), "turn:zy", 4),
        ((4, 4, 4), "flip:zyx+turn:yx", 16),
    ],
)
def test_orientations_that_do_the_same_to_a_flat_patch_run_once(patch_size, tta, calls):
    volume, network = positive_volume((1, *patch_size)), Makes()
    assert_blended(outputs_of(network, volume, patch_size, tta=tta)["main"], volume)
    assert len(network.inputs) == calls
    assert len({(given.shape, given.tobytes()) for given in network.inputs}) == calls


def test_orientations_of_a_flat_patch_run_all_where_they_turn_a_direction():
    """A flat image does not say which way is up: what the network says of it cancels."""
    volume, network = positive_volume((1, 1, 4, 6)), Makes(lambda v: torch.full_like(v, 5))
    vectors = ((0, None, None),)
    found = outputs_of(network, volume, (1, 4, 6), tta="flip:z", vectors=vectors)["main"]
    assert len(network.inputs) == 2
    np.testing.assert_array_equal(found, 0 * volume)


def test_leaving_out_repeated_orientations_changes_no_combination():
    volume, network = positive_volume((1, 1, 4, 6)), Ramps((1, 4, 6), 1)
    for mode, combine in COMBINE.items():
        found = outputs_of(network, volume, (1, 4, 6), tta="flip:zyx", tta_mode=mode)["main"]
        expected = combine(flipped_answers(network, volume, "flip:zyx"), axis=0)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"planes": "z"}, {"planes": "zyx"}])
def test_a_network_may_change_its_input_in_place(settings):
    volume = positive_volume((2, 3, 4, 5))
    found = outputs_of(Makes(lambda v: v.mul_(2)), volume, (3, 4, 5), tta="flip:zyx", **settings)
    assert_blended(found["main"], 2 * volume)


def test_a_network_may_return_the_same_memory_again():
    class Buffered(nn.Module):
        """As one that was captured as a CUDA graph."""

        def __init__(self) -> None:
            super().__init__()
            self.memory = torch.zeros(1, 1, 2, 4, 6)

        def forward(self, v):
            return self.memory.copy_(v)

    volume = positive_volume((1, 2, 4, 6))
    found = outputs_of(Buffered(), volume, (2, 4, 6), tta="flip:yx")
    assert_blended(found["main"], volume)


@pytest.mark.parametrize("is_reused", [True, False])
def test_a_prediction_stays_when_the_network_is_called_again(is_reused):
    """As when the inspector predicts a patch while the last batch is blended."""
    memory = torch.zeros(1, 1, 2, 4, 6)
    network = Makes((lambda v: memory.copy_(v)) if is_reused else torch.clone)
    predict = Predictor(network, config_of((2, 4, 6)), torch.device("cpu"))
    patches = [np.full((1, 1, 2, 4, 6), value, np.float32) for value in range(5)]
    predictions = [predict(patch) for patch in patches]
    assert [float(each.mean()) for each in predictions] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("margin", [1, 2])
def test_flips_and_turns_of_a_network_that_crops_along_one_axis(margin):
    """Turned, it crops the other axis; what all variants hold is what is blended."""
    volume = positive_volume((1, 4, 13, 12))
    network = Makes(lambda v: v[:, :, :, margin:-margin])
    run = run_of(network, volume, (4, 8, 10), tta="flip:zyx+turn:yx")
    list(run)
    assert run.plan.core_size == (4, 8 - 2 * margin, 10 - 2 * margin)
    assert_blended(run.results()[0], volume)


@pytest.mark.parametrize("tta", ["flip:zyx", "flip:zyx+turn:yx"])
def test_flips_and_turns_at_another_resolution(tta):
    volume = positive_volume((1, 4, 7, 9))
    scale = (1, 2, 2)
    network = nn.Upsample(scale_factor=scale)
    found = outputs_of(network, volume, (4, 6, 8), tta=tta, output_scale=scale)["main"]
    assert_blended(found, volume.repeat(2, axis=2).repeat(2, axis=3))


@pytest.mark.parametrize("scale", [(1, 1, 2), (1, "1/2", 1)])
def test_turns_between_axes_of_different_resolution_are_refused(scale):
    with pytest.raises(ConfigError) as caught:
        run_of(Makes(), positive_volume((4, 8, 8)), (4, 8, 8), tta="turn", output_scale=scale)
    assert "differs between the axes of the turn" in str(caught.value)
    assert "use flips only" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_output_that_is_larger_where_the_patch_is_turned_is_refused():
    """Neither flips nor cropping explain it: it has always the same size, squeezed."""
    network = nn.AdaptiveAvgPool3d((4, 6, 8))
    with pytest.raises(ModelError, match="no output_scale was found that does"):
        list(run_of(network, positive_volume((4, 6, 8)), (4, 6, 8), tta="turn"))


# ------------------------------------------------------------------------------ directions

OFFSETS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 3, 0), (0, 0, 3), (2, 0, 0))
GARBAGE = 7.0
"""What the network says of pairs that leave its input."""


def pairs(shape, offset) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The voxels v for which v and v + offset are inside, and the other ends."""
    here = tuple(slice(max(0, -o), min(n, n - o)) for n, o in zip(shape, offset, strict=True))
    there = tuple(slice(max(0, o), min(n, n + o)) for n, o in zip(shape, offset, strict=True))
    return here, there


def affinities(v: torch.Tensor) -> torch.Tensor:
    """1 where two voxels of a label volume (B, 1, Z, Y, X) have the same label."""
    result = v.new_full((len(v), len(OFFSETS), *v.shape[2:]), GARBAGE)
    for channel, offset in enumerate(OFFSETS):
        if any(abs(o) >= n for o, n in zip(offset, v.shape[2:], strict=True)):
            continue
        here, there = pairs(v.shape[2:], offset)
        result[:, channel, *here] = (v[:, 0, *here] == v[:, 0, *there]).float()
    return result


def labels_of(shape) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, (1, *shape)).astype(np.uint8)


def assert_affinities(found: np.ndarray, labels: np.ndarray) -> None:
    """Every pair inside the volume has its value, exactly but for the rounding of blending."""
    for channel, offset in enumerate(OFFSETS):
        here, there = pairs(labels.shape[1:], offset)
        same = (labels[0, *here] == labels[0, *there]).astype(np.float32)
        assert 0.2 < same.mean() < 0.5
        np.testing.assert_allclose(found[channel, *here], same, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("tta", ["none", "flip:x", "flip:zyx", "turn:yx", "flip:zyx+turn:yx"])
@pytest.mark.parametrize("patch_size", [(4, 6, 6), (2, 6, 4)])
def test_affinities_are_exact_under_every_orientation(tta, patch_size):
    labels = labels_of((5, 13, 11))
    settings = {"halo": (2, 3, 3), "tta": tta, "offsets": OFFSETS, "batch_size": 4}
    if tta != "none":
        settings["spread"] = True
    outputs = outputs_of(Makes(affinities), labels, patch_size, **settings)
    assert_affinities(outputs["main"], labels)
    if tta != "none":
        here, _ = pairs(labels.shape[1:], (2, 3, 3))
        np.testing.assert_allclose(outputs["spread"][:, *here], 0, atol=1e-7)


@pytest.mark.parametrize("mode", COMBINE)
def test_affinities_without_a_halo_are_right_up_to_the_faces(mode):
    """A flipped pair may leave the patch where the pair itself does not; it is then left out."""
    labels = labels_of((5, 9, 11))
    settings = {"tta": "flip:zyx+turn:yx", "offsets": OFFSETS, "tta_mode": mode}
    assert_affinities(outputs_of(Makes(affinities), labels, (5, 9, 11), **settings)["main"], labels)


def test_affinities_taken_for_plain_channels_would_be_wrong():
    labels = labels_of((5, 9, 11))
    found = outputs_of(Makes(affinities), labels, (5, 9, 11), tta="flip:x", offsets=())["main"]
    with pytest.raises(AssertionError):
        assert_affinities(found, labels)


def gradient(v: torch.Tensor) -> torch.Tensor:
    return torch.cat(torch.gradient(v, dim=(2, 3, 4)), dim=1)


def quadratic(shape) -> tuple[np.ndarray, np.ndarray]:
    """A volume and its gradient, all whole numbers: central differences are exact."""
    z, y, x = np.indices(shape)
    volume = z**2 + 2 * y**2 + 3 * x**2 + y * z - 2 * y * x
    exact = np.stack([2 * z + y, 4 * y + z - 2 * x, 6 * x - 2 * y])
    return volume.astype(np.float32)[None], exact.astype(np.float32)


@pytest.mark.parametrize("tta", ["none", "flip:zyx", "turn:zx", "flip:zyx+turn:yx"])
@pytest.mark.parametrize("mode", COMBINE)
def test_vector_components_are_exact_under_every_orientation(tta, mode):
    volume, exact = quadratic((6, 11, 9))
    settings = {"halo": (1, 1, 1), "tta": tta, "vectors": ((0, 1, 2),), "tta_mode": mode}
    found = outputs_of(Makes(gradient), volume, (4, 6, 4), **settings)["main"]
    inside = (slice(None), *[slice(1, -1)] * 3)  # on the faces, the reflection has no slope
    np.testing.assert_allclose(found[inside], exact[inside], rtol=1e-6, atol=1e-6)


def test_vector_components_taken_for_plain_channels_would_cancel():
    volume, exact = quadratic((6, 11, 9))
    found = outputs_of(Makes(gradient), volume, (6, 11, 9), tta="flip:zyx")["main"]
    np.testing.assert_allclose(found[:, 1:-1, 1:-1, 1:-1], 0, atol=1e-5)
    assert np.abs(exact).mean() > 5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"offsets": OFFSETS[:2]}, "2 offsets for 1 channels"),
        ({"vectors": ((None, None, 3),)}, "there is no channel 3"),
        ({"tta_mode": "0:2=min"}, "tta_mode '0:2=min' is not usable: there are 1 channels"),
        ({"activation": "0:2=tanh"}, "activation '0:2=tanh' is not usable: there are 1 channels"),
        (
            {"activation": "0:2=tanh", "blend_logits": True},
            "activation '0:2=tanh' is not usable: there are 1 channels",
        ),
    ],
)
def test_settings_of_channels_that_are_not_there_are_refused_at_the_first_batch(settings, said):
    network, store = Makes(), FakeStore()
    volume = positive_volume((4, 8, 8))
    run = run_of(network, volume, (4, 4, 4), store, tta="flip:x", **settings)
    with pytest.raises(ConfigError) as caught:
        list(run)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (run.done, len(network.inputs), store.calls) == (0, 1, [])


# ------------------------------------------------------------------------------ blended logits


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def softmax(values):
    return np.exp(values) / np.exp(values).sum(0)


@pytest.mark.parametrize(
    ("activation", "by_hand"),
    [
        ("sigmoid", sigmoid),
        ("softmax", softmax),
        ("tanh", np.tanh),
        ("1:2=sigmoid", lambda v: np.stack([v[0], sigmoid(v[1])])),
    ],
)
@pytest.mark.parametrize("spread", [False, True])
def test_logits_are_blended_first_and_activated_then(activation, by_hand, spread):
    shape, patch_size = (5, 9, 8), (4, 6, 4)
    volume, network = positive_volume((1, *shape)) - 3, Ramps(patch_size, 2)
    tta = "flip:x" if spread else "none"
    settings = {"activation": activation, "blend_logits": True, "tta": tta, "spread": spread}
    run = run_of(network, volume, patch_size, **settings)
    reference = Reference(shape, patch_size, "gaussian", 4)
    positions = iter(positions_by_rule(shape, patch_size, 0.5))
    for _ in run:
        start = next(positions)
        logits = flipped_answers(network, patch_of(volume, start, patch_size), tta)
        reference.add(start, np.concatenate([logits.mean(0), logits.std(0)]))
        # Not 1e-6: the blended logit is rounded to float32 before its exponential is taken.
        np.testing.assert_allclose(
            np.asarray(run.live[0]), by_hand(reference.blended[:2]), rtol=2e-6, atol=1e-7
        )
        if spread:  # of the logits
            found = np.asarray(run.outputs()["spread"])
            np.testing.assert_allclose(found, reference.blended[2:], rtol=1e-5, atol=1e-6)
    assert run.status == "complete"


def test_activating_before_and_after_blending_are_not_the_same():
    volume = positive_volume((1, 1, 4, 6))
    network = Makes(lambda v: v - 3 + 2 * torch.arange(4.0))  # where two meet: v + 1 and v - 3
    settings = {"activation": "sigmoid", "blending": "constant"}
    before, after = (
        outputs_of(network, volume, (1, 4, 4), blend_logits=later, **settings)["main"]
        for later in (False, True)
    )
    middle = volume[..., 2].astype(float)
    expected = (sigmoid(middle + 1) + sigmoid(middle - 3)) / 2
    np.testing.assert_allclose(before[..., 2], expected, rtol=1e-6)
    np.testing.assert_allclose(after[..., 2], sigmoid(middle - 1), rtol=1e-6)
    assert np.abs(before - after)[..., 2].max() > 0.02


# ------------------------------------------------------------------------------ dropout samples


class Drops(Recorded):
    """Dropout after batch norm; keeps what it answered, and in what modes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(1)
        self.drop = nn.Dropout(0.5)
        self.answers: list[np.ndarray] = []
        self.modes: list[tuple[bool, bool, bool]] = []

    def predict(self, x):
        self.modes.append((self.training, self.norm.training, self.drop.training))
        answer = self.drop(self.norm(x))
        self.answers.append(answer.numpy(force=True).copy())
        return answer


def test_samples_give_their_mean_and_standard_deviation():
    torch.manual_seed(0)
    network, volume = Drops().train(), positive_volume((1, 4, 6, 5))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    outputs = outputs_of(network, volume, (4, 6, 5), do_eval=False, mc_samples=5)
    answers = np.stack(network.answers)[:, 0].astype(float)
    assert answers.shape == (5, 1, 4, 6, 5)
    assert list(outputs) == ["main", "spread"]
    np.testing.assert_allclose(outputs["main"], answers.mean(0), rtol=1e-6)
    np.testing.assert_allclose(outputs["spread"], answers.std(0), rtol=1e-6)
    assert network.modes == [(False, False, True)] * 5
    assert network.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_many_samples_come_near_what_dropout_is_known_to_do():
    """Half of the ones become 2: mean 1, deviation 1. Tolerances are five standard errors."""
    torch.manual_seed(0)
    volume = np.ones((1, 4, 8, 8), np.float32)
    outputs = outputs_of(
        nn.Dropout(0.5), volume, (4, 8, 8), do_eval=False, mc_samples=400
    )  # fmt: skip
    assert abs(outputs["main"].mean() - 1) < 5 / math.sqrt(400 * 256)
    assert np.abs(outputs["main"] - 1).max() < 5 / math.sqrt(400)
    assert abs(outputs["spread"].mean() - 1) < 0.01
    assert (outputs["spread"] >= 0).all()


def test_samples_of_every_orientation_count_alike():
    torch.manual_seed(0)
    network, volume = Drops(), positive_volume((1, 4, 6, 5))
    settings = {"do_eval": False, "mc_samples": 3, "tta": "flip:yx"}
    outputs = outputs_of(network, volume, (4, 6, 5), **settings)
    assert len(network.answers) == 12
    flips = [(), (2,), (3,), (2, 3)]
    given = [
        next(axes for axes in flips if np.array_equal(np.flip(volume, axes), each[0]))
        for each in network.inputs
    ]
    assert sorted(given) == sorted(flips * 3)
    answers = np.stack(
        [np.flip(each[0], axes) for each, axes in zip(network.answers, given, strict=True)]
    ).astype(float)
    np.testing.assert_allclose(outputs["main"], answers.mean(0), rtol=1e-6)
    np.testing.assert_allclose(outputs["spread"], answers.std(0), rtol=1e-6)


def test_one_sample_without_evaluation_mode_has_no_spread():
    torch.manual_seed(0)
    network = Drops()
    outputs = outputs_of(network, positive_volume((1, 4, 6, 5)), (4, 6, 5), do_eval=False)
    assert list(outputs) == ["main"]
    assert_blended(outputs["main"], network.answers[0][0])


class MonteCarlo(nn.Dropout3d):
    """A dropout layer whose class is called otherwise."""


@pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout3d, nn.AlphaDropout, MonteCarlo])
def test_every_kind_of_dropout_layer_is_active(layer):
    torch.manual_seed(0)
    volume = positive_volume((8, 2, 3, 4))
    outputs = outputs_of(
        nn.Sequential(layer(0.5)), volume, (2, 3, 4), do_eval=False, mc_samples=8
    )  # fmt: skip
    assert outputs["spread"].mean() > 0.1


def test_samples_of_a_network_without_dropout_are_refused_in_one_line():
    network = nn.Sequential(nn.Conv3d(1, 1, 1), nn.BatchNorm3d(1))
    with pytest.raises(ModelError) as caught:
        run_of(network, positive_volume((4, 4, 4)), (4, 4, 4), do_eval=False, mc_samples=4)
    assert str(caught.value) == (
        "mc_samples 4 would repeat one prediction: the network has no dropout layer; "
        "use mc_samples=1"
    )


# ------------------------------------------------------------------------------ normalisation


def test_statistics_are_read_once_per_volume_and_never_per_patch():
    random = np.random.default_rng(0)
    volumes = [random.uniform(100, 200, (1, 5, 9, 8)), random.uniform(-5, 9, (1, 4, 7, 13))]
    sources = [RecordingSource(volume.astype(np.float32)) for volume in volumes]
    run = Run(sources, Makes(), config_of((4, 6, 6), normalization="zscore", tta="flip:yx"))
    list(run)
    for source, volume, found in zip(sources, volumes, run.results(), strict=True):
        patches = len(positions_by_rule(volume.shape[1:], (4, 6, 6), 0.5))
        assert len(source.boxes) == 1 + patches
        assert source.boxes[0].shape == volume.shape[1:]
        expected = (volume - volume.mean()) / volume.std()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)  # volume was rounded


def test_equal_voxels_are_equal_however_different_their_patches_are():
    volume = np.zeros((1, 1, 8, 32), np.float32)
    volume[..., :, :] = np.linspace(0, 1000, 32)  # dark on the left, bright on the right
    volume[0, 0, 4, ::4] = 250
    network = Makes()
    found = outputs_of(
        network, volume, (1, 8, 8), overlap=0.0, normalization="minmax"
    )["main"]  # fmt: skip
    assert len(network.inputs) == 4
    np.testing.assert_array_equal(found[0, 0, 4, ::4], np.float32(0.25))
    np.testing.assert_allclose(found, volume / 1000, rtol=1e-6)


@pytest.mark.parametrize("normalization", ["zscore", "minmax", "fixed"])
def test_constant_padding_is_what_the_network_gets_as_0(normalization):
    volume = positive_volume((1, 2, 3, 4)) + 50
    fixed = {"mean_std": (20.0, 2.0)} if normalization == "fixed" else {}
    network = Makes()
    run = run_of(
        network, volume, (2, 3, 4), halo=(1, 2, 1), padding="constant",
        normalization=normalization, **fixed,
    )  # fmt: skip
    list(run)
    (given,) = network.inputs
    padded = np.zeros((1, 1, 4, 7, 6), dtype=bool)
    padded[:, :, 1:3, 2:5, 1:5] = True
    np.testing.assert_array_equal(given[~padded], 0)
    scale = {
        "zscore": (volume.mean(dtype=float), volume.std(dtype=float)),
        "minmax": (volume.min(), np.ptp(volume)),
        "fixed": (20, 2),
    }[normalization]
    expected = (volume.astype(float) - scale[0]) / scale[1]
    np.testing.assert_allclose(run.results()[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["max", "min", "median"])
def test_samples_are_averaged_and_only_orientations_combined_otherwise(mode):
    torch.manual_seed(0)
    volume = np.ones((1, 4, 8, 8), np.float32)
    settings = {"do_eval": False, "mc_samples": 64}
    run = Run(
        [ArraySource(volume)],
        nn.Dropout(0.5),
        config_of((4, 8, 8), overlap=0, tta_mode=mode, **settings),
    )
    list(run)
    found = run.results()[0]
    assert abs(found.mean() - 1) < 0.05  # the largest or smallest sample would be 2 or 0
    assert found.std() < 0.3


def test_a_spread_of_logits_is_saved_as_it_is():
    volume = np.random.default_rng(0).normal(0, 5, (1, 4, 8, 8)).astype(np.float32)
    ramp = torch.arange(8.0)

    class Ramp(nn.Module):
        def forward(self, x):
            return x + ramp

    config = config_of(
        (4, 8, 8), overlap=0, tta="flip:x", spread=True, blend_logits=True,
        activation="sigmoid", output_dtype="uint8",
    )  # fmt: skip
    run = Run([ArraySource(volume)], Ramp(), config)
    list(run)
    files = run.files()
    assert files["main"].dtype == np.uint8
    np.testing.assert_allclose(files["spread"][0, 0, 0], np.abs(ramp.numpy() - 3.5), rtol=1e-5)
