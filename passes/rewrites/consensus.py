"""Consensus: one more level, made of the predictions of all levels (Kim, Ahn and Oh 2018).

    return low, full        ->      both = sub(logsumexp(stack([log_softmax(low), log_softmax(full)]), [0]), log 2)
                                    return low, full, both

The rewrite appends a last output, which combines all levels except those for training only:

1. `"average"`: the logarithm of the mean of their class probabilities, for each granularity over the levels that have
   it. Nothing is learned;
2. `"learned"`: a linear layer on all of their predictions side by side, every granularity of each. It gives scores of
   the finest classes. Its parameters are `anytime.consensus.weight` and `.bias`; it starts as the mean of the levels'
   own scores of these classes.

Where a scheme computes levels one from the other, the consensus is the last step. Where levels return all that the
backbone returns, what is no prediction is the last level's. Refused: fewer than two levels,
predictions without classes, and of different positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import fx, nn

from anytimeify.contract.pass_manager import rewrite
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.graph.traversal import ancestors
from anytimeify.ir import Size, TensorType, names
from anytimeify.ir.node_meta import origin_of, type_of
from anytimeify.ir.rewritten import LevelData, Output, Rewritten, Role
from anytimeify.passes.rewrites.classes import CLASSES

__all__ = ["Consensus", "add_consensus"]

aten = torch.ops.aten
_DROP_PATH = torch.ops.anytimeify.drop_path.default
NAME = "consensus"


@dataclass(frozen=True)
class Consensus:
    """How the levels are combined into one more level, the last one.

    Fields
        kind: `"average"` of class probabilities; or `"learned"`: a linear layer on all predictions.
        training: of the learned one: `"after"`: its gradient goes to its own layer only, so that the levels train as
            they would without it, and it can be trained together with them or at any time later
            (`net.consensus_parameters()`); `"joint"`: its gradient reaches the levels too.

    Raises `SchemeError` for other values.
    """

    kind: Literal["average", "learned"] = "average"
    training: Literal["after", "joint"] = "after"

    def __post_init__(self) -> None:
        if self.kind not in ("average", "learned"):
            raise SchemeError(f"consensus={self.kind!r}: expected average or learned")
        if self.training not in ("after", "joint"):
            raise SchemeError(f"consensus: training={self.training!r}: expected after or joint")

    @staticmethod
    def of(given: Any) -> Consensus | None:
        """A consensus as `transform` takes it."""
        if given is None or isinstance(given, Consensus):
            return given
        if isinstance(given, str):
            return Consensus(given)  # type: ignore[arg-type]  # checked
        raise SchemeError(f"consensus={given!r}: expected average, learned, or a Consensus(...)")

    @property
    def trained(self) -> bool:
        """Whether there is anything to train."""
        return self.kind == "learned"


@rewrite("consensus")
def add_consensus(rewritten: Rewritten, consensus: Consensus) -> Rewritten:
    """The same model with one more level."""
    voters = [index for index, level in enumerate(rewritten.levels) if not level.training_only]
    if len(voters) < 2:
        raise SchemeError(f"consensus: this model has {len(voters)} level to combine: it takes two or more")
    program = rewritten.program
    builder = Builder.copying(program)
    make = _Maker(builder, consensus)
    outputs = {output: builder.shared[node] for output, node in rewritten.outputs.items()}

    def of(role: Role, leaf: int | None) -> dict[int, fx.Node]:
        """Made of all levels in one form."""
        return make(
            {
                level: {g or 0: outputs[rewritten.form(role, level, g, leaf)] for g in _granularities(rewritten, level)}
                for level in voters
            }
        )

    def whole(role: Role) -> dict[tuple[int, int | None], fx.Node]:
        """By granularity and leaf; what is no prediction is the last level's."""
        if results is None:
            return {(g, None): node for g, node in of(role, None).items()}
        predictions = (results.evaluation.prediction, results.training.prediction)
        shapes = [type_of(outputs[rewritten.form("level", voters[-1], leaf=leaf)]).shape for leaf in predictions]
        if shapes[0] != shapes[1]:
            raise SchemeError(
                "consensus: in train mode the backbone does not return the prediction of eval mode, so that there is "
                f"nothing to combine and to train ({' and '.join('x'.join(map(str, shape)) for shape in shapes)}): "
                "leave the consensus out, or say with output=... which of the results is the prediction"
            )
        every = range(len(results.names))
        return {
            (0, leaf): of(role, leaf)[0]
            if leaf in predictions
            else outputs[rewritten.form(role, voters[-1], leaf=leaf)]
            for leaf in ([results.evaluation.prediction] if role == "step" else every)
        }

    results = rewritten.results
    forms: dict[Role, dict[tuple[int, int | None], fx.Node]] = {"level": whole("level")}
    roles = {output.role for output in rewritten.names}
    if "step" in roles:
        forms["step"] = whole("step")
        if "alone" in roles and _calls_ours(next(iter(forms["level"].values()))):
            forms["alone"] = {**forms["level"], **forms["step"]}
    last, parted = len(rewritten.levels), rewritten.levels[0].served is not None
    outputs |= {
        Output(role, last, g if parted else None, leaf): node
        for role, made in forms.items()
        for (g, leaf), node in made.items()
    }
    served = min(g for g, _ in forms["level"]) if parted else None
    level = LevelData(NAME, served=served, consensus=True)
    built, called = builder.build_named(outputs, program.graph.output_node())
    return replace(rewritten, program=built, names=called, levels=(*rewritten.levels, level))


