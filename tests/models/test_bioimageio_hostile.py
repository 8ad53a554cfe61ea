"""Packages of bioimage.io that are damaged, or want to run, read, write or fetch something."""

import os
import sys
import zipfile

import pytest

from models.bioimageio_packages import Maker, description_of, network, rewrite
from napari_seamless.engine.errors import ModelError, UntrustedError
from napari_seamless.models import inspect_checkpoint, load_model

WATCHED = frozenset(
    [
        *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.system", "os.symlink"),
        *("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.exec", "os.posix_spawn"),
    ]
)
_seen: list[tuple] | None = None


def _note(event, arguments):
    if _seen is None:
        return
    if event in WATCHED or (event == "open" and _writes(*arguments[:2])):
        _seen.append((event, arguments))


def _writes(path, mode):
    """Whether a file is opened for writing; modules that are imported for the first time are."""
    return bool(str(mode or "r").strip("rbtU")) and "__pycache__" not in str(path)


sys.addaudithook(_note)


@pytest.fixture
def nothing_done(monkeypatch):
    """Fail if something is written, fetched or started in the test from here on."""

    def watch():
        monkeypatch.setattr(sys.modules[__name__], "_seen", [])

    yield watch
    assert not _seen, _seen


@pytest.fixture
def package(tmp_path):
    return Maker(tmp_path / "made")(network())


@pytest.fixture
def refusal(nothing_done):
    """Return the message that refuses a package: one line, soon, with nothing done."""

    def refuse(path, **arguments):
        nothing_done()
        with pytest.raises(ModelError) as caught:
            load_model(path, **arguments)
        said = str(caught.value)
        assert "\n" not in said
        assert os.path.basename(path).split(".")[0] in said
        with pytest.raises(ModelError):
            inspect_checkpoint(path, **arguments)
        return said

    return refuse


def weights(content):
    return content["weights"]["torchscript"]


def test_weights_on_the_web_are_not_fetched(package, refusal):
    def change(content):
        weights(content)["source"] = "https://example.org/models/weights-script.pt"

    said = refusal(rewrite(package, change))
    assert "https://example.org/models/weights-script.pt" in said
    assert "nothing is downloaded; get the whole package" in said


@pytest.mark.parametrize("source", ["../../etc/passwd", "/etc/passwd", "a/../../x.pt"])
def test_files_outside_are_not_read(package, refusal, source):
    def change(content):
        weights(content)["source"] = source
        del weights(content)["sha256"]

    said = refusal(rewrite(package, change))
    assert source in said
    assert "outside" in said


def test_weights_that_are_not_there(package, refusal):
    os.remove(package / "weights-script.pt")
    assert "has no weights-script.pt" in refusal(package)


def test_weights_that_are_others(package, refusal):
    path = package / "weights-script.pt"
    path.write_bytes(path.read_bytes() + b"more")
    said = refusal(package)
    assert "weights-script.pt is not the file that is described (its SHA-256 is" in said


def test_weights_that_are_damaged(package, refusal):
    path = package / "weights-script.pt"
    path.write_bytes(path.read_bytes()[:200])
    path = rewrite(package, lambda content: weights(content).pop("sha256"))
    assert "is cut short or damaged" in refusal(path)


@pytest.mark.parametrize(
    "architecture",
    [
        {"import_from": "os", "callable": "system", "kwargs": {"command": "touch trap"}},
        {"import_from": "subprocess", "callable": "run", "kwargs": {"args": ["touch", "trap"]}},
        {"import_from": "monai.networks.nets", "callable": "resnet50", "kwargs": {}},
        {
            "import_from": "monai.networks.nets",
            "callable": "FlexibleUNet",
            "kwargs": {"in_channels": 3, "out_channels": 1, "backbone": "https://example.org/b"},
        },
        {"import_from": "monai.networks.nets.unet", "callable": "warnings", "kwargs": {}},
    ],
)
def test_code_elsewhere_is_not_called(package, nothing_done, architecture):
    def change(content):
        content["weights"] = {
            "pytorch_state_dict": {
                "source": "weights-script.pt",
                "pytorch_version": "2.6",
                "architecture": architecture,
            }
        }

    package = rewrite(package, change)
    save_state_dict(package / "weights-script.pt")
    nothing_done()
    report = inspect_checkpoint(package)
    assert report.refused == (f"{architecture['import_from']}:{architecture['callable']}",)
    with pytest.raises(UntrustedError):
        load_model(package)


