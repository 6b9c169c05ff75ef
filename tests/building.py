"""Small canonical programs written by hand, and an interpreter that runs any program in eval mode without modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from anytimeify.ir import Origin, Program, Size, TensorType
from anytimeify.ir.schema import bound, rebind

__all__ = ["BATCH", "Build", "run"]

aten = torch.ops.aten
BATCH = 7  # the example batch: no other size in a hand-written program may be 7, for it reads as the symbol s0


class Build:
    """Appends nodes to a graph, computing their types from example values.

    >>> b = Build({"fc.weight": torch.randn(3, 5)}, x=torch.randn(BATCH, 5))
    >>> program = b.done(b(aten.linear.default, b.x, b.read("fc.weight")))
    """

    def __init__(self, tensors: Mapping[str, Tensor], transient: Sequence[str] = (), **inputs: Tensor) -> None:
        self.tensors, self.transient = dict(tensors), frozenset(transient)
        self.graph = fx.Graph()
        self.values: dict[fx.Node, Any] = {}
        self.inputs = {name: self._add(self.graph.placeholder(name), value) for name, value in inputs.items()}
        self.reads = {
            name: self._add(self.graph.create_node("get_attr", name, name=name.replace(".", "_")), tensor)
            for name, tensor in tensors.items()
        }

    @property
    def x(self) -> fx.Node:
        return self.inputs["x"]

    def read(self, name: str) -> fx.Node:
        return self.reads[name]

    def __call__(self, target: Callable[..., Any], *args: Any, name: str | None = None, **kwargs: Any) -> fx.Node:
        values = {
            n: v.clone() if isinstance(v, Tensor) else v for n, v in self.values.items()
        }  # norms write statistics
        values_args, values_kwargs = fx.map_arg((args, kwargs), values.__getitem__)
        with torch.no_grad():
            value = target(*values_args, **values_kwargs)
        node = self.graph.create_node("call_function", target, args, kwargs, name or target.__name__.partition(".")[0])
        return self._add(node, value, name or node.name)

    def done(self, *outputs: fx.Node) -> Program:
        self.graph.output(outputs)
        read = {node.target for node in self.graph.find_nodes(op="get_attr")}
        assert read == self.tensors.keys()
        return Program(self.graph, self.tensors, self.transient)

    def _add(self, node: fx.Node, value: Any, path: str = "") -> fx.Node:
        self.values[node] = value
        node.meta = {"type": _type(value), "origin": Origin(path)}
        return node


def _type(value: Any) -> Any:
    if isinstance(value, Tensor):
        sizes = tuple(Size(1, ("s0",)) if size == BATCH else Size(size) for size in value.shape)
        return TensorType(sizes, value.dtype)
    if isinstance(value, (tuple, list)):
        return tuple(_type(item) for item in value)
    return Size(value) if isinstance(value, int) else None


def run(program: Program, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The program's outputs in eval mode."""
    program.graph.lint()
    with torch.no_grad():
        result = _Eval(fx.GraphModule(dict(program.tensors), program.graph)).run(*inputs)
    assert isinstance(result, tuple)
    return result


class _Eval(fx.Interpreter):
    def run_node(self, node: fx.Node) -> Any:
        if node.target in (aten.batch_norm.default, aten.dropout.default):
            flag = "training" if node.target is aten.batch_norm.default else "train"
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            bare = bound(node)
            values = dict(zip(bare, args, strict=False)) | {**kwargs, flag: False}
            args, kwargs = rebind(node.target, values)
            return node.target(*args, **kwargs)
        return super().run_node(node)
