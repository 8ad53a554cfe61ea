"""A LightningModule's own loops give the prediction that `predict` gives, and their own metrics."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

import napari_seamless as ns
from napari_seamless.dataset import InferenceVolumeDataset
from napari_seamless.engine.errors import (
    ConfigError,
    ModelError,
    OutputError,
    PredictionError,
)

lightning = pytest.importorskip("lightning.pytorch")
from napari_seamless.lightning import BlendedWriter  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*predict returned None"),
    pytest.mark.filterwarnings("ignore:.*recommended to use.*sync_dist"),
    pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]

PATCH = (4, 8, 8)
EXAMPLE = Path(__file__).parents[1] / "examples" / "lightning_inference.py"


class Network(nn.Module):
    """Two channels from one, different in every patch's place: every weight matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, x):
        return self.conv(x) + torch.linspace(0, 1, x.shape[-1], device=x.device)


class Returns(lightning.LightningModule):
    """Returns its prediction, and logs a metric."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.network(x)

    def test_step(self, batch, batch_idx):
        prediction = self(batch["image"])
        self.log("mean", prediction.mean(), on_epoch=True)
        return prediction

    def predict_step(self, batch, batch_idx):
        return self(batch["image"])


class ReturnsLoss(Returns):
    def test_step(self, batch, batch_idx):
        return super().test_step(batch, batch_idx).mean()


class ReturnsNothing(Returns):
    def test_step(self, batch, batch_idx):
        super().test_step(batch, batch_idx)

    def predict_step(self, batch, batch_idx):
        self(batch["image"])


class ReturnsAll(Returns):
    """As many do: a dict of everything that was at hand."""

    def test_step(self, batch, batch_idx):
        prediction = super().test_step(batch, batch_idx)
        return {"loss": prediction.mean(), "prediction": prediction, **batch}


class ReturnsList(Returns):
    def predict_step(self, batch, batch_idx):
        return [batch["image"], torch.tensor(1.0), self(batch["image"])]


class AsksTwice(Returns):
    """Its own augmentation: what it returns counts, and not what `forward` made last."""

    def predict_step(self, batch, batch_idx):
        prediction = self(batch["image"])
        self(batch["image"].flip(-1))
        return prediction


class Does(Returns):
    """Does what a test tells it to."""

    def __init__(self, step) -> None:
        super().__init__()
        self.step = step

    def predict_step(self, batch, batch_idx):
        return self.step(self, batch["image"], batch_idx)


@pytest.fixture
def volume():
    return np.random.default_rng(5).random((6, 12, 21), dtype=np.float32)


@pytest.fixture
def dataset(volume):
    return InferenceVolumeDataset([volume], PATCH, 0.5)


def config_of(**settings):
    return ns.InferenceConfig(patch_size=PATCH, device="cpu", batch_size=4, **settings)


def run(loop, module, dataset, *callbacks, ckpt_path=None, **settings):
    """Run one of the trainer's loops, quietly; return what it returns."""
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **settings,
    )
    loaders = dataset if isinstance(dataset, list) else DataLoader(dataset, batch_size=4)
    quiet = {"verbose": False} if loop == "test" else {}
    return getattr(trainer, loop)(module, loaders, ckpt_path=ckpt_path, **quiet)


def expected_of(volume, config=None, network=None):
    return ns.predict(volume, network or Network(), config or config_of(), progress=False)


# -------------------------------------------------------------------------- where it comes from


