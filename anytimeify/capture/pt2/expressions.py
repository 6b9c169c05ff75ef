"""Symbolic sizes and guards: arithmetic on symbols, and comparisons of sizes of inputs. Nothing is evaluated here.

torch hands the text of a size to `sympy.sympify` and that of a guard to `exec`, both of which run any Python. Here the
text is parsed, and each node of its tree must be in a table. Its value is bounded too: `2**10**9` is arithmetic.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from anytimeify.capture.pt2.checks import RefusedError, quoteless, shown

__all__ = ["guard", "symbol", "symbolic"]


class _Extent(NamedTuple):
    """What evaluation may make of an expression, at most: bits of a number, terms of a polynomial once multiplied."""

    bits: int
    terms: int


_VARIABLE = _Extent(64, 1)

# Sizes and numbers that an exporter makes up, as torch names them. It counts up to the number of an unbacked one (`u3`,
# `zuf0`), so that one may not be large.
_SYMBOL = re.compile(r"(s|zf)[0-9]{1,12}|(u|zuf)[0-9]{1,5}")
_ASSUMPTIONS = frozenset(
    {"integer", "positive", "nonnegative", "real", "finite", "nonzero", "negative", "extended_real"}
)
_NUMBERS = frozenset({"true", "false", "oo", "int_oo", "inf", "math.inf"})
_REAL = re.compile(r"-?\d{1,64}(\.\d{0,64})?(e[+-]?\d{1,3})?")

# Functions by how an expression grows in them: the terms of a sum add up, those of a product multiply; other functions
# stay what they are, as large as their largest operand.
_SUM, _PRODUCT, _POWER, _OPAQUE = "sum", "product", "power", "opaque"
_OPERATORS: Mapping[type[ast.operator], str] = {
    ast.Add: _SUM,
    ast.Sub: _SUM,
    ast.Mult: _PRODUCT,
    ast.Pow: _POWER,
    ast.FloorDiv: _OPAQUE,
    ast.Div: _OPAQUE,
    ast.Mod: _OPAQUE,
}
# What sympy and torch write of a size (`srepr`).
_SYMBOLIC: Mapping[str, str] = {
    "Add": _SUM,
    "Mul": _PRODUCT,
    "Pow": _POWER,
    "PowByNatural": _POWER,
    "FloatPow": _POWER,
    "LShift": _POWER,
    **dict.fromkeys(("Integer", "Rational", "Identity", "ToFloat"), _SUM),
    **dict.fromkeys(("Max", "Min", "Mod", "PythonMod", "ModularIndexing", "Abs", "floor", "ceiling"), _OPAQUE),
    **dict.fromkeys(("FloorDiv", "CleanDiv", "CeilDiv", "FloatTrueDiv", "IntTrueDiv", "RShift"), _OPAQUE),
    **dict.fromkeys(("CeilToInt", "FloorToInt", "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal"), _OPAQUE),
    **dict.fromkeys(("Equality", "Unequality", "Eq", "Ne", "And", "Or", "Not", "Where", "Piecewise", "ITE"), _OPAQUE),
    **dict.fromkeys(("StrictGreaterThan", "StrictLessThan", "GreaterThan", "LessThan"), _OPAQUE),
    **dict.fromkeys(("Gt", "Lt", "Ge", "Le", "ExprCondPair", "IsNonOverlappingAndDenseIndicator"), _OPAQUE),
    **dict.fromkeys(
        (f"OpaqueUnaryFn_{name}" for name in ("sqrt", "cos", "cosh", "sin", "sinh", "tan", "tanh", "log2", "exp")),
        _OPAQUE,
    ),
}
# What torch writes of a guard, which is Python.
_IN_GUARDS: Mapping[str, str] = dict.fromkeys(
    (
        *("max", "min", "abs", "round", "torch.sym_float", "torch._sym_sqrt"),
        *("cast_symbool_to_symint_guardless", "IsNonOverlappingAndDenseIndicator"),
        *(f"math.{name}" for name in ("floor", "ceil", "trunc", "sqrt", "log2")),
        *(f"math.{name}" for name in ("cos", "cosh", "acos", "sin", "sinh", "asin", "tan", "tanh", "atan")),
    ),
    _OPAQUE,
)

_LONGEST, _DEEPEST, _MOST_NODES = 20_000, 100, 2_000
_MOST_BITS, _MOST_TERMS, _LARGEST_EXPONENT = 8_192, 10_000, 64


def symbol(value: Any, where: str) -> None:
    """The name of a symbolic size."""
    if not isinstance(value, str) or not _SYMBOL.fullmatch(value):
        raise RefusedError(where, f"expected the name of a symbolic size, such as s77, got {shown(value)}")


def symbolic(value: Any, where: str) -> None:
    """A symbolic size, as `srepr` or as arithmetic writes it: `Add(Symbol('s77', integer=True), Integer(1))`."""
    if not isinstance(value, str) or not _SIZE.fullmatch(value):
        raise RefusedError(where, f"expected an arithmetic expression, got {shown(value)}")
    _Expression(where, _SYMBOLIC, _symbol_or_real).extent(_parsed(value, where))


def guard(value: Any, where: str) -> None:
    """A condition on the sizes of inputs: `L['x'].size()[0] % 2 == 0`."""
    # It becomes a line of a function, and part of the text with which that complains.
    if not isinstance(value, str) or not _GUARD.fullmatch(value):
        raise RefusedError(where, f"expected a comparison of sizes, got {shown(value)}")
    _Expression(where, _IN_GUARDS, _size_of_input).extent(_parsed(value, where))


# Letters that some tree of such expressions needs, so that no comment and no line end hides anything.
_SIZE = re.compile(r"[\w .,'()+\-*/%<>=!]+", re.ASCII)
_GUARD = re.compile(r"[\w .,'\[\]()+\-*/%<>=!:@|&$]+")


def _parsed(value: str, where: str) -> ast.expr:
    if len(value) > _LONGEST or _depth(value) > _DEEPEST:
        raise RefusedError(where, f"is too long, or nested too deeply: {shown(value)}")
    try:
        tree = ast.parse(value.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise RefusedError(where, f"is no arithmetic expression: {shown(value)}") from error
    if sum(1 for _ in ast.walk(tree)) > 5 * _MOST_NODES:
        raise RefusedError(where, f"has too many parts: {shown(value)}")
    return tree


def _depth(text: str) -> int:
    """How deep a parser goes at most: into brackets, and into what nests without them."""
    deepest = depth = 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        deepest = max(deepest, depth)
    signs = max(map(len, re.findall(r"[-+~ ]+", text)), default=0)
    return deepest + max(text.count("**"), text.count("not "), text.count(" else "), signs)


class _Expression:
    """One expression: where it stands, the functions it may call, and what its variables look like."""

    def __init__(
        self, where: str, functions: Mapping[str, str], variable: Callable[[ast.expr, str], _Extent | None]
    ) -> None:
        self._where, self._functions, self._variable = where, functions, variable

    def extent(self, node: ast.expr) -> _Extent:
        """Bounds of a node; `RefusedError` where it is no arithmetic, or too large."""
        result = self._variable(node, self._where) or self._number(node) or self._operation(node)
        if result.bits > _MOST_BITS or result.terms > _MOST_TERMS:
            raise self._refused(node, "stands for a number or a polynomial that is too large")
        return result

    def _number(self, node: ast.expr) -> _Extent | None:
        match node:
            case ast.Constant(value=bool() | float()):
                return _VARIABLE
            case ast.Constant(value=int(whole)):
                return _Extent(max(whole.bit_length(), 1), 1)
            case ast.Name() | ast.Attribute() if ast.unparse(node) in _NUMBERS:
                return _VARIABLE
        return None

    def _operation(self, node: ast.expr) -> _Extent:
        match node:
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not(), operand=operand):
                return self.extent(operand)
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
                return self._grown(_OPERATORS[type(operator)], [left, right], node)
            case ast.BoolOp(values=values) | ast.Tuple(elts=values):
                return self._grown(_OPAQUE, values, node)
            case ast.Compare(left=left, ops=ops, comparators=others) if not any(map(_membership, ops)):
                return self._grown(_OPAQUE, [left, *others], node)
            case ast.IfExp(test=test, body=body, orelse=other):
                return self._grown(_OPAQUE, [test, body, other], node)
            case ast.Call(func=function, args=args, keywords=[]) if ast.unparse(function) in self._functions:
                return self._grown(self._functions[ast.unparse(function)], args, node)
        raise self._refused(node, "is no arithmetic")

    def _grown(self, how: str, operands: Sequence[ast.expr], node: ast.expr) -> _Extent:
        if how == _POWER:
            return self._power(operands, node)
        parts = [self.extent(one) for one in operands]
        if how == _PRODUCT:
            return _Extent(sum(part.bits for part in parts), prod(part.terms for part in parts))
        bits = max((part.bits for part in parts), default=1) + len(parts).bit_length()
        return _Extent(bits, sum(part.terms for part in parts) if how == _SUM else 1)

    def _power(self, operands: Sequence[ast.expr], node: ast.expr) -> _Extent:
        """The exponent is a number that is written out, and small."""
        exponent = _literal(operands[1]) if len(operands) == 2 else None
        if exponent is None or exponent > _LARGEST_EXPONENT:
            raise self._refused(node, f"is no power of at most {_LARGEST_EXPONENT}")
        base, times = self.extent(operands[0]), max(exponent, 1)
        return _Extent(base.bits * times + _LARGEST_EXPONENT, base.terms**times)

    def _refused(self, node: ast.expr, why: str) -> RefusedError:
        return RefusedError(self._where, f"{why}: {shown(ast.unparse(node))}")


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
            parts = [_literal(above), _literal(below)]
            return max((part for part in parts if part is not None), default=None) if None not in parts else None
    return None


def _membership(operator: ast.cmpop) -> bool:
    return isinstance(operator, ast.In | ast.NotIn | ast.Is | ast.IsNot)


def _symbol_or_real(node: ast.expr, where: str) -> _Extent | None:
    """`s77`, `Symbol('s77', integer=True)`, `Float('0.5', precision=53)`."""
    match node:
        case ast.Name(id=text) if _SYMBOL.fullmatch(text):
            return _VARIABLE
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=text)]):
            symbol(text, where)
            return _assumed(node, _ASSUMPTIONS, bool, where)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str(text))]) if _REAL.fullmatch(text):
            return _assumed(node, {"precision"}, int, where)
    return None


def _assumed(node: ast.Call, names: frozenset[str] | set[str], kind: type, where: str) -> _Extent:
    for one in node.keywords:
        value = one.value.value if isinstance(one.value, ast.Constant) else None
        small = isinstance(value, int) and 0 <= value <= 1_000
        if one.arg not in names or not small or type(value) is not kind:
            raise RefusedError(where, f"{shown(ast.unparse(one))} is nothing that is assumed of a size")
    return _Extent(1_100, 1) if kind is int else _VARIABLE


def _size_of_input(node: ast.expr, where: str) -> _Extent | None:
    """`L['x'].size()[0]`, `L['x']['key'].storage_offset()`, or the input itself where that is a number: `L['n']`."""
    match node:
        case ast.Subscript(
            value=ast.Call(func=ast.Attribute(value=tensor, attr="size" | "stride"), args=[], keywords=[]),
            slice=ast.Constant(value=int()),
        ):
            return _VARIABLE if _input(tensor, where) else None
        case ast.Call(func=ast.Attribute(value=tensor, attr="storage_offset"), args=[], keywords=[]):
            return _VARIABLE if _input(tensor, where) else None
    return _VARIABLE if _input(node, where) else None


def _input(node: ast.expr, where: str) -> bool:
    match node:
        case ast.Subscript(value=ast.Name(id="L"), slice=ast.Constant(value=str(text))):
            return text.isidentifier()
        case ast.Subscript(value=inner, slice=ast.Constant(value=str(key))):
            quoteless(key, where)
            return _input(inner, where)
        case ast.Subscript(value=inner, slice=ast.Constant(value=int())):
            return _input(inner, where)
        case ast.Attribute(value=inner, attr=field):
            return not field.startswith("_") and _input(inner, where)
    return False
