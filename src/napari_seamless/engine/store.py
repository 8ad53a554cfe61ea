"""Where finished voxels go, as the engine sees it."""

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from napari_seamless.engine.lazy import LazyArray


class Store(Protocol):
    """One file that a prediction, and what else a run keeps, is written to, once."""

    def reserve(self, nbytes: int) -> None:
        """Make sure that all arrays, of `nbytes` bytes together, fit, before the work is done.

        Raises OutputError if they do not.
        """

    def write(
        self, arrays: Mapping[str, LazyArray | NDArray[Any]], metadata: Mapping[str, Any]
    ) -> None:
        """Write arrays (C, Z, Y, X), a few planes at a time, and what is known about them.

        The first is called "main". Nothing is at the target's place before all of it is written.
        Raises WriteError.
        """
