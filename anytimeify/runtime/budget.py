"""Budgets: what a level may cost, and the measuring of what MACs do not tell."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytimeify.codegen.call_signature import CallSignature
from anytimeify.errors import BudgetError, refusing
from anytimeify.ir import Captured, Level
from anytimeify.ir.node_meta import type_of
from anytimeify.level_names import LevelName, find_level, parse_level

__all__ = ["Budget", "example_batch", "latency", "measure_latency", "select", "usable"]

_LIMITS = ("macs", "params", "latency_ms", "memory_bytes")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits that a level has to keep, all of them; or the level itself.

    Fields
        macs: multiply-accumulates of one sample; of masked weights (`NestedWeights`) those that masks keep, which
            dense extracts do not skip: limit `latency_ms` where time is meant.
        params: parameters that the level reads; of masked weights those that masks keep.
        latency_ms: milliseconds of one batch of `batch_size` samples, measured on `device` with the extracted graph.
        memory_bytes: bytes of the parameters (of those that masks keep, as a compressed file stores them) and of the
            live intermediate results of `batch_size` samples.
        level: a level, instead of limits: its index (negative ones count from the full level), its name, its number
            as a float (`0.25`, of a width), or the `Level` itself, which stands for its index.
        device: where latency is measured; by default where the model is.
        batch_size: samples per batch, for `latency_ms` and `memory_bytes`.
    """

    macs: float | None = None
    params: float | None = None
    latency_ms: float | None = None
    memory_bytes: float | None = None
    level: LevelName | None = None
    device: str | torch.device | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        limits = self.limits
        if not limits and self.level is None:
            raise BudgetError(f"an empty budget: give at least one of {', '.join(_LIMITS)}, or level")
        if limits and self.level is not None:
            raise BudgetError(f"level={self.level} names the level outright: leave out {', '.join(limits)}")
        checked: dict[str, Any] = dict(limits)
        for name, value in checked.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value <= 0:
                raise BudgetError(f"{name}={value!r}: expected a positive number")
        if isinstance(self.level, Level):
            object.__setattr__(self, "level", self.level.index)
        if isinstance(self.level, bool) or not isinstance(self.level, int | float | str | None):
            raise BudgetError(f"level={self.level!r}: expected a level's index, its name, or its number as a float")
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int):
            raise BudgetError(f"batch_size={self.batch_size!r}: expected a whole number")
        try:
            torch.device(self.device or "cpu")
        except (RuntimeError, TypeError) as error:
            raise BudgetError(f"device={str(self.device)!r}: {str(error).splitlines()[0]}") from error
        if self.batch_size < 1:
            raise BudgetError(f"batch_size={self.batch_size}: expected 1 or more")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that were given, by name."""
        return {name: getattr(self, name) for name in _LIMITS if getattr(self, name) is not None}

    @staticmethod
    def parse(text: str) -> Budget:
        """Reads `"macs=5e8,latency_ms=12"`; names as in the fields."""
        names = [field.name for field in fields(Budget)]
        values: dict[str, Any] = {}
        for part in _parts(text):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or name not in names:
                raise BudgetError(
                    f"'{part}' in the budget '{text}': expected NAME=VALUE with NAME one of {', '.join(names)}"
                )
            if name in values:
                raise BudgetError(f"'{text}': {name} is given twice")
            values[name] = _READ.get(name, partial(_number, name))(value)
        with refusing(BudgetError, f"the budget '{text}'"):
            return Budget(**values)

    def __str__(self) -> str:
        """What `parse` reads, for every budget."""
        given = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }
        return ",".join(f"{name}={value}" for name, value in given.items())


_READ: Mapping[str, Callable[[str], Any]] = {"device": str, "level": parse_level}


def _parts(text: str) -> list[str]:
    """Split at commas, but for those in the name of a level (`depth 0.5, width 0.5`)."""
    parts: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if "=" not in part and parts and re.match(r"level\s*=", parts[-1]):
            parts[-1] += f", {part}"
        else:
            parts.append(part)
    return parts


def _number(name: str, text: str) -> int | float:
    try:
        value = float(text)
        return int(value) if name == "batch_size" and value.is_integer() else value
    except ValueError:
        raise BudgetError(f"{name}={text!r}: expected a number") from None


def select(levels: Sequence[Level], budget: Budget, itemsize: int, latency: Callable[[Level], float]) -> Level:
    """The last level within the budget. `itemsize`: bytes of one parameter; `latency`: milliseconds of a level.

    Latency is measured only of levels that keep all other limits, from the full level downwards.
    """
    usable = [level for level in levels if not level.training_only]
    if budget.level is not None:
        level = levels[find_level(levels, budget.level)]
        if level.training_only:
            raise BudgetError(f"level {level.index} ({level.name}) is for training only")
        return level

    def costs(level: Level) -> dict[str, float]:
        memory = level.cost.params * itemsize + level.cost.activation_bytes * budget.batch_size
        return {"macs": level.cost.macs, "params": level.cost.params, "memory_bytes": memory}

    limits = dict(budget.limits)
    limit_ms = limits.pop("latency_ms", None)
    for level in reversed(usable):
        known = costs(level)
        if all(known[name] <= limit for name, limit in limits.items()) and (
            limit_ms is None or latency(level) <= limit_ms
        ):
            return level
    cheapest = usable[0]
    known = costs(cheapest)
    shown = [f"{name} {known[name]:,.0f}" for name in limits]
    if limit_ms is not None:
        shown.append(f"latency_ms {latency(cheapest):.3g}")
    raise BudgetError(
        f"no level fits the budget {budget}: the cheapest, level {cheapest.index} ({cheapest.name}), "
        f"costs {', '.join(shown)}"
    )


def measure_latency(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    device: torch.device,
    seconds: float = 1.0,
    warm_up: int = 3,
    repeats: int = 200,
) -> float:
    """Median milliseconds of `module(*args, **kwargs)` in inference mode.

    After the warm-up, runs are timed one by one until there are `repeats` of them or `seconds` are over, at least 5.
    """

    def run() -> float:
        start = time.perf_counter()
        module(*args, **kwargs)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return (time.perf_counter() - start) * 1e3

    with torch.inference_mode():
        for _ in range(warm_up):
            run()
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 5 or (len(times) < repeats and time.perf_counter() < end):
            times.append(run())
    return statistics.median(times)


def latency(
    level: fx.GraphModule,
    captured: Captured,
    call_signature: CallSignature,
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    seconds: float,
) -> float:
    """Median milliseconds of one batch through the extract of a level, made of the example inputs."""
    inputs = example_batch(captured, batch_size)
    moved = tuple(x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in inputs)
    args, kwargs = call_signature.arguments(moved, captured.signature)
    return measure_latency(level.to(device), args, kwargs, device=device, seconds=seconds)


def usable(device: torch.device) -> torch.device:
    """The device; `BudgetError` where nothing can be computed on it: none is there, or it holds no data (`meta`)."""
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts that there is some
        raise BudgetError(f"latency cannot be measured on {device}: {str(error).splitlines()[0]}") from error
    return device


def example_batch(captured: Captured, batch_size: int) -> tuple[Tensor, ...]:
    """The example inputs, flat, with another number of samples: samples repeat as often as needed.

    A model that was captured for one batch, or for some, can be run with those only; for the default of 1 the smallest
    of them is taken.
    """
    symbol = captured.batch
    if symbol is None:
        static = (
            captured.example_inputs[0].shape[0] if captured.example_inputs and captured.example_inputs[0].ndim else 1
        )
        if batch_size not in (1, static):
            raise BudgetError(f"batch_size={batch_size}: the backbone was captured with a static batch of {static}")
        return captured.example_inputs
    least, most = captured.batch_range
    batch_size = least if batch_size == 1 else batch_size
    if batch_size < least or (most is not None and batch_size > most):
        raise BudgetError(f"batch_size={batch_size}: the graph holds for batches of {captured.batches}")
    resized = []
    for node, tensor in zip(captured.program.placeholders, captured.example_inputs, strict=True):
        for dim, size in enumerate(type_of(node).shape):
            if symbol in size.symbols:
                wanted = size.coefficient * batch_size ** size.symbols.count(symbol)
                tensor = tensor.index_select(dim, torch.arange(wanted, device=tensor.device) % tensor.shape[dim])
        resized.append(tensor)
    return tuple(resized)
