"""The table of operations: all that is known of each of them stands in its rule.

A rule says how the axes of the results follow from those of the operands (`infer`), which arguments are sizes that
change when axes are narrowed (`resize`), and how many multiply-accumulates the operation costs (`macs`); for most
operations one line of factor notation says all three. Beside that it has traits: what kind of operation it is, which
argument says that it trains, and so on. A pass asks for a trait, and never for the name of an operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import torch
from torch import fx

from anytimeify._torch import OpOverload
from anytimeify.ir import Size, TensorType
from anytimeify.ir.schema import bound
from anytimeify.rules import factors
from anytimeify.rules.contractions import Contraction, contractions_in
from anytimeify.rules.lifting import Lifting
from anytimeify.rules.notation import Dots, Notation, parse
from anytimeify.rules.op import Call, Op, Resize, apply, flat_nodes, solve
from anytimeify.rules.prefix_norms import Prefix

__all__ = [
    *("Kind", "Rule", "axis_rule", "build_rule", "contractions", "has_kind", "notation_of", "registered", "rule_of"),
    *("traits", "unregister"),
]

Infer: TypeAlias = Callable[[Op], Any]
Resizer: TypeAlias = Callable[[Resize], dict[str, Any] | Call]
Sources: TypeAlias = "Callable[[fx.Node, int], dict[fx.Node, int] | None]"
Joined: TypeAlias = "Callable[[fx.Node, fx.Node, float], tuple[OpOverload, tuple[Any, ...]]]"
Kind: TypeAlias = Literal[
    "layer",  # multiplies what it reads with weights, and adds up
    "recurrent",  # a layer with a state
    "attention",
    "norm",
    "lookup",  # rows of a table
    "pointwise",
    "cast",  # the same elements in another type or place
    "dropout",  # elements or whole channels, in training alone
    "stochastic depth",  # whole samples, in training alone
    "random",  # draws numbers
    "reshape",  # the same elements in the same order
    "selection",  # some of the elements
    "permutation",  # all of the elements in another order
    "expansion",  # elements repeated
    "join",
    "split",
    "reduction",
    "pooling",
    "padding",
    "factory",  # made of sizes and numbers
    "gather",  # elements read from, or written to, places that indices say
    "size",  # of a tensor
    "choice",  # one operand in training, another in eval mode
    "mode",  # what else training does besides
    "autograd function",
    "kept module",  # a module of the user's, as it is
    "other",
]


@dataclass(frozen=True)
class Rule:
    """What is known of one operation."""

    infer: Infer
    resize: Resizer | None = None
    macs: Callable[[fx.Node], Size] | None = None
    view: bool = False  # the result shares memory with the first operand
    joins: bool = False  # a residual addition: axes that pass through it are streams
    notation: Callable[[fx.Node], Notation | None] | None = None  # the line that fits a call
    kind: Kind = "other"
    training: str | None = None  # the argument that says whether it trains
    evaluation: str | None = None  # the operand that is the result in eval mode
    writes: str | None = None  # the buffer that a forward pass in training writes to
    bias: str | None = None  # the argument that a layer adds
    weights: tuple[str, ...] = ()  # arguments that hold weights, where no notation says so
    groups: str | None = None  # the argument that is the number of groups of channels
    scale: str | None = None  # the argument that a norm multiplies what it has normalised by
    shift: str | None = None  # the argument that it adds to that
    prefix: Prefix | None = None  # the norms of all levels as one operation, where channels of levels are prefixes
    joined: Joined | None = None  # a reduction of two parts, from theirs
    products: Callable[[fx.Node], bool] | None = None  # whether a call is nothing but the sum that its notation says
    triangular: Callable[[fx.Node], Call | None] | None = None  # the same with a block-triangular weight
    placed: Callable[[fx.Node], Sequence[int]] | None = None  # dimensions of the first operand told apart by place
    sources: Sources | None = None  # where a dimension of the result lies in the operands, if nothing mixes along it
    modules: tuple[Lifting, ...] = ()  # the modules that compute it


_UNKNOWN = Rule(lambda op: op.give_up("no axis rule for this operation"))
_RULES: dict[Any, Rule] = {}  # by overload, or by name where the operator's library may be imported later
_OUTSIDE: set[Any] = set()  # those that were registered outside of this package


def rule_of(target: Any) -> Rule | None:
    """The rule of an operation, or None."""
    rule = _RULES.get(target)
    return _RULES.get(str(target)) if rule is None and isinstance(target, OpOverload) else rule


def traits(node: fx.Node) -> Rule:
    """What is known of the operation that a node calls; nothing of other nodes, and of operations without a rule."""
    return (rule_of(node.target) if node.op == "call_function" else None) or _UNKNOWN


def has_kind(node: fx.Node, *kinds: Kind) -> bool:
    """Whether a node calls an operation of one of some kinds."""
    return traits(node).kind in kinds


def notation_of(node: fx.Node) -> Notation | None:
    """The line of factor notation that fits a call."""
    line = traits(node).notation
    return line(node) if line is not None else None


def contractions(node: fx.Node) -> tuple[Contraction, ...]:
    """Every way to see a call as a layer; none where its rule has no notation, or does not contract."""
    line, kind = notation_of(node), node.meta.get("type")
    if line is None or not line.contracted or not isinstance(kind, TensorType):
        return ()
    return tuple(contractions_in(line, tensor_operands(node), kind))


def has_rule(name: str) -> bool:
    """Whether the operation `library.operator.overload` has a rule."""
    return any(str(target) == name for target in _RULES)


def tensor_operands(node: fx.Node) -> list[fx.Node]:
    """The tensors that a call reads, in the order of its schema."""
    return [one for one in flat_nodes(bound(node).values()) if isinstance(one.meta["type"], TensorType)]


def registered() -> Mapping[Any, Rule]:
    """Every operation that has a rule, those left out whose library may be imported later."""
    return {target: rule for target, rule in _RULES.items() if not isinstance(target, str)}


def of_other_libraries() -> frozenset[str]:
    """The names of the operations of other libraries that have a rule."""
    return frozenset(str(target) for target in _OUTSIDE | {one for one in _RULES if isinstance(one, str)})


def unregister(target: Any) -> None:
    """Forget the rule of an operation."""
    del _RULES[target]
    _OUTSIDE.discard(target)


def axis_rule(
    target: Any,
    rule: str | Infer | Sequence[str],
    *,
    literals: Mapping[str, str | Sequence[str]] | Resizer | None = None,
    macs: str | Sequence[str] | Callable[[fx.Node], Size] | None = (),
    view: bool = False,
    joins: bool = False,
    notation: str | Sequence[str] | Callable[[fx.Node], Notation | None] | None = None,
    kind: Kind | None = None,
    training: str | None = None,
    evaluation: str | None = None,
    writes: str | None = None,
    bias: str | None = None,
    weights: Sequence[str] = (),
    groups: str | None = None,
    scale: str | None = None,
    shift: str | None = None,
    prefix: Prefix | None = None,
    joined: Joined | None = None,
    products: bool | Callable[[fx.Node], bool] = False,
    triangular: Callable[[fx.Node], Call | None] | None = None,
    placed: Callable[[fx.Node], Sequence[int]] | None = None,
    sources: Sources | None = None,
    module: Lifting | Sequence[Lifting] = (),
    later: bool = False,
) -> None:
    """Register the rule of one operation (or of a list of them).

    target: an overload such as `torch.ops.mylib.scale.default`, or its name, `"mylib.scale.default"`; with `later` the
        name of one that exists once its library is imported.
    rule: a line of factor notation, several of them (the first whose ranks fit is taken), or a function of the `Op`.
    literals: the arguments that are sizes, `{"groups": "g"}`; or a function of the `Resize`.
    macs: the factors whose product is the number of multiply-accumulates; several such lists add up.
    view: the result shares memory with the first operand.
    joins: a residual addition.
    notation: what a function says of the axes, as far as lines can: which operand is the weight of a layer is read off
        them.
    kind: what the operation is; where not given, a layer if something is contracted and multiplied.
    training: the argument that says whether it trains.
    evaluation: the operand that is the result in eval mode, as of a dropout.
    writes: the argument that is a buffer which a forward pass in training writes to.
    bias: the argument that a layer adds.
    weights: the arguments that hold weights of a layer, where no line says so.
    groups: the argument that is the number of groups of channels: members of an ensemble are more groups.
    scale, shift: of a norm, the argument that multiplies what has been normalised, and the one that is added to that,
        with nothing else done to either. Where both may be None, members of an ensemble are normalised together.
    prefix: of a norm, a function of the node and of where its levels end that gives the call of an operation of ours
        which computes all levels at once, or None.
    joined: of a reduction, a function of what one part was reduced to, what the other was, and the share of all
        elements that the other has, that gives the operation that reduces both, and its operands.
    products: whether the result is the sum of products that the line says, as `torch.einsum` computes it, and the bias
        besides: members of an ensemble are another index. A function of the node where arguments decide.
    triangular: a function of the node that gives the call of an operation of ours which leaves out what a
        block-triangular weight does not have.
    placed: a function of the node that gives the dimensions of the first operand whose elements are told apart by where
        they stand, though the result has them too; where not given, the argument `dim`.
    sources: a function of the node and a dimension of its result that says in which operands, and which dimension of
        each, the same elements lie; None where they do not, or where they are not all in one place.
    module: the modules that compute it, the first that fits is taken.

    What is registered outside of this package may be registered again, as when a notebook's cell runs twice. Raises
    `ValueError` for names that torch does not know, operations of ours that have a rule, and malformed lines.
    """
    built = replace(
        build_rule(rule, literals=literals, macs=macs, notation=notation, kind=kind),
        view=view,
        joins=joins,
        training=training,
        evaluation=evaluation,
        writes=writes,
        bias=bias,
        weights=tuple(weights),
        groups=groups,
        scale=scale,
        shift=shift,
        prefix=prefix,
        joined=joined,
        products=products if callable(products) else _always if products else None,
        triangular=triangular,
        placed=placed,
        sources=sources,
        modules=(module,) if isinstance(module, Lifting) else tuple(module),
    )
    for one in target if isinstance(target, list | tuple) else [target]:
        key = one if not isinstance(one, str) else one if later else overload(one)
        if key in _RULES and key not in _OUTSIDE:
            raise ValueError(f"{key} has a rule already")
        _RULES[key] = built
        if _sealed:
            _OUTSIDE.add(key)


def overload(name: str) -> OpOverload:
    """The operation `library.operator.overload`. Raises `ValueError` where torch does not know it."""
    found: Any = torch.ops
    for part in name.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, OpOverload):
        raise ValueError(
            f"torch has no operation {name!r}: expected library.operator.overload, such as 'aten.relu.default'; import "
            "the library that defines it first, or give later=True"
        )
    return found


_sealed = False


def seal() -> None:
    """Called once all rules of this package are there: whatever comes later is registered from outside."""
    global _sealed
    _sealed = True


def build_rule(
    rule: Any,
    *,
    literals: Any = None,
    macs: Any = (),
    notation: Any = None,
    kind: Kind | None = None,
) -> Rule:
    """The `Rule` that `axis_rule` would register; for rules that choose between several at run time."""
    if callable(rule):
        line = _line_of(_parsed(notation)) if isinstance(notation, str | list | tuple) else notation
        return Rule(rule, literals, macs or None, notation=line, kind=kind or "other")
    lines = _parsed(rule)
    counted = [item.split() for item in ([macs] if isinstance(macs, str) else macs)]
    sizes = tuple(literals) if isinstance(literals, Mapping) else ()
    line_of = _line_of(lines)

    def infer(op: Op) -> Any:
        computed = next((name for name in sizes if list(flat_nodes([op[name]]))), None)
        if computed is not None:
            return op.give_up(f"its {computed} are computed, from the size of the batch for instance")
        line = line_of(op.node)
        return op.give_up("unusual operands") if line is None else apply(line, op, op.operands())

    def sizes_of(node: fx.Node, types: Callable[[fx.Node], TensorType]) -> Mapping[str, Size]:
        shapes = [types(one).shape for one in tensor_operands(node)]
        line = _fitting(lines, tuple(len(shape) for shape in shapes))
        return {} if line is None else solve(line, shapes, types(node).shape)

    def resize(r: Resize) -> dict[str, Any]:
        found = sizes_of(r.node, lambda node: r.types[node])
        if not found:
            return {}
        return {
            name: found[spec].coefficient if isinstance(spec, str) else [found[part].coefficient for part in spec]
            for name, spec in literals.items()
            if not list(flat_nodes([r.arguments[name]]))
        }

    def count(node: fx.Node) -> Size:
        found = sizes_of(node, lambda other: other.meta["type"])
        totals = (
            [math.prod((found.get(name, Size(1)) for name in item), start=Size(1)) for item in counted] if found else []
        )
        return factors.add_sizes(totals) if totals else Size(0)

    contracts = bool(counted) and any(line.contracted for line in lines)
    return Rule(
        infer,
        literals if callable(literals) else resize if literals else None,
        count if counted else None,
        notation=line_of,
        kind=kind or ("layer" if contracts else "other"),
    )


def _always(node: fx.Node) -> bool:
    return True


def _parsed(lines: str | Sequence[str]) -> tuple[Notation, ...]:
    return tuple(parse(line) for line in ([lines] if isinstance(lines, str) else lines))


def _line_of(lines: Sequence[Notation]) -> Callable[[fx.Node], Notation | None]:
    lines = tuple(lines)
    return lambda node: _fitting(lines, tuple(len(one.meta["type"].shape) for one in tensor_operands(node)))


@lru_cache(maxsize=1024)
def _fitting(lines: tuple[Notation, ...], ranks: tuple[int, ...]) -> Notation | None:
    for notation in lines:
        if len(notation.operands) >= len(ranks) and all(
            rank >= len(pattern) - 1 if Dots() in pattern else rank == len(pattern)
            for pattern, rank in zip(notation.operands, ranks, strict=False)
        ):
            return notation
    return None
