import hashlib
import io
import math
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import napari_seamless as ns
from napari_seamless.engine.errors import ModelError
from napari_seamless.models import inspect_checkpoint, load_model, sniff_format
from napari_seamless.models.graphs import onnx as onnx_format
from napari_seamless.models.opened import Wanted
from napari_seamless.models.parts import parts_of
from napari_seamless.models.reporting.examine import examined

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, kinds = onnx.helper, onnx.TensorProto

SIZES = (1, 1, 8, 16, 16)


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.ReLU(), nn.Conv3d(8, 2, 1)
    ).eval()


def export(network, path, *, newer, free=False, shape=SIZES, **options):
    """Write a network by one of torch's two exporters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if newer:
            pytest.importorskip("onnxscript")
            dim = torch.export.Dim
            dynamic = ({0: dim("batch"), 2: dim("z"), 3: dim("y"), 4: dim("x")},)
            options = {"dynamic_shapes": dynamic if free else None, "verbose": False} | options
        else:
            dynamic = {"image": dict.fromkeys((0, 2, 3, 4), "any")}
            dynamic = {"image": {axis: f"axis{axis}" for axis in dynamic["image"]}}
            options = {"dynamic_axes": dynamic if free else None} | options
        torch.onnx.export(
            network, (torch.rand(shape),), str(path), input_names=["image"], dynamo=newer, **options
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of both exporters, free and fixed; the newer one puts its weights beside."""
    folder = tmp_path_factory.mktemp("onnx")
    for newer in (False, True):
        for free in (False, True):
            name = f"{'newer' if newer else 'older'}_{'free' if free else 'fixed'}.onnx"
            export(small(), folder / name, newer=newer, free=free)
    return folder


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.onnx"


@pytest.fixture
def made(path):
    """Write a model by the package that owns the format, and return its file."""

    def make(shape=(1, 1, "z", 4, 4), kind=kinds.FLOAT, weights=None, nodes=None, **options):
        if weights is None:
            weights = [helper.make_tensor("weight", kind, [1], [2.0])]
        nodes = nodes or [helper.make_node("Mul", ["image", "weight"], ["out"])]
        outputs = options.pop("outputs", {"out": kind})
        inputs = options.pop("inputs", {"image": shape})
        graph = helper.make_graph(
            nodes,
            "own graph",
            [helper.make_tensor_value_info(name, kind, each) for name, each in inputs.items()],
            [helper.make_tensor_value_info(name, each, None) for name, each in outputs.items()],
            weights,
        )
        told = {"opset_imports": [helper.make_opsetid("", 17)], "ir_version": 8} | options
        path.write_bytes(helper.make_model(graph, **told).SerializeToString())
        return path

    return make


