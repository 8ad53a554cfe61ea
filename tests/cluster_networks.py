"""Networks for tests of the cluster, and a look at workers: what worker processes import."""

import os
import signal
import time
from pathlib import Path

import psutil
import torch
from torch import nn


class Counting(nn.Module):
    """A small convolution that notes each patch it gets, as a byte at the end of a file."""

    def __init__(self, log: Path | None = None, channels: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv3d(1, channels, 3, padding=1)
        self.log = log

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.log is not None:
            with open(self.log, "ab") as file:
                file.write(b"." * len(image))
        return self.layer(image)

    @property
    def patches(self) -> int:
        """Patches so far, in all processes."""
        return self.log.stat().st_size if self.log is not None and self.log.exists() else 0


class Fatal(Counting):
    """Kills its process at about the 100th patch, once."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        marker = self.log.with_suffix(".killed")
        if self.patches >= 100 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(image)


class Deadly(Counting):
    """Kills its process each time, but for the first batch."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.patches:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(image)


class Failing(Counting):
    """Raises an error at about the 100th patch."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.patches >= 100:
            raise ValueError("the cat sat on it\nand slept")
        return super().forward(image)


class Slow(Counting):
    """Takes a fiftieth of a second per patch."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02 * len(image))
        return super().forward(image)


class Heads(Counting):
    """Returns two heads."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        made = super().forward(image)
        return {"mask": made[:, :1], "affinity": made[:, 1:]}


class Flat(nn.Module):
    """A 2-D network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image)


class Valid(Counting):
    """Returns less than it gets, by two voxels on each side."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image)[:, :, 2:-2, 2:-2, 2:-2]


def files_under(folder: Path) -> list[str]:
    """Return the files of a folder that this process has open or mapped."""
    process = psutil.Process()
    paths = {each.path for each in [*process.open_files(), *process.memory_maps()]}
    return sorted(path for path in paths if path.startswith(str(folder)))
