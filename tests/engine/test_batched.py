"""A network that runs out of memory is called with less at once."""

import numpy as np
import pytest
import torch

from napari_seamless import InferenceConfig
from napari_seamless.engine.batched import Batched, is_out_of_memory
from napari_seamless.engine.errors import ModelCallError, PredictionError
from napari_seamless.engine.predictor import Predictor

PATCHES = np.random.default_rng(0).random((7, 1, 2, 4, 4)).astype(np.float32)


CONFIG = InferenceConfig(patch_size=(2, 4, 4), device="cpu")


class Small(torch.nn.Module):
    """Has memory for `most` patches at once."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most, self.error, self.sizes = most, error, []

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(patches))
        if len(patches) > self.most:
            raise self.error
        return 2 * patches


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"
)


def batched(most: int, error: Exception = CUDA) -> tuple[Batched, Small]:
    network = Small(most, error)
    return Batched(Predictor(network, CONFIG, torch.device("cpu"))), network


@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()])
def test_a_batch_that_does_not_fit_is_halved_and_no_patch_is_lost(error):
    predict, network = batched(2, error)
    np.testing.assert_array_equal(predict(PATCHES), 2 * PATCHES)
    assert predict.limit == 1
    assert network.sizes == [7, 3, *[1] * 7]


def test_a_batch_that_was_changed_before_memory_ran_out_is_not_tried_again():
    class Shifts(Small):
        def forward(self, patches: torch.Tensor) -> torch.Tensor:
            return super().forward(patches.add_(1))

    predict = Batched(Predictor(Shifts(2, CPU), CONFIG, torch.device("cpu")))
    np.testing.assert_array_equal(predict(PATCHES[:2].copy()), 2 * PATCHES[:2] + 2)
    with pytest.raises(PredictionError, match="smaller patch_size") as caught:
        predict(PATCHES.copy())
    assert not caught.value.is_out_of_memory


def test_later_batches_are_small_from_the_start():
    predict, network = batched(3)
    predict(PATCHES)
    network.sizes.clear()
    np.testing.assert_array_equal(predict(PATCHES), 2 * PATCHES)
    assert (predict.limit, network.sizes) == (3, [3, 3, 1])


def test_what_fits_is_called_once():
    predict, network = batched(7)
    np.testing.assert_array_equal(predict(PATCHES), 2 * PATCHES)
    assert (predict.limit, network.sizes) == (None, [7])


def test_one_patch_too_many_is_said_with_what_could_help():
    predict, network = batched(0)
    with pytest.raises(ModelCallError, match="smaller patch_size, or another device") as caught:
        predict(PATCHES)
    assert caught.value.is_out_of_memory
    assert network.sizes == [7, 3, 1]


def test_a_later_batch_without_memory_breaks_the_run_off():
    predict, network = batched(7)
    predict(PATCHES)
    network.most = 0
    with pytest.raises(PredictionError, match="smaller patch_size") as caught:
        predict(PATCHES)
    assert caught.value.is_out_of_memory


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError("out of memory")])
def test_other_failures_are_not_tried_again(error):
    predict, network = batched(2, error)
    with pytest.raises(ModelCallError) as caught:
        predict(PATCHES)
    assert not caught.value.is_out_of_memory
    assert (predict.limit, network.sizes) == (None, [7])
    assert not is_out_of_memory(error)
