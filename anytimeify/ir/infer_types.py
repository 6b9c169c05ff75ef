"""The type of a result, from the operation itself: it is run on tensors without data.

Every symbol among the sizes of the operands (the batch) stands for a prime, and in a second run for a multiple of
another. Sizes of the result that are monomials, as nearly all are, are read back from the two numbers: exactly, for no
other monomial gives both, and fast, for nothing symbolic is computed. What is no monomial (`(s1-1)//2`), or made of
such sizes, is computed in symbols, as `torch.export` does, which takes milliseconds. Results are kept by operation,
types of the operands, and arguments.

Not everything has a type that follows from those of its operands: where sizes depend on values, or torch has no kernel
for tensors without data, `infer_type` gives `UNKNOWN`.
"""

from __future__ import annotations

import enum
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import sympy
import torch
from torch import Tensor, fx

from anytimeify._torch import VALUES_WANTED, OpOverload, SymbolicSizes, schema
from anytimeify.errors import AnytimeError
from anytimeify.ir import Size, TensorType, type_text
from anytimeify.ir.node_meta import Type, type_of
from anytimeify.ir.size_expressions import expression_of, monomial
from anytimeify.operators.derivatives import AUTOGRAD_FUNCTION

__all__ = [
    "UNKNOWN",
    "TypeInferenceError",
    "Unknown",
    "agree",
    "fits",
    "infer_type",
    "inferred_type",
    "result_type",
]

aten = torch.ops.aten


class Unknown(enum.Enum):
    """What `infer_type` gives where the type does not follow from the operands'."""

    UNKNOWN = enum.auto()


UNKNOWN: Final = Unknown.UNKNOWN


class TypeInferenceError(AnytimeError, ValueError):
    """An operation cannot be applied to operands of such types; names the operation and the types."""


def infer_type(
    target: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    kind: Callable[[fx.Node], Type] | None = None,
) -> Type | Unknown:
    """The type of `target(*args, **kwargs)`, of nodes that carry types, or whose types `kind` gives. Raises
    `TypeInferenceError`."""
    return _infer(target, args, kwargs, kind or type_of)


def result_type(target: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Type:
    """As `infer_type`, where a type is needed: `TypeInferenceError` where none follows from the operands'."""
    found = infer_type(target, args, kwargs)
    if found is UNKNOWN:
        raise TypeInferenceError(f"{target} gives a result whose type does not follow from those of its operands")
    return found


def inferred_type(node: fx.Node) -> Type | Unknown:
    """The type that a call has by the types of its operands; `meta["type"]` of the node itself is not read."""
    return _infer(node.target, node.args, node.kwargs, type_of)


def fits(node: fx.Node) -> bool:
    """Whether `meta["type"]` of a call is the type that the operation gives, or that type does not follow from the
    operands'. Where sizes are no monomials, numbers are compared. Raises `TypeInferenceError`."""
    if _is_known(node.target):
        found = inferred_type(node)
        return found is UNKNOWN or agree(found, type_of(node))
    return _fits(_call(node.target, node.args, node.kwargs, type_of), type_of(node))


@lru_cache(maxsize=8192)
def _fits(call: _Call, claimed: Type) -> bool:
    if not all(map(_plain, call.sizes())):
        known = _same_numbers(call, claimed)
        if known is not None:
            return known
    found = _inferred(call)
    return found is UNKNOWN or agree(found, claimed)


def agree(one: Type, other: Type) -> bool:
    """Whether two types are the same, however their sizes are written: `2*s0` and `(s0+s0)`."""
    if one is other or one == other:
        return True
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(agree, one, other))
    if isinstance(one, TensorType) and isinstance(other, TensorType):
        return one.dtype == other.dtype and agree(one.shape, other.shape)
    if isinstance(one, Size) and isinstance(other, Size) and not (_plain(one) and _plain(other)):
        return all(_numbers((one, other), spread)[0] == _numbers((one, other), spread)[1] for spread in _SPREADS)
    return False


# -- one call ----------------------------------------------------------------------------------------------------------


class _Number(NamedTuple):
    """A number among the arguments; 1, 1.0 and True are equal, and mean different things."""

    kind: type
    value: Any


