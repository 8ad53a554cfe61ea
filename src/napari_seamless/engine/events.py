"""What a run says while it goes on."""

from dataclasses import dataclass
from typing import Literal

from napari_seamless.engine.box import Box

Status = Literal["ready", "running", "partial", "complete", "failed"]


@dataclass(frozen=True, slots=True)
class Event:
    """A batch of patches was blended in, or an earlier run's chunks were taken up.

    Attributes
    ----------
    done, total : int
        Patches so far, those included that need not run, and in the whole run. The total before
        the first event is an estimate where a network's output is smaller than its input.
    dirty : Box
        Voxels (Z, Y, X) of the prediction that may have changed.
    vol_id : int
        In which volume.
    """

    done: int
    total: int
    dirty: Box
    vol_id: int
