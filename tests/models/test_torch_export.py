import functools
import io
import json
import math
import pickle
import sys
import time
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

import napari_seamless as ns
from napari_seamless.engine.errors import ModelError
from napari_seamless.models import inspect_checkpoint, load_model
from napari_seamless.models.graphs.torch_export import open_checkpoint
from napari_seamless.models.opened import Wanted
from napari_seamless.models.reporting.examine import examined

SIZES = (2, 1, 8, 16, 16)
FREE = dict.fromkeys((0, 2, 3, 4), Dim.AUTO)


class Small(nn.Module):
    """Halves and doubles the resolution, as a U-Net does, and has a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv3d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm3d(4)
        self.down = nn.Conv3d(4, 4, 2, stride=2)
        self.up = nn.ConvTranspose3d(4, 4, 2, stride=2)
        self.last = nn.Conv3d(8, 2, 1)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.norm.running_mean += 0.1

    def forward(self, image):
        first = torch.relu(self.norm(self.first(image)))
        up = self.up(self.down(first))
        if up.shape[2:] != first.shape[2:]:
            up = nn.functional.pad(up, (0, 1, 0, 1, 0, 1))
        return self.last(torch.cat([first, up], 1)) * self.scale


class Heads(nn.Module):
    def forward(self, image):
        return {"double": image * 2, "pair": (image + 1, [image.sum(dim=1, keepdim=True), None])}


class Blocks(nn.Module):
    """Everything of the kind that torch writes as a graph in the graph."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, image):
        with torch.no_grad():
            centred = image - image.mean()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = self.conv(centred)
        ramp = torch.arange(image.shape[-1], device=image.device) + torch.zeros(
            image.shape, device=image.device
        )
        chosen = torch.cond(
            image.sum() > 0, lambda each: each + 1, lambda each: each - 1, (half.float(),)
        )
        return chosen + ramp


class Many(nn.Module):
    """Operations with lists, several outputs, sizes, texts and infinity."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.instance = nn.InstanceNorm3d(2)

    def forward(self, image):
        one, other = torch.split(torch.cat([image, image * 2], 1), 1, dim=1)
        size = image.shape[2:]
        whole = nn.functional.interpolate(nn.functional.max_pool3d(one, 2), size, mode="trilinear")
        highest, _ = other.max(dim=2, keepdim=True)
        tokens = nn.functional.adaptive_avg_pool3d(whole, 2).reshape(-1, 2, 4)
        attended, _ = self.attention(tokens, tokens, tokens)
        norm = self.instance(torch.cat([one, other], 1))
        norm += 1
        masked = whole.masked_fill(whole < 0.5, -math.inf).clamp(min=-5)
        weighted = torch.einsum("bczyx,bczyx->bc", one, one)[:, :, None, None, None]
        return whole + highest + masked + weighted + norm[:, :1] + attended.mean()


@pytest.fixture(autouse=True)
def quiet_torch():
    """Keep torch's own warnings while it exports out of the tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def opened(path):
    """Open a file; that must not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return open_checkpoint(Wanted(path))


@pytest.fixture
def exported(tmp_path):
    """Export a network and return the file and the program."""

    def export(network, shape=SIZES, free=None, **options):
        given = torch.rand(shape)
        torch.manual_seed(0)
        program = torch.export.export(network, (given,), dynamic_shapes=free and (free,))
        if options.pop("decomposed", False):
            program = program.run_decompositions()
        path = tmp_path / "net.pt2"
        torch.export.save(program, path, **options)
        return path, program

    return export


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Small().eval()


@functools.cache
def content():
    """Return the file of a network; to export one takes as long as ten tests of what it holds."""
    torch.manual_seed(0)
    program = torch.export.export(Small().eval(), (torch.rand(SIZES),), dynamic_shapes=(FREE,))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def rewritten(path, change):
    """Change the graph and the parts of an archive, as someone with bad intent would."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    top = next(iter(parts)).partition("/")[0]
    parts = {name.removeprefix(f"{top}/"): content for name, content in parts.items()}
    program = json.loads(parts["models/model.json"])
    change(program, parts)
    parts["models/model.json"] = json.dumps(program).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(f"{top}/{name}", content)
    return path


def refusal(path):
    start = time.process_time()
    with pytest.raises(ModelError) as caught:
        opened(path)
    assert time.process_time() - start < 2
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(str(path))
    return said


