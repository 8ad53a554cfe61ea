"""torch.export: a file (.pt2) that carries its own network as a graph of operations."""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import nn

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.archive import Files, open_files
from napari_seamless.models.graphs.export_files import DTYPES, MARKERS, graph_of, tensors_of
from napari_seamless.models.graphs.export_graph import input_name, make_graph, operations_of
from napari_seamless.models.graphs.export_sizes import SizeRules
from napari_seamless.models.graphs.export_values import RefusedError
from napari_seamless.models.graphs.fixed import FixedInput, settings_of
from napari_seamless.models.graphs.halves import is_half
from napari_seamless.models.opened import Opened, Wanted
from napari_seamless.models.sniff import damaged

_SCHEMA = 8
"""Version of the format, unchanged since torch 2.5."""

_SWITCHES = ("train", "training")


class ExportedNetwork(nn.Module):
    """The network of a file of torch.export.

    Parameters
    ----------
    graph : torch.nn.Module
        Returns a tuple of outputs.
    rules : SizeRules
        Which inputs it was made for.
    structure : object
        How the outputs are put together, as JSON.
    dtype : torch.dtype
        Of the input.
    """

    def __init__(
        self, graph: nn.Module, rules: SizeRules, structure: Any, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.graph = graph
        self._rules = rules
        self._structure = structure
        self._dtype = dtype

    def forward(self, batch: torch.Tensor) -> Any:
        """Return what the network makes of a batch (B, C, Z, Y, X) or (B, C, Y, X).

        Raises
        ------
        ModelError
            If the batch is not of a size that the network was exported for.
        """
        problem = self._rules.problem(tuple(batch.shape))
        if problem:
            raise ModelError(
                f"the network was exported for inputs with {problem}, not {tuple(batch.shape)}; "
                "choose another patch_size, halo or batch_size"
            )
        return _put_together(self._structure, iter(self.graph(batch.to(self._dtype))))


def open_checkpoint(wanted: Wanted) -> Opened:
    """Open what torch.export.save wrote, without running anything that is in it.

    Raises
    ------
    ModelError
        If it is damaged, asks for anything but operations on tensors, or takes more than one input.
    """
    path = wanted.path
    try:
        with open_files(path, MARKERS) as files:
            return _opened(files)
    except ModelError:
        raise
    except RefusedError as error:
        raise ModelError(
            f"{path} asks for {error}, which is none of torch's operations on tensors, so nothing "
            "was run: export a network without it, or save a state dict"
        ) from error
    except Exception as error:  # a damaged or forged file leads into any of them
        raise ModelError(damaged(path, error)) from error


def _opened(files: Files) -> Opened:
    program = graph_of(files)
    version = program["schema_version"]["major"]
    if version != _SCHEMA:
        raise ModelError(
            f"{files.path} has version {version} of torch.export's format, not {_SCHEMA}; export "
            "the network again with another version of torch"
        )
    tensors = tensors_of(files)
    whole = program["graph_module"]
    meta = _input_meta(whole, files)
    widened = is_half(tensors.values())
    dtype = torch.float32 if widened else DTYPES[meta["dtype"]]
    if not dtype.is_floating_point:
        raise ModelError(
            f"{files.path} takes {_name(dtype)} and no numbers with a fraction, as images are "
            "given here; export it for float32"
        )
    rules = _rules(program, meta)
    network = ExportedNetwork(
        make_graph(whole, tensors, widened=widened), rules, _structure(whole), dtype
    )
    return Opened(
        "torch.export",
        FixedInput(network, rules.shape),
        tensors,
        architecture=_class_name(whole),
        input_shape=rules.shape,
        settings=settings_of(rules.shape),
        details={"torch": str(program.get("torch_version", "unknown"))},
        notes=tuple(_notes(whole, rules, widened)),
    )


def _input_meta(whole: Mapping[str, Any], files: Files) -> Mapping[str, Any]:
    """Return type and size of the one input."""
    names = [input_name(spec) for spec in whole["signature"]["input_specs"]]
    given = [name for name in names if name is not None]
    if len(given) != 1:
        raise ModelError(
            f"{files.path} takes {len(given)} tensors, not one; export a network that takes one "
            "batch of images"
        )
    meta: Mapping[str, Any] = whole["graph"]["tensor_values"][given[0]]
    return meta


def _rules(program: Mapping[str, Any], meta: Mapping[str, Any]) -> SizeRules:
    sizes = [
        size["as_int"] if "as_int" in size else size["as_expr"]["expr_str"]
        for size in meta["sizes"]
    ]
    ranges = {
        name: (each["min_val"], each["max_val"])
        for name, each in program["range_constraints"].items()
    }
    return SizeRules(sizes, ranges, program.get("guards_code") or ())


def _structure(whole: Mapping[str, Any]) -> Any:
    """Return how the outputs are put together: tuples, lists and dicts, as JSON."""
    top = next(entry for entry in whole["module_call_graph"] if not entry["fqn"])
    structure = json.loads(top["signature"]["out_spec"])[1]
    count = sum("user_output" in each for each in whole["signature"]["output_specs"])
    _put_together(structure, iter(range(count)))  # whether there are as many outputs
    return structure


def _put_together(structure: Mapping[str, Any], outputs: Iterator[Any]) -> Any:
    kind = structure["type"]
    if kind is None:
        return next(outputs)
    parts = [_put_together(each, outputs) for each in structure["children_spec"]]
    names = json.loads(structure["context"]) if str(kind).endswith("ict") else None
    if isinstance(names, dict):  # of a defaultdict
        names = names.get("dict_context")
    if isinstance(names, list) and len(names) == len(parts):
        return {str(name): part for name, part in zip(names, parts, strict=True)}
    return parts


def _class_name(whole: Mapping[str, Any]) -> str:
    """Return the name of the class that was exported, as far as the file tells."""
    for node in islice(operations_of(whole["graph"]), 100):
        stack = str(node["metadata"].get("nn_module_stack", ""))  # "L__self__,,module.Class;..."
        outermost = re.match(r"L__self__,,([\w.]+)", stack)
        if outermost:
            return outermost[1].rpartition(".")[2]
    return "graph"


def _notes(whole: Mapping[str, Any], rules: SizeRules, widened: bool) -> Iterator[str]:
    if widened:
        yield "its weights are of half precision; it computes in float32"
    if any(_is_training(node) for node in operations_of(whole["graph"])):
        yield (
            "it was exported in training mode: its dropout and batch normalisation act as in "
            "training; export it in evaluation mode (network.eval())"
        )
    if rules.unread:
        count = len(rules.unread)
        yield f"{count} of its conditions on the input's size are too involved to be checked"


def _is_training(node: Mapping[str, Any]) -> bool:
    if node["target"].endswith(".no_stats"):  # normalisation of an instance
        return False
    return any(
        entry["name"] in _SWITCHES and entry["arg"].get("as_bool") is True
        for entry in node["inputs"]
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
