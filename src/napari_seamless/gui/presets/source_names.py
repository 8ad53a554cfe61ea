"""What the command line calls the data of layers that our readers opened."""

import os

SOURCES_KEY = "napari-seamless sources"
"""Where a layer's metadata has the name of each of its levels."""


def source_names(path: str, inside: str = "", levels: int = 1) -> list[str]:
    """Return a name for each level of an image in a file or container, the finest first.

    Parameters
    ----------
    path : str
        File, folder or URL.
    inside : str
        Which image in it; "" for all of it.
    levels : int
        How many there are.
    """
    place = path.rstrip("/") if "://" in path else os.path.abspath(os.path.expanduser(path))
    parts = [inside.strip("/"), *[f"{inside}/{level}".strip("/") for level in range(1, levels)]]
    return [f"{place}::{part}" if part else place for part in parts]
