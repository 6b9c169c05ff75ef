"""Branches and loops, unrolled: a graph of ATen has none. What decides on them has to be known without running.

The functions are given what runs an inner graph first, on the values around it and those that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from anytimeify.capture.sources.onnx.table import NotReadError, Row
from anytimeify.capture.sources.onnx.values import single, tensor_of

__all__ = ["MOST", "ROWS", "decided"]

MOST = 1000  # times that a loop is unrolled

Run = Callable[[Any, Sequence[Any]], list[Any]]


def decided(value: Any, what: str) -> Any:
    """A number that is known; `NotReadError` where it depends on the values that a network is given."""
    if not isinstance(value, np.ndarray):
        raise NotReadError(
            f"{what} depends on the values of the inputs, which a graph cannot say. Where that is an input that never "
            "changes, give its value: --input NAME=VALUE (source(..., inputs={'NAME': VALUE}))"
        )
    return single(value)


def _if(run: Run, condition: Any, *, then_branch: Any, else_branch: Any) -> Any:
    return _results(run(then_branch if decided(condition, "its condition") else else_branch, ()))


def _results(found: Sequence[Any]) -> Any:
    return tuple(found) if len(found) > 1 else found[0]


def _loop(run: Run, trips: Any, condition: Any, *carried: Any, body: Any) -> Any:
    count = MOST + 1 if trips is None else decided(trips, "how often it runs")
    going = True if condition is None else bool(decided(condition, "its condition"))
    state, collected = list(carried), list[list[Any]]()
    for turn in range(count):
        if not going:
            break
        if turn == MOST:
            raise NotReadError(f"it runs more than {MOST} times")
        found = run(body, (np.array(turn, np.int64), np.array(True), *state))
        going = bool(decided(found[0], "its condition"))
        state = found[1 : 1 + len(carried)]
        collected.append(found[1 + len(carried) :])
    if not collected and len(body.outputs) > 1 + len(carried):
        raise NotReadError("it does not run at all, and what it collects is read")
    return _results([*state, *(_stacked(parts, 0) for parts in zip(*collected, strict=True))])


def _stacked(parts: Sequence[Any], axis: int) -> Any:
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.stack(parts, axis)
    return torch.stack([tensor_of(part) if isinstance(part, np.ndarray) else part for part in parts], axis)


def _scan(
    run: Run,
    *inputs: Any,
    body: Any,
    num_scan_inputs: int,
    scan_input_axes: list[int] | None = None,
    scan_input_directions: list[int] | None = None,
    scan_output_axes: list[int] | None = None,
    scan_output_directions: list[int] | None = None,
) -> Any:
    kept = len(inputs) - num_scan_inputs
    state, sequences = list(inputs[:kept]), [_tensor(one) for one in inputs[kept:]]
    axes = scan_input_axes or [0] * num_scan_inputs
    backwards = scan_input_directions or [0] * num_scan_inputs
    count = sequences[0].shape[axes[0]]
    if not isinstance(count, int) or not 0 < count <= MOST:
        raise NotReadError(f"it runs over {count} steps; 1 to {MOST} are unrolled")
    steps = [
        [sequence.select(axis, count - 1 - turn if back else turn) for turn in range(count)]
        for sequence, axis, back in zip(sequences, axes, backwards, strict=True)
    ]
    collected = []
    for turn in range(count):
        found = run(body, (*state, *(own[turn] for own in steps)))
        state = found[:kept]
        collected.append(found[kept:])
    outputs = len(collected[0])
    places, reverse = scan_output_axes or [0] * outputs, scan_output_directions or [0] * outputs
    columns = [list(parts) for parts in zip(*collected, strict=True)]
    stacked = [
        _stacked(parts[::-1] if back else parts, axis)
        for parts, axis, back in zip(columns, places, reverse, strict=True)
    ]
    return _results([*state, *stacked])


def _tensor(value: Any) -> Any:
    return tensor_of(value) if isinstance(value, np.ndarray) else value


ROWS = (
    Row("If", 1, _if, flow=True),
    Row("Loop", 1, _loop, flow=True),
    Row("Scan", 9, _scan, flow=True),
)
