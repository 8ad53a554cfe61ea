"""Probabilities and masks, voxel by voxel: counts, patch by patch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.errors import ConfigError, SourceError
from napari_seamless.engine.source import ArraySource
from napari_seamless.metrics.volumes import NAN, as_source, check_one_channel, ratio, slabs

# Scores are counted in bins. The leading 20 bits of a float32 (sign, exponent, 11 of the mantissa)
# number 2**20 of them in the order of the values, and these three values begin one:
_ZERO = 1 << 19
_HALF = _ZERO + (126 << 11)
_ONE = _ZERO + (127 << 11)
# Between 0.5 and 1 stand those of 1 - score instead, which are more; higher ones move up.
_ABOVE_ONE = 2 * _HALF - _ZERO + 1
_BINS = (1 << 20) - _ONE + _ABOVE_ONE


class VoxelMetrics:
    """Counts how often a prediction and labels agree, over any number of patches and volumes.

    Its memory is 20 MiB, whatever it counts. It can be pickled, and `merge` adds up what several
    processes counted.

    Parameters
    ----------
    threshold : float
        A voxel is foreground where the prediction exceeds it. It must be finite.

    Raises
    ------
    ConfigError
        If the threshold is not finite.

    Notes
    -----
    Average precision needs the order of all scores. They are counted in 1.3 million bins instead,
    by the leading 20 bits of their float32, which rise with the value if ordered by sign: a bin
    spans at most 1/2048 of its value, close to 0 as for large logits. From 0.5 to 1 it is
    1 - score that is binned so, since a confident network's probabilities crowd at 1 as at 0. The
    result is that of scores of 12 significant bits, so exact where different scores differ by
    more. In general it is off by at most the sum over bins of (p / P) (m - 1) / n, with m voxels
    in a bin, p of them of the P positives, and n in this bin and all higher ones.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        if not np.isfinite(threshold):
            raise ConfigError(f"threshold is {threshold}; it must be a finite number, such as 0.5")
        self.threshold = threshold
        self._voxels = self._common = self._found = self._true = 0
        self._squares = 0.0
        self._scores = np.zeros((_BINS, 2), np.int64)  # of background, of foreground

    def update(self, prediction: Any, labels: Any) -> None:
        """Count one patch or volume.

        Parameters
        ----------
        prediction : ndarray or torch.Tensor, shape (C, ...)
            Real numbers. Where it is NaN (not predicted yet) voxels are left out, of the labels
            too. (The samples of a batch (B, C, Z, Y, X) are counted one by one.)
        labels : ndarray or torch.Tensor, shape (C, ...), (1, ...) or (...)
            Of the prediction's shape, or for one channel: foreground where nonzero. Of one
            channel, or without, where the prediction has several: class indices, and channel c
            is compared with labels == c. The counts of all channels are pooled.

        Raises
        ------
        SourceError
            If the shapes do not fit, one does not hold real numbers, or a class index is not one
            of 0 to C - 1. Nothing is counted then.
        """
        values = _as_array(prediction, "the prediction")
        truth = _foreground(_as_array(labels, "the labels"), values.shape)
        if values.dtype.kind == "f":
            known = ~np.isnan(values)
            values, truth = values[known], truth[known]
        found = values > self.threshold
        self._voxels += values.size
        self._found += int(np.count_nonzero(found))
        self._true += int(np.count_nonzero(truth))
        self._common += int(np.count_nonzero(found & truth))
        with np.errstate(over="ignore", invalid="ignore"):  # beyond float64: infinite is right
            difference = (values.astype(np.float64) - truth).ravel()
            self._squares += float(difference @ difference)
        np.add.at(self._scores.reshape(-1), 2 * _bins(values.ravel()) + truth.ravel(), 1)

    def merge(self, other: "VoxelMetrics") -> None:
        """Add what another one counted.

        Parameters
        ----------
        other : VoxelMetrics
            Of the same threshold. It stays as it is.

        Raises
        ------
        ConfigError
            If the thresholds differ.
        """
        if other.threshold != self.threshold:
            raise ConfigError(
                f"thresholds {self.threshold} and {other.threshold} differ; "
                "counts can be added only if they were made with the same one"
            )
        self._voxels += other._voxels
        self._common += other._common
        self._found += other._found
        self._true += other._true
        self._squares += other._squares
        self._scores += other._scores

    def compute(self) -> dict[str, float]:
        """Return the values of all that was counted; counting can go on afterwards.

        Returns
        -------
        dict of str to float
            With P the predicted and L the true foreground,

            dice : 2 |P and L| / (|P| + |L|), 0 to 1; 1 where both are empty.
            iou : |P and L| / |P or L|, 0 to 1; 1 where both are empty.
            precision : |P and L| / |P|, 0 to 1; NaN where P is empty.
            recall : |P and L| / |L|, 0 to 1; NaN where L is empty.
            average_precision : sum over thresholds of (R_n - R_(n-1)) P_n, 0 to 1, as in
            scikit-learn, of the prediction without its threshold; NaN where L is empty.
            mean_squared_error : of the prediction against a truth of 0 and 1; it says something
            only of probabilities.
            voxels : how many were compared, in all channels.

            NaN is what scikit-learn gives for zero_division=nan: a share of nothing. All but
            `voxels` are NaN where nothing is predicted.
        """
        common, found, true = self._common, self._found, self._true
        agreed = 1.0 if self._voxels else NAN
        return {
            "dice": ratio(2 * common, found + true, agreed),
            "iou": ratio(common, found + true - common, agreed),
            "precision": ratio(common, found, NAN),
            "recall": ratio(common, true, NAN),
            "average_precision": self._average_precision() if true else NAN,
            "mean_squared_error": ratio(self._squares, self._voxels, NAN),
            "voxels": self._voxels,
        }

    def _average_precision(self) -> float:
        falling = self._scores[self._scores.any(axis=1)][::-1]
        true = np.cumsum(falling[:, 1])
        precision = true / np.cumsum(falling.sum(axis=1))
        return float(falling[:, 1] @ precision / true[-1])


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
    predicted, truth = as_source(prediction, "the prediction"), as_source(labels, "the labels")
    check_one_channel(predicted, truth, "Dice compares")
    return voxel_metrics(predicted, truth, threshold)["dice"]


