"""The dataset gives the patches that a run reads, wherever it is read."""

import pickle

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import napari_seamless as ns
from engine.helpers import Identity, patch_of
from napari_seamless.dataset import InferenceVolumeDataset
from napari_seamless.engine.errors import ConfigError, SourceError

PATCH = (4, 8, 8)


@pytest.fixture
def volume():
    return np.random.default_rng(5).random((2, 6, 12, 13), dtype=np.float32)


@pytest.fixture
def path(tmp_path, volume):
    with h5py.File(tmp_path / "volume.h5", "w") as file:
        file["raw"] = (volume * 200).astype(np.uint8)
        file["labels"] = (volume[0] > 0.5).astype(np.uint16)
    return tmp_path / "volume.h5"


def assert_same(items, others):
    for item, other in zip(items, others, strict=True):
        assert item["pos"] == other["pos"]
        assert item.keys() == other.keys()
        torch.testing.assert_close(item["image"], other["image"], rtol=0, atol=0)


def test_patches_are_slices_in_raster_order(volume):
    dataset = InferenceVolumeDataset([volume], PATCH, 0.5)
    positions = [(z, y, x) for z in (0, 2) for y in (0, 4) for x in (0, 4, 5)]

    assert len(dataset) == 12
    for item, (z, y, x) in zip(dataset, positions, strict=True):
        assert item["pos"] == (0, z, y, x)
        assert item["image"].dtype == torch.float32
        expected = volume[:, z : z + 4, y : y + 8, x : x + 8]
        np.testing.assert_array_equal(item["image"].numpy(), expected)


@pytest.mark.parametrize("shape", [(6, 12, 13), (2, 12, 5), (1, 20, 20)])
def test_a_halo_and_what_is_outside_are_padded(shape):
    volume = np.random.default_rng(1).random((1, *shape), dtype=np.float32)
    dataset = InferenceVolumeDataset(volume, PATCH, 0.25, halo=(1, 2, 3), labels=volume[0])

    for item in dataset:
        vol_id, *start = item["pos"]
        expected = patch_of(volume, np.subtract(start, (1, 2, 3)), (6, 12, 14))
        assert vol_id == 0
        np.testing.assert_array_equal(item["image"].numpy(), expected)
        np.testing.assert_array_equal(item["label"].numpy(), patch_of(volume, start, PATCH))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalization": "zscore", "halo": (0, 1, 2)},
        {"normalization": "percentile", "percentiles": (5, 90), "padding": "constant"},
        {"normalization": "fixed", "mean_std": (3, 7), "region": ((1, 3), (0, 9), (5, 13))},
        {"grid": "even", "output_scale": (1, 1, 1), "padding": "edge"},
    ],
)
def test_images_are_what_a_run_gives_to_the_network(path, settings):
    dataset = InferenceVolumeDataset(f"{path}::raw", PATCH, 0.5, **settings)
    network = Identity()
    config = ns.InferenceConfig(patch_size=PATCH, overlap=0.5, device="cpu", **settings)
    ns.predict(f"{path}::raw", network, config, progress=False)

    given = np.concatenate(network.inputs)
    np.testing.assert_array_equal(np.stack([item["image"] for item in dataset]), given)


def test_a_position_leads_back_to_its_patch(volume):
    volumes = [volume, volume[:, :2], volume[:, :, :9, :9]]
    dataset = InferenceVolumeDataset(volumes, PATCH, (0.0, 0.5, 0.75))

    assert len(dataset) == sum(len(plan.cores) for plan in dataset.plans)
    places = [dataset.place_of(index) for index in range(len(dataset))]
    assert places == [
        (v, i) for v, plan in enumerate(dataset.plans) for i in range(len(plan.cores))
    ]
    for index, item in enumerate(dataset):
        assert dataset.index_of(item["pos"]) == index
    assert dataset[1]["pos"][0] == 0
    assert dataset[-1]["pos"] == dataset[len(dataset) - 1]["pos"]
    with pytest.raises(IndexError, match="not in a dataset of"):
        dataset[len(dataset)]


@pytest.mark.parametrize("pos", [(0, 1, 0, 0), (1, 0, 0, 0), (-1, 0, 0, 0), (0, 99, 0, 0), (0, 0)])
def test_a_position_of_no_patch_is_refused(volume, pos):
    with pytest.raises(ConfigError, match="no patch of this dataset is at"):
        InferenceVolumeDataset([volume], PATCH).index_of(pos)


