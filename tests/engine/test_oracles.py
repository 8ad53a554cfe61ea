"""The numbers of a run against other people's code, and against doing it all in one pass."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from engine.helpers import (
    MODES,
    OVERLAPS,
    RELATIVE,
    Constant,
    Identity,
    Ramps,
    Recorded,
    as_they_run,
    config_of,
    events_refocused,
    positions_by_rule,
    positive_volume,
)
from napari_seamless.engine.matrices import build_blending_matrix
from napari_seamless.engine.run import Run
from napari_seamless.engine.source import ArraySource


def predicted(volume: np.ndarray, network: nn.Module, patch_size, **settings) -> np.ndarray:
    """The finished prediction (C, Z, Y, X)."""
    run = Run([ArraySource(volume)], network, config_of(patch_size, **settings))
    for _ in run:
        pass
    return run.results()[0]


# ---------------------------------------------------------------------------------------- MONAI

MONAI_CASES = 72
AS_MONAI_SAYS = {"reflect": "reflect", "edge": "replicate", "constant": "constant"}
PADDINGS = list(AS_MONAI_SAYS)


class Everywhere(nn.Module):
    """Mixes channels and neighbours, then weights each voxel of the patch at random.

    So every weight of every patch matters, in each of its voxels. Works in float64, and returns
    the type that it was given; takes (B, C, Z, Y, X) and (B, C, Y, X).
    """

    def __init__(self, patch_size, channels_in: int, channels_out: int, random) -> None:
        super().__init__()
        field = random.uniform(-1, 1, (2, channels_out, *patch_size))
        self.gain, self.shift = torch.from_numpy(field)
        self.mixed = torch.from_numpy(random.uniform(-1, 1, (channels_out, channels_in)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = x.double()
        values = values + 0.5 * values.roll(1, dims=-1) - 0.3 * values.roll(1, dims=-2)
        values = torch.tanh(torch.einsum("oc,bc...->bo...", self.mixed, values))
        return (self.gain * values + self.shift).to(x.dtype)


@dataclasses.dataclass(frozen=True)
class MonaiCase:
    """Settings of one comparison, drawn from a seed; every third case is 2-D."""

    seed: int

    def __post_init__(self) -> None:
        random = np.random.default_rng([2024, self.seed])
        is_2d = self.seed % 3 == 0
        longest = 12 if is_2d else 7
        axes = 2 if is_2d else 3
        patch = [int(random.integers(2, longest + 1)) for _ in range(axes)]
        padding = PADDINGS[self.seed // 3 % 3]
        overlap = float(random.choice([0, 0.1, 0.25, 0.3, 0.5, 0.75]))
        # torch reflects only what is longer than the padding; longer than half the patch is enough
        shape = [
            int(
                random.integers(
                    size // 2 + 1 if padding == "reflect" else 1,
                    size + 4 * max(1, int(size * (1 - overlap))),
                )
            )
            for size in patch
        ]
        if self.seed % 4 == 0:  # an axis shorter than the patch for certain
            axis = int(random.integers(axes))
            patch[axis] = max(patch[axis], 4)
            shape[axis] = patch[axis] - 1
        values = {
            "is_2d": is_2d,
            "padding": padding,
            "patch": tuple(patch),
            "shape": tuple(shape),
            "overlap": overlap,
            "blending": ["monai_gaussian", "constant"][self.seed // 2 % 2],
            "channels": tuple(int(count) for count in random.integers(1, 4, 2)),
            "batch_size": int(random.integers(1, 6)),
            "by_planes": is_2d and bool(random.integers(2)),
            "random": random,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)


@pytest.mark.parametrize("seed", range(MONAI_CASES))
def test_windows_of_monai_give_what_monai_gives(seed):
    """MONAI is given float64: it sums in the type of its input, and ours sums in float64."""
    inferers = pytest.importorskip("monai.inferers")
    case = MonaiCase(seed)
    volume = case.random.uniform(-2, 2, (case.channels[0], *case.shape)).astype(np.float32)
    network = Everywhere(case.patch, *case.channels, case.random)
    expected = inferers.sliding_window_inference(
        torch.from_numpy(volume).double()[None],
        case.patch,
        case.batch_size,
        network,
        overlap=case.overlap,
        mode={"monai_gaussian": "gaussian"}.get(case.blending, case.blending),
        padding_mode=AS_MONAI_SAYS[case.padding],
    )[0].numpy()
    if case.is_2d:
        volume, expected = volume[:, None], expected[:, None]
        if not case.by_planes:  # a 3-D network sees the same plane with an axis of one voxel
            network.gain, network.shift = network.gain[:, None], network.shift[:, None]
    found = predicted(
        volume,
        network,
        (1, *case.patch) if case.is_2d else case.patch,
        overlap=case.overlap,
        blending=case.blending,
        padding=case.padding,
        batch_size=case.batch_size % 3 + 1,
        planes="z" if case.by_planes else "none",
    )
    assert found.shape == expected.shape
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_the_cases_against_monai_reach_what_matters():
    cases = [MonaiCase(seed) for seed in range(MONAI_CASES)]
    short = [any(map(int.__lt__, case.shape, case.patch)) for case in cases]
    assert len(cases) >= 60
    assert sum(case.is_2d for case in cases) >= 20
    assert sum(case.by_planes for case in cases) >= 5
    assert sum(short) >= 20
    for is_2d, blending, padding in itertools.product(
        (False, True), ("monai_gaussian", "constant"), PADDINGS
    ):
        assert any(
            (case.is_2d, case.blending, case.padding, is_short) == (is_2d, blending, padding, True)
            for case, is_short in zip(cases, short, strict=True)
        )
    assert {case.overlap for case in cases} == {0, 0.1, 0.25, 0.3, 0.5, 0.75}


# ---------------------------------------------------------------------------------------- v1


def v1_gaussian(patch_size, sigma: float = 0.2, mu: float = 0.0) -> np.ndarray:
    """Gaussian of PyTorch Connectomics 1.x, in float64 until the end."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in patch_size), indexing="ij")
    distance = np.sqrt(z * z + y * y + x * x)
    weights = 1e-4 + np.exp(-((distance - mu) ** 2 / (2.0 * sigma**2)))
    return weights.astype(np.float32)


