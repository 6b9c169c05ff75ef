"""Nested weights: lower levels read the largest elements of every weight alone (NestedNet's nested pruning).

The rewrite:

1. the full network stays as it is, and reads no mask;
2. for every lower density each weight of a layer is multiplied with a mask that keeps its largest elements, those of
   the levels below among them; what no mask reaches is computed once for all levels, what comes after is copied;
3. with private norms, a normalisation after a masked weight has parameters and statistics of its own per level, which
   start as the full ones.

Masks are buffers of the model: they are saved and loaded with it, and stay as they are until
`anytimeify.masks.refresh(net)` makes them anew from the weights of the time. What counts as a weight says
`anytimeify.passes.rewrites.weights`.

Refused: networks without such weights, and densities that keep the same elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx, nn

from anytimeify.analysis.axes import Axes
from anytimeify.analysis.mask_density import recount
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.graph.traversal import descendants
from anytimeify.ir import Captured, Program, names
from anytimeify.ir.node_meta import origin_of
from anytimeify.ir.rewritten import Output, Rewritten, numbered
from anytimeify.passes.rewrites.fold import evaluate
from anytimeify.passes.rewrites.magnitude import largest, share_of
from anytimeify.passes.rewrites.private_tensors import PrivateTensors
from anytimeify.passes.rewrites.taxonomy import coarse_heads
from anytimeify.passes.rewrites.weights import Weight, find_weights
from anytimeify.passes.scheme import Scheme

__all__ = ["NestedWeights"]

aten = torch.ops.aten


@dataclass(frozen=True)
class NestedWeights(Scheme):
    """Levels are densities: level k reads the share `densities[k]` of the weights that is largest in magnitude.

    Fields
        densities: shares of the elements of the masked weights, increasing, the last one 1. A mask keeps exactly
            `max(1, round(elements * density))`; of equal elements the first.
        scope: `"layer"`: that share of every weight; `"global"`: of all of them together, so that layers with larger
            elements keep more.
        norms: `"private"`: norms after masked weights have parameters and statistics of their own per level;
            `"shared"`: those of the full network.
        gradients: `"masked"`: a level gives no gradient to what it does not read; `"straight-through"`: it gives the
            gradient that the element would have if it were read, so that it may grow and be kept at the next refresh.
        where: `"all"` weights, or patterns of parameters, layers, or parts of the network such as
            `("layer3", "blocks.*.mlp")`.
        ends: `"masked"`: the first and the last layers too, as where the paper compresses a network; `"dense"`: not
            these, as pruning often has it.

    Raises `SchemeError` for fields out of range and for backbones in which nothing can be masked.
    """

    name: ClassVar[str] = "nested-weights"

    densities: tuple[float, ...] = (0.1, 0.3, 1.0)
    scope: Literal["layer", "global"] = "layer"
    norms: Literal["private", "shared"] = "private"
    gradients: Literal["masked", "straight-through"] = "masked"
    where: str | tuple[str, ...] = "all"
    ends: Literal["masked", "dense"] = "masked"

    def __post_init__(self) -> None:
        given: Any = self.densities
        densities = tuple(given) if isinstance(given, tuple | list) else (given,)
        numbers = all(isinstance(d, int | float) and not isinstance(d, bool) and 0 < d <= 1 for d in densities)
        if not densities or not numbers or list(densities) != sorted(set(densities)) or densities[-1] != 1:
            raise SchemeError(
                f"densities={given!r}: expected increasing numbers in (0, 1], the last one 1, such as 0.1,0.3,1"
            )
        object.__setattr__(self, "densities", tuple(float(density) for density in densities))
        where: Any = self.where
        if not isinstance(where, str):
            if not isinstance(where, tuple | list) or not all(isinstance(pattern, str) for pattern in where):
                raise SchemeError(f"where={where!r}: expected all, or names of layers such as blocks.*.mlp")
            object.__setattr__(self, "where", tuple(where))
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise SchemeError(f"{field}={getattr(self, field)!r}: expected {' or '.join(choices)}")

    @property
    def reads_values(self) -> str:
        return "the masks of nested-weights keep the largest weights"

    def apply(self, captured: Captured, axes: Axes) -> Rewritten:
        program = captured.program
        weights, notes = self._chosen(program)
        builder = Builder.copying(program)
        outputs: dict[Output, fx.Node] = {}
        for level, masks in enumerate(self.masks(program)):
            outputs[Output("level", level)] = _Level(builder, program, level, self).run(weights, masks)
        outputs[Output("level", len(self.densities) - 1)] = builder.shared[program.outputs[0]]
        joint, called = builder.build_named(outputs, program.graph.output_node())
        return Rewritten(
            recount(joint, joint.tensors),
            called,
            numbered("density", self.densities),
            shared_norms=self.norms == "shared",
            notes=tuple(notes),
        )

    def masks(self, program: Program) -> list[dict[str, Tensor]]:
        """The masks of every level below the full one as its weights are now, by the buffer's name. A weight of which a
        level keeps every element has none there."""
        weights, _ = self._chosen(program)
        values = evaluate(program, [weight.nodes[0] for weight in weights])
        tensors = [values[weight.nodes[0]] for weight in weights]
        prefix = _prefix(program)
        made: list[dict[str, Tensor]] = []
        for level, counts in enumerate(self._counts(weights)):
            if isinstance(counts, int):
                found = largest(tensors, counts)
            else:
                found = [largest([tensor], count)[0] for tensor, count in zip(tensors, counts, strict=True)]
            whole = isinstance(counts, tuple)  # with a global scope another refresh may keep less of a weight
            made.append(
                {
                    names.mask(level, prefix, weight.name): mask
                    for weight, mask in zip(weights, found, strict=True)
                    if not (whole and mask.all())
                }
            )
        return made

    def _counts(self, weights: Sequence[Weight]) -> list[int | tuple[int, ...]]:
        """How many elements every level below the full one keeps: of each weight, or of all. Refuses levels that are
        equal."""
        entries = tuple(weight.entries for weight in weights)
        units = entries if self.scope == "layer" else (sum(entries),)
        kept = [tuple(share_of(count, density) for count in units) for density in self.densities]
        for (few, many), (one, other) in zip(pairwise(kept), pairwise(self.densities), strict=True):
            if few == many:
                raise SchemeError(
                    f"densities: density {one:g} keeps the same entries as {other:g}, for the largest of the "
                    f"{len(weights)} weights has {max(entries)} of them; leave one of them out"
                )
        return [counts if self.scope == "layer" else counts[0] for counts in kept[:-1]]

    def _chosen(self, program: Program) -> tuple[list[Weight], list[str]]:
        """The weights that are masked, and notes on others."""
        found, notes = find_weights(program)
        coarse = coarse_heads(program)  # every level has its own of these
        every = [one for one in found if coarse.isdisjoint(one.nodes)]
        patterns = (self.where,) if isinstance(self.where, str) else self.where
        named = every if self.where == "all" else [weight for weight in every if weight.named(patterns)]
        chosen = [one for one in named if self.ends == "masked" or not (one.first or one.last)]
        if chosen:
            return chosen, notes
        if not every:
            why = "".join(f"\n  - {note}" for note in notes) or "\n  - it has no convolution, linear layer or product"
            raise SchemeError(f"this network has no weights to mask:{why}")
        if not named:
            few = ", ".join(weight.name for weight in every[:5])
            raise SchemeError(f"where={self.where!r} names no weight; there are {len(every)}, such as {few}")
        raise SchemeError(f"ends='dense' leaves no weight to mask of {len(named)}; use ends='masked'")

    def default_loss(self) -> nn.Module:
        from anytimeify.losses.joint import JointLoss

        return JointLoss()


_CHOICES = {
    "scope": ("layer", "global"),
    "norms": ("private", "shared"),
    "gradients": ("masked", "straight-through"),
    "ends": ("masked", "dense"),
}


def _prefix(program: Program) -> str:
    """`masks`, or a name that nothing in the backbone has: a level's own norms stand beside its masks."""
    prefix = "masks"
    while any(name.startswith(f"{prefix}.") for name in program.tensors):
        prefix += "_"
    return prefix


