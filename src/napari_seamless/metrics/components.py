"""Instances: adapted Rand error and variation of information of segmentations."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import SourceError
from napari_seamless.engine.source import ArraySource
from napari_seamless.metrics import volumes
from napari_seamless.metrics.volumes import (
    NAN,
    as_source,
    check_one_channel,
    holds_instances,
    ratio,
    slabs,
)

Pairs = tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]


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
    if not has_components(prediction, labels):
        return {}
    found, truth = as_source(prediction, "the prediction"), as_source(labels, "the labels")
    from scipy import ndimage

    foreground = np.empty(found.shape[1:], dtype=np.bool_)
    for box in Box.of_shape(foreground.shape).slabs(volumes.SLAB_VOXELS):
        foreground[box.slices] = found.read(box)[0] > threshold
    parts, _ = ndimage.label(foreground, output=np.int32)
    return instance_metrics(parts, truth)


def has_components(prediction: Any, labels: Any) -> bool:
    """Return whether `component_metrics` of these has anything to compare."""
    found, truth = as_source(prediction, "the prediction"), as_source(labels, "the labels")
    return found.shape[0] == 1 and truth.shape[0] == 1 and holds_instances(truth)


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
    found, truth = as_source(segmentation, "the segmentation"), as_source(labels, "the labels")
    check_one_channel(found, truth, "instance metrics compare")
    _check_integers(found, truth)
    table = _contingency(found, truth)
    return {**_adapted_rand(table), **_variation_of_information(table)}


def _contingency(segmentation: ArraySource, truth: ArraySource) -> Any:
    """Return how many voxels each instance (row) shares with each segment, as a sparse table."""
    parts = [_cells(*_table(*_runs(each, true))) for each, true in slabs(segmentation, truth)]
    instances, segments, voxels = (np.concatenate(each) for each in zip(*parts, strict=True))
    return _table(instances, segments, voxels)[2]


def _adapted_rand(table: Any) -> dict[str, float]:
    from skimage.metrics import adapted_rand_error

    same, segments, instances = map(_pairs, (table.data, table.sum(axis=0), table.sum(axis=1)))
    with np.errstate(invalid="ignore"):  # 0 / 0 where no two voxels share a segment
        error = adapted_rand_error(table=table)[0]  # type: ignore[no-untyped-call]
    return {
        "adapted_rand_error": float(error),
        "adapted_rand_precision": ratio(same, segments, NAN),
        "adapted_rand_recall": ratio(same, instances, NAN),
    }


def _variation_of_information(table: Any) -> dict[str, float]:
    from skimage.metrics import variation_of_information

    if not table.nnz:
        return dict.fromkeys(("voi_split", "voi_merge", "voi"), NAN)
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


def _check_integers(*sources: ArraySource) -> None:
    for source in sources:
        if source.dtype.kind == "f":
            raise SourceError(
                f"{source.name} holds {source.dtype}; instances are numbered with integers: "
                "label the connected parts first, or compare it as kind='probability'"
            )
