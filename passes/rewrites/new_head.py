"""`with_classes`: a backbone that predicts another number of classes.

    y = linear(x, w[10, c])     ->      y = linear(x, w'[7, c])

What is rewritten:

1. the layers that make the classes of every prediction get new tensors under their old names, drawn as the layers of
   torch draw theirs: weights and biases of linear and convolutional layers uniformly within one over the root of the
   fan-in, norms as ones and zeros, other tensors in the manner of the old ones;
2. the operations after them stay the same, with the axis of classes at its new size.

Refused (`SchemeError`): predictions without an axis of classes that layers make, classes that an operation without a
rule reads, and tensors with an element for each class that are read elsewhere too, such as an embedding that is tied to
the head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from anytimeify.analysis.axes import Axes
from anytimeify.contract.pass_manager import rewrite
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.ir import Captured, Program, TensorType
from anytimeify.ir.node_meta import origin_of, type_of
from anytimeify.ir.schema import bound
from anytimeify.passes.rewrites.classes import CLASSES, class_axis, class_region, has_axis
from anytimeify.passes.rewrites.narrow import clone_narrowed, reached
from anytimeify.passes.rewrites.resized import resized
from anytimeify.rules import Layers, has_kind, traits
from anytimeify.rules.factors import Factor

__all__ = ["with_classes"]

_WANTED = "another number of classes"


@rewrite("new head")
def with_classes(captured: Captured, axes: Axes, classes: int) -> Captured:
    """The backbone with a new head. Its initialisers (`reinitialised`) draw the head anew, and keep everything else."""
    program = captured.program
    sizes: dict[Factor, int] = {}
    for prediction in _predictions(captured):
        factor = class_axis(axes, prediction, _WANTED)
        class_region(program, axes, prediction, factor, _WANTED)
        sizes[factor] = classes
    readers = [node for node in program.graph.find_nodes(op="get_attr") if _any(axes, node, sizes)]
    changed = reached(program, axes, sizes)
    _check(program, axes, sizes, readers, changed)

    def draw() -> dict[str, Tensor]:
        return _drawn(program, axes, sizes, readers, type_of(_predictions(captured)[0]).shape[CLASSES].coefficient)

    builder = Builder(fx.Graph(), {}, set())
    head = draw()
    for node in readers:
        copy = builder.attribute(str(node.target), head[str(node.target)], node)
        copy.meta = {**node.meta, "type": axes.shape(axes.dims[node], type_of(node), sizes)}
        builder.shared[node] = copy
    builder.add(replace(program, tensors={**program.tensors, **head}), without=changed)
    env = clone_narrowed(
        builder, program, axes, sizes, prefix="", private=lambda user, source, _: _own(source, readers)
    )
    made = builder.build([env[node] for node in program.outputs], program.graph.output_node())
    return replace(captured, program=made, reference=None, reinitialised=lambda _: {**made.tensors, **draw()})


def _predictions(captured: Captured) -> list[fx.Node]:
    """The outputs that hold classes, first the prediction: of all that a backbone returns, those that are of its type,
    as auxiliary heads are."""
    program, results = captured.program, captured.results
    if results is None:
        return list(program.outputs)
    first = program.outputs[results.evaluation.prediction]
    return list(dict.fromkeys([first, *(node for node in program.outputs if type_of(node) == type_of(first))]))


def _own(source: fx.Node, readers: list[fx.Node]) -> str | None:
    return str(source.target) if source in readers else None


def _any(axes: Axes, node: fx.Node, sizes: Mapping[Factor, int]) -> bool:
    return any(has_axis(axes, node, factor) for factor in sizes)


def _check(
    program: Program, axes: Axes, sizes: Mapping[Factor, int], readers: list[fx.Node], changed: Set[fx.Node]
) -> None:
    for node in changed:
        tensors = isinstance(type_of(node), TensorType)
        if node in axes.unknown or (tensors and node not in axes.memo):
            raise SchemeError(
                f"{_WANTED}: {node.name} ({node.target}, {origin_of(node)}) reads the classes, and has no rule "
                "that says what becomes of its axes"
            )
    for reader in readers:
        for user in reader.users:
            if user in changed and not _any(axes, user, sizes):
                raise SchemeError(
                    f"{_WANTED}: {reader.target} has an entry for each class, and is also read by {user.name} "
                    f"({user.target}, {origin_of(user)}), which makes no classes: the two are tied"
                )
    own = {str(reader.target) for reader in readers}
    held = {id(program.tensors[name]): name for name in own}
    for name, tensor in program.tensors.items():
        if name not in own and id(tensor) in held:
            raise SchemeError(f"{_WANTED}: {held[id(tensor)]} is tied to {name}, which makes no classes")


def _drawn(
    program: Program, axes: Axes, sizes: dict[Factor, int], readers: list[fx.Node], classes: int
) -> dict[str, Tensor]:
    """The tensors of a new head by name; tied ones stay tied. `classes`: how many there were."""
    layers = Layers(program)
    ties: dict[int, Tensor] = {}
    result = {}
    for node in readers:
        name = str(node.target)
        old = program.tensors[name]
        if id(old) not in ties:
            kind = axes.shape(axes.dims[node], type_of(node), sizes)
            with torch.no_grad():
                value = _value(layers, node, old.detach(), tuple(size.coefficient for size in kind.shape), classes)
            ties[id(old)] = nn.Parameter(value) if isinstance(old, nn.Parameter) else value
        result[name] = ties[id(old)]
    return result


def _value(layers: Layers, node: fx.Node, old: Tensor, shape: tuple[int, ...], classes: int) -> Tensor:
    for user in node.users:
        given: Mapping[str, object] = bound(user)
        if user in layers.weights:
            read = [type_of(one).size.coefficient for one in user.all_input_nodes if one in layers.constant]
            fan_in = max(read) // classes
            most = 1 / math.sqrt(max(fan_in, 1))
            return torch.empty(shape, dtype=old.dtype, device=old.device).uniform_(-most, most)
        if has_kind(user, "norm"):
            start = next((value for name, value in _starts(user).items() if given.get(name) is node), None)
            if start is not None:
                return old.new_full(shape, start)
    return resized(old, shape).detach()


def _starts(norm: fx.Node) -> dict[str, float]:
    """What the tensors of a norm start as, by the argument."""
    rule = traits(norm)
    own = {name: value for name, value in ((rule.scale, 1.0), (rule.shift, 0.0)) if name is not None}
    return {**own, "running_mean": 0.0, "running_var": 1.0}