class _Level:
    """One level below the full one, while it is appended."""

    def __init__(self, builder: Builder, program: Program, level: int, scheme: NestedWeights) -> None:
        self.builder, self.program, self.level = builder, program, level
        self.straight_through = scheme.gradients == "straight-through"
        self.private = PrivateTensors(program, builder, level, coarse_heads(program), norms=scheme.norms == "private")
        self.masks: dict[fx.Node, tuple[str, Tensor]] = {}
        self.masked: dict[str, fx.Node] = {}
        self.region: set[fx.Node] = set()
        self.env: dict[fx.Node, fx.Node] = {}

    def run(self, weights: Sequence[Weight], masks: Mapping[str, Tensor]) -> fx.Node:
        by_weight = {names.of_mask(name)[1]: (name, mask) for name, mask in masks.items()}
        self.masks = {node: by_weight[one.name] for one in weights if one.name in by_weight for node in one.nodes}
        self.region = descendants(user for node in self.masks for user in node.users)
        for node in self.program.graph.nodes:
            if node in self.region:
                self.env[node] = self.copy(node)
        (prediction,) = self.program.outputs
        return self.env.get(prediction, self.builder.shared[prediction])

    def copy(self, node: fx.Node) -> fx.Node:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: self.read(node, source))
        return self.builder.call(node.target, args, kwargs, names.level_prefix(self.level) + node.name, dict(node.meta))

    def read(self, user: fx.Node, source: fx.Node) -> fx.Node:
        if source in self.masks:
            return self.mask(source)
        if source.op == "get_attr":
            own = self.private(user, source, self.region)
            if own is not None:
                tensor = self.builder.tensors.get(own)
                return self.builder.attribute(own, _copy(self.program, source) if tensor is None else tensor, source)
        return self.env.get(source, self.builder.shared[source])

    def mask(self, source: fx.Node) -> fx.Node:
        """The masked weight, made where it is first read, so that it does not wait in memory."""
        name, tensor = self.masks[source]
        if name in self.masked:
            return self.masked[name]
        weight = self.builder.shared[source]
        mask = self.builder.attribute(name, tensor, source)
        result = self.call(aten.mul.Tensor, (weight, mask), source, "masked")
        if self.straight_through:  # the value of the product, the gradient of the whole
            missing = self.call(aten.sub.Tensor, (result, weight), source, "missing", through=True)
            fixed = self.call(aten.detach.default, (missing,), source, "fixed", through=True)
            result = self.call(aten.add.Tensor, (weight, fixed), source, "through", through=True)
        self.masked[name] = result
        return result

    def call(self, target: Any, args: tuple[Any, ...], source: fx.Node, what: str, **more: bool) -> fx.Node:
        meta = {"origin": origin_of(source), "mask_nonzeros": 0, **more}  # counted in the end
        return self.builder.call(target, args, {}, f"{names.level_prefix(self.level)}{source.name}_{what}", meta)


def _copy(program: Program, source: fx.Node) -> Tensor:
    tensor = program.tensors[str(source.target)]
    copy = tensor.detach().clone()
    return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
