"""Transforms against numpy written out; directions against networks whose right answer is known.

The networks are plain functions of the patch they get, so they make of a turned patch what a
perfect network would. Undone, that must be what they make of the patch itself.
"""

import subprocess
import sys
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import properties
from napari_seamless.engine import tta
from napari_seamless.engine.channels import parse_ranges
from napari_seamless.engine.errors import ConfigError
from napari_seamless.engine.tta import IDENTITY, Directions, Transform, transforms_of, undone
from napari_seamless.engine.variants import COMBINATIONS, combined, spread

GROUPS = {
    "none": 1,
    "flip": 8,
    "flip:zyx": 8,
    "flip:zy": 4,
    "flip:zx": 4,
    "flip:yx": 4,
    "flip:z": 2,
    "flip:y": 2,
    "flip:x": 2,
    "turn": 4,
    "turn:yx": 4,
    "turn:zy": 4,
    "turn:zx": 4,
    "flip+turn": 16,
    "flip:zyx+turn:yx": 16,
    "flip:zyx+turn:zy": 16,
    "flip:zyx+turn:zx": 16,
    "flip:yx+turn:yx": 8,
    "flip:x+turn:yx": 8,
    "flip:z+turn:yx": 8,
    "flip:zx+turn:yx": 16,
}
ALL = tuple(
    Transform(axes, signs)
    for axes in permutations(range(3))
    for signs in product((1, -1), repeat=3)
)
"""All 48: those that texts name, and those that only turns in two planes would reach."""
IN_PLANE = transforms_of("flip:zyx+turn:yx")
PATCH = torch.arange(2 * 3 * 4 * 5 * 6, dtype=torch.float32).reshape(2, 3, 4, 5, 6)


