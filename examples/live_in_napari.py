"""A viewer from a script, with the widget filled in and the run started.

    python examples/live_in_napari.py
    python examples/live_in_napari.py --screenshot FILE.png

The prediction arrives in the viewer, which stays open. With `--screenshot` it takes a picture of
its window when the run has ended, and closes. The volume is generated and the checkpoint is the
demo's; put your own in their place.
"""

import argparse
from pathlib import Path

import napari
from qtpy.QtCore import QTimer

from napari_seamless.demo import CHECKPOINT
from napari_seamless.demo.volume import DEMO_SCALE, demo_volume


def main(screenshot: Path | None) -> None:
    """Show a volume, and press Run."""
    raw, membranes = demo_volume((12, 96, 96))
    viewer = napari.Viewer()
    image = viewer.add_image(raw, name="EM", scale=DEMO_SCALE)
    truth = viewer.add_labels(membranes, name="membranes", scale=DEMO_SCALE, visible=False)

    _, widget = viewer.window.add_plugin_dock_widget("napari-seamless", "Blended inference")
    # Each field of the form is an attribute of the widget, by the name of the setting.
    widget.image.value = image
    widget.checkpoint.value = CHECKPOINT
    widget.patch_size.value = (8, 64, 64)
    widget.activation.value = "sigmoid"
    widget.truth.value = truth

    def ended(line: str) -> None:
        """Say how the run ended; with a picture to take, take it once all is drawn, and close."""
        print(line)
        layer = viewer.layers[-1]
        print(layer.name, layer.data.shape, layer.metadata["napari-seamless"]["status"])
        if screenshot is not None:
            QTimer.singleShot(500, take)

    def take() -> None:
        viewer.screenshot(str(screenshot), canvas_only=False, flash=False)
        viewer.close()

    widget.controller.ended.connect(ended)
    widget.run_button.native.click()
    napari.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--screenshot", metavar="FILE", type=Path, help="take a picture, and close")
    main(parser.parse_args().screenshot)
