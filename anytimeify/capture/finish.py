"""From a work graph to a `Program`: metadata of the canonical form, names made from module paths, nodes in order.

    linear_3 = linear(x, w)     ->      layer1_fc = linear(x, layer1_fc_weight)  # [s0, 8]

Names: a node is called after its module when it is the only operation of a module without modules inside
(`layer1_0_conv1`), otherwise after its module and operation (`layer1_0_add`); inputs keep their names, tensors are
called after theirs. The same backbone gets the same names every time.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from anytimeify._torch import OpOverload, expression, new_node
from anytimeify.capture.custom_derivatives import part_of
from anytimeify.capture.work_graph import WorkGraph
from anytimeify.contract.pass_manager import rewrite
from anytimeify.ir import Origin, Program, Size, TensorType, names
from anytimeify.ir.node_meta import origin_of, type_of, value_of
from anytimeify.ir.size_expressions import monomial

__all__ = ["batch_symbols", "finish", "recorded_type", "size_of"]

Renaming = Mapping[sympy.Symbol, sympy.Symbol]


@rewrite("finish")
def finish(work: WorkGraph, renaming: Renaming) -> Program:
    """`renaming` sends symbols that mean the same size (the batch of a second input) to one of them."""
    nodes = list(work.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    order = {name: position for position, name in enumerate(work.tensors)}
    readers = sorted((node for node in nodes if node.op == "get_attr"), key=lambda node: order[str(node.target)])
    calls = [node for node in nodes if node.op == "call_function"]
    origins = {node: origin_of(node) for node in calls}
    called = _names(inputs, readers, calls, origins)
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in [*inputs, *readers, *calls]:
        new = new_node(
            graph,
            node.op,
            called[node] if node.op == "placeholder" else node.target,
            fx.map_arg(node.args, lambda inner: values[inner]),
            fx.map_arg(node.kwargs, lambda inner: values[inner]),
            name=called[node],
        )
        new.meta["origin"] = origins.get(node) or Origin(names.layer(str(node.target)) if node.op == "get_attr" else "")
        new.meta["type"] = (
            recorded_type(work.tensors[str(node.target)], {})
            if node.op == "get_attr"
            else recorded_type(value_of(node), renaming)
        )
        if (part := part_of(node)) is not None:
            new.meta["checkpoint"] = part
        if new.target is torch.ops.aten.lstm.input:
            new.meta["type"] = _lstm_types(new)
        values[node] = new
    results = work.graph.output_node().args[0]
    assert isinstance(results, tuple)
    graph.output(tuple(values[node] for node in results if isinstance(node, fx.Node)))
    return Program(graph, work.tensors, frozenset(work.transient))


def _lstm_types(node: fx.Node) -> Any:
    """The last states have the type of the first ones; torch 2.11 records them with a dimension too many."""
    result, *last = type_of(node)
    first: Any = node.args[1]
    kinds = [type_of(state) for state in first]
    return (result, *(kind if kind.dtype == one.dtype else one for kind, one in zip(kinds, last, strict=True)))


def batch_symbols(work: WorkGraph, sizes: Iterable[int | None]) -> tuple[str | None, Renaming]:
    """The symbol of the batch, and the renaming of the other inputs' batch to it.

    `sizes` holds, per input, the first size of its example when that dimension was exported as dynamic, else None.
    """
    leading: dict[int, sympy.Symbol] = {}
    batch: sympy.Symbol | None = None
    renaming: dict[sympy.Symbol, sympy.Symbol] = {}
    for node, size in zip(work.graph.find_nodes(op="placeholder"), sizes, strict=True):
        value = value_of(node)
        if size is None or not isinstance(value, Tensor) or value.dim() == 0:
            continue
        symbol = expression(value.shape[0])
        if not isinstance(symbol, sympy.Symbol):
            continue
        batch = batch if batch is not None else symbol
        if leading.setdefault(size, symbol) != symbol:
            renaming[symbol] = leading[size]
    return (str(batch) if batch is not None else None), renaming


def recorded_type(value: Any, renaming: Renaming) -> Any:
    """`meta["type"]` of what the exporter recorded as `meta["val"]`; None for what is neither tensor nor size."""
    if isinstance(value, Tensor):
        return TensorType(tuple(size_of(size, renaming) for size in value.shape), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(recorded_type(part, renaming) for part in value)
    if isinstance(value, torch.SymInt) or (isinstance(value, int) and not isinstance(value, bool)):
        return size_of(value, renaming)
    return None


def size_of(size: int | torch.SymInt, renaming: Renaming) -> Size:
    """A size as the exporter wrote it, its symbols renamed."""
    if isinstance(size, int):
        return Size(size)
    return monomial(expression(size).xreplace(dict(renaming)))


def _names(
    inputs: list[fx.Node], readers: list[fx.Node], calls: list[fx.Node], origins: Mapping[fx.Node, Origin]
) -> dict[fx.Node, str]:
    names: dict[fx.Node, str] = {}
    taken: set[str] = set()

    def allocate(node: fx.Node, wanted: str) -> None:
        name, count = wanted, 0
        while name in taken:
            count += 1
            name = f"{wanted}_{count}"
        taken.add(name)
        names[node] = name

    for node in inputs:
        allocate(node, _identifier(str(node.target)))
    for node in readers:
        allocate(node, _identifier(str(node.target)))
    population = Counter(origins[node].module_path for node in calls)
    parents = {path[:position] for path in population for position, letter in enumerate(path) if letter == "."}
    repeated: list[tuple[fx.Node, str]] = []
    wishes = Counter[str]()
    for node in calls:
        path, operation = origins[node].module_path, _operation(node)
        alone = path and path not in parents and (population[path] == 1 or path.rpartition(".")[2] == operation)
        wanted = _identifier(path if alone else f"{path}_{operation}")
        wishes[wanted] += 1
        # A number at the end counts repetitions; whoever has a number of its own (`layer1_1`) is named first.
        if wishes[wanted] == 1 and wanted not in taken:
            allocate(node, wanted)
        else:
            repeated.append((node, wanted))
    for node, wanted in repeated:
        allocate(node, wanted)
    return names


def _operation(node: fx.Node) -> str:
    if isinstance(node.target, OpOverload):
        return str(node.target.overloadpacket.__name__).strip("_")
    return str(getattr(node.target, "__name__", node.target))


# Names that generated code cannot use, or that `fx` itself would change.
_RESERVED = frozenset(dir(builtins)) | {"NoneType", "device", "fx_pytree", "inf", "nan", "pytree", "self", "torch"}


def _identifier(text: str) -> str:
    name = re.sub(r"\W", "_", text).strip("_") or "value"
    if name[0].isdigit():
        name = f"m{name}"
    return f"{name}_op" if keyword.iskeyword(name) or name in _RESERVED else name
