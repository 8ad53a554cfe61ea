"""A volume in, an OME-Zarr out, without a screen; cut off on the way, and resumed.

    python examples/headless.py [FOLDER]

The volume is generated and the checkpoint is the demo's, so this takes seconds. What it makes is in
FOLDER, if that is given, or in a new folder for temporary files. With your own, change `source`,
`CHECKPOINT` and `CONFIG`.
"""

import sys
import tempfile
from pathlib import Path

import h5py

import napari_seamless as ns
from napari_seamless.demo import CHECKPOINT
from napari_seamless.demo.volume import demo_volume
from napari_seamless.draining import drain

CONFIG = ns.InferenceConfig(
    patch_size=(8, 48, 48), overlap=0.5, activation="sigmoid", batch_size=1, device="cpu"
)


def main(folder: Path) -> None:
    """Predict half of a volume, then the rest."""
    raw, membranes = demo_volume((64, 48, 48))
    with h5py.File(folder / "volume.h5", "w") as file:
        file["raw"] = raw
    source, output = f"{folder / 'volume.h5'}::raw", folder / "prediction.zarr"

    # A run that ends early. A killed process leaves the same: each finished chunk is recorded.
    with ns.InferenceRun(source, CHECKPOINT, CONFIG, output, overwrite=True) as run:
        for event in run:
            if event.done >= event.total / 2:
                run.cancel()
    print(run.status, run.done, "of", run.total, "patches")

    # The same once more. Patches whose chunks are finished do not run again.
    with ns.InferenceRun(source, CHECKPOINT, CONFIG, output, resume=True) as run:
        truth = run.open_labels(membranes)
        print(run.forecast())
        drain(run, progress=False)
        print(run.status, *run.paths)
        print("Dice", round(run.scores(truth)["dice"], 3))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
