from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from engine.helpers import Fails, Identity, Recorded, config_of
from napari_seamless.engine.errors import (
    ModelCallError,
    ModelError,
    PredictionError,
    SeamlessError,
)
from napari_seamless.engine.outputs import Channels
from napari_seamless.engine.predictor import Predictor

CPU = torch.device("cpu")
PATCHES = np.random.default_rng(0).uniform(0.5, 2, (2, 3, 4, 5, 6)).astype(np.float32)


def predict(module: nn.Module, patches: np.ndarray = PATCHES, **settings) -> torch.Tensor:
    return Predictor(module, config_of((4, 5, 6), **settings), CPU)(patches)


class Returns(Recorded):
    """Returns what a function makes of its input."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def predict(self, x):
        return self.function(x)


# ------------------------------------------------------------------------------ values in and out


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("none", lambda v: v),
        ("sigmoid", lambda v: 1 / (1 + np.exp(-v))),
        ("tanh", np.tanh),
        ("softmax", lambda v: np.exp(v) / np.exp(v).sum(axis=1, keepdims=True)),
    ],
)
def test_activations(activation, function):
    values = np.random.default_rng(0).normal(0, 3, (2, 3, 1, 2, 2)).astype(np.float32)
    expected = function(values.astype(np.float64))
    predictor = Predictor(Identity(), config_of((1, 2, 2), activation=activation), CPU)
    np.testing.assert_allclose(predictor(values), expected, rtol=1e-5)


def test_the_network_gets_float32_batches_without_gradients():
    graded = []

    def look(x):
        graded.append((torch.is_grad_enabled(), x.requires_grad, x.dtype))
        return x

    network = Returns(look)
    prediction = predict(network)
    assert graded == [(False, False, torch.float32)]
    np.testing.assert_array_equal(network.inputs[0], PATCHES)
    assert prediction.shape == PATCHES.shape


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8]
)
def test_predictions_are_float32_on_the_cpu_whatever_the_network_returns(dtype):
    prediction = predict(Returns(lambda x: torch.full(x.shape, 3, dtype=dtype)))
    assert prediction.dtype == torch.float32
    assert prediction.device == CPU
    assert (prediction == 3).all()


def test_a_mask_of_truth_values_is_a_prediction_of_zeros_and_ones():
    prediction = predict(Returns(lambda x: x > 1))
    assert prediction.dtype == torch.float32
    np.testing.assert_array_equal(prediction, PATCHES > 1)


def test_what_a_prediction_is_made_of_is_known_after_the_first_batch():
    predictor = Predictor(
        Returns(lambda x: {"a": x[:, :2, 1:-1], "b": -x[:, :, 1:-1]}), config_of((4, 5, 6)), CPU
    )
    assert (predictor.core_size, predictor.channels) == ((4, 5, 6), None)
    prediction = predictor(PATCHES)
    assert predictor.core_size == (2, 5, 6)
    assert predictor.channels == Channels({"a": slice(0, 2), "b": slice(2, 5)}, "a", False)
    expected = np.concatenate([PATCHES[:, :2], -PATCHES], axis=1)[:, :, 1:-1]
    np.testing.assert_array_equal(prediction, expected)


def test_the_patches_that_were_handed_in_are_left_alone():
    patches = PATCHES.copy()
    np.testing.assert_array_equal(predict(Returns(lambda x: x.zero_()), patches), 0 * patches)
    np.testing.assert_array_equal(patches, PATCHES)


def test_more_or_fewer_channels_out_than_in_are_fine():
    assert predict(Returns(lambda x: x[:, :1])).shape == (2, 1, 4, 5, 6)
    assert predict(Returns(lambda x: torch.cat([x, x], 1))).shape == (2, 6, 4, 5, 6)


# ------------------------------------------------------------------------------ what can go wrong


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x[..., :-1], "(4, 5, 5) voxels of (4, 5, 6)"),
        (lambda x: x[:, :, 1:], "(3, 5, 6) voxels of (4, 5, 6)"),
        (lambda x: torch.cat([x, x]), "(4, 3, 4, 5, 6) of (2, 3, 4, 5, 6)"),
        (lambda x: x[:1], "(1, 3, 4, 5, 6) of (2, 3, 4, 5, 6)"),
        (lambda x: x[0], "(3, 4, 5, 6) of (2, 3, 4, 5, 6)"),
        (lambda x: x.mean(), "() of (2, 3, 4, 5, 6)"),
        (lambda x: (x, 3), "int"),
        (lambda x: [], "nothing"),
        (lambda x: {"out": [x]}, "list"),
        (lambda x: x[:, :0], "at least one channel"),
        (lambda x: x.numpy(force=True), "ndarray"),
        (lambda x: None, "nothing"),
    ],
)
def test_an_output_that_does_not_fit_is_a_model_error_in_one_line(function, said):
    with pytest.raises(ModelError) as caught:
        predict(Returns(function))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("function", [lambda x: x, lambda x: {"waves": x, "real": x.real}])
def test_complex_values_are_refused_with_their_dtype(dtype, function):
    with pytest.raises(ModelError) as caught:
        predict(Returns(lambda x: function(x.to(dtype))))
    assert str(caught.value) == (
        f"the network returned {dtype} values; they must be real (bool, integer or float): let it "
        "return their absolute value, or their real and imaginary parts as channels"
    )


@pytest.mark.parametrize(
    ("later", "settings", "said"),
    [
        (lambda x: x[..., 1:-1], {}, "a patch of (4, 5, 4) after (4, 5, 6) before"),
        (lambda x: x[:, :1], {}, "1 channels in head '0' after 3 channels in head '0' before"),
        (
            lambda x: {"other": x},
            {},
            "3 channels in head 'other' after 3 channels in head '0' before",
        ),
        # Only one of two ways through the patch changes.
        (
            lambda x: x[..., 1:-1] if x.shape[2:] == (4, 5) else x,
            {"planes": "zyx"},
            "a patch of (4, 3, 6) after (4, 5, 6) before",
        ),
    ],
)
def test_what_changes_after_the_first_batch_is_a_prediction_error(later, settings, said):
    network = Returns(lambda x: x)
    predictor = Predictor(network, config_of((4, 5, 6), **settings), CPU)
    predictor(PATCHES)
    network.function = later
    with pytest.raises(PredictionError) as caught:
        predictor(PATCHES)
    assert f"the network returned {said}" in str(caught.value)
    assert "must always return the same" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, KeyError])
def test_a_network_that_fails_on_a_longer_input_only_is_asked_for_its_output_scale(error):
    def small_only(x):
        if x.shape[-1] > 6:
            raise error("too large")
        return x[..., 2:-2]

    with pytest.raises(ModelError) as caught:
        predict(Returns(small_only))
    assert "set output_scale=(1, 1, '1/3') if that is its resolution" in str(caught.value)


def test_a_network_that_cannot_be_moved_to_the_device_is_refused_in_one_line():
    class Stays(Identity):
        def to(self, device):
            raise RuntimeError("no kernel\nfor this device")

    with pytest.raises(ModelError) as caught:
        predict(Stays())
    assert str(caught.value) == (
        "the network cannot be moved to cpu: no kernel; choose another device"
    )


@pytest.mark.parametrize(
    "error", [RuntimeError("size mismatch\n at layer 3"), ValueError("odd"), KeyError("head")]
)
def test_a_failing_first_call_is_a_model_error_and_a_later_one_a_prediction_error(error):
    network = Fails(2, error)
    predictor = Predictor(network, config_of((4, 5, 6)), CPU)
    predictor(PATCHES)
    with pytest.raises(PredictionError) as later:
        predictor(PATCHES)
    with pytest.raises(ModelError) as first:
        predict(Fails(1, error))
    for caught in (first, later):
        assert str(error).splitlines()[0] in str(caught.value)
        assert "(2, 3, 4, 5, 6)" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is error
    assert isinstance(later.value, RuntimeError)
    assert not isinstance(later.value, ModelError)
    assert isinstance(first.value, ValueError)


def test_too_little_memory_asks_for_smaller_patches():
    with pytest.raises(SeamlessError, match="use a smaller patch_size, or another device"):
        predict(Fails(1, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")))


def test_wrong_channel_count_names_the_channels():
    with pytest.raises(ModelError, match=r"\(2, 3, 4, 5, 6\).* number of channels"):
        predict(nn.Conv3d(1, 1, 1))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SystemExit(3), "(SystemExit: 3)"),
        (SystemExit(), "(SystemExit)"),
        (SystemExit("no licence\nsecond line"), "(SystemExit: no licence)"),
    ],
)
def test_a_network_that_ends_the_program_has_failed(error, said):
    predictor = Predictor(Fails(2, error), config_of((4, 5, 6)), CPU)
    predictor(PATCHES)
    with pytest.raises(PredictionError) as later:
        predictor(PATCHES)
    with pytest.raises(ModelCallError) as first:
        predict(Fails(1, error))
    for caught in (first, later):
        assert str(caught.value) == (
            f"the network ended the program {said} on a batch (B, C, Z, Y, X) of (2, 3, 4, 5, 6); "
            "let its code raise an error where it calls exit"
        )
        assert caught.value.__cause__ is error


def test_ctrl_c_in_the_network_is_not_turned_into_an_error_of_ours():
    with pytest.raises(KeyboardInterrupt):
        predict(Fails(1, KeyboardInterrupt()))


# ------------------------------------------------------------------------------ modes


class Modes(Recorded):
    """A network with dropout and batch norm that keeps the modes its parts had during calls."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(3)
        self.drop = nn.Dropout(0.5)
        self.drops = nn.Dropout3d(0.5)
        self.seen: list[tuple[bool, ...]] = []

    def predict(self, x):
        self.seen.append(
            (self.training, self.norm.training, self.drop.training, self.drops.training)
        )
        return self.drop(self.norm(x))


