"""Data of a multiscale layer, of which only the plane that is shown is computed."""

from typing import Any

from napari_seamless.engine.lazy import LazyArray, Ranges


class Cropped(LazyArray):
    """A level that stays lazy while it is cropped.

    Of a level, napari (0.9.2) first takes what is in view, in all planes and of all time points,
    and of that the plane that is shown.

    Parameters
    ----------
    level : LazyArray
        The data.
    """

    def __init__(self, level: LazyArray) -> None:
        super().__init__(level.shape, level.dtype, lambda ranges: level[ranges])

    def __getitem__(self, key: Any) -> Any:
        """Return the region asked for; as a lazy array if it is a box, that is, only slices."""
        parts = key if isinstance(key, tuple) else (key,)
        if len(parts) != self.ndim or not all(_is_box_side(part) for part in parts):
            return super().__getitem__(key)
        spans = [range(*part.indices(size)) for part, size in zip(parts, self.shape, strict=True)]

        def read(ranges: Ranges) -> Any:
            picked = [span[part] for span, part in zip(spans, ranges, strict=True)]
            return self._read(tuple(slice(each.start, each.stop) for each in picked))

        return LazyArray(tuple(map(len, spans)), self.dtype, read)


def _is_box_side(part: Any) -> bool:
    return isinstance(part, slice) and part.step in (None, 1)
