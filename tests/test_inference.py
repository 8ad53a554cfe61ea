"""What the composition root opens, it closes; what it is given, it leaves alone."""

import h5py
import numpy as np
import pytest
import torch

import napari_seamless as ns
import networks
from napari_seamless.engine.errors import ConfigError, ModelError, SourceError, WriteError
from napari_seamless.engine.source import ArraySource

CONFIG = ns.InferenceConfig(patch_size=(4, 8, 8), normalization="none", device="cpu")


@pytest.fixture
def volume():
    return np.random.default_rng(5).random((6, 12, 12), dtype=np.float32)


@pytest.fixture
def path(tmp_path, volume):
    with h5py.File(tmp_path / "volume.h5", "w") as file:
        file["raw"] = volume
        file["labels"] = (volume > 0.5).astype(np.uint8)
    return tmp_path / "volume.h5"


def predict(source, **options):
    return ns.predict(source, networks.Doubled(), CONFIG, progress=False, **options)


def test_a_path_an_array_and_a_source_give_the_same(volume, path):
    for source in (f"{path}::raw", volume, ArraySource(volume)):
        np.testing.assert_allclose(predict(source).array[0], 2 * volume, rtol=1e-6)


@pytest.mark.parametrize("library", ["dask", "zarr", "h5py"])
def test_any_array_like_is_read(volume, path, library):
    dask, zarr = pytest.importorskip("dask.array"), pytest.importorskip("zarr")
    with h5py.File(path) as file:
        source = {"dask": dask.from_array(volume), "zarr": zarr.array(volume), "h5py": file["raw"]}
        np.testing.assert_allclose(predict(source[library]).array[0], 2 * volume, rtol=1e-6)


def test_a_list_gives_an_array_per_volume(volume):
    arrays = predict([volume, volume[:3, :9]]).arrays

    np.testing.assert_allclose(arrays[0][0], 2 * volume, rtol=1e-6)
    np.testing.assert_allclose(arrays[1][0], 2 * volume[:3, :9], rtol=1e-6)


def test_a_source_that_was_given_can_be_used_again(volume):
    source = ArraySource(volume)
    for _ in range(2):
        np.testing.assert_allclose(predict(source, labels=source).array[0], 2 * volume, rtol=1e-6)


def test_a_file_is_closed_even_when_the_result_cannot_be_written(path, tmp_path):
    out = tmp_path / "out.h5"
    run = ns.InferenceRun(f"{path}::raw", networks.Doubled(), CONFIG, out)
    next(run)
    out.write_text("someone else's")
    with pytest.raises(WriteError, match="appeared"):
        run.close()

    with h5py.File(path, "r+") as file:  # fails while it is open for reading
        assert "raw" in file
    assert out.read_text() == "someone else's"


def test_labels_give_metrics_and_must_fit(volume, path):
    metrics = predict(volume, labels=f"{path}::labels").metrics
    found, truth = 2 * volume > 0.5, volume > 0.5
    expected = 2 * (found & truth).sum() / (found.sum() + truth.sum())

    assert metrics["dice"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(SourceError, match=r"\(3, 12, 12\).*\(6, 12, 12\)"):
        predict(volume, labels=np.zeros((3, 12, 12)))


def test_what_is_no_network_is_refused(volume):
    with pytest.raises(ModelError, match="int is no network"):
        ns.predict(volume, 3, CONFIG)


def test_several_volumes_do_not_go_into_one_file(volume, tmp_path):
    with pytest.raises(ConfigError, match="2 volumes"):
        predict([volume, volume], output=tmp_path / "out.h5")


def test_the_network_is_left_as_it_was(volume):
    network = torch.nn.Sequential(torch.nn.BatchNorm3d(1), torch.nn.Dropout()).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    ns.predict(volume, network, CONFIG, progress=False)

    assert all(part.training for part in network.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_prediction_that_cannot_be_written_is_kept_elsewhere(volume, tmp_path, monkeypatch):
    class Intruder(networks.Doubled):
        """Puts a file where the prediction shall go, while it is made."""

        def forward(self, image):
            out.write_text("someone else's")
            return super().forward(image)

    out, elsewhere = tmp_path / "out.h5", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    with pytest.raises(WriteError) as caught:
        ns.predict(volume, Intruder(), CONFIG, out, progress=False)

    kept = next(elsewhere.iterdir())
    assert caught.value.__notes__ == [f"the prediction is kept in {kept}"]
    assert out.read_text() == "someone else's"
    with h5py.File(kept) as file:
        np.testing.assert_allclose(file["main"][0], 2 * volume, rtol=1e-6)
        assert file["main"].attrs["status"] == "complete"
