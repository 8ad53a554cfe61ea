"""The memory of this process: what it has, what is free, and giving pages back."""

import ctypes
import platform
import time

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


class FreePages:
    """Has the allocator return to the system, now and then, every page that holds nothing.

    Decoded chunks, which are kept, and the temporary arrays of batches and finished chunks lie
    mixed in glibc's heaps, which get holes: measured on planes of 2048 x 2048, 0.6 GB before the
    first chunk was finished, and more of them the longer a run is. Mapping large arrays for
    themselves (M_MMAP_THRESHOLD) would avoid that too, but a network's own arrays as well: it takes
    half as long again then. This takes about 10 ms, and done after every batch of 40 ms it made a
    run a third longer; as often as here, it made none. Other allocators are left alone.
    """

    _every = 0.05
    """Seconds."""

    def __init__(self) -> None:
        self._is_known = platform.libc_ver()[0] == "glibc"
        self._last = time.monotonic()

    def give_back(self) -> None:
        """Return them, unless that was done just now."""
        if self._is_known and time.monotonic() - self._last > self._every:
            ctypes.CDLL(None).malloc_trim(0)
            self._last = time.monotonic()
