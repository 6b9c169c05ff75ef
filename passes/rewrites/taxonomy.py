"""`add_heads`: heads for labels of several granularities (Lee and Shin 2018, Eq. 2), for any scheme.

    y = linear(h, w)        ->      y = cat([linear(h, w), linear(h, coarse_w)], 1)

Before a scheme, `add_heads`

1. copies the last layer with parameters and all operations after it, once for each coarser granularity, with the axis
   of classes at its size. The copies have their own parameters, drawn as those of the backbone's layer are. They are
   trained even where the backbone's head is frozen, because their labels are others;
2. concatenates the predictions of all granularities, so that schemes see a network with one prediction. A head that a
   scheme makes private to a level, replicates or fuses is so for every granularity.

After the scheme, `anytimeify.passes.rewrites.granularities` separates the predictions of every level again.

Refused: predictions without an axis of classes that a layer makes, or of another size than the taxonomy has.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from anytimeify.analysis.axes import Axes
from anytimeify.contract.pass_manager import rewrite
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.ir import Captured, Program, Reinitialised, names
from anytimeify.ir.node_meta import granularities_of, granularity_of, origin_of, type_of
from anytimeify.passes.rewrites.classes import CLASSES, class_axis, class_region, has_axis
from anytimeify.passes.rewrites.frozen import is_trained
from anytimeify.passes.rewrites.narrow import clone_region
from anytimeify.passes.rewrites.resized import Spread, resized, spreads
from anytimeify.rules.factors import Factor
from anytimeify.taxonomy import Taxonomy

__all__ = ["add_heads", "coarse_heads", "heads_of_output"]

aten = torch.ops.aten


@rewrite("taxonomy")
def add_heads(captured: Captured, axes: Axes, taxonomy: Taxonomy) -> Captured:
    """The backbone with a head for every granularity, its predictions concatenated along the classes."""
    program = captured.program
    builder = Builder.copying(program)
    made: dict[str, tuple[str, tuple[int, ...]]] = {}  # tensors of coarse heads: what each is drawn as, and its shape
    reinitialised = _drawn(captured)
    others = spreads(reinitialised.get(name, tensor) for name, tensor in program.tensors.items())
    outputs = []
    for prediction in program.outputs:
        factor = _classes(axes, prediction, taxonomy)
        region = class_region(program, axes, prediction, factor, "taxonomy")
        parts = [builder.shared[prediction]]
        for name, size in zip(taxonomy.granularities[1:], taxonomy.sizes[1:], strict=True):
            parts.append(
                _head(builder, program, axes, prediction, factor, region, name, size, reinitialised, others, made)
            )
        prefixes = ("", *(names.taxonomy_prefix(name) for name in taxonomy.granularities[1:]))
        meta = {
            "origin": origin_of(prediction),
            "granularities": tuple(zip(prefixes, taxonomy.sizes, strict=True)),
        }
        outputs.append(builder.call(aten.cat.default, (parts, CLASSES), {}, "granularities", meta))
    return replace(
        captured,
        program=builder.build(outputs, program.graph.output_node()),
        notes=(*captured.notes, *_trained_all_the_same(program, made)),
        reinitialised=_reinitialised(captured.reinitialised, program.tensors, others, made),
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
        return captured.reinitialised(None) if captured.reinitialised is not None else {}
    except SchemeError:
        return {}


def coarse_heads(program: Program) -> set[fx.Node]:
    """The nodes that `add_heads` made, and the tensors that these alone read: what every level should have for
    itself."""
    made = {node for node in program.graph.nodes if granularity_of(node) is not None}
    return made | {
        node for node in program.graph.find_nodes(op="get_attr") if node.users and made.issuperset(node.users)
    }


def heads_of_output(prediction: fx.Node) -> tuple[tuple[str, int], ...]:
    """What each granularity of a prediction prefixes its tensors with, and its number of classes."""
    parts: tuple[tuple[str, int], ...] = granularities_of(prediction)
    return parts or (("", type_of(prediction).shape[CLASSES].coefficient),)


def _reinitialised(
    draw: Reinitialised | None,
    tensors: Mapping[str, Tensor],
    others: Sequence[Spread],
    made: Mapping[str, tuple[str, tuple[int, ...]]],
) -> Reinitialised | None:
    if draw is None:
        return None

    def reinitialised(wanted: Container[str] | None) -> Mapping[str, Tensor]:
        drawn = dict(draw(None))
        for name, (source, shape) in made.items():
            drawn[name] = resized(drawn.get(source, tensors[source]), shape, others)
        return drawn

    return reinitialised


def _classes(axes: Axes, prediction: fx.Node, taxonomy: Taxonomy) -> Factor:
    """The axis of classes of a prediction, of as many as the finest granularity has."""
    factor = class_axis(axes, prediction, "taxonomy")
    classes = type_of(prediction).shape[CLASSES].coefficient
    if classes != taxonomy.sizes[0]:
        raise SchemeError(
            f"taxonomy: the prediction, {prediction.name} ({origin_of(prediction)}), has {classes} classes, and "
            f"the finest granularity, {taxonomy.granularities[0]}, has {taxonomy.sizes[0]}"
        )
    return factor


def _head(
    builder: Builder,
    program: Program,
    axes: Axes,
    prediction: fx.Node,
    factor: Factor,
    region: set[fx.Node],
    name: str,
    size: int,
    reinitialised: Mapping[str, Tensor],
    others: Sequence[Spread],
    made: dict[str, tuple[str, tuple[int, ...]]],
) -> fx.Node:
    """Appends the head of one coarser granularity, and gives its prediction."""
    own: dict[fx.Node, str] = {}
    ties: dict[int, Tensor] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        source = str(node.target)
        if not has_axis(axes, node, factor) or region.isdisjoint(node.users):
            continue
        own[node] = names.taxonomy_prefix(name) + source
        tensor = program.tensors[source]
        if id(tensor) not in ties:
            shape = tuple(s.coefficient for s in axes.shape(axes.dims[node], type_of(node), {factor: size}).shape)
            value = resized(reinitialised.get(source, tensor).detach().to(tensor), shape, others)
            ties[id(tensor)] = nn.Parameter(value) if isinstance(tensor, nn.Parameter) else value
        builder.tensors[own[node]] = ties[id(tensor)]
        made[own[node]] = (source, tuple(ties[id(tensor)].shape))

    def private(user: fx.Node, source: fx.Node, reached: object) -> str | None:
        return own.get(source)

    env = clone_region(builder, program, axes, {factor: size}, region, {}, prefix=f"{name}_", private=private)
    for node in region:
        env[node].meta["granularity"] = name
    return env[prediction]
