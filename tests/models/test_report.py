import dataclasses
import json
import math
import pickle
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from napari_seamless.engine.errors import ModelError
from napari_seamless.models import MismatchError, ModelReport
from napari_seamless.models.reporting.report import Probe, Sizes
from napari_seamless.models.reporting.wording import by_module, plain

SHA = "ab" * 32
FITS = ModelReport(
    path="nets/a.pt",
    format="state dict",
    sha256=SHA,
    parameters=150_456,
    tensors=82,
    architecture="monai.networks.nets:UNet",
    arguments={"in_channels": 1, "out_channels": 3, "strides": ((1, 2, 2), (2, 2, 2))},
    origin="given",
)
MISFITS = ModelReport(
    path="nets/a.pt",
    format="state dict",
    sha256=SHA,
    parameters=9,
    tensors=2,
    architecture="torch.nn:Identity",
    missing=("a", "b", "c", "d"),
    misshaped=("e: file (1,), network (2,)",),
)
PROBE = Probe(3, 1, 2, (2, 8, 8), (16, 16, 16), (16, 16, 16), seconds=0.5)


def report(**facts):
    return ModelReport("a.pt", "state dict", "", 1, 1, **facts)


class TestJson:
    def test_everything_is_there(self):
        facts = json.loads(json.dumps(FITS.to_dict(), allow_nan=False))
        fields = {each.name for each in dataclasses.fields(ModelReport)}
        derived = {"in_channels", "out_channels", "spatial_dims", "grouped", "warnings"}
        assert facts.keys() == fields | derived
        assert facts["arguments"] == {
            "in_channels": 1,
            "out_channels": 3,
            "strides": [[1, 2, 2], [2, 2, 2]],
        }
        assert (facts["in_channels"], facts["out_channels"], facts["spatial_dims"]) == (1, 3, None)
        assert facts["missing"] == []
        assert facts["probe"] is None

    def test_probe_and_groups(self):
        facts = dataclasses.replace(
            MISFITS, missing=("m.a.weight", "m.a.bias", "n.weight"), probe=PROBE
        ).to_dict()
        assert facts["probe"]["multiples"] == [2, 8, 8]
        assert facts["grouped"] == {
            "missing": {"m.a": ["weight", "bias"], "n": ["weight"]},
            "misshaped": {"": ["e: file (1,), network (2,)"]},
        }

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (math.nan, None),
            (-math.inf, None),
            (0.5, 0.5),
            (True, True),
            (2**70, 2**70),
            (Fraction(2, 3), "2/3"),
            (Path("a/b"), "a/b"),
            (Path, "<class 'pathlib.Path'>"),
            (torch.nn.ReLU, "<class 'torch.nn.modules.activation.ReLU'>"),
            (b"ab", "b'ab'"),
            (torch.ones(2, 3).numpy()[0, 0], 1.0),
            (torch.arange(3).numpy()[2], 2),
            (torch.ones(2, 3), "Tensor of shape (2, 3)"),
            (torch.Size((2, 3)), [2, 3]),
            ({(1, 2): {3}}, {"(1, 2)": [3]}),
        ],
    )
    def test_values(self, value, said):
        facts = json.loads(json.dumps(report(details={"it": value}).to_dict(), allow_nan=False))
        assert facts["details"]["it"] == said

    def test_what_holds_itself_or_is_nested_like_a_bomb_ends(self):
        itself = []
        itself.append(itself)
        assert "..." in json.dumps(plain(itself))
        bomb = 1
        for _ in range(19):
            bomb = [bomb] * 10
        assert len(json.dumps(plain(bomb))) < 2_000_000
        assert report(details={"bomb": bomb, "itself": itself}).lines()


