"""How visible seams are with some windows and overlaps, and where they are.

    python examples/find_a_seam.py

A seam is a jump of the prediction where a patch begins or ends. The score is how much it jumps
there, divided by how much it jumps elsewhere, along each axis: about 1 means that there is nothing
to see. The volume is generated and the checkpoint is the demo's; put your own in their place.
"""

import numpy as np

import napari_seamless as ns
from napari_seamless.demo import CHECKPOINT
from napari_seamless.demo.volume import demo_volume
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.seams import faces_of, seam_map, seam_score

SETTINGS = (("constant", 0.0), ("gaussian", 0.25), ("hann", 0.25), ("gaussian", 0.5))
"""Windows, and overlaps; without overlap all windows are the same."""


def main() -> None:
    """Score all of them, then look for the seams of patches that do not overlap."""
    raw, _ = demo_volume((8, 64, 64))
    model = ns.load_model(CHECKPOINT)

    print(f"{'window':10}{'overlap':>8}{'Z':>8}{'Y':>8}{'X':>8}")
    for window, overlap in SETTINGS:
        prediction, grid = predicted(raw, model, window, overlap)
        ratios = seam_score(prediction, grid).ratios
        print(f"{window:10}{overlap:8}", *(f"{ratio:7.2f}" for ratio in ratios))

    prediction, grid = predicted(raw, model, "constant", 0.0)
    lazy = LazyArray(prediction.shape, prediction.dtype, prediction.__getitem__)
    excess = np.asarray(seam_map(lazy, grid))  # NaN away from the faces
    for axis, faces in enumerate(faces_of(grid)):
        for face in faces.tolist():
            beside = excess.take([face - 1, face], axis)
            print(f"patches meet at {'ZYX'[axis]} = {face}: it jumps {np.nanmean(beside):.3f} more")
    place = np.unravel_index(np.nanargmax(excess), excess.shape)
    print(f"the largest is {excess[place]:.2f} at (Z, Y, X) {tuple(map(int, place))}")


def predicted(
    raw: np.ndarray, model: object, window: str, overlap: float
) -> tuple[np.ndarray, ns.PatchGrid]:
    """Return a prediction (C, Z, Y, X) and where its patches are."""
    config = ns.InferenceConfig(
        patch_size=(4, 32, 32),
        overlap=overlap,
        blending=window,
        activation="sigmoid",
        batch_size=2,
        device="cpu",
    )
    with ns.InferenceRun(raw, model, config) as run:
        for _ in run:
            pass
        return run.results()[0], run.plan.volumes[0].grid


if __name__ == "__main__":
    main()
