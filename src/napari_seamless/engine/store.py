"""Where finished voxels go, as the engine sees it."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.source import Shape4


class Store(Protocol):
    """One file or array that a prediction is written to, once."""

    def reserve(self, shape: Shape4) -> None:
        """Make sure that a float32 prediction (C, Z, Y, X) fits, before the work is done.

        Raises OutputError if it does not.
        """

    def write(
        self, prediction: LazyArray | NDArray[np.float32], metadata: Mapping[str, Any]
    ) -> None:
        """Write a prediction (C, Z, Y, X), plane by plane, and what is known about it.

        Nothing is at the target's place before all of it is written. Raises WriteError.
        """
