"""What the allocator is told; in a process of its own, since it is told for all of it."""

import platform
import subprocess
import sys

import pytest

from napari_seamless.engine import memory

on_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other allocators are left alone"
)

SCRIPT = """
import resource
import torch
from napari_seamless.engine.memory import give_back_memory, resident, reused_memory

def layers():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(48):
        torch.ones(36 << 18)  # 36 MiB: 9,216 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.ones(10)
plain = layers()
with reused_memory():
    reused = layers()
kept = resident()
give_back_memory()
print(plain, reused, kept - resident())
"""


@on_glibc
def test_a_network_finds_the_pages_that_it_had_and_they_are_given_back_in_the_end():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, check=True
    )
    plain, reused, given_back = map(int, done.stdout.split())
    assert plain >= 48 * 18  # 9,216 small pages each, or 18 large ones
    assert reused < plain // 3  # up to 7 blocks are laid side by side: glibc 2.36 keeps their ends
    assert given_back > 30 << 20


def test_other_allocators_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    with memory.reused_memory():
        pass
    memory.give_back_memory()
    memory.FreePages().give_back(1 << 40)


def test_pages_are_given_back_for_what_has_passed_and_not_too_often(monkeypatch):
    class Libc:
        trimmed = 0

        def malloc_trim(self, pad: int) -> None:
            self.trimmed += 1

    libc, now = Libc(), [0.0]
    monkeypatch.setattr(memory, "_glibc", lambda: libc)
    monkeypatch.setattr(memory.time, "monotonic", lambda: now[0])
    pages = memory.FreePages()
    counts = []
    for seconds, nbytes in [(1, 8 << 20), (2, 8 << 20), (2.01, 64 << 20), (3, 0), (9, 1)]:
        now[0] = seconds
        pages.give_back(nbytes)
        counts.append(libc.trimmed)
    assert counts == [0, 1, 1, 2, 2]
