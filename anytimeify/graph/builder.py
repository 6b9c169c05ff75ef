"""`Builder`: one graph under construction, which names nodes, infers their types and reads every tensor once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from anytimeify._torch import copy_node, new_node
from anytimeify.graph.traversal import ancestors
from anytimeify.ir import Program, Size, TensorType, names, type_text
from anytimeify.ir.infer_types import TypeInferenceError, fits, inferred_type, result_type
from anytimeify.ir.node_meta import origin_of
from anytimeify.ir.rewritten import Output

__all__ = ["Builder"]


@dataclass
class Builder:
    """A graph under construction: full copies of programs, and what passes add to them."""

    graph: fx.Graph
    tensors: dict[str, Tensor]
    transient: set[str]
    shared: dict[fx.Node, fx.Node] = field(default_factory=dict)  # nodes of the source program -> their full copies
    notes: list[str] = field(default_factory=list)  # what was decided on the way, for the report
    _attributes: dict[str, fx.Node] = field(default_factory=dict)
    _constants: dict[bytes, str] = field(default_factory=dict)
    _masks: dict[tuple[int, torch.dtype], tuple[npt.NDArray[np.bool_], str]] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)  # names given so far, and how often each was asked for

    @staticmethod
    def copying(program: Program) -> Builder:
        """A builder that holds a full copy of a program, without its output."""
        builder = Builder(fx.Graph(), {}, set())
        builder.add(program)
        return builder

    def add(self, program: Program, *, without: Set[fx.Node] = frozenset()) -> None:
        """Append a full copy of a program, without its output; its inputs are those of the programs before it. Nodes in
        `without` are left out: the caller makes them another way."""
        given = self.graph.find_nodes(op="placeholder")
        self.shared.update(zip(program.placeholders, given, strict=False))
        self.tensors.update(program.tensors)
        self.transient.update(program.transient)
        for node in program.graph.nodes:
            if node.op == "output" or node in self.shared or node in without:
                continue
            copy = copy_node(self.graph, node, lambda source: self.shared[source])
            self.shared[node] = copy
            self._names[copy.name] = 1
            if node.op == "get_attr":
                self._attributes[str(node.target)] = copy

    def build(self, outputs: Sequence[fx.Node], like: fx.Node) -> Program:
        """The program that returns `outputs`: tensors moved to the top, nodes that nothing needs left out. The output
        node takes its meta from `like`."""
        needed = ancestors(outputs)
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for kinds in (("placeholder",), ("get_attr",), ("call_function",)):
            for node in self.graph.nodes:
                if node.op in kinds and (node.op == "placeholder" or node in needed):
                    copies[node] = copy_node(graph, node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in outputs)).meta = dict(like.meta)
        return Program(graph, self.tensors, frozenset(self.transient))

    def build_named(self, outputs: Mapping[Output, fx.Node], like: fx.Node) -> tuple[Program, tuple[Output, ...]]:
        """The program that returns `outputs`, and what each of them is, as `Rewritten` takes both."""
        return self.build(list(outputs.values()), like), tuple(outputs)

    def attribute(self, name: str, tensor: Tensor, like: fx.Node, *, transient: bool = False) -> fx.Node:
        """The one node that reads a tensor, made where it does not exist yet; its origin is that of `like`."""
        if name not in self._attributes:
            self.tensors[name] = tensor
            if transient:
                self.transient.add(name)
            node = new_node(self.graph, "get_attr", name, name=self._unique(names.node_name(name)))
            sizes = tuple(Size(n) for n in tensor.shape)
            node.meta.update(type=TensorType(sizes, tensor.dtype), origin=origin_of(like))
            self._attributes[name] = node
        return self._attributes[name]

    def _unique(self, name: str) -> str:
        candidate = name
        while candidate in self._names:
            candidate = f"{name}_{self._names[name]}"
            self._names[name] += 1
        self._names[candidate] = 1
        return candidate

    def call(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, meta: dict[str, Any]
    ) -> fx.Node:
        """Append a call. Its type is inferred; one that `meta` claims has to agree, and stands where none follows from
        the operands'."""
        node = new_node(self.graph, "call_function", target, args, kwargs, name=self._unique(name))
        node.meta.update(meta if "type" in meta else {"type": result_type(target, args, kwargs), **meta})
        if "type" in meta and not fits(node):
            raise TypeInferenceError(f"gives {type_text(inferred_type(node))}, and not {type_text(meta['type'])}")
        return node

    def mask(self, keep: npt.NDArray[np.bool_], dtype: torch.dtype, like: fx.Node) -> fx.Node:
        """What a tensor of this type is multiplied with to keep some elements; equal masks are one constant."""
        known, name = self._masks.get((id(keep), dtype), (None, ""))
        if known is None:
            key = b"mask" + str((dtype, keep.shape)).encode() + np.packbits(keep).tobytes()
            name = self._constants.setdefault(key, f"{names.CONSTANTS}mask_{len(self._constants)}")
            self._masks[id(keep), dtype] = keep, name  # as long as it is here, no other array has its number
        if name in self._attributes:
            return self._attributes[name]
        device = next((t.device for t in self.tensors.values()), torch.device("cpu"))
        return self.attribute(name, torch.from_numpy(keep).to(device, dtype), like, transient=True)

    def constant(self, values: npt.NDArray[np.int64], like: fx.Node) -> fx.Node:
        """An index table; equal tables are one constant."""
        name = self._constants.setdefault(values.tobytes(), f"{names.CONSTANTS}index_{len(self._constants)}")
        device = next((t.device for t in self.tensors.values()), torch.device("cpu"))
        return self.attribute(name, torch.from_numpy(values.copy()).to(device), like, transient=True)
