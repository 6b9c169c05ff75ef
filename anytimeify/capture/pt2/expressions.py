"""Symbolic sizes and guards: arithmetic on symbols, and comparisons of sizes of inputs. Nothing is evaluated here.

torch hands the text of a size to `sympy.sympify` and that of a guard to `exec`, both of which run any Python. Here the
text is parsed, and each node of its tree must be in a table. Sizes are bounded too: `2**10**9` is arithmetic.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

from anytimeify.capture.pt2.checks import Refused, quoteless, shown

__all__ = ["guard", "symbol", "symbolic"]

# Those of the sizes and numbers that an exporter makes up, as torch names them. It counts up to the number of an
# unbacked one (`u3`, `zuf0`), so that one may not be large.
_SYMBOL = re.compile(r"(s|zf)\d{1,12}|(u|zuf)\d{1,5}")
_ASSUMPTIONS = frozenset({"integer", "positive", "nonnegative", "real", "finite", "nonzero", "negative", "extended_real"})

# What sympy and torch write for an expression (`srepr`), by how large the result may be.
_SUMS = frozenset({"Add", "Max", "Min", "Where", "Piecewise", "ITE", "Mod", "PythonMod", "ModularIndexing"})
_PRODUCTS = frozenset({"Mul", "Rational"})
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})
_QUOTIENTS = frozenset({"FloorDiv", "CleanDiv", "CeilDiv", "FloatTrueDiv", "IntTrueDiv", "RShift"})
_SAME = frozenset(
    {"Integer", "Float", "Identity", "ToFloat", "CeilToInt", "FloorToInt", "TruncToFloat", "TruncToInt", "RoundToInt"}
    | {"RoundDecimal", "Abs", "floor", "ceiling"}
)
_TRUTHS = frozenset(
    {"Equality", "Unequality", "StrictGreaterThan", "StrictLessThan", "GreaterThan", "LessThan", "Eq", "Ne", "Gt"}
    | {"Lt", "Ge", "Le", "And", "Or", "Not", "IsNonOverlappingAndDenseIndicator"}
)
_UNARY_OF_REALS = re.compile(r"OpaqueUnaryFn_[a-z0-9]{1,10}")
_KEYWORDS = {"Symbol": _ASSUMPTIONS, "Float": frozenset({"precision"})}

_LONGEST, _DEEPEST, _LARGEST_EXPONENT = 20_000, 100, 64
_MOST_BITS, _MOST_TERMS, _MOST_OPERANDS = 8_192, 10_000, 1_000
_OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "Add",
    ast.Sub: "Add",
    ast.Mult: "Mul",
    ast.FloorDiv: "FloorDiv",
    ast.Div: "FloatTrueDiv",
    ast.Mod: "Mod",
    ast.Pow: "Pow",
}


class _Extent(NamedTuple):
    """Bounds of what evaluation may make of an expression: bits of a number, terms of the expanded polynomial."""

    bits: int
    terms: int


def symbol(value: Any, where: str) -> None:
    """The name of a symbolic size."""
    if not isinstance(value, str) or not _SYMBOL.fullmatch(value):
        raise Refused(where, f"expected the name of a symbolic size, such as s77, got {shown(value)}")


def symbolic(value: Any, where: str) -> None:
    """A symbolic size, as `srepr` or as arithmetic writes it: `Add(Symbol('s77', integer=True), Integer(1))`."""
    _extent(_parsed(value, where), where)


def guard(value: Any, where: str) -> None:
    """A condition on the sizes of inputs: `L['x'].size()[0] % 2 == 0`."""
    if isinstance(value, str) and not _IN_GUARDS.fullmatch(value):
        raise Refused(where, f"expected a comparison of sizes, got {shown(value)}")
    _extent(_parsed(value, where), where, source=True)


# A guard becomes a line of a function and part of the string with which that complains.
_IN_GUARDS = re.compile(r"[\w .,'\[\]()+\-*/%<>=!~&|@:$]+")


def _parsed(value: Any, where: str) -> ast.expr:
    if not isinstance(value, str) or len(value) > _LONGEST or not value.isprintable():
        raise Refused(where, f"expected an arithmetic expression, got {shown(value)}")
    if value.count("(") > _MOST_OPERANDS or _depth(value) > _DEEPEST:
        raise Refused(where, f"is nested too deeply: {shown(value)}")
    try:
        return ast.parse(value.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise Refused(where, f"is no arithmetic expression: {shown(value)}") from error


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        deepest = max(deepest, depth)
    # Unary signs and right-associative powers nest without brackets.
    return deepest + max(text.count("**"), text.count("not "), len(max(re.findall(r"[-+~ ]+", text), key=len, default="")))


def _extent(node: ast.expr, where: str, *, source: bool = False) -> _Extent:
    extent = _extent_of(node, where, source)
    if extent.bits > _MOST_BITS or extent.terms > _MOST_TERMS:
        raise Refused(where, f"stands for a number or a polynomial that is too large: {shown(ast.unparse(node))}")
    return extent


def _extent_of(node: ast.expr, where: str, source: bool) -> _Extent:
    def inner(one: ast.expr) -> _Extent:
        return _extent(one, where, source=source)

    match node:
        case ast.Constant(value=bool()) | ast.Constant(value=float()):
            return _Extent(64, 1)
        case ast.Constant(value=int(whole)):
            return _Extent(max(whole.bit_length(), 1), 1)
        case ast.Name(id=text) if _SYMBOL.fullmatch(text) or text in ("true", "false", "oo", "inf", "int_oo"):
            return _Extent(64, 1)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not(), operand=operand):
            return inner(operand)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            return _combined(_OPERATORS[type(operator)], [left, right], inner, where)
        case ast.BoolOp(values=values):
            return _truth(values, inner)
        case ast.Compare(left=left, ops=ops, comparators=others) if not any(map(_membership, ops)):
            return _truth([left, *others], inner)
        case ast.Tuple(elts=values):
            return _truth(values, inner)
        case ast.Attribute(value=ast.Name(id="math"), attr="inf") if source:
            return _Extent(64, 1)
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(text))]) if not source:
            symbol(text, where)
            _keywords(node, where)
            return _Extent(64, 1)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str(text))]) if not source:
            if not re.fullmatch(r"-?\d+(\.\d*)?(e[+-]?\d{1,3})?", text[:64]):
                raise Refused(where, f"expected a number, got {shown(text)}")
            _keywords(node, where)
            return _Extent(1_024, 1)
        case ast.Call(func=ast.Name(id=text), args=args):
            _keywords(node, where)
            return _combined(text, args, inner, where)
        case _ if source and _reads_size(node, where):
            return _Extent(64, 1)
    raise Refused(where, f"is no arithmetic: {shown(ast.unparse(node))}")


def _combined(
    function: str, args: Sequence[ast.expr], extent: Callable[[ast.expr], _Extent], where: str
) -> _Extent:
    known = _SUMS | _PRODUCTS | _POWERS | _QUOTIENTS | _SAME | _TRUTHS
    if function not in known and not _UNARY_OF_REALS.fullmatch(function):
        raise Refused(where, f"{shown(function)} is no function of sizes that is read")
    if function in _POWERS:
        return _power(args, extent, where)
    parts = [extent(one) for one in args]
    if function in _PRODUCTS:
        return _Extent(sum(part.bits for part in parts), prod(part.terms for part in parts))
    bits = max((part.bits for part in parts), default=1) + len(parts).bit_length()
    return _Extent(bits, sum(part.terms for part in parts))


def _power(args: Sequence[ast.expr], extent: Callable[[ast.expr], _Extent], where: str) -> _Extent:
    """The exponent is a number that is written out, and small."""
    if len(args) != 2 or (exponent := _literal(args[1])) is None or exponent > _LARGEST_EXPONENT:
        raise Refused(where, f"expected a power of at most {_LARGEST_EXPONENT}")
    base = extent(args[0])
    return _Extent(base.bits * max(exponent, 1) + _LARGEST_EXPONENT, base.terms ** max(exponent, 1))


def _literal(node: ast.expr) -> int | None:
    """The magnitude of a whole number or a simple fraction that is written out."""
    match node:
        case ast.Constant(value=int(whole)):
            return whole
        case ast.Constant(value=float(real)) if abs(real) <= _LARGEST_EXPONENT:
            return int(abs(real)) + 1
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _literal(operand)
        case ast.Call(func=ast.Name(id="Integer"), args=[whole]):
            return _literal(whole)
        case ast.Call(func=ast.Name(id="Rational"), args=[above, below]):
            parts = (_literal(above), _literal(below))
            return None if None in parts else max(parts)  # type: ignore[type-var]  # neither is None
    return None


def _truth(values: Sequence[ast.expr], extent: Callable[[ast.expr], _Extent]) -> _Extent:
    parts = [extent(one) for one in values]
    return _Extent(max(part.bits for part in parts) if parts else 1, sum(part.terms for part in parts))


def _keywords(node: ast.Call, where: str) -> None:
    allowed = _KEYWORDS.get(node.func.id if isinstance(node.func, ast.Name) else "", frozenset())
    for one in node.keywords:
        value = one.value.value if isinstance(one.value, ast.Constant) else None
        small = isinstance(value, bool) or (isinstance(value, int) and 0 < value <= 1_000)
        if one.arg not in allowed or not small:
            raise Refused(where, f"{shown(ast.unparse(one))} is no assumption about a size")


def _membership(operator: ast.cmpop) -> bool:
    return isinstance(operator, ast.In | ast.NotIn | ast.Is | ast.IsNot)


_METHODS = frozenset({"size", "stride", "storage_offset"})


def _reads_size(node: ast.expr, where: str) -> bool:
    """`L['x'].size()[0]`, `L['x']['key'].storage_offset()`, or the input itself where that is a number: `L['n']`."""
    match node:
        case ast.Subscript(value=ast.Call(func=ast.Attribute(value=tensor, attr=method), args=[], keywords=[])):
            return method in _METHODS and _place(node.slice, where) and _input(tensor, where)
        case ast.Call(func=ast.Attribute(value=tensor, attr="storage_offset"), args=[], keywords=[]):
            return _input(tensor, where)
    return _input(node, where)


def _input(node: ast.expr, where: str) -> bool:
    match node:
        case ast.Subscript(value=ast.Name(id="L"), slice=ast.Constant(value=str(text))):
            return text.isidentifier()
        case ast.Subscript(value=inner, slice=place):
            return _place(place, where) and _input(inner, where)
        case ast.Attribute(value=inner, attr=field):
            return not field.startswith("_") and _input(inner, where)
    return False


def _place(node: ast.expr, where: str) -> bool:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str | int):
        return False
    if isinstance(node.value, str):
        quoteless(node.value, where)
    return True