@pytest.mark.parametrize(
    ("module", "loop"),
    [
        (Returns, "test"),
        (Returns, "predict"),
        (ReturnsLoss, "test"),
        (ReturnsNothing, "test"),
        (ReturnsNothing, "predict"),
        (ReturnsAll, "test"),
        (ReturnsList, "predict"),
        (AsksTwice, "predict"),
    ],
)
def test_any_step_gives_what_predict_gives(volume, dataset, module, loop):
    writer, module = BlendedWriter(dataset), module()
    run(loop, module, dataset, writer)

    np.testing.assert_array_equal(writer.arrays[0], expected_of(volume).array)
    assert writer.outputs[0].keys() == {"main"}
    per_batch = 2 if isinstance(module, AsksTwice) else 1
    assert module.calls == per_batch * -(-len(dataset) // 4)  # nothing is computed twice
    assert not module._forward_hooks


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda m, x, i: m.network(x).mean(), r"returned a tensor of torch.float32 \(\), which"),
        (lambda m, x, i: m.network(x)[:, :, 0], r"\(4, 2, 8, 8\), which holds no prediction"),
        (lambda m, x, i: m(x[:, :, :2]), r"made \(2, 8, 8\) voxels .* expects \(4, 8, 8\)"),
        (lambda m, x, i: [m(x), m(x)][:0], "more than once"),
        (lambda m, x, i: m(x[:2]), "no prediction .* of 4 patches"),
    ],
)
def test_a_step_without_a_prediction_is_refused_in_one_line(dataset, step, message):
    module = Does(step)
    with pytest.raises(ModelError, match=message) as caught:
        run("predict", module, dataset, BlendedWriter(dataset))

    assert "\n" not in str(caught.value)
    assert not module._forward_hooks


def test_a_prediction_that_is_not_finite_or_changes_is_refused(dataset):
    broken = Does(lambda m, x, i: m(x) / (i < 1))
    with pytest.raises(PredictionError, match="NaN or infinity"):
        run("predict", broken, dataset, BlendedWriter(dataset))
    fickle = Does(lambda m, x, i: m(x)[:, : 2 - i])
    with pytest.raises(PredictionError, match=r"1 channels in head .0. after 2 channels"):
        run("predict", fickle, dataset, BlendedWriter(dataset))


def test_a_batch_without_positions_is_refused(dataset):
    def images_alone(items):
        return {"image": torch.stack([item["image"] for item in items])}

    loader = DataLoader(dataset, batch_size=4, collate_fn=images_alone)
    with pytest.raises(ConfigError, match="a dict with no 'pos'"):
        run("predict", Returns(), [loader], BlendedWriter(dataset))


# ------------------------------------------------------------------------------ what is left alone


@pytest.mark.parametrize("module", [Returns, ReturnsLoss, ReturnsAll])
def test_metrics_and_returned_values_are_the_same_with_it(dataset, module):
    alone = run("test", module(), dataset)
    beside = run("test", module(), dataset, BlendedWriter(dataset))
    assert alone == beside
    assert alone[0].keys() == {"mean"}

    alone = run("predict", module(), dataset)
    beside = run("predict", module(), dataset, BlendedWriter(dataset))
    assert all(a.equal(b) for a, b in zip(alone, beside, strict=True))


# ----------------------------------------------------------------------------------- what it makes


def test_settings_mean_what_they_mean_to_predict(volume, tmp_path):
    settings = {
        "halo": (0, 2, 1),
        "region": ((1, 6), (2, 11), (0, 16)),
        "normalization": "zscore",
        "padding": "edge",
        "overlap": (0.25, 0.5, 0.75),
        "grid": "even",
    }
    dataset = InferenceVolumeDataset(volume, PATCH, **settings)
    config = config_of(
        **settings,
        blending="bump",
        activation="softmax",
        blend_logits=True,
        labelling="argmax",
        output_dtype="uint8",
    )
    writer = BlendedWriter(dataset, config, tmp_path / "ours.h5")
    run("predict", Returns(), dataset, writer)
    expected = ns.predict(volume, Network(), config, tmp_path / "theirs.h5", progress=False)

    for name, array in expected.outputs[0].items():
        np.testing.assert_array_equal(writer.outputs[0][name], array)
    with h5py.File(tmp_path / "ours.h5") as ours, h5py.File(tmp_path / "theirs.h5") as theirs:
        assert ours.keys() == theirs.keys() == {"main", "labels"}
        for name in theirs:
            assert ours[name].dtype == np.uint8
            np.testing.assert_array_equal(ours[name][:], theirs[name][:])
        found, expected_facts = dict(ours["main"].attrs), dict(theirs["main"].attrs)
        for facts in (found, expected_facts):  # only a run of our own can be gone on with
            del facts["identity"]
        assert found == {**expected_facts, "network": "Returns"}