def test_it_opens_files_again_after_it_was_closed_or_sent(path):
    dataset = InferenceVolumeDataset(f"{path}::raw", PATCH, labels=f"{path}::labels")
    with h5py.File(path, "r+"):  # fails while the file is open for reading
        pass
    items = list(dataset)
    sent = pickle.loads(pickle.dumps(dataset))
    dataset.close()

    assert_same(sent, items)
    assert_same(dataset, items)
    for each in (dataset, sent):
        each.close()
    with h5py.File(path, "r+"):
        pass


def test_an_array_is_sent_as_it_is(volume):
    dataset = InferenceVolumeDataset([volume], PATCH, normalization="minmax")
    assert_same(pickle.loads(pickle.dumps(dataset)), dataset)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_read_files_for_themselves(path, start):
    dataset = InferenceVolumeDataset(
        [f"{path}::raw"], PATCH, normalization="zscore", labels=f"{path}::labels"
    )
    items = list(dataset)  # and so the file is open here while workers start
    loader = DataLoader(dataset, batch_size=5, num_workers=2, multiprocessing_context=start)
    batches = list(loader)

    assert torch.cat([batch["image"] for batch in batches]).equal(
        torch.stack([item["image"] for item in items])
    )
    assert torch.cat([batch["label"] for batch in batches]).equal(
        torch.stack([item["label"] for item in items])
    )
    positions = [tuple(pos) for batch in batches for pos in torch.stack(batch["pos"], 1).tolist()]
    assert positions == [item["pos"] for item in items]
    dataset.close()


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("?", torch.bool),
        ("u1", torch.uint8),
        ("i2", torch.int16),
        (">i4", torch.int32),
        ("u2", torch.int64),
        ("u8", torch.int64),
        (">f4", torch.float32),
        ("f8", torch.float64),
    ],
)
def test_labels_are_of_a_type_that_torch_computes_with(volume, stored, expected):
    labels = (volume[0] > 0.5).astype(stored)
    labels.setflags(write=False)
    label = InferenceVolumeDataset(volume, PATCH, labels=labels)[0]["label"]

    assert label.dtype == expected
    assert label.shape == (1, *PATCH)
    np.testing.assert_array_equal(label[0].numpy(), labels[:4, :8, :8])
    label += label  # memory of its own


def test_labels_are_at_the_resolution_of_the_output(volume):
    labels = np.arange(6 * 24 * 13).reshape(6, 24, 13)
    dataset = InferenceVolumeDataset(volume, PATCH, labels=labels, output_scale=(1, 2, 1))
    item = dataset[len(dataset) - 1]

    assert item["pos"] == (0, 2, 4, 5)
    np.testing.assert_array_equal(item["label"][0].numpy(), labels[2:6, 8:24, 5:13])


def test_what_cannot_be_used_is_refused_in_one_line(volume, path, tmp_path):
    cases = {
        "labels are 2 for 1 volumes": {"labels": [volume[0], volume[0]]},
        r"must have that of the whole prediction, \(6, 12, 13\)": {"labels": volume[0, :4]},
        "is not a setting": {"sampling": "random"},
        "normalization": {"normalization": "unit"},
    }
    for message, settings in cases.items():
        with pytest.raises((ConfigError, SourceError), match=message) as caught:
            InferenceVolumeDataset(volume, PATCH, **settings)
        assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match="no such file"):
        InferenceVolumeDataset([f"{path}::raw", tmp_path / "none.h5"], PATCH)
    with pytest.raises(SourceError, match="list of sources is empty"):
        InferenceVolumeDataset([], PATCH)
    with pytest.raises(SourceError, match="channels"):
        InferenceVolumeDataset([volume, volume[0]], PATCH)
    far = np.full((6, 12, 13), 2**63, np.uint64)
    with pytest.raises(SourceError, match="number them anew"):
        InferenceVolumeDataset(volume, PATCH, labels=far)[0]


def test_the_device_of_a_run_elsewhere_does_not_matter(volume):
    dataset = InferenceVolumeDataset(volume, PATCH, device="cuda:7")
    assert dataset.config.device == "cuda:7"
