"""A network from a graph of torch.export, made of nothing but operations on tensors.

torch.export.load makes Python code of names and texts in the file and runs it, and imports what the
file names. So the graph is read here; its format is version 8 of torch/_export/serde/schema.yaml.
Only operations of ATen on tensors, arithmetic of sizes, and blocks that switch gradients or
autocast or choose a branch are known. Names of the file are looked up, and never become code.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from napari_seamless.models.graphs.export_files import DTYPES
from napari_seamless.models.graphs.export_values import (
    BLOCKS,
    PLAIN,
    RefusedError,
    changes_tensors,
    operation,
)
from napari_seamless.models.graphs.halves import HALF

Graph = Mapping[str, Any]
Constants = Mapping[str, torch.Tensor]

_POSITIONAL, _KEYWORD = 1, 2


class ExportedGraph(fx.GraphModule):
    """The operations of a file; `make_graph` makes it.

    Called with the input, it returns a tuple of outputs, or of a block what the block returns.
    """


def make_graph(program: Graph, tensors: Constants, *, widened: bool = False) -> ExportedGraph:
    """Return the network of a graph.

    Parameters
    ----------
    program : mapping
        "graph_module" of the file.
    tensors : mapping of str to Tensor
        Weights and constants by name; they are not copied.
    widened : bool
        Compute in float32 wherever the graph says float16 or bfloat16.

    Raises
    ------
    RefusedError
        If it asks for anything but operations on tensors.
    LookupError, TypeError, ValueError
        If it is damaged.
    """
    return _Builder(widened).network(program, tensors)


def operations_of(graph: Graph) -> Iterator[Graph]:
    """Yield the operations of a graph, those in its blocks included."""
    for node in graph["nodes"]:
        yield node
        for entry in node["inputs"]:
            if "as_graph" in entry["arg"]:
                yield from operations_of(entry["arg"]["as_graph"]["graph"])


def input_name(entry: Graph) -> str | None:
    """Return the name of a tensor that the caller gives, None for another kind of input."""
    given = entry.get("user_input")
    return given["arg"]["as_tensor"]["name"] if given and "as_tensor" in given["arg"] else None


class _Autocast(nn.Module):
    """A block in which operations run at another precision, on whatever device it is."""

    def __init__(self, block: nn.Module, dtype: torch.dtype | None, enabled: bool) -> None:
        super().__init__()
        self.block = block
        self.dtype = dtype
        self.enabled = enabled and dtype in (None, *HALF)

    def forward(self, *inputs: Any) -> Any:
        devices = (each.device.type for each in inputs if isinstance(each, torch.Tensor))
        with torch.autocast(next(devices, "cpu"), dtype=self.dtype, enabled=self.enabled):
            return self.block(*inputs)


class _Branch(nn.Module):
    """Two blocks, of which a condition chooses one."""

    def __init__(self, if_true: nn.Module, if_false: nn.Module) -> None:
        super().__init__()
        self.if_true = if_true
        self.if_false = if_false

    def forward(self, condition: Any, inputs: Any = ()) -> Any:
        return (self.if_true if bool(condition) else self.if_false)(*inputs)


class _Builder:
    """Makes one graph; a block within it is made by another builder.

    Names of the file are keys of `values` and nothing else: fx, which does make code, gets names
    that are chosen here.
    """

    def __init__(self, widened: bool) -> None:
        self.widened = widened
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, Any] = {}
        self.device: fx.Node | None = None

    def network(self, program: Graph, tensors: Constants) -> ExportedGraph:
        graph, signature = program["graph"], program["signature"]
        specs = list(zip(signature["input_specs"], graph["inputs"], strict=True))
        for spec, _ in specs:  # first: the device of all others is its
            if (name := input_name(spec)) is not None:
                self._add_input(name)
        changes = any(changes_tensors(node["target"]) for node in operations_of(graph))
        for spec, given in specs:
            self._add_constant(spec, given, tensors, changes)
        self._add_nodes(graph["nodes"])
        outputs = [
            self._value(entry["user_output"]["arg"])
            for entry in signature["output_specs"]
            if "user_output" in entry  # others are changes of buffers, which stay as they are
        ]
        self.graph.output(tuple(outputs))
        return ExportedGraph(self.root, self.graph)

    def block(self, graph: Graph) -> ExportedGraph:
        """Return a graph within the graph."""
        for given in graph["inputs"]:
            self._add_input(_name_in(given), "as_tensor" in given)
        self._add_nodes(graph["nodes"])
        outputs = tuple(self._value(each) for each in graph["outputs"])
        self.graph.output(outputs[0] if graph["is_single_tensor_return"] else outputs)
        return ExportedGraph(self.root, self.graph)

    def _add_input(self, name: str, is_tensor: bool = True) -> None:
        node = self.graph.placeholder(f"input_{len(self.values)}")
        self._set(name, node)
        if self.device is None and is_tensor:
            self.device = self.graph.call_function(_device_of, (node,))

    def _add_constant(self, spec: Graph, given: Graph, tensors: Constants, changes: bool) -> None:
        if input_name(spec) is not None:
            return
        (kind, entry), *_ = spec.items()
        if kind in ("user_input", "constant_input"):  # recorded with this value
            if name := _name_in(given):
                raise RefusedError(f"an input {name!r} that is no tensor")
            return
        if kind not in ("parameter", "buffer", "tensor_constant"):
            raise RefusedError(f"an input of kind {kind!r}")
        tensor = tensors[entry[f"{kind}_name"]]
        if self.widened and tensor.dtype in HALF:
            tensor = tensor.float()
        own = f"tensor_{len(self.values)}"
        self.root.register_buffer(own, tensor.detach())
        node = self.graph.get_attr(own)
        if changes and kind != "parameter":  # the network stays as it is, however often it is run
            node = self.graph.call_function(torch.ops.aten.clone.default, (node,))
        self._set(entry["arg"]["name"], node)

    def _add_nodes(self, nodes: list[Graph]) -> None:
        for node in nodes:
            name = node["target"]
            if name == "torch.ops.aten._assert_tensor_metadata.default":
                continue  # of the device and precision that it was recorded with
            if name.startswith(BLOCKS):
                made = self._add_block(name.rpartition(".")[2], node)
            else:
                made = self._add_call(operation(name), node)
            self._take_outputs(node, made)

    def _add_call(self, called: Callable[..., Any], node: Graph) -> fx.Node:
        given = {entry["name"]: entry for entry in node["inputs"]}
        if not isinstance(called, torch._ops.OpOverload):
            values = (self._value(entry["arg"]) for entry in node["inputs"])
            return self.graph.call_function(called, tuple(values))
        positional: list[Any] = []
        named: dict[str, Any] = {}
        is_in_order = True
        for argument in called._schema.arguments:
            entry = given.pop(argument.name, None)
            if entry is None:
                is_in_order = False
                continue
            value = self._value(entry["arg"])
            is_in_order = is_in_order and _is_positional(entry.get("kind"), argument)
            if is_in_order:
                positional.append(value)
            else:
                named[argument.name] = value
        if given:
            raise ValueError(f"{called} takes no {', '.join(map(repr, given))}")
        return self.graph.call_function(called, tuple(positional), named)

    def _add_block(self, name: str, node: Graph) -> fx.Node:
        arguments = [entry["arg"] for entry in node["inputs"]]
        blocks = [each for each in arguments if "as_graph" in each]
        made = [_Builder(self.widened).block(each["as_graph"]["graph"]) for each in blocks]
        rest = [self._value(each) for each in arguments if "as_graph" not in each]
        match name, made:
            case "wrap_with_set_grad_enabled", [block]:
                return self._call(block, rest[1:])
            case "wrap_with_autocast", [block]:
                _, dtype, enabled, _, *inputs = rest
                return self._call(_Autocast(block, dtype, enabled), inputs)
            case "cond", [if_true, if_false]:
                return self._call(_Branch(if_true, if_false), rest)
        raise RefusedError(BLOCKS + name)

    def _call(self, block: nn.Module, inputs: list[Any]) -> fx.Node:
        name = f"block_{sum(1 for _ in self.root.children())}"
        self.root.add_module(name, block)
        return self.graph.call_module(name, tuple(inputs))

    def _take_outputs(self, node: Graph, made: fx.Node) -> None:
        outputs = node["outputs"]
        is_block = node["target"].startswith(BLOCKS)
        in_tuple = is_block and node.get("is_hop_single_tensor_return") is False
        if len(outputs) == 1 and not in_tuple:
            self._take(outputs[0], made)
        else:
            for index, output in enumerate(outputs):
                self._take(output, self.graph.call_function(operator.getitem, (made, index)))

    def _take(self, output: Graph, made: fx.Node) -> None:
        ((kind, value),) = output.items()
        if isinstance(value, list):
            for index, each in enumerate(value):
                item = self.graph.call_function(operator.getitem, (made, index))
                self._set(each["name"] if "name" in each else _name_in({kind[:-1]: each}), item)
        elif name := _name_in(output):
            self._set(name, made)

    def _set(self, name: str, value: Any) -> None:
        if not name or name in self.values:
            raise ValueError(f"two values are called {name!r}, or one is called nothing")
        self.values[name] = value

    def _value(self, argument: Graph) -> Any:
        """Return an argument: a node of the graph, or a plain value."""
        ((kind, value),) = argument.items()
        if (name := _name_in(argument)) or kind == "as_tensor":
            return self.values[name]
        if kind in PLAIN:
            return PLAIN[kind](value)
        match kind:
            case "as_device":
                return self.device
            case "as_scalar_type":
                dtype = DTYPES[value]
                return torch.float32 if self.widened and dtype in HALF else dtype
            case "as_tensors":
                return [self.values[each["name"]] for each in value]
            case "as_nested_tensors":
                return [[self.values[each["name"]] for each in part] for part in value]
            case "as_optional_tensor":
                return self._value(value)
            case "as_optional_tensors":
                return [self._value(each) for each in value]
            case "as_sym_ints" | "as_sym_floats" | "as_sym_bools":
                return [self._value({kind[:-1]: each}) for each in value]
            case "as_sym_int" | "as_sym_float" | "as_sym_bool":
                return self._value(value)
        raise RefusedError(f"an argument of kind {kind!r}")


def _is_positional(kind: int | None, argument: torch.Argument) -> bool:
    if kind in (_POSITIONAL, _KEYWORD):
        return kind == _POSITIONAL
    return not argument.has_default_value() and not argument.kwarg_only


def _name_in(argument: Graph) -> str:
    """Return the name of the value that an argument or output stands for, "" if it has none."""
    ((kind, value),) = argument.items()
    if kind in ("as_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"):
        return str(value.get("name") or value.get("as_name") or "")
    return ""


def _device_of(tensor: torch.Tensor) -> torch.device:
    return tensor.device
