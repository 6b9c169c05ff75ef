"""Example inputs: what `torch.save` wrote of tensors in tuples, lists and dictionaries, read without unpickling.

A pickle is a program for a small stack machine, in which a `GLOBAL` names any function of any module and `REDUCE` calls
it. This machine has the instructions that plain containers need, and a table of five functions in place of imports.
"""

from __future__ import annotations

import io
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anytimeify.capture.pt2.archive import Archive
from anytimeify.capture.pt2.checks import INT64, RefusedError, quoteless, shown
from anytimeify.capture.pt2.tensors import view

__all__ = ["read_inputs"]

_MEMBERS = re.compile(
    r"data\.pkl|data/[0-9]{1,9}|byteorder|version|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
)
_STORAGES = {
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BoolStorage": torch.bool,
    "BFloat16Storage": torch.bfloat16,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_DTYPES = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
_DEVICE = re.compile(r"cpu|meta|(cuda|xpu)(:[0-9]{1,3})?|mps(:0)?")


def read_inputs(data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Positional and keyword arguments; None where the program was saved without. Raises `RefusedError` for
    everything that is neither a tensor, a number, text nor a container of such."""
    if not data:
        return None
    with Archive(io.BytesIO(data), _MEMBERS) as archive:
        value = _Machine(archive).run(archive.read("data.pkl"))
    if not (
        isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], tuple) and isinstance(value[1], dict)
    ):
        raise RefusedError(
            "example inputs", f"expected positional and keyword arguments, got {shown(type(value).__name__)}"
        )
    return value[0], value[1]


class _Mark:
    """What separates the items of a container from what lies below them on the stack."""


class _Named:
    """What a `GLOBAL` stands for: a name that was looked up in a table, and nothing that can be called from outside."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Machine:
    """One run: a stack and a memo."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._storages: dict[str, Tensor] = {}
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        try:
            for opcode, argument, _ in pickletools.genops(program):
                if opcode.name == "STOP":
                    (result,) = self._stack
                    return result
                if opcode.name not in _INSTRUCTIONS:
                    raise RefusedError("example inputs", f"{opcode.name} is no instruction that plain data needs")
                _INSTRUCTIONS[opcode.name](self, argument)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, RefusedError):
                raise
            raise RefusedError("example inputs", f"are damaged ({type(error).__name__})") from error
        raise RefusedError("example inputs", "are cut off")

    def push(self, value: Any) -> None:
        if isinstance(value, str):
            quoteless(value, "a text in the example inputs")  # keys become parts of guards
        elif type(value) is int:
            INT64(value, "a number in the example inputs")
        self._stack.append(value)

    def since_mark(self) -> list[Any]:
        place = max(index for index, value in enumerate(self._stack) if value is _Mark)
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    def take(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError
        items = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return items

    def put(self, index: Any) -> None:
        self._memo[index] = self._stack[-1]

    def get(self, index: Any) -> None:
        self._stack.append(self._memo[index])

    def extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise TypeError
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in (dict, OrderedDict) or len(items) % 2:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value

    def named(self, argument: Any) -> None:
        name = str(argument).replace(" ", ".")
        if name not in _FUNCTIONS and name not in _KINDS:
            raise RefusedError("example inputs", f"are pickled Python objects, of {shown(name)}")
        self._stack.append(_Named(name))

    def call(self, _: Any) -> None:
        function, arguments = self.take(2)
        if not isinstance(function, _Named) or function.name not in _FUNCTIONS or not isinstance(arguments, tuple):
            raise RefusedError("example inputs", "call what is no function in the table")
        self._stack.append(_FUNCTIONS[function.name](*arguments))

    def storage(self, _: Any) -> None:
        """`("storage", FloatStorage, "0", "cpu", 768)`: bytes of a member, and the type of its elements."""
        ((tag, kind, key, location, _),) = self.take(1)
        if tag != "storage" or not isinstance(kind, _Named) or not _DEVICE.fullmatch(location):
            raise TypeError
        if key not in self._storages:
            self._storages[key] = self._archive.tensor(f"data/{key}").to(location)
        dtype = _STORAGES.get(kind.name.removeprefix("torch."), torch.uint8)
        self._stack.append((self._storages[key], dtype))


def _tensor(storage: Any, offset: Any, sizes: Any, strides: Any, requires_grad: Any, *_: Any) -> Tensor:
    found, dtype = storage
    return _typed(found, dtype, offset, sizes, strides, requires_grad)


def _tensor_of_bytes(
    storage: Any, offset: Any, sizes: Any, strides: Any, requires_grad: Any, _: Any, dtype: Any
) -> Tensor:
    if not isinstance(dtype, _Named) or dtype.name.removeprefix("torch.") not in _DTYPES:
        raise TypeError
    return _typed(storage[0], getattr(torch, dtype.name.removeprefix("torch.")), offset, sizes, strides, requires_grad)


def _typed(found: Tensor, dtype: torch.dtype, offset: Any, sizes: Any, strides: Any, requires_grad: Any) -> Tensor:
    numbers = [offset, *sizes, *strides]
    if any(type(one) is not int or not 0 <= one < 1 << 48 for one in numbers) or type(requires_grad) is not bool:
        raise TypeError
    tensor = view(found, dtype, sizes, strides, offset, "an example input")
    return tensor.requires_grad_() if requires_grad else tensor


def _parameter(data: Any, requires_grad: Any, *_: Any) -> nn.Parameter:
    if not isinstance(data, Tensor):
        raise TypeError
    return nn.Parameter(data.detach(), requires_grad=bool(requires_grad))


def _plain_tensor(function: Any, kind: Any, arguments: Any, *_: Any) -> Tensor:
    """A tensor with attributes, which are what the exporter noted on it, and are left out."""
    rebuilds = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
    if not isinstance(function, _Named) or function.name not in rebuilds or kind.name != "torch.Tensor":
        raise TypeError
    result: Tensor = _FUNCTIONS[function.name](*arguments)
    return result


def _ordered(*items: Any) -> OrderedDict[Any, Any]:
    return OrderedDict(*items)


def _set(*items: Any) -> set[Any]:
    return set(*items)


def _size(items: Any = ()) -> torch.Size:
    return torch.Size(items)


_KINDS = {"torch.Tensor", "torch.storage.UntypedStorage", *(f"torch.{name}" for name in (*_STORAGES, *_DTYPES))}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._tensor._rebuild_from_type_v2": _plain_tensor,
    "collections.OrderedDict": _ordered,
    "__builtin__.set": _set,
    "torch.Size": _size,
}
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, argument: None,
    "MARK": lambda machine, _: machine._stack.append(_Mark),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
        lambda machine, argument: machine.push(argument),
    ),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "APPEND": lambda machine, _: machine.extend(machine.take(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.update(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.since_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda machine, argument: machine.put(argument)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, argument: machine.get(argument)),
    "GLOBAL": _Machine.named,
    "REDUCE": _Machine.call,
    "BINPERSID": _Machine.storage,
}
