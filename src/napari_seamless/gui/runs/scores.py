"""How good a prediction's layer is, against a labels layer."""

from typing import Any

from napari.layers import Labels

from napari_seamless.engine.errors import SourceError, one_line
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.source import Source, spatial_shape
from napari_seamless.metrics import evaluate


def check_labels(truth: Labels, source: Source) -> None:
    """Raise SourceError if a labels layer cannot be the truth of what is predicted."""
    shape, wanted = tuple(truth.data.shape), spatial_shape(source)
    if (1,) * (3 - len(shape)) + shape != wanted:
        raise SourceError(
            f"labels {truth.name!r} have shape {shape}, {source.name} has {wanted} (Z, Y, X); "
            "choose labels of the same shape, or none"
        )


def scores_of(volume: LazyArray, labels: Any) -> dict[str, float] | str:
    """Return the metrics of a prediction (C, Z, Y, X), or in one line why there are none."""
    try:
        return evaluate(volume, labels, kind="probability")
    except Exception as error:  # said in the form
        return one_line(error)