class TestFacts:
    @pytest.mark.parametrize(
        ("facts", "channels"),
        [
            ({}, (None, None)),
            ({"arguments": {"in_channels": 2, "out_channels": 3}}, (2, 3)),
            ({"arguments": {"input_channels": 2, "num_classes": 3}}, (2, 3)),
            ({"arguments": {"in_channels": "two", "out_channels": True}}, (None, None)),
            ({"input_shape": (1, 4, 8, 8, 8), "arguments": {"in_channels": 2}}, (4, None)),
            ({"input_shape": (1, None, 8, 8, 8), "arguments": {"in_channels": 2}}, (2, None)),
            ({"probe": PROBE, "arguments": {"in_channels": 9, "out_channels": 9}}, (1, 2)),
            (
                {
                    "probe": Probe(None, None, None, (), (), (), note="no"),
                    "arguments": {"in_channels": 9},
                },
                (9, None),
            ),
        ],
    )
    def test_channels(self, facts, channels):
        found = report(**facts)
        assert (found.in_channels, found.out_channels) == channels

    @pytest.mark.parametrize(
        ("facts", "dims"),
        [
            ({}, None),
            ({"arguments": {"spatial_dims": 2}}, 2),
            ({"arguments": {"dimensions": 3}}, 3),
            ({"settings": {"planes": "z"}}, 2),
            ({"settings": {"planes": "zyx"}}, 2),
            ({"settings": {"planes": "none"}, "arguments": {"spatial_dims": 2}}, 3),
            ({"settings": {"planes": "auto"}, "arguments": {"spatial_dims": 2}}, 2),
            ({"input_shape": (1, 1, 8, 8), "settings": {"planes": "none"}}, 2),
            ({"probe": PROBE, "settings": {"planes": "z"}}, 3),
        ],
    )
    def test_spatial_dims(self, facts, dims):
        assert report(**facts).spatial_dims == dims


class TestSizes:
    @pytest.mark.parametrize(
        ("sizes", "allowed"),
        [
            (Sizes(32, 1), "any"),
            (Sizes(32, 16), "multiples of 16"),
            (Sizes(92, 8), "92 plus multiples of 8"),
            (Sizes(96, 0), "only 96"),
        ],
    )
    def test_in_words(self, sizes, allowed):
        assert sizes.allowed == allowed

    @pytest.mark.parametrize("size", [(16, 16, 16), (2, 8, 8), (18, 128, 104)])
    def test_sizes_that_work(self, size):
        assert report(probe=PROBE).size_problem(size) is None

    def test_one_line_for_all_axes(self):
        assert report(probe=PROBE).size_problem((7, 100, 12)) == (
            "a network input of 7 x 100 x 12 (patch_size and halo) cannot work: "
            "7 along z is no multiple of 2, try 6, or choose 16; "
            "100 along y is no multiple of 8, choose 96 or 104; "
            "12 along x is no multiple of 8, try 8, or choose 16"
        )

    @pytest.mark.parametrize(
        ("size", "problem"),
        [
            (92, None),
            (108, None),
            (100, None),
            (96, "96 along y is not 92 plus a multiple of 8, choose 92 or 100"),
            (64, "64 along y is not 92 plus a multiple of 8, choose 92"),
        ],
    )
    def test_valid_convolutions(self, size, problem):
        probe = Probe(2, 1, 1, (8, 8), (92, 92), (4, 4))
        said = report(probe=probe).size_problem((1, size, 92))
        assert (said and said.partition("cannot work: ")[2]) == problem

    def test_fixed_size(self):
        probe = Probe(3, 1, 1, (5, 1, 1), (5, 32, 32), (1, 32, 32), fixed=(True, False, False))
        assert report(probe=probe).size_problem((5, 33, 7)) is None
        said = report(probe=probe).size_problem((10, 33, 7))
        assert said.endswith("10 along z is not 5, the only size that it takes")

    @pytest.mark.parametrize("probe", [None, PROBE])
    def test_size_that_the_file_fixes(self, probe):
        found = report(input_shape=(None, 1, None, 64, 64), probe=probe)
        assert found.size_problem((4, 64, 64)) is None
        said = found.size_problem((4, 32, 64))
        assert said.endswith("32 along y is not 64, the only size that it takes")

    def test_planes(self):
        found = report(probe=Probe(2, 1, 1, (16, 8), (16, 16), (16, 16)))
        assert found.size_problem((3, 16, 8)) is None
        assert "8 along y is no multiple of 16" in found.size_problem((16, 8, 8))
        assert found.size_problem((16, 9, 8), planes="y") is None
        assert "9 along x is no multiple of 8" in found.size_problem((16, 16, 9), planes="y")
        assert found.size_problem((8, 16, 8), planes="zyx").count("8 along z is no multiple") == 1

    def test_nothing_known(self):
        assert report().size_problem((1, 2, 3)) is None
        unknown = Probe(3, 1, 1, (0, 0, 8), (16, 16, 16), (16, 16, 16), note="time was up")
        assert report(probe=unknown).size_problem((7, 7, 24)) is None
        assert "7 along x" in report(probe=unknown).size_problem((7, 7, 7))
        refused = Probe(None, None, None, (), (), (), note="refused")
        assert report(probe=refused).size_problem((1, 2, 3)) is None
        assert report(input_shape=(1, 1, 8)).size_problem((1, 2, 3)) is None


