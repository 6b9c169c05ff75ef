"""Recurrent layers: LSTM, GRU and plain RNN, over whole sequences and one step at a time.

A weight is (gates hidden) x input: every gate keeps the same hidden units, and the gates keep their number. The states
of all layers and directions are one tensor, so all of them have one hidden axis; a bidirectional layer joins its
directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from anytimeify import factors
from anytimeify.errors import SchemeError
from anytimeify.factors import Expr
from anytimeify.ir import Size, TensorType
from anytimeify.rules.op import Dims, Op, Resize
from anytimeify.rules.table import axis_rule
from anytimeify.rules.targets import aten
from anytimeify.schema import bound


def _cell(op: Op, weights: Sequence[fx.Node], read: Expr, state: Expr, hidden: Expr) -> list[Expr]:
    """One layer in one direction: a weight for what it reads, one for its state, and their biases, each with rows
    (gates hidden). Gives what the gates are in each of them."""
    for weight, columns in zip(weights, (read, state), strict=False):
        op.unify(op.axes(weight)[1], columns)
    gates: list[Expr] = []
    size = factors.size_of(hidden)
    for weight in weights:
        rows = op.axes(weight)[0]
        pieces = factors.split(rows, [op.type(weight).shape[0] // size, size], op.where)
        if pieces is None:
            op.pin(rows, "does not divide into gates")
            op.pin(hidden, "does not divide into gates")
            continue
        gates.append(pieces[0])
        op.unify(pieces[1], hidden)
    return gates


def _pin_gates(op: Op, gates: Sequence[Expr]) -> None:
    """All gates as one axis, so that it is reported once."""
    for one in gates:
        op.unify(gates[0], one)
    for one in gates:
        op.pin(one, "the gates of a recurrent layer")


# Over a sequence, whose steps are positions. Where an LSTM projects its hidden state, the last weight of each cell is
# state x hidden, and only the cell state has the hidden axis.
def _sequence(op: Op) -> tuple[Dims, ...]:
    x, states = op.axes(op["input"]), _states(op["hx"])
    state, hidden = op.axes(states[0])[2], op.axes(states[-1])[2]
    op.mix(x[2], state, hidden)
    batch, steps = (x[0], x[1]) if op["batch_first"] else (x[1], x[0])
    op.pin(steps, "steps of a recurrence", "position")
    for one in states:
        op.pin(op.axes(one)[0], "layers and directions of a recurrence")
        op.unify(op.axes(one)[1], batch)
    projected = _projected(op.type(states[0]).shape, op.type(states[-1]).shape)
    if not projected:
        op.unify(state, hidden)
    directions = 2 if op["bidirectional"] else 1
    result = factors.resolve(factors.Sum((state,) * directions))
    cells = directions * int(op["num_layers"])
    count = len(op["params"]) // cells
    gates: list[Expr] = []
    for cell in range(cells):
        weights = op["params"][cell * count : (cell + 1) * count]
        if projected:
            *weights, projection = weights
            op.unify(op.axes(projection)[0], state)
            op.unify(op.axes(projection)[1], hidden)
        gates += _cell(op, weights, x[2] if cell < directions else result, state, hidden)
    _pin_gates(op, gates)
    return (x[0], x[1], result), *(op.axes(one) for one in states)


def _states(given: Any) -> list[fx.Node]:
    """The hidden state, and of an LSTM the cell state."""
    return [given] if isinstance(given, fx.Node) else list(given)


def _projected(state: Sequence[Size], hidden: Sequence[Size]) -> bool:
    return state[-1] != hidden[-1]


# ATen tells from the sizes whether there is a projection, so one that keeps as many units as are hidden cannot be said.
def _still_projected(r: Resize) -> dict[str, Any]:
    states = _states(r.arguments["hx"])
    old = [node.meta["type"].shape for node in (states[0], states[-1])]
    new = [r.types[node].shape for node in (states[0], states[-1])]
    if _projected(*old) and not _projected(*new):
        raise SchemeError(
            f"widths: '{r.node.name}' ({r.node.meta['origin']}) projects {old[1][-1]} hidden units to {old[0][-1]}; at "
            f"one of the widths both are {new[0][-1]}, and torch has no LSTM whose projection is as wide as its hidden "
            "state. Leave that width out, lower multiple_of, or name other layers in where."
        )
    return {}


def _sequence_macs(node: fx.Node) -> Size:
    """Every weight matrix is applied once to every step of every sample."""
    given = bound(node)
    shape: tuple[Size, ...] = given["input"].meta["type"].shape
    return shape[0] * shape[1] * _elements(given["params"])


def _elements(weights: Sequence[fx.Node | None]) -> Size:
    matrices = [node.meta["type"] for node in weights if node is not None and len(node.meta["type"].shape) == 2]
    return factors.add_sizes([kind.size for kind in matrices])


axis_rule(
    aten("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input"),
    _sequence,
    literals=_still_projected,
    macs=_sequence_macs,
    kind="recurrent",
    training="train",
    weights=("params",),
)


# one step; a sample alone has no batch axis
def _step(op: Op) -> Any:
    states = [op.axes(one) for one in _states(op["hx"])]
    x, hidden = op.axes(op["input"]), states[0][-1]
    op.mix(x[-1], hidden)
    for one in states:
        op.unify(one[-1], hidden)
        for batch, other in zip(one[:-1], x[:-1], strict=True):
            op.unify(batch, other)
    weights = [op[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    _pin_gates(op, _cell(op, [weight for weight in weights if weight is not None], x[-1], hidden, hidden))
    return tuple(states) if isinstance(op.node.meta["type"], tuple) else states[0]


def _step_macs(node: fx.Node) -> Size:
    given = bound(node)
    read: TensorType = given["input"].meta["type"]
    samples = read.size // read.shape[-1]
    return samples * _elements([given["w_ih"], given["w_hh"]])


axis_rule(
    aten("lstm_cell.default", "gru_cell.default", "rnn_tanh_cell.default", "rnn_relu_cell.default"),
    _step,
    macs=_step_macs,
    kind="recurrent",
    weights=("w_ih", "w_hh"),
)
