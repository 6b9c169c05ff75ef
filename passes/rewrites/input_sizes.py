"""The sizes that a network has for an input of another size: for every axis of positions, how many there are.

Each operation is applied, without data, to operands of the new sizes, with its size arguments rewritten by its rule.
The size of its result in place of a known axis is that axis's new size. Axes that no position reaches keep theirs.

    conv [n, 64, 112, 112] -> relu -> view [n, 64, 12544]      of an input of 224 pixels
    conv [n, 64,  84,  84] -> relu -> view [n, 64,  7056]      of an input of 168
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from anytimeify.analysis.axes import Axes, Widths
from anytimeify.errors import SchemeError
from anytimeify.ir import Program, Size, TensorType
from anytimeify.ir.infer_types import UNKNOWN, TypeInferenceError, infer_type
from anytimeify.ir.node_meta import origin_of, type_of
from anytimeify.ir.schema import bound, rebind
from anytimeify.rules import Call, Resize, has_kind, rule_of
from anytimeify.rules.factors import Expr, Factor, Product, Sum, leaves, resolve

__all__ = ["Positions", "positions_at"]


@dataclass(frozen=True)
class Positions:
    """A network at another size of its inputs.

    `sizes`: of every axis that is of another size, the new one. `grids`: of tensors of the network that have an element
    for every position, which positions their axes count.
    """

    sizes: Widths
    grids: Mapping[Factor, Expr]

    def grid(self, expr: Expr) -> Expr:
        """What an axis counts, as far as it is known."""
        expr = resolve(expr)
        return self.grids.get(expr, expr) if isinstance(expr, Factor) else expr


def positions_at(program: Program, axes: Axes, inputs: Mapping[fx.Node, TensorType]) -> Positions:
    """The network for inputs of the given types.

    Raises `SchemeError` where an operation cannot be applied to the new sizes, and names it.
    """
    follower = _Follower(program, axes)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            follower.say(node, inputs.get(node, type_of(node)))
        elif node.op == "call_function" and node not in follower.constant:
            follower.call(node)
    sizes = {factor: size for factor, size in follower.sizes.items() if Size(size) != factor.size}
    return Positions(sizes, follower.grids)


class _Follower:
    """Follows sizes from the inputs on. What depends on tensors of the program alone is looked at when it is read: by
    then it is known how many positions it is made for."""

    def __init__(self, program: Program, axes: Axes) -> None:
        self.axes = axes
        self.constant: set[fx.Node] = set()
        for node in program.graph.nodes:
            if node.op == "call_function" and all(
                source.op == "get_attr" or source in self.constant for source in node.all_input_nodes
            ):
                self.constant.add(node)
        self.sizes: dict[Factor, int] = {}  # those that are known, new or not
        self.types: dict[fx.Node, Any] = {}
        self.grids: dict[Factor, Expr] = {}  # what axes count that the analysis takes for one

    def type_of(self, node: fx.Node) -> Any:
        """The new type of an operand; of a parameter, that which the axes known by now give it."""
        if node.op == "get_attr":
            return self.axes.shape(self.axes.dims[node], type_of(node), self.sizes)
        if node not in self.types:
            self.call(node)
        return self.types[node]

    def call(self, node: fx.Node) -> None:
        if has_kind(node, "pointwise"):
            self.meet(node)
        if all(self.type_of(source) == type_of(source) for source in node.all_input_nodes):
            self.say(node, type_of(node))
            return
        if has_kind(node, "reshape") and isinstance(type_of(node), TensorType):
            self.say(node, self.reshaped(node))
            return
        target, args, kwargs = self.resized(node)
        try:
            found = infer_type(target, args, kwargs, self.type_of)
        except TypeInferenceError as error:
            raise SchemeError(f"sizes: {_where(node)} {error}") from error
        if found is UNKNOWN:
            raise SchemeError(f"sizes: {_where(node)} has sizes that do not follow from those of its operands")
        self.say(node, found)

    def resized(self, node: fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """The operation and its arguments, those that are sizes at their new values as far as these are known."""
        rule = rule_of(node.target)
        if rule is None or rule.resize is None:
            return node.target, node.args, dict(node.kwargs)
        types = {source: self.type_of(source) for source in node.all_input_nodes}
        types[node] = self.expected(node)
        resize = Resize(
            node,
            types,
            lambda expr: self.axes.size(expr, self.sizes),
            self.axes.memo[node],
            lambda value, new: new if isinstance(value, fx.Node) else new.coefficient,
        )
        changed = rule.resize(resize)
        arguments = changed.arguments if isinstance(changed, Call) else {**resize.arguments, **changed}
        target: Any = changed.target if isinstance(changed, Call) else node.target
        return target, *rebind(target, arguments)

    def expected(self, node: fx.Node) -> Any:
        """The type of a result by the axes that are known already."""
        kinds, dims = type_of(node), self.axes.dims.get(node, ())
        if isinstance(kinds, tuple):
            return tuple(
                self.axes.shape(own, kind, self.sizes) if isinstance(kind, TensorType) else kind
                for own, kind in zip(dims, kinds, strict=True)
            )
        return self.axes.shape(dims, kinds, self.sizes) if isinstance(kinds, TensorType) else kinds

    def say(self, node: fx.Node, kind: Any) -> None:
        """Take down the new type of a node, and the sizes of the axes that it tells."""
        self.types[node] = kind
        several = isinstance(kind, tuple)
        dims = self.axes.dims.get(node, ())
        for own, one in zip(dims if several else (dims,), kind if several else (kind,), strict=False):
            if isinstance(one, TensorType):
                for expr, size in zip(own, one.shape, strict=True):
                    self.learn(node, resolve(expr), size)

    def learn(self, node: fx.Node, expr: Expr, size: Size) -> None:
        if not size.static or any(not leaf.size.static for leaf in leaves(expr)):
            return
        unknown = [leaf for leaf in leaves(expr) if leaf not in self.sizes]
        if unknown and self.axes.size(expr, self.sizes) != size:
            first = unknown[0]  # the outermost one of a product: windows and groups keep their size
            self.sizes[first] = self.solved(node, expr, first, size.coefficient)
        for leaf in unknown:
            self.sizes.setdefault(leaf, leaf.size.coefficient)
        if self.axes.size(expr, self.sizes) != size:
            raise SchemeError(
                f"sizes: {_where(node)} has a dimension of {size} where {self.axes.size(expr, self.sizes)} are "
                "expected: two of its operands disagree on how many positions there are"
            )

        if has_kind(node, "join"):
            self.join(node)
        elif has_kind(node, "selection"):
            self.select(node)

    def meet(self, node: fx.Node) -> None:
        """A tensor of the network that is added to positions, or multiplied with them, has an element for each."""
        tensors = [one for one in node.all_input_nodes if isinstance(type_of(one), TensorType)]
        values = [one for one in tensors if one.op != "get_attr" and one not in self.constant]
        for table in (one for one in tensors if one not in values):
            for value in values:
                pairs = zip(reversed(self.axes.dims[table]), reversed(self.axes.dims[value]), strict=False)
                for place, (own, met) in enumerate(pairs, start=1):
                    if type_of(table).shape[-place] == type_of(value).shape[-place]:
                        self.count(resolve(own), self.grid(met))

    def count(self, own: Expr, met: Expr) -> None:
        """Take down that an axis counts what another one does."""
        if isinstance(own, Sum) and isinstance(met, Sum) and len(own.parts) == len(met.parts):
            for part, other in zip(own.parts, met.parts, strict=True):
                if self.axes.size(part, {}) == self.axes.size(other, {}):
                    self.count(resolve(part), resolve(other))
        elif isinstance(own, Factor) and own not in self.sizes and self.axes.narrowed(met, self.new()):
            self.sizes[own] = self.axes.size(met, self.sizes).coefficient
            self.grids[own] = met

    def new(self) -> Widths:
        return {factor: size for factor, size in self.sizes.items() if Size(size) != factor.size}

    def join(self, node: fx.Node) -> None:
        """Positions that are joined to others (a class token before the patches) are one axis to the analysis."""
        given = bound(node)
        dim = int(given["dim"]) % len(type_of(node).shape)
        whole = resolve(self.axes.dims[node][dim])
        parts = [resolve(self.axes.dims[one][dim]) for one in given["tensors"]]
        if isinstance(whole, Factor):
            self.grids[whole] = Sum(tuple(map(self.grid, parts)))

    def select(self, node: fx.Node) -> None:
        """A slice of joined positions that is one of the parts counts what that does."""
        given = bound(node)
        if "start" not in given or not isinstance(given["dim"], int):
            return
        source = given["self"]
        dim = given["dim"] % len(type_of(source).shape)
        own, whole = resolve(self.axes.dims[node][dim]), resolve(self.axes.dims[source][dim])
        joined = self.grids.get(whole) if isinstance(whole, Factor) else None
        start = given["start"] or 0
        for part in joined.parts if isinstance(joined, Sum) else ():
            if start == 0 and self.axes.size(part, {}) == type_of(node).shape[dim] and isinstance(own, Factor):
                self.grids[own] = part
                return
            start -= self.axes.size(part, {}).coefficient if isinstance(start, int) else 0

    def grid(self, expr: Expr) -> Expr:
        """What an axis counts, as far as it is known."""
        expr = resolve(expr)
        return self.grids.get(expr, expr) if isinstance(expr, Factor) else expr

    def reshaped(self, node: fx.Node) -> TensorType:
        """The same elements in another shape: dimensions are made of the same axes as before. Of an axis that is cut in
        several (into windows), the outermost part changes."""
        source: fx.Node = node.all_input_nodes[0]
        kind: TensorType = type_of(node)
        parts = [
            (self.axes.size(part, {}), self.axes.size(part, self.sizes))
            for expr in self.axes.dims[source]
            for part in self.parts(expr)
        ]
        shape: list[Size] = []
        for size in kind.shape:
            new, rest = Size(1), size
            while rest != Size(1):
                while parts and parts[0][0] == Size(1):
                    parts.pop(0)
                if not parts:
                    raise self.refused(node, size)
                old, now = parts.pop(0)
                if old.divides(rest):
                    new, rest = new * now, rest // old
                    continue
                inner = old // rest if rest.divides(old) else None
                if inner is None or not inner.divides(now):
                    raise self.refused(node, size)
                parts.insert(0, (inner, inner))
                new, rest = new * (now // inner), Size(1)
            shape.append(new)
        return kind.with_shape(tuple(shape))

    def parts(self, expr: Expr) -> list[Expr]:
        """An axis as the axes whose product it is, as far as that is known."""
        expr = resolve(expr)
        if isinstance(expr, Product):
            return [one for part in expr.parts for one in self.parts(part)]
        grid = self.grid(expr)
        return [expr] if grid == expr or isinstance(grid, Sum) else self.parts(grid)

    def refused(self, node: fx.Node, size: Size) -> SchemeError:
        (source,) = {one for one in node.all_input_nodes if isinstance(type_of(one), TensorType)}
        shape = ", ".join(map(str, self.type_of(source).shape))
        return SchemeError(
            f"sizes: {_where(node)} reads ({', '.join(map(str, type_of(source).shape))}) as dimensions of which "
            f"one is {size}, and cannot read ({shape}) so"
        )

    def solved(self, node: fx.Node, expr: Expr, factor: Factor, wanted: int) -> int:
        """The size of a factor at which an axis has the wanted one."""
        one, two = (self.axes.size(expr, {**self.sizes, factor: count}).coefficient for count in (1, 2))
        count, rest = divmod(wanted - (2 * one - two), two - one)
        if rest or count < 1:
            parts = " x ".join(str(leaf.size) for leaf in leaves(expr)) if isinstance(expr, Product) else str(expr)
            raise SchemeError(
                f"sizes: {_where(node)} has a dimension of {wanted}, which does not divide as {parts} did"
            )
        return count


def _where(node: fx.Node) -> str:
    return f"{node.name} ({node.target}, {origin_of(node)})"