def v1_bump(patch_size, t: float = 1.5) -> np.ndarray:
    """Bump of PyTorch Connectomics 1.x, in float64 until the end."""
    axes = (np.linspace(0.0, 1.0, size + 2)[1:-1] for size in patch_size)
    z, y, x = np.meshgrid(*axes, indexing="ij")
    d = -((x * (1 - x)) ** -t + (y * (1 - y)) ** -t + (z * (1 - z)) ** -t)
    return (1e-4 + np.exp(d - d.max())).astype(np.float32)


V1 = {"gaussian": v1_gaussian, "bump": v1_bump}


def v1_inference(volumes, positions, network, patch_size, weights) -> list[np.ndarray]:
    """The loop of PyTorch Connectomics 1.x: a result and a weight array per volume.

    Its arrays are float32; here they are float64, as their rounding is no part of the method.
    """
    channels = len(network.gains)
    result = [np.zeros((channels, *volume.shape)) for volume in volumes]
    weight = [np.zeros(volume.shape) for volume in volumes]
    for vol_id, z, y, x in positions:
        there = (
            slice(z, z + patch_size[0]),
            slice(y, y + patch_size[1]),
            slice(x, x + patch_size[2]),
        )
        output = network.by_hand(volumes[vol_id][there][None])
        result[vol_id][:, *there] += output * weights[None]
        weight[vol_id][there] += weights
    for vol_id in range(len(volumes)):
        result[vol_id] /= weight[vol_id]
    return result


