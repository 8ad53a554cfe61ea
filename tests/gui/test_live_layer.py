"""What removing the live layer does to the viewer's OpenGL context while the widget is open."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import numpy as np
import napari
from qtpy.QtCore import QEventLoop, QTimer
from qtpy.QtGui import QOpenGLContext

from napari_seamless.engine.box import Box
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.gui.runs.live_layer import LiveLayer
from napari_seamless.gui.space.geometry import Place


def draw():
    loop = QEventLoop()
    QTimer.singleShot(400, loop.quit)
    loop.exec()


def add():
    shape = (1, 4, 64, 64)
    values = np.random.default_rng(0).random(shape, dtype=np.float32)
    live = LazyArray(shape, np.float32, values.__getitem__)
    box = Box((0, 0, 0), shape[1:])
    return LiveLayer(viewer, Place(image), live, "prediction", "sigmoid", box, {}).layer


viewer = napari.Viewer()
image = viewer.add_image(np.zeros((4, 64, 64), dtype=np.uint8))
viewer.window.add_plugin_dock_widget("napari-seamless", "Blended inference")
draw()
for _ in range(2):
    layer = add()
    draw()
    layer.visible = False
    draw()
    viewer.layers.remove(layer)
    canvas = viewer.window._qt_viewer.canvas.native
    print("own context", QOpenGLContext.currentContext() is canvas.context())
    draw()
    viewer.dims.set_current_step(0, 1)
    draw()
add()
viewer.close()
draw()
"""


@pytest.mark.slow
def test_removing_a_hidden_layer_does_not_crash_the_next_frames(tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        # what the widget remembers of the user's last run would be printed too
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["own context True"] * 2
