"""That the engine needs no more than it says: numpy, torch, pydantic and psutil."""

import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, sys
import numpy, psutil, pydantic, torch
before = set(sys.modules)
import napari_seamless.engine
for module in pkgutil.walk_packages(napari_seamless.engine.__path__, "napari_seamless.engine."):
    importlib.import_module(module.name)
print(len([name for name in sys.modules if name.startswith("napari_seamless.engine.")]))
others = {name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
print(*sorted(name for name in others if not name.startswith("_")))
"""

OF_THE_FOUR = {"annotated_types", "mpmath", "numpy", "psutil", "pydantic", "pydantic_core", "sympy"}
OF_THE_FOUR |= {"torch", "typing_extensions", "typing_inspection"}


def test_the_engine_imports_numpy_torch_pydantic_and_psutil_only():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    count, packages = done.stdout.splitlines()

    assert int(count) > 40
    assert set(packages.split()) <= OF_THE_FOUR | {"napari_seamless"}
