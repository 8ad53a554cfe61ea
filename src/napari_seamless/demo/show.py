"""The demo: the generated volume, the widget, the checkpoint chosen and the run started.

With a screen napari stays open. Without one the same happens on a virtual screen, which leaves
pictures and the exported prediction.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_seamless.demo import CHECKPOINT, PATCH_SIZE
from napari_seamless.demo.volume import DEMO_SHAPE, demo_volume
from napari_seamless.engine.errors import OutputError, one_line

if TYPE_CHECKING:
    from napari_seamless.gui.runs.live_layer import LiveLayer
    from napari_seamless.gui.widget import BlendedInference

SCREEN = (1600, 1000)
LONGEST_SCORING_MS = 20_000


def show_demo(folder: Path) -> int:
    """Show the demo.

    Parameters
    ----------
    folder : Path
        Where pictures and the prediction go if there is no screen; made if need be.

    Returns
    -------
    int
        The exit code: 0 if the run was completed or napari closed by the user, else 1.
    """
    if _has_screen():
        return _show(None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {folder} cannot be made: {one_line(error)}") from error
    if shutil.which("Xvfb") is None:
        return _predict_only(folder)
    with _virtual_screen():
        return _show(folder)


def _has_screen() -> bool:
    if not sys.platform.startswith("linux"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@contextmanager
def _virtual_screen() -> Iterator[None]:
    from pyvirtualdisplay.display import Display

    print("no screen here: using a virtual one (Xvfb)")
    with Display(visible=False, size=SCREEN, color_depth=24):
        yield


def _show(folder: Path | None) -> int:
    """Open napari and start the run; with a folder, leave files there and close at the end."""
    import napari

    viewer = napari.Viewer(title="napari-seamless demo")
    if folder is not None:
        viewer.window.resize(*SCREEN)
    viewer.open_sample("napari-seamless", "demo")
    viewer.dims.set_current_step(0, DEMO_SHAPE[0] // 2)
    _, widget = viewer.window.add_plugin_dock_widget("napari-seamless", "Blended inference")
    story = _Story(viewer, widget, folder)
    story.start()
    napari.run()
    return story.exit_code


class _Story:
    """Follows the demo's run: prints progress, takes the pictures, exports, says the figures."""

    def __init__(self, viewer: Any, widget: "BlendedInference", folder: Path | None) -> None:
        self._viewer = viewer
        self._widget = widget
        self._folder = folder
        self._began = 0.0
        self._printed = -1
        self._pictured = False
        self.exit_code = 0 if folder is None else 1

    def start(self) -> None:
        """Fill the form and press Run."""
        widget = self._widget
        widget.image.value = self._viewer.layers["EM-like volume"]
        widget.checkpoint.value = CHECKPOINT
        widget.patch_size.value = PATCH_SIZE
        widget.truth.value = self._viewer.layers["membranes (truth)"]
        widget.controller.progressed.connect(self._progressed)
        widget.controller.ended.connect(self._ended)
        self._began = time.perf_counter()
        widget.run_button.native.click()

    def _progressed(self, done: int, total: int) -> None:
        tenth = 10 * done // total
        if tenth > self._printed:
            self._printed = tenth
            print(f"{done} of {total} patches")
        if self._folder is not None and not self._pictured and 8 * done >= total:
            self._pictured = True
            self._picture("running.png")

    def _ended(self, line: str) -> None:
        print(line)
        live = self._widget.controller.live
        try:
            if live is not None:
                _print_figures(live.volume, time.perf_counter() - self._began)
            if live is not None and self._folder is not None:
                self._export(live, self._folder / "prediction.h5")
        finally:
            self._finish_soon(live is not None)

    def _finish_soon(self, has_layer: bool) -> None:
        """Without anybody at the screen, take the last picture once the scores are shown; close."""
        if self._folder is None:
            return
        from qtpy.QtCore import QTimer

        if has_layer:
            self._widget.controller.scored.connect(lambda _: QTimer.singleShot(200, self._finish))
        QTimer.singleShot(LONGEST_SCORING_MS if has_layer else 0, self._viewer.close)

    def _finish(self) -> None:
        self._picture("done.png")
        self._viewer.close()

    def _export(self, live: "LiveLayer", target: Path) -> None:
        from napari_seamless.gui.runs.export import export_metadata, write_volume

        metadata = export_metadata(live.layer)
        problem = write_volume(target, live.volume, metadata)
        print(f"not exported: {problem}" if problem else f"prediction: {target.resolve()}")
        if problem is None and metadata["status"] == "complete":
            self.exit_code = 0

    def _picture(self, name: str) -> None:
        assert self._folder is not None
        path = self._folder / name
        self._viewer.screenshot(str(path), canvas_only=False, flash=False)
        print(f"picture: {path.resolve()}")


def _predict_only(folder: Path) -> int:
    """Do the demo's run without any screen."""
    import napari_seamless as ns

    print("no screen and no Xvfb here: the prediction only (apt-get install xvfb for pictures)")
    raw, _ = demo_volume()
    config = ns.InferenceConfig(
        patch_size=PATCH_SIZE, activation="sigmoid", batch_size=4, normalization="dtype"
    )
    target = folder / "prediction.h5"
    began = time.perf_counter()
    prediction = ns.predict(raw, CHECKPOINT, config, target, overwrite=True)
    _print_figures(prediction.array, time.perf_counter() - began)
    print(f"prediction: {target.resolve()}")
    return 0


def _print_figures(prediction: Any, seconds: float) -> None:
    from napari_seamless.metrics import dice

    _, membranes = demo_volume()
    voxels = int(np.prod(membranes.shape))
    print(f"{voxels / seconds:,.0f} voxels per second ({seconds:.1f} s)")
    print(f"Dice against the truth: {dice(prediction, membranes):.3f}")