def opened(path):
    """Open a file; that must not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return onnx_format.open_checkpoint(Wanted(path))


def refusal(path, load=opened):
    start = time.thread_time()
    with pytest.raises(ModelError) as caught:
        load(path)
    assert time.thread_time() - start < 10  # it does not go on for ever
    assert "\n" not in str(caught.value)
    return str(caught.value)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


class TestSameOutput:
    @pytest.mark.parametrize("exporter", ["older", "newer"])
    def test_fixed(self, files, exporter):
        path = files / f"{exporter}_fixed.onnx"
        assert sniff_format(path) == "onnx"
        model = load_model(path)
        assert model.report.input_shape == SIZES
        assert model.report.settings == {
            "planes": "none",
            "patch_size": (8, 16, 16),
            "batch_size": 1,
        }
        for count in (1, 4):
            batch = torch.rand(count, *SIZES[1:])
            with torch.inference_mode():
                close(model.module(batch), small()(batch))
        with pytest.raises(ModelError, match=r"takes patches of \(8, 16, 16\) only"):
            model.module(torch.rand(1, 1, 8, 8, 8))

    @pytest.mark.parametrize("exporter", ["older", "newer"])
    def test_free(self, files, exporter):
        model = load_model(files / f"{exporter}_free.onnx")
        assert model.report.input_shape == (None, 1, None, None, None)
        for shape in (SIZES, (3, 1, 6, 10, 12)):
            batch = torch.rand(shape)
            with torch.inference_mode():
                close(model.module(batch), small()(batch))

    @pytest.mark.parametrize("opset", [11, 14, 17])
    def test_opsets(self, path, opset):
        export(small(), path, newer=False, opset_version=opset)
        batch = torch.rand(SIZES)
        with torch.inference_mode():
            close(opened(path).module(batch), small()(batch))

    def test_planes(self, path):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Sigmoid()).eval()
        export(network, path, newer=False, shape=(4, 3, 8, 8))
        found = opened(path)
        assert found.settings == {"planes": "z", "patch_size": (1, 8, 8), "batch_size": 4}
        batch = torch.rand(5, 3, 8, 8)
        with torch.inference_mode():
            close(found.module(batch), network(batch))

    def test_whole_run(self, files):
        volume = np.random.default_rng(0).random((12, 24, 24)).astype(np.float32)
        model = load_model(files / "newer_fixed.onnx")
        config = model.config(device="cpu", normalization="none", batch_size=3)
        made = ns.predict(volume, model, config, progress=False).array
        told = ns.predict(volume, small(), config, progress=False).array
        np.testing.assert_allclose(np.asarray(made), np.asarray(told), atol=1e-5)
        assert made.shape == (2, 12, 24, 24)

    def test_open_file(self, files):
        content = (files / "older_free.onnx").read_bytes()
        found = onnx_format.open_file(io.BytesIO(content), "package.zip: net.onnx")
        batch = torch.rand(SIZES)
        with torch.inference_mode():
            close(found.module(batch), small()(batch))

    def test_half_precision(self, made):
        path = made(kind=kinds.FLOAT16, outputs={"out": kinds.FLOAT16})
        found = opened(path)
        assert found.tensors["weight"].dtype == torch.float16
        assert found.notes[1] == "it takes float16: patches are turned into that"
        batch = torch.full((1, 1, 2, 4, 4), 1.5)
        close(found.module(batch).float(), 2 * batch)

    def test_double_precision(self, made):
        path = made(kind=kinds.DOUBLE, outputs={"out": kinds.DOUBLE})
        batch = torch.rand(1, 1, 2, 4, 4)
        close(opened(path).module(batch).float(), 2 * batch)

    def test_several_outputs_by_name(self, made):
        nodes = [
            helper.make_node("Mul", ["image", "weight"], ["out"]),
            helper.make_node("ArgMax", ["image"], ["class"], axis=1),
        ]
        path = made(nodes=nodes, outputs={"out": kinds.FLOAT, "class": kinds.INT64})
        batch = torch.rand(3, 1, 2, 4, 4)
        heads = opened(path).module(batch)
        assert list(heads) == ["out", "class"]
        close(heads["out"], 2 * batch)
        assert heads["class"].shape == batch.shape

    def test_input_of_any_shape(self, made):
        found = opened(made(shape=None))
        assert (found.input_shape, found.settings) == (None, {})
        batch = torch.rand(2, 1, 3, 3)
        close(found.module.to("cpu").eval()(batch), 2 * batch)

    def test_weights_that_may_be_given_are_no_inputs(self, made):
        path = made(inputs={"image": (1, 1, "z", 4, 4), "weight": (1,)})
        assert opened(path).input_shape == (1, 1, None, 4, 4)


class TestReport:
    def test_inspect(self, files):
        report = inspect_checkpoint(files / "newer_free.onnx")
        assert (report.format, report.architecture) == ("ONNX", "main_graph")
        assert (report.in_channels, report.out_channels, report.spatial_dims) == (1, 2, 3)
        own = sum(each.numel() for each in small().parameters())
        assert report.parameters == own + 2 * 8  # instance normalisation always scales in ONNX
        assert report.details == {"made by": "pytorch"}
        assert report.notes == ("it runs on the CPU (onnxruntime), whatever device is chosen",)
        assert report.patch_dependent == ("InstanceNormalization (1)",)
        assert "(InstanceNormalization (1)): the same voxel comes out" in report.warnings()[0]

    def test_sum_covers_weights_beside(self, files, tmp_path):
        for name in ("newer_free.onnx", "newer_free.onnx.data"):
            (tmp_path / name).write_bytes((files / name).read_bytes())
        path, beside = tmp_path / "newer_free.onnx", tmp_path / "newer_free.onnx.data"
        assert parts_of(path, "onnx") == [path, beside]
        before = load_model(path).report.sha256
        beside.write_bytes(beside.read_bytes()[:-4] + np.float32(0.5).tobytes())
        assert load_model(path).report.sha256 != before
        alone = files / "older_free.onnx"
        assert load_model(alone).report.sha256 == hashlib.sha256(alone.read_bytes()).hexdigest()

    def test_takes_no_other_network(self, files):
        with pytest.raises(ModelError, match="is ONNX, which carries its own network: leave out w"):
            load_model(files / "newer_free.onnx", weights="ema")

    def test_weights_by_name(self, files):
        for name in ("newer_free", "newer_fixed", "older_free"):
            tensors = opened(files / f"{name}.onnx").tensors
            assert torch.equal(tensors["0.weight"], small()[0].weight)
            assert torch.equal(tensors["3.bias"], small()[3].bias)

    @pytest.mark.parametrize("raw", [False, True])
    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [
            (kinds.FLOAT, np.float32),
            (kinds.FLOAT16, np.float16),
            (kinds.DOUBLE, np.float64),
            (kinds.UINT8, np.uint8),
            (kinds.INT8, np.int8),
        ],
    )
    def test_every_way_to_write_weights(self, made, kind, dtype, raw):
        values = np.array([[1, 2, 3], [4, 5, 120]], dtype)
        if kind not in (kinds.UINT8,):
            values[0, 1] = -2
        given = values.tobytes() if raw else values.flatten().tolist()
        weights = [
            helper.make_tensor("weight", kinds.FLOAT, [1], [2.0]),
            helper.make_tensor("other", kind, values.shape, given, raw=raw),
            helper.make_tensor("sizes", kinds.INT64, [1], [7]),
        ]
        nodes = [
            helper.make_node("Mul", ["image", "weight"], ["out"]),
            helper.make_node("Identity", ["other"], ["also"]),
            helper.make_node("Identity", ["sizes"], ["last"]),
        ]
        outputs = {"out": kinds.FLOAT, "also": kind, "last": kinds.INT64}
        tensors = opened(made(weights=weights, nodes=nodes, outputs=outputs)).tensors
        assert list(tensors) == ["weight", "other"]
        np.testing.assert_array_equal(tensors["other"].numpy(), values)

    def test_nan(self, made):
        path = made(weights=[helper.make_tensor("weight", kinds.FLOAT, [1], [math.nan])])
        assert examined(opened(path))["non_finite"] == ("weight",)
        assert "NaN or infinite (weight)" in refusal(path, load_model)


class TestOtherModels:
    def test_two_inputs(self, made):
        nodes = [helper.make_node("Add", ["image", "other"], ["out"])]
        path = made(inputs={"image": SIZES, "other": SIZES}, nodes=nodes)
        assert "takes 2 inputs ('image', 'other'), not one" in refusal(path)

    def test_whole_numbers(self, made):
        nodes = [helper.make_node("Identity", ["image"], ["out"])]
        path = made(kind=kinds.UINT8, nodes=nodes, weights=[], outputs={"out": kinds.UINT8})
        assert "takes tensor(uint8) and no numbers with a fraction" in refusal(path)

    def test_no_images(self, made):
        assert "takes an input of 2 axes, (any, 10); give one" in refusal(made(shape=("b", 10)))

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"opset_imports": [helper.make_opsetid("", 999)]}, "Opset 999 is under development"),
            ({"ir_version": 99}, "Unsupported model IR version: 99"),
            (
                {
                    "nodes": [helper.make_node("Own", ["image"], ["out"], domain="lab")],
                    "opset_imports": [helper.make_opsetid("lab", 1)],
                },
                "lab:Own",
            ),
        ],
    )
    def test_what_onnxruntime_does_not_know(self, made, options, said):
        path = made(**options)
        message = refusal(path)
        assert message.startswith("onnxruntime ")
        assert f"cannot run {path}: " in message
        assert said in message
        assert "onnxruntime_src" not in message

    def test_without_onnxruntime(self, made, monkeypatch):
        path = made()
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        assert 'pip install "napari-seamless[onnx]"' in refusal(path)

    def test_error_while_running_is_one_line(self, made):
        nodes = [
            helper.make_node("Reshape", ["image", "to"], ["flat"]),
            helper.make_node("Mul", ["flat", "weight"], ["out"]),
        ]
        weights = [
            helper.make_tensor("weight", kinds.FLOAT, [1], [2.0]),
            helper.make_tensor("to", kinds.INT64, [2], [1, 7]),
        ]
        path = made(nodes=nodes, weights=weights)
        config = ns.InferenceConfig(patch_size=(4, 4, 4), device="cpu", normalization="none")
        volume = np.zeros((4, 4, 4), np.float32)
        said = refusal(path, lambda path: ns.predict(volume, path, config, progress=False))
        assert "the network failed on a batch" in said


class TestHostile:
    def with_weights_in(self, path, location, content, length=None):
        model = onnx.load(path)
        tensor = model.graph.initializer[0]
        tensor.ClearField("float_data")
        tensor.data_location = kinds.EXTERNAL
        told = {"location": location, "offset": "0", "length": str(length or len(content))}
        for key, value in told.items():
            tensor.external_data.add(key=key, value=value)
        path.write_bytes(model.SerializeToString())
        return path

    @pytest.mark.parametrize(
        "location",
        [
            "../secret.bin",
            "{absolute}",
            "sub/../../secret.bin",
            "..\\secret.bin",
            "C:\\secret.bin",
            "link.bin",
            "folder/secret.bin",
            "",
        ],
    )
    def test_weights_outside_of_the_folder(self, tmp_path, made, location):
        folder = tmp_path / "model"
        (folder / "sub").mkdir(parents=True)
        secret = tmp_path / "secret.bin"
        secret.write_bytes(np.float32(5).tobytes())
        (folder / "link.bin").symlink_to(secret)
        (folder / "folder").symlink_to(tmp_path)
        path = made().rename(folder / "net.onnx")
        self.with_weights_in(path, location.format(absolute=secret), secret.read_bytes())
        assert "which is outside of its folder; nothing was read" in refusal(path)

    def test_weights_of_a_constant_outside_of_the_folder(self, made, tmp_path):
        outside = helper.make_tensor("value", kinds.FLOAT, [1], [2.0])
        outside.ClearField("float_data")
        outside.data_location = kinds.EXTERNAL
        outside.external_data.add(key="location", value="/etc/hostname")
        inner = helper.make_graph(
            [helper.make_node("Constant", [], ["made"], value=outside)],
            "inner",
            [],
            [helper.make_tensor_value_info("made", kinds.FLOAT, None)],
        )
        nodes = [
            helper.make_node("If", ["yes"], ["out"], then_branch=inner, else_branch=inner),
        ]
        path = made(nodes=nodes, weights=[helper.make_tensor("yes", kinds.BOOL, [], [True])])
        assert "wants its weights from '/etc/hostname', which is outside" in refusal(path)

    def test_weights_beside(self, made, path):
        content = np.float32(5).tobytes()
        self.with_weights_in(made(), "net.data", content)
        assert f"{path} has its weights in net.data, which is not there" in refusal(path)
        path.with_name("net.data").write_bytes(content)
        batch = torch.rand(1, 1, 2, 4, 4)
        close(opened(path).module(batch), 5 * batch)
        packed = io.BytesIO(path.read_bytes())
        said = refusal(path, lambda _: onnx_format.open_file(packed, "a.zip: net.onnx"))
        assert said.startswith("a.zip: net.onnx has its weights in another file (net.data);")

    def test_weights_beside_that_are_too_few(self, made, path):
        self.with_weights_in(made(), "net.data", b"", length=4)
        path.with_name("net.data").write_bytes(b"\0")
        refusal(path)

    @pytest.mark.parametrize("exporter", ["older", "newer"])
    def test_cut_short(self, files, path, exporter):
        content = (files / f"{exporter}_fixed.onnx").read_bytes()
        for part in range(20):
            path.write_bytes(content[: len(content) * (part + 1) // 21])
            said = refusal(path)
            assert said.startswith(f"{path} is cut short or damaged (")

    @pytest.mark.parametrize(
        "content",
        [b"\x08\x08", b"\x08\x08\x3a\xff\xff\xff\xff\x7f", b"\x08" + b"\xff" * 20, b"\x08\x08\x3b"],
    )
    def test_damaged(self, path, content):
        path.write_bytes(content)
        assert refusal(path).startswith((f"{path} is cut short or damaged (", "onnxruntime "))
