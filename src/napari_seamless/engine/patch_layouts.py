"""Patches laid out otherwise, so that fewer voxels are computed several times."""

from napari_seamless.engine.box import Triple
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.grid import stride_of
from napari_seamless.engine.receptive_field import ReceptiveField

LARGER = (1.25, 1.5, 2, 3, 4, 6, 8)
"""How many times as long as they are patches may become, about."""


class Larger:
    """Larger patches that overlap by as many voxels as before."""

    def __init__(self, before: InferenceConfig, field: ReceptiveField) -> None:
        self._field = field
        self._patch = before.patch_size
        shares = before.overlap if isinstance(before.overlap, tuple) else (before.overlap,) * 3
        self._overlap = [
            size - stride_of(size, share)
            for size, share in zip(before.patch_size, shares, strict=True)
        ]

    def config(self, best: InferenceConfig, size: Triple, shape: Triple) -> InferenceConfig:
        """Return settings with patches of another size."""
        return best.changed({"patch_size": size, "overlap": tuple(self._overlap)})

    def lengths(self, axis: int, length: int) -> list[int]:
        """Return what patches may measure along an axis of the volume, so that few voxels are lost.

        A number of patches that cover it, and that need the fewest voxels for that.
        """
        found, overlap = [], self._overlap[axis]
        for factor in LARGER:
            wanted = factor * self._patch[axis]
            count = max(1, round((length - overlap) / (wanted - overlap)))
            needed = -(-(length - overlap) // count) + overlap
            whole = -(-needed // self._field.step[axis]) * self._field.step[axis]
            if whole > self._patch[axis] and whole not in found:
                found.append(whole)
        return found


class WithHalo(Larger):
    """Patches that do not overlap, with the receptive field of the network as context."""

    def __init__(self, before: InferenceConfig, field: ReceptiveField) -> None:
        super().__init__(before.changed({"overlap": 0}), field)

    def config(self, best: InferenceConfig, size: Triple, shape: Triple) -> InferenceConfig:
        """Return settings with patches of another size; no context where they hold the volume."""
        z, y, x = (
            0 if patch >= whole else margin
            for patch, whole, margin in zip(size, shape, self._field.halo, strict=True)
        )
        return self._field.config(best, size).changed({"halo": (z, y, x)})