class TestSameOutput:
    @pytest.mark.parametrize("decomposed", [False, True])
    @pytest.mark.parametrize("free", [None, FREE])
    def test_as_the_network(self, exported, small, free, decomposed):
        path, _ = exported(small, free=free, decomposed=decomposed)
        module = load_model(path).module
        with torch.inference_mode():
            for count in (1, 2, 5):
                batch = torch.rand(count, *SIZES[1:])
                close(module(batch), small(batch))
            if free:
                batch = torch.rand(3, 1, 6, 20, 10)
                close(module(batch), small(batch))

    @pytest.mark.parametrize("decomposed", [False, pytest.param(True, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("network", [Blocks, Many])
    def test_as_the_exported_program(self, exported, network, decomposed):
        torch.manual_seed(0)
        path, program = exported(network().eval(), free=FREE, decomposed=decomposed)
        module, reference = opened(path).module, program.module()
        for shape in (SIZES, (3, 1, 6, 20, 10)):
            batch = torch.rand(shape)
            with torch.inference_mode():
                close(module(batch), reference(batch))

    def test_heads(self, exported):
        path, _ = exported(Heads().eval(), free=FREE)
        batch = torch.rand(SIZES)
        made = opened(path).module(batch)
        assert list(made) == ["double", "pair"]
        close(made["double"], batch * 2)
        close(made["pair"][0], batch + 1)
        close(made["pair"][1][0], batch)
        assert made["pair"][1][1] is None

    @pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 3, 4, 16, 16)])
    def test_channels_and_dimensions(self, exported, shape):
        dims = len(shape) - 2
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims](3, 2, 3)
        path, _ = exported(nn.Sequential(conv, nn.ReLU()).eval(), shape, {0: Dim("batch")})
        found = opened(path)
        assert found.input_shape == (None, *shape[1:])
        assert found.settings == {
            "planes": {2: "z", 3: "none"}[dims],
            "patch_size": (1, *shape[2:])[-3:],
        }
        batch = torch.rand(1, *shape[1:])
        close(found.module(batch), torch.relu(conv(batch)))

    def test_whole_run_with_fixed_batch_and_patch(self, exported, small):
        path, _ = exported(small)
        volume = np.random.default_rng(0).random((12, 24, 24)).astype(np.float32)
        model = load_model(path)
        config = model.config(device="cpu", normalization="none", overlap=0.5)
        assert (config.patch_size, config.batch_size, config.planes) == ((8, 16, 16), 2, "none")
        made = ns.predict(volume, model, config, progress=False).array
        told = ns.predict(volume, small, config, progress=False).array
        np.testing.assert_allclose(np.asarray(made), np.asarray(told), atol=1e-5)
        with pytest.raises(ModelError, match=r"16, the only size that it takes|16\) only"):
            ns.predict(volume, path, config.model_copy(update={"patch_size": (8, 8, 8)}))

    def test_half_precision_is_computed_in_float32(self, exported):
        torch.manual_seed(0)
        half = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU()).to(torch.bfloat16).eval()

        class Cast(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = half

            def forward(self, image):
                return self.inner(image.to(torch.bfloat16)) * torch.ones(1, dtype=torch.bfloat16)

        path, _ = exported(Cast().eval(), free=FREE)
        found = opened(path)
        batch = torch.rand(SIZES)
        made = found.module(batch)
        assert made.dtype == torch.float32
        close(made, half.float()(batch))
        assert found.notes == ("its weights are of half precision; it computes in float32",)

    def test_double_precision(self, exported, tmp_path):
        network = nn.Conv3d(1, 1, 3).double()
        program = torch.export.export(network, (torch.rand(SIZES).double(),))
        torch.export.save(program, tmp_path / "net.pt2")
        batch = torch.rand(SIZES)
        close(opened(tmp_path / "net.pt2").module(batch), network(batch.double()))

    def test_on_another_device(self, exported):
        class Ramp(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv3d(1, 1, 1)

            def forward(self, image):
                ramp = torch.arange(image.shape[-1], device=image.device)
                return self.conv(image) + ramp + torch.zeros(image.shape, device=image.device)

        path, _ = exported(Ramp().eval(), free=FREE)
        made = opened(path).module.to("meta")(torch.empty(SIZES, device="meta"))
        assert (made.device.type, tuple(made.shape)) == ("meta", SIZES)

    def test_weights_stay_as_they_are(self, exported):
        network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2)).train()
        path, _ = exported(network)
        found = opened(path)
        before = {name: value.clone() for name, value in found.module.state_dict().items()}
        for _ in range(2):
            found.module(torch.rand(SIZES))
        for name, value in found.module.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert "exported in training mode" in found.notes[0]


