"""Packages of bioimage.io: axes, sizes, halo."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from models.bioimageio_packages import (
    PLANE,
    VOLUME,
    Maker,
    Net,
    network,
    rewrite,
    same_but,
    v0_5,
)
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ModelError
from napari_seamless.inference import predict
from napari_seamless.models import load_model

pytestmark = pytest.mark.slow


@pytest.fixture
def make(tmp_path):
    return Maker(tmp_path / "made")


class Reordered(nn.Module):
    """A network of which input and output have other axes than (B, C, ...)."""

    new: list[int]
    gone: list[int]

    def __init__(self, inner: nn.Module, taken: str, given: str, order: str):
        super().__init__()
        self.inner = inner
        self.to_inner = [taken.index(letter) for letter in order if letter in taken]
        self.from_inner = [order.index(letter) for letter in given]
        self.new = [axis for axis, letter in enumerate(order) if letter not in taken]
        self.gone = [axis for axis, letter in enumerate(order) if letter not in given]
        self.kept = [
            sum(letter in given for letter in order[: order.index(each)]) for each in given
        ]

    def forward(self, patches):
        patches = patches.permute(self.to_inner)
        for axis in self.new:
            patches = patches.unsqueeze(axis)
        output = self.inner(patches)
        for axis in self.gone[::-1]:
            output = output.select(axis, 0)
        return output.permute(self.kept)


SIZES = VOLUME | {"c": 1}


class TestAxes:
    @pytest.mark.parametrize(
        ("taken", "given"),
        [
            ("bczyx", "bczyx"),
            ("bzyxc", "bzyxc"),
            ("xyzcb", "cbxzy"),
            ("zyx", "czyx"),
            ("bzyx", "bczyx"),
            ("czyx", "zyxc"),
            ("bcyx", "bcyx"),
            ("yxc", "yxc"),
            ("byx", "bcxy"),
            ("yx", "cyx"),
        ],
    )
    def test_any_order_of_axes(self, make, taken, given):
        order = "bczyx" if "z" in taken else "bcyx"
        inner = network(len(order) - 2)
        native = Reordered(inner, taken, given, order).eval()
        axes = {letter: SIZES[letter] for letter in taken}
        path = make(native, axes=axes, outputs={"output": same_but(dict.fromkeys(given))})
        loaded = load_model(path)
        patches = torch.rand((2, 1, 4, 8, 16) if "z" in taken else (2, 1, 8, 16))
        with torch.inference_mode():
            torch.testing.assert_close(loaded.module(patches), inner(patches), rtol=0, atol=1e-6)
        assert loaded.report.settings["planes"] == ("none" if "z" in taken else "z")
        batch = None if "b" in taken else 1
        assert loaded.report.input_shape == (batch, 1, *[None] * (len(order) - 2))

    def test_one_channel_may_have_no_axis_on_either_side(self, make):
        inner = network(3, out=1)
        native = Reordered(inner, "bzyx", "bzyx", "bczyx").eval()
        axes = {letter: SIZES[letter] for letter in "bzyx"}
        loaded = load_model(make(native, axes=axes, outputs={"output": same_but(axes)}))
        patches = torch.rand(1, 1, 4, 8, 8)
        with torch.inference_mode():
            assert loaded.module(patches).shape == (1, 1, 4, 8, 8)
            torch.testing.assert_close(loaded.module(patches), inner(patches))
        with pytest.raises(ModelError, match="takes one channel, not 2"):
            loaded.module(torch.rand(1, 2, 4, 8, 8))

    def test_other_axes_are_refused(self, make):
        axis = v0_5.TimeInputAxis(size=1)

        def change(content):
            content["inputs"][0]["axes"].append(axis.model_dump(mode="json"))

        path = rewrite(make(network()), change)
        with pytest.raises(ModelError) as caught:
            load_model(path)
        assert "its input input has the axis time (time); only images can be taken" in str(
            caught.value
        )

    def test_several_inputs_are_refused(self, make):
        def change(content):
            content["inputs"].append(content["inputs"][0] | {"id": "mask"})

        with pytest.raises(ModelError, match=r"takes 2 inputs \(input, mask\); only"):
            load_model(rewrite(make(network()), change))


class Heads(nn.Module):
    """Several outputs: two images, one of them with another order, a vector, a coarse image."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, patches: torch.Tensor):
        made = self.inner(patches)
        vector = made.mean((2, 3, 4))
        coarse = torch.nn.functional.avg_pool3d(made, [1, 2, 2])
        return made, vector, made[:, :1].permute(0, 2, 3, 4, 1) * 2, coarse


