import pytest
import torch
from torch import nn

from napari_seamless.engine.errors import ModelError
from napari_seamless.models import MismatchError, inspect_checkpoint, load_model
from napari_seamless.models.opened import Wanted
from napari_seamless.models.tensors.weights import fit, is_state_dict, pick, weight_sets


class Net(nn.Module):
    """Two levels, batch normalisation, and a part that its users may wrap."""

    def __init__(self, width=4):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv3d(1, width, 3, padding=1), nn.BatchNorm3d(width))
        self.head = nn.Conv3d(width, 2, 1)

    def forward(self, x):
        return self.head(self.encoder(x).relu())


@pytest.fixture
def net():
    torch.manual_seed(1)
    net = Net()
    net.encoder[1].running_mean.uniform_()
    return net.eval()


@pytest.fixture
def importable(tmp_path, monkeypatch):
    """Make the network importable as `lab_level:Net`."""
    (tmp_path / "lab_level.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, width=4):\n"
        "        super().__init__()\n"
        "        self.encoder = nn.Sequential(\n"
        "            nn.Conv3d(1, width, 3, padding=1), nn.BatchNorm3d(width))\n"
        "        self.head = nn.Conv3d(width, 2, 1)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.encoder(x).relu())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "lab_level:Net"


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def other(tensors, by=1.0):
    """Return tensors of the same shapes with other numbers."""
    return {
        name: tensor + by if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def same_output(module, net):
    volume = torch.rand(1, 1, 4, 5, 6)
    with torch.inference_mode():
        torch.testing.assert_close(module(volume), net(volume), rtol=1e-5, atol=1e-5)


class TestSets:
    @pytest.mark.parametrize(
        "name",
        ["state_dict", "model_state_dict", "model", "network_weights", "ema", "net", "generator"],
    )
    def test_wrapped(self, tmp_path, net, importable, name):
        torch.save({"epoch": 3, name: net.state_dict(), "best": 0.5}, tmp_path / "net.pt")
        loaded = load_model(tmp_path / "net.pt", importable)
        same_output(loaded.module, net)
        assert loaded.report.weights == name
        assert loaded.report.details == {"epoch": 3, "best": 0.5}
        assert loaded.report.format == "state dict"

    def test_order_of_preference(self):
        weights = {"weight": torch.ones(2, 2)}
        names = ["ema", "model_ema", "teacher", "generator", "model", "state_dict"]
        content = dict.fromkeys(names, weights)
        content |= {"deep": {"model": weights}, "callbacks": {"EMA{'d': 1}": {"state": weights}}}
        assert list(weight_sets(content)) == [
            "state_dict",
            "model",
            "generator",
            "teacher",
            "deep/model",
            "ema",
            "model_ema",
            "callbacks/EMA/state",
        ]

    def test_what_is_no_set_of_weights(self):
        weights = {"weight": torch.ones(2, 2)}
        moments = {0: {"exp_avg": torch.ones(2, 2)}}
        content = {
            "optimizer": {"state": moments, "net": weights},
            "optimizer_states": [{"state": moments}],
            "lr_schedulers": {"net": weights},
            "scaler": weights,
            "hyper_parameters": {"weights": weights},
            "averaging_state": {"n_averaged": torch.ones(2, 2)},
            "metrics": {"dice": torch.tensor(0.5), "iou": torch.rand(3)},
            "rng_states": weights,
            "a": {"b": {"c": {"d": weights}}},
            3: weights,
        }
        assert weight_sets(content) == {}
        assert weight_sets(torch.ones(2)) == {}

    def test_extra_state_is_left_out(self):
        content = {"weight": torch.ones(2), "act._extra_state": {"scale": 1.0}}
        assert is_state_dict(content)
        assert list(weight_sets(content)[""]) == ["weight"]
        assert not is_state_dict({"act._extra_state": 1})

    def test_bare(self, net):
        picked = pick(net.state_dict(), Wanted("net.pt"))
        assert (picked.name, picked.others, picked.notes) == ("", (), ())


class TestChoosing:
    @pytest.fixture
    def path(self, tmp_path, net):
        content = {
            "state_dict": net.state_dict(),
            "ema_state": other(net.state_dict()),
            "callbacks": {"Best{'by': 'loss'}": {"weights": other(net.state_dict(), 2.0)}},
        }
        torch.save(content, tmp_path / "net.pt")
        return tmp_path / "net.pt"

    @pytest.mark.parametrize(
        ("wanted", "taken", "by"),
        [
            (None, "state_dict", 0.0),
            ("state_dict", "state_dict", 0.0),
            ("ema_state", "ema_state", 1.0),
            ("ema", "ema_state", 1.0),
            ("EMA", "ema_state", 1.0),
            ("callbacks/Best/weights", "callbacks/Best/weights", 2.0),
            ("weights", "callbacks/Best/weights", 2.0),
            ("Best", "callbacks/Best/weights", 2.0),
        ],
    )
    def test_by_name(self, path, net, importable, wanted, taken, by):
        loaded = load_model(path, importable, weights=wanted)
        everything = {"state_dict", "ema_state", "callbacks/Best/weights"}
        assert loaded.report.weights == taken
        assert set(loaded.report.other_weights) == everything - {taken}
        torch.testing.assert_close(loaded.module.head.bias.detach(), net.head.bias.detach() + by)

    def test_unknown(self, path, importable):
        with pytest.raises(ModelError) as caught:
            load_model(path, importable, weights="best")
        assert str(caught.value) == (
            f"{path} has no weights 'best'; choose one of 'state_dict', 'callbacks/Best/weights', "
            "'ema_state'"
        )

    def test_ambiguous(self, tmp_path, net, importable):
        sets = {"a": {"ema": net.state_dict()}, "b": {"ema": net.state_dict()}}
        torch.save(sets, tmp_path / "net.pt")
        with pytest.raises(ModelError, match=r"several weights 'ema'; choose one of 'a/ema', 'b/"):
            load_model(tmp_path / "net.pt", importable, weights="ema")

    def test_of_a_file_with_one_set(self, tmp_path, net, importable):
        torch.save(net.state_dict(), tmp_path / "net.pt")
        with pytest.raises(ModelError, match="one set of weights without a name; leave weights"):
            load_model(tmp_path / "net.pt", importable, weights="ema")

    def test_note_on_averages(self, path, importable):
        assert (
            "averaged weights (EMA) are in the file: weights='ema_state' takes them"
            in inspect_checkpoint(path, importable).notes
        )
        assert not any(
            "takes them" in note
            for note in inspect_checkpoint(path, importable, weights="ema").notes
        )

    @pytest.mark.parametrize("prefix", ["", "model.", "model._orig_mod."])
    def test_average_of_parameters_only(self, tmp_path, net, importable, prefix):
        averaged = {name: each.detach() + 1.0 for name, each in net.named_parameters()}
        content = {"state_dict": prefixed(prefix, net.state_dict()), "ema": averaged}
        torch.save(content, tmp_path / "net.pt")
        loaded = load_model(tmp_path / "net.pt", importable, weights="ema")
        torch.testing.assert_close(
            loaded.module.state_dict(),
            net.state_dict() | averaged,
        )
        assert (
            "3 tensors that 'ema' lacks (encoder.1.running_mean, ...) are those of 'state_dict'"
            in loaded.report.notes
        )

    def test_average_of_another_network_is_not_completed(self):
        content = {
            "state_dict": {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2)},
            "ema": {"b.weight": torch.zeros(2, 2)},
        }
        picked = pick(content, Wanted("net.pt", weights="ema"))
        assert list(picked.tensors) == ["b.weight"]


class TestFit:
    @pytest.mark.parametrize(
        "prefix",
        [
            "",
            "module.",
            "model.",
            "net.",
            "_orig_mod.",
            "ema.",
            "model._orig_mod.",
            "module.model.net.",
            "unet.",
            "generator.net.",
        ],
    )
    def test_prefix(self, net, prefix):
        found = fit(Net(), prefixed(prefix, net.state_dict()))
        assert found.is_whole
        assert found.prefix == prefix
        assert list(found.tensors) == list(net.state_dict())
        taken = f"{prefix!r} was taken off the tensors' names"
        assert found.notes == ((taken,) if prefix else ())

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_compiled_and_parallel(self, net):
        compiled = torch.compile(net)
        assert fit(Net(), compiled.state_dict()).prefix == "_orig_mod."
        assert fit(Net(), nn.DataParallel(compiled).state_dict()).prefix == "module._orig_mod."

    @pytest.mark.parametrize("wrapper", ["_orig_mod", "module", "_fsdp_wrapped_module"])
    def test_wrapped_parts(self, net, wrapper):
        tensors = {
            name.replace("encoder.", f"encoder.{wrapper}."): tensor
            for name, tensor in prefixed("model.", net.state_dict()).items()
        }
        found = fit(Net(), tensors)
        assert found.is_whole
        assert found.notes == (
            "'model.' was taken off the tensors' names",
            f"'{wrapper}.' was taken out of the tensors' names",
        )

    def test_network_that_has_such_names_itself(self):
        class Wrapped(nn.Module):
            def __init__(self):
                super().__init__()
                self.model = nn.ModuleDict({"module": nn.Linear(2, 2)})

        found = fit(Wrapped(), Wrapped().state_dict())
        assert found.is_whole
        assert (found.prefix, found.notes) == ("", ())
        assert fit(Wrapped(), prefixed("model.", Wrapped().state_dict())).is_whole

    def test_partial_prefix(self, net):
        tensors = prefixed("model.", net.state_dict())
        tensors["head.bias"] = tensors.pop("model.head.bias")
        found = fit(Net(), tensors)
        assert (found.missing, found.unexpected) == (("head.bias",), ("head.bias",))

    def test_two_networks_of_one_kind(self, net):
        tensors = prefixed("student.", net.state_dict()) | prefixed("teacher.", net.state_dict())
        found = fit(Net(), tensors)
        assert found.prefix == "student."
        assert set(found.unexpected) == set(prefixed("teacher.", net.state_dict()))

    @pytest.mark.parametrize(
        "name",
        [
            "loss_functions.0.pos_weight",
            "criterion.weight",
            "bce_loss.weight",
            "loss_weighter.log_vars",
            "metrics.total",
            "train_metrics.dice.sum",
            "val_dice.sum",
        ],
    )
    def test_tensors_beside_the_network(self, net, name):
        tensors = prefixed("model.", net.state_dict()) | {name: torch.ones(1)}
        found = fit(Net(), tensors)
        assert found.is_whole
        part = name.partition(".")[0]
        assert f"1 tensors of {part} are no part of the network" in found.notes

    @pytest.mark.parametrize("name", ["decoder.weight", "lossy.weight", "model.extra.weight"])
    def test_unexpected_tensors_stay_so(self, net, name):
        found = fit(Net(), prefixed("model.", net.state_dict()) | {name: torch.ones(1)})
        assert found.unexpected == (name.removeprefix("model."),)

    def test_network_with_a_loss_of_its_own(self):
        class Trained(Net):
            def __init__(self):
                super().__init__()
                self.loss = nn.Linear(2, 2)

        found = fit(Trained(), Trained().state_dict())
        assert found.is_whole
        assert "loss.weight" in found.tensors

    def test_averaged_model(self, tmp_path, net, importable):
        averaged = torch.optim.swa_utils.AveragedModel(net)
        for _ in range(3):
            averaged.update_parameters(net)
        torch.save(averaged.state_dict(), tmp_path / "net.pt")
        loaded = load_model(tmp_path / "net.pt", importable)
        same_output(loaded.module, net)
        assert "the weights are an average of 3 states of training" in loaded.report.notes
        assert loaded.report.tensors == len(net.state_dict())

    def test_statistics_from_before_batches_were_counted(self, tmp_path, net, importable):
        tensors = net.state_dict()
        del tensors["encoder.1.num_batches_tracked"]
        torch.save(dict(tensors), tmp_path / "net.pt")
        loaded = load_model(tmp_path / "net.pt", importable)
        same_output(loaded.module, net)
        assert any(note.startswith("1 counts of batches") for note in loaded.report.notes)

    def test_statistics_that_are_missing(self, net):
        tensors = {name: net.state_dict()[name] for name, _ in net.named_parameters()}
        assert fit(Net(), tensors).missing == (
            "encoder.1.running_mean",
            "encoder.1.running_var",
            "encoder.1.num_batches_tracked",
        )

    def test_half_precision_becomes_single(self, tmp_path, net, importable):
        half = {name: tensor.half() for name, tensor in net.state_dict().items()}
        torch.save(half, tmp_path / "net.pt")
        module = load_model(tmp_path / "net.pt", importable).module
        assert {each.dtype for each in module.parameters()} == {torch.float32}
        torch.testing.assert_close(module.head.weight.detach(), half["head.weight"].float())

    def test_loaded_weights_are_copies(self, tmp_path, net, importable):
        tensors = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        network = Net()
        from napari_seamless.models.tensors.weights import assembled

        opened = assembled(
            "state dict", network, tensors, architecture=importable, arguments={}, origin="given"
        )
        tensors["head.bias"].fill_(7.0)
        assert not (opened.module.head.bias == 7.0).any()

    def test_nothing_fits(self, tmp_path, net, importable):
        torch.save(net.state_dict(), tmp_path / "net.pt")
        with pytest.raises(MismatchError) as caught:
            load_model(tmp_path / "net.pt", importable, {"width": 8})
        assert len(caught.value.report.misshaped) == 7
        assert caught.value.report.missing == ()
