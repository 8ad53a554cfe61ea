"""Whole volumes out of a Lightning module, in two ways that agree.

    python examples/lightning_inference.py

needs ``pip install 'napari-seamless[lightning]'``. The volume is generated and the network is as
it was initialised, so this takes seconds; with your own, change `Segmenter` and `volume`.
"""

import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

import napari_seamless as ns

PATCH_SIZE = (8, 32, 32)
CONFIG = ns.InferenceConfig(
    patch_size=PATCH_SIZE, overlap=0.5, blending="gaussian", activation="sigmoid", batch_size=4
)


class Segmenter(LightningModule):
    """Yours: a network, and a test step that computes metrics. It knows nothing of blending."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 1, 3, padding=1)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 1, Z, Y, X)."""
        return self.network(image)

    def test_step(self, batch: dict, batch_idx: int) -> None:
        """Log the loss; the prediction need not be returned, `self(...)` is enough."""
        logits = self(batch["image"])
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch["label"].float())
        self.log("test_loss", loss)


def main() -> None:
    """Predict one volume both ways and compare."""
    random = np.random.default_rng(0)
    volume = random.integers(0, 256, (16, 80, 80), dtype=np.uint8)
    labels = (volume > 128).astype(np.uint8)
    module = Segmenter()

    # Way 1: a callback. The loop that computes the metrics also blends and writes the volume.
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "prediction.h5"
        dataset = ns.InferenceVolumeDataset([volume], PATCH_SIZE, overlap=0.5, labels=[labels])
        writer = ns.BlendedWriter(dataset, CONFIG, output)
        loader = DataLoader(dataset, batch_size=CONFIG.batch_size)
        with_callback = quiet_trainer(writer).test(module, loader, verbose=False)
        with h5py.File(output) as file:
            written = file["main"][:]
    print("the callback wrote", written.shape, "and the loop logged", with_callback)

    # Way 2: the metrics first, and then `predict` as a separate function with the same network.
    metrics = quiet_trainer().test(module, loader, verbose=False)
    prediction = ns.predict(volume, module, CONFIG, progress=False)
    print("predict gave", prediction.array.shape, "after the loop logged", metrics)

    np.testing.assert_allclose(written, prediction.array, rtol=1e-5)
    assert metrics == with_callback
    print("both ways agree")


def quiet_trainer(*callbacks: ns.BlendedWriter) -> Trainer:
    """Return a trainer that leaves no files behind."""
    return Trainer(
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


if __name__ == "__main__":
    main()