def refused(function, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------ groups


@pytest.mark.parametrize(("text", "count"), GROUPS.items())
def test_each_text_names_a_group_that_begins_with_the_identity(text, count):
    transforms = transforms_of(text)
    assert transforms[0] == IDENTITY
    assert set(transforms) <= set(ALL)
    assert len(transforms) == len(set(transforms)) == count
    assert {one.after(other) for one, other in product(transforms, transforms)} == set(transforms)


def test_short_texts_and_the_order_of_letters_and_parts_change_nothing():
    assert transforms_of("flip") == transforms_of("flip:zyx") == transforms_of("flip:xyz")
    assert transforms_of("turn") == transforms_of("turn:yx") == transforms_of("turn:xy")
    assert transforms_of("flip+turn") == transforms_of("flip:zyx+turn:yx")
    assert set(transforms_of("turn+flip")) == set(transforms_of("flip+turn"))


@pytest.mark.parametrize(
    "text",
    [
        *["", "flips", "Flip", "flip:", "flip:xx", "flip:w", "flip:zyxz", "flip:y,x", "flip:yx:"],
        *["turn:", "turn:z", "turn:zyx", "turn:yy", "turn:yw", "turn:zy+turn:yx", ":yx", "mean"],
        *["flip:x+flip:y", "flip+", "+turn", "flip turn", "none+flip", "none:x", "flip\nturn"],
    ],
)
def test_other_texts_are_named_in_one_line_with_what_is_allowed(text):
    message = refused(transforms_of, text)
    assert message.startswith(f"tta {text!r} is not usable: ")
    assert "none, flip:AXES, turn:PLANE or flip:AXES+turn:PLANE" in message
    assert "'flip:zyx+turn:yx'" in message


def test_reading_a_text_loads_no_torch():
    code = (
        "import sys; from napari_seamless.engine import tta; tta.transforms_of('flip+turn'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ------------------------------------------------------------------------------ tensors


@pytest.mark.parametrize("transform", ALL)
def test_undo_and_apply_are_exact_inverses(transform):
    assert torch.equal(transform.undo(transform.apply(PATCH)), PATCH)
    assert torch.equal(transform.apply(transform.undo(PATCH)), PATCH)
    assert torch.equal(transform.undo(transform.apply(PATCH[0, 0])), PATCH[0, 0])


@pytest.mark.parametrize("transform", ALL)
def test_networks_get_contiguous_patches(transform):
    assert transform.apply(PATCH).is_contiguous()


@pytest.mark.parametrize("axes", ["z", "y", "x", "zy", "zx", "yx", "zyx"])
def test_flips_are_numpys(axes):
    numbers = [2 + "zyx".index(axis) for axis in axes]
    subsets = [[a for a, on in zip(numbers, bits, strict=True) if on]
               for bits in product((0, 1), repeat=len(numbers))]  # fmt: skip
    expected = {np.flip(PATCH.numpy(), subset).tobytes() for subset in subsets}
    found = {t.apply(PATCH).numpy().tobytes() for t in transforms_of(f"flip:{axes}")}
    assert found == expected
    assert len(expected) == 2 ** len(axes)


@pytest.mark.parametrize(("plane", "axes"), [("zy", (2, 3)), ("zx", (2, 4)), ("yx", (3, 4))])
def test_turns_are_numpys_rot90(plane, axes):
    for k, transform in enumerate(transforms_of(f"turn:{plane}")):
        np.testing.assert_array_equal(transform.apply(PATCH), np.rot90(PATCH.numpy(), k, axes))


@pytest.mark.parametrize("plane", [(2, 3), (2, 4), (3, 4)])
def test_flips_with_turns_are_all_that_numpy_reaches_with_both(plane):
    letters = "".join("zyx"[axis - 2] for axis in plane)
    flips = [[a for a, on in zip((2, 3, 4), bits, strict=True) if on]
             for bits in product((0, 1), repeat=3)]  # fmt: skip
    cube = PATCH[..., :4, :4].numpy()  # turned, still of the same shape
    expected = {
        np.flip(np.rot90(cube, k, plane), flip).tobytes() for k in range(4) for flip in flips
    }
    found = {
        t.apply(torch.from_numpy(cube)).numpy().tobytes()
        for t in transforms_of(f"flip:zyx+turn:{letters}")
    }
    assert found == expected
    assert len(found) == 16


@pytest.mark.parametrize("one", ALL)
def test_after_is_one_after_the_other(one):
    for other in ALL:
        assert torch.equal(one.after(other).apply(PATCH), one.apply(other.apply(PATCH)))


@pytest.mark.parametrize("transform", ALL)
def test_a_direction_turns_as_the_voxels_do(transform):
    start, step = np.array([1, 2, 2]), np.array([1, -2, 2])
    marked = torch.zeros(4, 5, 6)
    marked[tuple(start)], marked[tuple(start + step)] = 1, 2
    moved = transform.apply(marked).numpy()
    found = np.argwhere(moved == 2)[0] - np.argwhere(moved == 1)[0]
    assert transform.turned((1, -2, 2)) == tuple(found)


# ------------------------------------------------------------------------------ affinities

GARBAGE = 0.5
"""What a network makes of a pair whose other voxel it does not see."""


def affinities(labels: torch.Tensor, offsets) -> torch.Tensor:
    """Channel c at v: 1 if v and v + offsets[c] have the same label, 0 if not; voxel by voxel."""
    batch, _, *shape = labels.shape
    values, result = labels.numpy(), np.full((batch, len(offsets), *shape), GARBAGE, np.float32)
    for channel, offset in enumerate(offsets):
        for voxel in product(*map(range, shape)):
            other = tuple(np.add(voxel, offset))
            if all(0 <= i < n for i, n in zip(other, shape, strict=True)):
                same = values[:, 0, *voxel] == values[:, 0, *other]
                result[:, channel, *voxel] = same
    return torch.from_numpy(result)


def labels_of(shape, seed: int = 0) -> torch.Tensor:
    """A batch of two label volumes (2, 1, Z, Y, X), without any symmetry."""
    values = np.random.default_rng(seed).integers(0, 3, (2, 1, *shape))
    return torch.from_numpy(values.astype(np.float32))


def assert_right_affinities(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Every pair inside the patch has its value; of the others there is nothing to be known."""
    known = expected != GARBAGE
    assert torch.equal(found[known], expected[known])
    assert (found[~known].isnan() | (found[~known] == GARBAGE)).all()


AFFINITIES = {
    "neighbours": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "backward neighbours": ((-1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "mixed signs": ((1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "x first": ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
    "both ways": ((0, 1, 0), (0, -1, 0), (0, 0, -1), (0, 0, 1)),
    "long range": ((1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 0, 0), (0, 3, 0), (0, 0, 3)),
    "diagonals": ((0, 1, 1), (0, 1, -1)),
    "diagonals in space": ((1, 1, 2), (1, -1, 2), (1, 2, 1), (1, 2, -1),
                           (-1, 1, 2), (1, 1, -2), (1, -2, 1), (1, -2, -1)),
    "twice the same": ((0, 0, 1), (0, 1, 0), (0, 0, 1), (0, 1, 0)),
    "itself": ((0, 0, 0), (0, 0, 1), (0, 1, 0)),
    "further than the patch": ((0, 0, 9), (0, -9, 0)),
}  # fmt: skip


@pytest.mark.parametrize("transform", IN_PLANE)
@pytest.mark.parametrize("offsets", AFFINITIES.values(), ids=AFFINITIES)
def test_affinities_of_a_turned_patch_are_those_of_the_patch(offsets, transform):
    labels = labels_of((4, 5, 6))
    found = undone(
        affinities(transform.apply(labels), offsets), transform, Directions(offsets=offsets)
    )
    assert_right_affinities(found, affinities(labels, offsets))


@pytest.mark.parametrize("plane", ["zy", "zx"])
def test_affinities_are_right_under_turns_in_every_plane(plane):
    offsets, labels = AFFINITIES["neighbours"], labels_of((4, 5, 6))
    for transform in transforms_of(f"flip+turn:{plane}"):
        prediction = affinities(transform.apply(labels), offsets)
        found = undone(prediction, transform, Directions(offsets=offsets))
        assert_right_affinities(found, affinities(labels, offsets))


@properties(40)
@given(
    offset=st.tuples(*[st.integers(-3, 3)] * 3),
    transform=st.sampled_from(IN_PLANE),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    seed=st.integers(0, 99),
)
def test_affinities_of_any_offset_are_right(offset, transform, shape, seed):
    reached = {t.turned(offset) for t in IN_PLANE}
    one_of_each_pair = tuple(o for o in sorted(reached) if o >= tuple(-step for step in o))
    labels = labels_of(shape, seed)
    prediction = affinities(transform.apply(labels), one_of_each_pair)
    found = undone(prediction, transform, Directions(offsets=one_of_each_pair))
    assert_right_affinities(found, affinities(labels, one_of_each_pair))


def undone_in_space_only(prediction, transform, directions):
    return transform.undo(prediction)


def undone_without_shift(prediction, transform, directions):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tta, "_shifted", lambda values, shift: values)
        return undone(prediction, transform, directions)


@pytest.mark.parametrize("naive", [undone_in_space_only, undone_without_shift])
@pytest.mark.parametrize("offsets", [AFFINITIES["neighbours"], AFFINITIES["diagonals"]])
def test_naive_undoing_does_not_pass_for_right(naive, offsets):
    labels, wrong = labels_of((4, 5, 6)), []
    for transform in IN_PLANE:
        turned = [transform.turned(offset) for offset in offsets]
        harmless = turned == list(offsets)
        if naive is undone_without_shift:
            harmless = set(turned) <= set(offsets)
        prediction = affinities(transform.apply(labels), offsets)
        found = naive(prediction, transform, Directions(offsets=offsets))
        if harmless:
            assert_right_affinities(found, affinities(labels, offsets))
        else:
            wrong.append(transform)
            with pytest.raises(AssertionError):
                assert_right_affinities(found, affinities(labels, offsets))
    assert len(wrong) >= 12


def test_a_flipped_pair_is_missing_just_where_it_leaves_the_patch():
    found = undone(
        torch.ones(1, 3, 4, 5, 6),
        Transform(signs=(1, 1, -1)),
        Directions(offsets=((0, 2, 0), (0, 0, 2), None)),
    )
    missing = torch.zeros(1, 3, 4, 5, 6, dtype=torch.bool)
    missing[:, 1, :, :, -2:] = True
    assert torch.equal(found.isnan(), missing)


def test_an_offset_both_ways_is_never_missing():
    directions = Directions(offsets=AFFINITIES["both ways"])
    for transform in IN_PLANE:
        assert not undone(torch.ones(1, 4, 4, 5, 6), transform, directions).isnan().any()


def test_two_heads_with_the_same_offsets_stay_apart():
    offsets = AFFINITIES["twice the same"]
    heads = torch.tensor([1.0, 1, 2, 2]).reshape(1, 4, 1, 1, 1).expand(1, 4, 4, 5, 5)
    for transform in IN_PLANE:
        found = undone(heads, transform, Directions(offsets=offsets))
        assert torch.equal(found[~found.isnan()], heads[~found.isnan()])


@pytest.mark.parametrize("transform", IN_PLANE)
def test_the_prediction_itself_is_left_alone(transform):
    prediction = torch.rand(1, 4, 4, 5, 6)
    before = prediction.clone()
    undone(prediction, transform, Directions(AFFINITIES["both ways"]))
    assert torch.equal(prediction, before)


# ------------------------------------------------------------------------------ vectors


def gradient(volume: torch.Tensor) -> torch.Tensor:
    """Central differences along Z, Y and X; one-sided on the faces."""
    return torch.cat(torch.gradient(volume, dim=(2, 3, 4)), dim=1)


def towards_brightest(volume: torch.Tensor) -> torch.Tensor:
    """At each voxel the unit vector to the brightest one, as of a distance transform."""
    shape = volume.shape[2:]
    places = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
    fields = []
    for image in volume[:, 0]:
        seed = torch.tensor(np.unravel_index(int(image.argmax()), shape)).reshape(3, 1, 1, 1)
        field = (seed - places).float()
        squared = field[0] ** 2 + field[1] ** 2 + field[2] ** 2
        fields.append(field / squared.clamp(min=1).sqrt())
    return torch.stack(fields)


@pytest.mark.parametrize("network", [gradient, towards_brightest])
@pytest.mark.parametrize("transform", ALL)
def test_vectors_of_a_turned_patch_are_those_of_the_patch(network, transform):
    volume = torch.rand(2, 1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    directions = Directions(vectors=((0, 1, 2),))
    found = undone(network(transform.apply(volume)), transform, directions)
    # Equal but for the order in which squares are added.
    torch.testing.assert_close(found, network(volume), rtol=2e-7, atol=0)
    if transform != IDENTITY:
        assert not torch.allclose(transform.undo(network(transform.apply(volume))), found)


@pytest.mark.parametrize("transform", IN_PLANE)
def test_a_field_of_two_components_in_another_order_is_right_in_its_plane(transform):
    def network(volume):
        return gradient(volume)[:, [2, 1]]  # x, then y

    volume = torch.rand(1, 1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    directions = Directions(vectors=((None, 1, 0),))
    found = undone(network(transform.apply(volume)), transform, directions)
    assert torch.equal(found, network(volume))


@pytest.mark.parametrize("transform", IN_PLANE)
def test_affinities_vectors_and_plain_channels_in_one_prediction(transform):
    offsets = AFFINITIES["neighbours"]

    def network(volume):
        return torch.cat([volume, affinities(volume, offsets), gradient(volume), -volume], 1)

    volume = labels_of((4, 5, 6))
    directions = Directions((None, *offsets, None, None, None, None), ((4, 5, 6),))
    found = undone(network(transform.apply(volume)), transform, directions)
    expected = network(volume)
    assert torch.equal(found[:, [0, 4, 5, 6, 7]], expected[:, [0, 4, 5, 6, 7]])
    assert_right_affinities(found[:, 1:4], expected[:, 1:4])


@pytest.mark.parametrize("transform", ALL)
def test_without_directions_only_places_are_undone(transform):
    found = undone(transform.apply(PATCH), transform, Directions())
    assert torch.equal(found, PATCH)


# ------------------------------------------------------------------------------ what is refused


def test_directions_that_the_transforms_keep_are_fine():
    Directions(AFFINITIES["neighbours"]).check_transforms(ALL)
    Directions(vectors=((0, 1, 2), (3, 4, 5))).check_transforms(ALL)
    Directions(vectors=((None, 0, 1),)).check_transforms(IN_PLANE)
    Directions(((0, 1, 1),)).check_transforms(transforms_of("flip:z"))
    Directions(((0, 3, 0),)).check_transforms(transforms_of("flip"))
    Directions().check_transforms(ALL)


@pytest.mark.parametrize(
    ("offsets", "text", "named"),
    [
        (((0, 1, 0),), "turn", "(0, 1, 0) of channel 0 into (0, 0, 1)"),
        ((None, (0, 1, 1)), "flip:x", "(0, 1, 1) of channel 1 into (0, 1, -1)"),
        (((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 3)), "flip+turn", "(0, 0, 3) of channel 3"),
        (((0, 0, 1), (0, 1, 0), (0, 1, 0)), "turn", "(0, 1, 0) of channel 2 into (0, 0, 1)"),
    ],
)
def test_an_offset_that_no_channel_has_is_named_in_one_line(offsets, text, named):
    directions = Directions(offsets)
    message = refused(directions.check_transforms, transforms_of(text))
    assert named in message
    assert "leave these flips or turns out of tta" in message
    for transform in transforms_of(text)[-1:]:  # never a wrong number, even when not checked
        refused(undone, torch.ones(1, len(offsets), 4, 5, 6), transform, directions)


def test_a_component_that_a_vector_does_not_have_is_named_in_one_line():
    directions = Directions(vectors=((None, 0, 1),))
    message = refused(directions.check_transforms, transforms_of("turn:zy"))
    assert "y component of the vector (None, 0, 1) into its z component" in message
    assert "turn only in the plane of two components" in message


def test_channels_that_fit_are_fine():
    Directions().check_channels(1)
    Directions(AFFINITIES["neighbours"]).check_channels(3)
    Directions(vectors=((None, 0, 3),)).check_channels(4)
    Directions(((0, 0, 1), None, None), ((None, 1, 2),)).check_channels(3)


@pytest.mark.parametrize("channels", [2, 4])
def test_as_many_offsets_as_channels_are_needed(channels):
    message = refused(Directions(AFFINITIES["neighbours"]).check_channels, channels)
    assert message.startswith("offsets that do not match the channels: 3 offsets for ")
    assert f"for {channels} channels" in message
    assert "give one (Z, Y, X) per channel" in message


def test_a_vector_channel_that_is_not_there_is_named():
    message = refused(Directions(vectors=((None, 0, 3),)).check_channels, 3)
    assert "vector (None, 0, 3)" in message
    assert "there is no channel 3; name channels from 0 to 2" in message


@pytest.mark.parametrize(
    ("offsets", "vectors", "named"),
    [
        ((), ((0, 1, 1),), "vector (0, 1, 1) is not usable: channel 1"),
        ((), ((0, 1, 2), (2, 3, 4)), "vector (2, 3, 4) is not usable: channel 2"),
        ((None, (0, 0, 1)), ((None, 0, 1),), "vector (None, 0, 1) is not usable: channel 1"),
        ((), ((None, 0, -1),), "vector (None, 0, -1) is not usable: channel -1"),
    ],
)
def test_a_channel_has_one_direction_only(offsets, vectors, named):
    message = refused(Directions, offsets, vectors)
    assert named in message
    assert "a channel of its own" in message


# ------------------------------------------------------------------------------ combining


def modes_of(text: str):
    return parse_ranges(text, COMBINATIONS, "mean", "tta_mode")


def variants_of(count: int, holes: bool, channels: int = 4) -> np.ndarray:
    """Float32 (V, 2, C, 3, 4, 5); with holes NaN in places, but never in the first variant."""
    random = np.random.default_rng(count)
    values = random.normal(0, 3, (count, 2, channels, 3, 4, 5)).astype(np.float32)
    if holes:
        values[1:][random.random(values[1:].shape) < 0.4] = np.nan
    return values


NUMPYS = {"mean": np.nanmean, "min": np.nanmin, "max": np.nanmax, "median": np.nanmedian}


@pytest.mark.parametrize("mode", COMBINATIONS)
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 16])
def test_combinations_are_numpys(mode, holes, count):
    values = variants_of(count, holes)
    found = combined(torch.from_numpy(values), modes_of(mode))
    assert found.dtype == torch.float32
    expected = NUMPYS[mode](values.astype(np.float64), axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=0)


def test_each_range_of_channels_has_its_own_combination():
    values = variants_of(16, holes=True, channels=6)
    found = combined(torch.from_numpy(values), modes_of("1:3=max,3:4=median,5:6=min"))
    wide = values.astype(np.float64)
    for channel, mode in enumerate(["mean", "max", "max", "median", "mean", "min"]):
        expected = NUMPYS[mode](wide[:, :, channel], axis=0)
        np.testing.assert_allclose(found[:, channel], expected, rtol=1e-7, atol=0)


def test_a_range_past_the_last_channel_is_refused():
    values = torch.from_numpy(variants_of(2, holes=False))
    assert "tta_mode '3:5=max'" in refused(combined, values, modes_of("3:5=max"))


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
def test_the_spread_is_numpys(holes, count):
    values = variants_of(count, holes)
    found = spread(torch.from_numpy(values))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(
        found, np.nanstd(values.astype(np.float64), axis=0), rtol=1e-7, atol=0
    )


@pytest.mark.parametrize("count", [*range(1, 9), 16])
def test_variants_that_agree_give_their_value_bit_by_bit_and_no_spread(count):
    value = torch.from_numpy(variants_of(1, holes=False)[0] * np.float32(1e3))
    variants = value.expand(count, *value.shape)
    for mode in COMBINATIONS:
        assert torch.equal(combined(variants, modes_of(mode)), value)
    assert torch.equal(spread(variants), torch.zeros_like(value))


def test_a_small_spread_around_a_large_value_is_exact():
    values = torch.tensor([4096.0, 4096.5]).reshape(2, 1, 1, 1, 1, 1)
    assert spread(values).item() == 0.25


@pytest.mark.parametrize("mode", COMBINATIONS)
def test_affinities_of_all_turns_together_are_right_up_to_the_faces(mode):
    offsets, labels = AFFINITIES["neighbours"], labels_of((4, 5, 6))
    variants = torch.stack([
        undone(affinities(t.apply(labels), offsets), t, Directions(offsets)) for t in IN_PLANE
    ])  # fmt: skip
    assert_right_affinities(combined(variants, modes_of(mode)), affinities(labels, offsets))
    known = affinities(labels, offsets) != GARBAGE
    assert (spread(variants)[known] == 0).all()
