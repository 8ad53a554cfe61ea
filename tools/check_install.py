"""Install a built wheel where nothing else is, and see that all it asks for can be had.

python tools/check_install.py FOLDER CONSTRAINTS

FOLDER holds one wheel. Each extra is resolved but not installed; the package itself is installed
with what it needs, in an environment of its own inside FOLDER, imported there and asked for its
version.
"""

import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

# `BlendedWriter` needs the extra `lightning`.
IMPORT = """
import napari_seamless as ns
for name in set(ns.__all__) - {"BlendedWriter"}:
    getattr(ns, name)
"""


def extras_of(wheel: Path) -> list[str]:
    """Return the names of the extras that a wheel offers."""
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(file.read(metadata).decode()).get_all("Provides-Extra", [])


def check(folder: Path, constraints: Path) -> None:
    """Raise `CalledProcessError` with the first step that fails."""
    (wheel,) = folder.glob("*.whl")
    home = folder / "venv"
    venv.create(home, clear=True, with_pip=True)
    programs = home / ("Scripts" if sys.platform == "win32" else "bin")
    install = [str(programs / "python"), "-m", "pip", "install", "--quiet", "-c", str(constraints)]
    for extra in extras_of(wheel):
        print("resolving", extra, flush=True)
        subprocess.run([*install, "--dry-run", f"{wheel}[{extra}]"], check=True)
    subprocess.run([*install, str(wheel)], check=True)
    subprocess.run([str(programs / "python"), "-c", IMPORT], check=True, cwd=folder)
    subprocess.run([str(programs / "napari-seamless"), "--version"], check=True, cwd=folder)


if __name__ == "__main__":
    check(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
