"""All that is measured side by side, as one table of ratios, and what has become worse.

    tox -e bench
    python benchmarks/bench.py [ROUNDS] [--keep]

Medians of ROUNDS (5 if not given). Ratios, never seconds, are compared with those of `ratios.json`:
one that is a quarter larger is named, and the exit code is 1. `--keep` writes them there instead.
"""

import json
import platform
import sys
from pathlib import Path

import peak_memory
import psutil
import real_stack
import stitching
import torch

import napari_seamless as ns

KEPT = Path(__file__).with_name("ratios.json")
WORSE = 1.25
OURS = "napari-seamless"


def ratios_of(rounds: int) -> dict[str, float]:
    """Measure everything, print it, and return the ratios: less is better."""
    found: dict[str, float] = {}
    for channels in (1, 3):
        seconds = stitching.measure(channels, rounds)
        title = f"stitching, {channels} channels"
        found |= {
            f"{title}: to {name}": seconds[OURS] / its
            for name, its in seconds.items()
            if name != OURS
        }
        print(f"{title}: {seconds[OURS]:.3f} s")
    if real_stack.is_there():
        runs = real_stack.measure(rounds)
        found["real stack: total / network"] = runs[OURS].over_network
        found |= {
            f"real stack: to {name}": runs[OURS].seconds / its.seconds
            for name, its in runs.items()
            if name not in (OURS, real_stack.TUNED)
        }
        tuned = runs[real_stack.TUNED]
        found |= {
            f"real stack, tuned: to {name}": tuned.seconds / its.seconds
            for name, its in runs.items()
            if name != real_stack.TUNED
        }
        lost = (runs[OURS].dice - tuned.dice) / 0.002
        found["real stack, tuned: Dice lost / 0.002, at least 0.5"] = max(0.5, lost)  # no noise
    memory = peak_memory.measure(512)
    found |= {
        f"memory, {channels} channels: to {name}": memory[OURS, channels] / its
        for (name, channels), its in memory.items()
        if name != OURS
    }
    return found


def main(rounds: int, keep: bool) -> int:
    """Measure, print, and compare or keep; return the exit code."""
    memory = psutil.virtual_memory().total / 2**30
    print(
        f"napari-seamless {ns.__version__}, torch {torch.__version__}, {psutil.cpu_count()} cores, "
        f"{memory:.0f} GiB, {platform.machine()}"
    )
    found = ratios_of(rounds)
    before = json.loads(KEPT.read_text()) if KEPT.exists() and not keep else {}
    worse = 0
    for name, ratio in found.items():
        earlier = before.get(name, float("inf"))
        is_worse = ratio > WORSE * earlier
        worse += is_worse
        print(f"  {name:45s} {ratio:6.2f}{f'  WORSE: {earlier:.2f} before' if is_worse else ''}")
    if keep:
        KEPT.write_text(json.dumps({k: round(v, 3) for k, v in found.items()}, indent=1) + "\n")
    return 1 if worse else 0


if __name__ == "__main__":
    numbers = [int(each) for each in sys.argv[1:] if each.isdigit()]
    sys.exit(main(numbers[0] if numbers else 5, "--keep" in sys.argv))