@pytest.mark.parametrize("patch_size", [(4, 6, 5), (8, 128, 128), (3, 2, 7), (18, 160, 160)])
@pytest.mark.parametrize("mode", V1)
def test_a_blending_matrix_is_v1s_to_float32s_last_digit(mode, patch_size):
    found = build_blending_matrix(patch_size, mode)
    np.testing.assert_array_max_ulp(found, V1[mode](patch_size), maxulp=1)


@pytest.mark.parametrize(
    ("patch_size", "overlap", "batch_size"),
    [((4, 6, 5), 0.5, 1), ((4, 6, 5), 0.25, 4), ((6, 8, 8), 0.75, 7), ((1, 8, 8), 0.5, 3)],
)
@pytest.mark.parametrize("mode", V1)
def test_volumes_of_different_shapes_are_as_in_v1s_loop(mode, patch_size, overlap, batch_size):
    shapes = [(9, 13, 12), (6, 8, 17), (7, 20, 8)]
    volumes = [positive_volume(shape, seed) for seed, shape in enumerate(shapes)]
    network = Ramps(patch_size, 2)
    positions = [
        (vol_id, *start)
        for vol_id, shape in enumerate(shapes)
        for start in positions_by_rule(shape, patch_size, overlap)
    ]
    expected = v1_inference(volumes, positions, network, patch_size, V1[mode](patch_size))
    is_v1s_plane = mode == "gaussian" and patch_size[0] == 1  # there v1 weighs nearly all alike
    config = config_of(
        patch_size, overlap=overlap, blending=mode, batch_size=batch_size,
        blending_arguments={"pytc_v1": True} if is_v1s_plane else {},
    )  # fmt: skip
    run = Run([ArraySource(volume) for volume in volumes], network, config)
    assert {event.vol_id for event in run} == {0, 1, 2}
    assert run.done == len(positions)
    for found, theirs in zip(run.results(), expected, strict=True):
        np.testing.assert_allclose(found, theirs, rtol=RELATIVE, atol=0)


# --------------------------------------------------------------------------- a constant, everywhere

PLACES = [
    # shape, patch, halo
    ((1, 1, 1), (1, 1, 1), (0, 0, 0)),
    ((1, 9, 7), (1, 4, 4), (0, 1, 2)),
    ((5, 1, 9), (4, 1, 3), (0, 0, 0)),
    ((3, 9, 2), (4, 4, 4), (2, 0, 1)),  # shorter than the patch along two axes
    ((2, 3, 1), (5, 6, 4), (0, 0, 0)),  # along all
    ((9, 8, 10), (4, 4, 5), (0, 0, 0)),
    ((7, 1, 1), (3, 2, 2), (1, 1, 1)),
    ((2, 75, 50), (2, 48, 40), (0, 0, 0)),  # corners of wu_bump weigh 1e-7 there
]


