import io
import math
import time
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

import napari_seamless as ns
from napari_seamless.engine.errors import ModelError
from napari_seamless.models import inspect_checkpoint, load_model
from napari_seamless.models.graphs import torchscript
from napari_seamless.models.opened import Wanted
from napari_seamless.models.reporting.examine import examined


@pytest.fixture(autouse=True)
def quiet_torch():
    """TorchScript is deprecated, which is no news here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.pt"


def small(dims=3):
    torch.manual_seed(0)
    conv, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[dims]
    return nn.Sequential(conv(1, 4, 3, padding=1), norm(4), nn.Dropout(0.5), conv(4, 2, 1)).eval()


def opened(path):
    """Open a file; that must not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return torchscript.open_checkpoint(Wanted(path))


def refusal(path):
    start = time.thread_time()
    with pytest.raises(ModelError) as caught:
        opened(path)
    assert time.thread_time() - start < 10  # it does not go on for ever
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(str(path))
    return said


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def written(network, how, size):
    if how == "scripted":
        return torch.jit.script(network)
    traced = torch.jit.trace(network, torch.rand(size))
    return traced if how == "traced" else torch.jit.freeze(traced)


def rewritten(path, change):
    """Change the parts of an archive; `change` gets them by name."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


class TestSameOutput:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("how", ["scripted", "traced", "frozen"])
    def test_as_the_network(self, path, how, dims):
        network = small(dims)
        written(network, how, (1, 1, *[8] * dims)).save(path)
        found = opened(path)
        assert found.settings == {"planes": {2: "z", 3: "none"}[dims]}
        assert found.input_shape is None
        assert len(found.tensors) == (0 if how == "frozen" else 9)
        for count in (1, 3):
            batch = torch.rand(count, 1, *[6] * dims)
            with torch.inference_mode():
                close(found.module.eval()(batch), network(batch))

    @pytest.mark.parametrize("how", ["scripted", "traced", "frozen"])
    def test_whole_run(self, path, how):
        network = small()
        written(network, how, (1, 1, 8, 8, 8)).save(path)
        config = ns.InferenceConfig(
            patch_size=(4, 8, 8), device="cpu", normalization="none", batch_size=3
        )
        volume = np.random.default_rng(0).random((6, 12, 12)).astype(np.float32)
        made = ns.predict(volume, path, config, progress=False).array
        told = ns.predict(volume, network, config, progress=False).array
        np.testing.assert_allclose(np.asarray(made), np.asarray(told), atol=1e-5)

    def test_open_file(self):
        network, file = small(), io.BytesIO()
        torch.jit.save(torch.jit.script(network), file)
        file.seek(0)
        found = torchscript.open_file(file, "package.zip: net.pt")
        batch = torch.rand(1, 1, 4, 4, 4)
        close(found.module(batch), network(batch))
        with pytest.raises(ModelError, match=r"^package\.zip: net\.pt is cut short or damaged"):
            torchscript.open_file(io.BytesIO(b"PK\x03\x04"), "package.zip: net.pt")

    def test_both_dimensions_leave_the_planes_open(self, path):
        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.plane, self.volume = nn.Conv2d(1, 1, 1), nn.Conv3d(1, 1, 1)

            def forward(self, image):
                return self.volume(image) + self.plane(image[:, :, 0])[:, :, None]

        torch.jit.script(Both()).save(path)
        assert opened(path).settings == {}

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, path, dtype):
        network = small().to(dtype)
        torch.jit.script(network).save(path)
        found = opened(path)
        batch = torch.rand(1, 1, 4, 4, 4)
        made = found.module(batch)
        assert made.dtype == torch.float32
        close(made, network.float()(batch))
        assert found.notes == ("its weights are of half precision; it computes in float32",)

    def test_network_that_makes_half_precision_itself_stays_as_it_is(self, path):
        class Cast(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv3d(1, 1, 1).to(torch.bfloat16)

            def forward(self, image):
                return self.conv(image.to(torch.bfloat16)).float()

        network = Cast()
        torch.jit.script(network).save(path)
        found = opened(path)
        batch = torch.rand(1, 1, 4, 4, 4)
        close(found.module(batch), network(batch))
        assert found.notes == ()


class TestReport:
    def test_saved_in_training_mode(self, path):
        network = small()
        torch.jit.script(network.train()).save(path)
        assert opened(path).notes == ()
        batch = torch.rand(2, 1, 4, 4, 4)
        with torch.inference_mode():
            close(load_model(path).module(batch), network.eval()(batch))

    def test_traced_in_training_mode(self, path):
        torch.jit.trace(small().train(), torch.rand(2, 1, 4, 4, 4), check_trace=False).save(path)
        assert "was traced in training mode: its dropout and batch norm" in opened(path).notes[0]

    def test_nan(self, path):
        network = small()
        network[3].weight.data[0] = math.nan
        torch.jit.script(network).save(path)
        assert examined(opened(path))["non_finite"] == ("3.weight",)
        with pytest.raises(ModelError, match=r"NaN or infinite \(3\.weight\)"):
            load_model(path)


class Saves(nn.Module):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def forward(self, image):
        torch.save(image, self.path)
        return image


class Maps(Saves):
    def forward(self, image):
        return image + torch.from_file(self.path, shared=True, size=4).sum()


class MapsWhenLoaded(nn.Module):
    def __init__(self, path):
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self):
        return (self.path, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.path = state[0]
        self.training = torch.from_file(state[0], shared=True, size=4).sum().item() > 0

    def forward(self, image):
        return image


class TestHostile:
    @pytest.fixture
    def trap(self, tmp_path):
        path = tmp_path / "sprung"
        yield path
        assert not path.exists()

    @pytest.mark.parametrize(
        ("network", "operation"),
        [(Saves, "save"), (Maps, "from_file"), (MapsWhenLoaded, "from_file")],
    )
    def test_operations_on_files(self, path, trap, network, operation):
        torch.jit.script(network(str(trap))).save(path)
        assert f"asks to run 'torch.{operation}' (in code/__torch__" in refusal(path)

    @pytest.mark.parametrize(
        "call",
        [
            'torch.save(image, "{}")',
            'torch . save(image, "{}")',
            'torch.\\\n  save(image, "{}")',
            '(torch).save(image, "{}")',
            'ops.aten.save(image, "{}")',
            'getattr(torch, "save")(image, "{}")',
            'getattr(torch, "sa" "ve")(image, "{}")',
            'getattr(torch, "sa\\166e")(image, "{}")',
            "getattr(torch, 'sa' 've')(image, \"{}\")",
            'getattr (torch, "sa" "ve")(image, "{}")',
            'getattr(ops, "aten").save(image, "{}")',
            'ops.debugprims.load_tensor("{}", [1], [1], dtype=6, device="cpu")',
            "ops.inductor._reinterpret_tensor(image, [9], [1], 1000)",
            "__torch__.torch.classes.dist_rpc.WorkerInfo()",
            "ops",
        ],
    )
    def test_call_however_it_is_written(self, path, trap, call):
        torch.jit.script(nn.Identity()).save(path)

        def change(parts):
            (name,) = (each for each in parts if each.endswith(".py"))
            code = parts[name].decode()
            assert "return input" in code
            line = call.replace("image", "input").format(trap)
            parts[name] = code.replace("return input", f"{line}\n    return input").encode()

        assert "asks to run '" in refusal(rewritten(path, change))

    def test_class_in_a_pickle(self, path):
        torch.jit.script(nn.Identity()).save(path)

        def change(parts):
            (name,) = (each for each in parts if each.endswith("/data.pkl"))
            parts[name] = b"\x80\x02c__torch__.torch.classes.evil\nThing\n)\x81."

        assert "asks to run 'torch.classes.evil' (in data.pkl)" in refusal(rewritten(path, change))

    def test_pickle_calls_nothing(self, path, trap):
        torch.jit.script(nn.Identity()).save(path)

        def change(parts):
            for name in parts:
                if name.endswith((".pkl", ".debug_pkl")):
                    parts[name] = f"cbuiltins\nopen\n(V{trap}\nVw\ntR.".encode()

        refusal(rewritten(path, change))

    def test_parts_that_torch_would_see_and_zipfile_would_not(self, path, trap):
        """What is loaded is what was looked through, whatever else the archive holds."""
        torch.jit.script(nn.Identity()).save(path)
        good = path.read_bytes()
        torch.jit.script(Saves(str(trap))).save(path)
        path.write_bytes(path.read_bytes() + good)
        batch = torch.rand(1, 1, 2, 2, 2)
        assert torch.equal(opened(path).module(batch), batch)

    def test_part_that_expands(self, path):
        torch.jit.script(nn.Identity()).save(path)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("net/data/9", bytes(300 * 1024**2))
        assert "is cut short or damaged (its parts claim more bytes than it has)" in refusal(path)

    def test_cut_short(self, path):
        torch.jit.script(small()).save(path)
        content = path.read_bytes()
        for part in range(20):
            path.write_bytes(content[: len(content) * (part + 1) // 21])
            assert "is cut short or damaged (" in refusal(path)

    def test_memory_beyond_a_tensor(self, path):
        class Reaches(nn.Module):
            def forward(self, batch: torch.Tensor) -> torch.Tensor:
                return torch.ops.aten._reshape_alias(batch, [1000000], [1000000]).sum() + batch

        torch.jit.script(Reaches()).save(path)
        assert "asks to run 'torch._reshape_alias'" in refusal(path)

    def test_loop_while_loading(self, path):
        torch.jit.script(LoadsInALoop()).save(path)
        assert "a loop while it is loaded" in refusal(path)

    def test_buffer_that_seems_larger_than_any_memory(self, path):
        network = nn.Identity()
        network.register_buffer("one", torch.ones(1).expand(10**6, 10**6))
        torch.jit.script(network).save(path)
        report = inspect_checkpoint(path)
        assert (report.tensors, report.non_finite) == (1, ())


class LoadsInALoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.count = 3

    @torch.jit.export
    def __getstate__(self):
        return (self.count, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[int, bool]):
        self.count = state[0]
        self.training = state[1]
        turns = 0
        while turns < 5:
            turns += 1

    def forward(self, batch):
        return batch
