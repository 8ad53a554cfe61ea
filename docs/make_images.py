"""Takes the pictures of the README from the real program, in the middle of a run of the demo.

xvfb-run -a -s "-screen 0 1600x1000x24" python docs/make_images.py
"""

import shutil
import tempfile
from pathlib import Path

import napari
from qtpy.QtCore import QTimer

from napari_seamless.demo import CHECKPOINT, PATCH_SIZE

IMAGES = Path(__file__).parent / "images"
PICTURE_AT = 0.1
"""Share of the patches after which the picture is taken: the watched plane is half done then."""


def main() -> None:
    """Open napari, start the demo's run, take the picture and close."""
    checkpoint = shutil.copy(CHECKPOINT, tempfile.gettempdir())  # a short path in the form
    viewer = napari.Viewer(title="napari-seamless")
    viewer.window.resize(1500, 900)
    viewer.open_sample("napari-seamless", "demo")
    viewer.dims.set_current_step(0, 16)
    _, widget = viewer.window.add_plugin_dock_widget("napari-seamless", "Blended inference")
    widget.checkpoint.value = checkpoint
    widget.patch_size.value = PATCH_SIZE

    def picture(done: int, total: int) -> None:
        if done < PICTURE_AT * total:
            return
        widget.controller.progressed.disconnect(picture)
        widget.show_grid.value = True
        QTimer.singleShot(300, finish)

    def finish() -> None:
        viewer.screenshot(str(IMAGES / "running.png"), canvas_only=False, flash=False)
        viewer.close()

    widget.controller.progressed.connect(picture)
    QTimer.singleShot(0, widget.run_button.native.click)
    napari.run()


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    main()
