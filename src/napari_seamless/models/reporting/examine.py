"""What can be said of a network without running it."""

import re
from collections import Counter
from collections.abc import Iterator, Set
from typing import Any

import torch
from torch import nn

from napari_seamless.models.opened import Opened
from napari_seamless.models.tensors.weights import StateDict

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_FROM_TRAINING = ("weight", "bias", "running_mean", "running_var")
_WITH_STATISTICS = re.compile(r"_?(Sync|Lazy)?(Instance|Batch)Norm(\dd)?(NVFuser)?")
_QUERIES = {"in_proj", "q", "q_proj", "qkv", "query", "query_conv", "theta", "to_q", "to_qkv"}
"""What networks call the projections of attention, which the gates of attention U-Nets lack."""
_ALWAYS = {
    "_scaled_dot_product_flash_attention_for_cpu": "Attention",
    "_native_multi_head_attention": "Attention",
    "_native_batch_norm_legit.no_stats": "InstanceNorm",
    "adaptive_avg_pool2d": "AdaptiveAvgPool",
    "adaptive_avg_pool3d": "AdaptiveAvgPool",
    "adaptive_max_pool2d": "AdaptiveMaxPool",
    "adaptive_max_pool3d": "AdaptiveMaxPool",
    "group_norm": "GroupNorm",
    "native_group_norm": "GroupNorm",
    "scaled_dot_product_attention": "Attention",
}
"""Operations of a graph that look at the whole patch, and what such layers are called."""
_IF_SIXTH_IS_TRUE = {"batch_norm": "BatchNorm", "instance_norm": "InstanceNorm"}
"""Operations that do so if told to use the input's own statistics."""


def examined(opened: Opened) -> dict[str, Any]:
    """Return the fields of a `ModelReport` that come from what was found in the file."""
    facts = {
        name: value for name, value in vars(opened).items() if name not in ("module", "tensors")
    }
    tensors = dict(opened.tensors)
    learnt: set[str] = set()
    if opened.module is not None:
        learnt |= {name for name, _ in opened.module.named_parameters()}
        tensors = (tensors or named_tensors(opened.module)) | frozen_tensors(opened.module)
    return facts | {
        "parameters": parameter_count(tensors),
        "tensors": len(opened.tensors),
        "non_finite": non_finite(tensors, learnt),
        "infinite": infinite(tensors, learnt),
        "never_updated": never_updated(tensors),
        "patch_dependent": opened.patch_dependent or _patch_dependent(opened.module),
        "is_built": opened.module is not None,
    }


def parameter_count(tensors: StateDict) -> int:
    """Return how many numbers were learnt, running statistics of normalisation not counted."""
    return sum(
        tensor.numel()
        for name, tensor in tensors.items()
        if name.rpartition(".")[2] not in _BUFFERS
    )


def non_finite(tensors: StateDict, learnt: Set[str] = frozenset()) -> tuple[str, ...]:
    """Return the names of tensors whose values spoil a prediction.

    That is NaN anywhere, and infinity in what was learnt or counted in training. Masks, which are
    buffers or constants, may hold infinity.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Of a checkpoint.
    learnt : set of str
        Which are parameters; weights, biases and running statistics are known by their names.
    """
    return tuple(
        name
        for name, tensor in _fractions(tensors)
        if bool(torch.isnan(tensor).any())
        or (_is_learnt(name, learnt) and bool(torch.isinf(tensor).any()))
    )


def infinite(tensors: StateDict, learnt: Set[str] = frozenset()) -> tuple[str, ...]:
    """Return the names of the other tensors with infinity in them; see `non_finite`."""
    return tuple(
        name
        for name, tensor in _fractions(tensors)
        if not _is_learnt(name, learnt)
        and bool(torch.isinf(tensor).any())
        and not bool(torch.isnan(tensor).any())
    )


def never_updated(tensors: StateDict) -> tuple[str, ...]:
    """Return the layers whose running statistics are as they were before any training.

    That is a mean of 0 and a variance of 1 everywhere, exactly. A count of 0 batches alone does not
    say so: statistics that were taken over from another framework have it, too.
    """
    layers = []
    for name, mean in tensors.items():
        layer, _, last = name.rpartition(".")
        variance = tensors.get(f"{name.removesuffix('mean')}var")
        if last != "running_mean" or variance is None:
            continue
        if bool((mean == 0).all()) and bool((variance == 1).all()):
            layers.append(layer or "the network")
    return tuple(layers)


