"""How a backbone is called: from arguments, keywords and nested structures to a program's flat inputs, and back."""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from anytimeify._torch import assert_holds, copy_node, flatten, unflatten
from anytimeify.errors import ArgumentError, CaptureError
from anytimeify.ir import Captured, Constant, Signature, Size, Structure, TensorType, batches_in_words, children
from anytimeify.ir.node_meta import tensor_type

__all__ = ["BatchLimits", "CallSignature", "Parameter", "batch_arguments"]


@dataclass(frozen=True)
class BatchLimits:
    """The sizes that one dimension of a flat input may have, where the graph is not right for all."""

    position: int
    dim: int
    sizes: tuple[int, int | None]  # the smallest and the largest; None where there is no largest

    @staticmethod
    def of(inputs: Sequence[TensorType], batch: str | None, batch_range: tuple[int, int | None]) -> BatchLimits | None:
        """Of the first input that has a batch: a fixed one, where `batch` names no symbol."""
        for position, kind in enumerate(inputs):
            for dim, size in enumerate(kind.shape):
                if batch is None:
                    return BatchLimits(position, dim, (size.coefficient,) * 2) if size.static else None
                if size == Size(1, (batch,)):
                    return None if batch_range == (1, None) else BatchLimits(position, dim, batch_range)
        return None

    @property
    def message(self) -> str:
        return f"the graph holds for batches of {batches_in_words(self.sizes)}: see the notes of the report"

    def check(self, inputs: Sequence[Any]) -> None:
        """`ArgumentError` where a batch has another size."""
        found = inputs[self.position]
        if not isinstance(found, Tensor) or found.dim() <= self.dim:
            return
        size, (least, most) = found.shape[self.dim], self.sizes
        if size < least or (most is not None and size > most):
            raise ArgumentError(f"a batch of {size} was given, but {self.message}")

    def write(self, graph: fx.Graph) -> None:
        """The same check as nodes in front of a graph of flat inputs; nothing but torch is needed to run them."""
        inputs = graph.find_nodes(op="placeholder")
        with graph.inserting_after(inputs[-1]):
            size = graph.call_method("size", (inputs[self.position], self.dim))
        least, most = self.sizes
        bounds: list[tuple[Callable[..., Any], int]] = [(operator.ge, least)]
        if most is not None:
            bounds.append((operator.le, most))
        if least == most:
            bounds = [(operator.eq, least)]
        for compare, bound in bounds:
            with graph.inserting_after(size):
                holds = graph.call_function(compare, (size, bound))
            with graph.inserting_after(holds):
                graph.call_function(assert_holds, (holds, self.message))


@dataclass(frozen=True)
class Parameter:
    """One argument of the backbone. `tree` is a leaf number, or a tuple, list, dict or dataclass of trees."""

    name: str
    tree: Any


