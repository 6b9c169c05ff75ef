"""Sub-modules that no exporter can look into, kept whole.

1. Where every way of exporting fails, `culprit` names the innermost sub-module whose call failed.
2. The model is run at two sizes of a batch, and what such a sub-module is given and gives is noted (`Sample`).
3. During an export the sub-module is replaced by one call of an operator of ours
   (`anytimeify.operators.kept_modules`), which gives tensors of those sizes.

Refused (`KeepingError`) is a sub-module that takes no tensor, gives something else than tensors in tuples, lists and
dicts, writes to what it is given, or gives sizes that follow from no size of its inputs.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anytimeify._torch import TreeSpec, flatten, unflatten
from anytimeify.capture.compare import buffers_kept, seeded
from anytimeify.capture.inputs import CallInputs, of_batch, repeated
from anytimeify.capture.modes import attributes_kept, in_mode
from anytimeify.errors import CaptureError
from anytimeify.operators.copies import without_tensors
from anytimeify.operators.kept_modules import (
    KEPT_MODULE,
    Extent,
    Multiple,
    Sample,
    Shell,
    items,
    remember,
)

__all__ = ["KeepingError", "KeptWhole", "culprit"]


def culprit(model: nn.Module, error: BaseException, known: Mapping[str, str]) -> str | None:
    """The path of the innermost module, below the model and around those that are known, whose call raised; None where
    there is none."""
    paths = {id(module): path for path, module in model.named_modules() if path}
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        own = paths.get(id(frame.f_locals.get("self")))
        if own is not None and frame.f_code.co_name == "_call_impl":  # of torch: what is called as a module
            if own in known:
                break
            found = own
    return found


class KeepingError(CaptureError):
    """A module that cannot be kept whole."""


class _Call(NamedTuple):
    """One call of a module, at one size of the batch."""

    tensors: list[Tensor]
    arguments: TreeSpec
    constants: tuple[Any, ...]
    results: list[Tensor]
    returned: TreeSpec
    macs: int


@dataclass
class KeptWhole:
    """The modules of a model that are kept whole, and why; what was seen of them is found out once for each mode."""

    model: nn.Module
    why: Mapping[str, str] = field(default_factory=dict)  # by path
    _names: list[tuple[Any, str]] = field(default_factory=list)
    _samples: dict[Any, Mapping[str, list[Sample]]] = field(default_factory=dict)
    _written: dict[str, set[str]] = field(default_factory=dict)  # buffers that a call writes to, by path

    def __bool__(self) -> bool:
        return bool(self.why)

    def growing(self, path: str, why: str) -> KeptWhole:
        """The same with one more; with all of its class where one of that class is kept already."""
        modules = dict(self.model.named_modules())
        kind = type(modules[path])
        alike = [path]
        if not kind.__module__.startswith("torch.") and any(type(modules[one]) is kind for one in self.why):
            alike = [name for name, module in modules.items() if name and type(module) is kind]
        every = {**self.why, **dict.fromkeys(alike, why)}
        outer = {name: reason for name, reason in every.items() if not any(_inside(name, one) for one in every)}
        return KeptWhole(self.model, outer)

    def notes(self) -> tuple[str, ...]:
        return tuple(self._note(path, why) for path, why in self.why.items())

    def _note(self, path: str, why: str) -> str:
        kind = type(self.model.get_submodule(path)).__name__
        note = f"'{path}' ({kind}) is kept whole, in every level: torch.export cannot look into it ({why})"
        written = f"; in training every level writes to its buffers ({', '.join(sorted(self._written[path]))})"
        return note + (written if self._written.get(path) else "")

    @contextmanager
    def replaced(self, inputs: CallInputs, *, training: bool, held: frozenset[str]) -> Iterator[None]:
        """Calls of these modules are calls of the operator."""
        if not self:
            yield
            return
        key = (training, inputs.batch)
        if key not in self._samples:
            self._samples[key] = self._seen(inputs, training, held)
        with attributes_kept(self.model):
            for path in self.why:
                calls = [(self._name(path, sample, held), sample) for sample in self._samples[key][path]]
                _replace(self.model.get_submodule(path), calls)
            yield

    def _name(self, path: str, sample: Sample, held: frozenset[str]) -> str:
        """One name for both modes and all sizes of a batch, where nothing else differs: such calls are paired."""
        inside = frozenset(one[len(path) + 1 :] for one in held if one == path or _inside(one, path))
        known = next((name for key, name in self._names if key == (path, sample, inside)), None)
        if known is None:
            module = self.model.get_submodule(path)
            known = remember(Shell(without_tensors(module), tuple(_state(module)), sample, path, inside))
            self._names.append(((path, sample, inside), known))
        return known

    def _seen(self, inputs: CallInputs, training: bool, held: frozenset[str]) -> Mapping[str, list[Sample]]:
        inputs = repeated(inputs)
        calls = self._calls(inputs, training, held)
        others = calls
        if inputs.batch is not None:
            try:
                others = self._calls(of_batch(inputs, inputs.batch + 1), training, held)
            except Exception:  # a model that does not take that batch
                others = calls
        return {path: [_sample(path, *both) for both in _pairs(path, calls[path], others[path])] for path in calls}

    def _calls(self, inputs: CallInputs, training: bool, held: frozenset[str]) -> Mapping[str, list[_Call]]:
        modules = dict(self.model.named_modules())
        found: dict[str, list[_Call]] = {path: [] for path in self.why}
        begun: list[tuple[int, list[int], dict[str, Tensor]]] = []
        counter = FlopCounterMode(display=False)

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            tensors = [leaf for leaf in flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
            begun.append((counter.get_total_flops(), [one._version for one in tensors], _buffers(module)))

        def after(path: str) -> Any:
            def hook(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
                flops, versions, buffers = begun.pop()
                changed = {name for name, now in _buffers(module).items() if not now.equal(buffers.get(name, now))}
                self._written.setdefault(path, set()).update(changed)
                found[path].append(_noted(path, (args, kwargs), result, counter.get_total_flops() - flops, versions))

            return hook

        handles = [modules[path].register_forward_pre_hook(before, prepend=True, with_kwargs=True) for path in self.why]
        handles += [modules[path].register_forward_hook(after(path), with_kwargs=True) for path in self.why]
        try:
            with (
                in_mode(self.model, training=training, held=held),
                buffers_kept(self.model),
                torch.no_grad(),
                seeded(),
                counter,
            ):
                self.model(*inputs.args, **inputs.kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return found


def _inside(path: str, other: str) -> bool:
    return path.startswith(f"{other}.")


def _state(module: nn.Module) -> dict[str, Tensor]:
    own = dict(module.named_parameters(remove_duplicate=False))
    return {**own, **dict(module.named_buffers(remove_duplicate=False))}


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def _noted(path: str, given: Any, result: Any, flops: int, versions: list[int]) -> _Call:
    leaves, arguments = flatten(given)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        raise _refusal(path, "it is given no tensor")
    if [one._version for one in tensors] != versions:
        raise _refusal(path, "it writes to what it is given")
    constants = tuple(Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    strange = [one for one in constants if one is not Tensor and not _is_plain(one)]
    if strange:
        raise _refusal(path, f"it is given a {type(strange[0]).__name__}")
    results, returned = flatten(result)
    if not results or not all(isinstance(one, Tensor) for one in results) or items(returned) is None:
        raise _refusal(path, "it returns something else than tensors, or tuples, lists and dicts of them")
    return _Call(tensors, arguments, constants, results, returned, flops // 2)


def _is_plain(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str, torch.dtype, torch.device)


def _refusal(path: str, why: str) -> KeepingError:
    return KeepingError(f"'{path}' cannot be kept whole: {why}.")


def _pairs(path: str, calls: list[_Call], others: list[_Call]) -> Iterator[tuple[_Call, _Call]]:
    if not calls or len(calls) != len(others):
        raise _refusal(path, "it is not called, or how often depends on the batch")
    for one, other in zip(calls, others, strict=True):
        if (one.arguments, one.constants, one.returned) != (other.arguments, other.constants, other.returned):
            raise _refusal(path, "what it is given besides tensors, or what it returns, depends on the batch")
        yield one, other


def _sample(path: str, one: _Call, other: _Call) -> Sample:
    def extent(size: int, same: int) -> Extent:
        if size == same:
            return size
        for place, (mine, theirs) in enumerate(zip(one.tensors, other.tensors, strict=True)):
            for dim, (first, second) in enumerate(zip(mine.shape, theirs.shape, strict=True)):
                factor, remainder = divmod(size, first) if first else (0, 1)
                if first != second and not remainder and same == factor * second:
                    return Multiple(factor, place, dim)
        raise _refusal(path, "a size of its result follows from no size of its inputs")

    if [x.dim() for x in (*one.tensors, *one.results)] != [x.dim() for x in (*other.tensors, *other.results)]:
        raise _refusal(path, "how many dimensions its tensors have depends on the batch")
    inputs = [
        tuple(size if size == same else None for size, same in zip(mine.shape, theirs.shape, strict=True))
        for mine, theirs in zip(one.tensors, other.tensors, strict=True)
    ]
    results = [
        (tuple(map(extent, mine.shape, theirs.shape)), mine.dtype)
        for mine, theirs in zip(one.results, other.results, strict=True)
    ]
    try:
        macs = extent(one.macs, other.macs)
    except KeepingError:  # such as products of a batch with itself
        macs = one.macs
    return Sample(tuple(inputs), tuple(results), one.arguments, one.constants, one.returned, macs)


def _replace(module: nn.Module, names: list[tuple[str, Sample]]) -> None:
    count = 0

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        name, sample = names[count % len(names)]
        count += 1
        leaves = flatten((args, kwargs))[0]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        results = KEPT_MODULE(tensors, list(_state(module).values()), name, module.training)
        return unflatten(results, sample.returned)

    for hooks in (module._forward_pre_hooks, module._forward_hooks):  # they run with the module
        hooks.clear()
    module.__dict__["forward"] = forward
