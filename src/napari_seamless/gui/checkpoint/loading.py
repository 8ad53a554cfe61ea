"""Importing torch on a thread without holding up the window.

An import as it is holds the interpreter's lock while it loads the libraries of torch from the disk,
and while garbage is looked for among the many objects that it makes.
"""

import ctypes
import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STEP = 4 << 20
"""Bytes of a file that are read at once."""


def load_torch() -> None:
    """Import torch if that has not been done; whoever needs it next has it at once."""
    if "torch" in sys.modules:
        return
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        _load_libraries(Path(spec.origin).parent / "lib")
    with _without_garbage_collection():
        import torch  # noqa: F401


def _load_libraries(folder: Path) -> None:
    """Load those of torch's libraries that know nothing of Python, with the lock released.

    What cannot be loaded like this is left to the import: on Windows, torch does it so by itself.
    """
    if not hasattr(os, "RTLD_NOW"):
        return
    system = ctypes.CDLL(None)  # a function called through it runs without the lock
    system.dlopen.restype = ctypes.c_void_p
    for name, flags in [("libtorch_global_deps", os.RTLD_GLOBAL), ("libtorch", os.RTLD_LOCAL)]:
        for path in [*folder.glob(f"{name}.so"), *folder.glob(f"{name}.dylib")]:
            system.dlopen(os.fsencode(path), flags | os.RTLD_NOW)
    for path in folder.glob("libtorch_python.*"):
        _read(path)


def _read(path: Path) -> None:
    """Read a file, so that the system has it in memory."""
    with path.open("rb", buffering=0) as file:
        while file.read(_STEP):
            pass


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Keep the garbage collector from looking at what is made inside, which is there to stay."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # and back: it takes all objects for old ones now, without a look at them
        gc.unfreeze()
        if was_on:
            gc.enable()
