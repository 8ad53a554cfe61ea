import json
import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from napari_seamless.models.reporting.probe import probe
from napari_seamless.models.reporting.report import ModelReport, Probe
from napari_seamless.models.reporting.trials import Input, Trials

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.load:DeprecationWarning"),
]
AMPLE = 1000.0


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other make small inputs slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tried(module, seconds=AMPLE, **facts):
    torch.manual_seed(0)
    facts = {"parameters": 1, "tensors": 1, **facts}
    report = ModelReport(path="a.pt", format="state dict", sha256="", **facts)
    return probe(module.eval(), report, seconds)


class Does(nn.Module):
    """Does what a function does."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Clock:
    """Time that passes while a network is called, and not else."""

    def __init__(self, per_call):
        self.now, self.per_call = 100.0, per_call

    def __call__(self):
        return self.now

    def slow(self, module):
        return Does(lambda x: self._tick() or module(x))

    def _tick(self):
        self.now += self.per_call


class Valid(nn.Module):
    """A U-Net of two valid convolutions per level, which takes no size that does not divide."""

    def __init__(self, dims, depth, factors=2):
        super().__init__()
        conv = getattr(nn, f"Conv{dims}d")
        self.pool = getattr(F, f"max_pool{dims}d")
        self.factors = (factors,) * dims if isinstance(factors, int) else factors
        self.down = nn.ModuleList(
            nn.Sequential(conv(1 if level == 0 else 2, 2, 3), conv(2, 2, 3))
            for level in range(depth + 1)
        )
        self.up = nn.ModuleList(nn.Sequential(conv(4, 2, 3), conv(2, 2, 3)) for _ in range(depth))

    def forward(self, x):
        skips = []
        for level, down in enumerate(self.down):
            x = down(x)
            if level < len(self.up):
                skips.append(x)
                if any(n % by for n, by in zip(x.shape[2:], self.factors, strict=True)):
                    raise ValueError("does not divide")
                x = self.pool(x, self.factors)
        for up in self.up:
            x = F.interpolate(x, scale_factor=self.factors)
            skip = skips.pop()
            for axis, size in enumerate(x.shape[2:], start=2):
                skip = skip.narrow(axis, (skip.shape[axis] - size) // 2, size)
            x = up(torch.cat([skip, x], 1))
        return x


def saved(module, path, freeze=False):
    scripted = torch.jit.script(module.eval())
    (torch.jit.freeze(scripted) if freeze else scripted).save(path)
    return torch.jit.load(path)


class TestMonai:
    @pytest.fixture
    def nets(self):
        return pytest.importorskip("monai.networks.nets")

    @pytest.mark.parametrize(
        ("strides", "multiples"),
        [((2, 2, 2), (8, 8, 8)), (((1, 2, 2), (1, 2, 2), (2, 2, 2)), (2, 8, 8))],
    )
    def test_unet(self, nets, strides, multiples):
        found = tried(nets.UNet(3, 2, 3, (2, 2, 2, 2), strides, norm="batch"))
        assert found == Probe(
            spatial_dims=3,
            in_channels=2,
            out_channels=3,
            multiples=multiples,
            input_size=(16, 16, 16),
            output_size=(16, 16, 16),
            seconds=found.seconds,
            fixed=(False, False, False),
        )

    def test_unet_of_planes(self, nets):
        found = tried(nets.UNet(2, 1, 3, (2, 2, 2), (2, (2, 4))))
        assert (found.spatial_dims, found.multiples, found.out_channels) == (2, (4, 8), 3)
        assert found.note == ""

    def test_basic_unet_pads_by_itself(self, nets):
        found = tried(nets.BasicUNet(3, 1, 2, features=(2, 2, 2, 2, 2, 2)))
        assert found.multiples == (1, 1, 1)
        # at 16 x 16 x 16 a single voxel would be left, which its normalisation refuses
        assert found.input_size == found.output_size == (16, 16, 32)

    def test_segresnet(self, nets):
        found = tried(nets.SegResNet(3, init_filters=8, in_channels=4, out_channels=2))
        assert (found.in_channels, found.multiples, found.fixed) == (4, (8, 8, 8), (False,) * 3)

    def test_swin_unetr(self, nets):
        network = nets.SwinUNETR(
            5, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), spatial_dims=2
        )
        found = tried(network)
        assert (found.spatial_dims, found.in_channels) == (2, 5)
        assert (found.multiples, found.note) == ((32, 32), "")

    @pytest.mark.parametrize("told", [True, False])
    def test_unetr_takes_one_size(self, nets, told):
        size = (16, 32, 32)
        network = nets.UNETR(1, 2, size, feature_size=2, hidden_size=12, mlp_dim=12, num_heads=2)
        found = tried(network, arguments={"img_size": size} if told else {})
        assert (found.input_size, found.multiples, found.fixed) == (size, size, (True, True, True))
        assert found.note == "it takes this one size only along z, y, x"

    def test_real_network(self, nets, real_data):
        facts = json.loads((real_data / "vnc_unet.json").read_text())
        network = nets.UNet(**facts["arguments"])
        network.load_state_dict(torch.load(real_data / "vnc_unet_state_dict.pt", weights_only=True))
        scripted = torch.jit.load(real_data / "vnc_unet_torchscript.pt")
        for found in (tried(network), tried(scripted, settings={"patch_size": (8, 128, 128)})):
            assert (found.in_channels, found.out_channels) == (1, 1)
            assert (found.multiples, found.note, found.faults) == ((2, 8, 8), "", ())


class TestOtherSizes:
    @pytest.mark.parametrize(
        ("dims", "depth", "factors", "steps", "gives"),
        [
            (2, 1, 2, (2, 2), ((16, 16), None)),
            (2, 2, 2, (4, 4), None),
            (2, 4, 2, (16, 16), ((188, 188), (4, 4))),
            (2, 2, (1, 3), (1, 9), None),
            (3, 1, (1, 2, 3), (1, 2, 3), None),
        ],
    )
    def test_valid_convolutions(self, dims, depth, factors, steps, gives):
        network = Valid(dims, depth, factors)
        found = tried(network)
        assert found.multiples == steps
        assert found.fixed == (False,) * dims
        if gives and gives[1]:
            assert (found.input_size, found.output_size) == gives
        longer = [size + 3 * step for size, step in zip(found.input_size, steps, strict=True)]
        made = network(torch.rand(1, 1, *longer)).shape[2:]
        assert [b - a for a, b in zip(found.output_size, made, strict=True)] == [
            3 * step for step in steps
        ]

    def test_patch_size_of_the_file_is_tried(self):
        def function(x):
            assert all(size % 8 == 4 for size in x.shape[2:])
            assert x.shape[3] >= 28
            return x

        found = tried(Does(function), settings={"patch_size": (12, 28, 20)})
        assert found.input_size == (12, 28, 20)
        assert found.multiples == (8, 8, 8)
        planes = tried(Does(function), settings={"patch_size": (1, 12, 28), "planes": "z"})
        assert planes.input_size == (12, 28)

    @pytest.mark.parametrize("step", [1, 2, 3, 5, 6, 7, 9, 12, 14, 20, 27, 32, 64])
    def test_any_step(self, step):
        def function(x):
            assert x.shape[2] % step == 0
            return x

        assert tried(Does(function), input_shape=(None, 1, None, None)).multiples == (step, 1)

    @pytest.mark.parametrize("ceil", [True, False])
    def test_output_must_grow_in_proportion(self, ceil):
        found = tried(Does(lambda x: F.avg_pool3d(x, (1, 2, 4), ceil_mode=ceil)))
        assert found.multiples == (1, 2, 4)
        assert found.output_size == (16, 8, 4)

    def test_one_plane_of_several(self):
        def function(x):
            assert x.shape[2] == 5
            return x[:, :, 2:3]

        found = tried(Does(function))
        assert (found.input_size[0], found.output_size[0]) == (5, 1)
        assert (found.multiples, found.fixed) == ((5, 1, 1), (True, False, False))
        assert found.note == "it takes this one size only along z"

    def test_axis_that_comes_out_the_same_whatever_goes_in(self):
        def function(x):
            assert x.shape[2] % 4 == 0
            return x.mean(2, keepdim=True)

        found = tried(Does(function))
        assert (found.multiples, found.output_size[0]) == ((4, 1, 1), 1)

    def test_sizes_that_do_not_work_together(self):
        def function(x):
            assert len({n // 16 for n in x.shape[2:] if n > 18}) <= 1
            assert sum(n > 16 for n in x.shape[2:]) <= 1
            return x

        found = tried(Does(function))
        assert found.note == "sizes that work along one axis do not work along all at once"

    def test_large_inputs_are_not_tried(self):
        seen = []

        def function(x):
            seen.append(x[0, 0].numel())
            assert x.shape[3] == x.shape[4] == 128
            assert x.shape[2] in (128,)
            return x

        found = tried(Does(function))
        assert max(seen) <= 4_000_000
        assert found.input_size == (128, 128, 128)
        assert found.multiples[0] == 0
        assert "along z only too large sizes are left to be tried" in found.note


class TestFixedInput:
    def test_all(self):
        def function(x):
            assert x.shape == (2, 3, 8, 24, 24)
            return x[:, :1]

        found = tried(Does(function), input_shape=(2, 3, 8, 24, 24))
        assert (found.in_channels, found.out_channels) == (3, 1)
        assert found.multiples == found.input_size == (8, 24, 24)
        assert found.fixed == (True, True, True)
        assert found.note == "it takes this one size only along z, y, x"
        assert found.faults == ()

    def test_some(self):
        def function(x):
            assert x.shape[2] == 5
            assert x.shape[3] % 8 == 0
            return x

        found = tried(Does(function), input_shape=(None, 1, 5, None, None))
        assert (found.multiples, found.fixed) == ((5, 8, 1), (True, False, False))

    def test_too_large(self):
        found = tried(nn.Identity(), input_shape=(1, 1, 512, 512, 512))
        assert found.spatial_dims is None
        assert found.note.endswith("the only size that it takes is too large to be tried")

    def test_shape_of_no_plane_or_volume(self):
        assert tried(nn.Identity(), input_shape=(1, 1, 8)).spatial_dims == 3


class TestChannels:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("freeze", [False, True])
    def test_torchscript(self, dims, freeze, tmp_path):
        conv, norm = getattr(nn, f"Conv{dims}d"), getattr(nn, f"BatchNorm{dims}d")
        network = nn.Sequential(conv(7, 2, 3, padding=1, stride=2), norm(2), conv(2, 5, 1))
        found = tried(saved(network, tmp_path / "a.pt", freeze), tensors=0)
        assert (found.spatial_dims, found.in_channels, found.out_channels) == (dims, 7, 5)
        assert found.multiples == (2,) * dims

    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    @pytest.mark.parametrize("dims", [2, 3])
    def test_by_trying(self, channels, dims):
        def function(x):
            assert (x.ndim, x.shape[1]) == (2 + dims, channels)
            return x

        found = tried(Does(function))
        assert (found.spatial_dims, found.in_channels) == (dims, channels)

    def test_arguments_go_first_but_may_be_wrong(self):
        assert tried(nn.Identity(), arguments={"in_channels": 9}).in_channels == 9
        assert tried(nn.Conv3d(6, 1, 1), arguments={"in_channels": 9}).in_channels == 6

    def test_plane_is_no_volume_without_a_batch(self):
        assert tried(nn.Conv3d(1, 1, 1)).spatial_dims == 3

    def test_settings_say_that_it_takes_planes(self):
        assert tried(nn.Identity(), settings={"planes": "z"}).spatial_dims == 2


class TestHeads:
    def test_two_of_a_dict(self):
        network = Does(lambda x: {"mask": x, "flow": torch.cat([x, x], 1), "loss": None})
        found = tried(network)
        assert (dict(found.heads), found.out_channels) == ({"mask": 1, "flow": 2}, 1)
        assert tried(network, settings={"head": "flow"}).out_channels == 2

    def test_tuple(self):
        assert dict(tried(Does(lambda x: (x, x))).heads) == {"0": 1, "1": 1}

    def test_coarser_heads_are_left_out(self):
        found = tried(Does(lambda x: [x, F.avg_pool3d(x, 2), F.avg_pool3d(x, 4)]))
        assert (found.heads, found.output_size) == ({}, (16, 16, 16))
        assert found.note == (
            "it also returns heads of another size ('1', '2'), which are left out"
        )

    def test_what_is_no_image(self):
        found = tried(Does(lambda x: {"image": x, "class": x.mean((2, 3, 4))}))
        assert found.note == (
            "it also returns what is no image ('class'): name the head that counts"
        )

    def test_no_image_at_all(self):
        found = tried(Does(lambda x: x.mean((2, 3, 4))), arguments={"spatial_dims": 3})
        assert found.spatial_dims is None
        assert found.note.startswith(
            "the network refused every input that was tried: it made (1, 1) of (1, 1, "
        )

    def test_no_such_head(self):
        found = tried(nn.Identity(), settings={"head": "mask"})
        assert "head 'mask' does not exist; the network returns '0'" in found.note


class TestOdd:
    def test_refuses_everything(self):
        def function(x):
            raise KeyError("no\nway")

        found = tried(Does(function))
        assert found == Probe(
            None,
            None,
            None,
            (),
            (),
            (),
            seconds=found.seconds,
            note="the network refused every input that was tried: 'no\\nway'",
        )

    @pytest.mark.slow
    def test_reason_is_that_of_the_likeliest_input(self):
        def function(x):
            raise ValueError(f"{x.ndim} axes, {x.shape[1]} channels")

        found = tried(Does(function), arguments={"spatial_dims": 2, "in_channels": 6})
        assert found.note.endswith(": 4 axes, 6 channels")

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_not_finite(self, value):
        found = tried(Does(lambda x: x.masked_fill(x < 0.5, value)))
        assert found.faults == ("it returns NaN or infinity for an input from 0 to 1",)
        assert found.multiples == (1, 1, 1)
        assert ModelReport("", "", "", 1, 1, probe=found).warnings() == found.faults

    def test_dropout_that_stays_active(self):
        found = tried(Does(lambda x: F.dropout(x, 0.5, training=True)))
        assert found.faults == ("the same input does not give the same output twice",)

    def test_batch_mates_matter(self):
        found = tried(nn.BatchNorm3d(1, track_running_stats=False))
        assert found.faults == ("what it makes of a patch depends on the others in the batch",)

    def test_batch_of_one_only(self):
        def function(x):
            if len(x) > 1:
                raise ValueError("one at a time")
            return x

        found = tried(Does(function))
        assert found.note == "it takes one patch at a time, batch_size 1: one at a time"
        assert found.faults == ()

    def test_half_precision_weights(self):
        found = tried(nn.Conv3d(1, 1, 1).half())
        assert found.spatial_dims is None
        assert "type" in found.note


class TestTime:
    def test_nothing_begins_after_time_is_up(self):
        clock, report = Clock(per_call=3.0), ModelReport("a.pt", "state dict", "", 1, 1)
        found = probe(clock.slow(nn.Identity()), report, 10.0, clock)
        assert found.seconds == 12.0  # 4 calls
        # the first call, then one and two voxels more along z, then one more along y
        assert found.multiples == (1, 0, 0)
        assert found.note == "time was up after 10 s: which sizes work along y, x is not known"

    @pytest.mark.parametrize(
        ("calls", "note"),
        [
            (7, "whether these sizes work together is not known"),
            (8, "whether a patch comes out the same each time and in any batch is not known"),
            (9, "whether a patch comes out the same each time and in any batch is not known"),
            (10, ""),
        ],
    )
    def test_what_is_not_known(self, calls, note):
        clock, report = Clock(per_call=1.0), ModelReport("a.pt", "state dict", "", 1, 1)
        found = probe(clock.slow(nn.Identity()), report, calls, clock)
        assert found.note.partition(" s: ")[2] == note
        assert found.multiples == (1, 1, 1)
        assert found.seconds == calls

    def test_no_input_works_in_time(self):
        def function(x):
            raise ValueError("never")

        clock, report = Clock(per_call=1.0), ModelReport("a.pt", "state dict", "", 1, 1)
        found = probe(clock.slow(Does(function)), report, 3.0, clock)
        assert found.note == "time was up after 3 s: no input that was tried works: never"
        assert found.seconds == 3.0


class TestUndisturbed:
    def test_network_and_random_state_are_as_before(self):
        network = nn.Sequential(
            nn.Conv3d(1, 2, 3, padding=1), nn.BatchNorm3d(2), nn.Dropout(0.5), nn.InstanceNorm3d(2)
        ).train()
        network[2].eval()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        torch.manual_seed(3)
        expected = torch.rand(3)
        torch.manual_seed(3)
        drawing = nn.Sequential(network, Does(lambda x: x + 0 * torch.rand(())))
        found = probe(drawing, ModelReport("a.pt", "state dict", "", 1, 1), AMPLE)
        assert torch.equal(torch.rand(3), expected)
        assert [part.training for part in network] == [True, True, False, True]
        torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)
        assert found.faults == ()  # dropout was off, and batches had no effect
        assert not torch.is_inference(network[0].weight)

    def test_modes_after_an_error(self):
        def function(x):
            raise ValueError

        network = nn.Sequential(nn.Dropout(), Does(function)).train()
        probe(network, ModelReport("a.pt", "state dict", "", 1, 1), AMPLE)
        assert network[0].training

    def test_warnings_of_trials_are_not_shown(self, recwarn):
        def function(x):
            warnings.warn("such a size!", stacklevel=1)
            return x

        assert tried(Does(function)).multiples == (1, 1, 1)
        assert not recwarn.list


def test_inputs_are_given_on_the_device_of_the_network():
    devices = []
    network = nn.Sequential(Does(lambda x: devices.append(x.device) or x), nn.Conv3d(1, 2, 1))
    trials = Trials(network.to("meta"), None, AMPLE, Clock(0))
    assert trials.size(Input(1, (4, 5, 6))) == (4, 5, 6)
    assert devices == [torch.device("meta")]
