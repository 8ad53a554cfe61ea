"""Where the voxels of a volume lie in the world."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from napari_seamless.engine.box import Scale, Triple

Coordinates = tuple[float, float, float]


@dataclass(frozen=True)
class Geometry:
    """Size and place of voxels, along (Z, Y, X).

    Attributes
    ----------
    scale : tuple of float
        From one voxel to the next, in `units`.
    translation : tuple of float
        Where the centre of the first voxel is, in `units`.
    units : tuple of str
        As OME-Zarr names them, "nanometer"; "" where unknown.
    """

    scale: Coordinates = (1.0, 1.0, 1.0)
    translation: Coordinates = (0.0, 0.0, 0.0)
    units: tuple[str, str, str] = ("", "", "")

    def of_prediction(self, scale: Scale, origin: Triple) -> "Geometry":
        """Return the geometry of a prediction made from this volume.

        Parameters
        ----------
        scale : tuple of Fraction
            Voxels of the prediction per voxel of the source.
        origin : tuple of int
            Where the prediction starts in that of the whole volume, in its voxels.

        Notes
        -----
        The faces of both volumes coincide: a voxel half as large has its centre a quarter of the
        large one's size nearer to the face.
        """
        steps = [size / float(by) for size, by in zip(self.scale, scale, strict=True)]
        places = [
            at - (old - new) / 2 + low * new
            for at, old, new, low in zip(self.translation, self.scale, steps, origin, strict=True)
        ]
        return Geometry(coordinates(steps), coordinates(places), self.units)

    @property
    def facts(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {
            "scale": list(self.scale),
            "translation": list(self.translation),
            "units": list(self.units),
        }

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> "Geometry":
        """Return what `facts` says."""
        z, y, x = facts["units"]
        return cls(coordinates(facts["scale"]), coordinates(facts["translation"]), (z, y, x))


def coordinates(values: Iterable[float]) -> Coordinates:
    """Return three numbers along (Z, Y, X)."""
    z, y, x = map(float, values)
    return z, y, x
