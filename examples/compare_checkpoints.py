"""Two checkpoints side by side on one volume: their scores, and where they differ.

    python examples/compare_checkpoints.py

The first is the demo's. The second is the same with noise on its weights, as a network that was
trained less. With your own, change `checkpoints` and the volume.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

import napari_seamless as ns
from napari_seamless.demo import CHECKPOINT
from napari_seamless.demo.volume import demo_volume

CONFIG = ns.InferenceConfig(
    patch_size=(8, 64, 64), overlap=0.25, activation="sigmoid", batch_size=2, device="cpu"
)
SHOWN = ("dice", "precision", "recall", "average_precision")


def main(folder: Path) -> None:
    """Predict a volume with both, and compare."""
    raw, membranes = demo_volume((8, 112, 112))
    checkpoints = {"trained": CHECKPOINT, "noisy": noisy_copy(CHECKPOINT, folder / "noisy.pt")}

    predictions = {}
    print(f"{'':20}", *(f"{name:>18}" for name in SHOWN))
    for name, checkpoint in checkpoints.items():
        prediction = ns.predict(raw, checkpoint, CONFIG, labels=membranes, progress=False)
        predictions[name] = prediction.array[0]
        print(f"{name:20}", *(f"{prediction.metrics[each]:18.3f}" for each in SHOWN))

    one, other = predictions.values()
    difference = np.abs(one - other)
    changed = (one > CONFIG.threshold) != (other > CONFIG.threshold)
    place = np.unravel_index(difference.argmax(), difference.shape)
    print(f"mean difference {difference.mean():.3f}")
    print(f"{changed.mean():.1%} of the voxels are above the threshold in one only")
    print(f"largest at (Z, Y, X) {tuple(map(int, place))}: {one[place]:.3f} and {other[place]:.3f}")


def noisy_copy(checkpoint: Path, copy: Path) -> Path:
    """Write a TorchScript checkpoint once more, with noise on its weights."""
    torch.manual_seed(0)
    network = torch.jit.load(checkpoint)
    with torch.no_grad():
        for weights in network.parameters():
            weights += 0.15 * weights.abs().mean() * torch.randn_like(weights)
    network.save(copy)
    return copy


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
