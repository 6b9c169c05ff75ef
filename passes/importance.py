"""How important channels are, by several criteria: a number for every unit of an axis group (a channel, a whole group,
a whole head), the more important the larger.

l1          |w|, summed over all weights that belong to the unit
norm-scale  |gamma|, what norms multiply the unit by (Liu et al. 2017, network slimming)
taylor      (g * w)^2, g the gradient of the loss; g * w is summed over the part of each parameter that belongs to the
            unit, the square over parameters and batches (Molchanov et al. 2019, "Importance Estimation", for gates)
activation  |x|, the mean over a batch of what layers read of the unit, summed over layers
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from anytimeify.analysis.axes import Axes
from anytimeify.codegen.interpret import interpret
from anytimeify.errors import SchemeError
from anytimeify.ir import Captured, Outputs, Program
from anytimeify.ir.evidence import Evidence
from anytimeify.ir.schema import bound
from anytimeify.passes.rewrites.reorder import Scores, units_of
from anytimeify.rules import has_kind, traits
from anytimeify.rules.factors import Factor, leaves

__all__ = ["CRITERIA", "READ_BATCHES", "importance"]


def importance(criterion: str, captured: Captured, axes: Axes, where: str | Sequence[str] = "all") -> Scores:
    """The importance of every unit of the axis groups that `where` chooses; those that the criterion says nothing about
    are missing.

    Raises `SchemeError` where batches are needed and none were given, or do not fit the backbone.
    """
    scores = _Units(axes, {group.factor for group in axes.chosen(where)})
    CRITERIA[criterion](captured, scores)
    return scores.totals


class _Units:
    """Numbers of elements, added up by unit."""

    def __init__(self, axes: Axes, chosen: Collection[Factor]) -> None:
        self.axes, self.chosen = axes, chosen
        self.totals: dict[Factor, Any] = {}

    def add(self, node: fx.Node, elements: Tensor, after: Callable[[Any], Any] = lambda total: total) -> None:
        """Of a tensor of the shape of a node's value: summed by unit, then `after`."""
        for dim, expr in enumerate(self.axes.dims[node]):
            for factor in {leaf for leaf in leaves(expr) if leaf in self.chosen}:
                sums = elements.detach().to(torch.float64).movedim(dim, 0).reshape(elements.shape[dim], -1).sum(1)
                units, count = units_of(expr, factor), factor.size.coefficient
                total = np.bincount(units[units >= 0], sums.cpu().numpy()[units >= 0], minlength=count)
                self.totals[factor] = self.totals.get(factor, np.zeros(count)) + after(total)


def _l1(captured: Captured, scores: _Units) -> None:
    for node, parameter in _parameters(captured.program):
        if parameter.ndim >= 2:
            scores.add(node, parameter.detach().abs())


def _norm_scale(captured: Captured, scores: _Units) -> None:
    tensors = captured.program.tensors
    for node in captured.program.graph.nodes:
        name = traits(node).scale
        scale = None if name is None else bound(node).get(name)
        if isinstance(scale, fx.Node) and scale.op == "get_attr":
            scores.add(scale, tensors[str(scale.target)].detach().abs())


def _taylor(captured: Captured, scores: _Units) -> None:
    program, evidence = captured.program, _evidence(captured, "taylor")
    parameters = dict(_parameters(program))
    with torch.enable_grad():
        fresh = {str(node.target): one.detach().clone().requires_grad_() for node, one in parameters.items()}
        for inputs, target in _batches(captured, evidence):
            (prediction, *_) = interpret(program, inputs, tensors={**program.tensors, **fresh})
            loss = evidence.loss(Outputs((prediction,)), target)
            slopes = torch.autograd.grad(loss, list(fresh.values()), allow_unused=True)
            for node, weight, slope in zip(parameters, fresh.values(), slopes, strict=True):
                if slope is not None:
                    scores.add(node, weight * slope, np.square)


def _activation(captured: Captured, scores: _Units) -> None:
    program, evidence = captured.program, _evidence(captured, "activation")
    read = {
        source.name: source
        for node in program.graph.nodes
        if has_kind(node, "layer", "recurrent", "attention")
        for source in node.all_input_nodes
        if source.op == "call_function"
    }

    def look(node: fx.Node, value: Any) -> None:
        if node.name in read and isinstance(value, Tensor) and value.is_floating_point():
            scores.add(read[node.name], value.abs() / max(1, len(value)))

    for inputs, _ in _batches(captured, evidence):
        interpret(program, inputs, seen=look)


CRITERIA: Mapping[str, Callable[[Captured, _Units], None]] = {
    "l1": _l1,
    "norm-scale": _norm_scale,
    "taylor": _taylor,
    "activation": _activation,
}
READ_BATCHES = frozenset({"taylor", "activation"})


def _parameters(program: Program) -> Iterator[tuple[fx.Node, nn.Parameter]]:
    for node in program.graph.find_nodes(op="get_attr"):
        tensor = program.tensors[str(node.target)]
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            yield node, tensor


def _evidence(captured: Captured, criterion: str) -> Evidence:
    if captured.evidence is None:
        raise SchemeError(
            f"order='{criterion}' looks at the network on data: give transform(..., batches=loader), a few batches of "
            "(inputs, target)"
        )
    return captured.evidence


def _batches(captured: Captured, evidence: Evidence) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
    """Where the weights are."""
    device = next((one.device for one in captured.program.tensors.values()), torch.device("cpu"))
    found = False
    for inputs, target in evidence.read():
        found = True
        wanted = len(captured.example_inputs)
        if len(inputs) != wanted:
            raise SchemeError(f"batches: {len(inputs)} inputs in a batch; the backbone takes {wanted}")
        for given, example in zip(inputs, captured.example_inputs, strict=True):
            if given.dtype != example.dtype or given.shape[1:] != example.shape[1:]:
                raise SchemeError(
                    f"batches: an input of shape {tuple(given.shape)} and type {given.dtype}; the example's is "
                    f"{tuple(example.shape)}, {example.dtype}, of which the first is the batch"
                )
        yield tuple(one.to(device) for one in inputs), target.to(device) if isinstance(target, Tensor) else target
    if not found:
        raise SchemeError("batches: there is none to look at")