class _Call(NamedTuple):
    """An operation and its arguments, types in the place of nodes."""

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]

    def types(self) -> list[Type]:
        return _leaves((*self.args, *(value for _, value in self.kwargs)))

    def sizes(self) -> list[Size]:
        """Every size in the types of the operands."""
        kinds = [kind for kind in self.types() if kind is not UNKNOWN]
        return [size for kind in kinds for size in (kind.shape if isinstance(kind, TensorType) else (kind,))]


def _infer(
    target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], kind: Callable[[fx.Node], Type]
) -> Type | Unknown:
    if target is operator.getitem and isinstance(args[0], fx.Node):
        kinds, index = kind(args[0]), args[1]
        if not isinstance(kinds, tuple) or not isinstance(index, int) or not -len(kinds) <= index < len(kinds):
            raise TypeInferenceError(f"takes item {index} of something of the type {kinds}")
        return kinds[index]
    if target is AUTOGRAD_FUNCTION:
        return tuple(kind(node) for node in args[0])
    if target in _RECURRENT:
        return _recurrent(args, kind)
    if target is aten.batch_norm.default:  # run, it divides by the number of samples less one
        return kind(args[0])
    if target in _DIFFERENT:
        return UNKNOWN
    return _inferred(_call(target, args, kwargs, kind))


def _is_known(target: object) -> bool:
    """Whether nothing has to be run."""
    return target in _KNOWN


def _call(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], kind: Callable[[fx.Node], Type]) -> _Call:
    frozen = [(name, _frozen(value, kind)) for name, value in sorted(kwargs.items())]
    return _Call(target, tuple(_frozen(value, kind) for value in args), tuple(frozen))


def _frozen(value: Any, kind: Callable[[fx.Node], Type]) -> Any:
    if isinstance(value, fx.Node):
        found = kind(value)
        return found if isinstance(found, TensorType | Size) else UNKNOWN
    if isinstance(value, list | tuple):
        return tuple(_frozen(one, kind) for one in value)
    return _Number(type(value), value) if isinstance(value, bool | int | float | complex) else value


# Their kernels for tensors without data differ from the others: `_grouped_mm` takes bfloat16 alone, and of the
# by-products of `embedding_bag` the sizes are others.
_DIFFERENT = frozenset({aten._grouped_mm.default, aten.embedding_bag.default, aten.embedding_bag.padding_idx})
_RECURRENT = frozenset({aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input})
_KNOWN = frozenset({operator.getitem, AUTOGRAD_FUNCTION, aten.batch_norm.default}) | _RECURRENT | _DIFFERENT


def _recurrent(args: Sequence[Any], kind: Callable[[fx.Node], Type]) -> Type:
    """Of `(input, states, weights, has_biases, layers, dropout, train, bidirectional, batch_first)`. Run, they would
    take every step; and torch 2.11 records last states with a dimension too many."""
    result: TensorType = kind(args[0])
    several = isinstance(args[1], list | tuple)
    states = [kind(state) for state in args[1]] if several else [kind(args[1])]
    width = states[0].shape[-1] * Size(2 if args[7] else 1)
    return (result.with_shape((*result.shape[:-1], width)), *states)


# What torch raises where an operation and its operands do not go together.
_FAILURES = (NotImplementedError, RuntimeError, ValueError, IndexError, TypeError, ArithmeticError)


@lru_cache(maxsize=8192)
def _inferred(call: _Call) -> Type | Unknown:
    if UNKNOWN in call.types():
        return UNKNOWN
    symbols = tuple(sorted({symbol for size in call.sizes() for symbol in size.symbols}))
    try:
        return _by_numbers(call, symbols)
    except (_NoMonomial, *_FAILURES) as error:
        if not symbols and not isinstance(error, _NoMonomial):
            return _refused(call, error)
    try:
        return _by_symbols(call, _PRIME)
    except _FAILURES as error:
        return UNKNOWN if _takes_some(call) else _refused(call, error)


