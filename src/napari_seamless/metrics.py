"""How good a prediction is, against labels drawn by experts.

`evaluate` compares finished volumes a few planes at a time; `VoxelMetrics` counts whatever it is
given, patch by patch. What is kept is counts, so neither ever holds a volume.

    probabilities, masks   Dice, IoU, precision, recall, average precision, mean squared error
    instance labels        adapted Rand error, variation of information
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.errors import ConfigError, SourceError
from napari_seamless.engine.grid import Box
from napari_seamless.engine.source import ArraySource

SLAB_VOXELS = 1 << 22
"""Voxels compared at a time."""

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
Pairs = tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]

_NAN = float("nan")

# Scores are counted in bins. The leading 20 bits of a float32 (sign, exponent, 11 of the mantissa)
# number 2**20 of them in the order of the values, and these three values begin one:
_ZERO = 1 << 19
_HALF = _ZERO + (126 << 11)
_ONE = _ZERO + (127 << 11)
# Between 0.5 and 1 stand those of 1 - score instead, which are more; higher ones move up.
_ABOVE_ONE = 2 * _HALF - _ZERO + 1
_BINS = (1 << 20) - _ONE + _ABOVE_ONE


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
    predicted, truth = _source(prediction, "the prediction"), _source(labels, "the labels")
    if kind not in ("probability", "segmentation", None):
        raise ConfigError(f"kind is {kind!r}; it must be 'probability', 'segmentation' or None")
    if kind == "segmentation" or (kind is None and _holds_instances(predicted)):
        return instance_metrics(predicted, truth)
    scores = _voxel_metrics(predicted, truth, threshold)
    return {**scores, **component_metrics(predicted, truth, threshold)}


def component_metrics(prediction: Any, labels: Any, threshold: float = 0.5) -> dict[str, float]:
    """Compare the connected parts of a predicted foreground with instance labels.

    Parameters
    ----------
    prediction : array-like or ArraySource, shape (1, Z, Y, X), (Z, Y, X) or (Y, X)
        Foreground where it exceeds `threshold`; voxels that share a face are connected.
    labels : array-like or ArraySource, same shape
        Integers, one per instance; 0 is no instance.
    threshold : float
        In the units of the prediction.

    Returns
    -------
    dict of str to float
        What `instance_metrics` gives. Nothing if the labels are a mask, that is, have at most two
        values, or the prediction has several channels.

    Notes
    -----
    The parts of the whole volume are found at once: 5 bytes per voxel are held.
    """
    found, truth = _source(prediction, "the prediction"), _source(labels, "the labels")
    if found.shape[0] > 1 or truth.shape[0] > 1 or not _holds_instances(truth):
        return {}
    from scipy import ndimage

    foreground = np.empty(found.shape[1:], dtype=np.bool_)
    for box in Box.of_shape(foreground.shape).slabs(SLAB_VOXELS):
        foreground[box.slices] = found.read(box)[0] > threshold
    parts, _ = ndimage.label(foreground, output=np.int32)
    return instance_metrics(parts, truth)


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
    predicted, truth = _source(prediction, "the prediction"), _source(labels, "the labels")
    _check_one_channel(predicted, truth, "Dice compares")
    return _voxel_metrics(predicted, truth, threshold)["dice"]


def instance_metrics(segmentation: Any, labels: Any) -> dict[str, float]:
    """Compare a segmentation with instance labels, reading a few planes at a time.

    Voxels that the labels leave 0 are left out of every value, as scikit-image does for the
    adapted Rand error and CREMI for the variation of information too (scikit-image's own default
    there is to keep them). A 0 of the segmentation inside of a labelled instance is one more
    segment. The numbers of segments mean nothing, only which voxels share one.

    Parameters
    ----------
    segmentation : array-like or ArraySource, shape (1, Z, Y, X), (Z, Y, X) or (Y, X)
        Integers of any size, one per segment.
    labels : array-like or ArraySource, same shape
        Integers, one per instance; 0 is no instance.

    Returns
    -------
    dict of str to float
        adapted_rand_error : 1 - 2 P R / (P + R), 0 (best) to 1.
        adapted_rand_precision : P, of the pairs of voxels in one segment, those in one instance.
        adapted_rand_recall : R, of the pairs of voxels in one instance, those in one segment.
        voi_split : H(segmentation | labels) in bits, 0 (best) and up: instances cut apart.
        voi_merge : H(labels | segmentation) in bits, 0 (best) and up: instances run together.
        voi : their sum, the variation of information.

        All are NaN where no voxel is labelled; a value of pairs is where there are no such pairs.

    Raises
    ------
    SourceError
        If the shapes differ, there are several channels, or one does not hold integers.

    Notes
    -----
    Kept is one count for each segment and instance that meet. scikit-image returns precision and
    recall in each other's place (its issue 6485, open in 0.26), so they are counted here.

    References
    ----------
    Arganda-Carreras et al. 2015, doi:10.3389/fnana.2015.00142 (adapted Rand error; pairs without
    a voxel and itself, as in scikit-image); Meila 2007, doi:10.1016/j.jmva.2006.11.013.
    """
    found, truth = _source(segmentation, "the segmentation"), _source(labels, "the labels")
    _check_one_channel(found, truth, "instance metrics compare")
    _check_integers(found, truth)
    table = _contingency(found, truth)
    return {**_adapted_rand(table), **_variation_of_information(table)}


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
        agreed = 1.0 if self._voxels else _NAN
        return {
            "dice": _ratio(2 * common, found + true, agreed),
            "iou": _ratio(common, found + true - common, agreed),
            "precision": _ratio(common, found, _NAN),
            "recall": _ratio(common, true, _NAN),
            "average_precision": self._average_precision() if true else _NAN,
            "mean_squared_error": _ratio(self._squares, self._voxels, _NAN),
            "voxels": self._voxels,
        }

    def _average_precision(self) -> float:
        falling = self._scores[self._scores.any(axis=1)][::-1]
        true = np.cumsum(falling[:, 1])
        precision = true / np.cumsum(falling.sum(axis=1))
        return float(falling[:, 1] @ precision / true[-1])


def _ratio(part: float, whole: float, empty: float) -> float:
    return float(part / whole) if whole else empty


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


def _voxel_metrics(
    predicted: ArraySource, truth: ArraySource, threshold: float
) -> dict[str, float]:
    if predicted.shape[1:] != truth.shape[1:] or truth.shape[0] not in (1, predicted.shape[0]):
        raise SourceError(
            f"{predicted.name} has shape {predicted.shape} and {truth.name} {truth.shape} "
            "(C, Z, Y, X); labels must cover the same voxels, in as many channels or in one: "
            "crop or resample one of them"
        )
    metrics = VoxelMetrics(threshold)
    for values, labels in _slabs(predicted, truth):
        metrics.update(values, labels)
    return metrics.compute()


def _contingency(segmentation: ArraySource, truth: ArraySource) -> Any:
    """Return how many voxels each instance (row) shares with each segment, as a sparse table."""
    slabs = [_cells(*_table(*_runs(each, true))) for each, true in _slabs(segmentation, truth)]
    instances, segments, voxels = (np.concatenate(each) for each in zip(*slabs, strict=True))
    return _table(instances, segments, voxels)[2]


def _adapted_rand(table: Any) -> dict[str, float]:
    from skimage.metrics import adapted_rand_error

    same, segments, instances = map(_pairs, (table.data, table.sum(axis=0), table.sum(axis=1)))
    with np.errstate(invalid="ignore"):  # 0 / 0 where no two voxels share a segment
        error = adapted_rand_error(table=table)[0]  # type: ignore[no-untyped-call]
    return {
        "adapted_rand_error": float(error),
        "adapted_rand_precision": _ratio(same, segments, _NAN),
        "adapted_rand_recall": _ratio(same, instances, _NAN),
    }


def _variation_of_information(table: Any) -> dict[str, float]:
    from skimage.metrics import variation_of_information

    if not table.nnz:
        return dict.fromkeys(("voi_split", "voi_merge", "voi"), _NAN)
    unused = np.empty(0)  # the images, which must have a shape even where there is a table
    bits = variation_of_information(  # type: ignore[no-untyped-call]
        unused, unused, table=table / table.sum()
    )
    split, merge = (float(entropy) for entropy in bits)
    return {"voi_split": split, "voi_merge": merge, "voi": split + merge}


def _runs(segmentation: NDArray[Any], truth: NDArray[Any]) -> Pairs:
    """Return instance, segment and length of the runs of voxels in which neither changes."""
    segments, instances = segmentation.ravel(), truth.ravel()
    is_start = np.ones(instances.size, np.bool_)
    is_start[1:] = (segments[1:] != segments[:-1]) | (instances[1:] != instances[:-1])
    starts = np.flatnonzero(is_start)
    lengths = np.diff(starts, append=instances.size).astype(np.float64)
    labelled = instances[starts] != 0
    starts = starts[labelled]
    return instances[starts], segments[starts], lengths[labelled]


def _table(
    instances: NDArray[Any], segments: NDArray[Any], voxels: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[Any], Any]:
    """Return the distinct instances, the distinct segments, and their voxels added up, as CSR."""
    from scipy import sparse

    rows, row = np.unique(instances, return_inverse=True)
    columns, column = np.unique(segments, return_inverse=True)
    table = sparse.coo_array((voxels, (row, column)), shape=(rows.size, columns.size))
    return rows, columns, table.tocsr()


def _cells(rows: NDArray[Any], columns: NDArray[Any], table: Any) -> Pairs:
    cells = table.tocoo()
    return rows[cells.row], columns[cells.col], cells.data


def _pairs(sizes: NDArray[np.float64]) -> float:
    """Return how many ordered pairs of different voxels groups of these sizes hold."""
    return float(sizes @ sizes - sizes.sum())


def _holds_instances(source: ArraySource) -> bool:
    if source.dtype.kind not in "ui":
        return False
    values = np.empty(0, source.dtype)
    for (slab,) in _slabs(source):
        values = np.union1d(values, slab)
        if values.size > 2:
            return True
    return False


def _source(array: Any, name: str) -> ArraySource:
    return array if isinstance(array, ArraySource) else ArraySource(array, name)


def _check_one_channel(predicted: ArraySource, truth: ArraySource, what: str) -> None:
    if predicted.shape != truth.shape or predicted.shape[0] != 1:
        raise SourceError(
            f"{predicted.name} has shape {predicted.shape} and {truth.name} {truth.shape} "
            f"(C, Z, Y, X); {what} one channel of the same shape: choose one of each"
        )


def _check_integers(*sources: ArraySource) -> None:
    for source in sources:
        if source.dtype.kind == "f":
            raise SourceError(
                f"{source.name} holds {source.dtype}; instances are numbered with integers: "
                "label the connected parts first, or compare it as kind='probability'"
            )


def _slabs(*sources: ArraySource) -> Iterator[list[NDArray[Any]]]:
    """Yield volumes of one (Z, Y, X) a few planes at a time; the first has the most channels."""
    channels, depth, height, width = sources[0].shape
    step = max(1, SLAB_VOXELS // (channels * height * width))
    for start in range(0, depth, step):
        box = Box((start, 0, 0), (min(start + step, depth), height, width))
        yield [source.read(box) for source in sources]