class Heads(nn.Module):
    """Two heads, and a coarser one that deep supervision left behind."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def forward(self, x):
        y = self.network(x)
        return {"mask": y, "edge/z": y[:, :1] * 2, "coarse": y[:, :, ::2]}


def test_heads_and_another_resolution(volume):
    config = config_of(head="edge/z", activation="sigmoid")
    dataset = InferenceVolumeDataset(volume, PATCH)
    writer, heads = BlendedWriter(dataset, config), Heads()
    run("predict", Does(lambda m, x, i: heads(x)), dataset, writer)
    expected = expected_of(volume, config, Heads())

    assert writer.outputs[0].keys() == expected.outputs[0].keys() == {"main", "heads/mask"}
    for name, array in expected.outputs[0].items():
        np.testing.assert_array_equal(writer.outputs[0][name], array)

    settings = {"output_scale": (1, 2, "1/2")}
    dataset = InferenceVolumeDataset(volume, PATCH, **settings)
    writer = BlendedWriter(dataset)
    resized = nn.Sequential(Network(), nn.Upsample(scale_factor=(1, 2, 0.5)))
    run("predict", Does(lambda m, x, i: resized(x)), dataset, writer)
    expected = expected_of(volume, config_of(**settings), resized)

    np.testing.assert_array_equal(writer.arrays[0], expected.array)


def test_several_volumes_in_any_order_are_written_one_by_one(volume, tmp_path):
    volumes = [volume, volume[:3, :9], volume[:, :, :9]]
    dataset = InferenceVolumeDataset(volumes, PATCH)
    writer = BlendedWriter(dataset, output=tmp_path / "out_{vol_id}.tif")
    torch.manual_seed(0)
    loader = DataLoader(dataset, batch_size=3, shuffle=True)
    run("test", Returns(), [loader], writer)
    expected = expected_of(volumes)

    for vol_id, array in enumerate(expected.arrays):
        np.testing.assert_allclose(writer.arrays[vol_id], array, rtol=1e-6)
        written = ns.InferenceRun(tmp_path / f"out_{vol_id}.tif", Network(), config_of())
        with written:
            assert written.plan.volumes[0].shape == array.shape
    assert [path.name for path in writer.paths] == ["out_0.tif", "out_1.tif", "out_2.tif"]


def test_a_loop_that_is_cut_short_leaves_a_partial_result(volume, dataset, tmp_path):
    writer = BlendedWriter(dataset, output=tmp_path / "out.h5")
    run("test", Returns(), dataset, writer, limit_test_batches=2)
    with ns.InferenceRun(volume, Network(), config_of()) as expected:
        for _ in range(2):
            next(expected)
        np.testing.assert_array_equal(writer.arrays[0], expected.live[0][:])

    with h5py.File(tmp_path / "out.h5") as file:
        facts = file["main"].attrs
        assert (facts["status"], facts["done"], facts["total"]) == ("partial", 8, len(dataset))
        assert np.isnan(file["main"]).any()


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("out of memory"), "failed"), (KeyboardInterrupt(), "partial")],
)
def test_what_was_done_is_kept_when_the_loop_breaks(dataset, tmp_path, error, status):
    def breaks(module, x, batch_idx):
        if batch_idx == 2:
            raise error
        return module(x)

    writer = BlendedWriter(dataset, output=tmp_path / "out.h5")
    with pytest.raises((RuntimeError, SystemExit)):
        run("predict", Does(breaks), dataset, writer)

    with h5py.File(tmp_path / "out.h5") as file:
        assert (file["main"].attrs["status"], file["main"].attrs["done"]) == (status, 8)
    assert np.isnan(writer.arrays[0]).any()


def test_a_patch_that_comes_twice_counts_once(volume, dataset):
    loader = DataLoader(Subset(dataset, [*range(len(dataset)), 0, 3, 3]), batch_size=4)
    writer = BlendedWriter(dataset)
    run("predict", Returns(), [loader], writer)
    np.testing.assert_array_equal(writer.arrays[0], expected_of(volume).array)


def test_positions_may_be_one_tensor(volume, dataset):
    def collate(items):
        return {
            "image": torch.stack([item["image"] for item in items]),
            "pos": torch.tensor([item["pos"] for item in items]),
        }

    writer = BlendedWriter(dataset)
    loader = DataLoader(dataset, batch_size=4, collate_fn=collate)
    run("predict", Returns(), [loader], writer)
    np.testing.assert_array_equal(writer.arrays[0], expected_of(volume).array)


def test_the_file_names_the_checkpoint(dataset, tmp_path):
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(Returns())
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    writer = BlendedWriter(dataset, output=tmp_path / "out.h5")
    run("predict", Returns(), dataset, writer, ckpt_path=tmp_path / "net.ckpt")

    with h5py.File(tmp_path / "out.h5") as file:
        facts = file["main"].attrs
        assert (facts["checkpoint"], facts["network"]) == ("net.ckpt", "Returns")


def test_each_writer_takes_the_batches_of_its_own_dataset(volume):
    datasets = [InferenceVolumeDataset(each, PATCH) for each in (volume, volume[:, ::-1])]
    writers = [BlendedWriter(dataset) for dataset in datasets]
    whole = Subset(datasets[1], range(len(datasets[1])))
    loaders = [DataLoader(each, batch_size=4) for each in (datasets[0], whole)]

    class Module(Returns):
        def test_step(self, batch, batch_idx, dataloader_idx):
            return super().test_step(batch, batch_idx)

    run("test", Module(), loaders, *writers)
    for writer, dataset in zip(writers, datasets, strict=True):
        expected = expected_of(dataset.volumes[0])
        np.testing.assert_array_equal(writer.arrays[0], expected.array)

    stranger = BlendedWriter(InferenceVolumeDataset(volume[:3], PATCH))
    with pytest.raises(ConfigError, match="no batch came from the dataset"):
        run("test", Module(), loaders, stranger)


def test_it_can_be_used_again(volume, dataset, tmp_path):
    writer = BlendedWriter(dataset, output=tmp_path / "out.h5", overwrite=True)
    for loop in ("test", "predict"):
        run(loop, Returns(), dataset, writer)
        np.testing.assert_array_equal(writer.arrays[0], expected_of(volume).array)

    guarded = BlendedWriter(dataset, output=tmp_path / "other.h5")
    (tmp_path / "other.h5").write_text("someone else's")
    module = Returns()
    with pytest.raises(OutputError, match="exists"):
        run("test", module, dataset, guarded)
    assert module.calls == 0  # before anything is computed


def test_a_prediction_whose_file_cannot_be_written_is_still_there(volume, dataset, tmp_path):
    out = tmp_path / "out.h5"

    def appears(module, x, batch_idx):
        out.write_text("someone else's")
        return module(x)

    writer = BlendedWriter(dataset, output=out)
    with pytest.raises(OutputError, match=r"out\.h5 exists") as caught:
        run("predict", Does(appears), dataset, writer)
    (note,) = caught.value.__notes__
    kept = Path(note.removeprefix("the prediction is kept in "))
    with h5py.File(kept) as file:
        np.testing.assert_array_equal(file["main"], expected_of(volume).array)
    kept.unlink()
    np.testing.assert_array_equal(writer.arrays[0], expected_of(volume).array)
    assert out.read_text() == "someone else's"


def test_the_first_error_is_the_one_raised(dataset, tmp_path):
    out = tmp_path / "out.h5"

    def breaks(module, x, batch_idx):
        if batch_idx == 2:
            out.write_text("someone else's")
            raise RuntimeError("out of memory")
        return module(x)

    with pytest.raises(RuntimeError, match="out of memory") as caught:
        run("predict", Does(breaks), dataset, BlendedWriter(dataset, output=out))
    assert "out.h5 exists" in caught.value.__notes__[0]


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlap": 0.25}, "overlap 0.25 of the config is not that of the dataset, 0.5"),
        ({"patch_size": (4, 8, 16)}, "patch_size"),
        ({"halo": (1, 0, 0)}, "halo"),
        ({"grid": "even"}, "grid"),
        ({"region": "0:4,0:8,0:8"}, "region"),
        ({"output_scale": (1, 2, "1/2")}, r"output_scale \(1, 2, 1/2\) of the config .* \(1, 1, 1"),
        ({"normalization": "zscore"}, "normalization 'zscore' of the config .* 'dtype'"),
        ({"padding": "edge"}, "padding"),
        ({"tta": "flip:x"}, "tta 'flip:x' is not done in Lightning's loops"),
        ({"mc_samples": 2, "do_eval": False}, "mc_samples 2"),
        ({"planes": "zyx"}, "planes 'zyx'"),
    ],
)
def test_a_config_must_fit_the_dataset(dataset, settings, message):
    config = ns.InferenceConfig(**{"patch_size": PATCH, **settings})
    with pytest.raises(ConfigError, match=message) as caught:
        BlendedWriter(dataset, config)
    assert "\n" not in str(caught.value)


def test_a_config_takes_from_the_dataset_what_it_does_not_say(volume):
    dataset = InferenceVolumeDataset(volume, PATCH, normalization="fixed", mean_std=(1, 2))
    config = BlendedWriter(dataset, config_of(activation="tanh")).config

    assert (config.normalization, config.mean_std) == ("fixed", (1, 2))
    assert config.activation == "tanh"
    # for floats, these two are the same
    floats = InferenceVolumeDataset(volume, PATCH)
    assert BlendedWriter(floats, config_of(normalization="none")).config.normalization == "dtype"
    assert BlendedWriter(floats, config_of(overlap=(0.5, 0.5, 0.5)))


def test_what_cannot_work_is_refused_at_once(volume, dataset, tmp_path):
    with pytest.raises(ConfigError, match="give the InferenceVolumeDataset"):
        BlendedWriter([volume])
    with pytest.raises(ConfigError, match="give an InferenceConfig"):
        BlendedWriter(dataset, {"patch_size": PATCH})
    with pytest.raises(OutputError, match="ends in"):
        BlendedWriter(dataset, output=tmp_path / "out.png")
    np.save(tmp_path / "in.npy", volume)
    two = InferenceVolumeDataset([volume, volume], PATCH)
    with pytest.raises(ConfigError, match="one file for several"):
        BlendedWriter(two, output=tmp_path / "out.h5")
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["main"] = volume
    same = InferenceVolumeDataset(tmp_path / "in.h5", PATCH)
    with pytest.raises(OutputError, match="is also an input"):
        BlendedWriter(same, output=tmp_path / "in.h5", overwrite=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "mask"}, "head 'mask' does not exist"),
        ({"activation": "0:3=sigmoid", "blend_logits": True}, "there are 2 channels"),
    ],
)
def test_what_shows_with_the_first_batch_ends_the_loop_there(dataset, settings, message):
    module = Returns()
    with pytest.raises((ConfigError, ModelError), match=message):
        run("predict", module, dataset, BlendedWriter(dataset, config_of(**settings)))
    assert module.calls == 1


def test_processes_that_cannot_talk_are_refused(dataset):
    trainer = SimpleNamespace(world_size=2, strategy=None)
    with pytest.raises(ConfigError, match="2 processes without torch"):
        BlendedWriter(dataset).on_test_epoch_start(trainer, Returns())


def test_labels_of_one_channel_are_refused_with_the_first_batch(dataset):
    writer = BlendedWriter(dataset, config_of(labelling="argmax"))
    with pytest.raises(ConfigError, match="argmax"):
        run("predict", Does(lambda m, x, i: m(x)[:, :1]), dataset, writer)


# -------------------------------------------------------------------------------- two processes

SCRIPT = """
import sys
import warnings

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from napari_seamless.dataset import InferenceVolumeDataset
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import SeamlessError
from napari_seamless.lightning import BlendedWriter

