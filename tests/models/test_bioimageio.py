"""Packages of bioimage.io: weights, and code that they bring."""

import hashlib

import pytest
import torch

from models.bioimageio_packages import (
    Maker,
    network,
    package_of_format_0_4,
    quiet,
    rewrite,
    v0_5,
)
from napari_seamless.engine.errors import ModelError, UntrustedError
from napari_seamless.models import inspect_checkpoint, load_model

NET = "models.bioimageio_packages:Net"


@pytest.fixture
def make(tmp_path):
    return Maker(tmp_path / "made")


def assert_same(module, native, patches, expected=None):
    """Check that a loaded network makes of patches what the original makes of them."""
    with torch.inference_mode():
        expected = native(patches.clone()) if expected is None else expected
        torch.testing.assert_close(module(patches), expected, rtol=1e-5, atol=1e-5)


class TestWeights:
    @pytest.mark.parametrize("kind", ["zip", "folder", "file"])
    def test_torchscript(self, make, kind, recwarn):
        path = make(network(), kind)
        loaded = load_model(path)
        assert_same(loaded.module, network(), torch.rand(2, 1, 4, 8, 16))
        report = loaded.report
        assert (report.format, report.weights) == ("bioimage.io package", "torchscript")
        assert report.other_weights == ()
        assert report.in_channels == 1
        assert (report.parameters, report.tensors) == (3 * 27 + 3 + 2 * 3 + 2, 4)
        assert not [each for each in recwarn.list if "bioimageio" in str(each.filename)]

    def test_details_say_who_made_it(self, make):
        details = load_model(make(network(), id=v0_5.ModelId("kind-heron"))).report.details
        assert details["name"] == "Membranes of the cord"
        assert details["id"] == "kind-heron"
        assert details["authors"] == "Ada L, Bo M"
        assert details["licence"] == "MIT"
        assert details["citation"] == "A paper 10.1234/abc"
        assert details["description"] == "Finds membranes."
        assert details["tags"] == "membranes, em"
        assert details["sizes"] == "z 4 + n 4, y 8 + n 8, x 8 + n 8"

    @pytest.mark.parametrize("kind", ["zip", "folder"])
    def test_state_dict_of_a_network_of_monai(self, make, kind):
        nets = pytest.importorskip("monai.networks.nets")
        arguments = {
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 2,
            "channels": [4, 8],
            "strides": [2],
            "num_res_units": 0,
        }
        torch.manual_seed(0)
        native = nets.UNet(**arguments).eval()
        architecture = v0_5.ArchitectureFromLibraryDescr(
            import_from="monai.networks.nets", callable="UNet", kwargs=arguments
        )
        path = make(native, kind, weights=("pytorch_state_dict",), architecture=architecture)
        loaded = load_model(path)
        assert_same(loaded.module, native, torch.rand(2, 1, 4, 8, 16))
        assert loaded.report.architecture == "monai.networks.nets:UNet"
        assert loaded.report.arguments == arguments
        assert loaded.report.origin == "file"
        assert loaded.report.weights == "pytorch_state_dict"

    def test_onnx(self, make):
        pytest.importorskip("onnxruntime")
        loaded = load_model(make(network(), weights=("onnx",)))
        assert_same(loaded.module, network(), torch.rand(1, 1, 4, 8, 16))
        assert loaded.report.weights == "onnx"

    def test_onnx_of_one_size_whatever_the_description_says(self, make):
        pytest.importorskip("onnxruntime")
        loaded = load_model(make(network(), weights=("onnx of one size",)))
        assert loaded.report.input_shape == (1, 1, 4, 8, 8)
        assert loaded.report.settings["patch_size"] == (4, 8, 8)
        assert_same(loaded.module, network(), torch.rand(3, 1, 4, 8, 8))

    def test_torchscript_is_taken_first_and_others_on_demand(self, make):
        architecture = v0_5.ArchitectureFromLibraryDescr(
            import_from="monai.networks.nets", callable="UNet", kwargs={}
        )
        path = make(
            network(), weights=("torchscript", "pytorch_state_dict"), architecture=architecture
        )
        report = load_model(path).report
        assert (report.weights, report.other_weights) == ("torchscript", ("pytorch_state_dict",))
        report = inspect_checkpoint(path, weights="pytorch_state_dict")
        assert (report.weights, report.other_weights) == ("pytorch_state_dict", ("torchscript",))
        assert "names the network monai.networks.nets:UNet, which was not built" in report.notes[0]
        with pytest.raises(
            ModelError, match="no weights 'onnx'; choose torchscript or pytorch_state_dict"
        ):
            load_model(path, weights="onnx")

    def test_an_architecture_that_is_given_takes_the_state_dict(self, make):
        architecture = v0_5.ArchitectureFromLibraryDescr(
            import_from="their.lab", callable="Net", kwargs={"dims": 3}
        )
        path = make(
            network(), weights=("torchscript", "pytorch_state_dict"), architecture=architecture
        )
        loaded = load_model(path, NET, {"dims": 3})
        assert (loaded.report.weights, loaded.report.origin) == ("pytorch_state_dict", "given")
        assert loaded.report.architecture == NET
        assert_same(loaded.module, network(), torch.rand(1, 1, 4, 8, 8))

    def test_tensors_that_do_not_fit_are_named(self, make):
        architecture = v0_5.ArchitectureFromLibraryDescr(import_from="lab", callable="Net")
        path = make(network(), weights=("pytorch_state_dict",), architecture=architecture)
        report = inspect_checkpoint(path, NET, {"out": 5})
        assert report.misshaped[0] == "2.weight: file (2, 3, 1, 1, 1), network (5, 3, 1, 1, 1)"