@dataclass(frozen=True)
class CallSignature:
    """The backbone's parameters, in order; leaf numbers count the flat inputs, constants among them.

    Every parameter can be given by name, and the first `positional` by position. One that was a constant when the
    backbone was captured (a flag, a number, None) may be left out, and may not be given another value: its value is
    part of the graph.
    """

    parameters: tuple[Parameter, ...]
    constants: Mapping[int, Any]
    plain: bool  # all positional, all tensors
    positional: int  # how many may be given by position
    limits: BatchLimits | None = None

    @staticmethod
    def of(captured: Captured) -> CallSignature:
        inputs = captured.program.placeholders
        limits = BatchLimits.of(list(map(tensor_type, inputs)), captured.batch, captured.batch_range)
        return CallSignature.from_signature(captured.signature, tuple(node.name for node in inputs), limits)

    @staticmethod
    def from_signature(
        signature: Signature, names: tuple[str, ...], limits: BatchLimits | None = None
    ) -> CallSignature:
        """`names`: of the program's placeholders."""
        constants = dict(signature.constants)
        tensors = [leaf for leaf in range(len(names) + len(constants)) if leaf not in constants]
        name_of = dict(zip(tensors, names, strict=True))
        positional, keywords = unflatten(range(len(names) + len(constants)), signature.in_spec)
        _check_structure((positional, keywords))
        given = (*signature.names, *[""] * len(positional))
        parameters = [
            Parameter(given[index] or _name(tree, name_of) or f"arg{index}", tree)
            for index, tree in enumerate(positional)
        ]
        parameters += [Parameter(name, tree) for name, tree in keywords.items()]
        plain = not keywords and not constants and all(isinstance(tree, int) for tree in positional)
        count = len(parameters) if signature.positional is None else signature.positional
        return CallSignature(tuple(parameters), constants, plain, count, limits)

    def flat(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The program's inputs; `ArgumentError` (a `TypeError`) where the arguments do not fit the backbone's."""
        inputs = self._flat(args, kwargs)
        if self.limits is not None:
            self.limits.check(inputs)
        return inputs

    def _flat(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        if self.plain and not kwargs and len(args) == len(self.parameters):
            return args
        leaves: dict[int, Any] = {}
        for parameter, value in self._bind(args, kwargs):
            leaves.update(_leaves(parameter.tree, value, parameter.name))
        for leaf, constant in self.constants.items():
            if isinstance(leaves[leaf], Tensor) or leaves[leaf] != constant:
                given = (
                    f"a tensor of shape {tuple(found.shape)}"
                    if isinstance(found := leaves[leaf], Tensor)
                    else repr(found)
                )
                raise ArgumentError(
                    f"input '{self._owner(leaf)}' was {constant!r} when the backbone was captured, and is part of the "
                    f"graph: it cannot be {given} now. Transform the backbone again with that value"
                )
        return tuple(leaves[leaf] for leaf in sorted(leaves) if leaf not in self.constants)

    def arguments(self, inputs: tuple[Tensor, ...], signature: Signature) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inverse of `flat`: positional and keyword arguments as the backbone takes them."""
        rest = iter(inputs)
        count = len(inputs) + len(self.constants)
        leaves = [self.constants[leaf] if leaf in self.constants else next(rest) for leaf in range(count)]
        args, kwargs = unflatten(leaves, signature.in_spec)
        return tuple(args), dict(kwargs)

    def call_like_backbone(self, old: fx.Graph, structure: Structure | None = None) -> fx.Graph:
        """Rewrites a graph that takes flat inputs and returns a flat tuple into one that is called like the backbone
        and returns the only tensor, or all of them in a `structure`. Nothing but torch is needed to run it, and the
        classes of the structure."""
        if self.limits is not None:
            self.limits.write(old)
        if self.plain and [node.name for node in old.find_nodes(op="placeholder")] == [p.name for p in self.parameters]:
            output = old.output_node()
            with old.inserting_before(output):
                output.args = (_returned(old, output.args[0], structure),)
            return old
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
                copies[node] = copy_node(graph, node, copies.__getitem__)
        graph.output(_returned(graph, [copies[result] for result in results], structure))
        return graph

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[Parameter, Any]]:
        names = [parameter.name for parameter in self.parameters]
        if len(args) > len(names):
            raise ArgumentError(f"{len(args)} inputs given, but the backbone takes {len(names)}: {', '.join(names)}")
        if len(args) > self.positional:
            raise ArgumentError(
                f"{len(args)} inputs given by position, of which '{names[self.positional]}' cannot be: give it by name"
            )
        unknown = [name for name in kwargs if name not in names[len(args) :]]
        if unknown:
            problem = "given twice" if unknown[0] in names else "unknown"
            raise ArgumentError(f"input '{unknown[0]}' is {problem}: the backbone takes {', '.join(names)}")
        for position, parameter in enumerate(self.parameters):
            if position < len(args):
                yield parameter, args[position]
            elif parameter.name in kwargs:
                yield parameter, kwargs[parameter.name]
            elif all(leaf in self.constants for leaf in flatten(parameter.tree)[0]):
                leaves, spec = flatten(parameter.tree)
                yield parameter, unflatten([self.constants[leaf] for leaf in leaves], spec)
            else:
                raise ArgumentError(f"input '{parameter.name}' is missing: the backbone takes {', '.join(names)}")

    def _owner(self, leaf: int) -> str:
        return next(parameter.name for parameter in self.parameters if leaf in flatten(parameter.tree)[0])

    def _default(self, position: int) -> Any:
        """A default for trailing constants: Python allows no parameter without one after one that has it."""
        trees = [parameter.tree for parameter in self.parameters[position:]]
        trailing = all(isinstance(tree, int) and tree in self.constants for tree in trees)
        return self.constants[trees[0]] if trailing else inspect.Parameter.empty


