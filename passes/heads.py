"""The layers that make predictions."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from anytimeify.ir import Program
from anytimeify.rules.targets import aten

__all__ = ["LAYERS", "heads_of"]

LAYERS = frozenset(
    aten(
        *("linear.default", "addmm.default", "matmul.default", "einsum.default"),
        *(f"conv{n}d.{overload}" for n in (1, 2, 3) for overload in ("default", "padding")),
        *("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input"),
        *("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input"),
    )
)


def heads_of(program: Program) -> Iterator[fx.Node]:
    """The last layers with parameters on every way to an output."""
    waiting, seen = list(program.outputs), set()
    while waiting:
        node = waiting.pop()
        if node in seen or node.op != "call_function":
            continue
        seen.add(node)
        if node.target in LAYERS and any(source.op == "get_attr" for source in node.all_input_nodes):
            yield node
        else:
            waiting.extend(node.all_input_nodes)