class TestOutputs:
    @pytest.fixture
    def outputs(self):
        return {
            "affinities": same_but(VOLUME),
            "vector": {"b": None, "c": 2},
            "mask": {"b": None, "z": None, "y": None, "x": None, "c": 1},
            "coarse": same_but(VOLUME, y={"scale": 2.0}, x={"scale": 2.0}),
        }

    def test_are_heads_by_name_as_far_as_they_lie_side_by_side(self, make, outputs):
        native = Heads().eval()
        after = dict.fromkeys(outputs, ()) | {
            "affinities": [v0_5.SigmoidDescr()],
            "mask": [v0_5.SoftmaxDescr(), v0_5.BinarizeDescr(kwargs={"threshold": 0.5})],
        }
        loaded = load_model(make(native, outputs=outputs, after=after))
        patches = torch.rand(2, 1, 4, 8, 8)
        with torch.inference_mode():
            found, expected = loaded.module(patches), native(patches)
        assert list(found) == ["affinities", "mask"]
        torch.testing.assert_close(found["affinities"], expected[0])
        torch.testing.assert_close(found["mask"], expected[2].permute(0, 4, 1, 2, 3))
        report = loaded.report
        assert report.settings["activation"] == "0:2=sigmoid,2:3=softmax"
        assert "labelling" not in report.settings
        assert report.notes == (
            "output vector has the axes batch, channel, which are no image's; left out",
            "output coarse has other voxels than affinities; left out",
            "not taken over: binarize of mask",
        )

    def test_without_an_image_are_refused(self, make):
        class Vector(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = network()

            def forward(self, patches):
                return self.inner(patches).mean((2, 3, 4))

        path = make(Vector().eval(), outputs={"vector": {"b": None, "c": 2}})
        with pytest.raises(ModelError, match="its network returns no image: output vector has"):
            load_model(path)


class TestSizes:
    def test_free_ones_become_a_patch_of_at_least_128(self, make):
        axes = VOLUME | {
            "z": v0_5.ParameterizedSize(min=5, step=6),
            "y": v0_5.ParameterizedSize(min=20, step=50),
            "x": v0_5.ParameterizedSize(min=160, step=32),
        }
        report = load_model(make(network(), axes=axes)).report
        assert report.settings["patch_size"] == (17, 170, 160)
        assert report.details["sizes"] == "z 5 + n 6, y 20 + n 50, x 160 + n 32"
        assert report.input_shape == (None, 1, None, None, None)

    def test_fixed_ones_and_those_that_follow(self, make):
        follows = v0_5.SizeReference(
            tensor_id=v0_5.TensorId("input"), axis_id=v0_5.AxisId("y"), offset=-2
        )
        axes = {"b": 1, "c": 1, "z": 4, "y": 10, "x": follows}
        outputs = {"output": same_but(axes, x={"axis": "y", "offset": -2})}
        loaded = load_model(make(network(), axes=axes, outputs=outputs))
        report = loaded.report
        assert report.input_shape == (1, 1, 4, 10, 8)
        assert report.settings["patch_size"] == (4, 10, 8)
        assert report.details["sizes"] == "z 4, y 10, x as y -2"
        # a batch of patches although the package takes one at a time
        patches = torch.rand(3, 1, 4, 10, 8)
        with torch.inference_mode():
            torch.testing.assert_close(loaded.module(patches), network()(patches))

    def test_plane(self, make):
        report = load_model(make(network(2), axes=PLANE)).report
        assert report.settings["patch_size"] == (1, 128, 128)
        assert report.settings["planes"] == "z"

    def test_halo_is_part_of_the_input(self, make):
        cut = {"z": {"halo": 1}, "y": {"halo": 16}, "x": {"halo": 12}}
        axes = VOLUME | {
            "y": v0_5.ParameterizedSize(min=40, step=8),
            "x": v0_5.ParameterizedSize(min=40, step=8),
        }
        loaded = load_model(make(network(), axes=axes, outputs={"output": same_but(axes, **cut)}))
        settings = loaded.report.settings
        assert settings["halo"] == (1, 16, 12)
        assert settings["patch_size"] == (20 - 2, 160 - 32, 152 - 24)
        config = InferenceConfig(**settings)
        # what the network gets is min + n step again
        given = [p + 2 * h for p, h in zip(config.patch_size, config.halo, strict=True)]
        assert given == [4 + 4 * 4, 40 + 8 * 15, 40 + 8 * 14]

    def test_halo_makes_the_result_free_of_seams(self, make):
        """A patch, its halo cut off, is what the network makes of the whole volume at once."""
        torch.manual_seed(2)
        native = network()
        cut = {"z": {"halo": 2}, "y": {"halo": 2}, "x": {"halo": 2}}
        axes = {"b": None, "c": 1, "z": 8, "y": 8, "x": 8}
        axes |= {letter: v0_5.ParameterizedSize(min=8, step=2) for letter in "zyx"}
        loaded = load_model(make(native, axes=axes, outputs={"output": same_but(axes, **cut)}))
        volume = torch.rand(1, 20, 20, 20).numpy()
        config = loaded.config(
            patch_size=(4, 4, 4), overlap=0.0, padding="constant", blending="constant"
        )
        found = predict(volume, loaded, config, progress=False).array
        with torch.inference_mode():
            expected = native(torch.from_numpy(volume)[None])[0]
        torch.testing.assert_close(
            torch.from_numpy(found[:][:, 2:-2, 2:-2, 2:-2]),
            expected[:, 2:-2, 2:-2, 2:-2],
            rtol=1e-5,
            atol=1e-5,
        )


class Finer(nn.Sequential):
    def __init__(self):
        super().__init__(Net(), nn.Upsample(scale_factor=(1, 2, 2)))


class TestScale:
    def test_of_the_output(self, make):
        by = {"y": {"scale": 0.5}, "x": {"scale": 0.5}}
        loaded = load_model(make(Finer().eval(), outputs={"output": same_but(VOLUME, **by)}))
        assert loaded.config().output_scale == (1, 2, 2)

    def test_of_fixed_sizes(self, make):
        axes = {"b": None, "c": 1, "z": 4, "y": 8, "x": 8}
        outputs = {"output": {"b": None, "c": 2, "z": 4, "y": 16, "x": 16}}
        loaded = load_model(make(Finer().eval(), axes=axes, outputs=outputs))
        assert loaded.config().output_scale == (1, 2, 2)

    def test_halo_is_in_voxels_of_the_output(self, make):
        by = {"y": {"scale": 0.5, "halo": 4}, "x": {"scale": 0.5, "halo": 8}}
        axes = VOLUME | {letter: v0_5.ParameterizedSize(min=16, step=8) for letter in "yx"}
        loaded = load_model(
            make(Finer().eval(), axes=axes, outputs={"output": same_but(axes, **by)})
        )
        assert loaded.report.settings["halo"] == (0, 2, 4)
        assert loaded.report.settings["output_scale"] == (1, 2, 2)

    def test_valid_convolutions_are_no_scale(self, make):
        native = nn.Sequential(nn.Conv3d(1, 2, 3)).eval()
        less = {letter: {"offset": -2} for letter in "zyx"}
        loaded = load_model(make(native, outputs={"output": same_but(VOLUME, **less)}))
        assert "output_scale" not in loaded.report.settings
        assert loaded.config().halo == (0, 0, 0)

    def test_patch_makes_whole_voxels_of_the_output(self, make):
        axes = VOLUME | {letter: v0_5.ParameterizedSize(min=9, step=1) for letter in "yx"}
        axes |= {letter: v0_5.ParameterizedSize(min=133, step=1) for letter in "x"}
        path = make(network(), axes=axes, outputs={"output": same_but(axes)})

        def change(content):
            for axis in content["outputs"][0]["axes"][3:]:
                axis["scale"] = 2.0

        settings = load_model(rewrite(path, change)).report.settings
        assert settings["output_scale"] == (1, Fraction(1, 2), Fraction(1, 2))
        assert settings["patch_size"] == (16, 128, 134)
        InferenceConfig(**settings)


class TestType:
    def test_whole_numbers_are_given_to_a_network_that_takes_them(self, make):
        class Whole(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = network()

            def forward(self, patches: torch.Tensor):
                assert patches.dtype == torch.uint8
                return self.inner(patches.float())

        loaded = load_model(make(Whole().eval(), dtype="uint8"))
        patches = torch.randint(0, 256, (1, 1, 4, 8, 8)).float()
        with torch.inference_mode():
            torch.testing.assert_close(loaded.module(patches), network()(patches))
        assert loaded.report.settings["normalization"] == "none"
        assert "the network takes uint8: voxels are cut to whole numbers" in loaded.report.notes[0]
