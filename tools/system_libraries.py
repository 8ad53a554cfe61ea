"""Find, and where possible install, the system libraries that a napari window needs on Linux.

Qt and OpenGL come as wheels, but a few shared libraries underneath them come from the system, and
so does Xvfb, the virtual screen for a machine without one. As root on a Debian family system this
installs what is missing; elsewhere it prints one line that names it, and exits with code 1.
Only the standard library is used.
"""

import ctypes
import os
import shutil
import subprocess
import sys

LIBRARIES = {  # shared library -> Debian package
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libX11-xcb.so.1": "libx11-xcb1",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-glx.so.0": "libxcb-glx0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-randr.so.0": "libxcb-randr0",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-sync.so.1": "libxcb-sync1",
    "libxcb-util.so.1": "libxcb-util1",
    "libxcb-xfixes.so.0": "libxcb-xfixes0",
    "libxcb-xkb.so.1": "libxcb-xkb1",
    "libdbus-1.so.3": "libdbus-1-3",
    "libfontconfig.so.1": "libfontconfig1",
    "libfreetype.so.6": "libfreetype6",
    "libgthread-2.0.so.0": "libglib2.0-0",
}
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", os.path.expanduser("~/.fonts"))


def missing():
    """What is not there: a dict of library, program or font -> Debian package."""
    found = {name: package for name, package in LIBRARIES.items() if not loads(name)}
    if not any(files for folder in FONT_FOLDERS for _, _, files in os.walk(folder)):
        found["a font"] = "fonts-dejavu-core"
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        if not shutil.which("Xvfb"):
            found["Xvfb"] = "xvfb"
        if not loads("libGLX_mesa.so.0"):  # draws OpenGL on the virtual screen
            found["libGLX_mesa.so.0"] = "libglx-mesa0"
    return found


def loads(library):
    """Whether the dynamic linker finds this library and all that it needs."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def install(packages):
    """Install Debian packages without asking anything; whether that worked is seen afterwards."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    wait = ["-o", "DPkg::Lock::Timeout=300"]
    subprocess.run(["apt-get", *wait, "--quiet", "update"], env=environment)
    command = ["apt-get", *wait, "--quiet", "--yes", "--no-install-recommends", "install"]
    subprocess.run([*command, *packages], env=environment)


def main():
    """Return the exit code: 0 if nothing is missing (any more), 1 otherwise."""
    if not sys.platform.startswith("linux"):
        return 0
    absent = missing()
    if absent and shutil.which("apt-get") and os.geteuid() == 0:
        install(sorted(set(absent.values())))
        absent = missing()
    if not absent:
        return 0
    packages = " ".join(sorted(set(absent.values())))
    print(
        f"Missing on this machine: {', '.join(absent)}. Install with: "
        f"sudo apt-get install --no-install-recommends {packages}"
        + ("" if shutil.which("apt-get") else " (Debian names; take your system's own)"),
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
