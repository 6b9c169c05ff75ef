"""Which form computes a triangular product: fixed by hand, by a rule of thumb, or by measuring once per layer.

A layer is a dense layer of torch with a masked weight. Where products with parts of the weight may be faster, these are
timed, each direction for itself, and then the whole step of the layer, forward and backward, with all that Python does
for it, against that of the masked one (`pays`).

The forms give the same numbers up to rounding, so which one is fastest decides, and nobody knows that beforehand: it
depends on sizes, memory format, threads and device. As `torch.backends.cudnn.benchmark` does, the first call of a layer
times the candidates and later calls use what won.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from anytimeify._torch import is_plain, is_watched
from anytimeify.errors import ArgumentValueError
from anytimeify.kernels.clock import seconds, wait

__all__ = [
    "WORTH",
    "Case",
    "Form",
    "Kind",
    "Layer",
    "choices",
    "choose",
    "forget",
    "form",
    "kernel_pays",
    "kind",
    "pays",
]

Kind: TypeAlias = Literal["masked", "prefixes", "blocks", "rule", "measured"]
Layer: TypeAlias = Callable[..., Tensor]
"""Takes input, weight and bias."""
Result = TypeVar("Result")

_KINDS = ("masked", "prefixes", "blocks", "rule", "measured")
WORTH = 1 << 22  # multiply-accumulates; below, further calls cost more than what they could save
_ROUNDS = 5
_PATIENCE = 0.5  # seconds of timing, after which two rounds do
_MARGIN = 0.95  # of the masked form's and the default's time, below which another is taken: what is nearer is noise
_HOPELESS = 1.5  # times the best so far, above which a form is not timed again


class Form(NamedTuple):
    """One way to compute a triangular product."""

    route: Literal["masked", "convolution", "matrix", "triton", "blocks"]  # the last: each direction in its own form
    blocks: int = 0  # how many products
    channels_last: bool = False  # whether parts are copied in that memory format whatever the input has

    def __str__(self) -> str:
        return f"{self.route}{f' {self.blocks}' if self.blocks else ''}{', channels-last' * self.channels_last}"


@dataclass(frozen=True)
class _Setting:
    kind: Kind
    count: int | None
    owner: Callable[[], object]  # the `form` that made it, as long as it may still end


# Of the whole process, for backward passes run in threads of their own. The last one holds; each is taken out by the
# `form` that put it there, in whatever order `with` blocks of several threads end.
_settings: tuple[_Setting, ...] = (_Setting("measured", None, lambda: None),)
_lock = threading.Lock()
_chosen: dict[Hashable, Form] = {}
_MASKED, _IN_BLOCKS, _KERNEL = Form("masked"), Form("blocks"), Form("triton")


class form(AbstractContextManager[None]):  # noqa: N801  # is called like a function, as torch.set_grad_enabled is
    """Fixes how triangular products are computed, from now on or within a `with` block, in the whole process.

    * `"masked"`: dense products with masked weights, and norms of operations of torch;
    * `"prefixes"`: one product per level;
    * `"blocks"`: `count` products of neighbouring levels, or as many as a rule of thumb says;
    * `"rule"`: blocks or masked weights, for each layer as a rule of thumb says, which is the same in every run;
    * `"measured"`, from the start: whatever is fastest here, timed at a layer's first call. The choice may differ from
      run to run, and with it the last bits; `torch.use_deterministic_algorithms(True)` makes it the rule of thumb's.

    Of `with` blocks that threads are in at the same time, the one entered last holds for all of them; when all have
    ended, what was set before holds.
    """

    def __init__(self, kind: Kind, count: int | None = None) -> None:
        if kind not in _KINDS:
            raise ArgumentValueError(f"kind={kind!r} is none of {', '.join(map(repr, _KINDS))}")
        if count is not None and (kind != "blocks" or count < 1):
            raise ArgumentValueError(f"count={count} is the number of 'blocks', 1 or more")
        global _settings
        self.setting = _Setting(kind, count, weakref.ref(self))
        with _lock:
            _settings = (*_lasting(_settings), self.setting)

    def __exit__(self, *error: object) -> None:
        global _settings
        with _lock:
            _settings = tuple(one for one in _settings if one is not self.setting)


def _lasting(settings: tuple[_Setting, ...]) -> tuple[_Setting, ...]:
    """Without those that nothing ends any more and that a later one of this kind hides for good."""
    final = [one for one in settings if one.owner() is None][-1:]
    return tuple(one for one in settings if one.owner() is not None or one in final)


def kind() -> Kind:
    """What the settings ask for."""
    return _settings[-1].kind


def choices() -> Mapping[Hashable, Form]:
    """What has been measured in this process: the form chosen for every layer, size and direction."""
    return dict(_chosen)


def forget() -> None:
    """Measure again."""
    _chosen.clear()


Timer: TypeAlias = Callable[[Callable[[Form], object], Form, torch.device], float]


class Case(NamedTuple):
    """One layer, direction and size, as what times it or remembers the times."""

    levels: int
    work: int  # multiply-accumulates
    device: torch.device
    candidates: tuple[Form, ...]  # the masked form first; those with blocks in order
    default: Form  # by the rule of thumb
    key: Callable[[], Hashable]  # what timings depend on


def choose(case: Case, run: Callable[[Form], Result]) -> Result:
    """The result of `run` in the form that the settings ask for, or in the fastest of the candidates."""
    kind, count = _settings[-1].kind, _settings[-1].count
    if kind == "masked":
        return run(case.candidates[0])
    if kind == "prefixes":
        return run(_blocked(case, case.levels))
    if kind == "blocks":
        return run(case.default if count is None else _blocked(case, min(count, case.levels)))
    if case.work < WORTH or len(case.candidates) < 2 or not _may_measure(case.device):
        return run(case.default)
    key = case.key()
    known = _chosen.get(key)
    if known is None:  # two threads may both measure
        known = _chosen[key] = _fastest(case, run)
    return run(known)


def pays(case: Callable[[], Case], plain: Layer, in_blocks: Layer, tensors: Sequence[Tensor | None]) -> bool:
    """Whether a layer is computed in blocks: as the settings ask for, or where that makes its step faster.

    `case`: its forward pass; `plain`, `in_blocks`: the layer with a masked weight, and without. What a compiler, a
    function transform or a tensor of another kind is to see is the masked layer.
    """
    kind = _settings[-1].kind
    if kind == "masked" or not all(is_plain(one) for one in tensors if one is not None):
        return False
    if kind not in ("rule", "measured"):
        return True
    known = case()
    if known.work < WORTH or len(known.candidates) < 2:
        return False
    if not _may_measure(known.device):
        return known.device.type == "cpu" and known.default.route != "masked"
    trains = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)
    key = ("step", trains, _autocast(known.device), known.key()) if trains else known.key()
    if key not in _chosen:
        if is_watched():
            return False
        _measure(key, known, plain, in_blocks, tensors, trains)
    return _chosen[key].route != "masked"


def kernel_pays(key: Hashable, device: torch.device, step: Callable[[bool], object]) -> bool:
    """Whether what `step(True)` does on a GPU by a kernel is faster than the operations of torch of `step(False)`,
    device and host, whichever takes longer. As the settings ask for, or measured once for each key."""
    kind = _settings[-1].kind
    if kind != "measured":
        return kind not in ("masked", "rule")
    if key not in _chosen:
        if is_watched() or not _may_measure(device):
            return False
        case = Case(1, 0, device, (_MASKED, _KERNEL), _MASKED, lambda: key)
        _chosen[key] = _fastest(case, lambda one: step(one == _KERNEL), _slower_side)
    return _chosen[key] == _KERNEL


def _autocast(device: torch.device) -> torch.dtype | None:
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def _measure(
    key: Hashable, case: Case, plain: Layer, in_blocks: Layer, tensors: Sequence[Tensor | None], trains: bool
) -> None:
    """Notes down the form of a layer. In blocks only where its whole step gains by that."""
    given = [None if one is None else one.detach().requires_grad_(one.requires_grad and trains) for one in tensors]
    wanted = [one for one in given if one is not None and one.requires_grad]

    def step(layer: Layer) -> None:
        y = layer(*given)
        if trains:
            torch.autograd.grad(y, wanted, torch.ones_like(y))

    step(in_blocks)  # measures and notes down the form of each direction
    if trains:
        layers = {_MASKED: plain, _IN_BLOCKS: in_blocks}
        both = case._replace(candidates=tuple(layers), default=_MASKED)
        _chosen[key] = _fastest(both, lambda one: step(layers[one]), _step_time)
    else:
        _chosen.setdefault(key, case.default)


def _blocked(case: Case, count: int) -> Form:
    """The first route that is not masked, in so many blocks."""
    return next((one._replace(blocks=count) for one in case.candidates if one.blocks), case.candidates[0])


def _may_measure(device: torch.device) -> bool:
    if _settings[-1].kind == "rule":
        return False
    if torch.are_deterministic_algorithms_enabled() or torch.compiler.is_compiling():
        return False
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def _fastest(case: Case, run: Callable[[Form], object], timed: Timer | None = None) -> Form:
    """Timed in turns, so that what else the machine does falls on all of them; the minimum of each counts."""
    timed = timed or _time
    seconds: dict[Form, float] = {}
    for one in dict.fromkeys([case.default, *case.candidates]):
        run(one)  # compiles, reserves memory
        seconds[one] = timed(run, one, case.device)
    total = sum(seconds.values())
    for done in range(1, _ROUNDS):
        if done >= 2 and total > _PATIENCE:
            break
        best = min(seconds.values())
        for one, spent in seconds.items():
            if spent < _HOPELESS * best:
                now = timed(run, one, case.device)
                seconds[one], total = min(spent, now), total + now
    best_form = min(seconds, key=seconds.__getitem__)
    plainest = min((*case.candidates[:1], case.default), key=seconds.__getitem__)
    return best_form if seconds[best_form] < _MARGIN * seconds[plainest] else plainest


def _time(run: Callable[[Form], object], one: Form, device: torch.device) -> float:
    return seconds(lambda: run(one), device)


def _step_time(run: Callable[[Form], object], one: Form, device: torch.device) -> float:
    """Where a device computes while Python goes on, a masked layer takes as long as the device does; one in blocks
    also the time of the host, which a network whose layers are small waits for."""
    if device.type != "cuda":
        return _time(run, one, device)
    spent, host = _both_times(run, one, device)
    return spent if one == _MASKED else spent + host


def _slower_side(run: Callable[[Form], object], one: Form, device: torch.device) -> float:
    return max(_both_times(run, one, device))


def _both_times(run: Callable[[Form], object], one: Form, device: torch.device) -> tuple[float, float]:
    """Seconds of the device, and of the host."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    wait(device)
    first.record()
    start = time.perf_counter()
    run(one)
    host = time.perf_counter() - start
    last.record()
    wait(device)
    return first.elapsed_time(last) / 1000, host
