"""The most memory that a run in memory adds to its process, against MONAI.

    python benchmarks/peak_memory.py [SIZE]

SIZE cubed voxels (512 if not given), a network that returns its input once or 8 times over, patches
of 64 cubed at overlap 0.5. Each run has a process of its own; what that has before the run
(libraries, and the input as it is given) is taken off. Linux: figures are from /proc.
"""

import subprocess
import sys

import torch
from memory import peak, resident
from peers import bare, monai, monai_buffered, seamless
from stitching import Repeated

WAYS = {
    "napari-seamless": seamless,
    "MONAI": monai,
    "MONAI, buffered": monai_buffered,
    "bare loop": bare,
}
PATCH = (64, 64, 64)


def added(name: str, channels: int, size: int) -> int:
    """Run in this process; return the bytes added at the most."""
    network = Repeated(channels)
    WAYS[name](torch.rand(1, 64, 64, 64), network, (32, 32, 32), 0.5, 4)  # loads what loads late
    volume = torch.rand(1, size, size, size)
    before = resident()
    WAYS[name](volume, network, PATCH, 0.5, 4)
    return peak() - before


def measure(size: int) -> dict[tuple[str, int], int]:
    """Return the bytes of each way and number of channels."""
    found = {}
    for channels in (1, 8):
        for name in WAYS:
            command = [sys.executable, __file__, "--child", name, str(channels), str(size)]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name, channels] = int(run.stdout.split()[-1])
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(added(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    else:
        table = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 512)
        for (name, channels), nbytes in table.items():
            ratio = nbytes / table["MONAI", channels]
            print(
                f"{channels} channels  {name:16s} {nbytes / 2**30:6.2f} GiB  {ratio:.2f} of MONAI's"
            )