class TestLines:
    def test_before_it_is_tried(self):
        assert str(FITS).splitlines() == [
            "nets/a.pt: state dict, 82 tensors, 150,456 parameters",
            f"SHA-256: {SHA}",
            "network, as given: monai.networks.nets:UNet(in_channels=1, out_channels=3, "
            "strides=((1, 2, 2), (2, 2, 2)))",
            "channels: 1 in, 3 out",
            "every tensor fits",
        ]

    def test_everything(self):
        found = dataclasses.replace(
            FITS,
            origin="guessed",
            input_shape=(None, 1, None, 64, 64),
            probe=dataclasses.replace(
                PROBE, heads={"mask": 2, "edge": 1}, note="x", faults=("it is odd",)
            ),
            settings={"patch_size": (8, 64, 64), "activation": "sigmoid"},
            weights="ema",
            other_weights=("model", "fold_1"),
            details={"epoch": 3, "long": "a" * 500, "many": list(range(99))},
            notes=("'module.' was taken off the tensors' names",),
            refused=("builtins.open",),
            non_finite=("a", "b", "c", "d", "e", "f"),
            infinite=("mask", "m"),
            never_updated=("norm",),
            patch_dependent=("InstanceNorm3d (12)",),
        )
        lines = found.lines()
        assert lines[2] == "weights: ema; also there: model, fold_1"
        assert lines[3].startswith("network, guessed: monai.networks.nets:UNet(in_channels=1, ")
        assert lines[4:] == [
            "channels: 1 in, 2 out",
            "3-D: takes volumes (B, C, Z, Y, X)",
            "heads: 'mask' (2 channels), 'edge' (1 channel)",
            "input sizes that work: z: multiples of 2; y, x: multiples of 8",
            "an input of 16 x 16 x 16 voxels gives 16 x 16 x 16",
            "tried: x",
            "input as the file fixes it (B, C, Z, Y, X): (any, 1, any, 64, 64)",
            "settings from the file: patch_size (8, 64, 64), activation 'sigmoid'",
            "every tensor fits",
            "not run: builtins.open",
            "warning: 6 tensors with NaN or infinity (a, b, c, d, e, ...): take a checkpoint from "
            "before its training diverged",
            "warning: 2 tensors beside the weights with infinity (mask, m): in masks it is "
            "meant, elsewhere it is not",
            "warning: batch normalisation was never updated in 1 layer (norm): its statistics are "
            "those of before any training",
            "warning: layers that look at the whole patch (InstanceNorm3d (12)): the same voxel "
            "comes out differently in another patch; use large patches and much overlap",
            "warning: it is odd",
            "note: 'module.' was taken off the tensors' names",
            "in the file: epoch = 3",
            lines[-2],
            "in the file: many = [0, 1, 2, 3, 4, 5, 6, 7, ...]",
        ]
        assert len(lines[-2]) < 120
        assert [f"warning: {text}" for text in found.warnings()] == lines[14:19]

    def test_not_built(self):
        not_run = dataclasses.replace(FITS, refused=("a:B",), is_built=False)
        assert not_run.lines()[-3:-1] == ["the network was not built", "not run: a:B"]
        assert not_run.lines()[-1].startswith("warning: the network was not built: that would run")
        for other in ({"is_built": True}, {"missing": ("a",)}, {"architecture": None}):
            assert dataclasses.replace(not_run, **other).warnings() == ()

    def test_refused_by_the_network(self):
        found = dataclasses.replace(FITS, probe=Probe(None, None, None, (), (), (), note="it did"))
        assert found.warnings() == ("it did",)
        assert found.lines()[-2:] == ["every tensor fits", "warning: it did"]

    @pytest.mark.parametrize(
        ("facts", "said"),
        [
            ({}, "give architecture and arguments to see whether it fits"),
            ({"architecture": "Net"}, "carries its own network"),
            ({"architecture": "m:Net"}, "every tensor fits"),
            ({"architecture": "m:Net", "origin": "guessed"}, "every tensor fits"),
        ],
    )
    def test_verdict(self, facts, said):
        assert report(**facts).lines()[-1] == said

    def test_frozen(self):
        lines = ModelReport("a.pt", "TorchScript", "", 7, 0, architecture="Net").lines()
        assert lines[0] == "a.pt: TorchScript, 7 parameters"
        assert lines[-1] == "carries its own network, its weights in the graph"

    def test_one_line_each_whatever_the_file_says(self):
        found = report(details={"a\nb": 1}, refused=("x\x1b[2Jy",), unexpected=("w\r.bias",))
        assert all(line.isprintable() for line in found.lines())
        assert "in the file: a\\nb = 1" in found.lines()
        assert str(MismatchError(found)).isprintable()