def _granularities(rewritten: Rewritten, level: int) -> Sequence[int | None]:
    return rewritten.granularities("level", level) or (None,)


def _calls_ours(node: fx.Node) -> bool:
    """Whether levels that are computed together take an operation of ours, which an extract may not: there the form
    for a stream, which costs as much, is what the consensus alone is made of."""
    targets = {one.target for one in ancestors([node])}
    return any(getattr(target, "namespace", "") == "anytimeify" for target in targets - {_DROP_PATH})


@dataclass
class _Maker:
    """Appends a consensus of some levels; equal levels have one."""

    builder: Builder
    consensus: Consensus

    def __post_init__(self) -> None:
        self.known: dict[tuple[fx.Node, ...], dict[int, fx.Node]] = {}

    def __call__(self, predictions: dict[int, dict[int, fx.Node]]) -> dict[int, fx.Node]:
        """By granularity, finest first, from the predictions of each level by granularity."""
        key = tuple(node for one in predictions.values() for node in one.values())
        for node in key:
            _check(node)
        if key not in self.known:
            self.known[key] = (
                self.average(predictions) if not self.consensus.trained else {0: self.learned(predictions)}
            )
        return self.known[key]

    def average(self, predictions: dict[int, dict[int, fx.Node]]) -> dict[int, fx.Node]:
        result = {}
        for granularity in sorted({g for one in predictions.values() for g in one}):
            nodes = [one[granularity] for one in predictions.values() if granularity in one]
            _same_kind(nodes)
            logs = [self.call(aten.log_softmax.int, (node, CLASSES), node, "log") for node in nodes]
            stack = self.call(aten.stack.default, (logs, 0), nodes[-1], "levels")
            total = self.call(aten.logsumexp.default, (stack, [0]), nodes[-1], "total")
            result[granularity] = self.call(aten.sub.Tensor, (total, math.log(len(nodes))), nodes[-1], "average")
        return result

    def learned(self, predictions: dict[int, dict[int, fx.Node]]) -> fx.Node:
        finest = [one[0] for one in predictions.values() if 0 in one]
        kind = _same_kind(finest)
        nodes = [node for one in predictions.values() for node in one.values()]
        if len({_positions(node) for node in nodes}) > 1:
            raise SchemeError(f"consensus: levels predict at different positions: {_shapes(nodes)}")
        sizes = [type_of(node).shape[CLASSES].coefficient for node in nodes]
        weight, bias = self.parameters(nodes, finest, sizes, kind)
        if self.consensus.training == "after":
            nodes = [self.call(aten.detach.default, (node,), node, "constant") for node in nodes]
        result = self.call(aten.cat.default, (nodes, CLASSES), nodes[-1], "all")
        last = len(kind.shape) - 1
        if last > CLASSES:
            result = self.turned(result, CLASSES, last)
        result = self.call(aten.linear.default, (result, weight, bias), nodes[-1], "scores")
        return self.turned(result, CLASSES, last) if last > CLASSES else result

    def turned(self, node: fx.Node, one: int, other: int) -> fx.Node:
        return self.call(aten.transpose.int, (node, one, other), node, "turned")

    def parameters(
        self, nodes: Sequence[fx.Node], finest: Sequence[fx.Node], sizes: Sequence[int], kind: TensorType
    ) -> tuple[fx.Node, fx.Node]:
        """The layer's, at first such that it gives the mean of the finest predictions."""
        classes = kind.shape[CLASSES].coefficient
        device = next((tensor.device for tensor in self.builder.tensors.values()), torch.device("cpu"))
        blocks = [
            torch.eye(classes) / len(finest) if node in finest else torch.zeros(classes, size)
            for node, size in zip(nodes, sizes, strict=True)
        ]
        weight, bias = torch.cat(blocks, 1).to(device, kind.dtype), torch.zeros(classes).to(device, kind.dtype)
        own = names.CONSENSUS + "weight", names.CONSENSUS + "bias"
        like = nodes[-1]
        read = [
            self.builder.attribute(name, self.builder.tensors.get(name, nn.Parameter(value)), like)
            for name, value in zip(own, (weight, bias), strict=True)
        ]
        return read[0], read[1]

    def call(self, target: Any, args: tuple[Any, ...], like: fx.Node, name: str) -> fx.Node:
        return self.builder.call(target, args, {}, f"{NAME}_{name}", {"origin": origin_of(like)})


def _check(node: fx.Node) -> None:
    kind = type_of(node)
    if len(kind.shape) < 2 or not kind.shape[CLASSES].static or not kind.dtype.is_floating_point:
        raise SchemeError(
            f"consensus: {node.name} ({origin_of(node)}) has the shape [{', '.join(map(str, kind.shape))}] and "
            f"type {kind.dtype}; expected scores of (samples, classes, ...)"
        )


def _positions(node: fx.Node) -> tuple[Size, ...]:
    shape = type_of(node).shape
    return (*shape[:CLASSES], *shape[CLASSES + 1 :])


def _same_kind(nodes: Sequence[fx.Node]) -> TensorType:
    kinds = {type_of(node) for node in nodes}
    if len(kinds) > 1:
        raise SchemeError(f"consensus: levels do not predict the same: {_shapes(nodes)}")
    kind: TensorType = type_of(nodes[0])
    return kind


def _shapes(nodes: Sequence[fx.Node]) -> str:
    shapes = dict.fromkeys("x".join(map(str, type_of(node).shape)) for node in nodes)
    return ", ".join(shapes)
