import numpy as np
import pytest
import torch

from napari_seamless.engine.finite import Finiteness


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", [0, 511, 1023])
def test_one_value_is_found_wherever_it_is(value, at):
    values = torch.linspace(-1, 1, 1024)
    assert Finiteness(values)
    values[at] = value
    assert not Finiteness(values)
    assert not Finiteness(values.reshape(4, 16, 16).transpose(0, 2))


def test_infinities_of_both_signs_are_found():
    assert not Finiteness(torch.tensor([torch.inf, -torch.inf, 1]))


def test_finite_values_whose_sum_is_not_are_finite():
    largest = float(np.finfo(np.float32).max)
    assert Finiteness(torch.full((8,), largest))
    assert Finiteness(torch.full((8,), -largest))
