"""How good a prediction is, against labels drawn by experts.

`evaluate` compares finished volumes a few planes at a time; `VoxelMetrics` counts whatever it is
given, patch by patch. What is kept is counts, so neither ever holds a volume.

    probabilities, masks   Dice, IoU, precision, recall, average precision, mean squared error
    instance labels        adapted Rand error, variation of information
"""

from typing import Any, Literal

from napari_seamless.engine.errors import ConfigError
from napari_seamless.metrics.components import (
    component_metrics,
    has_components,
    instance_metrics,
)
from napari_seamless.metrics.volumes import SLAB_VOXELS, as_source, holds_instances
from napari_seamless.metrics.voxels import VoxelMetrics, dice, voxel_metrics

__all__ = [
    "METRIC_NAMES",
    "SLAB_VOXELS",
    "Kind",
    "VoxelMetrics",
    "component_metrics",
    "dice",
    "evaluate",
    "has_components",
    "instance_metrics",
]

METRIC_NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "average_precision": "average precision",
    "mean_squared_error": "mean squared error",
    "adapted_rand_error": "adapted Rand error",
    "adapted_rand_precision": "adapted Rand precision",
    "adapted_rand_recall": "adapted Rand recall",
    "voi_split": "VOI split",
    "voi_merge": "VOI merge",
    "voi": "VOI",
}
"""How the values are called where they are shown."""

Kind = Literal["probability", "segmentation"]


def evaluate(
    prediction: Any, labels: Any, threshold: float = 0.5, *, kind: Kind | None = None
) -> dict[str, float]:
    """Compare a finished volume with its labels, reading a few planes at a time.

    Parameters
    ----------
    prediction : array-like or ArraySource, shape (C, Z, Y, X), (Z, Y, X) or (Y, X)
        Probabilities or logits, a mask of 0 and 1, or a segmentation (integers, one channel).
    labels : array-like or ArraySource
        Of the prediction's shape, or of one channel. For probabilities as in
        `VoxelMetrics.update`, for a segmentation as in `instance_metrics`.
    threshold : float
        Of probabilities, in their units; a segmentation has none.
    kind : {"probability", "segmentation"}, optional
        What the prediction is. By default floats and booleans are probabilities, as are integers
        of at most two values (a mask), and other integers are a segmentation. Probabilities saved
        as integers (uint8, 0 to 255) must be scaled by the caller.

    Returns
    -------
    dict of str to float
        What `VoxelMetrics.compute` gives for probabilities, and beside it `component_metrics` if
        the labels are instances; `instance_metrics` for a segmentation.

    Raises
    ------
    SourceError
        If one is no volume of real numbers, or the labels do not fit the prediction.
    ConfigError
        If the kind is unknown or the threshold is not finite.
    """
    predicted, truth = as_source(prediction, "the prediction"), as_source(labels, "the labels")
    if kind not in ("probability", "segmentation", None):
        raise ConfigError(f"kind is {kind!r}; it must be 'probability', 'segmentation' or None")
    if kind == "segmentation" or (kind is None and holds_instances(predicted)):
        return instance_metrics(predicted, truth)
    scores = voxel_metrics(predicted, truth, threshold)
    return {**scores, **component_metrics(predicted, truth, threshold)}