def voxel_metrics(predicted: ArraySource, truth: ArraySource, threshold: float) -> dict[str, float]:
    """Return what `VoxelMetrics` says of whole volumes, read a few planes at a time."""
    if predicted.shape[1:] != truth.shape[1:] or truth.shape[0] not in (1, predicted.shape[0]):
        raise SourceError(
            f"{predicted.name} has shape {predicted.shape} and {truth.name} {truth.shape} "
            "(C, Z, Y, X); labels must cover the same voxels, in as many channels or in one: "
            "crop or resample one of them"
        )
    metrics = VoxelMetrics(threshold)
    for values, labels in slabs(predicted, truth):
        metrics.update(values, labels)
    return metrics.compute()


def _as_array(values: Any, name: str) -> NDArray[Any]:
    if hasattr(values, "detach"):  # a tensor; torch is not loaded just to know that
        values = values.detach().cpu()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()  # numpy has no bfloat16
    array = np.asarray(values)
    if array.dtype.kind not in "buif":
        raise SourceError(f"{name} holds {array.dtype}; give integers, floats or booleans")
    return array


def _foreground(labels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return where each channel of a prediction of `shape` (C, ...) should be foreground."""
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise SourceError(
            "the labels hold NaN or infinity, which is neither foreground nor background; "
            "replace them first"
        )
    if labels.shape == shape:
        return labels.astype(np.bool_)
    if not shape or labels.shape not in (shape[1:], (1, *shape[1:])):
        raise SourceError(
            f"the prediction has shape {shape} and the labels {labels.shape}; "
            "labels must have the prediction's shape (C, ...), or that of one channel of it"
        )
    labels = labels.reshape(1, *shape[1:])
    if shape[0] == 1:
        return labels.astype(np.bool_)
    classes = np.arange(shape[0]).reshape(-1, *(1 for _ in shape[1:]))
    unknown = labels[~np.isin(labels, classes)]
    if unknown.size:
        raise SourceError(
            f"the labels hold {unknown[0]}, and the prediction has {shape[0]} channels; class "
            f"indices must be 0 to {shape[0] - 1}: choose one channel, or renumber the labels"
        )
    is_class: NDArray[np.bool_] = labels == classes
    return is_class


def _bins(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the bin of each score; it never falls where the score rises."""
    bins = _leading_bits(values)
    bins[values > 1] += _ABOVE_ONE - _ONE
    high = (values > 0.5) & (values <= 1)
    bins[high] = 2 * _HALF - _leading_bits(1 - values[high])
    return bins


def _leading_bits(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the leading bits of each float32, as integers in the order of the values."""
    with np.errstate(over="ignore"):  # beyond float32: as infinity
        bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)  # + 0: -0.0 is 0.0
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (ordered >> np.uint32(12)).astype(np.int64)
