"""Heads for labels of several granularities (Lee and Shin 2018, Eq. 2), whatever the scheme.

Before a scheme, `add_heads`:

1. what makes the classes of a prediction, the last layer with parameters and all that follows it, is copied once for
   each coarser granularity, the axis of classes at its size, with parameters of its own that are drawn as those of the
   backbone's layer are, and that are trained, also where the backbone's head is frozen: its labels are others;
2. the predictions of all granularities are concatenated, so that schemes see a network with one prediction; heads that
   they make private to a level, replicate or fuse are so for every granularity.

Behind it, `anytimeify.passes.granularities` takes the predictions of every level apart again.

Refused: predictions without an axis of classes that a layer makes, or of another size than the taxonomy has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytimeify.axes import Axes
from anytimeify.errors import SchemeError
from anytimeify.factors import Factor, leaves, resolve
from anytimeify.ir import Captured, Program, Size
from anytimeify.passes.frozen import is_trained
from anytimeify.passes.narrow import Builder
from anytimeify.passes.resized import Spread, resized, spreads
from anytimeify.schema import bound
from anytimeify.taxonomy import Taxonomy

__all__ = ["CLASSES", "add_heads", "coarse_heads", "heads_of_output"]

aten = torch.ops.aten
CLASSES = 1  # the dimension of a prediction that enumerates classes
_PREFIX = "anytime.taxonomy."


def add_heads(captured: Captured, axes: Axes, taxonomy: Taxonomy) -> Captured:
    """The backbone with a head for every granularity, its predictions concatenated along the classes."""
    program = captured.program
    builder = Builder.copying(program)
    made: dict[str, tuple[str, tuple[int, ...]]] = {}  # tensors of coarse heads: what each is drawn as, and its shape
    fresh = _drawn(captured)
    others = spreads(fresh.get(name, tensor) for name, tensor in program.tensors.items())
    outputs = []
    for prediction in program.outputs:
        factor = _classes(program, axes, prediction, taxonomy)
        region = _region(program, axes, prediction, factor)
        parts = [builder.shared[prediction]]
        for name, size in zip(taxonomy.granularities[1:], taxonomy.sizes[1:], strict=True):
            parts.append(_head(builder, program, axes, prediction, factor, region, name, size, fresh, others, made))
        kind = prediction.meta["type"]
        shape = (*kind.shape[:CLASSES], Size(sum(taxonomy.sizes)), *kind.shape[CLASSES + 1 :])
        prefixes = ("", *(f"{_PREFIX}{name}." for name in taxonomy.granularities[1:]))
        meta = {
            "type": kind.with_shape(shape),
            "origin": prediction.meta["origin"],
            "granularities": tuple(zip(prefixes, taxonomy.sizes, strict=True)),
        }
        outputs.append(builder.call(aten.cat.default, (parts, CLASSES), {}, "granularities", meta))
    return replace(
        captured,
        program=builder.build(outputs, program.graph.output_node()),
        notes=(*captured.notes, *_trained_all_the_same(program, made)),
        fresh=_fresh(captured.fresh, program.tensors, others, made),
        reference=None,
    )


def _trained_all_the_same(program: Program, made: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[str]:
    """A note where coarse heads are made after frozen ones."""
    sources = dict.fromkeys(source for source, _ in made.values() if program.is_parameter(source))
    still = [source for source in sources if not is_trained(program.tensors[source])]
    if not still:
        return []
    return [
        f"heads of coarser labels are drawn and trained, though they are made after frozen ones: {', '.join(still)}"
    ]


def _drawn(captured: Captured) -> Mapping[str, Tensor]:
    """Fresh tensors of the backbone; none where its initialisers cannot run again, and what is there has to do."""
    try:
        return captured.fresh() if captured.fresh is not None else {}
    except SchemeError:
        return {}


def coarse_heads(program: Program) -> set[fx.Node]:
    """The nodes that `add_heads` made and that read tensors: what every level should have for itself."""
    return {node for node in program.graph.nodes if "granularity" in node.meta and _reads_tensors(node)}


def heads_of_output(prediction: fx.Node) -> tuple[tuple[str, int], ...]:
    """What each granularity of a prediction prefixes its tensors with, and its number of classes."""
    parts: tuple[tuple[str, int], ...] = prediction.meta.get("granularities", ())
    return parts or (("", prediction.meta["type"].shape[CLASSES].coefficient),)


def _reads_tensors(node: fx.Node) -> bool:
    return any(source.op == "get_attr" for source in node.all_input_nodes)


def _fresh(
    draw: Callable[[], Mapping[str, Tensor]] | None,
    tensors: Mapping[str, Tensor],
    others: Sequence[Spread],
    made: Mapping[str, tuple[str, tuple[int, ...]]],
) -> Callable[[], Mapping[str, Tensor]] | None:
    if draw is None:
        return None

    def fresh() -> Mapping[str, Tensor]:
        drawn = dict(draw())
        for name, (source, shape) in made.items():
            drawn[name] = resized(drawn.get(source, tensors[source]), shape, others)
        return drawn

    return fresh


def _classes(program: Program, axes: Axes, prediction: fx.Node, taxonomy: Taxonomy) -> Factor:
    """The axis of classes of a prediction."""
    kind, place = prediction.meta["type"], f"the prediction, {prediction.name} ({prediction.meta['origin']}),"
    if len(kind.shape) < 2 or not kind.shape[CLASSES].static:
        raise SchemeError(
            f"taxonomy: {place} has the shape [{', '.join(map(str, kind.shape))}]; expected (samples, classes, ...)"
        )
    classes = kind.shape[CLASSES].coefficient
    if classes != taxonomy.sizes[0]:
        raise SchemeError(
            f"taxonomy: {place} has {classes} classes, and the finest granularity, {taxonomy.granularities[0]}, has "
            f"{taxonomy.sizes[0]}"
        )
    if not kind.dtype.is_floating_point:
        raise SchemeError(f"taxonomy: {place} is of type {kind.dtype}: expected scores of classes")
    expr = resolve(axes.dims[prediction][CLASSES])
    if not isinstance(expr, Factor):
        raise SchemeError(
            f"taxonomy: the classes of {place} are made of several axes, which no coarser head can follow"
        )
    return expr


def _has(axes: Axes, node: fx.Node, factor: Factor) -> bool:
    return any(factor in leaves(resolve(expr)) for expr in _flat(axes.dims.get(node, ())))


def _flat(dims: Any) -> list[Any]:
    return [expr for one in dims for expr in (_flat(one) if isinstance(one, tuple) else [one])]


def _region(program: Program, axes: Axes, prediction: fx.Node, factor: Factor) -> set[fx.Node]:
    """The calls from the layers that make the classes to the prediction."""
    found: set[fx.Node] = set()
    waiting = [prediction]
    parameters = False
    while waiting:
        node = waiting.pop()
        if node in found or not _has(axes, node, factor):
            continue
        if node.op == "placeholder":
            raise SchemeError(
                f"taxonomy: the input {node.name} has an axis of the classes, so no coarser head can be made"
            )
        if node.op == "get_attr":
            _check_tensor(program, node)
            parameters = parameters or program.is_parameter(str(node.target))
            continue
        if node in axes.unknown or node not in axes.memo:
            raise SchemeError(
                f"taxonomy: no coarser head can be made, for {node.name} ({node.target}, {node.meta['origin']}) has no "
                "rule that says what becomes of its axes"
            )
        found.add(node)
        waiting.extend(node.all_input_nodes)
    if not parameters:
        ends = [node for node in found if found.isdisjoint(node.all_input_nodes)] or [prediction]
        raise SchemeError(
            "taxonomy: no layer with parameters makes the classes of the prediction; they come from "
            f"{ends[0].name} ({ends[0].target}, {ends[0].meta['origin']})"
        )
    return found


def _check_tensor(program: Program, node: fx.Node) -> None:
    tensor = program.tensors[str(node.target)]
    if program.is_parameter(str(node.target)):
        return
    statistics = any(node in (bound(user).get(name) for name in ("running_mean", "running_var")) for user in node.users)
    if not statistics and not bool((tensor == tensor.flatten()[0]).all()):
        raise SchemeError(
            f"taxonomy: the buffer {node.target} has an entry for each of the finest classes, and nothing says what "
            "the coarser ones have"
        )


def _head(
    builder: Builder,
    program: Program,
    axes: Axes,
    prediction: fx.Node,
    factor: Factor,
    region: set[fx.Node],
    name: str,
    size: int,
    fresh: Mapping[str, Tensor],
    others: Sequence[Spread],
    made: dict[str, tuple[str, tuple[int, ...]]],
) -> fx.Node:
    """Appends the head of one coarser granularity, and gives its prediction."""
    own: dict[fx.Node, str] = {}
    ties: dict[int, Tensor] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        source = str(node.target)
        if not _has(axes, node, factor) or region.isdisjoint(node.users):
            continue
        own[node] = f"{_PREFIX}{name}.{source}"
        tensor = program.tensors[source]
        if id(tensor) not in ties:
            shape = tuple(s.coefficient for s in axes.shape(axes.dims[node], node.meta["type"], {factor: size}).shape)
            value = resized(fresh.get(source, tensor).detach().to(tensor), shape, others)
            ties[id(tensor)] = nn.Parameter(value) if isinstance(tensor, nn.Parameter) else value
        builder.tensors[own[node]] = ties[id(tensor)]
        made[own[node]] = (source, tuple(ties[id(tensor)].shape))

    def private(user: fx.Node, source: fx.Node, reached: object) -> str | None:
        return own.get(source)

    env = builder.clone_region(program, axes, {factor: size}, region, {}, prefix=f"{name}_", private=private)
    for node in region:
        env[node].meta["granularity"] = name
    return env[prediction]
