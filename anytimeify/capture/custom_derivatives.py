"""What a graph of a forward pass does not hold: derivatives that the user wrote, and recomputation.

`kept` is around an export. Inside it

1. a call of a `torch.autograd.Function` is traced, and written after that as the call that it is (see
   `anytimeify.operators.derivatives`);
2. what `torch.utils.checkpoint` runs is run as it is, for reentrant checkpointing computes it without gradients first
   and again in the backward pass; its nodes carry the number of the part (see `part_of`);
3. a hook on the gradient of an intermediate tensor raises `CaptureError`.

`direct_checkpoints` is the second of these alone, for a run of the backbone itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.autograd import Function
from torch.fx import traceback
from torch.utils.checkpoint import CheckpointFunction

from anytimeify._torch import autograd_calls, without_recomputation
from anytimeify.errors import CaptureError
from anytimeify.ir.node_meta import annotations_of
from anytimeify.operators.derivatives import name_of

__all__ = ["direct_checkpoints", "kept", "part_of"]

_PART = "anytimeify.checkpoint"  # in `meta["custom"]`, where the exporter keeps annotations


@contextmanager
def kept() -> Iterator[None]:
    """Effects 1 to 3, in this thread."""
    written = False  # whether a call is being written, which calls the function to know what it gives
    part = _Numbered()

    def apply(original: Callable[..., Any], function: type[Function], *args: Any) -> Any:
        nonlocal written
        if written or function is CheckpointFunction or function.__module__.partition(".")[0] == "torch":
            return _without_checkpoint(original, function, *args, around=part)
        call = _traced(original, function, args)
        try:
            written = True
            found = torch.ops.anytimeify.autograd_function(*call.operands)
        finally:
            written = False
        for tensor, copy in call.changed:
            returned = (one for one, own in zip(found, call.operands[0], strict=True) if own is copy)
            tensor.copy_(next(returned, copy))  # one that is also a result is read with its derivative
        return tuple(found) if call.several else found[0]

    with autograd_calls(apply), _hooks_refused(), without_recomputation(part):
        yield


@contextmanager
def direct_checkpoints() -> Iterator[None]:
    """Effect 2, in this thread: `torch.autograd.grad` refuses reentrant checkpoints, and a second pass through batch
    norms would count their batches twice."""
    with autograd_calls(_without_checkpoint), without_recomputation():
        yield


@contextmanager
def _hooks_refused() -> Iterator[None]:
    original: Any = Tensor.register_hook
    thread = threading.get_ident()

    def register_hook(tensor: Tensor, hook: Any) -> Any:
        if threading.get_ident() != thread:
            return original(tensor, hook)
        raise CaptureError(
            "forward() registers a hook on the gradient of an intermediate tensor, which a graph does not hold: "
            f"{getattr(hook, '__qualname__', hook)}. Write a torch.autograd.Function whose backward() does the same."
        )

    Tensor.register_hook = register_hook  # type: ignore[method-assign]  # in this thread, and put back
    try:
        yield
    finally:
        Tensor.register_hook = original  # type: ignore[method-assign]  # as it was


def part_of(node: fx.Node) -> int | None:
    """The number of the recomputed part that an exported node is in, from 1 on; None outside of all."""
    found: int | None = annotations_of(node).get(_PART)
    return found


class _Numbered:
    """Numbers the parts of a forward pass. A part inside of another belongs to that."""

    def __init__(self) -> None:
        self.count, self.inside = 0, False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self.inside:
            yield
            return
        self.count, self.inside = self.count + 1, True
        try:
            with traceback.preserve_node_meta(), traceback.annotate({_PART: self.count}):
                yield
        finally:
            self.inside = False


def _without_checkpoint(
    apply: Callable[..., Any],
    function: type[Function],
    *args: Any,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Any:
    if function is CheckpointFunction:
        run, _, *given = args
        with around():
            return run(*given)
    return apply(*args)


class _Call(NamedTuple):
    """A call that has been traced: what is written after it, whether it gives a tuple, and the tensors that it writes
    to, with what it leaves in them."""

    operands: tuple[list[Tensor], list[Tensor], str]
    several: bool
    changed: list[tuple[Tensor, Tensor]]


def _traced(apply: Callable[..., Any], function: type[Function], args: tuple[Any, ...]) -> _Call:
    tensors = [one for one in args if isinstance(one, Tensor)]
    name = _name(function, args, writes=False)
    copies = [one.clone() for one in tensors]  # the derivative is that at what was there before
    versions = [one._version for one in copies]
    given = iter(copies)
    results = apply(*(next(given) if isinstance(one, Tensor) else one for one in args))
    traced = list(results) if isinstance(results, tuple) else [results]
    pairs = zip(tensors, copies, versions, strict=True)
    changed = [(tensor, copy) for tensor, copy, version in pairs if copy._version != version]
    if changed:
        name = _name(function, args, writes=True)
    if not tensors or not all(isinstance(one, Tensor) for one in traced):
        raise _refusal(function, "takes no tensor, or returns something else than tensors")
    return _Call((traced, tensors, name), isinstance(results, tuple), changed)


def _name(function: type[Function], args: tuple[Any, ...], *, writes: bool) -> str:
    try:
        return name_of(function, args, writes=writes)
    except TypeError as error:
        raise _refusal(function, f"takes {error}, which may hold parameters or run code of its own") from error


def _refusal(function: type[Function], why: str) -> CaptureError:
    return CaptureError(
        f"The model calls the autograd function {function.__qualname__}, which {why}, so that its derivative cannot be "
        "kept in a graph. Write it as torch.library.custom_op with register_autograd, or as differentiable operations."
    )
