"""Stitching alone: what is not inside the network, against other packages and a bare loop.

    python benchmarks/stitching.py [ROUNDS]

A network that returns its input, over (128, 512, 512) voxels in patches of (32, 96, 96) at overlap
0.5, one torch thread, 1 and 3 channels. All take turns, round by round; figures are medians of
ROUNDS (5 if not given) of the time outside of the network.
"""

import statistics
import sys
import time
from functools import partial

import torch
from peers import PEERS, Timed, bare, blending_only, in_turns, memory_limit, seamless
from torch import nn

SHAPE = (128, 512, 512)
PATCH = (32, 96, 96)


class Repeated(nn.Module):
    """Returns its input, or several copies of it as channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._channels = channels

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return (B, channels, Z, Y, X)."""
        return patches if self._channels == 1 else patches.repeat(1, self._channels, 1, 1, 1)


WAYS = {
    "napari-seamless": seamless,
    "bare loop": bare,
    "addcmul_ alone": blending_only,
    "add_ of as many voxels": memory_limit,
    **PEERS,
}


def outside(channels: int, name: str) -> float:
    """Return the seconds outside of the network, of one run in this process."""
    volume = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    network = Timed(Repeated(channels)).eval()
    begin = time.perf_counter()
    result = WAYS[name](volume, network, PATCH, 0.5, 4)
    seconds = time.perf_counter() - begin - network.seconds
    if name == "napari-seamless" and float((result[0] - volume[0]).abs().max()) > 1e-6:
        raise AssertionError("what went in did not come out")
    return seconds


def measure(channels: int, rounds: int) -> dict[str, float]:
    """Return the median seconds outside of the network of each."""
    runs = in_turns(partial(outside, channels), [*WAYS], rounds)
    return {name: statistics.median(seconds) for name, seconds in runs.items()}


if __name__ == "__main__":
    for channels in (1, 3):
        print(f"{channels} channels")
        table = measure(channels, int(sys.argv[1]) if len(sys.argv) > 1 else 5)
        ours = table["napari-seamless"]
        for name, seconds in table.items():
            print(f"  {name:24s} {seconds:6.3f} s  {seconds / ours:6.2f} times ours")