def patch_dependent(module: nn.Module) -> tuple[str, ...]:
    """Return the kinds of layers whose output at a voxel depends on the whole patch.

    Normalisation with statistics of the patch, attention, and pooling of the whole patch; looked
    for among the modules, and in the graphs of TorchScript and torch.export. What a module's own
    code does with functions is not seen.

    Returns
    -------
    tuple of str
        With their number: "InstanceNorm3d (12)".
    """
    kinds = Counter(_kind(part) for part in module.modules() if _looks_at_patch(part))
    for kind, count in Counter(_kinds_in_graphs(module)).items():
        if not any(kind in known for known in kinds):  # else they are these modules' own
            kinds[kind] = count
    return tuple(f"{kind} ({count})" for kind, count in kinds.items())


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors that a network holds by name."""
    own = module.state_dict() or dict(module.named_parameters())
    return {name: value for name, value in own.items() if isinstance(value, torch.Tensor)}


def frozen_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights that are constants in a graph of TorchScript, by their number there."""
    tensors = {}
    for graph in _script_graphs(module):  # nodes live only as long as their graph
        for node in graph.findAllNodes("prim::Constant"):
            if node.hasAttribute("value") and node.kindOf("value") == "t":
                tensors[f"constant {node.output().debugName()}"] = node.t("value")
    return {name: tensor for name, tensor in tensors.items() if tensor.ndim > 0}


def names_of(part: nn.Module) -> set[str]:
    """Return the names of a module's class and its bases; of a scripted module, what it was."""
    original = getattr(part, "original_name", None)
    return {str(original)} if original else {base.__name__ for base in type(part).__mro__}


def first_convolution(module: nn.Module) -> tuple[int, int] | None:
    """Return spatial axes and input channels of the first convolution, as far as can be seen."""
    for part in module.modules():
        if names_of(part) & {"Conv2d", "Conv3d"} and isinstance(part.weight, torch.Tensor):
            groups = getattr(part, "groups", 1)  # TorchScript does not tell
            return part.weight.ndim - 2, part.weight.shape[1] * groups
    weights = [each for name, each in named_tensors(module).items() if name.endswith("weight")]
    for graph in _script_graphs(module):
        for kind in ("aten::conv2d", "aten::conv3d", "aten::_convolution"):
            nodes = (list(node.inputs())[1].node() for node in graph.findAllNodes(kind))
            weights += [node.t("value") for node in nodes if node.kind() == "prim::Constant"]
    shapes = [each.shape for each in weights if each.ndim in (4, 5)]
    return (len(shapes[0]) - 2, shapes[0][1]) if shapes else None


def _fractions(tensors: StateDict) -> Iterator[tuple[str, torch.Tensor]]:
    return (
        (name, _distinct(tensor)) for name, tensor in tensors.items() if tensor.is_floating_point()
    )


def _distinct(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor without its repetitions: an expanded one may seem larger than any memory."""
    if tensor.layout is not torch.strided:
        return tensor
    return tensor[tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())]


def _is_learnt(name: str, learnt: Set[str]) -> bool:
    return name in learnt or name.rpartition(".")[2] in _FROM_TRAINING


def _patch_dependent(module: nn.Module | None) -> tuple[str, ...]:
    return () if module is None else patch_dependent(module)


def _kind(part: nn.Module) -> str:
    return str(getattr(part, "original_name", None) or type(part).__name__)


def _looks_at_patch(part: nn.Module) -> bool:
    names = names_of(part)
    if any(_WITH_STATISTICS.fullmatch(name) for name in names):
        return getattr(part, "running_mean", None) is None
    if "LayerNorm" in names:  # over channels only, as in transformers, it is local
        return len(getattr(part, "normalized_shape", ())) > 1
    is_pool = any(re.fullmatch(r"_?Adaptive\w*Pool\w*", name) for name in names)
    return is_pool or "GroupNorm" in names or _is_attention(part, names)


def _is_attention(part: nn.Module, names: set[str]) -> bool:
    """Whether a module attends by itself: not a block that holds such a module, nor a gate."""
    if "MultiheadAttention" in names:
        return True
    children = dict(part.named_children())
    is_named = any("Attention" in name or name == "SABlock" for name in names)
    projects = any("Linear" in names_of(child) for child in children.values())
    return is_named and (projects or bool(_QUERIES & children.keys()))


def _kinds_in_graphs(module: nn.Module) -> Iterator[str]:
    for graph in _script_graphs(module):
        for operation, kind in (_ALWAYS | _IF_SIXTH_IS_TRUE).items():
            for node in graph.findAllNodes(f"aten::{operation}"):
                if operation in _ALWAYS or list(node.inputs())[5].toIValue() is True:
                    yield kind
    for part in module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for exported in part.graph.nodes:
                full = str(exported.target).removeprefix("aten.")  # "instance_norm.default"
                name = full.partition(".")[0]
                if full in _ALWAYS or name in _ALWAYS:
                    yield _ALWAYS.get(full) or _ALWAYS[name]
                elif name in _IF_SIXTH_IS_TRUE and exported.args[5] is True:
                    yield _IF_SIXTH_IS_TRUE[name]


def _script_graphs(module: nn.Module) -> Iterator[Any]:
    """Yield the graph of each scripted or traced module that is in no other one."""
    inner: set[int] = set()
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule) and id(part) not in inner:
            inner |= {id(each) for each in part.modules()}
            yield part.inlined_graph
