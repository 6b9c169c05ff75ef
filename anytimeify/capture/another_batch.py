"""An exported program whose batch is fixed, once more for batches of other sizes.

    view(x, [2, 8, 36])     ->      view(x, [3, 8, 36])

1. Sizes that begin with the batch, or a multiple of it, begin with the other one, wherever they belong to something
   that depends on an input, or repeat a row for every sample.
2. The result is exported for the other batch: both programs together say what a size is a function of
   (`anytimeify.capture.generalise`).
3. `agrees_on_parts`: that function is a guess. So for larger batches the program is compared with itself on parts of
   the original size, in eval mode: a network whose samples do not read each other gives the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from anytimeify._torch import OpOverload, quiet_exporter
from anytimeify.capture.canonical import Counterpart
from anytimeify.capture.compare import Gap, results_of_program
from anytimeify.capture.inputs import CallInputs, of_batch
from anytimeify.ir import Captured
from anytimeify.ir.node_meta import value_of
from anytimeify.ir.schema import bound, rebind

__all__ = ["agrees_on_parts", "for_other_batches"]

_SIZES = ("size", "shape")  # as the schemas of ATen call them


def for_other_batches(exported: ExportedProgram, inputs: CallInputs) -> tuple[ExportedProgram, Counterpart] | None:
    """The program, and the same for one sample more; of one for a single sample two larger ones, for a size of 1 is no
    size to tell the batch by. None where they cannot be had."""
    batch = inputs.batch
    if not batch or any(one.dim() and one.shape[0] != batch for one in inputs.tensors):
        return None
    size = max(batch, 2)
    try:
        first = exported if size == batch else _for_batch(exported, inputs, size)
        return first, Counterpart(_for_batch(exported, inputs, size + 1), size, size + 1)
    except Exception:  # whatever tracing raises where a size was none of the batch
        return None


def _for_batch(exported: ExportedProgram, inputs: CallInputs, size: int) -> ExportedProgram:
    module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    assert inputs.batch is not None
    module._forward_pre_hooks.clear()  # they compare sizes with those of the export
    _rewrite(module, inputs.batch, size)
    other = of_batch(inputs, size)
    with quiet_exporter():
        return torch.export.export(module, other.args, dict(other.kwargs), strict=False)


def _rewrite(module: fx.GraphModule, batch: int, other: int) -> None:
    follows: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder" or not follows.isdisjoint(node.all_input_nodes):
            follows.add(node)
        if not isinstance(node.target, OpOverload):
            continue
        given = bound(node)
        name = next((name for name in _SIZES if isinstance(given.get(name), list | tuple) and given[name]), None)
        if name is None:
            continue
        first, *rest = given[name]
        # What depends on no input has the batch itself: a table that is repeated for every sample, zeros.
        follows_here = node in follows and type(first) is int and first > 0 and first % batch == 0
        if follows_here or (first == batch and _is_repeated(node)):
            given[name] = [first // batch * other, *rest]
            node.args, node.kwargs = rebind(node.target, given)
    module.recompile()


def _is_repeated(node: fx.Node) -> bool:
    """Whether a value of one row gets more, or one is made of nothing."""
    rows = [list(getattr(value_of(one), "shape", ()))[:1] for one in node.all_input_nodes]
    return rows in ([], [[1]])


def agrees_on_parts(fixed: Captured, general: Captured) -> bool:
    """Whether the program with a dynamic batch computes, for two batches together and for one sample more, what the one
    with a fixed batch computes for each part."""
    first, second = fixed.example_inputs, _others(fixed.example_inputs)
    batch = next(len(one) for one in first if one.dim())
    parts = [results_of_program(replace(fixed, example_inputs=one)) for one in (first, second)]
    for count in (batch + 1, 2 * batch):
        given = tuple(torch.cat(pair)[:count] if pair[0].dim() else pair[0] for pair in zip(first, second, strict=True))
        expected = [torch.cat(pair)[:count] if pair[0].dim() else pair[0] for pair in zip(*parts, strict=True)]
        try:
            found = results_of_program(replace(general, example_inputs=given))
        except Exception:  # a size that does not fit
            return False
        if not Gap.between(expected, found).is_rounding:
            return False
    return True


def _others(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Samples of other values."""
    generator = torch.Generator().manual_seed(0)

    def other(one: Tensor) -> Any:
        if not one.is_floating_point():
            return one.flip(0) if one.dim() else one
        noise = torch.rand(one.shape, generator=generator, dtype=torch.float64)
        return one.flip(0) * (0.5 + noise).to(one) if one.dim() else one

    return tuple(map(other, inputs))
