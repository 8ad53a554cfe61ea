"""The memory of this process: what it has, what is free, and giving pages back."""

import ctypes
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import psutil


def free_memory() -> int:
    """Return the bytes of memory that this machine can still give."""
    return int(psutil.virtual_memory().available)


def default_budget() -> int:
    """Return the bytes that a run may take if nothing else is said: a quarter of what is free."""
    return free_memory() // 4


def resident() -> int:
    """Return the bytes of memory that this process has now."""
    return int(psutil.Process().memory_info().rss)


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Of `mallopt`, as in malloc.h of glibc."""

_MOST_MAPPED = 65536
"""glibc's own number of mappings."""

_NEVER = 2**31 - 1
"""Bytes at the heap's end from which it is made shorter."""

_FROM_HEAP = 8 << 20
"""Bytes of a block up to which it is taken from the heap outside of networks, too: batches of
patches are, chunks of a large volume are not. glibc moves this limit itself until it is told one.
"""


@contextmanager
def reused_memory() -> Iterator[None]:
    """Let what is allocated inside come from the heap, and stay there for next time when freed.

    glibc asks the system for every block above 32 MiB and gives it back when it is freed, and what
    is free at the heap's end as well: each layer of a network would find new pages, which the
    system has to clear. Measured: a U-Net takes 1.4 times as long with batches of 4 patches of
    (8, 128, 128), and 1.7 times with 2 of (12, 384, 384). What is freed remains this process's
    until `give_back_memory`, also outside: otherwise the first block that is freed there would
    give back all that the network has left. With other allocators nothing is done.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _MOST_MAPPED)


def give_back_memory() -> None:
    """Return to the system what is free; see `reused_memory`.

    Not after each run: the next one would find new pages again, and it may be a short one.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    """Return glibc, told what is to come from its heap."""
    if platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, _FROM_HEAP)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    return libc


class FreePages:
    """Has the allocator return to the system, now and then, every page that holds nothing.

    Decoded chunks, which are kept, and the temporary arrays of batches and finished chunks lie
    mixed in glibc's heaps, which get holes: measured on planes of 2048 x 2048, 0.6 GB before the
    first chunk was finished, and more of them the longer a run is. It takes about 10 ms, and then
    the network finds new pages again: measured, done every 0.05 s, it made a run 1.4 times as long
    as every 0.5 s. So it is done for what has passed through, which makes the holes: for a network
    that takes its time, not so often. With other allocators nothing is done.
    """

    _bytes, _seconds = 16 << 20, 0.05
    """That are let pass in between."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._passed = 0

    def give_back(self, nbytes: int) -> None:
        """Return them after `nbytes` more of predictions, unless there were few, or just now."""
        self._passed += nbytes
        libc, now = _glibc(), time.monotonic()
        if libc is None or self._passed < self._bytes or now < self._last + self._seconds:
            return
        libc.malloc_trim(0)
        self._last, self._passed = now, 0
