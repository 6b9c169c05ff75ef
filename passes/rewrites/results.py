"""All that a backbone returns, in each mode, whatever the scheme.

Before a scheme, `pack`: the tensors that the backbone returns are concatenated, each as one row a sample, so that
schemes see a network with one prediction; what they do to it (average it over leaves, grow it anew in a branch) they do
to every tensor.

1. a tensor whose batch is another dimension, or that has several rows a sample, is transposed and reshaped;
2. one without a batch is repeated for every sample;
3. all are converted to one type.

Behind it, `unpack` takes the prediction of every level apart again (`anytimeify.passes.rewrites.parts`), and undoes
these steps: where a scheme left a tensor as it was, the steps vanish. What depends on no parameter is then as in the
backbone.

Refused: tensors of dynamic sizes besides the batch, and averages of integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import fx

from anytimeify.contract.pass_manager import rewrite
from anytimeify.errors import SchemeError
from anytimeify.graph.builder import Builder
from anytimeify.graph.traversal import ancestors
from anytimeify.ir import Captured, Program, Results, Size, TensorType, names
from anytimeify.ir.node_meta import origin_of, type_of
from anytimeify.ir.rewritten import Rewritten
from anytimeify.passes.rewrites.parts import Parts
from anytimeify.rules import has_kind

__all__ = ["pack", "unpack"]

aten = torch.ops.aten
_ROW = 1  # the dimension of a packed prediction that holds the tensors


@dataclass(frozen=True)
class _Leaf:
    """One tensor that a backbone returns, and how it lies in a row."""

    name: str
    kind: TensorType
    batch: Size
    dim: int | None  # which dimension holds the batch, or a multiple of it

    @staticmethod
    def of(node: fx.Node, name: str, batch: Size) -> _Leaf:
        kind: TensorType = type_of(node)
        dims = [dim for dim, size in enumerate(kind.shape) if batch.symbols and batch.divides(size)]
        if not batch.symbols and kind.shape[:1] == (batch,):
            dims = [0]
        found = _Leaf(name, kind, batch, dims[0] if dims else None)
        if len(dims) > 1 or not all(size.static for dim, size in enumerate(kind.shape) if dim != found.dim):
            raise SchemeError(
                f"'{name}', one of the results, is of shape [{', '.join(map(str, kind.shape))}], and a tensor that "
                f"levels return may have one dynamic dimension, the batch ({node.name}, {origin_of(node)}). Fix the "
                "batch with dynamic_shapes={}, or say with output=... which of the results is the prediction"
            )
        return found

    @property
    def rows(self) -> TensorType:
        """With the batch first."""
        shape = list(self.kind.shape)
        if self.dim is not None:
            shape[0], shape[self.dim] = shape[self.dim], shape[0]
        return self.kind.with_shape(tuple(shape))

    @property
    def width(self) -> int:
        return self.kind.size.coefficient // (1 if self.dim is None else self.batch.coefficient)

    def steps(self, count: Any, dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        """The operations that make a row a sample of it; `count` is the size of the batch."""
        shape = self.rows.shape
        if self.dim is None:
            if len(shape) != 1:
                yield aten.reshape.default, ([self.width],)
            yield aten.unsqueeze.default, (0,)
            yield aten.expand.default, ([count, self.width],)
        else:
            if self.dim:
                yield aten.transpose.int, (0, self.dim)
            if shape[0] != self.batch or len(shape) == 1:
                yield aten.reshape.default, ([count, self.width],)
            elif len(shape) > 2:
                yield aten.flatten.using_ints, (1,)
        if self.kind.dtype != dtype:
            yield aten.to.dtype, (dtype,)

    def undone(self, count: Callable[[], Any], dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        """The operations that make it of its rows."""
        if self.kind.dtype != dtype:
            yield aten.to.dtype, (self.kind.dtype,)
        shape = self.rows.shape
        static = [size.coefficient for size in shape]
        if self.dim is None:
            yield aten.select.int, (0, 0)
            yield aten.reshape.default, (static,)
            return
        if len(shape) != 2 or shape[0] != self.batch:
            first = [count()] if shape[0] == self.batch else [-1]
            yield aten.reshape.default, ([*first, *static[1:]],)
        if self.dim:
            yield aten.transpose.int, (0, self.dim)


def _leaves(captured: Captured, results: Results) -> list[_Leaf]:
    program = captured.program
    prediction = type_of(program.outputs[results.evaluation.prediction])
    batch = prediction.shape[0] if prediction.shape else Size(1)
    if captured.batch is not None:
        batch = Size(1, (captured.batch,))
    return [_Leaf.of(node, name, batch) for node, name in zip(program.outputs, results.names, strict=True)]


def _common(leaves: Sequence[_Leaf]) -> torch.dtype:
    return reduce(torch.promote_types, (leaf.kind.dtype for leaf in leaves))


def _count(builder: Builder, leaves: Sequence[_Leaf]) -> Any:
    """The size of the batch: a number, or the node that reads it off an input."""
    batch = leaves[0].batch
    if batch.static:
        return batch.coefficient
    given = next(one for one in builder.graph.find_nodes(op="placeholder") if type_of(one).shape[:1] == (batch,))
    return builder.call(aten.sym_size.int, (given, 0), {}, "batch", {"origin": origin_of(given)})


@rewrite("pack results")
def pack(captured: Captured, results: Results) -> Captured:
    """The backbone with one prediction: all tensors that it returns, side by side."""
    program, builder = captured.program, Builder.copying(captured.program)
    leaves = _leaves(captured, results)
    dtype, count = _common(leaves), _count(builder, leaves)
    rows = []
    for node, leaf in zip(program.outputs, leaves, strict=True):
        row = builder.shared[node]
        for target, args in leaf.steps(count, dtype):
            row = builder.call(target, (row, *args), {}, f"{node.name}_{leaf.name}", {"origin": origin_of(node)})
        rows.append(row)
    prediction = program.outputs[results.evaluation.prediction]
    meta = {"origin": origin_of(prediction), "packed": results.names}
    packed = builder.call(aten.cat.default, (rows, _ROW), {}, "results", meta)
    made = builder.build([packed], program.graph.output_node())
    return replace(captured, program=made, results=None, reference=None)


@rewrite("unpack results")
def unpack(rewritten: Rewritten, captured: Captured, results: Results, scheme: str) -> Rewritten:
    """Every tensor of every level apart, and of members and of steps the predictions: stages are made of these.

    `captured` is what was packed."""
    program = rewritten.program
    builder = Builder.copying(program)
    unpacker = _Unpacker(builder, captured, results, scheme)
    first, trained = results.evaluation.prediction, results.training.prediction
    wanted = {"member": dict.fromkeys((first, trained)), "step": [first]}
    outputs = {}
    for output, node in rewritten.outputs.items():
        for leaf in wanted.get(output.role, range(len(results.names))):
            outputs[replace(output, leaf=leaf)] = unpacker.of(builder.shared[node], leaf)
    made, called = builder.build_named(outputs, program.graph.output_node())
    return replace(
        rewritten,
        program=made,
        names=called,
        results=results,
        resumable=False,
        notes=(*rewritten.notes, *_said(results, streams=rewritten.resumable)),
    )


def _said(results: Results, *, streams: bool) -> Iterator[str]:
    """Notes for the report."""
    evaluation, training = (", ".join(one.names.values()) for one in (results.evaluation, results.training))
    apart = "" if results.alike else f"; in train mode {training}"
    yield f"levels return all that the backbone returns: {evaluation}{apart}"
    if streams:
        yield "a stream computes every level from the beginning, for levels return more than predictions"


class _Unpacker:
    def __init__(self, builder: Builder, captured: Captured, results: Results, scheme: str) -> None:
        self.builder, self.program, self.scheme = builder, captured.program, scheme
        self.leaves = _leaves(captured, results)
        self.dtype = _common(self.leaves)
        self.parts = Parts(builder, results.names, [leaf.width for leaf in self.leaves])
        self.free = [_is_free(self.program, node) for node in self.program.outputs]
        self.copies: dict[fx.Node, fx.Node] = dict(
            zip(self.program.placeholders, builder.graph.find_nodes(op="placeholder"), strict=True)
        )

    def of(self, packed: fx.Node, place: int) -> fx.Node:
        """One tensor of a packed prediction."""
        row, leaf = self.parts.of(packed, _ROW, place), self.leaves[place]
        found = self.as_it_was(row, leaf)
        if found is not None:
            return found
        if self.free[place]:
            return self.copied(self.program.outputs[place])
        if not (leaf.kind.dtype.is_floating_point or leaf.kind.dtype.is_complex):
            raise SchemeError(
                f"'{leaf.name}', one of the results, is of type {leaf.kind.dtype}, and {self.scheme} averages what its "
                "members return: of these values no average can be taken. Let the model return what they are made of "
                "(scores for labels), or say with output=... which of the results is the prediction"
            )
        for target, args in leaf.undone(lambda: _count(self.builder, self.leaves), self.dtype):
            row = self.builder.call(target, (row, *args), {}, f"{row.name}_{leaf.name}", {"origin": origin_of(row)})
        return row

    def as_it_was(self, row: fx.Node, leaf: _Leaf) -> fx.Node | None:
        """What the row was made of, if it was made in these steps and left alone."""
        found: Any = row
        for target, _ in reversed(list(leaf.steps(1, self.dtype))):
            if not isinstance(found, fx.Node) or found.target is not target:
                return None
            found = found.args[0]
        same = isinstance(found, fx.Node) and isinstance(type_of(found), TensorType)
        return found if same and len(type_of(found).shape) == len(leaf.kind.shape) else None

    def copied(self, wanted: fx.Node) -> fx.Node:
        """A value of the backbone that depends on no parameter."""
        needed = ancestors([wanted])
        for node in self.program.graph.nodes:
            if node not in needed or node in self.copies:
                continue
            if node.op == "get_attr":
                name = str(node.target)
                self.copies[node] = self.builder.attribute(
                    name, self.program.tensors[name], node, transient=name in self.program.transient
                )
            else:
                args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self.copies.__getitem__)
                self.copies[node] = self.builder.call(node.target, args, kwargs, node.name, dict(node.meta))
        return self.copies[wanted]


def _is_free(program: Program, node: fx.Node) -> bool:
    """Whether a value depends on nothing that trains or is estimated in training."""
    found = ancestors([node])
    read = [str(one.target) for one in found if one.op == "get_attr"]
    return not any(has_kind(one, "norm", "choice", "mode") for one in found) and all(
        not program.is_parameter(name) and not names.is_mean(name) for name in read
    )
