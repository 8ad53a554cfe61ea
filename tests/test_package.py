"""What importing the package costs, and that its manifest is true."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import napari_seamless as ns

HEAVY = (
    "torch",
    "napari",
    "qtpy",
    "PyQt6",
    "magicgui",
    "h5py",
    "tifffile",
    "zarr",
    "tensorstore",
    "dask",
)


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, napari_seamless; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_importing_the_package_loads_one_module_besides_pythons_own():
    code = (
        "import sys; before = set(sys.modules); import napari_seamless;"
        "names = [name for name in set(sys.modules) - before];"
        "print([n for n in names if n.split('.')[0] not in sys.stdlib_module_names], len(names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    loaded, _, count = done.stdout.rpartition(" ")
    assert loaded == "['napari_seamless']"
    assert int(count) < 60


def test_every_public_name_is_there_and_has_a_docstring():
    for name in ns.__all__:
        if name != "__version__":
            assert getattr(ns, name).__doc__, name


def test_the_version_is_that_of_the_installed_package():
    assert ns.__version__ == version("napari-seamless")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        ns.no_such_name  # noqa: B018


def test_the_manifest_is_valid():
    done = subprocess.run(
        [sys.executable, "-m", "npe2", "validate", "napari-seamless"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
