"""Universally slimmable training: one set of weights, any width (Yu and Huang 2019)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytimeify.codegen.call_signature import batch_arguments
from anytimeify.codegen.recompute import recomputing
from anytimeify.codegen.to_modules import to_modules
from anytimeify.contract.pass_manager import run_pass
from anytimeify.errors import SchemeError
from anytimeify.ir import Outputs, Program
from anytimeify.passes.rewrites.fold_batch_norms import fold_batch_norms
from anytimeify.passes.rewrites.project import project
from anytimeify.passes.schemes.nested_channels import NestedChannels
from anytimeify.runtime import extraction
from anytimeify.runtime.calibration import calibrate
from anytimeify.runtime.model import AnytimeModel

__all__ = ["SandwichSampler"]


class SandwichSampler(nn.Module):
    """Runs a network at widths drawn anew at each call: the smallest, the largest, and random ones between.

    `sampler(*inputs)` gives `Outputs`, cheapest first, the largest width last, for any loss that reads `levels`; the
    paper trains with `InPlaceDistillation`. Gradients go to the parameters of `net`, every one of which is used when
    `high` is 1. A child of a `DistributedDataParallel` wrapper in place of `net`, it needs no special flags there.

    Parameters
        net: made with `NestedChannels(..., norms="shared", heads="shared")`: parameters of its own cannot belong to a
            width that nobody listed.
        count: widths per call, the smallest and the largest among them.
        low, high: smallest and largest width; by default those of the scheme.
        multiple_of: channel counts are rounded up to multiples of this; by default as in the scheme.
        generator: where the random widths come from; the global one by default.
        cache: how many graphs to keep. Widths that keep the same channels share one.
    """

    def __init__(
        self,
        net: AnytimeModel,
        count: int = 4,
        low: float | None = None,
        high: float | None = None,
        multiple_of: int | None = None,
        generator: torch.Generator | None = None,
        cache: int = 64,
    ) -> None:
        super().__init__()
        scheme = net.scheme
        if not isinstance(scheme, NestedChannels) or scheme.norms != "shared" or scheme.heads != "shared":
            raise SchemeError(
                f"widths can be sampled of nested-channels with norms=shared and heads=shared, not of {scheme}: "
                "parameters private to a level cannot belong to a width that is drawn at random"
            )
        if scheme.connectivity == "triangular":
            raise SchemeError("widths are sampled under dense connectivity: triangular networks have only their own")
        if net.taxonomy is not None or net.consensus is not None:
            raise SchemeError("widths are sampled of models without a taxonomy or a consensus, which belong to levels")
        if net.results is not None:
            raise SchemeError("widths are sampled of models whose levels return predictions, and not whole structures")
        self.low = scheme.widths[0] if low is None else low
        self.high = scheme.widths[-1] if high is None else high
        if not 0 < self.low < self.high <= 1:
            raise SchemeError(f"low={self.low}, high={self.high}: expected 0 < low < high <= 1")
        if count < 2:
            raise SchemeError(f"count={count}: the sandwich rule needs at least 2 widths, the smallest and the largest")
        self.net, self.count, self.generator, self.cache = net, count, generator, cache
        self.multiple_of = scheme.rounding if multiple_of is None else multiple_of
        self.where = scheme.where
        self.widths: tuple[float, ...] = ()  # those of the last call
        self._graphs: OrderedDict[tuple[int, ...], fx.GraphModule] = OrderedDict()
        self._tensors: dict[str, Tensor] = {}

    def draw(self) -> tuple[float, ...]:
        """The smallest width, `count - 2` random ones, and the largest, in increasing order."""
        random = torch.rand(self.count - 2, generator=self.generator).tolist()
        return (self.low, *sorted(self.low + (self.high - self.low) * value for value in random), self.high)

    def forward(self, *args: Any, **kwargs: Any) -> Outputs:
        self.widths = self.draw()
        inputs = self.net.call_signature.flat(args, kwargs)
        self._drop_stale_graphs()
        return Outputs(tuple(self._run(width, inputs) for width in self.widths))

    def run_at(self, width: float, *args: Any, **kwargs: Any) -> Tensor:
        """The prediction at one width, in the network's own mode and with its own parameters."""
        self._drop_stale_graphs()
        return self._run(width, self.net.call_signature.flat(args, kwargs))

    def net_at(self, width: float, *, batches: Iterable[Any] | None = None, fold: bool = False) -> fx.GraphModule:
        """The network at one width as a standalone module, as `AnytimeModel.extract` makes them.

        Shared running statistics fit no single width: give `batches` (as for `AnytimeModel.calibrate`) to re-estimate
        those of the result, after training and before it is used.
        """
        program, index = self._program(width)
        small = extraction.small_program(program, index)
        if batches is not None:
            count = len(self.net.call_signature.parameters)
            module = extraction.as_module(small, self.net.call_signature)

            def forward(batch: Any) -> None:
                args, kwargs = batch_arguments(batch, count)
                module(*args, **kwargs)

            calibrate(module, batches, forward)  # writes into the tensors of `small`, which the module holds
        return extraction.as_module(fold_batch_norms(small) if fold else small, self.net.call_signature)

    def _run(self, width: float, inputs: tuple[Tensor, ...]) -> Tensor:
        key = self._channels(width)
        if key == self._channels(1.0):
            result: Tensor = self.net.graphs[1 + self.net.full](*inputs)
            return result
        if key not in self._graphs:
            lifted = to_modules(project(*self._kept(width)))
            self._graphs[key] = recomputing(lifted.graph, lifted) if self.net.checkpoint else lifted
            while len(self._graphs) > self.cache:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        graph = self._graphs[key]
        if graph.training != self.net.training:
            graph.train(self.net.training)
        return graph(*inputs)[0]  # type: ignore[no-any-return]  # a tuple of one tensor

    def _channels(self, width: float) -> tuple[int, ...]:
        if not 0 < width <= 1:
            raise SchemeError(f"width {width}: expected a number in (0, 1]")
        return tuple(group.units_kept(width, self.multiple_of) for group in self.net.axes.chosen(self.where))

    def _program(self, width: float) -> tuple[Program, int]:
        """A program with the network at a width among its outputs, and its position there."""
        if self._channels(width) == self._channels(1.0):
            return self.net.rewritten.program, self.net.full
        scheme = NestedChannels(
            (width, 1.0), where=self.where, norms="shared", heads="shared", multiple_of=self.multiple_of
        )
        return run_pass(scheme.name, scheme.apply, *self.net._recast()).program, 0

    def _kept(self, width: float) -> tuple[Program, list[int]]:
        program, index = self._program(width)
        return program, [index]

    def _drop_stale_graphs(self) -> None:
        """Cached graphs hold the network's tensors; `.to()`, `.half()` and the like may have replaced them."""
        tensors = self.net.tensors()
        if self._tensors.keys() != tensors.keys() or any(self._tensors[name] is not tensors[name] for name in tensors):
            self._graphs.clear()
            self._tensors = tensors
