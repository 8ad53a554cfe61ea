"""Outputs and inputs are different places: writing one must not change the other."""

import os
from pathlib import Path

from napari_seamless.engine.errors import OutputError
from napari_seamless.io.sources.paths import place_on_disk


def check_apart(output: Path, source: str) -> None:
    """Raise OutputError if writing an output would change an input.

    Parameters
    ----------
    output : Path
        What is there is replaced.
    source : str
        Path or URL of a volume, labels, mask or checkpoint.
    """
    place = place_on_disk(source)
    if place is None:
        return
    target, file = (Path(os.path.realpath(os.path.expanduser(each))) for each in (output, place[0]))
    if target == file or _are_linked(target, file):
        raise OutputError(f"output {output} is also an input; choose another name")
    array = file / place[1]
    if target in array.parents:
        raise OutputError(
            f"output {output} would replace the input {array}, which is in it; choose another name"
        )
    if array in target.parents and _is_changed_by(array, target):
        raise OutputError(
            f"output {output} is in the folder of the input {array}; choose a place outside of it"
        )


def _are_linked(one: Path, other: Path) -> bool:
    """Whether two names are of the same file."""
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def _is_changed_by(folder: Path, target: Path) -> bool:
    """Whether an input that is a folder is another one with an output in it."""
    from napari_seamless.io.sources.nodes import has_metadata  # loads TensorStore
    from napari_seamless.io.sources.planes import planes_in

    is_plane = target.parent == folder and target.suffix.lower() in (".tif", ".tiff")
    return has_metadata(folder) or (is_plane and bool(planes_in(folder)))
