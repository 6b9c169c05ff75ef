"""Other ways to export a module, for those that `torch.export` refuses as they are.

| way | helps where `forward()` |
|---|---|
| as it is | has nothing that is in the way |
| calls checked | tries a call of a module that raises `TypeError`, and another one then |
| known values | asks for values that depend on no input: `torch.arange(1, x.dim()).tolist()` |
| strict mode | makes a number of a tensor that only sizes depend on, which bytecode keeps as a symbol |

They are tried in this order, each only after an error that it may cure.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from anytimeify._torch import flatten, without_dispatch_modes
from anytimeify.ir.node_meta import value_of

__all__ = ["WAYS", "Way", "reads_values"]


@dataclass(frozen=True)
class Way:
    """How to export: what is around the call, and whether torch reads bytecode. `note`: what a report says of it."""

    note: str | None
    around: Callable[[nn.Module], AbstractContextManager[None]]
    strict: bool
    cures: Callable[[Exception], bool]


def _wants_values(error: Exception) -> bool:
    """Whether an export failed because it has no values of tensors."""
    text = f"{type(error).__name__}: {error}"
    return any(one in text for one in ("ata-dependent", "DataDependent", "on the value of", "_local_scalar"))


def _lost_its_place(error: Exception) -> bool:
    """Whether the exporter lost its place among the modules, for a call of one raised."""
    return isinstance(error, AssertionError) and "_export_root" in str(error)


@contextmanager
def _known_values(model: nn.Module) -> Iterator[None]:
    with _KnownValues():
        yield


@contextmanager
def _checked_calls(model: nn.Module) -> Iterator[None]:
    """A call of a module whose arguments do not fit its `forward()` raises `TypeError` before anybody notes that the
    module was called."""

    kinds = {type(module) for module in model.modules() if "__call__" not in vars(type(module))} - {nn.Module}
    try:
        for kind in kinds:
            kind.__call__ = _checked_call(kind)  # type: ignore[method-assign]  # taken back below
        yield
    finally:
        for kind in kinds:
            del kind.__call__


def _checked_call(kind: type[nn.Module]) -> Callable[..., Any]:
    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        inspect.signature(module.forward).bind(*args, **kwargs)
        above: Any = super(kind, module)
        return above.__call__(*args, **kwargs)

    return call


_MADE = (torch.arange, torch.tensor, torch.zeros, torch.ones, torch.full, torch.linspace, torch.eye)
_ASKED = (
    *(Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__),
    Tensor.__len__,
)


class _KnownValues(TorchFunctionMode):
    """Computes beside an export what depends on plain numbers alone, and answers questions about its values."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[int, tuple[Tensor, Any]] = {}  # by identity: a tensor of the export, and its value

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [one for one in flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        known = all(id(one) in self.values for one in tensors) and (bool(tensors) or func in _MADE)
        if not known or not _plain(args, kwargs):
            if _writes(func):
                self.values.clear()  # what it wrote to may be seen through others
            return func(*args, **kwargs)
        with without_dispatch_modes():
            value = func(*self._valued(args), **self._valued(kwargs))
        if func in _ASKED:
            return value
        result = func(*args, **kwargs)
        for one, its in zip(flatten(result)[0], flatten(value)[0], strict=True):
            if isinstance(one, Tensor):
                self.values[id(one)] = (one, its)
        return result

    def _valued(self, given: Any) -> Any:
        if isinstance(given, Tensor):
            return self.values[id(given)][1]
        if isinstance(given, dict):
            return {key: self._valued(one) for key, one in given.items()}
        return type(given)(map(self._valued, given)) if type(given) in (list, tuple) else given


def reads_values(exported: ExportedProgram) -> bool:
    """Whether a tensor of an exported graph depends on a number that was made of a tensor: on its shape, for instance,
    and not only on what has to hold of that number."""
    numbers: set[fx.Node] = set()
    for node in exported.graph.nodes:
        read = not numbers.isdisjoint(node.all_input_nodes)
        if read and isinstance(value_of(node), Tensor):
            return True
        if read or node.target in (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default):
            numbers.add(node)
    return False


def _plain(args: Any, kwargs: Any) -> bool:
    return not any(isinstance(one, torch.SymInt | torch.SymFloat | torch.SymBool) for one in flatten((args, kwargs))[0])


def _writes(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))


WAYS = (
    Way(None, lambda model: nullcontext(), strict=False, cures=lambda error: True),
    Way(
        "calls of modules that raise TypeError were refused before torch saw them",
        _checked_calls,
        strict=False,
        cures=_lost_its_place,
    ),
    Way(
        "values that depend on no input were computed beside the export",
        _known_values,
        strict=False,
        cures=_wants_values,
    ),
    Way(
        "exported in torch's strict mode: forward() makes a number of a tensor, on which only sizes depend",
        lambda model: nullcontext(),
        strict=True,
        cures=_wants_values,
    ),
)
