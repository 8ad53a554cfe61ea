"""What a run will take, said before it: patches, time, memory, room on the disk."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from napari_seamless.engine.memory import resident
from napari_seamless.engine.readable import readable_bytes, readable_time, readable_times

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.engine.needs import Needs


@dataclass(frozen=True)
class Forecast:
    """What is known of a run when its first batches are done.

    Attributes
    ----------
    patches : int
        That run, of all volumes.
    redundancy : float
        Voxels that go through the network per voxel of the volumes.
    skipped : int
        That need not run, of the volumes begun: their input is constant, or outside the mask. Those
        that an earlier run has settled do not count again.
    resumed : int
        That an earlier run has done.
    seconds : float
        That the network takes for what is left, at the pace of one batch.
    memory : int
        Most bytes of memory that this process will have, by what it has now and what is to come.
    scratch : int
        Most bytes of open sums that go to the disk meanwhile.
    output : int
        Bytes of the output before it is compressed; 0 without one.
    """

    patches: int
    redundancy: float
    skipped: int
    resumed: int
    seconds: float
    memory: int
    scratch: int
    output: int

    @classmethod
    def of(
        cls,
        needs: "Sequence[Needs]",
        *,
        patches: int,
        redundancy: float,
        seconds: float,
        skipped: int = 0,
        resumed: int = 0,
    ) -> Self:
        """Return the forecast of volumes that run one after the other, of what each needs."""
        kept = sum(each.shares.kept for each in needs)
        return cls(
            patches,
            redundancy,
            skipped,
            resumed,
            seconds,
            memory=resident() + max(each.memory for each in needs) + kept,
            scratch=max(each.scratch for each in needs),
            output=sum(each.output for each in needs),
        )

    def __str__(self) -> str:
        besides = [
            f"{count:,} {word}"
            for count, word in [(self.skipped, "skipped"), (self.resumed, "already done")]
            if count
        ]
        parts = [
            f"{self.patches:,} patch{'es' * (self.patches != 1)}"
            + (f" ({', '.join(besides)})" if besides else ""),
            f"each voxel computed {readable_times(self.redundancy)}",
            f"about {readable_time(self.seconds)}",
            f"up to {readable_bytes(self.memory)} of memory",
        ]
        if self.scratch:
            parts.append(f"{readable_bytes(self.scratch)} of sums on the disk meanwhile")
        if self.output:
            parts.append(f"an output of {readable_bytes(self.output)} before compression")
        return ", ".join(parts)

    @property
    def facts(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return asdict(self)
