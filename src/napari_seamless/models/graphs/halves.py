"""Networks saved in half precision, which run in float32 here: half loses digits on a CPU."""

from collections.abc import Iterable

import torch

HALF = (torch.float16, torch.bfloat16)


def is_half(tensors: Iterable[torch.Tensor]) -> bool:
    """Return whether all numbers with a fraction are of half precision, and there are any."""
    types = {each.dtype for each in tensors if each.is_floating_point()}
    return bool(types) and types <= set(HALF)
