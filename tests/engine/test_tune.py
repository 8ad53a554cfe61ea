"""What tuning finds, with networks whose speed is known; nothing depends on the machine's."""

import math
import time

import numpy as np
import pytest
import torch
from torch import nn

from engine.helpers import config_of
from napari_seamless.engine import prepared, tune
from napari_seamless.engine.errors import ModelError
from napari_seamless.engine.source import ArraySource
from napari_seamless.engine.tune import tune_network

VOLUME = np.random.default_rng(5).random((1, 16, 48, 48), dtype=np.float32)


class Priced(nn.Module):
    """A network whose calls take what a function says, on a clock of its own."""

    def __init__(self, price, reach: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv3d(1, 1, 2 * reach + 1, padding=reach)
        self.price = price
        self.now = 0.0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.convolution(image)
        self.now += self.price(image)
        return result


@pytest.fixture
def tuned(monkeypatch):
    """Tune with a clock that only the network moves on."""

    def run(module: Priced, patches="same", *, source=VOLUME, most=1e9, **settings):
        monkeypatch.setattr(tune.time, "perf_counter", lambda: module.now)
        monkeypatch.setattr(tune.time, "monotonic", lambda: module.now)
        # a recorded network would not move the clock
        monkeypatch.setattr(prepared, "_frozen", lambda module, given: module)
        given = {"patch_size": (4, 8, 8), "normalization": "none"} | settings
        config = config_of(given.pop("patch_size"), **given)
        return tune_network(
            ArraySource(source), module.eval(), config, patches=patches, seconds=most
        )

    return run


def test_the_batch_that_takes_least_per_patch_is_found(tuned):
    found = tuned(Priced(lambda image: 1.0 + 0.1 * len(image) + 9 * (len(image) > 8)))
    assert found.changed == {"batch_size": 8}
    assert found.gain == pytest.approx(1.1 / (1.8 / 8))
    assert found.difference < 1e-6
    assert found.redundancy[0] == found.redundancy[1]
    assert "times as fast with batch_size 8" in str(found)


def test_the_layout_that_is_faster_is_found(tuned):
    found = tuned(Priced(lambda image: len(image) * (2.0 if image.is_contiguous() else 1.0)))
    # one channel: nothing is laid out otherwise
    assert "channels_last" not in found.changed
    two = Priced(lambda image: len(image) * (2.0 if image.is_contiguous() else 1.0))
    two.convolution = nn.Conv3d(2, 1, 3, padding=1)
    found = tuned(two, source=np.repeat(VOLUME, 2, axis=0))
    assert found.changed["channels_last"] is True
    assert found.gain == pytest.approx(2)


def test_what_is_hardly_faster_is_left_as_it_is(tuned):
    found = tuned(Priced(lambda image: len(image) * (1.0 if len(image) == 1 else 0.98)))
    assert found.changed == {}
    assert found.gain == 1
    assert str(found).startswith("nothing is faster than the settings as they are (")


def test_what_changes_predictions_too_much_is_not_taken(tuned):
    class Careless(Priced):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(image) * (1 + 1e-3 * (len(image) > 1))

    found = tuned(Careless(lambda image: 1.0))
    assert found.changed == {}
    (refused,) = {trial.problem for trial in found.trials if trial.settings.get("batch_size") == 2}
    assert refused == "predictions differ by 0.001"


def test_larger_patches_do_not_hide_what_changes_predictions_too_much(tuned):
    """The last layout is compared with the same patches, as they are predicted without it."""

    class Careless(Priced):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(image) * (1 if image.is_contiguous() else 1.01)

    network = Careless(lambda image: image.numel() * (2.0 if image.is_contiguous() else 1.0))
    network.convolution = nn.Conv3d(2, 1, 3, padding=1)
    found = tuned(network, "larger", source=np.repeat(VOLUME, 2, axis=0), overlap=0.5)
    assert found.config.patch_size == (16, 48, 48)
    assert not found.config.channels_last
    assert "predictions differ by 0.01" in {trial.problem for trial in found.trials}


def test_a_setting_that_fails_is_passed_over(tuned):
    class Narrow(Priced):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if len(image) > 2:
                raise RuntimeError("two at most")
            return super().forward(image)

    found = tuned(Narrow(lambda image: 1.0))
    assert found.changed == {"batch_size": 2}
    problems = [trial.problem for trial in found.trials if math.isinf(trial.seconds)]
    assert any("two at most" in problem for problem in problems)


def test_a_network_that_does_not_work_is_an_error(tuned):
    class Broken(Priced):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no")

    with pytest.raises(ModelError, match="no"):
        tuned(Broken(lambda image: 1.0))


def test_larger_patches_overlap_by_as_many_voxels(tuned):
    """Where each voxel costs the same, one patch as large as the volume computes none twice."""
    found = tuned(Priced(lambda image: float(image.numel())), "larger", overlap=0.5)
    assert found.config.patch_size == (16, 48, 48)
    assert found.config.overlap == (2, 4, 4)
    assert found.redundancy == (pytest.approx(7 * 11 * 11 * 256 / VOLUME.size), 1.0)
    assert found.gain == pytest.approx(found.redundancy[0])
    assert found.field.margin == (1, 1, 1)
    assert 0 < found.difference < 1  # at the faces of patches


def test_patches_grow_only_where_that_is_faster(tuned):
    def price(image: torch.Tensor) -> float:
        return float(image.numel()) * (10 if image.shape[-1] > 24 else 1)

    found = tuned(Priced(price), "larger", overlap=0.5)
    z, y, x = found.config.patch_size
    assert (z, y) == (16, 48)
    assert 8 < x <= 24


def test_a_halo_takes_the_place_of_the_overlap(tuned):
    found = tuned(Priced(lambda image: float(image.numel()), reach=2), "halo", source=VOLUME[:, :8])
    assert found.config.overlap == 0
    assert found.field.halo == (2, 2, 2)
    assert found.config.patch_size == (8, 48, 48)
    assert found.config.halo == (0, 0, 0)  # one patch holds the volume
    assert found.redundancy[1] == 1


@pytest.mark.parametrize("patches", ["larger", "halo"])
def test_other_patches_are_refused_for_networks_that_depend_on_them(tuned, patches):
    class Normed(Priced):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(image) - image.mean()

    with pytest.raises(ModelError, match="depends on all of its input"):
        tuned(Normed(lambda image: 1.0), patches)


def test_nothing_new_is_tried_when_time_is_up(tuned):
    network = Priced(lambda image: 1.0)
    found = tuned(network, most=0.5)
    assert len(found.trials) == 1
    assert found.changed == {}


def test_no_other_patches_are_tried_when_time_is_up(tuned):
    found = tuned(Priced(lambda image: 1.0), "larger", most=1.5, overlap=0.5)
    assert len(found.trials) == 1
    assert found.field is not None


def test_memory_is_not_filled_by_trying(tuned, monkeypatch):
    monkeypatch.setattr(tune, "free_memory", lambda: 2 * 2 * 256 * tune.BYTES_PER_VOXEL)
    found = tuned(Priced(lambda image: 1.0))
    assert found.changed == {"batch_size": 2}
    assert "might not fit the memory" in {trial.problem for trial in found.trials}


def test_it_can_be_stopped():
    asked = []

    def may_go_on() -> bool:
        asked.append(time.monotonic())
        return len(asked) < 3

    network = Priced(lambda image: 0.0).eval()
    found = tune_network(ArraySource(VOLUME), network, config_of((4, 8, 8)), may_go_on=may_go_on)
    assert len(found.trials) <= 3
