"""What extracts really cost, found by torch's own counter and by looking at their parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from anytimeify.analysis.mask_density import masks
from anytimeify.ir import Level
from anytimeify.runtime.latency import example_batch
from anytimeify.runtime.model import AnytimeModel

__all__ = ["Found", "assert_costs_are_found", "found_costs"]


class Found(NamedTuple):
    """What torch finds in the extract of a level: multiply-accumulates of one sample, and elements of parameters."""

    macs: int
    params: int


def found_costs(net: AnytimeModel, level: int | Level) -> Found:
    """The extract of a level is run on one sample (or on the batch that it insists on) under `FlopCounterMode`, half of
    whose operations are multiply-accumulates; tied parameters count once.

    Where weights are masked, as by `NestedWeights`, extracts are dense: then elements count that are not zero, and of a
    layer's operations the share that its elements have.
    """
    captured, sparse = net.captured, any(masks(net.rewritten.program))
    if sparse:
        net = copy.deepcopy(net)
        for parameter in net.parameters():
            parameter.data = torch.randn_like(parameter)  # no zeros but those of masks
    small, inputs = net.extract(level), example_batch(captured, 1)
    args, kwargs = net.call_signature.arguments(inputs, captured.signature)
    names = [str(node.target) for node in small.graph.find_nodes(op="placeholder")]
    counter = _Counter(small, sparse)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # torch counts attention where it runs as products
        counter.run(*args, *(kwargs[name] for name in names[len(args) :] if name in kwargs))
    samples = 1 if captured.batch else max(1, inputs[0].shape[0])
    params = sum(int(one.count_nonzero()) if sparse else one.numel() for one in small.parameters())
    return Found(-(-counter.macs // samples), params)


def assert_costs_are_found(net: AnytimeModel) -> None:
    """Every level that can be extracted costs what `found_costs` finds."""
    for level in net.levels:
        if not level.training_only:
            found = found_costs(net, level)
            claimed = Found(level.cost.macs, level.cost.params)
            assert found == claimed, (
                f"level {level.index} ({level.name}) claims {claimed.macs} multiply-accumulates and {claimed.params} "
                f"parameters; its extract has {found.macs} and {found.params}"
            )


class _Counter(fx.Interpreter):
    """Counts node by node."""

    def __init__(self, module: fx.GraphModule, sparse: bool) -> None:
        super().__init__(module)
        self.sparse, self.macs = sparse, 0
        self.weights: set[fx.Node] = set()  # parameters, and what is made of them and of buffers without any layer
        self.constant: set[fx.Node] = set()  # the same, and buffers

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        macs = counter.get_total_flops() // 2
        sources = n.all_input_nodes
        made = n.op == "call_function" and not macs and bool(sources) and self.constant.issuperset(sources)
        if n.op == "get_attr" or made:
            self.constant.add(n)
            if isinstance(result, nn.Parameter) or not self.weights.isdisjoint(sources):
                self.weights.add(n)
        if macs and self.sparse:
            weights = [one for one in self.read(n) if one.ndim > 1]
            entries = sum(one.numel() for one in weights)
            macs = macs * sum(int(one.count_nonzero()) for one in weights) // entries if entries else macs
        self.macs += macs
        return result

    def read(self, node: fx.Node) -> Iterator[Tensor]:
        """The weights that a layer reads."""
        if node.op == "call_module":
            yield from self.fetch_attr(str(node.target)).parameters()
        for source in node.all_input_nodes:
            if source in self.weights and isinstance(self.env[source], Tensor):
                yield self.env[source]
