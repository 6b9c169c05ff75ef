"""Budgets: what a level may cost."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch

from anytimeify.errors import BudgetError, refusing
from anytimeify.ir import Level
from anytimeify.level_names import LevelName, find_level, parse_level
from anytimeify.runtime.latency import Place, Runtime, device_of

__all__ = ["Budget", "select"]

_LIMITS = ("macs", "params", "latency_ms", "memory_bytes")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits that a level has to keep, all of them; or the level itself.

    Fields
        macs: multiply-accumulates of one sample; of masked weights (`NestedWeights`) those that masks keep, which
            dense extracts do not skip: limit `latency_ms` where time is meant.
        params: parameters that the level reads; of masked weights those that masks keep.
        latency_ms: milliseconds of one batch of `batch_size` samples, measured on `device` with the extracted graph,
            as `runtime` runs it with `threads` threads.
        memory_bytes: bytes of the parameters (of those that masks keep, as a compressed file stores them) and of the
            live intermediate results of `batch_size` samples.
        level: a level, instead of limits: its index (negative ones count from the full level), its name, its number
            as a float (`0.25`, of a width), or the `Level` itself, which stands for its index.
        device: where latency is measured; by default where the model is, and on the CPU in onnxruntime.
        batch_size: samples per batch, for `latency_ms` and `memory_bytes`.
        runtime: what will run the level: `"torch"`, or `"onnxruntime"`, for which it is exported.
        threads: of one run; by default what the runtime does by itself.
    """

    macs: float | None = None
    params: float | None = None
    latency_ms: float | None = None
    memory_bytes: float | None = None
    level: LevelName | None = None
    device: str | torch.device | None = None
    batch_size: int = 1
    runtime: Runtime = "torch"
    threads: int | None = None

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
        Place(device_of(self.device or "cpu"), self.runtime, self.threads, self.batch_size)

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


_READ: Mapping[str, Callable[[str], Any]] = {"device": str, "level": parse_level, "runtime": str}


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
        return int(value) if name in ("batch_size", "threads") and value.is_integer() else value
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
