"""A checkpoint of each test network, a viewer with the widget, and waiting for the run."""

import functools
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from npe2 import PluginManager
from qtpy.QtCore import QSettings, QThreadPool

import networks
from gui_leaks import watched
from napari_seamless.gui.runs import estimate


@pytest.fixture(autouse=True, scope="module")
def _still_little_to_look_through() -> None:
    """Leave what earlier tests have imported out of them as well."""
    gc.unfreeze()  # there may be garbage among it by now
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _plugins_are_found_once() -> Iterator[None]:
    """Spare each viewer the look through all that is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PluginManager, "discover", functools.cache(PluginManager.discover))
        yield


@pytest.fixture(autouse=True)
def _nothing_left(request):
    """Let a test fail that leaves windows, timers or threads; of one that failed do not ask."""
    failed_before = request.session.testsfailed
    with watched() as left:
        yield
        assert request.session.testsfailed > failed_before or not left()


@pytest.fixture(autouse=True)
def _fresh_networks(_nothing_left):
    networks.reset()
    yield
    networks.let_through(10_000)
    assert QThreadPool.globalInstance().waitForDone(30_000)
    networks.reset()


@pytest.fixture(autouse=True)
def _own_memory(tmp_path):
    """Remember checkpoints in a folder of the test, not among the user's own."""
    QSettings.setPath(
        QSettings.Format.IniFormat, QSettings.Scope.UserScope, str(tmp_path / "settings")
    )


@pytest.fixture
def checkpoint_of(tmp_path: Path) -> Callable[[type], Path]:
    def save(kind: type) -> Path:
        path = tmp_path / f"{kind.__name__}.pt"
        torch.save(kind().state_dict(), path)
        return path

    return save


@pytest.fixture
def volume() -> np.ndarray:
    """Float32 (12, 40, 40), every voxel another value between 1 and 2."""
    return 1 + np.random.default_rng(7).random((12, 40, 40), dtype=np.float32)


class Session:
    """The widget in a viewer, driven as a user would."""

    def __init__(self, viewer, widget, qtbot) -> None:
        self.viewer, self.widget, self.qtbot = viewer, widget, qtbot
        self.last_line: str | None = None
        self.widget.controller.ended.connect(self._ended)

    def choose(self, checkpoint: Path, kind: type, **settings) -> None:
        """Fill the form; patches are small and predicted one by one unless `settings` say else."""
        self.widget.checkpoint.value = checkpoint
        self.widget.architecture.value = f"networks:{kind.__name__}"
        settings = {
            "patch_size": (4, 16, 16),
            "batch_size": 1,
            "activation": "none",
            "device": "cpu",
            **settings,
        }
        for name, value in settings.items():
            getattr(self.widget, name).value = value

    def press(self, button: str) -> None:
        getattr(self.widget, button).native.click()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        self.qtbot.waitUntil(condition, timeout=60_000)

    def wait_for_batches(self, count: int) -> None:
        self.wait_for(lambda: self.live is not None and self.facts["done"] >= count)

    def wait_for_end(self) -> str:
        self.wait_for(lambda: self.last_line is not None)
        line, self.last_line = self.last_line, None
        return line

    @property
    def live(self):
        live = self.widget.controller.live
        return None if live is None else live.layer

    @property
    def facts(self) -> dict:
        return self.live.metadata["napari-seamless"]

    @property
    def status(self) -> str:
        return self.widget.status.value

    def _ended(self, line: str) -> None:
        self.last_line = line


@pytest.fixture
def session_over(make_napari_viewer, qtbot, monkeypatch):
    """Return a function: layer arguments -> a session in a shown viewer.

    Networks are not measured while the form is at rest: the tests count their calls.
    """
    monkeypatch.setattr(estimate, "REST_MS", 3_600_000)

    def build(data, **layer) -> Session:
        viewer = make_napari_viewer(show=True)
        viewer.add_image(data, name="volume", **layer)
        _, widget = viewer.window.add_plugin_dock_widget("napari-seamless", "Blended inference")
        qtbot.wait(50)
        return Session(viewer, widget, qtbot)

    return build