def _takes_some(call: _Call) -> bool:
    """Whether there are sizes that an operation takes where it does not take all: those that divide well."""
    try:
        _by_symbols(call, _DIVISIBLE)
    except _FAILURES:
        return False
    return True


# What torch says where it cannot do without data; the last one, of large numbers, up to torch 2.12.
_NO_KERNEL = ("meta tensors", "no fake impl", "Storage size calculation overflowed")


def _refused(call: _Call, error: Exception) -> Unknown:
    text = str(error).strip()
    if isinstance(error, VALUES_WANTED) or any(part in text for part in _NO_KERNEL):
        return UNKNOWN
    operands = ", ".join(map(type_text, call.types()))
    raise TypeInferenceError(
        f"cannot be applied to {operands or 'its arguments'}: {(text.splitlines() or [type(error).__name__])[0]}"
    ) from error


def _leaves(value: Any) -> list[Type]:
    if isinstance(value, TensorType | Size | Unknown):
        return [value]
    return [leaf for part in value for leaf in _leaves(part)] if type(value) is tuple else []


def _filled(value: Any, make: Callable[[Type], Any]) -> Any:
    """An argument with what `make` gives in the place of types."""
    if isinstance(value, TensorType | Size):
        return make(value)
    if isinstance(value, _Number):
        return value.value
    return [_filled(one, make) for one in value] if type(value) is tuple else value


def _arguments(call: _Call, make: Callable[[Type], Any]) -> tuple[list[Any], dict[str, Any]]:
    args = [_filled(value, make) for value in call.args]
    kwargs = {name: _filled(value, make) for name, value in call.kwargs}
    if isinstance(call.target, OpOverload):
        for place, argument in enumerate(schema(call.target).arguments):
            if argument.name == "device":
                if place < len(args) and not argument.kwarg_only:
                    args[place] = torch.device("meta")
                else:
                    kwargs["device"] = torch.device("meta")
    return args, kwargs


def _typed(value: Any, size: Callable[[Any], Size]) -> Type:
    if isinstance(value, Tensor):
        return TensorType(tuple(map(size, value.shape)), value.dtype)
    if isinstance(value, list | tuple):
        return tuple(_typed(part, size) for part in value)
    whole = isinstance(value, int | torch.SymInt) and not isinstance(value, bool)
    return size(value) if whole else None


# -- in numbers --------------------------------------------------------------------------------------------------------


class _NoMonomial(Exception):  # noqa: N818  # a finding, not an error
    """A size of a result is no monomial of the symbols of the operands."""


class _Spread(NamedTuple):
    """Which numbers symbols stand for: multiples of something, from a place in the primes on."""

    times: int
    start: int


# What is the same at a prime and at a multiple of all numbers up to ten (a remainder, say) is so at other sizes.
_PRIME, _DIVISIBLE = _Spread(1, 10_007), _Spread(2_520, 1_009)
_SPREADS = (_PRIME, _DIVISIBLE)


def _plain(size: Size) -> bool:
    return all(symbol.isidentifier() for symbol in size.symbols)


def _values(symbols: Sequence[sympy.Symbol], spread: _Spread) -> dict[sympy.Symbol, int]:
    values, prime = {}, spread.start - 1
    for symbol in sorted(symbols, key=str):
        prime = int(sympy.nextprime(prime))
        values[symbol] = prime * spread.times
    return values


@lru_cache(maxsize=1024)
def _numbers(sizes: tuple[Size, ...], spread: _Spread) -> tuple[int, ...]:
    """What sizes are where their symbols stand for numbers."""
    expressions = [expression_of(size) for size in sizes]
    values = _values(list(set().union(*(one.free_symbols for one in expressions))), spread)
    return tuple(int(one.subs(values)) for one in expressions)


def _by_numbers(call: _Call, symbols: tuple[str, ...]) -> Type:
    if not all(symbol.isidentifier() for symbol in symbols):  # sums of opaque ones may look like products
        raise _NoMonomial
    units = tuple(Size(1, (symbol,)) for symbol in symbols)
    numbers = [_numbers(units, spread) for spread in (_SPREADS if symbols else _SPREADS[:1])]
    found = [_run(call, _product(dict(zip(symbols, values, strict=True)))) for values in numbers]
    if not symbols:
        return _typed(found[0], Size)
    return _read(found[0], found[1], list(zip(symbols, *numbers, strict=True)))


