"""What a whole run gave, once it has ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from napari_seamless.engine.errors import SeamlessError
from napari_seamless.engine.results import Volume


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What a run of `predict` gave.

    Attributes
    ----------
    outputs : tuple of dict
        For each volume, by vol_id, array-likes (C, Z, Y, X) by name; numpy arrays where they fit
        the memory budget, otherwise read from the output when they are indexed. "main", the
        prediction, float32; "spread" and "disagreement", its standard deviation over variants and
        over patches, float32 in its unit, and "labels", uint8 or uint16: each if asked for;
        "heads/NAME", the heads of the network that are not shown, float32. NaN where a volume that
        failed was not predicted.
    metrics : dict or None
        Scores against the labels, if labels were given and fit; see `metrics.VoxelMetrics`. Of
        several volumes, those of all voxels together that were predicted.
    failures : dict of int to SeamlessError
        What went wrong with which of several volumes, by vol_id.
    """

    outputs: tuple[dict[str, Volume], ...]
    metrics: dict[str, float] | None = None
    failures: Mapping[int, SeamlessError] = field(default_factory=dict)

    def __repr__(self) -> str:
        shapes = [
            {name: f"{array.dtype} {array.shape}" for name, array in outputs.items()}
            for outputs in self.outputs
        ]
        return f"Prediction({shapes}, metrics={self.metrics}, failures={dict(self.failures)})"

    @property
    def arrays(self) -> tuple[Volume, ...]:
        """The prediction of each volume, float32 (C, Z, Y, X), by vol_id.

        In the unit of the network's output after the activation.
        """
        return tuple(outputs["main"] for outputs in self.outputs)

    @property
    def array(self) -> Volume:
        """The prediction of the first (or only) volume, float32 (C, Z, Y, X); see `arrays`."""
        return self.arrays[0]
