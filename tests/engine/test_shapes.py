"""Networks of every shape, end to end: what they return decides what a run does."""

import threading
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from engine.helpers import (
    MODES,
    PATIENCE,
    Recorded,
    RecordingSource,
    Reference,
    as_they_run,
    assert_blended,
    config_of,
    events_refocused,
    patch_of,
    positions_by_rule,
    positive_volume,
)
from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import ConfigError, ModelError
from napari_seamless.engine.run import Run
from napari_seamless.engine.source import ArraySource


class Makes(Recorded):
    """Returns what functions make of its input, one after the other."""

    def __init__(self, *functions) -> None:
        super().__init__()
        self.functions = functions

    def predict(self, x):
        for function in self.functions:
            x = function(x)
        return x


class Watched(Run):
    source: RecordingSource


def run_of(network, volume, patch_size, **settings) -> Watched:
    source = RecordingSource(volume)
    run = Watched([source], network, config_of(patch_size, **settings))
    run.source = source
    return run


def result_of(network, volume, patch_size, **settings) -> np.ndarray:
    run = run_of(network, volume, patch_size, **settings)
    events = list(run)
    assert events[-1].done == events[-1].total == len(run.plan.volumes[0].grid)
    return run.results()[0]


def refusal_of(network, volume, patch_size, **settings) -> str:
    """The one line in which a run that cannot work is refused, before anything is blended."""
    run = run_of(network, volume, patch_size, **settings)
    with pytest.raises((ModelError, ConfigError)) as caught:
        list(run)
    assert (run.status, run.done) == ("failed", 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def crop(low, high=None):
    """Cut voxels off both sides (Z, Y, X), as convolutions without padding do."""
    z, y, x = (slice(a, -b or None) for a, b in zip(low, high or low, strict=True))
    return lambda volume: volume[:, :, z, y, x]


def nearest(*scale):
    """Bring a volume to another resolution: output voxel k is voxel floor(k / scale)."""

    def function(volume):
        for axis, by in enumerate(map(Fraction, scale)):
            index = torch.arange(volume.shape[2 + axis]).repeat_interleave(by.numerator)
            volume = volume.index_select(2 + axis, index[:: by.denominator])
        return volume

    return function


def nearest_by_hand(volume: np.ndarray, *scale) -> np.ndarray:
    for axis, by in enumerate(map(Fraction, scale), start=1):
        size = volume.shape[axis]
        wanted = [int(k / by) for k in range(-int(-size * by // 1))]
        volume = np.take(volume, wanted, axis)
    return volume


def pooled_by_hand(volume: np.ndarray, *blocks: int) -> np.ndarray:
    """Means of blocks; the volume is reflected to whole blocks."""
    for axis, block in enumerate(blocks, start=1):
        widths = [(0, -volume.shape[axis] % block if at == axis else 0) for at in range(4)]
        volume = np.pad(volume, widths, mode="reflect")
        shape = [*volume.shape[:axis], -1, block, *volume.shape[axis + 1 :]]
        volume = volume.reshape(shape).mean(axis + 1, dtype=float)
    return volume


def ramp_of(shape) -> np.ndarray:
    """A value for each place in a patch, as (1, z, y, x): neighbours disagree everywhere."""
    z, y, x = np.indices(shape)
    return (1 + 0.7 * z + 0.3 * y + 0.11 * x).astype(np.float32)[None]


def add_ramp(patches: torch.Tensor) -> torch.Tensor:
    return patches + torch.from_numpy(ramp_of(patches.shape[2:]))


def linear(shape) -> np.ndarray:
    """A volume in which every voxel has a value of its own, (1, Z, Y, X)."""
    z, y, x = np.indices(shape)
    return (100 + 9 * z + 0.7 * y + 0.11 * x).astype(np.float32)[None]


# ------------------------------------------------------------------------------ less than the patch

CROPS = [
    ((9, 14, 13), (6, 8, 8), (1, 1, 1)),
    ((9, 14, 13), (6, 10, 8), (1, 3, 2)),
    ((9, 14, 13), (4, 8, 8), (0, 2, 0)),
    ((1, 15, 11), (1, 8, 8), (0, 1, 3)),
    ((3, 5, 4), (8, 12, 10), (2, 4, 2)),
]


@pytest.mark.parametrize("refocus", [None, 1])
@pytest.mark.parametrize(("shape", "patch_size", "margin"), CROPS)
def test_a_network_that_crops_gives_the_whole_volume_and_true_parts_of_it_on_the_way(
    shape, patch_size, margin, refocus
):
    volume = positive_volume((1, *shape))
    network = Makes(crop(margin))
    run = run_of(network, volume, patch_size, batch_size=3)
    core = tuple(size - 2 * cut for size, cut in zip(patch_size, margin, strict=True))
    total = len(positions_by_rule(shape, core, 0.5))
    done = []
    random = None if refocus is None else np.random.default_rng(refocus)
    for event in events_refocused(run, random):
        covered = np.asarray(run.coverage[0]) > 0
        assert_blended(np.asarray(run.live[0]), np.where(covered, volume, np.nan))
        assert (event.total, run.total) == (total, total)
        done.append(event.done)
    assert done == [*range(3, total, 3), total]
    assert run.plan.core_size == core
    assert run.plan.volumes[0].context == margin
    assert_blended(run.results()[0], volume)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_left_of_a_patch_is_blended_with_a_window_of_its_size(mode):
    """The answer depends on the place in the patch, so that only the right weights fit."""
    shape, patch_size, margin, core = (7, 12, 11), (6, 10, 8), (1, 3, 2), (4, 4, 4)
    network = Makes(crop(margin), add_ramp)
    volume = positive_volume((1, *shape))
    reference = Reference(shape, core, mode)
    positions = iter(as_they_run(positions_by_rule(shape, core, 0.5)))
    run = run_of(network, volume, patch_size, blending=mode)
    for _ in run:
        start = next(positions)
        reference.add(start, patch_of(volume, start, core).astype(float) + ramp_of(core))
        assert_blended(np.asarray(run.live[0]), reference.blended)
    assert list(positions) == []


def test_the_first_batch_is_neither_lost_nor_counted_twice():
    network = Makes(crop((1, 1, 1)))
    volume = positive_volume((1, 8, 8, 8))
    run = run_of(network, volume, (6, 6, 6), overlap=0.0, batch_size=3)
    assert [event.done for event in run] == [3, 6, 8]
    size = (3, 1, 6, 6, 6)
    # A first batch, one patch that is longer along each axis, then all batches.
    longer = [(1, 1, 22, 6, 6), (1, 1, 6, 22, 6), (1, 1, 6, 6, 22)]
    last = (2, 1, 6, 6, 6)
    assert [given.shape for given in network.inputs] == [size, *longer, size, size, last]
    assert np.asarray(run.coverage[0]).min() == np.asarray(run.coverage[0]).max() == 1


@pytest.mark.parametrize("overlap", [0.75, 3, (0.0, 1, 2)])
def test_overlap_counts_what_is_left_of_the_patch(overlap):
    volume = positive_volume((1, 9, 13, 12))
    run = run_of(Makes(crop((1, 2, 1))), volume, (6, 8, 6), overlap=overlap)
    list(run)
    step = {0.75: (1, 1, 1), 3: (1, 1, 1), (0.0, 1, 2): (4, 3, 2)}[overlap]
    for starts, stride in zip(run.plan.volumes[0].cores.starts, step, strict=True):
        assert {b - a for a, b in pairwise(starts[:-1])} <= {stride}
    assert_blended(run.results()[0], volume)


def test_an_overlap_that_the_rest_of_the_patch_does_not_have_is_refused_in_one_line():
    said = refusal_of(Makes(crop((2, 2, 2))), positive_volume((9, 9, 9)), (8, 8, 8), overlap=6)
    assert "overlap 6 does not fit a patch of 4 voxels" in said


@pytest.mark.parametrize(
    ("margin", "core"),
    [
        ((2, 2, 2), (4, 4, 4)),  # as the halo
        ((1, 2, 0), (4, 4, 4)),  # less: the rest of the halo is cut off
        ((3, 3, 2), (2, 2, 4)),  # more: the patch shrinks
        ((3, 0, 0), (2, 4, 4)),  # more along one axis, less along others
    ],
)
def test_a_halo_is_what_the_network_may_cut_off_and_never_blended(margin, core):
    volume = positive_volume((1, 9, 10, 7))
    run = run_of(Makes(crop(margin)), volume, (4, 4, 4), halo=(2, 2, 2))
    list(run)
    assert run.plan.core_size == core
    assert run.plan.volumes[0].grid.patch_size == core
    assert_blended(run.results()[0], volume)


def test_a_focus_from_before_the_first_batch_is_kept():
    volume = positive_volume((1, 4, 16, 16))
    run = run_of(Makes(crop((1, 2, 2))), volume, (4, 8, 8), overlap=0.0)
    run.focus(Box((3, 13, 14), (4, 14, 15)))
    event = next(run)
    assert event.dirty == Box((2, 12, 12), (4, 16, 16))
    assert run.live[0][0, 3, 13, 14] == volume[0, 3, 13, 14]


def test_every_volume_of_a_run_is_laid_out_anew():
    volumes = [
        positive_volume((1, *shape), seed) for seed, shape in enumerate([(5, 9, 8), (3, 2, 17)])
    ]
    network = Makes(crop((1, 1, 2)))
    run = Run([ArraySource(each) for each in volumes], network, config_of((4, 6, 8)))
    total = sum(len(positions_by_rule(each.shape[1:], (2, 4, 4), 0.5)) for each in volumes)
    assert {event.total for event in run} == {total}
    for found, expected in zip(run.results(), volumes, strict=True):
        assert_blended(found, expected)
    assert len(network.inputs) == 1 + 3 + total


def test_convolutions_without_padding_equal_those_of_the_whole_reflected_volume():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.Conv3d(4, 3, (1, 3, 5)), nn.Sigmoid())
    volume = positive_volume((2, 7, 18, 19))
    found = result_of(network, volume, (6, 10, 12), overlap=0.25)
    padded = np.pad(volume, [(0, 0), (1, 1), (2, 2), (3, 3)], mode="reflect")
    with torch.no_grad():
        expected = network(torch.from_numpy(padded)[None])[0].numpy()
    assert found.shape == expected.shape == (3, 7, 18, 19)
    # Not 1e-6: a convolution adds up in another order where its input has another size.
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("halo", [(0, 0, 0), (2, 2, 2)])
@pytest.mark.parametrize(("low", "high"), [((0, 0, 1), (0, 0, 2)), ((1, 0, 0), (0, 0, 0))])
def test_a_loss_that_has_no_middle_is_refused_in_one_line(low, high, halo):
    said = refusal_of(Makes(crop(low, high)), positive_volume((9, 9, 9)), (6, 6, 6), halo=halo)
    assert "an odd number fewer along " + ("x" if high[2] else "z") in said
    assert "cannot be centred on its input" in said


class OneSize(Makes):
    """Takes inputs of one size only."""

    def __init__(self, size, *functions) -> None:
        super().__init__(*functions)
        self.size = size

    def predict(self, x):
        if tuple(x.shape[2:]) != self.size:
            raise RuntimeError(f"takes {self.size} only")
        return super().predict(x)


def test_a_network_of_one_size_that_crops_needs_a_halo_to_say_so():
    volume = positive_volume((1, 8, 12, 9))
    network = OneSize((6, 8, 8), crop((1, 2, 2)))
    said = refusal_of(network, volume, (6, 8, 8))
    assert "makes (4, 4, 4) voxels of (6, 8, 8)" in said
    assert "set output_scale=('2/3', '1/2', '1/2') if that is its resolution" in said
    assert "halo to those and patch_size to what is left" in said
    assert_blended(result_of(network, volume, (4, 4, 4), halo=(1, 2, 2)), volume)


def test_a_network_that_takes_multiples_of_32_only_is_told_from_one_at_another_resolution():
    def picky(x):
        if any(size % 32 for size in x.shape[2:] if size > 1):
            raise RuntimeError("multiples of 32 only")
        return x

    volume = positive_volume((1, 1, 40, 33))
    assert_blended(result_of(Makes(picky, crop((0, 4, 4))), volume, (1, 32, 32)), volume)
    said = refusal_of(Makes(picky, nearest(1, "1/2", "1/2")), volume, (1, 32, 32))
    assert said.endswith("set output_scale=(1, '1/2', '1/2')")


# ------------------------------------------------------------------------------ other resolutions

SHAPES = [(8, 12, 12), (7, 13, 9), (3, 5, 4), (1, 1, 7)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "scale", [(2, 2, 2), (1, 2, 2), ("3/2", 1, 2), (1, "2/3", "3/2"), (1, "1/2", 3)]
)
def test_every_output_voxel_is_the_nearest_voxel_of_the_input(scale, shape):
    volume = linear(shape)
    network = Makes(nearest(*scale))
    run = run_of(network, volume, (4, 6, 6), output_scale=scale, batch_size=2)
    expected = nearest_by_hand(volume, *scale)
    for event in run:
        assert event.total == len(run.plan.volumes[0].grid)
        covered = np.asarray(run.coverage[0]) > 0
        assert_blended(np.asarray(run.live[0]), np.where(covered, expected, np.nan))
    whole = tuple(-int(-n * Fraction(by) // 1) for n, by in zip(shape, scale, strict=True))
    assert run.results()[0].shape == (1, *whole)
    assert_blended(run.results()[0], expected)
    assert len(network.inputs) == -(-event.total // 2)  # what comes out as expected is not probed


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("blocks", [(2, 2, 2), (1, 2, 3), (4, 1, 2)])
def test_a_coarser_output_voxel_is_the_mean_of_its_block(blocks, shape):
    volume = linear(shape)
    scale = tuple(Fraction(1, block) for block in blocks)
    found = result_of(nn.AvgPool3d(blocks), volume, (4, 6, 6), output_scale=scale)
    np.testing.assert_allclose(found, pooled_by_hand(volume, *blocks), rtol=1e-6)


@pytest.mark.parametrize(
    ("functions", "scale", "core"),
    [
        ([crop((1, 0, 1)), nearest(2, 2, 2)], (2, 2, 2), (4, 8, 6)),
        ([nearest(1, 2, 2), crop((1, 2, 4))], (1, 2, 2), (4, 6, 4)),
        ([nearest(1, 2, 2), crop((0, 3, 1))], (1, 2, 2), (6, 4, 6)),  # 3 of them are 1.5 voxels
        ([crop((0, 2, 2)), nearest(1, "3/2", "1/2")], (1, "3/2", "1/2"), (6, 4, 4)),
        ([nearest(1, "3/2", "3/2"), crop((2, 3, 1))], (1, "3/2", "3/2"), (2, 4, 4)),
        ([nearest(1, "1/2", "1/2"), crop((0, 1, 0))], (1, "1/2", "1/2"), (6, 4, 8)),
    ],
)
def test_cropping_at_another_resolution(functions, scale, core):
    volume = linear((9, 13, 10))
    run = run_of(Makes(*functions), volume, (6, 8, 8), output_scale=scale)
    list(run)
    assert run.plan.core_size == core
    assert_blended(run.results()[0], nearest_by_hand(volume, *scale))


@pytest.mark.parametrize("scale", [(1, 2, 2), (1, "1/2", "1/2")])
def test_a_halo_at_another_resolution(scale):
    volume = linear((5, 13, 10))
    network = Makes(nearest(*scale))
    found = result_of(network, volume, (4, 6, 6), halo=(1, 2, 4), output_scale=scale)
    assert network.inputs[0].shape[2:] == (6, 10, 14)
    assert_blended(found, nearest_by_hand(volume, *scale))


@pytest.mark.parametrize("mode", MODES)
def test_windows_have_the_resolution_of_the_output(mode):
    shape, patch_size = (3, 9, 10), (2, 4, 6)
    size, whole = (2, 8, 3), (3, 18, 5)
    network = Makes(nearest(1, 2, "1/2"), torch.zeros_like, add_ramp)
    run = run_of(
        network, linear(shape), patch_size, blending=mode, output_scale=(1, 2, "1/2")
    )  # fmt: skip
    reference = Reference(whole, size, mode)
    starts = run.plan.volumes[0].cores.positions * [2, 4, 1] // 2
    for start in starts:
        next(run)
        reference.add(tuple(start.tolist()), ramp_of(size).astype(float))
        assert_blended(np.asarray(run.live[0]), reference.blended)


@pytest.mark.parametrize(
    ("real", "given", "shown"),
    [
        ((1, 2, 2), (1, 1, 1), "(1, 2, 2)"),
        (("1/2", 1, "1/4"), (1, 1, 1), "('1/2', 1, '1/4')"),
        ((1, "3/2", "2/3"), (1, 1, 1), "(1, '3/2', '2/3')"),
        (("1/3", 1, "1/6"), (1, 1, 1), "('1/3', 1, '1/6')"),
        ((1, 1, 1), (1, 2, "1/2"), "(1, 1, 1)"),
        ((1, 2, 2), (1, 2, 3), "(1, 2, 2)"),
        ((1, 2, 2), (1, 3, 1), "(1, 2, 2)"),
    ],
)
def test_a_wrong_output_scale_is_refused_with_the_right_one(real, given, shown):
    said = refusal_of(Makes(nearest(*real)), linear((6, 18, 20)), (6, 12, 12), output_scale=given)
    assert said.endswith(f"does not explain: set output_scale={shown}")
    assert f"output_scale ({', '.join(map(str, given))}) does not explain" in said


@pytest.mark.parametrize("halo", [(0, 0, 0), (0, 4, 4)])
def test_another_resolution_is_not_taken_for_a_halo_that_is_cut_off(halo):
    """With a halo of 4, half of 16 voxels are as many as the patch has."""
    said = refusal_of(Makes(nearest(1, "1/2", "1/2")), linear((4, 20, 20)), (4, 8, 8), halo=halo)
    assert said.endswith("set output_scale=(1, '1/2', '1/2')")


def test_the_right_output_scale_is_named_where_the_network_crops_too():
    network = Makes(crop((0, 2, 2)), nearest(1, 2, 2))
    said = refusal_of(network, linear((6, 18, 20)), (6, 12, 12))
    assert said.endswith("set output_scale=(1, 2, 2)")


def test_a_network_of_one_size_at_another_resolution_is_refused_with_the_ratio():
    volume = linear((4, 9, 12))
    network = OneSize((4, 6, 6), nearest(1, 2, 2))
    assert refusal_of(network, volume, (4, 6, 6)).endswith("set output_scale=(1, 2, 2)")
    found = result_of(network, volume, (4, 6, 6), output_scale=(1, 2, 2))
    assert_blended(found, nearest_by_hand(volume, 1, 2, 2))


@pytest.mark.parametrize(
    "network",
    [
        nn.AdaptiveAvgPool3d((4, 7, 4)),
        nn.AdaptiveAvgPool3d((4, 12, 12)),
        nn.ConstantPad3d((0, 0, 0, 0, 0, 1), 0.0),
        nn.ConstantPad3d(2, 0.0),
    ],
)
@pytest.mark.parametrize("halo", [(0, 0, 0), (1, 1, 1)])
def test_an_output_size_that_no_scale_explains_is_one_clear_error(network, halo):
    patch_size = tuple(size - 2 * cut for size, cut in zip((6, 10, 10), halo, strict=True))
    with pytest.raises(ModelError) as caught:
        list(run_of(network, linear((9, 12, 12)), patch_size, halo=halo))
    assert "\n" not in str(caught.value)
    assert "voxels of (6, 10, 10) (Z, Y, X), which output_scale (1, 1, 1)" in str(caught.value)


# ------------------------------------------------------------------------------ 2-D networks

PLANES = {"z": 1, "y": 2, "x": 3}


def conv2d(channels: int = 1) -> nn.Module:
    """Random and without padding: no symmetry hides a plane that is taken the wrong way."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, (1, 3)))


def plane_by_plane(network: nn.Module, volume: np.ndarray, axis: int) -> np.ndarray:
    """What a network that crops (1, 2) voxels makes of every whole, reflected plane."""
    made = []
    for plane in np.moveaxis(volume, axis, 0):
        padded = np.pad(plane, [(0, 0), (1, 1), (2, 2)], mode="reflect")
        with torch.no_grad():
            made.append(network(torch.from_numpy(padded)[None])[0].numpy())
    return np.stack(made, axis)


@pytest.mark.parametrize("planes", ["auto", *PLANES])
@pytest.mark.parametrize("patch_size", [(6, 7, 8), (5, 10, 6)])
def test_a_2d_network_works_plane_by_plane(planes, patch_size):
    volume = positive_volume((1, 7, 9, 11))
    found = result_of(conv2d(), volume, patch_size, planes=planes, batch_size=2)
    expected = plane_by_plane(conv2d(), volume, PLANES.get(planes, 1))
    # Not 1e-6: a convolution adds up in another order where its input has another size.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_three_ways_through_the_volume_are_averaged():
    volume = positive_volume((2, 7, 9, 11))
    found = result_of(conv2d(2), volume, (6, 7, 8), planes="zyx")
    expected = np.mean([plane_by_plane(conv2d(2), volume, axis) for axis in (1, 2, 3)], axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_three_ways_are_averaged_whatever_flips_are_and_their_spread_shown():
    volume = positive_volume((1, 4, 6, 5))
    network = Makes(lambda v: v + torch.arange(v.shape[3]))  # a ramp along the last axis
    run = run_of(network, volume, (4, 6, 5), planes="zyx", tta_mode="max", spread=True)
    list(run)
    _, y, x = np.indices(volume.shape[1:])
    ways = volume + np.stack([x, x, y])[:, None]
    np.testing.assert_allclose(run.results()[0], ways.mean(0), rtol=1e-6)
    np.testing.assert_allclose(run.outputs()["spread"], ways.std(0, dtype=float), rtol=2e-6)


@pytest.mark.parametrize(
    ("planes", "shapes"),
    [
        ("z", [(8, 3, 5, 6)]),
        ("y", [(10, 3, 4, 6)]),
        ("x", [(12, 3, 4, 5)]),
        ("zyx", [(8, 3, 5, 6), (10, 3, 4, 6), (12, 3, 4, 5)]),
    ],
)
def test_the_planes_of_all_patches_are_one_batch_per_way(planes, shapes):
    network = Makes()
    volume = positive_volume((3, 4, 5, 12))
    assert_blended(
        result_of(network, volume, (4, 5, 6), overlap=0.0, planes=planes, batch_size=2), volume
    )
    assert [given.shape for given in network.inputs] == shapes


class Conv2dSame(nn.Conv2d):
    """As other libraries have them."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("parts", "ndim"),
    [
        ([nn.Conv2d(1, 1, 1)], 4),
        ([nn.ConvTranspose2d(1, 1, 1)], 4),
        ([Conv2dSame(1, 1, 1)], 4),
        ([nn.Conv3d(1, 1, 1)], 5),
        ([nn.Conv2d(1, 1, 1), nn.Conv3d(1, 1, 1)], 5),
        ([nn.ReLU()], 5),
    ],
)
@pytest.mark.parametrize("scripted", [False, True])
def test_a_network_of_2d_convolutions_is_known_by_itself(parts, ndim, scripted):
    seen, part = Makes(), nn.Sequential(*parts)
    scripted = scripted and Conv2dSame not in map(type, parts)
    seen.part = torch.jit.script(part) if scripted else part  # seen, not called
    assert_blended(result_of(seen, positive_volume((1, 3, 4, 5)), (3, 4, 5)),
                   positive_volume((1, 3, 4, 5)))  # fmt: skip
    assert [given.ndim for given in seen.inputs] == [ndim]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_scripted_2d_network_works_plane_by_plane():
    volume = positive_volume((1, 4, 9, 11))
    found = result_of(torch.jit.script(conv2d()), volume, (4, 7, 8), planes="auto")
    expected = plane_by_plane(conv2d(), volume, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("planes", "scale"), [("z", (1, 2, "1/2")), ("y", (2, 1, "1/2")), ("x", (2, "1/2", 1))]
)
def test_a_2d_network_at_another_resolution_in_its_plane(planes, scale):
    def in_plane(v):
        return v.repeat_interleave(2, dim=2)[..., ::2]

    volume = linear((5, 9, 8))
    found = result_of(Makes(in_plane), volume, (4, 6, 8), planes=planes, output_scale=scale)
    assert_blended(found, nearest_by_hand(volume, *scale))
    said = refusal_of(Makes(in_plane), volume, (4, 6, 8), planes=planes)
    shown = ", ".join(repr(each) for each in scale)
    assert said.endswith(f"set output_scale=({shown})")


@pytest.mark.parametrize(
    ("planes", "scale"), [("z", (2, 1, 1)), ("y", (1, "1/2", 1)), ("zyx", (1, 2, 2))]
)
def test_a_2d_network_cannot_have_another_resolution_across_its_planes(planes, scale):
    with pytest.raises(ConfigError, match=r"output_scale .* is not 1 along the axis") as caught:
        run_of(Makes(), linear((4, 6, 8)), (4, 6, 8), planes=planes, output_scale=scale)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("network", [nn.Conv2d(1, 1, 3), nn.Sequential(nn.Conv2d(1, 1, 3))])
def test_a_2d_network_taken_for_3d_is_refused_with_the_remedy(network):
    said = refusal_of(network, linear((4, 6, 8)), (4, 6, 8), planes="none")
    assert "and planes (z if it is 2-D)" in said


def test_a_2d_network_that_changes_its_batch_is_refused_with_its_axes():
    said = refusal_of(Makes(lambda v: v[:1]), linear((4, 6, 8)), (4, 6, 8), planes="y")
    assert "made (1, 1, 4, 8) of (6, 1, 4, 8) (B, C, Y, X), a plane each" in said


# ------------------------------------------------------------------------------ heads


def two_heads(v):
    return {"affinity": torch.cat([v, 2 * v], 1), "mask": -v}


@pytest.mark.parametrize(
    ("head", "main", "others"),
    [
        (None, [1, 2], {"heads/mask": [-1]}),
        ("affinity", [1, 2], {"heads/mask": [-1]}),
        ("mask", [-1], {"heads/affinity": [1, 2]}),
    ],
)
def test_all_heads_are_blended_in_one_pass_and_one_is_shown(head, main, others):
    volume = positive_volume((1, 6, 9, 8))
    network = Makes(two_heads)
    run = run_of(network, volume, (4, 6, 6), head=head, batch_size=4)
    expected = {
        name: np.float32(gains)[:, None, None, None] * volume
        for name, gains in {"main": main, **others}.items()
    }
    for _ in run:
        covered = np.asarray(run.coverage[0]) > 0
        live = np.asarray(run.live[0])
        assert_blended(live, np.where(covered, expected["main"], np.nan))
        for name, array in run.outputs().items():
            assert_blended(np.asarray(array), np.where(covered, expected[name], np.nan))
    assert list(run.outputs()) == list(expected)
    assert run.metadata()["heads"] == ["affinity", "mask"]
    assert len(network.inputs) == -(-run.total // 4)


@pytest.mark.parametrize("kind", [tuple, list])
def test_heads_without_names_are_numbered(kind):
    volume = positive_volume((1, 4, 5, 6))
    run = run_of(Makes(lambda v: kind([v, 2 * v, 3 * v])), volume, (4, 5, 6), head="1")
    list(run)
    outputs = run.outputs()
    assert list(outputs) == ["main", "heads/0", "heads/2"]
    for name, gain in {"main": 2, "heads/0": 1, "heads/2": 3}.items():
        assert_blended(outputs[name], gain * volume)


def test_a_name_with_a_slash_makes_no_folder():
    run = run_of(Makes(lambda v: {"a": v, "b/c": v}), positive_volume((1, 2, 3, 4)), (2, 3, 4))
    list(run)
    assert list(run.outputs()) == ["main", "heads/b_c"]


def test_a_head_that_is_not_there_is_refused_with_those_that_are():
    said = refusal_of(Makes(two_heads), positive_volume((1, 4, 5, 6)), (4, 5, 6), head="masks")
    assert said == "head 'masks' does not exist; the network returns 'affinity', 'mask'"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
@pytest.mark.parametrize("margin", [(0, 0, 0), (0, 2, 2)])
def test_coarser_outputs_of_deep_supervision_are_left_out(order, margin):
    def supervised(v):
        scales = ((1, 1, 1), (1, "1/2", "1/2"), (1, "1/4", "1/4"))
        outputs = [(index + 1) * nearest(*scale)(v) for index, scale in enumerate(scales)]
        return [outputs[index] for index in order]

    volume = positive_volume((1, 4, 20, 18))
    run = run_of(Makes(crop(margin), supervised), volume, (4, 12, 12))
    list(run)
    assert list(run.outputs()) == ["main"]
    assert run.metadata()["heads"] == [str(order.index(0))]
    assert_blended(run.results()[0], volume)


def test_a_coarser_head_that_is_asked_for_is_shown_at_its_resolution():
    def supervised(v):
        return v, nearest(1, "1/2", "1/2")(v)

    volume = linear((4, 13, 10))
    said = refusal_of(Makes(supervised), volume, (4, 8, 8), head="1")
    assert said.endswith("set output_scale=(1, '1/2', '1/2')")
    scale = (1, "1/2", "1/2")
    found = result_of(Makes(supervised), volume, (4, 8, 8), head="1", output_scale=scale)
    assert_blended(found, nearest_by_hand(volume, *scale))


def test_activation_ranges_count_the_channels_of_all_heads():
    volume = positive_volume((1, 4, 9, 6)) - 1
    run = run_of(
        Makes(two_heads), volume, (4, 6, 6), head="mask", activation="0:1=tanh,2:3=sigmoid"
    )  # fmt: skip
    list(run)
    exact = volume.astype(float)
    np.testing.assert_allclose(run.results()[0], 1 / (1 + np.exp(exact)), rtol=1e-6)
    affinity = np.concatenate([np.tanh(exact), 2 * exact])
    np.testing.assert_allclose(run.outputs()["heads/affinity"], affinity, rtol=1e-6)


def test_a_softmax_is_over_the_channels_of_one_head():
    volume = positive_volume((1, 4, 9, 6))
    run = run_of(Makes(two_heads), volume, (4, 6, 6), activation="softmax")
    list(run)
    exact = np.exp(volume.astype(float))
    expected = np.concatenate([1 / (1 + exact), exact / (1 + exact)])
    np.testing.assert_allclose(run.results()[0], expected, rtol=1e-6)
    assert_blended(run.outputs()["heads/mask"], np.ones_like(volume))


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (lambda v: (v, [v]), "returned list where a tensor is needed"),
        (lambda v: {"a": v, "b": 3}, "returned int where a tensor is needed"),
        (lambda v: {"a": v, "b": v.mean((2, 3, 4))}, "(1, 1) of (1, 1, 4, 5, 6)"),
        (lambda v: {}, "returned nothing where a tensor is needed"),
    ],
)
def test_heads_that_are_no_volumes_are_refused_in_one_line(output, said):
    assert said in refusal_of(Makes(output), positive_volume((1, 4, 5, 6)), (4, 5, 6))


@pytest.mark.parametrize(
    ("output", "head"),
    [
        (lambda v: (2 * v, None), None),
        (lambda v: (2 * v, None), "0"),
        (lambda v: (v.mean((2, 3, 4)), 2 * v, 3.5), "1"),
        (lambda v: {"loss": 1.0, "latent": v.flatten(1), "mask": 2 * v}, "mask"),
    ],
)
def test_what_is_no_volume_may_stand_beside_the_head_that_counts(output, head):
    volume = positive_volume((1, 4, 9, 6))
    run = run_of(Makes(output), volume, (4, 5, 6), head=head)
    list(run)
    assert_blended(run.results()[0], 2 * volume)
    assert list(run.outputs()) == ["main"]


def test_several_channels_in_and_others_out():
    volume = positive_volume((3, 5, 9, 8))
    gains = np.float32([[1, 2, 0], [0, 1, 3]])

    def mixed(v):
        return torch.einsum("oc,bczyx->bozyx", torch.from_numpy(gains), v)

    found = result_of(Makes(mixed), volume, (4, 6, 6))
    np.testing.assert_allclose(found, np.einsum("oc,czyx->ozyx", gains.astype(float), volume),
                               rtol=1e-6)  # fmt: skip


def test_a_measured_resolution_counts_even_where_another_axis_takes_no_longer_input():
    def halved_along_x(v):
        if v.shape[3] != 16:
            raise RuntimeError("one size along Y")
        return nn.functional.avg_pool3d(v[:, :, :, 4:-4], (1, 1, 2))

    said = refusal_of(Makes(halved_along_x), linear((8, 32, 32)), (4, 8, 8), halo=(0, 4, 4))
    assert "output_scale (1, 1, 1) does not explain" in said


def test_heads_that_would_have_one_name_in_a_file_are_refused():
    said = refusal_of(Makes(lambda v: {"a/b": v, "a_b": v}), linear((4, 5, 6)), (4, 5, 6))
    assert "'a/b', 'a_b' would have one name" in said


def test_views_taken_before_the_first_batch_stay_true_when_the_network_crops():
    run = run_of(Makes(crop((0, 2, 3))), linear((4, 12, 14)), (4, 8, 10))
    weights, coverage = run.weights[0], run.coverage[0]
    assert np.asarray(coverage).max() == 0
    list(run)
    np.testing.assert_array_equal(coverage, run.coverage[0])
    np.testing.assert_array_equal(weights, run.weights[0])
    assert np.asarray(coverage).min() >= 1


def test_a_view_asked_for_during_the_first_batch_waits_for_the_layout(monkeypatch):
    taken, threads = [], []

    def slow_crop(v):
        if not threads:
            threads.append(threading.Thread(target=lambda: taken.append(run.live[0])))
            threads[0].start()
            threads[0].join(0.2)  # it must not have what it asks for yet
            assert not taken
        return v[:, :, :, 2:-2, 2:-2]

    run = run_of(Makes(slow_crop), linear((4, 12, 14)), (4, 8, 10), tta="flip:x")
    list(run)
    threads[0].join(PATIENCE)
    np.testing.assert_array_equal(taken[0], run.live[0])
    assert not np.isnan(np.asarray(taken[0])).any()
