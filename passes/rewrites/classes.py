"""Where the classes of a prediction are made: the axis that enumerates them, and the operations that have it.

Whatever makes other heads (coarser ones beside the backbone's, or a new one in its place) starts from here.
"""

from __future__ import annotations

from torch import fx

from anytimeify.analysis.axes import Axes
from anytimeify.errors import SchemeError
from anytimeify.graph.traversal import ancestors
from anytimeify.ir import Program, TensorType
from anytimeify.ir.node_meta import origin_of, type_of
from anytimeify.ir.schema import bound
from anytimeify.rules.factors import Factor, flat, leaves, resolve

__all__ = ["CLASSES", "class_axis", "class_region", "has_axis"]

CLASSES = 1  # the dimension of a prediction that enumerates classes


def class_axis(axes: Axes, prediction: fx.Node, wanted: str) -> Factor:
    """The axis of classes of a prediction. `wanted` is what it is looked for, which messages begin with. Raises
    `SchemeError` where the prediction has no such axis."""
    kind, place = type_of(prediction), f"the prediction, {prediction.name} ({origin_of(prediction)}),"
    if len(kind.shape) < 2 or not kind.shape[CLASSES].static:
        raise SchemeError(
            f"{wanted}: {place} has the shape [{', '.join(map(str, kind.shape))}]; expected (samples, classes, ...)"
        )
    if not kind.dtype.is_floating_point:
        raise SchemeError(f"{wanted}: {place} is of type {kind.dtype}: expected scores of classes")
    expr = resolve(axes.dims[prediction][CLASSES])
    if not isinstance(expr, Factor):
        raise SchemeError(f"{wanted}: the classes of {place} are made of several axes, which no other head can follow")
    return expr


def has_axis(axes: Axes, node: fx.Node, factor: Factor) -> bool:
    """Whether a value, or one of several, has an axis that is or contains this one."""
    return any(factor in leaves(resolve(expr)) for expr in flat(axes.dims.get(node, ())))


def class_region(program: Program, axes: Axes, prediction: fx.Node, factor: Factor, wanted: str) -> set[fx.Node]:
    """The calls from the layers that make the classes to the prediction, those included that the prediction needs of
    all classes together (a sum to divide by). Raises `SchemeError` where they could not be done again for another
    number of classes."""
    found: set[fx.Node] = set()
    waiting = [prediction]
    parameters = False
    while waiting:
        node = waiting.pop()
        if node in found or not has_axis(axes, node, factor):
            continue
        if node.op == "placeholder":
            raise SchemeError(
                f"{wanted}: the input {node.name} has an axis of the classes, so no other head can be made"
            )
        if node.op == "get_attr":
            _check_tensor(program, node, wanted)
            parameters = parameters or program.is_parameter(str(node.target))
            continue
        _check_rule(axes, node, wanted)
        found.add(node)
        waiting.extend(node.all_input_nodes)
    if not parameters:
        ends = [node for node in found if found.isdisjoint(node.all_input_nodes)] or [prediction]
        raise SchemeError(
            f"{wanted}: no layer with parameters makes the classes of the prediction; they come from "
            f"{ends[0].name} ({ends[0].target}, {origin_of(ends[0])})"
        )
    needed = ancestors([prediction])
    for node in program.graph.nodes:
        if node.op != "call_function" or node not in needed or node in found:
            continue
        if has_axis(axes, node, factor) or not found.isdisjoint(node.all_input_nodes):
            if isinstance(type_of(node), TensorType):
                _check_rule(axes, node, wanted)
            found.add(node)
    return found


def _check_rule(axes: Axes, node: fx.Node, wanted: str) -> None:
    if node in axes.unknown or node not in axes.memo:
        raise SchemeError(
            f"{wanted}: no other head can be made, for {node.name} ({node.target}, {origin_of(node)}) has no rule "
            "that says what becomes of its axes"
        )


def _check_tensor(program: Program, node: fx.Node, wanted: str) -> None:
    tensor = program.tensors[str(node.target)]
    if program.is_parameter(str(node.target)):
        return
    statistics = any(node in (bound(user).get(name) for name in ("running_mean", "running_var")) for user in node.users)
    if not statistics and not bool((tensor == tensor.flatten()[0]).all()):
        raise SchemeError(
            f"{wanted}: the buffer {node.target} has an entry for each class, and nothing says what other classes have"
        )
