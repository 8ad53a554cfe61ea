"""What tuning has tried and found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.receptive_field import ReceptiveField


@dataclass(frozen=True)
class Trial:
    """One try.

    Attributes
    ----------
    settings : mapping
        What differs from the settings as they were.
    seconds : float
        That the network would take for all patches; infinite where it does not work.
    difference : float
        The largest from the prediction as it was, as a share of its largest value; of the same
        patches, so NaN if they are others.
    problem : str
        Why it is not taken; "" if it could be.
    """

    settings: Mapping[str, Any]
    seconds: float
    difference: float
    problem: str


@dataclass(frozen=True)
class Tuning:
    """What was found.

    Attributes
    ----------
    config : InferenceConfig
        The fastest settings.
    changed : mapping
        Those that differ from the ones before, JSON-like.
    gain : float
        Seconds before / seconds now, measured in turns at the end.
    redundancy : tuple of float
        Voxels that go through the network per voxel of the volume, before and now.
    difference, mean_difference : float
        From the prediction as it was, as a share of its largest value: the largest and the mean. Of
        other patches, those of blended predictions in the middle of the volume.
    field : ReceptiveField or None
        Of the network, if it was measured to lay out patches otherwise.
    trials : tuple of Trial
        All that was tried; nothing, if it was found before.
    seconds : float
        That it took.
    """

    config: InferenceConfig
    changed: Mapping[str, Any]
    gain: float
    redundancy: tuple[float, float]
    difference: float
    mean_difference: float
    field: ReceptiveField | None
    trials: tuple[Trial, ...]
    seconds: float

    def __str__(self) -> str:
        tried = "found before"
        if self.trials:
            tried = f"{len(self.trials)} settings tried in {self.seconds:.0f} s"
        if not self.changed:
            return f"nothing is faster than the settings as they are ({tried})"
        changed = ", ".join(f"{name} {value}" for name, value in self.changed.items())
        before, now = self.redundancy
        less = f", redundancy {now:.2f} instead of {before:.2f}" if before != now else ""
        differs = f"{self.mean_difference:.1g} on average and {self.difference:.1g} at most"
        return (
            f"{self.gain:.2f} times as fast with {changed}{less}; predictions differ by {differs} "
            f"({tried})"
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What was found, as JSON has it."""
        return {
            "changed": dict(self.changed),
            "gain": round(self.gain, 3),
            "redundancy": [round(each, 3) for each in self.redundancy],
            "difference": self.difference,
            "mean_difference": self.mean_difference,
        }

    @classmethod
    def of_facts(cls, before: InferenceConfig, facts: Mapping[str, Any]) -> "Tuning":
        """Return what was found before for the same settings; see `facts`."""
        return cls(
            config=before.changed(facts["changed"]),
            changed=facts["changed"],
            gain=facts["gain"],
            redundancy=(facts["redundancy"][0], facts["redundancy"][1]),
            difference=facts["difference"],
            mean_difference=facts["mean_difference"],
            field=None,
            trials=(),
            seconds=0.0,
        )
