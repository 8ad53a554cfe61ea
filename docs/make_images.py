"""Takes the pictures of the documentation from the real program, in one run of the demo.

xvfb-run -a -s "-screen 0 1600x1000x24" python docs/make_images.py
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import napari
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from qtpy.QtCore import QPoint, QSettings, Qt
from qtpy.QtTest import QTest

from napari_seamless.demo import CHECKPOINT, PATCH_SIZE
from napari_seamless.gui.overlays import SWITCHES

IMAGES = Path(__file__).parent / "images"
PLANE, LATER_PLANE = 16, 22
SETTLE_MS = 400
"""Until everything is drawn."""
SECTIONS = ("model", "input", "patches", "output", "debug")
RECORDED, PER_FRAME, FRAME_MS = 18, 3, 300
"""Frames of the recording, patches from one to the next, and how long each is shown."""
RECORDED_WIDTH, RECORDED_COLOURS = 640, 64
CLOSE_UP, CLOSE = 300, 0.144
"""Pixels of the picture of one overlay, which stands in a table, and the zoom that fills it."""


class Scene:
    """napari with the sample and the widget, ready to run."""

    def __init__(self) -> None:
        folder = tempfile.mkdtemp()  # nothing that the widget remembers of its user
        QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, folder)
        checkpoint = shutil.copy(CHECKPOINT, tempfile.gettempdir())  # a short path in the form
        self.viewer = napari.Viewer(title="napari-seamless")
        self.viewer.window.resize(1500, 900)
        self.viewer.open_sample("napari-seamless", "demo")
        self.viewer.layers.selection.active = self.viewer.layers[0]
        self.viewer.dims.set_current_step(0, PLANE)
        _, self.widget = self.viewer.window.add_plugin_dock_widget(
            "napari-seamless", "Blended inference"
        )
        self["checkpoint"].value = checkpoint
        self["patch_size"].value = PATCH_SIZE
        self["disagreement"].value = True
        self.wait_until(lambda: self["status"].value == "Ready")

    def __getitem__(self, name: str) -> Any:
        """Return a part of the form."""
        return self.widget[name]

    def press(self, button: str) -> None:
        """Press a button of the form."""
        self[button].native.click()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Let the program go on until something holds."""
        while not condition():
            QTest.qWait(20)

    def wait_for_patches(self, count: int) -> None:
        """Let the run go on until so many patches are done."""
        controller = self.widget.controller
        self.wait_until(
            lambda: controller.live is not None and controller.current.run.done >= count
        )

    def unfold(self, *names: str) -> None:
        """Unfold these sections and fold the others."""
        for name in SECTIONS:
            panel = self[f"{name}_section"].panel
            panel.expand() if name in names else panel.collapse()

    def show(self, *overlays: str) -> None:
        """Switch on these overlays and no others."""
        for each in SWITCHES:
            self[f"show_{each.name}"].value = each.name in overlays

    def look_at(self, y: float, x: float, zoom: float) -> None:
        """Zoom in on a voxel; a pixel of the sample is 8 nm."""
        self.viewer.camera.center, self.viewer.camera.zoom = (8 * y, 8 * x), zoom

    def save(self, name: str) -> None:
        """Take a picture of the window."""
        QTest.qWait(SETTLE_MS)
        self.viewer.screenshot(str(IMAGES / name), canvas_only=False, flash=False)

    def frame(self) -> Image.Image:
        """Return a small picture of the window, with few colours and without dots between them."""
        QTest.qWait(SETTLE_MS // 4)
        picture = Image.fromarray(self.viewer.screenshot(canvas_only=False, flash=False)[..., :3])
        height = round(picture.height * RECORDED_WIDTH / picture.width)
        small = picture.resize((RECORDED_WIDTH, height), Image.Resampling.LANCZOS)
        return small.quantize(RECORDED_COLOURS, dither=Image.Dither.NONE)

    def close_up(self) -> NDArray[np.uint8]:
        """Return a picture of the middle of the canvas, (CLOSE_UP, CLOSE_UP, 3)."""
        QTest.qWait(SETTLE_MS)
        picture = self.viewer.screenshot(canvas_only=True, flash=False)[..., :3]
        height, width = picture.shape[:2]
        top, left = (height - CLOSE_UP) // 2, (width - CLOSE_UP) // 2
        return picture[top : top + CLOSE_UP, left : left + CLOSE_UP]


def main() -> None:
    """Go through a run, and take all pictures."""
    IMAGES.joinpath("overlays").mkdir(parents=True, exist_ok=True)
    scene = Scene()
    problem(scene)
    recording(scene)
    scene.press("run_button")
    running(scene)
    states(scene)
    inspector(scene)
    overlays(scene)
    queue(scene)
    scene.viewer.close()


def problem(scene: Scene) -> None:
    """A field that cannot work, and what the status says of it."""
    before = scene["output"].value
    scene.unfold("output")
    scene["output"].value = "/data/prediction.png"
    scene.wait_until(lambda: "prediction.png" in scene["status"].value)
    scene.save("problem.png")
    scene["output"].value = before
    scene.unfold("model", "input", "patches")
    scene.wait_until(lambda: scene["status"].value == "Ready")


def recording(scene: Scene) -> None:
    """The moving picture that heads the README: a plane fills, the slider moves, another does."""
    frames = [scene.frame()]
    scene.press("run_button")
    scene["show_grid"].value = True
    for number in range(1, RECORDED):
        scene.wait_for_patches(number * PER_FRAME)
        if number == RECORDED // 2:
            scene.viewer.dims.set_current_step(0, LATER_PLANE)
        frames.append(scene.frame())
    scene.press("cancel_button")
    scene.wait_until(lambda: not scene.widget.controller.is_busy)
    first, *others = frames
    first.save(IMAGES / "live.gif", save_all=True, append_images=others, duration=FRAME_MS, loop=0)
    scene["show_grid"].value = False
    scene.viewer.layers.remove("EM-like volume prediction")
    scene.viewer.dims.set_current_step(0, PLANE)


def running(scene: Scene) -> None:
    """The watched plane is half done."""
    scene["show_grid"].value = True
    scene.wait_for_patches(22)
    scene.save("running.png")


def states(scene: Scene) -> None:
    """Patches that run, after the slider was moved."""
    scene.unfold("debug")
    scene.show("states")
    scene.viewer.dims.set_current_step(0, LATER_PLANE)
    before = scene.widget.controller.current.run.done
    scene.wait_for_patches(before + 9)
    scene.save("states.png")
    scene.show("order")
    scene.look_at(128, 128, CLOSE)
    save_close_up(scene, "order")


def inspector(scene: Scene) -> None:
    """A voxel that several patches reach, and one of them alone."""
    scene.press("pause_button")
    scene.show()
    scene.viewer.dims.set_current_step(0, PLANE)
    scene.look_at(165, 158, 0.62)
    panel = scene.widget._inspector.native
    panel.switch.setChecked(True)
    QTest.qWait(SETTLE_MS)
    canvas = scene.viewer.window._qt_viewer.canvas.native
    middle = canvas.rect().center()
    QTest.mouseMove(canvas, middle + QPoint(1, 0))
    QTest.mouseMove(canvas, middle)
    scene.wait_until(lambda: bool(panel.table.patches))
    QTest.mouseClick(canvas, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, middle)
    scene.wait_until(lambda: "…" not in panel.result.text())
    scene.save("inspector.png")
    panel.show_button.click()
    scene.wait_until(lambda: f"patch {panel.chosen} window" in scene.viewer.layers)
    scene.save("patch.png")
    panel.hide_button.click()
    scene.wait_until(lambda: not any("patch" in layer.name for layer in scene.viewer.layers))
    panel.switch.setChecked(False)


def overlays(scene: Scene) -> None:
    """Each overlay by itself, on the plane that is half done."""
    scene.viewer.dims.set_current_step(0, PLANE)
    scene.look_at(128, 128, CLOSE)
    for each in SWITCHES:
        if each.name != "order":  # that of a run which waits is not the one it goes on with
            scene.show(each.name)
            save_close_up(scene, each.name)
    scene.show()
    scene.viewer.reset_view()


def save_close_up(scene: Scene, name: str) -> None:
    """Take the picture of one overlay."""
    imageio.imwrite(IMAGES / "overlays" / f"{name}.png", scene.close_up())


def queue(scene: Scene) -> None:
    """Two runs that wait for the present one."""
    scene.unfold("patches")
    scene.press("pause_button")
    scene["overlap"].value = 0.25
    scene.press("run_button")
    scene["blending"].value = "hann"
    scene.press("run_button")
    scene.save("queue.png")
    for _ in range(len(scene.widget.controller.queue)):
        scene.widget.controller.drop(0)
    scene.press("cancel_button")
    scene.wait_until(lambda: not scene.widget.controller.is_busy)


if __name__ == "__main__":
    main()
