"""From an exported program to a work graph: one flat graph in which parameters are read by `get_attr`.

    x, p_fc_weight: inputs              ->      fc_weight = fc.weight
    y = linear(x, p_fc_weight)                  y = linear(x, fc_weight)

1. Placeholders of parameters, buffers and constants become one `get_attr` per tensor; tied ones share the first name.
2. Inputs that are not tensors become the constants they were exported with.
3. `wrap_with_set_grad_enabled` and `wrap_with_autocast` are inlined; what was computed without gradients is detached.

Refuses other higher-order operations (control flow), autocast that is switched on, and constants that are no tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec

from anytimeify._torch import copy_node, is_higher_order
from anytimeify.capture.ownership import borrowed, own_copy
from anytimeify.capture.work_graph import WorkGraph, unsupported
from anytimeify.contract.pass_manager import rewrite
from anytimeify.errors import CaptureError
from anytimeify.ir import names
from anytimeify.ir.node_meta import value_of

__all__ = ["lower"]

aten = torch.ops.aten
_AUTOCAST_NOTE = "regions that switch autocast off were inlined: under autocast they run in its precision"
_KINDS = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}


@rewrite("lower")
def lower(exported: ExportedProgram, order: Sequence[str] = ()) -> WorkGraph:
    """`order`: the names of the backbone's state dict; without it the exporter's order is kept."""
    names = _names(exported)
    tensors, canonical = _borrow(exported, names, order)
    transient = {names[str(spec.target)] for spec in _tensor_specs(exported) if _is_transient(spec)}
    notes = _overlaps(exported, names, canonical)
    work = WorkGraph(fx.Graph(), tensors, transient, notes=notes, passes=["lower"])
    values: dict[fx.Node, Any] = {}
    specs = dict(zip(exported.graph.find_nodes(op="placeholder"), exported.graph_signature.input_specs, strict=True))
    position = 0
    for node, spec in specs.items():
        if spec.kind is not InputKind.USER_INPUT:
            continue
        if isinstance(spec.arg, ConstantArgument) or not isinstance(value_of(node), Tensor):
            values[node] = spec.arg.value if isinstance(spec.arg, ConstantArgument) else value_of(node)
            work.constant_inputs.append((position, values[node]))
        else:
            values[node] = copy_node(work.graph, node)
        position += 1
    readers: dict[str, fx.Node] = {}
    for node, spec in specs.items():
        if spec.kind is InputKind.USER_INPUT:
            continue
        if spec.kind not in _KINDS or spec.target is None:
            raise CaptureError(
                f"The model reads '{spec.target or node.name}', which is not a tensor ({spec.kind.name.lower()}). "
                "Make it a parameter, a buffer or a plain Python value."
            )
        name = canonical[names[spec.target]]
        if name not in readers:
            readers[name] = work.graph.get_attr(name)
            readers[name].meta["val"] = value_of(node)
        values[node] = readers[name]
    result = _inline(exported.graph_module, work, values, detach=False)
    work.graph.output(tuple(result))
    return work


def _tensor_specs(exported: ExportedProgram) -> list[InputSpec]:
    return [spec for spec in exported.graph_signature.input_specs if spec.kind in _KINDS and spec.target is not None]


def _is_transient(spec: InputSpec) -> bool:
    return spec.kind is InputKind.CONSTANT_TENSOR or (spec.kind is InputKind.BUFFER and spec.persistent is False)


def _names(exported: ExportedProgram) -> dict[str, str]:
    """Our names by the exporter's: those of the backbone, except for constants that are neither."""
    ours: dict[str, str] = {name: name for name in exported.state_dict}
    taken: set[str] = set()
    for spec in _tensor_specs(exported):
        assert spec.target is not None
        if spec.kind is not InputKind.CONSTANT_TENSOR:
            ours[spec.target] = spec.target
            continue
        name = base = names.CONSTANTS + names.node_name(spec.target)
        while name in taken:
            name += "_"
        assert base
        taken.add(name)
        ours[spec.target] = name
    return ours