@pytest.mark.parametrize("grid", ["snap", pytest.param("even", marks=pytest.mark.slow)])
@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("mode", MODES)
def test_a_constant_comes_back_in_every_covered_voxel_at_every_event(mode, overlap, grid):
    for number, (shape, patch_size, halo) in enumerate(PLACES):
        value = np.float32([0.731, -2e30][number % 2])
        config = config_of(patch_size, overlap=overlap, blending=mode, grid=grid, halo=halo)
        source = ArraySource(np.zeros(shape, np.uint8))
        patches = Run([source], Constant(0), config).total
        config = config.model_copy(update={"batch_size": -(-patches // 7)})
        run = Run([source], Constant(float(value)), config)
        refocus = np.random.default_rng(number) if number % 3 else None
        for _ in events_refocused(run, refocus):
            live, coverage = np.asarray(run.live[0])[0], np.asarray(run.coverage[0])
            covered = coverage > 0
            np.testing.assert_array_equal(np.isnan(live), ~covered)
            np.testing.assert_allclose(live[covered], value, rtol=RELATIVE, atol=0)
        assert run.status == "complete"
        assert run.done == patches
        (result,) = run.results()
        assert result.shape == (1, *shape)
        np.testing.assert_allclose(result, value, rtol=RELATIVE, atol=0)  # and so no NaN


# ---------------------------------------------------------------------------- halo, and one pass

RADIUS = 3
"""Of the receptive field of three convolutions of 3 voxels."""
ONE_PASS = 1e-5


def convolutions(inside: str) -> nn.Module:
    """Three convolutions that pad as `inside` says, by nothing if it is "valid"."""
    torch.manual_seed(7)
    padded = {"padding": 0} if inside == "valid" else {"padding": 1, "padding_mode": inside}
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, **padded), nn.ReLU(),
        nn.Conv3d(4, 4, 3, **padded), nn.Tanh(),
        nn.Conv3d(4, 2, 3, **padded),
    )  # fmt: skip


def in_one_pass(volume: np.ndarray, network: nn.Module, margin: int, padding: str) -> np.ndarray:
    """What the network makes of the whole volume, padded by hand; the padding is cut off again."""
    padded = np.pad(volume, margin, mode=padding)
    with torch.inference_mode():
        whole = network(torch.from_numpy(padded)[None, None])[0].numpy()
    cut = [(size - part) // 2 for size, part in zip(whole.shape[1:], volume.shape, strict=True)]
    return whole[:, *(slice(low, low + n) for low, n in zip(cut, volume.shape, strict=True))]


class Pooled(Recorded):
    """Returns every so many voxels along X one."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., :: self.step]


class Watched(nn.Module):
    """Another network that keeps the shapes it was given, and writes `edge` around its output."""

    def __init__(self, network: nn.Module, halo=(0, 0, 0), edge: float | None = None) -> None:
        super().__init__()
        self.network, self.halo, self.edge = network, halo, edge
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape[2:]))
        output = self.network(x)
        if self.edge is None:
            return output
        inside = torch.zeros(output.shape[2:], dtype=torch.bool)
        inside[tuple(slice(h, n - h) for h, n in zip(self.halo, inside.shape, strict=True))] = True
        return output.where(inside, self.edge)


@pytest.mark.parametrize("shape", [(9, 13, 11), (2, 14, 3)])
@pytest.mark.parametrize("halo", [(3, 3, 3), (3, 5, 4)])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("inside", ["zeros", "reflect", "valid"])
def test_with_a_halo_of_the_receptive_field_a_run_is_one_pass(inside, padding, halo, shape):
    volume = positive_volume(shape) - 1
    network = Watched(convolutions(inside))
    found = predicted(
        volume, network, (4, 5, 6), overlap=0, halo=halo, padding=padding, batch_size=5
    )
    expected = in_one_pass(volume, convolutions(inside), RADIUS, padding)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=ONE_PASS)
    given = tuple(n + 2 * h for n, h in zip((4, 5, 6), halo, strict=True))
    assert network.shapes[0] == given
    if inside != "valid":  # there, longer inputs are tried after the first batch
        assert set(network.shapes) == {given}


@pytest.mark.parametrize("overlap", [0, 0.5])
@pytest.mark.parametrize("mode", ["gaussian", "constant"])
def test_further_than_the_receptive_field_from_the_faces_a_run_is_the_unpadded_pass(mode, overlap):
    volume = positive_volume((13, 16, 15)) - 1
    halo = (RADIUS,) * 3
    found = predicted(
        volume, convolutions("zeros"), (4, 5, 6),
        overlap=overlap, halo=halo, blending=mode, batch_size=16,
    )  # fmt: skip
    expected = in_one_pass(volume, convolutions("zeros"), 0, "constant")
    inner = (slice(None), *(slice(RADIUS, -RADIUS),) * 3)
    np.testing.assert_allclose(found[inner], expected[inner], rtol=0, atol=ONE_PASS)
    assert np.abs(found - expected).max() > 1e-3  # the volume's faces were reflected, not 0


def test_a_halo_one_voxel_too_small_is_seen():
    """Otherwise the tests above would pass whatever the halo did."""
    volume = positive_volume((9, 13, 11)) - 1
    expected = in_one_pass(volume, convolutions("zeros"), RADIUS, "reflect")
    for halo in itertools.product((RADIUS - 1, RADIUS), repeat=3):
        found = predicted(
            volume, convolutions("zeros"), (5, 7, 6), overlap=0, halo=halo, batch_size=8
        )
        is_enough = halo == (RADIUS,) * 3
        assert (np.abs(found - expected).max() < ONE_PASS) == is_enough


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", [(9, 13, 11), (2, 14, 3)])
def test_what_valid_convolutions_cut_off_is_read_around_each_patch(shape, padding):
    """No halo is asked for: the patch is what the network gets, and less comes out."""
    volume = positive_volume(shape) - 1
    network = Watched(convolutions("valid"))
    found = predicted(volume, network, (10, 11, 12), overlap=0, padding=padding, batch_size=8)
    expected = in_one_pass(volume, convolutions("valid"), RADIUS, padding)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ONE_PASS)
    assert network.shapes[0] == (10, 11, 12)


@pytest.mark.parametrize("overlap", [0, 0.5])
@pytest.mark.parametrize("halo", [(1, 0, 0), (2, 1, 3)])
@pytest.mark.parametrize("shape", [(9, 13, 11), (2, 14, 3)])
def test_what_a_network_makes_of_the_halo_is_never_blended(shape, halo, overlap):
    volume = positive_volume(shape) - 1
    clean, garbage = (
        predicted(
            volume, Watched(convolutions("zeros"), halo, edge), (4, 5, 6),
            overlap=overlap, halo=halo, batch_size=3,
        )
        for edge in (None, 1e6)
    )  # fmt: skip
    assert np.abs(clean).max() < 10
    np.testing.assert_array_equal(garbage, clean)


@pytest.mark.parametrize("padding", PADDINGS)
def test_the_halo_holds_the_volume_and_outside_of_it_the_padding(padding):
    volume = positive_volume((7, 6, 9))
    halo, patch_size = (2, 1, 3), (3, 4, 4)
    network = Identity()
    predicted(volume, network, patch_size, overlap=0, halo=halo, padding=padding)
    padded = np.pad(volume, [(h, h) for h in halo], mode=padding)
    starts = as_they_run(
        [*itertools.product([0, 3, 4], [0, 2], [0, 4, 5])]
    )  # in `padded`, the halo begins there
    assert len(network.inputs) == 18
    for start, given in zip(starts, network.inputs, strict=True):
        stops = (s + n + 2 * h for s, n, h in zip(start, patch_size, halo, strict=True))
        there = tuple(map(slice, start, stops))
        np.testing.assert_array_equal(given[0, 0], padded[there])


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("halo", [0, 2, 5])
@pytest.mark.parametrize(("size", "patch", "step"), [(5, 2, 2), (9, 4, 4), (10, 4, 4), (7, 3, 3)])
def test_a_patch_that_reaches_over_the_end_is_cut_from_the_padded_volume(
    size, patch, step, halo, padding
):
    """Of the last patch little is inside; what is reflected may lie further in than that."""
    volume = np.random.default_rng(0).integers(1, 200, (1, 1, size)).astype(np.float32)
    network = Pooled(step)
    predicted(
        volume, network, (1, 1, patch), overlap=0, padding=padding,
        halo=(0, 0, halo * step), output_scale=(1, 1, f"1/{step}"),
    )  # fmt: skip
    margin = halo * step
    padded = np.pad(volume[0, 0], (margin, margin + step), mode=padding)
    assert len(network.inputs) == -(-size // patch)
    for number, given in enumerate(network.inputs):
        there = slice(number * patch, (number + 1) * patch + 2 * margin)
        np.testing.assert_array_equal(given.ravel(), padded[there])
