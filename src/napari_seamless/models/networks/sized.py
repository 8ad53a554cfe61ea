"""Networks that a file describes, built only as large as the tensors that it has for them.

A few words in a file can ask for a network that takes hours and all memory to build. So it is built
without numbers first, on torch's "meta" device, and compared with the tensors.
"""

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.tensors.state_dicts import StateDict
from napari_seamless.models.tensors.weights import fit

_PARTS_PER_TENSOR, _MOST_PARTS = 40, 2_000
"""Layers and parameters that a network may register for each tensor of the file, and beside them:
activations and containers have none."""

_NUMBERS_PER_NUMBER, _MOST_NUMBERS = 4, 2**24
"""Likewise numbers, where a network cannot be built without them."""

_READABLE = 10_000
"""Longest sequence whose numbers a network may look at while it is built."""


class _TooMuchError(BaseException):
    """A network asks for too much. No code in between may take it for an error of its own."""


def built(make: Callable[[], nn.Module], tensors: StateDict) -> nn.Module:
    """Return a network if all tensors fit it; else the same network without any numbers.

    Parameters
    ----------
    make : callable
        Builds the network; called twice. It must be known to do nothing else.
    tensors : mapping of str to Tensor
        Of the file.

    Returns
    -------
    torch.nn.Module
        On the CPU; or on the device "meta", just to say what does not fit.

    Raises
    ------
    ModelError
        If it is out of all proportion to the tensors, or `make` raises one.
    """
    with _few_parts(_PARTS_PER_TENSOR * len(tensors) + _MOST_PARTS):
        try:
            with torch.device("meta"), _Readable(), warnings.catch_warnings(action="ignore"):
                empty = make()
        except ModelError:
            # Either the arguments are wrong, which building it says again, or it looks at numbers.
            numbers = sum(each.numel() for each in tensors.values())
            with _FewNumbers(_NUMBERS_PER_NUMBER * numbers + _MOST_NUMBERS):
                return make()
    return make() if fit(empty, tensors).is_whole else empty


class _Readable(TorchFunctionMode):
    """Give short sequences numbers, where nothing else has any: rates of dropping are read back."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            steps = kwargs.get("steps", args[2] if len(args) > 2 else None)
            if isinstance(steps, int) and steps <= _READABLE:
                kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


class _FewNumbers(TorchDispatchMode):
    """Let no more numbers be made than the file could fill."""

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._most = self._left = most

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if args and isinstance(args[0], list | tuple) and all(type(n) is int for n in args[0]):
            self._left -= prod(args[0])  # the size of a new tensor
            if self._left < 0:
                raise _TooMuchError(f"more than {self._most:,} numbers")
        return func(*args, **(kwargs or {}))

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        if isinstance(error, _TooMuchError):
            raise _too_much(error) from None


@contextmanager
def _few_parts(most: int) -> Iterator[None]:
    """Let no more layers and parameters be registered, in this thread."""
    left, here = most, threading.get_ident()

    def count(*_: Any) -> None:
        nonlocal left
        if threading.get_ident() != here:
            return
        left -= 1
        if left < 0:
            raise _TooMuchError(f"more than {most:,} layers and parameters")

    hooks = [
        register_module_module_registration_hook(count),
        register_module_parameter_registration_hook(count),
    ]
    try:
        yield
    except _TooMuchError as error:
        raise _too_much(error) from None
    finally:
        for hook in hooks:
            hook.remove()


def _too_much(error: BaseException) -> ModelError:
    return ModelError(
        f"the network asks for {error}, out of all proportion to the tensors in the file; give "
        "the architecture and arguments that it was trained with"
    )
