"""The call of the network: input values, device, mode, activation, and what can go wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import (
    ModelCallError,
    ModelError,
    PredictionError,
    SeamlessError,
    one_line,
)


class Predictor:
    """A network made ready for patches; its training modes are as found after every batch.

    Parameters
    ----------
    module : torch.nn.Module
        Takes (B, C, Z, Y, X) float32, returns (B, C', Z, Y, X) of the same B, Z, Y, X.
    config : InferenceConfig
        For `normalization`, `activation` and `do_eval`.
    device : torch.device
        Where it runs; the network is moved there and stays.
    """

    def __init__(self, module: nn.Module, config: InferenceConfig, device: torch.device) -> None:
        self._module = module
        self._config = config
        self._device = device
        self._channels = 0
        try:
            module.to(device)
        except RuntimeError as error:
            raise ModelError(
                f"the network cannot be moved to {device}: {_reason(error)}; choose another device"
            ) from error

    def __call__(self, patches: NDArray[Any]) -> torch.Tensor:
        """Return the activated prediction of a batch of patches.

        Parameters
        ----------
        patches : ndarray, shape (B, C, Z, Y, X)
            In the dtype of the volume.

        Returns
        -------
        Tensor of float32 on the CPU, shape (B, C', Z, Y, X)

        Raises
        ------
        ModelCallError
            If the network's very first call fails.
        ModelError
            If its output does not fit.
        PredictionError
            If a later call fails, or any call returns NaN or infinity.
        """
        try:
            with torch.inference_mode(), _modes(self._module, self._config.do_eval):
                prediction = self._predict(patches)
        except SeamlessError:
            raise
        except Exception as error:  # a network may raise anything, a GPU also later than its call
            raise self._failure(patches.shape, error) from error
        self._channels = prediction.shape[1]
        return prediction

    def _predict(self, patches: NDArray[Any]) -> torch.Tensor:
        values = torch.from_numpy(normalized(patches, self._config.normalization))
        output = self._module(values.to(self._device))
        self._check(output, patches.shape)
        prediction = activated(output.float(), self._config.activation)
        if not torch.isfinite(prediction).all():
            raise PredictionError(
                "the network returned NaN or infinity; check its weights, and that "
                f"normalization={self._config.normalization!r} is what it was trained with"
            )
        return prediction.cpu()

    def _failure(self, shape: tuple[int, ...], error: Exception) -> SeamlessError:
        remedy = "check the patch size and the number of channels it was trained with"
        if isinstance(error, torch.OutOfMemoryError):
            remedy = "use a smaller batch_size or patch_size"
        kind = PredictionError if self._channels else ModelCallError
        return kind(
            f"the network failed on a batch (B, C, Z, Y, X) of {shape}: {_reason(error)}; {remedy}"
        )

    def _check(self, output: object, shape: tuple[int, ...]) -> None:
        if not isinstance(output, torch.Tensor):
            raise ModelError(
                f"the network returned a {type(output).__name__}; "
                "it must return one tensor (B, C, Z, Y, X)"
            )
        if output.ndim != 5 or (output.shape[0], *output.shape[2:]) != (shape[0], *shape[2:]):
            raise ModelError(
                f"the network made {tuple(output.shape)} of {shape} (B, C, Z, Y, X); "
                "batch, Z, Y and X must stay the same: choose another patch size"
            )
        if output.shape[1] == 0:
            raise ModelError("the network returned no channel; it must return at least one")
        if self._channels not in (0, output.shape[1]):
            raise PredictionError(
                f"the network returned {output.shape[1]} channels after {self._channels} before; "
                "it must always return the same number"
            )


@contextmanager
def _modes(module: nn.Module, do_eval: bool) -> Iterator[None]:
    """Put a network in evaluation mode, with or without its dropout, and back.

    For each batch anew, because another run may use the same network in between.
    """
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        if not do_eval:
            for part, _ in before:
                part.training = "Dropout" in getattr(part, "original_name", type(part).__name__)
        yield
    finally:
        for part, training in before:
            part.training = training


def _reason(error: Exception) -> str:
    """Return what an error says; TorchScript puts the cause on its last line."""
    lines = str(error).strip().splitlines()
    return (
        lines[-1] if len(lines) > 1 and "TorchScript interpreter" in lines[0] else one_line(error)
    )


def normalized(voxels: NDArray[Any], normalization: str) -> NDArray[np.float32]:
    """Return voxels as the float32 values that the network gets.

    `dtype` divides unsigned integers by their type's largest value; other types stay as they are.
    """
    values = voxels.astype(np.float32)
    if normalization == "dtype" and voxels.dtype.kind == "u":
        values /= np.float32(np.iinfo(voxels.dtype).max)
    return values


def activated(output: torch.Tensor, activation: str) -> torch.Tensor:
    """Apply an activation to a network's output (B, C, Z, Y, X); softmax runs over C."""
    if activation == "softmax":
        return output.softmax(dim=1)
    if activation == "none":
        return output
    return {"sigmoid": torch.sigmoid, "tanh": torch.tanh}[activation](output)
