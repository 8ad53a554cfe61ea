"""The network as this machine computes it best: layout, graph, precision, threads."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ModelError
from napari_seamless.engine.failed_call import reason_of
from napari_seamless.engine.memory import reused_memory

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""With the channels last, by number of axes."""


class PreparedNetwork:
    """Calls a network as the settings say; the numbers stay the same but for rounding.

    Parameters
    ----------
    module : torch.nn.Module
        The network; only the order of its weights in memory is changed.
    config : InferenceConfig
        For `precision`, `tf32`, `channels_last`, `graph` and `threads`.
    device : torch.device
        Where it runs.
    """

    def __init__(self, module: nn.Module, config: InferenceConfig, device: torch.device) -> None:
        self._module = module
        self._config = config
        self._device = device
        self._graph: Callable[[torch.Tensor], object] | None = None
        for weights in module.parameters():
            weights.data = self._laid_out(weights.data)

    def __call__(self, given: torch.Tensor) -> object:
        """Return what the network returns.

        Raises
        ------
        ModelError
            If no graph can be made of it.
        """
        given = self._laid_out(given)
        with self._settings(), reused_memory():
            if self._graph is None:
                self._graph = self._made(given)
            return self._graph(given)

    def _laid_out(self, values: torch.Tensor) -> torch.Tensor:
        layout = _LAYOUTS.get(values.ndim) if self._config.channels_last else None
        return values.contiguous(memory_format=layout or torch.contiguous_format)

    def _made(self, given: torch.Tensor) -> Callable[[torch.Tensor], object]:
        if self._config.graph == "eager":
            return self._module
        try:
            if self._config.graph == "compiled":
                compiled: Callable[[torch.Tensor], object] = torch.compile(self._module)
                compiled(given)  # raises here what cannot be compiled
                return compiled
            return _frozen(self._module, given)
        except Exception as error:  # a network may raise anything
            raise ModelError(
                f"graph {self._config.graph!r} cannot be made of this network: {reason_of(error)}; "
                "use graph='eager'"
            ) from error

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """Set what torch has for the whole process, and put it back."""
        config = self._config
        half: AbstractContextManager[object] = nullcontext()
        if config.precision != "float32":
            half = torch.autocast(self._device.type, getattr(torch, config.precision))
        with _rounding(config.tf32, self._device), _threads(config.threads), half:
            yield


def _frozen(module: nn.Module, given: torch.Tensor) -> Callable[[torch.Tensor], object]:
    """Return a network recorded by TorchScript, with fixed weights and joined operations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sizes become constants: they stay the same
        recorded: Any = module
        if not isinstance(module, torch.jit.ScriptModule):
            recorded = torch.jit.trace(module, given, strict=False)
        frozen: Callable[[torch.Tensor], object] = torch.jit.optimize_for_inference(recorded)
        return frozen


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _rounding(tf32: bool, device: torch.device) -> Iterator[None]:
    """Let convolutions and products of matrices on a GPU round to TensorFloat-32, or not."""
    if device.type != "cuda":
        yield
        return
    parts: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [part.allow_tf32 for part in parts]
    for part in parts:
        part.allow_tf32 = tf32
    try:
        yield
    finally:
        for part, allowed in zip(parts, before, strict=True):
            part.allow_tf32 = allowed
