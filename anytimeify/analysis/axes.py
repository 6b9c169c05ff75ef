"""Axis analysis: which dimensions, all over a graph, are the same axis, which may be narrowed, and how.

`analyse` walks a program once, asks every operation's rule how the axes of its results follow from those of its
operands, and reads the axis groups off the merged factors. Free factors come only from the dimensions of floating-point
parameters; inputs, outputs, positions and whatever an operation without a rule touches are pinned, with the reason.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from anytimeify.contract.pass_manager import rewrite
from anytimeify.errors import SchemeError
from anytimeify.ir import Origin, Program, Size, TensorType, names, result_of
from anytimeify.ir.node_meta import origin_of, type_of
from anytimeify.rules import Dims, Layers, Op, rule_of
from anytimeify.rules.factors import (
    ONE,
    Expr,
    Factor,
    Pin,
    Product,
    Sum,
    Where,
    add_sizes,
    flat,
    leaves,
    mark_stream,
    opaque,
    pin,
    resolve,
)
from anytimeify.rules.op import name_of

__all__ = ["Axes", "AxisGroup", "Pin", "Site", "Widths", "analyse"]

Widths = dict[Factor, int]
"""How many elements of each narrowed factor are kept; factors that are not there keep all."""


@dataclass(frozen=True)
class Site:
    """One dimension of one parameter or buffer."""

    tensor: str
    dim: int


@dataclass(frozen=True)
class AxisGroup:
    """Dimensions all over the graph that keep the same size and order.

    `size` counts channels; they are kept or dropped in units of `quantum` (the width of a group, the size of a head).
    """

    index: int
    name: str
    size: int
    quantum: int
    role: Literal["stream", "inner"]
    sites: tuple[Site, ...]
    pin: Pin | None
    ordered: Pin | None
    factor: Factor = field(repr=False, compare=False)

    def units_kept(self, width: float, multiple_of: int = 1) -> int:
        """Units kept at a width: `max(1, round(size * width))` channels, rounded up to `multiple_of` and to whole
        units.
        """
        channels = max(1, round(self.size * width))
        step = math.lcm(multiple_of, self.quantum)
        channels = min(self.size, -(-channels // step) * step)
        return min(self.size // self.quantum, -(-channels // self.quantum))


@dataclass(frozen=True)
class Axes:
    """What is known of the axes of one program."""

    groups: tuple[AxisGroup, ...]  # narrowable ones and pinned ones that have parameters, in graph order
    dims: Mapping[fx.Node, Any]  # axes of every node, resolved
    memo: Mapping[fx.Node, dict[str, Any]]  # what the rules remember for resizing
    mixed: Mapping[fx.Node, frozenset[Factor]]  # factors along which an operation mixes: contracts, normalises
    unknown: tuple[fx.Node, ...]  # operations without a rule

    @property
    def narrowable(self) -> tuple[AxisGroup, ...]:
        return tuple(group for group in self.groups if group.pin is None)

    def mixes(self, node: fx.Node, group: AxisGroup) -> bool:
        """Whether the leading channels of what a node computes may depend on later channels of its operands."""
        return group.factor in self.mixed.get(node, frozenset())

    def chosen(self, where: str | Sequence[str] = "all") -> tuple[AxisGroup, ...]:
        """The narrowable groups that `where` names: `"all"`, `"inner"`, or patterns of layers.

        Raises `SchemeError` if there is none."""
        if where == "all":
            groups = self.narrowable
        elif where == "inner":
            groups = tuple(group for group in self.narrowable if group.role == "inner")
        else:
            patterns = [where] if isinstance(where, str) else list(where)
            groups = tuple(group for group in self.narrowable if _matches(group, patterns))
        if not groups:
            raise SchemeError(self._nothing_to_narrow(where))
        return groups

    def _nothing_to_narrow(self, where: str | Sequence[str]) -> str:
        if not self.narrowable:
            reasons = sorted({str(group.pin) for group in self.groups if group.pin is not None})[:5]
            listed = "".join(f"\n  - {reason}" for reason in reasons) or "\n  - it has no floating-point parameters"
            return f"no axis of this model can be narrowed; every one is pinned:{listed}"
        names = ", ".join(group.name for group in self.narrowable[:5])
        count = len(self.narrowable)
        return f"where={where!r} names no axis group that can be narrowed; there are {count}, such as {names}"

    def widths(self, width: float, *, multiple_of: int = 1, where: str | Sequence[str] = "all") -> Widths:
        """How much of each factor is kept at one width multiplier."""
        kept = {group.factor: group.units_kept(width, multiple_of) for group in self.chosen(where)}
        self._fit_zeros(kept, width, multiple_of)
        return {factor: units for factor, units in kept.items() if units != factor.size.coefficient}

    def _fit_zeros(self, kept: Widths, width: float, multiple_of: int) -> None:
        """Channels of zeros beside some that keep their number (a stem that is not narrowed) make up what these lack of
        the width of all together, in place of a share of their own."""
        single = {group.factor for group in self.groups if group.quantum == 1}
        for node, remembered in self.memo.items():
            for place, parts in remembered.get("pads", {}).items():
                expr = self.dims[node][len(self.dims[node]) - 1 - place]
                zeros = [factor for part in parts if part is not None and (factor := resolve(part)) in kept]
                others = [leaf for leaf in leaves(expr) if leaf not in zeros]
                if not single.issuperset(zeros) or all(leaf in kept for leaf in others):
                    continue
                total = max(1, round(self.size(expr, {}).coefficient * width))
                total = -(-total // multiple_of) * multiple_of
                missing = max(0, total - self.size(expr, {**kept, **dict.fromkeys(zeros, 0)}).coefficient)
                rest = sum(factor.size.coefficient for factor in zeros)
                for factor in zeros:
                    kept[factor] = min(factor.size.coefficient, missing * factor.size.coefficient // rest)
                    missing, rest = missing - kept[factor], rest - factor.size.coefficient

    def size(self, expr: Expr, widths: Widths) -> Size:
        """The size of a dimension at some widths."""
        expr = resolve(expr)
        if isinstance(expr, Factor):
            return Size(widths[expr]) if expr in widths else expr.size
        if isinstance(expr, Product):
            return math.prod((self.size(part, widths) for part in expr.parts), start=Size(1))
        return add_sizes([self.size(part, widths) for part in expr.parts])

    def narrowed(self, expr: Expr, widths: Widths) -> bool:
        return any(leaf in widths for leaf in leaves(resolve(expr)))

    def shape(self, dims: Dims, kind: TensorType, widths: Widths) -> TensorType:
        """The type of a tensor at some widths."""
        if not any(self.narrowed(expr, widths) for expr in dims):
            return kind
        return kind.with_shape(
            tuple(
                self.size(expr, widths) if self.narrowed(expr, widths) else size
                for expr, size in zip(dims, kind.shape, strict=True)
            )
        )

    def indices(self, expr: Expr, widths: Widths) -> npt.NDArray[np.int64]:
        """Which elements of a dimension are kept: whole units of products, a prefix of every part of a sum."""
        expr = resolve(expr)
        return arrangement(expr, {leaf: np.arange(widths[leaf]) for leaf in leaves(expr) if leaf in widths})


def arrangement(expr: Expr, chosen: Mapping[Factor, npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """The elements of a dimension that remain, and in which order, if each factor keeps the elements in `chosen`."""
    expr = resolve(expr)
    if isinstance(expr, Factor):
        return chosen[expr] if expr in chosen else np.arange(expr.size.coefficient)
    if isinstance(expr, Product):
        result = np.zeros(1, dtype=np.int64)
        for part in expr.parts:
            inner = arrangement(part, chosen)
            result = (result[:, None] * _length(part) + inner[None, :]).reshape(-1)
        return result
    pieces, start = [], 0
    for part in expr.parts:
        pieces.append(start + arrangement(part, chosen))
        start += _length(part)
    return np.concatenate(pieces)


def _length(expr: Expr) -> int:
    if isinstance(expr, Factor):
        return expr.size.coefficient
    lengths = [_length(part) for part in expr.parts]
    return math.prod(lengths) if isinstance(expr, Product) else sum(lengths)


def _matches(group: AxisGroup, patterns: Iterable[str]) -> bool:
    """Whether the layer that makes a group, or everything that has it, is named by a pattern."""

    def named(*names: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in names)

    return named(group.name) or all(named(site.tensor, names.layer(site.tensor)) for site in group.sites)


# ---------------------------------------------------------------------------------------------------------------------


@rewrite("analyse")
def analyse(program: Program, *, returned: Set[str] = frozenset()) -> Axes:
    """Find the axis groups of a canonical program. Linear in the number of nodes.

    `returned`: names of nodes that the backbone returns, besides the outputs of the program."""
    known: dict[fx.Node, Any] = {}
    memo: dict[fx.Node, dict[str, Any]] = {}
    mixed: dict[fx.Node, list[Expr]] = {}
    depth: dict[fx.Node, int] = {}  # layers with parameters on the way from an input, of what depends on one
    joins: list[Expr] = []
    unknown: list[fx.Node] = []
    layers = Layers(program).weights
    of_tensor: dict[int, Dims] = {}  # tied parameters are one tensor under several names
    for node in program.graph.nodes:
        if node.op == "placeholder" or any(source in depth for source in node.all_input_nodes):
            depth[node] = max((depth.get(source, 0) for source in node.all_input_nodes), default=0) + (node in layers)
        if node.op == "placeholder":
            known[node] = _input_dims(node)
        elif node.op == "get_attr":
            tensor = program.tensors[str(node.target)]
            known[node] = of_tensor.setdefault(id(tensor), _tensor_dims(node, tensor))
        elif node.op == "output":
            for result in program.outputs:
                # Of several, which one.
                _pin_output(known[result], node if len(program.outputs) == 1 else result)
        elif (several := result_of(node)) is not None:
            known[node] = known[several][node.args[1]]
        elif isinstance(type_of(node), Size):
            known[node] = ()
        else:
            op = Op(node, known)
            rule = rule_of(node.target)
            if rule is None:
                unknown.append(node)
                known[node] = op.give_up("no axis rule for this operation")
                continue
            known[node] = rule.infer(op)
            if not _fits(known[node], type_of(node)):
                known[node] = op.give_up("its axis rule does not fit this call")
            memo[node] = op.memo
            if op.mixed:
                mixed[node] = op.mixed
            if rule.joins:
                joins.extend(_joined(op, depth))
        if node.name in returned:
            _pin_output(known[node], node)
    for expr in joins:
        mark_stream(expr)
    dims = {node: _resolved(axes) for node, axes in known.items()}
    leaves_of = {
        node: frozenset(leaf for expr in exprs for leaf in leaves(resolve(expr))) for node, exprs in mixed.items()
    }
    return Axes(_groups(program, dims), dims, memo, leaves_of, tuple(unknown))


def _pin_output(axes: Dims, node: fx.Node) -> None:
    for expr in axes:
        pin(expr, Pin("an output of the model", _where(node), "output"))


def _fits(axes: Any, kind: Any) -> bool:
    """Whether a rule gave one expression per dimension of every result."""
    if isinstance(kind, TensorType):
        return isinstance(axes, tuple) and len(axes) == len(kind.shape)
    return len(axes) == len(kind) and all(
        _fits(one, each) for one, each in zip(axes, kind, strict=True) if isinstance(each, TensorType)
    )


def _where(node: fx.Node) -> Where:
    return Where(node.name, name_of(node), origin_of(node))


def _input_dims(node: fx.Node) -> Dims:
    kind = type_of(node)
    where = Where(node.name, "input", origin_of(node))
    return tuple(
        opaque(size, Pin("the batch", where, "batch") if size.symbols else Pin("an input of the model", where, "input"))
        for size in kind.shape
    )


def _tensor_dims(node: fx.Node, tensor: torch.Tensor) -> Dims:
    """Dimensions of a floating-point or complex parameter are free; those of a buffer follow what they meet; indices
    and counts are pinned."""
    sizes = [Size(n) for n in tensor.shape]
    if not (tensor.is_floating_point() or tensor.is_complex()) or 0 in tensor.shape:
        reason = Pin("a table of indices", Where(node.name, "buffer", Origin(str(node.target))), "constant")
        return tuple(opaque(size, reason) for size in sizes)
    free = isinstance(tensor, torch.nn.Parameter)
    return tuple(ONE if size == Size(1) else Factor(size, free=free) for size in sizes)


def _joined(op: Op, depth: Mapping[fx.Node, int]) -> Iterator[Expr]:
    """The axes on which a residual addition meets: both operands depend on the input and have the dimension, and one
    of them has been through more layers (two halves of a rotary embedding have not)."""
    operands = op.operands()
    if len(operands) == 2 and all(node in depth for node in operands) and len({depth[n] for n in operands}) == 2:
        for one, other in zip(reversed(op.axes(operands[0])), reversed(op.axes(operands[1])), strict=False):
            if resolve(one) != ONE and resolve(other) != ONE:
                yield one


def _resolved(axes: Any) -> Any:
    if not isinstance(axes, tuple):
        return axes
    return tuple(_resolved(one) if isinstance(one, tuple) else resolve(one) for one in axes)


def _products(expr: Expr) -> Iterator[Product]:
    if isinstance(expr, Product):
        yield expr
    if isinstance(expr, Product | Sum):
        for part in expr.parts:
            if type(part) is not Factor:
                yield from _products(part)


def _groups(program: Program, dims: Mapping[fx.Node, Any]) -> tuple[AxisGroup, ...]:
    exprs = list(dict.fromkeys(expr for axes in dims.values() for expr in flat(axes)))
    factors_of = {expr: tuple(leaves(expr)) for expr in exprs}
    everything = list(dict.fromkeys(chain.from_iterable(factors_of.values())))
    for factor in everything:
        if not factor.free and factor.pin is None:
            factor.pin = Pin("no parameter has this axis", kind="constant")
    products = list(dict.fromkeys(product for expr in exprs for product in _products(expr) if product != ONE))
    whole = _whole(products)
    quanta = _quanta(products, whole)
    sites: dict[Factor, list[Site]] = {}
    for node, axes in dims.items():
        if node.op == "get_attr":
            for dim, expr in enumerate(axes):
                site = Site(str(node.target), dim)  # one object, however many parts the dimension has
                for leaf in dict.fromkeys(factors_of[expr]):
                    sites.setdefault(leaf, []).append(site)
    factors = [
        factor
        for factor in everything
        if factor not in whole
        and factor.size.static
        and (factor.pin is None or _worth_listing(factor.pin, tuple(sites.get(factor, ()))))
    ]
    names = _names(factors, sites, program)
    return tuple(
        AxisGroup(
            index=index,
            name=names[factor],
            size=factor.size.coefficient * quanta.get(factor, 1),
            quantum=quanta.get(factor, 1),
            role="stream" if factor.stream else "inner",
            sites=tuple(sites.get(factor, ())),
            pin=factor.pin,
            ordered=factor.ordered,
            factor=factor,
        )
        for index, factor in enumerate(factors)
    )


_WEIGHT = re.compile(r"\.weight(_[a-z]+_l\d+)?$")  # recurrent layers: rnn.weight_ih_l0


def _names(factors: Sequence[Factor], sites: Mapping[Factor, Sequence[Site]], program: Program) -> dict[Factor, str]:
    """A group is named after the layer that makes it: the first weight that has it as its outermost dimension.

    Narrowable groups choose first; of several with one name the later ones are numbered."""
    names: dict[Factor, str] = {}
    taken: Counter[str] = Counter()
    for factor in sorted(factors, key=lambda factor: factor.pin is not None):
        at = list(sites.get(factor, ()))
        makers = [site for site in at if site.dim == 0 and program.tensors[site.tensor].ndim > 1] or at
        base = _WEIGHT.sub("", makers[0].tensor) if makers else "axis"
        taken[base] += 1
        names[factor] = base if taken[base] == 1 else f"{base}#{taken[base]}"
    return names


def _worth_listing(reason: Pin, sites: Sequence[Site]) -> bool:
    """Pinned axes are listed where a parameter has them; kernel offsets (the third dimension on) are no channels."""
    return any(site.dim < 2 or reason.kind != "position" for site in sites)


def _whole(products: Sequence[Product]) -> set[Factor]:
    """In a product only the outermost free part is cut. The free factors inside it are kept whole, everywhere."""
    whole: set[Factor] = set()
    changed = True
    while changed:
        changed = False
        for product in products:
            cut = False
            for part in product.parts:
                free = [leaf for leaf in leaves(part) if leaf.pin is None and leaf not in whole]
                if free and cut:
                    whole.update(free)
                    changed = True
                cut = cut or bool(free)
    return whole


def _quanta(products: Sequence[Product], whole: set[Factor]) -> dict[Factor, int]:
    """The number of channels in one unit of a factor: what it carries whole inside its products."""
    quanta: dict[Factor, int] = {}
    for product in products:
        carried = [_carried(part, whole) for part in product.parts]
        for index, part in enumerate(product.parts):
            others = math.prod(carried[:index] + carried[index + 1 :])
            for leaf in leaves(part):
                if leaf.pin is None and leaf not in whole:
                    quanta[leaf] = max(quanta.get(leaf, 1), others)
    return quanta


def _carried(expr: Expr, whole: set[Factor]) -> int:
    """Channels of an expression that is kept whole; pinned factors and those that are cut count as one."""
    if isinstance(expr, Factor):
        return expr.size.coefficient if expr in whole else 1
    counts = [_carried(part, whole) for part in expr.parts]
    return math.prod(counts) if isinstance(expr, Product) else sum(counts) if any(c > 1 for c in counts) else 1