class TestOlderFormat:
    @pytest.fixture
    def package(self, tmp_path):
        return package_of_format_0_4(tmp_path / "made", network())

    def test_is_read_as_the_newer_one(self, package):
        loaded = load_model(package)
        assert_same(loaded.module, network(), torch.rand(2, 1, 4, 8, 16))
        report = loaded.report
        assert dict(report.settings) == {
            "patch_size": (16, 136 - 4, 136 - 4),
            "halo": (0, 2, 2),
            "planes": "none",
            "normalization": "zscore",
            "activation": "sigmoid",
        }
        assert report.notes == ()
        assert report.details["format"].startswith("0.4")
        assert report.details["id"] == "kind-heron"

    def test_weights_that_are_others(self, package):
        path = package / "weights-script.pt"
        path.write_bytes(path.read_bytes() + b"more")
        with pytest.raises(ModelError, match="is not the file that is described"):
            load_model(package)


SOURCE = """
from torch import nn

open({trap!r}, "w").close()

class Net(nn.Sequential):
    def __init__(self, out):
        super().__init__(nn.Conv3d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv3d(3, out, 1))
"""


class TestOwnCode:
    @pytest.fixture
    def package(self, make, tmp_path):
        """A package whose network is code in it; running that leaves a file."""
        self.trap = tmp_path / "trap"
        with quiet():
            source = make.file("net.py", SOURCE.format(trap=str(self.trap))).source
            architecture = v0_5.ArchitectureFromFileDescr(
                source=source, callable="Net", kwargs={"out": 2}
            )
        return make(network(), weights=("pytorch_state_dict",), architecture=architecture)

    def test_is_not_run_without_trust(self, package):
        report = inspect_checkpoint(package)
        assert report.refused == ("net.py:Net",)
        assert (report.tensors, report.architecture) == (4, "net.py:Net")
        assert report.settings["patch_size"] == (16, 128, 128)
        with pytest.raises(UntrustedError) as caught:
            load_model(package)
        assert "\n" not in str(caught.value)
        assert not self.trap.exists()

    def test_weights_that_are_a_pickled_module_need_trust(self, package):
        def change(content):
            content["weights"]["pytorch_state_dict"].pop("sha256")

        torch.save(network(), package / "weights.pt")
        package = rewrite(package, change)
        with pytest.raises(UntrustedError, match="pickled Python object"):
            load_model(package)
        loaded = load_model(package, trust=True)
        assert_same(loaded.module, network(), torch.rand(1, 1, 4, 8, 8))
        assert not self.trap.exists()

    def test_is_run_with_trust(self, package):
        loaded = load_model(package, trust=True)
        assert_same(loaded.module, network(), torch.rand(1, 1, 4, 8, 8))
        assert loaded.report.architecture == "net.py:Net"
        assert self.trap.exists()

    def test_is_not_needed_with_an_architecture(self, package):
        loaded = load_model(package, NET, {"out": 2})
        assert_same(loaded.module, network(), torch.rand(1, 1, 4, 8, 8))
        assert not self.trap.exists()

    def test_other_code_than_described_is_not_run(self, package):
        (package / "net.py").write_text((package / "net.py").read_text() + "\n# more\n")
        with pytest.raises(ModelError, match=r"net\.py is not the file that is described"):
            load_model(package, trust=True)
        assert not self.trap.exists()

    def test_a_failure_of_it_is_one_line(self, package):
        code = "import no_such_library\n"
        (package / "net.py").write_text(code)

        def change(content):
            content["weights"]["pytorch_state_dict"]["architecture"]["sha256"] = hashlib.sha256(
                code.encode()
            ).hexdigest()

        with pytest.raises(ModelError) as caught:
            load_model(rewrite(package, change), trust=True)
        assert "running net.py failed: ModuleNotFoundError: No module named" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_post_processing_by_code_is_refused(self, make):
        custom = getattr(v0_5, "CustomProcessingDescr", None)
        if custom is None:
            pytest.skip("this version of the format has none")
        with quiet():
            source = make.file("post.py", "raise SystemExit").source
            step = custom(callable="watershed", source=source)
        report = load_model(make(network(), after=[step])).report
        assert report.refused == ("post.py:watershed",)
        assert report.notes == ("not taken over: custom(watershed in post.py)",)