warnings.simplefilter("ignore")
folder, *ways = sys.argv[1:]
volumes = [np.load(f"{folder}/{name}.npy") for name in ("large", "small")]
dataset = InferenceVolumeDataset(volumes, (4, 8, 8))
assert len(dataset) % 2 == 1  # so the sampler repeats a patch
config = InferenceConfig(
    patch_size=(4, 8, 8), activation="softmax", blend_logits=True, labelling="argmax"
)


class Module(LightningModule):
    def __init__(self, way):
        super().__init__()
        self.way = way
        torch.manual_seed(3)
        self.conv = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, x):
        return self.conv(x) + torch.linspace(0, 1, x.shape[-1])

    def test_step(self, batch, batch_idx):
        if self.way == "fails" and self.global_rank == 1 and batch_idx == 1:
            return self(batch["image"])[:, :, :2]
        self.log("mean", self(batch["image"]).mean(), sync_dist=True)

    def predict_step(self, batch, batch_idx):
        return self(batch["image"])


class Turned(DistributedSampler):
    # nearly every patch comes to the process that it does not belong to, some to both
    def __iter__(self):
        return iter([i for i in range(len(self.dataset)) if i % 2 != self.rank or i < 4])

    def __len__(self):
        return len(list(iter(self)))


class Unwritable(BlendedWriter):
    def _keep(self, share, status=None):
        raise SeamlessError("the disk is full")