class TestSizes:
    @pytest.mark.parametrize(
        ("shape", "said"),
        [
            ((1, 1, 9, 16, 16), "inputs with 2 * (Z // 2) == Z, not (1, 1, 9, 16, 16); choose"),
            ((1, 3, 8, 16, 16), "takes 1 channel, not 3"),
            ((1, 1, 16, 16), "is 3-D and was given (1, 1, 16, 16)"),
        ],
    )
    def test_out_of_what_was_exported(self, exported, small, shape, said):
        path, _ = exported(small, free=FREE)
        found = opened(path)
        assert found.input_shape == (None, 1, None, None, None)
        assert found.settings == {"planes": "none"}
        with pytest.raises(ModelError) as caught:
            found.module(torch.zeros(shape))
        assert said in str(caught.value)

    def test_ranges_and_multiples(self, exported, small):
        free = {
            0: Dim("batch", max=4),
            2: 2 * Dim("half_z", min=3, max=8),
            3: 2 * Dim("y"),
            4: 2 * Dim("x"),
        }
        path, _ = exported(small, free=free)
        module = opened(path).module
        for depth in (6, 8, 16):
            batch = torch.rand(1, 1, depth, 8, 4)
            close(module(batch), small(batch))
        for shape, said in [
            ((1, 1, 7, 8, 8), "Z a multiple of 2"),
            ((1, 1, 4, 8, 8), "Z from 6 on"),
            ((1, 1, 18, 8, 8), "Z up to 16"),
            ((5, 1, 8, 8, 8), "B up to 4"),
        ]:
            with pytest.raises(ModelError, match=f"was exported for inputs with {said}, not"):
                module(torch.zeros(shape))

    def test_axes_that_go_together(self, exported):
        class Turned(nn.Module):
            def forward(self, image):
                return image + image.transpose(3, 4)

        path, _ = exported(Turned().eval(), free=FREE)
        with pytest.raises(ModelError, match="Y and X that go together"):
            opened(path).module(torch.zeros(1, 1, 8, 16, 8))

    def test_inspect(self, exported, small):
        path, _ = exported(small, free=FREE)
        report = inspect_checkpoint(path)
        assert (report.format, report.architecture) == ("torch.export", "Small")
        assert (report.in_channels, report.out_channels, report.spatial_dims) == (1, 2, 3)
        assert report.parameters == sum(each.numel() for each in small.parameters()) + 1
        assert report.details == {"torch": torch.__version__}
        assert report.probe.multiples == (2, 2, 2)
        assert "carries its own network" in str(report)


class TestTensors:
    def test_by_name(self, exported, small):
        path, _ = exported(small)
        tensors = opened(path).tensors
        own = dict(small.state_dict()) | {"scale": small.scale}
        assert tensors.keys() == own.keys()
        for name, value in own.items():
            assert torch.equal(tensors[name], value)

    def test_nan(self, exported, small):
        small.down.weight.data[0, 0, 0, 0, 0] = math.nan
        path, _ = exported(small)
        assert examined(opened(path))["non_finite"] == ("down.weight",)
        with pytest.raises(ModelError, match=r"NaN or infinite \(down\.weight\)"):
            load_model(path)

    def test_layers_that_look_at_the_patch(self, exported):
        path, _ = exported(nn.Sequential(nn.InstanceNorm3d(1), nn.GroupNorm(1, 1)).eval())
        assert examined(opened(path))["patch_dependent"] == ("InstanceNorm (1)", "GroupNorm (1)")


