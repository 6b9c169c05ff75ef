"""Recurrent layers. `layers` makes a `Recurrent` of each, which is ours: torch's layer, with its order of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytimeify.capture.sources.onnx.graph import Array
from anytimeify.capture.sources.onnx.table import NotReadError, Row

__all__ = ["ROWS"]

_LAYERS: dict[str, Callable[..., Any]] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "Tanh": torch.rnn_tanh,
    "Relu": torch.rnn_relu,
}


def _recurrent(
    x: Tensor,
    lengths: Array | None,
    hidden: Tensor | None,
    cell: Tensor | None,
    *weights: Tensor,
    kind: str,
    backwards: bool,
    layout: int,
    directions: int,
    biases: bool,
) -> tuple[Tensor, ...]:
    """`layout` 0 has the time first, 1 the batch."""
    x = x.transpose(0, 1) if layout else x
    if lengths is not None and not np.all(lengths == x.shape[0]):
        raise NotReadError("its sequences are shorter than its input")
    x = x.flip(0) if backwards else x
    size = weights[1].shape[1]
    states = [_state(one, x, directions, size, layout) for one in (hidden, cell)]
    given = tuple(states) if kind == "LSTM" else states[0]
    function = _LAYERS[kind]
    result, *last = function(x, given, list(weights), biases, 1, 0.0, False, directions == 2, False)
    result = result.flip(0) if backwards else result
    whole = result.unflatten(2, (directions, -1)).transpose(1, 2)
    if layout:
        whole, last = whole.permute(2, 0, 1, 3), [one.transpose(0, 1) for one in last]
    return (whole, *last)


def _state(given: Tensor | None, x: Tensor, directions: int, size: int, layout: int) -> Tensor:
    if given is None:
        return x.new_zeros(directions, x.shape[1], size)
    return given.transpose(0, 1) if layout else given


def _gru_reset_first(
    x: Tensor,
    lengths: Array | None,
    hidden: Tensor | None,
    *weights: Tensor,
    backwards: Sequence[bool],
    layout: int,
) -> tuple[Tensor, ...]:
    """A GRU that resets the state before the product with it, which torch has no layer for: step by step."""
    x = x.transpose(0, 1) if layout else x
    if lengths is not None and not np.all(lengths == x.shape[0]):
        raise NotReadError("its sequences are shorter than its input")
    size, wholes, lasts = weights[1].shape[1], [], []
    states = _state(hidden, x, len(backwards), size, layout)
    for number, back in enumerate(backwards):
        own = weights[4 * number : 4 * number + 4]
        whole, last = _one_direction(x.flip(0) if back else x, states[number], own)
        wholes.append(whole.flip(0) if back else whole)
        lasts.append(last)
    result, end = torch.stack(wholes, 1), torch.stack(lasts)
    if layout:
        result, end = result.permute(2, 0, 1, 3), end.transpose(0, 1)
    return result, end


def _one_direction(x: Tensor, state: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    inputs, recurrent, input_bias, bias = weights
    size, found = recurrent.shape[1], []
    gates, candidate = recurrent.split([2 * size, size])
    gate_bias, candidate_bias = bias.split([2 * size, size])
    for given in torch.nn.functional.linear(x, inputs, input_bias).unbind(0):
        gate, new = given.split([2 * size, size], 1)
        reset, update = torch.sigmoid(gate + torch.nn.functional.linear(state, gates, gate_bias)).split(size, 1)
        new = torch.tanh(new + torch.nn.functional.linear(reset * state, candidate, candidate_bias))
        state = new + update * (state - new)
        found.append(state)
    return torch.stack(found), state


def _computed_weights(
    *inputs: Any,
    activation_alpha: Any = None,
    activation_beta: Any = None,
    activations: Any = None,
    clip: Any = None,
    direction: str = "forward",
    hidden_size: int = 0,
    input_forget: int = 0,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> Any:
    """What `layers` has left: a layer whose weights are no tensors of the graph."""
    raise NotReadError("its weights are computed")


ROWS = (
    Row("Recurrent", 1, _recurrent, numbers=(1,)),
    Row("GruResetFirst", 1, _gru_reset_first, numbers=(1,)),
    Row("LSTM", 7, _computed_weights),
    Row("GRU", 7, _computed_weights),
    Row("RNN", 7, _computed_weights),
)
