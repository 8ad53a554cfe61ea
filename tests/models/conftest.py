import contextlib
import pickle
import warnings

import pytest
import torch
from torch import nn


class Trap:
    """A pickle of this writes a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def network():
    """The network that all checkpoints are saved from."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Conv3d(4, 2, 1)
    ).eval()


def script(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(path)


@pytest.fixture
def checkpoint(tmp_path, network):
    """Write a checkpoint of some kind and return its path, always the same."""
    path = tmp_path / "net.pt"
    trap = tmp_path / "trap"

    def write(kind):
        if kind == "torchscript":
            script(network, path)
        elif kind == "state dict":
            torch.save(network.state_dict(), path)
        elif kind == "legacy state dict":
            torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
        elif kind == "module":
            torch.save(network, path)
        elif kind == "trap":
            path.write_bytes(pickle.dumps(Trap(trap)))
        elif kind == "old trap":
            path.write_bytes(pickle.dumps(Trap(trap), protocol=2))
        elif kind == "saved trap":
            torch.save({"state_dict": Trap(trap)}, path)
        elif kind == "legacy trap":
            torch.save(Trap(trap), path, _use_new_zipfile_serialization=False)
        else:
            raise AssertionError(kind)
        with contextlib.suppress(FileNotFoundError):
            trap.unlink()
        return path

    return write
