"""Peak memory of the whole of napari with a run over a zarr volume larger than memory.

    xvfb-run -a python benchmarks/large_volume_widget.py [--planes 2048] [--size 2048] [--times 4]
        [--memory 1GB] [--folder DIR]

As large_volume.py, but through the widget: the volume is opened as a lazy layer, the form gets an
output, and the run is shown while it goes on. Printed, too: what napari has in memory before the
run.
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import napari
import torch
from large_volume import (
    OVERLAP,
    check_voxels,
    parser,
    patch_of,
    peak_bytes,
    report,
    run_in_process,
    shape_of,
    volumes,
)
from qtpy.QtCore import QEventLoop, QSettings, QTimer


def wait_until(condition: Any, seconds: float = 60) -> None:
    """Let Qt work until something is true; raise TimeoutError if that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the form does not offer to run")
        loop = QEventLoop()
        QTimer.singleShot(20, loop.quit)
        loop.exec()


def fill_in(widget: Any, checkpoint: Path, source: Path, output: Path, memory: int) -> None:
    """Fill in the form as a user would, and wait until it offers to run."""
    widget.checkpoint.value = checkpoint
    settings = {
        "patch_size": patch_of(shape_of(source)),
        "overlap": OVERLAP,
        "batch_size": 1,
        "device": "cpu",
        "activation": "none",
        "output": output,
        "output_dtype": "uint8",
        "memory": memory / 2**30,
    }
    for name, value in settings.items():
        getattr(widget, name).value = value
    wait_until(lambda: widget.run_button.enabled)


def run_here(source: Path, output: Path, memory: int) -> dict[str, Any]:
    """Run in this process; return what was measured."""
    with tempfile.TemporaryDirectory() as folder:
        QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, folder)
        checkpoint = Path(folder) / "identity.pt"
        torch.jit.script(torch.nn.Identity()).save(str(checkpoint))
        viewer = napari.Viewer()
        viewer.open(str(source), plugin="napari-seamless")
        _, widget = viewer.window.add_plugin_dock_widget("napari-seamless", "Blended inference")
        fill_in(widget, checkpoint, source, output, memory)
        before, began = peak_bytes(), time.perf_counter()
        loop, lines = QEventLoop(), []
        widget.controller.ended.connect(lines.append)
        widget.controller.ended.connect(lambda _: loop.quit())
        widget.controller.run()
        if not lines:
            if not widget.controller.is_busy:
                raise RuntimeError(widget.status.value)
            loop.exec()
        print(f"{lines[0]}; {widget.forecast.value}", file=sys.stderr)
        layer = widget.controller.live.layer
        result = {
            "status": layer.metadata["napari-seamless"]["status"],
            "seconds": time.perf_counter() - began,
            "before": before,
            "peak": peak_bytes(),
            "forecast": {},
        }
        viewer.close()
        return result


def main() -> int:
    """Run twice, say what was measured, and return the exit code."""
    options = parser(__doc__).parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for source in volumes(options, folder):
            output = folder / f"out-{source.name}"
            shutil.rmtree(output, ignore_errors=True)
            runs.append(run_in_process(__file__, source, output, options.memory))
            check_voxels(source, output)
            shutil.rmtree(output)
    before = ", ".join(f"{run['before'] / 2**20:,.0f}" for run in runs)
    print(f"napari, widget and layers before the run: {before} MiB")
    return 0 if report(runs[0], runs[1], options.times) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        source, output, memory = sys.argv[2:]
        print(json.dumps(run_here(Path(source), Path(output), int(memory))))
    else:
        sys.exit(main())