for way in ways:
    kind = Unwritable if way == "unwritable" else BlendedWriter
    writer = kind(dataset, config, f"{folder}/{way}_{{vol_id}}.h5")
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=way != "turned",
        limit_test_batches=2 if way == "short" else 1.0,
        callbacks=[writer],
    )
    sampler = Turned(dataset, 2, trainer.global_rank) if way == "turned" else None
    loader = DataLoader(dataset, batch_size=4, sampler=sampler)
    loop = trainer.predict if way == "predict" else trainer.test
    try:
        loop(Module(way), loader)
    except SeamlessError as error:
        told = error
        if way == "fails":
            print(error)
            raise
    else:
        told = len(writer.arrays)
    sys.stdout.write(f"{trainer.global_rank} {way} {told}\\n")  # at once: two write here
    sys.stdout.flush()
# or now and then one process ends while a thread of gloo still waits for the other, and aborts
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def as_a_pair(folder, volumes, *ways):
    """Run the script under two processes."""
    for name, volume in zip(("large", "small"), volumes, strict=True):
        np.save(folder / f"{name}.npy", volume)
    (folder / "script.py").write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, str(folder / "script.py"), str(folder), *ways],
        timeout=120,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.mark.slow
def test_two_processes_give_what_one_gives(volume, tmp_path):
    volumes = [volume, volume[:3, :8, :8]]
    ended = as_a_pair(tmp_path, volumes, "test", "predict", "turned", "short", "unwritable")
    config = config_of(activation="softmax", blend_logits=True, labelling="argmax")
    expected = expected_of(volumes, config)

    assert ended.returncode == 0, ended.stderr
    for way in ("test", "predict", "turned"):
        assert {f"0 {way} 2", f"1 {way} 0"} <= set(ended.stdout.splitlines())
        for vol_id, outputs in enumerate(expected.outputs):
            with h5py.File(tmp_path / f"{way}_{vol_id}.h5") as file:
                assert file["main"].attrs["status"] == "complete"
                np.testing.assert_allclose(file["main"][:], outputs["main"], rtol=1e-6)
                np.testing.assert_array_equal(file["labels"][:], outputs["labels"])
    with h5py.File(tmp_path / "short_0.h5") as file:
        assert (file["main"].attrs["status"], file["main"].attrs["done"]) == ("partial", 16)
        assert np.isnan(file["main"]).any()
    assert not (tmp_path / "short_1.h5").exists()  # it was not begun
    assert "0 unwritable the disk is full" in ended.stdout
    assert "1 unwritable process 0 failed: the disk is full" in ended.stdout