def save_state_dict(path):
    import torch

    torch.save(network().state_dict(), path)


def test_a_model_that_another_one_feeds_is_not_looked_up(package, nothing_done):
    def change(content):
        content["inputs"][0]["output_of"] = "affable-shark"
        content["authors"][0]["github_user"] = "nobody"
        content["covers"] = ["https://example.org/cover.png"]
        content["git_repo"] = "https://example.org/repository"
        content["training_data"] = {"id": "covid-if-training-data"}

    package = rewrite(package, change)
    nothing_done()
    assert load_model(package).report.weights == "torchscript"


class TestDescription:
    def write(self, package, text):
        description_of(package).write_text(text)
        return package

    def test_tags_of_yaml_that_make_objects(self, package, refusal):
        said = refusal(
            self.write(package, "type: !!python/object/apply:os.system ['touch trap']\n")
        )
        assert "could not determine a constructor" in said

    def test_not_a_model(self, package, refusal):
        said = refusal(rewrite(package, lambda content: content.update(type="dataset")))
        assert "describes a dataset, not a model" in said

    def test_a_format_from_the_future(self, package, refusal):
        said = refusal(rewrite(package, lambda content: content.update(format_version="1.0.0")))
        assert "has the model format 1.0.0; 0.3, 0.4, 0.5 are known" in said

    def test_invalid(self, package, refusal):
        def change(content):
            content["inputs"][0]["axes"][2]["size"] = {"min": -4, "step": 4}

        said = refusal(rewrite(package, change))
        assert "is no valid description of a model: inputs" in said

    @pytest.mark.parametrize(
        "text",
        [
            "[" * 50_000,
            "a: &a [x, x]\nb: &b [*a, *a]\n"
            + "".join(
                f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n"
                for old, new in zip("bcdefghi", "cdefghij", strict=True)
            ),
            "a: &a {k: v}\nb: {<<: [*a, *a]}\n",
            "a: &a [*a]\n",
            "just a text",
            "{unclosed",
            "a: " + "9" * 10_000,
            "format_version: 0x" + "f" * 100_000,
            "\x00\x01",
            "- a\n- b\n",
        ],
    )
    def test_what_is_no_description(self, package, refusal, text):
        said = refusal(self.write(package, text))
        assert len(said) < 600
        assert any(why in said for why in ("not usable YAML", "cannot be read", "not a model"))

    def test_too_long(self, package, refusal):
        said = refusal(self.write(package, "type: model\n" + "# more\n" * 100_000))
        assert "larger than 131,072 bytes" in said


class TestArchive:
    @pytest.fixture
    def archive(self, tmp_path):
        return Maker(tmp_path / "made")(network(), "zip")

    def test_cut_short(self, archive, refusal):
        archive.write_bytes(archive.read_bytes()[:-400])
        assert "cut short or damaged" in refusal(archive)

    def test_that_climbs_out(self, archive, refusal, tmp_path):
        with zipfile.ZipFile(archive, "a") as file:
            file.writestr("../escaped.txt", "x")
        assert "../escaped.txt" in refusal(archive)
        assert not list(tmp_path.rglob("escaped.txt"))


def test_only_of_tensorflow(package, refusal):
    def change(content):
        content["weights"] = {
            "tensorflow_saved_model_bundle": {
                "source": "weights-script.pt",
                "tensorflow_version": "1.15",
            }
        }

    said = refusal(rewrite(package, change))
    assert "weights of TensorFlow or Keras only (tensorflow_saved_model_bundle)" in said


def test_without_the_library(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "bioimageio.spec", None)
    with pytest.raises(ModelError) as caught:
        load_model(package)
    assert 'pip install "napari-seamless[bioimageio]"' in str(caught.value)
    assert str(package) in str(caught.value)
