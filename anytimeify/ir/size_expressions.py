"""Sizes and the expressions behind them: `Size(64, ("s0",))` is `64*s0`, `Size(1, ("((s0-1)//2)",))` is no monomial.

What is no monomial is kept as one opaque symbol that spells the expression, with `·` for a product and `^` for a power.
The text is read back by a table of what may stand in it, so that a saved file can hold any text.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import sympy

from anytimeify._torch import size_functions
from anytimeify.ir import Size

__all__ = ["expression_of", "monomial"]

_LONGEST, _POWERS = 400, 3  # of the text of an opaque symbol: characters, and powers in it


def monomial(expression: sympy.Expr) -> Size:
    """`64*s0` is the monomial (64, s0); of a sum or a quotient every factor that is no symbol becomes an opaque one."""
    coefficient, rest = expression.as_coeff_Mul()
    if not coefficient.is_Integer:
        return Size(1, (_opaque(coefficient * rest),))
    symbols: list[str] = []
    for factor in sympy.Mul.make_args(rest):
        base, exponent = factor.as_base_exp()
        if factor == 1:
            continue
        if isinstance(base, sympy.Symbol) and exponent.is_Integer and exponent > 0:
            symbols += [str(base)] * int(exponent)
        else:
            symbols.append(_opaque(factor))
    return Size(int(coefficient), tuple(sorted(symbols)))


def _opaque(value: sympy.Expr) -> str:
    return f"({value})".replace(" ", "").replace("**", "^").replace("*", "·")


def expression_of(size: Size) -> sympy.Expr:
    """The inverse of `monomial`. An opaque symbol that cannot be read stands for itself."""
    return sympy.Mul(sympy.Integer(size.coefficient), *map(_expression, size.symbols))


@lru_cache(maxsize=1024)
def _expression(symbol: str) -> sympy.Expr:
    try:
        if len(symbol) > _LONGEST or symbol.count("^") > _POWERS:
            raise ValueError
        return _read(ast.parse(symbol.replace("·", "*").replace("^", "**"), mode="eval").body)
    except (ValueError, SyntaxError, KeyError, RecursionError, TypeError, ZeroDivisionError):
        return _symbol(symbol)


def _symbol(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, integer=True, positive=True)


_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = MappingProxyType(
    {
        ast.Add: lambda a, b: a + b,
        ast.Sub: lambda a, b: a - b,
        ast.Mult: lambda a, b: a * b,
        ast.Div: lambda a, b: a / b,
        ast.FloorDiv: lambda a, b: size_functions()["FloorDiv"](a, b),
    }
)


def _read(node: ast.expr) -> Any:
    """What a tree of the text stands for. `KeyError` and `ValueError` where something else stands in it."""
    match node:
        case ast.Name():
            return _symbol(node.id)
        case ast.Constant(value=int() as number) if abs(number) < 2**63:
            return sympy.Integer(number)
        case ast.UnaryOp(op=ast.USub()):
            return -_read(node.operand)
        case ast.BinOp(op=ast.Pow(), right=ast.Constant(value=int() as exponent)) if 0 <= exponent <= 4:
            return _read(node.left) ** exponent
        case ast.BinOp():
            return _OPERATORS[type(node.op)](_read(node.left), _read(node.right))
        case ast.Call(func=ast.Name(id=name), keywords=[]):
            return size_functions()[name](*map(_read, node.args))
    raise ValueError(ast.dump(node))
