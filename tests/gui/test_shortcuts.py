"""The keys of the viewer while the widget is open."""

import pytest
from app_model.types import KeyCode, KeyMod
from napari.components import ViewerModel
from napari.utils.key_bindings import coerce_keybinding
from napari.utils.shortcuts import default_shortcuts

from napari_seamless.gui.runs.shortcuts import KEYS, Shortcuts

pytestmark = pytest.mark.usefixtures("qapp")


def press(viewer: ViewerModel, key: str) -> None:
    viewer.keymap[coerce_keybinding(key)](viewer)


def test_a_key_does_its_command():
    viewer, done = ViewerModel(), []
    Shortcuts(viewer, {name: lambda name=name: done.append(name) for name in KEYS})
    for key in ("F5", "F6", "F7", "F8"):
        press(viewer, key)

    assert done == ["run", "pause", "preview", "cancel"]


def test_closing_gives_the_keys_back():
    viewer, done = ViewerModel(), []
    viewer.bind_key("F5", lambda viewer: done.append("the user's own"))
    shortcuts = Shortcuts(viewer, {"run": lambda: done.append("run"), "cancel": lambda: None})
    shortcuts.close()
    press(viewer, "F5")

    assert done == ["the user's own"]
    assert coerce_keybinding("F8") not in viewer.keymap
    shortcuts.close()  # does nothing any more
    assert coerce_keybinding("F5") in viewer.keymap


def test_a_key_that_somebody_took_meanwhile_stays_theirs():
    viewer, done = ViewerModel(), []
    shortcuts = Shortcuts(viewer, {"run": lambda: done.append("run")})
    viewer.bind_key("F5", lambda viewer: done.append("theirs"), overwrite=True)
    shortcuts.close()
    press(viewer, "F5")

    assert done == ["theirs"]


def test_napari_uses_none_of_them():
    taken = {str(key) for keys in default_shortcuts.values() for key in keys}
    assert str(coerce_keybinding(KeyMod.CtrlCmd | KeyCode.KeyR)) in taken  # as they are written
    assert not taken & {str(coerce_keybinding(key)) for key in KEYS.values()}
