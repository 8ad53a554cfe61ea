"""How good the volumes of a run are, against labels as large as they are."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import RunFailedError, SeamlessError, SourceError, one_line
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.readable import readable_bytes
from napari_seamless.engine.source import Source, part_of, read_patch, spatial_shape
from napari_seamless.engine.volume_plan import VolumePlan
from napari_seamless.metrics import SLAB_VOXELS, VoxelMetrics, component_metrics, has_components

COMPONENT_BYTES = 5
"""Of one voxel while connected parts are found: that is done with a whole volume at once."""


def check_labels(labels: Source, volume: VolumePlan) -> None:
    """Check that labels cover the whole volume at the prediction's resolution, or the region.

    Raises
    ------
    SourceError
        If they do not.
    """
    shapes = dict.fromkeys([volume.whole, volume.grid.shape])
    if spatial_shape(labels) not in shapes:
        raise SourceError(
            f"{_called(labels)} have shape {spatial_shape(labels)}; for {volume.name} they must "
            f"have {' or, of the region, '.join(map(str, shapes))} (Z, Y, X): crop or resample them"
        )


def truth_of(volume: VolumePlan, labels: Source) -> Source:
    """Return the labels of just what is predicted."""
    is_whole = spatial_shape(labels) == volume.whole
    return part_of(labels, volume.origin if is_whole else (0, 0, 0), volume.grid.shape)


def compare(live: LazyArray, truth: Source, metrics: VoxelMetrics) -> None:
    """Add what is predicted of a volume to metrics, a few planes at a time.

    Parameters
    ----------
    live : array-like of float32, shape (C, Z, Y, X)
        The prediction, NaN where there is none yet.
    truth : Source
        Labels of the same (Z, Y, X).
    metrics : VoxelMetrics
        Counts them.
    """
    for slab in Box.of_shape(spatial_shape(truth)).slabs(SLAB_VOXELS):
        metrics.update(live[:, *slab.slices], read_patch(truth, slab, "constant"))


def compare_components(
    live: LazyArray, truth: Source, threshold: float, memory: int
) -> tuple[dict[str, float], str]:
    """Return the metrics of connected parts, and in one line why there are none.

    Parameters
    ----------
    live, truth
        As in `compare`.
    threshold : float
        Of the prediction.
    memory : int
        Bytes that they may take.

    Returns
    -------
    tuple of dict and str
        The dict is empty, and so is the line, where there are no instances to compare.
    """
    takes = COMPONENT_BYTES * math.prod(spatial_shape(truth))
    if takes <= memory:
        return component_metrics(live, truth, threshold), ""
    if not has_components(live, truth):
        return {}, ""
    return {}, (
        "adapted Rand error and variation of information are left out: of this volume they take "
        f"{readable_bytes(takes)} of memory where {readable_bytes(max(0, memory))} may be used; "
        "give more memory, or run 'napari-seamless evaluate' on the output where there is more"
    )


@contextmanager
def said_in_one_line() -> Iterator[None]:
    """Turn whatever goes wrong while metrics are computed into an error of the project."""
    try:
        yield
    except SeamlessError:
        raise
    except Exception as error:  # be it memory, or a library that is not there
        raise RunFailedError(
            f"the metrics could not be computed ({type(error).__name__}: {one_line(error)}); the "
            "prediction is as good as without, compare it with 'napari-seamless evaluate'"
        ) from error


def _called(labels: Source) -> str:
    """Return what a message calls labels, be it by their path."""
    has_path = not labels.name.startswith(("labels", "the labels"))
    return f"labels {labels.name}" if has_path else labels.name
