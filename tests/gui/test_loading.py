"""Torch is imported whole, and leaves the interpreter as it was."""

import subprocess
import sys

import pytest

CODE = """
import gc, sys
from napari_seamless.gui.checkpoint.loading import load_torch
{before}
assert "torch" not in sys.modules
collected = []
gc.callbacks.append(lambda phase, info: collected.append(info["generation"]))
load_torch()
import torch
assert torch.nn.Linear(2, 1)(torch.ones(3, 2)).shape == (3, 1)
print(gc.isenabled(), gc.get_freeze_count() == 0, max(collected, default=0) < 2)
"""


@pytest.mark.parametrize(("before", "is_on"), [("", True), ("gc.disable()", False)])
def test_torch_is_there_and_nothing_was_searched_for_garbage(before, is_on):
    code = CODE.format(before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == [str(is_on), "True", "True"]
