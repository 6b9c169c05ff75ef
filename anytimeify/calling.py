"""How a backbone is called: from arguments, keywords and nested structures to a program's flat inputs, and back."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from anytimeify._torch import flatten, unflatten
from anytimeify.errors import CaptureError
from anytimeify.ir import Captured, Signature

__all__ = ["Calling", "Parameter"]


@dataclass(frozen=True)
class Parameter:
    """One argument of the backbone. `tree` is a leaf number, or tuples, lists and dicts of leaf numbers."""

    name: str
    tree: Any


@dataclass(frozen=True)
class Calling:
    """The backbone's parameters, in order; leaf numbers count the flat inputs, constants among them.

    Every parameter can be given by position or by name. One that was a constant when the backbone was captured (a
    flag, a number, None) may be left out, and may not be given another value: its value is part of the graph.
    """

    parameters: tuple[Parameter, ...]
    constants: Mapping[int, Any]
    plain: bool  # all positional, all tensors

    @staticmethod
    def of(captured: Captured) -> Calling:
        return Calling.from_signature(captured.signature, tuple(node.name for node in captured.program.placeholders))

    @staticmethod
    def from_signature(signature: Signature, names: tuple[str, ...]) -> Calling:
        """`names`: of the program's placeholders."""
        constants = dict(signature.constants)
        tensors = [leaf for leaf in range(len(names) + len(constants)) if leaf not in constants]
        name_of = dict(zip(tensors, names, strict=True))
        positional, keywords = unflatten(range(len(names) + len(constants)), signature.in_spec)
        _check_structure((positional, keywords))
        parameters = [Parameter(_name(tree, name_of) or f"arg{index}", tree) for index, tree in enumerate(positional)]
        parameters += [Parameter(name, tree) for name, tree in keywords.items()]
        plain = not keywords and not constants and all(isinstance(tree, int) for tree in positional)
        return Calling(tuple(parameters), constants, plain)

    def flat(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The program's inputs; `TypeError` where the arguments do not fit the backbone's."""
        if self.plain and not kwargs and len(args) == len(self.parameters):
            return args
        leaves: list[Any] = []
        for parameter, value in self._bind(args, kwargs):
            found, spec = flatten(value)
            if spec != flatten(parameter.tree)[1]:
                raise TypeError(f"input '{parameter.name}' has another structure than when the backbone was captured")
            leaves.extend(found)
        for leaf, constant in self.constants.items():
            if isinstance(leaves[leaf], Tensor) or leaves[leaf] != constant:
                raise TypeError(
                    f"input '{self._owner(leaf)}' was {constant!r} when the backbone was captured, and is part of the "
                    f"graph: it cannot be {leaves[leaf]!r} now. Transform the backbone again with that value"
                )
        return tuple(value for leaf, value in enumerate(leaves) if leaf not in self.constants)

    def arguments(self, inputs: tuple[Tensor, ...], signature: Signature) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inverse of `flat`: positional and keyword arguments as the backbone takes them."""
        rest = iter(inputs)
        count = len(inputs) + len(self.constants)
        leaves = [self.constants[leaf] if leaf in self.constants else next(rest) for leaf in range(count)]
        args, kwargs = unflatten(leaves, signature.in_spec)
        return tuple(args), dict(kwargs)

    def call_like_backbone(self, module: fx.GraphModule) -> fx.GraphModule:
        """Rewrites a module that takes flat inputs and returns a tuple of one tensor into one that is called like the
        backbone and returns the tensor. Nothing but torch is needed to run it."""
        old = module.graph
        if self.plain and [node.name for node in old.find_nodes(op="placeholder")] == [p.name for p in self.parameters]:
            output = old.output_node()
            output.args = (output.all_input_nodes[0],)
            module.recompile()
            return module
        flat = iter(old.find_nodes(op="placeholder"))
        graph = fx.Graph()
        leaves: dict[int, fx.Node] = {}
        for position, parameter in enumerate(self.parameters):
            node = graph.placeholder(parameter.name, default_value=self._default(position))
            for leaf, part in _unpack(graph, parameter.tree, node):
                leaves[leaf] = part
        copies = {next(flat): leaves[leaf] for leaf in sorted(leaves) if leaf not in self.constants}
        results: Any = old.output_node().args[0]  # canonical: a flat tuple of nodes
        for node in old.nodes:
            if node.op not in ("placeholder", "output"):
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[results[0]])
        module.graph = graph
        return module

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[Parameter, Any]]:
        names = [parameter.name for parameter in self.parameters]
        if len(args) > len(names):
            raise TypeError(f"{len(args)} inputs given, but the backbone takes {len(names)}: {', '.join(names)}")
        unknown = [name for name in kwargs if name not in names[len(args) :]]
        if unknown:
            problem = "given twice" if unknown[0] in names else "unknown"
            raise TypeError(f"input '{unknown[0]}' is {problem}: the backbone takes {', '.join(names)}")
        for position, parameter in enumerate(self.parameters):
            if position < len(args):
                yield parameter, args[position]
            elif parameter.name in kwargs:
                yield parameter, kwargs[parameter.name]
            elif all(leaf in self.constants for leaf in flatten(parameter.tree)[0]):
                leaves, spec = flatten(parameter.tree)
                yield parameter, unflatten([self.constants[leaf] for leaf in leaves], spec)
            else:
                raise TypeError(f"input '{parameter.name}' is missing: the backbone takes {', '.join(names)}")

    def _owner(self, leaf: int) -> str:
        return next(parameter.name for parameter in self.parameters if leaf in flatten(parameter.tree)[0])

    def _default(self, position: int) -> Any:
        """A default for trailing constants: Python allows no parameter without one after one that has it."""
        trees = [parameter.tree for parameter in self.parameters[position:]]
        trailing = all(isinstance(tree, int) and tree in self.constants for tree in trees)
        return self.constants[trees[0]] if trailing else inspect.Parameter.empty


def _name(tree: Any, name_of: Mapping[int, str]) -> str:
    """The name of a positional argument: its placeholder's, less the path of a leaf (`extra_bias`: `extra["bias"]`)."""
    suffix = ""
    while not isinstance(tree, int):
        items = list(tree.items() if isinstance(tree, dict) else enumerate(tree))
        if not items:
            return ""
        key, tree = items[0]
        suffix += f"_{key}"
    name = name_of.get(tree, "")
    return name.removesuffix(suffix) if name.endswith(suffix) else ""


def _check_structure(tree: Any) -> None:
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if isinstance(tree, (tuple, list)):
        for part in tree:
            _check_structure(part)
    elif not isinstance(tree, int):
        raise CaptureError(
            f"an input is a {type(tree).__name__}: inputs may be tensors, and tuples, lists and dicts of tensors. "
            "Wrap the model in a module that takes the tensors"
        )


def _unpack(graph: fx.Graph, tree: Any, node: fx.Node) -> Iterator[tuple[int, fx.Node]]:
    """The leaves of a nested input, by nodes that read them."""
    if isinstance(tree, int):
        yield tree, node
        return
    for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _unpack(graph, part, graph.call_function(operator.getitem, (node, key)))
