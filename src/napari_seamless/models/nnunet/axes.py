"""The axes of an nnU-Net v2 network, and those of the volume.

nnU-Net transposes a volume (`transpose_forward`) before anything else, so its plans count the
network's axes; here they become the volume's Z, Y, X.
"""

from dataclasses import dataclass

from napari_seamless.engine.box import Triple
from napari_seamless.engine.tta import AXES


@dataclass(frozen=True)
class Axes:
    """Which axis of the volume (0 is Z) each axis of the network is.

    Attributes
    ----------
    of : tuple of int
        The volume's axis for each spatial axis of the network: two for a 2-D one.
    """

    of: tuple[int, ...]

    @property
    def plane(self) -> str | None:
        """The axis across which a 2-D network takes planes, as a letter; None for a 3-D one."""
        return None if len(self.of) == 3 else AXES[3 - sum(self.of)]

    @property
    def order(self) -> tuple[int, ...]:
        """For each axis of the network its place among those of what the engine gives it."""
        return tuple(sorted(self.of).index(axis) for axis in self.of)

    def triple(self, sizes: tuple[int, ...]) -> Triple:
        """Return sizes along the network's axes as (Z, Y, X), 1 across planes."""
        z, y, x = (dict(zip(self.of, sizes, strict=True)).get(axis, 1) for axis in range(3))
        return z, y, x

    def letters(self, axes: tuple[int, ...]) -> str:
        """Return axes of the network as letters of the volume's, in order."""
        return "".join(AXES[axis] for axis in sorted(self.of[axis] for axis in axes))
