"""How good a prediction is, against labels drawn by experts."""

from typing import Any

import numpy as np

from napari_seamless.engine.errors import SourceError
from napari_seamless.engine.grid import Box
from napari_seamless.engine.source import ArraySource

SLAB_VOXELS = 1 << 22
"""Voxels compared at a time."""


def dice(prediction: Any, labels: Any, threshold: float = 0.5) -> float:
    """Return the Dice coefficient, 2 |P and L| / (|P| + |L|), reading a few planes at a time.

    Parameters
    ----------
    prediction : array-like, shape (1, Z, Y, X) or (Z, Y, X)
        Foreground where it exceeds `threshold`. Where it is NaN (not predicted yet) voxels are
        left out, of the labels too.
    labels : array-like, shape (Z, Y, X) or (1, Z, Y, X)
        Foreground where nonzero.
    threshold : float
        In the units of the prediction.

    Returns
    -------
    float
        0 to 1; 1 where neither has any foreground, NaN where nothing is predicted.

    Raises
    ------
    SourceError
        If the shapes differ, there are several channels, or one is no volume of real numbers.
    """
    predicted, truth = ArraySource(prediction, "the prediction"), ArraySource(labels, "the labels")
    if predicted.shape != truth.shape or predicted.shape[0] != 1:
        raise SourceError(
            f"the prediction has shape {predicted.shape} and the labels {truth.shape} "
            "(C, Z, Y, X); Dice compares one channel of the same shape: choose one of each"
        )
    _, depth, height, width = predicted.shape
    step = max(1, SLAB_VOXELS // (height * width))
    common = foreground = covered = 0
    for start in range(0, depth, step):
        slab = Box((start, 0, 0), (min(start + step, depth), height, width))
        values = predicted.read(slab)
        known = ~np.isnan(values)
        is_predicted = values > threshold
        is_true = (truth.read(slab) != 0) & known
        common += int(np.count_nonzero(is_predicted & is_true))
        foreground += int(np.count_nonzero(is_predicted) + np.count_nonzero(is_true))
        covered += int(np.count_nonzero(known))
    if not covered:
        return float("nan")
    return 2 * common / foreground if foreground else 1.0