def _borrow(
    exported: ExportedProgram, names: Mapping[str, str], order: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Our own tensors by name, and the canonical (first) name of every name. Tied tensors stay tied. Parameters and
    buffers are in the backbone's memory; constants, of which only the exporter knows, are copies."""
    constants = {spec.target for spec in _tensor_specs(exported) if spec.kind is InputKind.CONSTANT_TENSOR}
    originals: dict[str, Tensor] = {}
    for name, value in {**exported.constants, **exported.state_dict}.items():
        if isinstance(value, Tensor) and name in names:
            originals[name] = value
    ordered = [name for name in (*order, *exported.state_dict, *originals) if name in originals]
    tensors: dict[str, Tensor] = {}
    canonical: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name in dict.fromkeys(ordered):
        key = _identity(originals[name])
        ours = names[name]
        canonical[ours] = first.setdefault(key, ours)
        if canonical[ours] != ours:
            tensors[ours] = tensors[canonical[ours]]
        else:
            tensors[ours] = own_copy(originals[name]) if name in constants else borrowed(originals[name])
    return tensors, canonical


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    # A file loses which names were one object, not which share their memory.
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return (id(tensor),)
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _overlaps(exported: ExportedProgram, names: Mapping[str, str], canonical: Mapping[str, str]) -> list[str]:
    """Notes on tensors that are views of one memory and no ties: copies cannot stay that, they train apart."""
    spans: dict[int, list[tuple[int, int, str]]] = {}
    for theirs, tensor in {**exported.constants, **exported.state_dict}.items():
        name = names.get(theirs)
        if name is not None and canonical.get(name) == name and isinstance(tensor, Tensor):
            spans.setdefault(_storage(tensor), []).append((*_span(tensor), name))
    notes = []
    for shared in spans.values():
        for (_, end, one), (start, _, other) in pairwise(sorted(shared)):
            if start < end:
                notes.append(f"'{one}' and '{other}' are views of one memory: here they are apart, and train apart")
    return notes


def _storage(tensor: Tensor) -> int:
    apart = tensor.layout is not torch.strided or tensor.device.type == "meta"
    return id(tensor) if apart else tensor.untyped_storage().data_ptr()


def _span(tensor: Tensor) -> tuple[int, int]:
    """The bytes of its storage that a tensor lies between."""
    if tensor.numel() == 0 or tensor.layout is not torch.strided:
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(map(int, tensor.shape), tensor.stride(), strict=True))
    start = int(tensor.storage_offset())
    return start * tensor.element_size(), (start + last + 1) * tensor.element_size()


def _inline(module: torch.nn.Module, work: WorkGraph, values: dict[fx.Node, Any], *, detach: bool) -> list[Any]:
    """Copies the calls of `module.graph` into the work graph; returns what the graph's output holds."""

    def value(argument: Any) -> Any:
        return fx.map_arg(argument, lambda node: values[node])

    assert isinstance(module, fx.GraphModule)
    result: list[Any] = []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            result = list(_detached(value(node.args[0]), work) if detach else value(node.args[0]))
        elif node.op == "get_attr":
            values[node] = module.get_submodule(str(node.target))
        elif is_higher_order(node):
            values[node] = _inline_wrapper(node, work, values, value)
        elif node.target is operator.getitem and isinstance(values[node.args[0]], (list, tuple)):
            values[node] = values[node.args[0]][node.args[1]]
        else:
            values[node] = copy_node(work.graph, node, lambda inner: values[inner])
    return result


def _inline_wrapper(node: fx.Node, work: WorkGraph, values: dict[fx.Node, Any], value: Any) -> list[Any]:
    name = str(node.target)
    if name == "wrap_with_set_grad_enabled":
        detach, inner, operands = not node.args[0], node.args[1], node.args[2:]
    elif name == "wrap_with_autocast":
        device, dtype, enabled, _, inner, *operands = node.args  # type: ignore[assignment]
        if enabled:
            raise unsupported(
                node,
                f"switches autocast on inside the model (device {device}, dtype {dtype})",
                "Move autocast around the call of the model.",
            )
        if _AUTOCAST_NOTE not in work.notes:
            work.notes.append(_AUTOCAST_NOTE)
        detach = False
    else:
        raise unsupported(
            node,
            "is control flow or a subgraph call, which the canonical form cannot say",
            "Export the model without it, for instance with the branch that inference takes.",
        )
    assert isinstance(inner, fx.Node)
    body = values[inner]
    inside = dict(zip(body.graph.find_nodes(op="placeholder"), map(value, operands), strict=True))
    return _inline(body, work, inside, detach=detach)


def _detached(results: Any, work: WorkGraph) -> list[Any]:
    """What was computed under `torch.no_grad` gives no gradient once its wrapper is gone."""
    detached: list[Any] = []
    for result in results:
        if isinstance(result, fx.Node) and _floating(result) and result.op == "call_function":
            node = work.graph.call_function(aten.detach.default, (result,))
            node.meta = dict(result.meta)
            result = node
        detached.append(result)
    return detached


def _floating(node: fx.Node) -> bool:
    value = value_of(node)
    return isinstance(value, Tensor) and value.dtype.is_floating_point