def _returned(graph: fx.Graph, results: Any, structure: Structure | None) -> Any:
    """What a graph returns of its results; containers other than tuples, lists and dicts are made by calls."""
    if structure is None:
        return results[0]
    at = dict(zip(structure.outputs, results, strict=True))

    def built(tree: Any) -> Any:
        if isinstance(tree, Constant):
            return tree.value
        if isinstance(tree, int):
            return at[tree]
        parts = [(key, built(part)) for key, part in children(tree) or ()]
        if type(tree) in (tuple, list):
            return type(tree)(part for _, part in parts)
        if type(tree) is dict:
            return dict(parts)
        if dataclasses.is_dataclass(tree):
            return graph.call_function(type(tree), (), dict(parts))
        if hasattr(tree, "_fields"):
            return graph.call_function(type(tree), tuple(part for _, part in parts))
        return graph.call_function(type(tree), ([*parts],))

    return built(structure.tree)


def _name(tree: Any, name_of: Mapping[int, str]) -> str:
    """The name of a positional argument: its placeholder's, less the path of a leaf (`extra_bias`: `extra["bias"]`)."""
    suffix = ""
    while not isinstance(tree, int):
        parts = _parts(tree)
        if not parts:
            return ""
        key, tree, _ = parts[0]
        suffix += f"_{key}"
    name = name_of.get(tree, "")
    return name.removesuffix(suffix) if name.endswith(suffix) else ""


def _parts(tree: Any) -> list[tuple[Any, Any, Callable[..., Any]]]:
    """What a structure holds: by which key, and how it is read. Fields that are None hold nothing."""
    if isinstance(tree, Mapping):
        return [(key, part, operator.getitem) for key, part in tree.items()]
    if isinstance(tree, (tuple, list)):
        return [(index, part, operator.getitem) for index, part in enumerate(tree)]
    if dataclasses.is_dataclass(tree):
        fields = [(field.name, getattr(tree, field.name), getattr) for field in dataclasses.fields(tree)]
        return [part for part in fields if part[1] is not None]
    raise CaptureError(
        f"an input is a {type(tree).__name__}: inputs may be tensors, and tuples, lists, dicts and dataclasses of "
        "tensors. Wrap the model in a module that takes the tensors"
    )


def _check_structure(tree: Any) -> None:
    if not isinstance(tree, int):
        for _, part, _ in _parts(tree):
            _check_structure(part)


def _leaves(tree: Any, value: Any, name: str) -> Iterator[tuple[int, Any]]:
    """What `value`, the input `name`, holds at the places of the leaves. A dict may be in another order."""
    if isinstance(tree, int):
        if isinstance(value, (tuple, list, Mapping)):
            raise _other_structure(name)
        yield tree, value
        return
    parts = _parts(tree)
    if isinstance(tree, Mapping):
        fits = isinstance(value, Mapping) and value.keys() == tree.keys()
    elif isinstance(tree, (tuple, list)):
        fits = isinstance(value, (tuple, list)) and len(value) == len(tree)
    else:
        fits = isinstance(value, type(tree))
    if not fits:
        raise _other_structure(name)
    for key, part, read in parts:
        yield from _leaves(part, read(value, key), name)


def _other_structure(name: str) -> ArgumentError:
    return ArgumentError(f"input '{name}' has another structure than when the backbone was captured")


def _unpack(graph: fx.Graph, tree: Any, node: fx.Node) -> Iterator[tuple[int, fx.Node]]:
    """The leaves of a nested input, by nodes that read them."""
    if isinstance(tree, int):
        yield tree, node
        return
    for key, part, read in _parts(tree):
        yield from _unpack(graph, part, graph.call_function(read, (node, key)))


def batch_arguments(batch: Any, inputs: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a model with that many inputs, from a batch as a data loader gives it.

    A tensor is the only input, a mapping holds keyword arguments, a sequence holds the inputs; one element more than
    the model has inputs is the target and is left out. `(inputs, target)` with nested inputs works too.
    """
    if isinstance(batch, dict):
        return (), batch
    if not isinstance(batch, (tuple, list)):
        return (batch,), {}
    first = batch[0] if batch else None
    if len(batch) == 2 and isinstance(first, (tuple, list, dict)) and isinstance(batch[1], Tensor):
        return batch_arguments(first, inputs)
    return tuple(batch[:inputs]) if len(batch) == inputs + 1 else tuple(batch), {}
