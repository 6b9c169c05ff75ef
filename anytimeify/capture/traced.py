"""Whether a program computes what its model computes, found out without computing anything.

Both are run on tensors without data, and each value is given the number of what it is computed by, and of: the same
operation on values with the same numbers has the same number, in either of them.

    model:      h = conv(x, w)      # 3 = conv(1, 2)        program:    h = conv(x, w)      # 3 = conv(1, 2)
                h.relu_()           # 4 = relu(3)                       y = relu(h)         # 4 = relu(3)

Results with equal numbers are equal, whatever the values. Results with different numbers may be equal all the same:
then it takes values to tell. So it does where a tensor is read whose memory was written to through another one, where
random numbers are drawn, and where an operation cannot do without values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from anytimeify._torch import (
    OpOverload,
    TorchDispatchMode,
    TreeSpec,
    flatten,
    functional_overload,
    schema,
    unflatten,
    without_dispatch_modes,
)
from anytimeify.capture.inputs import CallInputs
from anytimeify.ir.node_meta import value_of
from anytimeify.ir.schema import mutated_arguments
from anytimeify.rules.training import is_random

__all__ = ["Numbering", "takes_long"]

aten = torch.ops.aten
_FEW = 2**16  # elements of a constant that are compared one by one
_SHAPES = frozenset(  # they give the same elements in another shape
    {
        aten.view.default,
        aten._unsafe_view.default,
        aten._reshape_alias.default,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.detach.default,
        aten.alias.default,
        aten.clone.default,
        aten.lift_fresh.default,
    }
)
_MAY_CHANGE_NOTHING = frozenset(
    {aten.expand.default, aten.slice.Tensor, aten._to_copy.default, aten.constant_pad_nd.default}
)
_PERMUTATIONS: Mapping[Any, Callable[..., Sequence[int]]] = {
    aten.permute.default: lambda rank, dims: [dim % rank for dim in dims],
    aten.transpose.int: lambda rank, one, other: _exchanged(rank, one % rank, other % rank),
    aten.t.default: lambda rank: [*range(rank)][::-1],
}


class _Undecided(Exception):  # noqa: N818  # a finding, not an error
    """It takes values to tell: raised, and met by whoever compares."""


class Numbering:
    """The numbers of one model and its program. `shared` are tensors that both read in the same memory."""

    def __init__(self, shared: Iterable[Tensor]) -> None:
        self._shared = {key for tensor in shared if (key := _memory(tensor)) is not None}
        self._numbers: dict[Hashable, int] = {}
        self._shapes: dict[int, torch.Size] = {}
        self._roots: dict[int, int] = {}  # of what has another shape: of which value
        self.results = _Results()

    def of(self, run: Callable[[], Any]) -> tuple[Any, list[Any]]:
        """What `run` gives, without data, and the number of every tensor among its leaves (other leaves are as they
        are). Raises `_Undecided`, or whatever `run` raises where it cannot do without values."""
        recorder = _Recorder(self)
        with torch.no_grad(), recorder:
            result = run()
            leaves = flatten(result)[0]
            return result, [recorder.number(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def number(self, key: Hashable, shape: torch.Size) -> int:
        found = self._numbers.setdefault(key, len(self._numbers))
        self._shapes.setdefault(found, shape)
        return found

    def reshaped(self, number: int, shape: torch.Size) -> int:
        root = self._roots.get(number, number)
        if self._shapes[root] == shape:
            return root
        found = self.number(("shaped", root, tuple(shape)), shape)
        self._roots[found] = root
        return found

    def given(self, tensor: Tensor) -> int:
        """The number of a tensor with data: that of its memory, or of its elements."""
        key: Hashable = _memory(tensor)
        if key not in self._shared:
            if tensor.numel() > _FEW or tensor.layout is not torch.strided or tensor.is_meta:
                raise _Undecided
            with without_dispatch_modes():
                elements = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
                key = (tensor.dtype, tensor.device, tuple(tensor.shape), bytes(elements.tolist()))
        return self.number(key, tensor.shape)


def takes_long(exported: ExportedProgram, inputs: CallInputs) -> bool:
    """Whether a forward pass takes longer than to look at each of its operations without values."""
    calls = [node for node in exported.graph.nodes if node.op == "call_function"]
    return (inputs.batch or 1) * sum(map(_macs, calls)) > _PER_CALL * len(calls)


_PER_CALL = 5_000_000  # multiply-accumulates of a processor's core while one operation is looked at


def _macs(node: fx.Node) -> int:
    """Of a layer, for one sample, roughly: elements of the result times those of a row of its weight."""
    weight = value_of(node.args[1]) if len(node.args) > 1 and isinstance(node.args[1], fx.Node) else None
    result = value_of(node)
    if not isinstance(weight, Tensor) or not isinstance(result, Tensor) or weight.dim() < 2:
        return 0
    if any(not isinstance(size, int) for size in weight.shape):
        return 0
    return math.prod(size for size in (*result.shape, *weight.shape[1:]) if isinstance(size, int))


class _Recorder(TorchDispatchMode):
    def __init__(self, numbering: Numbering) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.numbering = numbering
        self.known: dict[int, tuple[Tensor, int, int, int]] = {}  # a tensor, its number, memory, and version of that
        self.shells: dict[int, tuple[Tensor, Tensor]] = {}  # tensors with data, and the same without
        self.versions: dict[int, int] = {}  # how often each memory was written to

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if is_random(func) and not _draws_nothing(func, args, kwargs):
            raise _Undecided
        if mutated_arguments(func):
            return self.written(func, args, kwargs)
        key = self.key(func, args, kwargs)
        result = self.run(func, args, kwargs)
        if isinstance(result, Tensor):
            self.note(result, self.number_of(func, args, key, result))
        else:
            for place, leaf in enumerate(flatten(result)[0]):
                if isinstance(leaf, Tensor):
                    self.note(leaf, self.numbering.number((key, place), leaf.shape))
        return result

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("meta")}
        args, kwargs = tuple(map(self.empty, args)), {name: self.empty(value) for name, value in kwargs.items()}
        return self.numbering.results.of(func, args, kwargs)

    def empty(self, value: Any) -> Any:
        """An argument, tensors without their data."""
        if isinstance(value, Tensor) and not value.is_meta:
            found = self.shells.get(id(value))
            if found is None:
                found = self.shells[id(value)] = value, value.detach().to("meta")
            return found[1]
        return [self.empty(one) for one in value] if isinstance(value, list | tuple) else value

    def number_of(self, func: Any, args: tuple[Any, ...], key: Hashable, result: Tensor) -> int:
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if source is not None:
            same = func in _MAY_CHANGE_NOTHING and _alike(source, result)
            if same or (func in _SHAPES and source.dtype == result.dtype):
                return self.numbering.reshaped(self.number(source), result.shape)
            if func in _PERMUTATIONS:
                dims = tuple(_PERMUTATIONS[func](source.dim(), *args[1:]))
                if dims == tuple(range(source.dim())):
                    return self.number(source)
                key = ("permute", self.number(source), dims)
        return self.numbering.number(key, result.shape)

    def written(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation in place gives the tensor that it writes to the number of what it writes."""
        target = functional_overload(func)
        written = args[0] if args else None
        if target is None or mutated_arguments(func) != ("self",) or id(written) not in self.known:
            raise _Undecided
        key = self.key(target, args, kwargs)
        result = self.run(func, args, kwargs)
        *_, memory, _ = self.known[id(written)]
        self.versions[memory] = self.versions.get(memory, 0) + 1
        self.note(result, self.numbering.number(key, result.shape))
        self.known[id(written)] = self.known[id(result)]
        return result

    def note(self, tensor: Tensor, number: int) -> None:
        memory = tensor.untyped_storage()._cdata
        self.known[id(tensor)] = tensor, number, memory, self.versions.get(memory, 0)

    def number(self, tensor: Tensor) -> int:
        if id(tensor) not in self.known:
            return self.numbering.given(tensor)
        _, number, memory, version = self.known[id(tensor)]
        if self.versions.get(memory, 0) != version:
            raise _Undecided
        return number

    def key(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Hashable:
        return func, self.of_argument(args), tuple((name, self.of_argument(kwargs[name])) for name in sorted(kwargs))

    def of_argument(self, value: Any) -> Hashable:
        if isinstance(value, Tensor):
            return "value", self.number(value)
        if isinstance(value, list | tuple):
            return tuple(map(self.of_argument, value))
        return type(value), value  # 1, 1.0 and True are equal, and mean different things


class _Results:
    """Results of operations on tensors without data. Most calls of a network have been made before with tensors of the
    same forms, and torch finds the form of a result in Python: that is done once."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[list[_Form], TreeSpec]] = {}

    def of(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _may_share_memory(func):
            return func(*args, **kwargs)
        key = func, _hashable(args), tuple((name, _hashable(value)) for name, value in kwargs.items())
        if key not in self._known:
            result = func(*args, **kwargs)
            leaves, spec = flatten(result)
            if all(isinstance(leaf, Tensor) and leaf.layout is torch.strided for leaf in leaves):
                self._known[key] = list(map(_form, leaves)), spec
            return result
        forms, spec = self._known[key]
        empty = [torch.empty_strided(size, stride, dtype=dtype, device="meta") for size, stride, dtype in forms]
        return unflatten(empty, spec)


_Form = tuple[torch.Size, tuple[int, ...], torch.dtype]


def _form(tensor: Tensor) -> _Form:
    return tensor.shape, tensor.stride(), tensor.dtype


@cache
def _may_share_memory(func: OpOverload) -> bool:
    return any(one.alias_info is not None for one in (*schema(func).arguments, *schema(func).returns))


def _hashable(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return value.layout, *(_form(value) if value.layout is torch.strided else (id(value),))
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    return type(value), value  # 1, 1.0 and True are equal, and mean different things


def _memory(tensor: Tensor) -> tuple[Hashable, ...] | None:
    if tensor.layout is not torch.strided or tensor.is_meta or not tensor.numel():
        return None
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _exchanged(rank: int, one: int, other: int) -> list[int]:
    dims = list(range(rank))
    dims[one], dims[other] = other, one
    return dims


def _draws_nothing(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call does not drop out: fused attention takes a probability."""
    names = [argument.name for argument in schema(func).arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return "dropout_p" in names and given.get("dropout_p", 0.0) == 0.0