def _product(numbers: Mapping[str, int]) -> Callable[[Size], int]:
    """What sizes are where symbols stand for numbers."""
    return lambda size: math.prod((numbers[symbol] for symbol in size.symbols), start=size.coefficient)


def _same_numbers(call: _Call, claimed: Type) -> bool | None:
    """Whether a result has the claimed type wherever symbols stand for numbers; None where it cannot be run."""
    sizes = tuple(dict.fromkeys((*call.sizes(), *_Call(call.target, (claimed,), ()).sizes())))
    if UNKNOWN in call.types():
        return None
    for spread in _SPREADS:
        numbers = dict(zip(sizes, _numbers(sizes, spread), strict=True))
        try:
            found = _typed(_run(call, numbers.__getitem__), Size)
        except _FAILURES:
            return None
        if found != _in_numbers(claimed, numbers):
            return False
    return True


def _in_numbers(kind: Type, numbers: Mapping[Size, int]) -> Type:
    if isinstance(kind, tuple):
        return tuple(_in_numbers(part, numbers) for part in kind)
    if isinstance(kind, TensorType):
        return kind.with_shape(tuple(Size(numbers[size]) for size in kind.shape))
    return Size(numbers[kind]) if isinstance(kind, Size) else kind


def _run(call: _Call, number: Callable[[Size], int]) -> Any:
    def make(kind: Type) -> Any:
        if isinstance(kind, Size):
            return number(kind)
        return torch.empty(tuple(map(number, kind.shape)), dtype=kind.dtype, device="meta")

    args, kwargs = _arguments(call, make)
    with torch.no_grad():
        return call.target(*args, **kwargs)


def _read(one: Any, other: Any, symbols: Sequence[tuple[str, int, int]]) -> Type:
    """The type that both results have."""
    if isinstance(one, Tensor):
        if one.dim() != other.dim():
            raise _NoMonomial
        sizes = (_read_size(a, b, symbols) for a, b in zip(one.shape, other.shape, strict=True))
        return TensorType(tuple(sizes), one.dtype)
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            raise _NoMonomial
        return tuple(_read(a, b, symbols) for a, b in zip(one, other, strict=True))
    whole = isinstance(one, int) and not isinstance(one, bool)
    return _read_size(one, other, symbols) if whole else None


def _read_size(one: int, other: int, symbols: Sequence[tuple[str, int, int]]) -> Size:
    found: list[str] = []
    while one != other:
        dividing = (item for item in symbols if _divide(item, one, other))
        name, first, second = next(dividing, (None, 1, 1))
        if name is None:
            raise _NoMonomial
        found.append(name)
        one, other = one // first, other // second
    return Size(one, tuple(sorted(found)))


def _divide(symbol: tuple[str, int, int], one: int, other: int) -> bool:
    _, first, second = symbol
    return abs(first) > 1 and abs(second) > 1 and one % first == 0 and other % second == 0


# -- in symbols --------------------------------------------------------------------------------------------------------


def _by_symbols(call: _Call, spread: _Spread) -> Type:
    free = set().union(*(expression_of(size).free_symbols for size in call.sizes()))
    values = _values(list(free), spread)
    world = SymbolicSizes(values)

    def make(kind: Type) -> Any:
        if isinstance(kind, Size):
            return world.size(expression_of(kind))
        return world.empty([expression_of(size) for size in kind.shape], kind.dtype)

    result = world.run(call.target, *_arguments(call, make))
    found = _typed(result, lambda size: monomial(world.expression(size)))
    given = {size.coefficient for size in call.sizes()}
    if any(size.coefficient in set(values.values()) - given for kind in _leaves(found) for size in _sizes_of(kind)):
        return UNKNOWN  # torch 2.11 puts numbers in the place of symbols in some operations
    return found


def _sizes_of(kind: Type) -> Sequence[Size]:
    return kind.shape if isinstance(kind, TensorType) else [kind] if isinstance(kind, Size) else []
