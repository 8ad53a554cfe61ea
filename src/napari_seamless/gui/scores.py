"""How good a prediction's layer is, against a labels layer."""

from typing import Any

from napari_seamless.engine.errors import one_line
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.metrics import evaluate


def scores_of(volume: LazyArray, labels: Any) -> dict[str, float] | str:
    """Return the metrics of a prediction (C, Z, Y, X), or in one line why there are none."""
    try:
        return evaluate(volume, labels, kind="probability")
    except Exception as error:  # said in the form
        return one_line(error)