class TestOlderArchives:
    """The archives that torch.export.save wrote before."""

    def test_tensors_in_one_file(self, exported, small):
        path, _ = exported(small)
        own = dict(small.state_dict())
        for names, (folder, kind) in zip(
            ([*own], ["scale"]), (("weights", "weights"), ("constants", "constants")), strict=True
        ):
            values = {name: own.get(name, small.scale) for name in names}
            self._in_one_file(path, folder, kind, values)
        self._check(path, small)

    def test_up_to_torch_2_7(self, exported, small):
        path, program = exported(small)
        artifact = pytest.importorskip("torch._export.serde.serialize").serialize(program)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("version", "8.8")
            archive.writestr("serialized_exported_program.json", artifact.exported_program)
            archive.writestr("serialized_state_dict.pt", artifact.state_dict)
            archive.writestr("serialized_constants.pt", artifact.constants)
            archive.writestr("serialized_example_inputs.pt", artifact.example_inputs)
        self._check(path, small)

    @staticmethod
    def _in_one_file(path, folder, kind, values):
        def change(program, parts):
            for name in [name for name in parts if name.startswith(f"data/{folder}/")]:
                del parts[name]
            buffer = io.BytesIO()
            torch.save(values, buffer)
            parts[f"data/{kind}/model.pt"] = buffer.getvalue()

        rewritten(path, change)

    @staticmethod
    def _check(path, small):
        model = load_model(path)
        batch = torch.rand(SIZES)
        close(model.module(batch), small(batch))
        assert len(model.report.sha256) == 64
        assert model.report.tensors == len(small.state_dict()) + 1