def test_evaluation_mode_is_the_default():
    network = Modes().train()
    one, other = predict(network), predict(network)
    assert network.seen == [(False, False, False, False)] * 2
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert (one > 0).all()


def test_without_do_eval_dropout_is_active_and_batch_norm_is_not():
    torch.manual_seed(0)
    network = Modes().eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    one, other = (predict(network, do_eval=False) for _ in range(2))
    assert network.seen == [(False, False, True, True)] * 2
    dropped = (one == 0).float().mean()
    assert 0.3 < dropped < 0.7
    assert not torch.equal(one, other)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name
    kept = one[one != 0] / 2  # dropout scales what it keeps
    expected = torch.from_numpy(PATCHES)[one != 0] / np.sqrt(1 + network.norm.eps)
    torch.testing.assert_close(kept, expected, rtol=1e-5, atol=0)  # running, not batch statistics


@pytest.mark.parametrize("do_eval", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_each_part_leaves_in_the_mode_it_came_in(do_eval, fails):
    network = Modes().train()
    network.norm.eval()  # frozen, as in fine-tuning
    network.drops.eval()
    before = [part.training for part in network.modules()]
    assert before == [True, False, True, False]
    patches = PATCHES[:, :2] if fails else PATCHES  # two channels where three are expected
    with pytest.raises(ModelError) if fails else nullcontext():
        predict(network, patches, do_eval=do_eval)
    assert [part.training for part in network.modules()] == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("do_eval", "active"), [(True, False), (False, True)])
def test_dropout_inside_torchscript_obeys_do_eval(do_eval, active):
    torch.manual_seed(0)
    scripted = torch.jit.script(nn.Sequential(nn.BatchNorm3d(3), nn.Dropout(0.5)).train())
    before = {name: value.clone() for name, value in scripted.state_dict().items()}
    prediction = predict(scripted, do_eval=do_eval)
    assert bool((prediction == 0).any()) == active
    assert scripted.training
    assert [part.training for part in scripted.modules()] == [True, True, True]
    for name, value in scripted.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_of_a_torchscript_failure_the_cause_is_named():
    scripted = torch.jit.script(nn.Sequential(nn.Conv3d(1, 1, 1)))
    with pytest.raises(ModelError, match=r"expected input.* to have 1 channels, but got 3"):
        predict(scripted)