@pytest.mark.slow
def test_a_failure_in_one_process_ends_both(volume, tmp_path):
    ended = as_a_pair(tmp_path, [volume, volume[:3, :8, :8]], "fails")  # within its patience
    assert ended.returncode != 0
    assert "voxels of a patch" in ended.stdout


@pytest.mark.slow
def test_the_example_shows_both_ways():
    ended = subprocess.run(
        [sys.executable, str(EXAMPLE)], timeout=120, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "both ways agree" in ended.stdout


def test_labels_that_a_step_returns_are_not_taken_for_its_prediction(volume):
    labels = (volume > 0.5).astype(np.uint8)
    dataset = InferenceVolumeDataset(volume, PATCH, labels=labels)

    class ReturnsTarget(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = Network()

        def test_step(self, batch, batch_idx):
            target = batch["label"].float()
            return {"loss": target.mean(), "target": target, "preds": self.network(batch["image"])}

    writer, module = BlendedWriter(dataset), ReturnsTarget()
    run("test", module, dataset, writer)
    expected = expected_of(volume, config_of(), module.network)

    assert writer.outputs[0].keys() == {"main"}
    np.testing.assert_array_equal(writer.arrays[0], expected.array)


def test_an_identity_network_gives_the_volume_back(volume):
    dataset = InferenceVolumeDataset(volume, PATCH)
    writer = BlendedWriter(dataset)
    run("predict", Does(lambda m, x, i: x), dataset, writer)

    np.testing.assert_allclose(writer.arrays[0][0], volume, rtol=1e-6)