class TestMisfits:
    def test_lines_name_everything(self):
        assert MISFITS.lines()[3:] == [
            "does not fit: 4 missing, 1 misshaped",
            "missing: a, b, c, d",
            "misshaped: e: file (1,), network (2,)",
        ]

    def test_few_of_one_module_stay_together(self):
        names = ("model.2.0.conv.weight", "model.2.0.conv.bias", "model.2.0.adn.N.weight")
        assert by_module(names) == {"model.2.0": ("conv.weight", "conv.bias", "adn.N.weight")}
        found = dataclasses.replace(MISFITS, missing=names, misshaped=())
        assert found.lines()[-1] == ("missing in model.2.0: conv.weight, conv.bias, adn.N.weight")

    def test_many_are_split_by_module(self):
        names = [f"net.{side}.{i}.weight" for side in ("down", "up") for i in range(6)]
        assert by_module([*names, "head.bias", "scale"]) == {
            "net.down": tuple(f"{i}.weight" for i in range(6)),
            "net.up": tuple(f"{i}.weight" for i in range(6)),
            "head": ("bias",),
            "": ("scale",),
        }

    @pytest.mark.parametrize("count", [1, 8, 9, 300])
    def test_every_name_can_be_put_together_again(self, count):
        names = [f"a.{i % 7}.{i % 11}.x{i}.weight" for i in range(count)] + ["a.own", "a.3.own"]
        whole = [f"{module}.{rest}" for module, rests in by_module(names).items() for rest in rests]
        assert sorted(whole) == sorted(names)
        assert max(map(len, by_module(names).values())) <= 8

    def test_many_of_one_layer_cannot_be_split(self):
        names = [f"layer.{i}" for i in range(20)]
        assert by_module(names) == {"layer": tuple(map(str, range(20)))}

    def test_shapes_stay_with_their_tensor(self):
        names = ("a.b.weight: file (8, 1.5), network (2,)", "a.b.bias: file (8,), network (2,)")
        found = dataclasses.replace(MISFITS, missing=(), misshaped=names)
        assert found.lines()[-1] == (
            "misshaped in a.b: weight: file (8, 1.5), network (2,); bias: file (8,), network (2,)"
        )

    def test_message_names_the_first_few_and_keeps_all(self):
        error = MismatchError(MISFITS)
        assert isinstance(error, ModelError)
        assert str(error) == (
            "a.pt does not fit torch.nn:Identity: 4 missing (a, b, c, ...); "
            "1 misshaped (e: file (1,), network (2,)); "
            "nothing was loaded: check architecture and arguments"
        )
        assert error.report is MISFITS

    def test_message_survives_a_process_border(self):
        error = pickle.loads(pickle.dumps(MismatchError(MISFITS)))
        assert error.report == MISFITS
        assert str(error) == str(MismatchError(MISFITS))
