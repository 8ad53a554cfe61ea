import argparse
import sys
import types
import typing
import warnings

import pytest
import torch
import yaml
from torch import nn

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ModelError
from napari_seamless.models import load_model
from napari_seamless.models.checkpoint import read_checkpoint
from napari_seamless.models.tensors.connectomics_runs import settings_1, settings_2

UNET = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "channels": (4, 8),
    "strides": ((1, 2, 2),),
    "num_res_units": 1,
    "norm": "batch",
}
MONAI_UNET = "monai.networks.nets:UNet"


def inspected(*arguments, **options):
    """Return the report of a checkpoint, without the trials of its network, which take seconds."""
    return read_checkpoint(*arguments, **options).report


def same_output(module, network):
    volume = torch.rand(1, 1, 4, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(module(volume), network.eval()(volume), rtol=1e-5, atol=1e-5)


@pytest.fixture
def unet():
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    return nets.UNet(**UNET).eval()


@pytest.fixture
def trained(tmp_path):
    """Train for a step with Lightning, and return the module and the checkpoint it saved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("lightning")
    nets = pytest.importorskip("monai.networks.nets")

    class Segmentation(lightning.LightningModule):
        def __init__(self, more=None, **arguments):
            super().__init__()
            self.save_hyperparameters()
            self.model = nets.UNet(**(arguments or UNET))
            self.loss_fn = nn.BCEWithLogitsLoss(pos_weight=torch.ones(1))

        def training_step(self, batch, index):
            return self.loss_fn(self.model(batch[0]), torch.ones(1, 2, 4, 8, 8))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    def train(callbacks=(), **arguments):
        torch.manual_seed(0)
        volumes = torch.utils.data.TensorDataset(torch.rand(2, 1, 4, 8, 8))
        trainer = lightning.Trainer(
            max_steps=2,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            accelerator="cpu",
            callbacks=list(callbacks),
        )
        module = Segmentation(**arguments)
        with warnings.catch_warnings():  # of few workers, and of torch and Lightning themselves
            warnings.simplefilter("ignore")
            trainer.fit(module, torch.utils.data.DataLoader(volumes))
            trainer.save_checkpoint(tmp_path / "last.ckpt")
        return module, tmp_path / "last.ckpt"

    return train


class TestLightning:
    def test_hyper_parameters_are_arguments(self, trained):
        module, path = trained(**UNET, more=argparse.Namespace(rate=0.1))
        loaded = load_model(path, MONAI_UNET)
        same_output(loaded.module, module.model)
        report = loaded.report
        assert (report.format, report.weights) == ("Lightning checkpoint", "state_dict")
        assert report.arguments == {
            **UNET,
            "channels": [4, 8],
            "strides": [[1, 2, 2]],
        }
        assert report.origin == "given"
        assert f"{', '.join(UNET)}: taken from the file's hyper-parameters" in [
            ", ".join(sorted(note.partition(":")[0].split(", "), key=list(UNET).index))
            + ":"
            + note.partition(":")[2]
            for note in report.notes
            if "hyper-parameters" in note
        ]
        assert "1 tensors of loss_fn are no part of the network" in report.notes
        assert report.details["hyper_parameters"]["more"] == {"rate": 0.1}
        assert (report.details["epoch"], report.details["global_step"]) == (1, 2)
        assert "pytorch-lightning_version" in report.details
        assert (report.refused, report.unexpected) == ((), ())

    def test_no_architecture_given(self, trained):
        module, path = trained(**UNET)
        loaded = load_model(path)
        same_output(loaded.module, module.model)
        assert (loaded.report.architecture, loaded.report.origin) == (MONAI_UNET, "guessed")
        assert loaded.report.arguments["strides"] == [[1, 2, 2]]

    def test_arguments_that_are_given_count(self, trained):
        module, path = trained()
        same_output(load_model(path, MONAI_UNET, UNET).module, module.model)
        report = inspected(path, MONAI_UNET, {**UNET, "channels": (8, 16)})
        assert len(report.misshaped) > 5

    def test_hyper_parameters_that_do_not_fit_are_not_used(self, trained, unet):
        _, path = trained(**UNET)
        content = torch.load(path, weights_only=True)
        content["hyper_parameters"]["channels"] = [8, 16]
        torch.save(content, path)
        report = load_model(path, MONAI_UNET).report
        assert tuple(report.arguments["channels"]) == tuple(UNET["channels"])
        assert any(note.endswith("guessed from the tensors") for note in report.notes)

    def test_hyper_parameters_that_ask_for_too_much(self, tmp_path, unet):
        content = {
            "pytorch-lightning_version": "2.5.0",
            "state_dict": unet.state_dict(),
            "hyper_parameters": {**UNET, "channels": [10**6, 10**6]},
        }
        torch.save(content, tmp_path / "last.ckpt")
        report = load_model(tmp_path / "last.ckpt", MONAI_UNET).report
        assert tuple(report.arguments["channels"]) == tuple(UNET["channels"])

    @pytest.mark.parametrize(
        "hyper_parameters",
        [
            {"net": {"_target_": "monai.networks.nets.UNet", **UNET}},
            {"model": {"class_path": "monai.networks.nets.UNet", "init_args": UNET}},
        ],
    )
    def test_class_of_monai_in_the_hyper_parameters(self, tmp_path, unet, hyper_parameters):
        content = {
            "pytorch-lightning_version": "2.5.0",
            "state_dict": {f"net.{name}": each for name, each in unet.state_dict().items()},
            "hyper_parameters": hyper_parameters,
        }
        torch.save(content, tmp_path / "last.ckpt")
        loaded = load_model(tmp_path / "last.ckpt")
        same_output(loaded.module, unet)
        assert (loaded.report.architecture, loaded.report.origin) == (MONAI_UNET, "file")

    def test_other_classes_in_the_hyper_parameters_are_not_imported(self, tmp_path, monkeypatch):
        (tmp_path / "lab_trap.py").write_text("raise AssertionError('it was imported')")
        monkeypatch.syspath_prepend(tmp_path)
        content = {
            "pytorch-lightning_version": "2.5.0",
            "state_dict": {"strange": torch.ones(2, 3)},
            "hyper_parameters": {"net": {"_target_": "lab_trap.Net"}},
        }
        torch.save(content, tmp_path / "last.ckpt")
        with pytest.raises(ModelError, match="does not say how its network is built"):
            load_model(tmp_path / "last.ckpt")

    @pytest.mark.parametrize("name", ["WeightAveraging", "EMAWeightAveraging"])
    def test_weights_that_lightning_averages(self, trained, name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            callbacks = pytest.importorskip("lightning.pytorch.callbacks")
        if not hasattr(callbacks, name):
            pytest.skip(f"this Lightning has no {name}")
        callback = getattr(callbacks, name)()
        _, path = trained([callback], **UNET)
        content = torch.load(path, weights_only=True)
        last = load_model(path, weights="current_model_state")
        average = load_model(path)
        for loaded, key in ((last, "current_model_state"), (average, "state_dict")):
            name = next(each for each in content[key] if each.endswith("conv.weight"))
            kept = loaded.module.state_dict()[name.removeprefix("model.")]
            torch.testing.assert_close(kept, content[key][name])
            assert loaded.report.weights == key
        assert average.report.other_weights == ("current_model_state",)
        assert (
            "'state_dict' are averaged weights; weights='current_model_state' takes those of the "
            "last step" in average.report.notes
        )

    def test_loading_does_not_warn(self, trained, recwarn):
        _, path = trained(**UNET)
        recwarn.clear()
        load_model(path)
        assert not recwarn.list


class TestDescription:
    @pytest.fixture
    def path(self, tmp_path, unet):
        torch.save(unet.state_dict(), tmp_path / "net.pt")
        return tmp_path / "net.pt"

    def test_whole(self, path, unet):
        description = {
            "architecture": MONAI_UNET,
            "arguments": UNET,
            "patch_size": [4, 8, 8],
            "activation": "sigmoid",
        }
        for architecture in (None, MONAI_UNET):
            loaded = load_model(path, architecture, description)
            same_output(loaded.module, unet)
            assert loaded.report.arguments == UNET
            assert loaded.report.settings == {"patch_size": [4, 8, 8], "activation": "sigmoid"}
            assert loaded.config(overlap=0.25) == InferenceConfig(
                patch_size=(4, 8, 8), activation="sigmoid", overlap=0.25
            )

    @pytest.mark.parametrize(
        ("architecture", "change", "said"),
        [
            (None, {"pach_size": [4, 8, 8]}, "has 'pach_size' that cannot be used"),
            (None, {"arguments": [1]}, "has arguments that cannot be used"),
            ("BasicUNet", {}, "architecture BasicUNet was given with a description of"),
        ],
    )
    def test_of_something_else(self, path, architecture, change, said):
        description = {"architecture": MONAI_UNET, "arguments": UNET, **change}
        with pytest.raises(ModelError, match=said):
            load_model(path, architecture, description)

    def test_of_the_real_network(self, real_data):
        pytest.importorskip("monai")
        import json

        description = json.loads((real_data / "vnc_unet.json").read_text())
        loaded = load_model(real_data / "vnc_unet_state_dict.pt", arguments=description)
        scripted = load_model(real_data / "vnc_unet_torchscript.pt")
        patch = torch.rand(1, 1, 8, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(loaded.module(patch), scripted.module(patch))
        assert loaded.config().patch_size == (8, 128, 128)


VERSION_1 = {
    "SYSTEM": {"NUM_GPUS": 4, "PARALLEL": "DP"},
    "MODEL": {
        "ARCHITECTURE": "unet_3d",
        "FILTERS": [28, 36, 48, 64, 80],
        "INPUT_SIZE": [17, 129, 129],
        "TARGET_OPT": ["0", "2"],
        "OUT_PLANES": 4,
    },
    "DATASET": {"MEAN": 0.5, "STD": 0.25, "IMAGE_SCALE": [1.0, 1.0, 1.0]},
    "INFERENCE": {
        "INPUT_SIZE": [8, 96, 96],
        "STRIDE": [8, 48, 64],
        "BLENDING": "bump",
        "OUTPUT_ACT": ["sigmoid", "softmax"],
        "AUG_MODE": "min",
        "AUG_NUM": 16,
        "DO_EVAL": True,
    },
}


class TestConnectomics1:
    @pytest.fixture
    def folder(self, tmp_path, unet):
        """What version 1.x leaves: weights, state of the training, and its configuration."""
        optimizer = torch.optim.SGD(unet.parameters(), 0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 20])
        content = {
            "iteration": 1000,
            "state_dict": {f"module.{key}": each for key, each in unet.state_dict().items()},
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": schedule.state_dict(),
        }
        torch.save(content, tmp_path / "checkpoint_01000.pth.tar")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(VERSION_1))
        return tmp_path

    def test_configuration_beside_it(self, folder, unet):
        loaded = load_model(folder / "checkpoint_01000.pth.tar", MONAI_UNET, UNET)
        same_output(loaded.module, unet)
        report = loaded.report
        assert report.format == "PyTorch Connectomics checkpoint"
        assert report.details["iteration"] == 1000
        assert report.details["configuration"] == "config.yaml"
        assert report.details["MODEL"]["ARCHITECTURE"] == "unet_3d"
        assert report.settings == {
            "patch_size": (8, 96, 96),
            "overlap": (0.0, 48, 32),
            "blending": "bump",
            "do_eval": True,
            "activation": "0:1=sigmoid,1:4=softmax",
            "tta": "flip:zyx+turn:yx",
            "tta_mode": "min",
            "normalization": "fixed",
            "mean_std": (127.5, 63.75),
        }
        config = loaded.config()
        assert config.patch_size == (8, 96, 96)
        assert len(config.transforms) == 16
        assert "settings are those of config.yaml" in report.notes
        assert any("normalization is that of uint8 volumes" in note for note in report.notes)

    def test_its_own_network_needs_its_package(self, folder):
        report = inspected(folder / "checkpoint_01000.pth.tar")
        assert any(
            note.startswith("the file names the network unet_3d, which was not built: ")
            and "pip install" in note
            for note in report.notes
        )
        assert report.details["MODEL"]["FILTERS"] == [28, 36, 48, 64, 80]

    def test_defaults_in_the_configuration(self, folder, unet):
        run = {
            "INPUT_SIZE": None,
            "AUG_NUM": None,
            "OUTPUT_ACT": ["sigmoid"],
            "STRIDE": [4, 64, 64],
        }
        text = yaml.safe_dump({**VERSION_1, "INFERENCE": run, "DATASET": {}})
        (folder / "config.yaml").write_text(text)
        report = inspected(folder / "checkpoint_01000.pth.tar", MONAI_UNET, UNET)
        assert report.settings == {
            "patch_size": (17, 129, 129),
            "overlap": (13, 65, 65),
            "activation": "sigmoid",
            "tta": "none",
        }

    @pytest.mark.parametrize(
        ("section", "change", "said"),
        [
            ("INFERENCE", {"STRIDE": [9, 96, 96]}, "STRIDE [9, 96, 96] is larger than the patch"),
            ("INFERENCE", {"OUTPUT_ACT": ["tanh", "none"]}, "have no equal here"),
            ("INFERENCE", {"OUTPUT_SCALE": [1.0, 2.0, 2.0]}, "OUTPUT_SCALE [1.0, 2.0, 2.0] is not"),
            ("DATASET", {"DATA_SCALE": [1.0, 0.5, 0.5]}, "DATA_SCALE [1.0, 0.5, 0.5] is not taken"),
            ("MODEL", {"TARGET_OPT": ["0", "5-2d-0-0-5.0"]}, "are per target; choose activation"),
        ],
    )
    def test_what_is_not_taken_over_is_named(self, folder, section, change, said):
        changed = {**VERSION_1, section: {**VERSION_1[section], **change}}
        (folder / "config.yaml").write_text(yaml.safe_dump(changed))
        report = inspected(folder / "checkpoint_01000.pth.tar", MONAI_UNET, UNET)
        assert any(said in note for note in report.notes)

    def test_without_configuration(self, folder, unet):
        (folder / "config.yaml").unlink()
        loaded = load_model(folder / "checkpoint_01000.pth.tar", MONAI_UNET, UNET)
        same_output(loaded.module, unet)
        assert loaded.report.settings == {}
        assert any("its .yaml beside it would" in note for note in loaded.report.notes)

    def test_several_configurations(self, folder):
        (folder / "other.yml").write_text(yaml.safe_dump(VERSION_1))
        (folder / "words.yaml").write_text("just: words")
        report = inspected(folder / "checkpoint_01000.pth.tar", MONAI_UNET, UNET)
        assert (
            "which of config.yaml, other.yml belongs to it is not known; keep one" in report.notes
        )
        assert report.settings == {}

    @pytest.mark.parametrize(
        "text",
        [
            "MODEL: !!python/object/apply:os.mkdir [trap]",
            "MODEL: [",
            "MODEL: " + "[" * 50_000,
            "x: " + "y" * 300_000,
            "MODEL: \x00",
            "a: &a [x, x]\n" + "".join(f"{name}: &{name} [*a, *a]\n" for name in "bc") + "MODEL: 1",
        ],
    )
    def test_hostile_configuration(self, folder, monkeypatch, unet, text):
        monkeypatch.chdir(folder)
        (folder / "config.yaml").write_text(text)
        loaded = load_model(folder / "checkpoint_01000.pth.tar", MONAI_UNET, UNET)
        same_output(loaded.module, unet)
        assert not (folder / "trap").exists()
        assert loaded.report.settings == {}
        if "*" not in text:
            (note,) = [note for note in loaded.report.notes if "was not read" in note]
            assert "\n" not in note

    def test_averaged_weights(self, folder, unet):
        averaged = torch.optim.swa_utils.AveragedModel(unet)
        averaged.update_parameters(unet)
        torch.save({"state_dict": averaged.state_dict()}, folder / "checkpoint_swa.pth.tar")
        loaded = load_model(folder / "checkpoint_swa.pth.tar", MONAI_UNET, UNET)
        same_output(loaded.module, unet)
        assert loaded.report.format == "PyTorch Connectomics checkpoint"


VERSION_2 = {
    "model": {
        "arch": {"profile": None, "type": "monai_basic_unet3d", "variant": None, "params": {}},
        "input_size": [16, 32, 32],
        "output_size": [16, 32, 32],
        "in_channels": 1,
        "out_channels": 2,
        "heads": {},
        "primary_head": None,
        "monai": {"filters": [4, 4, 8, 8, 8, 4], "norm": "batch", "activation": "relu"},
        "loss": {"deep_supervision": False},
    },
    "data": {
        "dataloader": {"patch_size": [16, 64, 64]},
        "image_transform": {"normalize": "divide-255"},
    },
    "inference": {
        "model": {"channel_activations": [{"channels": "0:2", "activation": "sigmoid"}]},
        "window": {
            "window_size": [16, 48, 48],
            "overlap": 0.25,
            "blending": "bump",
            "padding_mode": "replicate",
            "target_context": [2, 4, 4],
        },
        "test_time_augmentation": {"enabled": True},
    },
}


class TestConnectomics2:
    @pytest.fixture
    def basic(self):
        nets = pytest.importorskip("monai.networks.nets")
        torch.manual_seed(0)
        model = nets.BasicUNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=2,
            features=(4, 4, 8, 8, 8, 4),
            act="relu",
            norm="batch",
        )
        return model.eval()

    @pytest.fixture
    def run(self, tmp_path, basic):
        """What version 2.x leaves: a folder with its configuration, checkpoints in another."""
        tensors = {f"model.{key}": each for key, each in basic.state_dict().items()}
        content = {
            "epoch": 4,
            "global_step": 500,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": {**tensors, "loss_functions.0.pos_weight": torch.ones(1)},
            "callbacks": {
                "EMAWeightsCallback": {
                    "ema_state": {key: each + 1 for key, each in basic.state_dict().items()},
                    "updates": 500,
                    "decay": 0.999,
                },
                "ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_score": torch.tensor(0.1)},
            },
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2, 2)}}}],
            "lr_schedulers": [],
            "hyper_parameters": {"skip_loss": False},
            "pytc_metadata": {
                "format_version": 1,
                "config_embedded": False,
                "config_hash": "0123abcd",
                "model_arch": "monai_basic_unet3d",
            },
        }
        (tmp_path / "checkpoints").mkdir()
        torch.save(content, tmp_path / "checkpoints" / "last.ckpt")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(VERSION_2))
        return tmp_path / "checkpoints" / "last.ckpt"

    @pytest.fixture
    def same(self, basic):
        def same(module, by=0.0):
            wanted = {key: each.detach() + by for key, each in basic.named_parameters()}
            found = {key: each.detach() for key, each in module.named_parameters()}
            torch.testing.assert_close(found, wanted)

        return same

    def test_built_from_its_configuration(self, run, basic, same):
        loaded = load_model(run)
        same(loaded.module)
        volume = torch.rand(1, 1, 16, 16, 16)
        with torch.inference_mode():
            torch.testing.assert_close(loaded.module(volume), basic(volume), rtol=1e-5, atol=1e-5)
        report = loaded.report
        assert report.format == "PyTorch Connectomics checkpoint"
        assert (report.architecture, report.origin) == ("monai_basic_unet3d", "file")
        assert report.details["configuration"] == "config.yaml"
        assert report.details["pytc_metadata"]["config_hash"] == "0123abcd"
        assert report.settings == {
            "patch_size": (16, 48, 48),
            "overlap": 0.25,
            "blending": "wu_bump",
            "padding": "edge",
            "halo": (2, 4, 4),
            "activation": "0:2=sigmoid",
            "normalization": "fixed",
            "mean_std": (0.0, 255.0),
        }
        assert loaded.config().halo == (2, 4, 4)
        assert "1 tensors of loss_functions are no part of the network" in report.notes
        assert any("test-time augmentation is not taken over" in note for note in report.notes)

    def test_average(self, run, same):
        report = inspected(run)
        assert report.other_weights == ("callbacks/EMAWeightsCallback/ema_state",)
        assert (
            "averaged weights (EMA) are in the file: weights='ema_state' takes them" in report.notes
        )
        for name in ("ema_state", "ema", "EMAWeightsCallback", *report.other_weights):
            loaded = load_model(run, weights=name)
            same(loaded.module, by=1.0)
            assert loaded.report.weights == "callbacks/EMAWeightsCallback/ema_state"
            assert loaded.report.other_weights == ("state_dict",)

    def test_architecture_that_is_given_goes_first(self, run, same):
        arguments = {"features": (4, 4, 8, 8, 8, 4), "out_channels": 2, "norm": "batch"}
        loaded = load_model(run, "BasicUNet", arguments)
        same(loaded.module)
        assert loaded.report.origin == "given"

    def test_without_configuration(self, run):
        (run.parent.parent / "config.yaml").unlink()
        report = inspected(run)
        assert any(
            "how its network monai_basic_unet3d is configured; its config.yaml beside it would"
            in note
            for note in report.notes
        )

    def test_early_version_with_its_configuration_inside(self, run, same, as_omegaconf):
        (run.parent.parent / "config.yaml").unlink()
        content = torch.load(run, weights_only=True)
        del content["pytc_metadata"]
        content["hyper_parameters"] = {"cfg": as_omegaconf(VERSION_2)}
        torch.save(content, run)
        loaded = load_model(run)
        same(loaded.module)
        assert loaded.report.settings["patch_size"] == (16, 48, 48)
        assert "settings are those of the checkpoint's own configuration" in loaded.report.notes
        assert "omegaconf.dictconfig.DictConfig" in loaded.report.refused

    def test_configuration_of_another_network(self, run):
        changed = {**VERSION_2["model"], "monai": {"filters": [8] * 6}}
        path = run.parent.parent / "config.yaml"
        path.write_text(yaml.safe_dump({**VERSION_2, "model": changed}))
        report = inspected(run)
        assert len(report.misshaped) > 5


@pytest.fixture
def as_omegaconf(monkeypatch):
    """Return a function that makes of a value what OmegaConf 2.3 pickles; it is not needed here."""

    def named(module, name):
        found = type(name, (), {"__module__": module, "__qualname__": name})
        if module not in sys.modules:
            monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        monkeypatch.setattr(sys.modules[module], name, found, raising=False)
        return found

    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    mapping = named("omegaconf.dictconfig", "DictConfig")
    sequence = named("omegaconf.listconfig", "ListConfig")
    node = named("omegaconf.nodes", "AnyNode")
    about = named("omegaconf.base", "Metadata")

    def made(kind, parent, **state):
        found = kind()
        metadata = about()
        metadata.__dict__.update(ref_type=typing.Any, object_type=dict, optional=True, key=None)
        found.__dict__.update(_parent=parent, _metadata=metadata, **state)
        return found

    def convert(value, parent=None):
        if isinstance(value, dict):
            found = made(mapping, parent, _content={})
            found._content.update({key: convert(each, found) for key, each in value.items()})
        elif isinstance(value, list):
            found = made(sequence, parent, _content=[])
            found._content.extend(convert(each, found) for each in value)
        else:
            found = made(node, parent, _val=value)
        return found

    return convert


@pytest.mark.parametrize(
    ("configuration", "settings", "notes"),
    [
        ({}, {}, 0),
        ({"model": {"input_size": [8, 16, 16]}}, {"patch_size": (8, 16, 16)}, 0),
        ({"model": {"input_size": [16, 16]}}, {}, 0),
        ({"data": {"dataloader": {"patch_size": [1, 2, 0]}}}, {}, 0),
        (
            {"inference": {"sliding_window": {"overlap": 0.5, "blending": "constant"}}},
            {"overlap": 0.5, "blending": "constant"},
            0,
        ),
        ({"inference": {"window": {"overlap": 1.5, "blending": "other"}}}, {}, 0),
        ({"data": {"image_transform": {"normalize": "none"}}}, {"normalization": "none"}, 0),
        ({"data": {"image_transform": {"normalize": "0-1"}}}, {}, 1),
    ],
)
def test_settings_of_version_2(configuration, settings, notes):
    found, more = settings_2(configuration)
    assert (found, len(more)) == (settings, notes)


@pytest.mark.parametrize(
    ("specified", "activation"),
    [
        ([{"channels": ":", "activation": "softmax"}], "softmax"),
        ([{"channels": 0, "activation": "sigmoid"}], "0:1=sigmoid"),
        (
            [{"channels": "0:2", "activation": "sigmoid"}, {"channels": 2, "activation": "tanh"}],
            "0:2=sigmoid,2:3=tanh",
        ),
        ([{"channels": "-1:", "activation": "sigmoid"}], None),
        ([{"channels": [0, 1], "activation": "sigmoid"}], None),
        ([{"channels": "0:1", "activation": "exp"}], None),
        (["sigmoid"], None),
    ],
)
def test_activations_of_version_2(specified, activation):
    found, notes = settings_2({"inference": {"model": {"channel_activations": specified}}})
    assert found == ({} if activation is None else {"activation": activation})
    assert len(notes) == (activation is None)


@pytest.mark.parametrize(
    ("data", "mean_std"),
    [
        ({"MATCH_ACT": "sigmoid", "MEAN": 0.5, "STD": 0.5}, (0.0, 255.0)),
        ({"MATCH_ACT": "tanh"}, (127.5, 127.5)),
        ({"MEAN": 0.5, "STD": 0.0}, None),
        ({"MEAN": "half", "STD": 1.0}, None),
    ],
)
def test_normalization_of_version_1(data, mean_std):
    assert settings_1({"DATASET": data})[0].get("mean_std") == mean_std


def test_weights_of_nnunet_without_their_folder(tmp_path, unet):
    content = {"network_weights": unet.state_dict(), "trainer_name": "nnUNetTrainer"}
    torch.save(content, tmp_path / "checkpoint_final.pth")
    loaded = load_model(tmp_path / "checkpoint_final.pth", MONAI_UNET, UNET)
    same_output(loaded.module, unet)
    assert (loaded.report.format, loaded.report.weights) == (
        "nnU-Net checkpoint",
        "network_weights",
    )
    assert any("open the nnU-Net folder" in note for note in loaded.report.notes)
