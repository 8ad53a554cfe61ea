"""How long importing the package and opening the widget take: medians of five processes.

xvfb-run -a python benchmarks/start.py
"""

import statistics
import subprocess
import sys

IMPORT = (
    "import time; t = time.perf_counter(); import napari_seamless; print(time.perf_counter() - t)"
)
WIDGET = """
import time, napari
viewer = napari.Viewer(show=False)
t = time.perf_counter()
viewer.window.add_plugin_dock_widget("napari-seamless", "Blended inference")
print(time.perf_counter() - t)
viewer.close()
"""


def median_of_five(code: str) -> float:
    """Return the median of what five fresh processes print."""
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(5)
    ]
    return statistics.median(float(run.stdout.split()[-1]) for run in runs)


if __name__ == "__main__":
    print(f"import napari_seamless: {median_of_five(IMPORT):.3f} s (aim: 0.2 or less)")
    print(f"opening the widget:     {median_of_five(WIDGET):.3f} s (aim: 0.5 or less)")
