"""Networks for tests. They are built by name from a checkpoint, as a user's own are.

Those that wait or fail take their orders through module-level state, which `reset` puts back.
"""

import os
import sys
import threading
import time
from pathlib import Path

import torch
from torch import nn

calls: list[tuple[int, ...]] = []
"""Shape of every batch that a network of this module got."""
gate = threading.Semaphore(0)
"""A `Gated` network takes one of these per batch."""


def reset() -> None:
    """Forget the calls and close the gate."""
    calls.clear()
    while gate.acquire(blocking=False):
        pass


def let_through(batches: int) -> None:
    """Let a `Gated` network predict so many batches more."""
    gate.release(batches)


class Doubled(nn.Module):
    """Returns its input times its only weight."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(image.shape))
        return image * self.factor


class Gated(Doubled):
    """As `Doubled`, but waits for `let_through` before each batch."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if not gate.acquire(timeout=60):
            raise AssertionError("the test never let this batch through")
        return super().forward(image)


class Slow(Doubled):
    """Takes a tenth of a second per batch; at its second it makes the file named by STARTED."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        time.sleep(0.1)
        if calls:
            Path(os.environ["STARTED"]).touch()
        return super().forward(image)


class FailsLater(Doubled):
    """Raises what torch raises for lack of memory, from the third batch on."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if len(calls) == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nsecond line")
        return super().forward(image)


class Exits(Doubled):
    """Ends the program from the third batch on, as a script that was made a network may."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if len(calls) == 2:
            sys.exit(3)
        return super().forward(image)


class Interrupts(Doubled):
    """Raises from the third batch on what Ctrl-C raises."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if len(calls) == 2:
            raise KeyboardInterrupt
        return super().forward(image)


class LittleMemory(Doubled):
    """Has memory for two patches at once."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if len(image) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(image)


class Ramp(Doubled):
    """Depends on the place inside the patch, so that every blending weight matters."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        ramp = torch.linspace(0, 1, image.shape[-1])
        return super().forward(image) * ramp


class TwoChannels(Doubled):
    """Returns twice and six times its input."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        doubled = super().forward(image)
        return torch.cat([doubled, 3 * doubled], dim=1)


class Cropping(Doubled):
    """Cuts off what a valid convolution would: 1 voxel along Z, 4 along Y and X on each side."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image)[..., 1:-1, 4:-4, 4:-4]


class RefusesLonePatches(Doubled):
    """Fails on a batch of one patch, as batch-norm in training mode does."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if len(image) == 1:
            raise ValueError("Expected more than 1 value per channel")
        return super().forward(image)


class TwoHeads(Doubled):
    """Returns a dict: "bright" is twice the input, "dark" one minus it."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"bright": super().forward(image), "dark": 1 - image}


class Dropping(Doubled):
    """Doubles, and drops half of the voxels where dropout is active."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.dropout(super().forward(image))


class Halved(Doubled):
    """Returns every second voxel along Y and X of twice its input."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image)[..., ::2, ::2]