class TestOtherNetworks:
    def test_two_inputs(self, tmp_path):
        class Two(nn.Module):
            def forward(self, image, other):
                return image + other

        program = torch.export.export(Two(), (torch.rand(SIZES), torch.rand(SIZES)))
        torch.export.save(program, tmp_path / "net.pt2")
        assert "takes 2 tensors, not one; export a network that takes one batch" in refusal(
            tmp_path / "net.pt2"
        )

    def test_input_by_keyword_and_a_switch(self, tmp_path):
        class Switched(nn.Module):
            def forward(self, image, more=False, factor=1):
                return image * factor + more

        program = torch.export.export(
            Switched(), (), {"image": torch.rand(SIZES), "more": True, "factor": 3}
        )
        torch.export.save(program, tmp_path / "net.pt2")
        batch = torch.rand(SIZES)
        close(opened(tmp_path / "net.pt2").module(batch), batch * 3 + 1)

    def test_whole_numbers(self, tmp_path):
        given = torch.zeros(SIZES, dtype=torch.uint8)
        program = torch.export.export(nn.Identity(), (given,))
        torch.export.save(program, tmp_path / "net.pt2")
        assert "takes uint8 and no numbers with a fraction" in refusal(tmp_path / "net.pt2")

    def test_operation_of_ones_own(self, tmp_path):
        @torch.library.custom_op("seamless_test::double", mutates_args=())
        def double(image: torch.Tensor) -> torch.Tensor:
            return image * 2

        double.register_fake(torch.empty_like)

        class Own(nn.Module):
            def forward(self, image):
                return torch.ops.seamless_test.double(image)

        program = torch.export.export(Own(), (torch.rand(SIZES),))
        torch.export.save(program, tmp_path / "net.pt2")
        assert "asks for torch.ops.seamless_test.double.default" in refusal(tmp_path / "net.pt2")

    def test_compiled_code(self, exported, small):
        path, _ = exported(small)
        rewritten(path, lambda _, parts: parts.update({"data/aotinductor/model/a.so": b"ELF"}))
        assert "holds compiled code (AOTInductor)" in refusal(path)

    def test_other_version(self, exported, small):
        path, _ = exported(small)
        rewritten(path, lambda program, _: program["schema_version"].update(major=9))
        assert "has version 9 of torch.export's format, not 8" in refusal(path)

    def test_no_network(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
            archive.writestr("net/archive_format", "pt2")
        assert "holds no network called 'model'" in refusal(tmp_path / "net.pt2")


class Trap:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def first_size(program):
    names = [each["as_tensor"]["name"] for each in program["graph_module"]["graph"]["inputs"]]
    return program["graph_module"]["graph"]["tensor_values"][names[-1]]["sizes"][0]["as_expr"]


class TestHostile:
    """Files that torch.export.load would run something of; the first four do spring there."""

    @pytest.fixture
    def trap(self, tmp_path):
        path = tmp_path / "sprung"
        yield path
        assert not path.exists()

    @pytest.fixture
    def path(self, tmp_path):
        """A file of its own for each test, to change."""
        path = tmp_path / "net.pt2"
        path.write_bytes(content())
        return path

    @pytest.fixture
    def code(self, trap):
        return f"__import__('pathlib').Path({str(trap)!r}).touch()"

    def test_expression_of_a_size(self, path, code):
        rewritten(path, lambda program, _: first_size(program).update(expr_str=code))
        assert "asks for \"__import__('pathlib')" in refusal(path)

    def test_condition(self, path, trap):
        code = f"open({str(trap)!r}, 'w') is None"
        rewritten(path, lambda program, _: program["guards_code"].append(code))
        assert 'asks for "open(' in refusal(path)

    def test_pickled_constant(self, path, trap):
        def change(_, parts):
            name = "data/constants/model_constants_config.json"
            config = json.loads(parts[name])
            config["config"]["scale"]["use_pickle"] = True
            parts[name] = json.dumps(config).encode()
            buffer = io.BytesIO()
            torch.save(Trap(trap), buffer)
            parts["data/constants/tensor_0"] = buffer.getvalue()

        assert "holds pickled objects, not only tensors, in data/constants/tensor_0" in refusal(
            rewritten(path, change)
        )

    @pytest.mark.parametrize("save", [torch.save, pickle.dump])
    def test_example_inputs_are_not_looked_at(self, path, trap, save, small):
        def change(_, parts):
            buffer = io.BytesIO()
            save(((Trap(trap),), {}), buffer)
            parts["data/sample_inputs/model.pt"] = buffer.getvalue()

        batch = torch.rand(SIZES)
        close(opened(rewritten(path, change)).module(batch), small(batch))

    @pytest.mark.parametrize(
        "values", [lambda trap: Trap(trap), lambda trap: {"scale": Trap(trap)}, lambda _: [1]]
    )
    def test_pickled_weights(self, path, trap, values):
        def change(_, parts):
            buffer = io.BytesIO()
            torch.save(values(trap), buffer)
            parts["data/weights/model.pt"] = buffer.getvalue()

        assert "holds pickled objects, not only tensors, in data/weights/model.pt" in refusal(
            rewritten(path, change)
        )

    @pytest.mark.parametrize(
        "target",
        [
            "torch.os.system",
            "torch.hub.load",
            "torch.load",
            "builtins.eval",
            "torch.ops.load_library",
            "torch.ops.aten.from_file.default",
            "torch.ops.aten.save.default",
            "torch.ops.aten.__class__.mro",
            "torch.ops.aten._reshape_alias.default",
            "torch.ops.higher_order.map_impl",
            "torch.ops.inductor._reinterpret_tensor.default",
            "torch._C._jit_set_profiling_mode",
            "_operator.methodcaller",
            "_operator.attrgetter",
            "math.__loader__",
            "#extension:evil",
            "",
        ],
    )
    def test_target_of_a_call(self, path, trap, target):
        def change(program, _):
            node = program["graph_module"]["graph"]["nodes"][0]
            node["target"] = target
            node["inputs"] = [
                {"name": "", "arg": {"as_string": f"touch {trap}"}, "kind": 1},
            ]

        assert f"asks for {target}, which is none of torch's operations" in refusal(
            rewritten(path, change)
        )

    @pytest.mark.parametrize("kind", ["as_operator", "as_custom_obj", "as_unknown"])
    def test_argument(self, path, kind):
        def change(program, _):
            node = program["graph_module"]["graph"]["nodes"][0]
            node["inputs"][1]["arg"] = {kind: "torch.os.system"}

        assert f"asks for an argument of kind '{kind}'" in refusal(rewritten(path, change))

    def test_names_never_become_code(self, path, trap, small):
        evil = f"x):\n  open({str(trap)!r}, 'w')\ndef other(self, x"

        def change(program, _):
            text = json.dumps(program["graph_module"])
            name = json.dumps("image")
            assert f'"name": {name}' in text
            program["graph_module"] = json.loads(text.replace(name, json.dumps(evil)))

        batch = torch.rand(SIZES)
        close(opened(rewritten(path, change)).module(batch), small(batch))

    def test_texts_never_become_code(self, path, trap):
        evil = f"'); open({str(trap)!r}, 'w'); ('"

        def change(program, _):
            node = program["graph_module"]["graph"]["nodes"][0]
            node["inputs"][2]["arg"] = {"as_string": evil}

        with pytest.raises(RuntimeError):
            opened(rewritten(path, change)).module(torch.rand(SIZES))

    def test_structure_of_the_output_imports_nothing(self, path, tmp_path, monkeypatch, trap):
        (tmp_path / "evil_module.py").write_text(f"open({str(trap)!r}, 'w')")
        monkeypatch.syspath_prepend(tmp_path)
        context = {
            "default_factory_module": "evil_module",
            "default_factory_name": "list",
            "dict_context": ["out"],
        }
        leaf = {"type": None, "context": None, "children_spec": []}

        def change(program, _):
            program["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps(
                [
                    1,
                    {
                        "type": "collections.defaultdict",
                        "context": json.dumps(context),
                        "children_spec": [leaf],
                    },
                ]
            )

        assert list(opened(rewritten(path, change)).module(torch.rand(SIZES))) == ["out"]

    @pytest.mark.parametrize(
        "sizes", [[{"as_int": 4_000_000_000}], [{"as_int": -1}], [{"as_int": "4"}], [{}], None]
    )
    def test_forged_sizes_of_weights(self, path, sizes):
        def change(_, parts):
            name = "data/weights/model_weights_config.json"
            config = json.loads(parts[name])
            meta = config["config"]["first.bias"]["tensor_meta"]
            meta["sizes"] = sizes
            parts[name] = json.dumps(config).encode()

        assert "is cut short or damaged (" in refusal(rewritten(path, change))

    def test_weights_that_are_not_there(self, path):
        def change(_, parts):
            parts["data/weights/weight_0"] = b""

        assert "lacks the values of weight_0" in refusal(rewritten(path, change))

    def test_weights_of_another_folder(self, path):
        def change(_, parts):
            name = "data/weights/model_weights_config.json"
            parts[name] = parts[name].replace(b'"weight_0"', b'"../../../weight_0"')

        opened(rewritten(path, change))  # only the last part of a name counts

    @pytest.mark.parametrize(
        "text", ["[" * 100_000, "null", "[]", "{}", '{"schema_version": {"major": 8}}', "\xff"]
    )
    def test_graph_that_is_none(self, path, text):
        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
            name = next(each for each in archive.namelist() if each.endswith("models/model.json"))
            archive.writestr(name, text.encode("latin-1"))
        said = refusal(path)
        assert "is cut short or damaged (" in said or "is no text" in said

    def test_deep_blocks(self, path, monkeypatch):
        dumps = json.dumps

        def dumped(program):
            limit = sys.getrecursionlimit()
            sys.setrecursionlimit(10 * limit)
            try:
                return dumps(program)
            finally:
                sys.setrecursionlimit(limit)

        monkeypatch.setattr(json, "dumps", dumped)

        def change(program, _):
            graph = program["graph_module"]["graph"]
            inner = graph["nodes"][0]
            for _ in range(120):
                block = {"inputs": [], "outputs": [], "nodes": [inner]}
                block["is_single_tensor_return"] = False
                inner = {
                    "target": "torch.ops.higher_order.wrap_with_set_grad_enabled",
                    "inputs": [
                        {"name": "", "arg": {"as_bool": True}, "kind": 1},
                        {"name": "", "arg": {"as_graph": {"name": "g", "graph": block}}},
                    ],
                    "outputs": [],
                    "metadata": {},
                }
            graph["nodes"].insert(0, inner)

        assert "is cut short or damaged (" in refusal(rewritten(path, change))

    def test_cut_short(self, path):
        content = path.read_bytes()
        for part in range(20):
            path.write_bytes(content[: 64 + len(content) * part // 21])
            assert "is cut short or damaged (" in refusal_of_any_kind(path)


def refusal_of_any_kind(path):
    """Return the message as the user sees it, the format being found out first."""
    start = time.process_time()
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert time.process_time() - start < 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_conditions_that_are_not_understood(exported, small):
    path, _ = exported(small, free=FREE)
    rewritten(path, lambda program, _: program["guards_code"].append("L['image'].stride()[0] == 1"))
    found = opened(path)
    assert found.notes == (
        "1 of its conditions on the input's size are too involved to be checked",
    )
