"""State that training computes of parameters alone: the singular vectors of `torch.nn.utils.spectral_norm`.

A level that narrows such a parameter has a smaller matrix, whose singular vectors are no part of the full one's. It has
a state of its own, as it has statistics of its own in a norm, and that starts at what a few steps of training make of
the part: as many as the constructor of `spectral_norm` takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace

from torch import Tensor, fx

from anytimeify.contract.pass_manager import rewrite
from anytimeify.graph.traversal import ancestors
from anytimeify.ir import Program, names
from anytimeify.ir.rewritten import Rewritten
from anytimeify.ir.schema import bound
from anytimeify.passes.rewrites.fold import evaluate
from anytimeify.rules import traits

__all__ = ["is_state_of_parameters", "settle"]

STEPS = 15


def is_state_of_parameters(source: fx.Node, reached: Set[fx.Node]) -> bool:
    """Whether a tensor is a buffer that training writes, computed of parameters and such buffers alone, and everything
    that reads it is narrowed."""
    writers = [user for user in source.users if _written(user) is source]
    return bool(writers) and all(user in reached for user in source.users) and all(map(_of_tensors_alone, writers))


@rewrite("settle")
def settle(rewritten: Rewritten) -> Rewritten:
    """The states of levels after `STEPS` steps of training at the parameters as they are."""
    program = rewritten.program
    updates: dict[str, fx.Node] = {}
    for node in program.graph.nodes:
        buffer = _written(node)
        if buffer is not None and names.level_of(str(buffer.target)) is not None and _of_tensors_alone(node):
            updates.setdefault(str(buffer.target), node)
    if not updates:
        return rewritten
    tensors = program.tensors
    for _ in range(STEPS):
        tensors = {**tensors, **_after_a_step(replace(program, tensors=tensors), updates)}
    return replace(rewritten, program=replace(program, tensors=tensors))


def _after_a_step(program: Program, updates: Mapping[str, fx.Node]) -> dict[str, Tensor]:
    values = evaluate(program, list(updates.values()))
    return {name: values[node].detach().clone() for name, node in updates.items()}


def _written(node: fx.Node) -> fx.Node | None:
    """The tensor that a call writes to in training, as a whole."""
    argument = traits(node).writes
    buffer = bound(node)[argument] if argument is not None else None
    return buffer if isinstance(buffer, fx.Node) and buffer.op == "get_attr" else None


def _of_tensors_alone(update: fx.Node) -> bool:
    return all(node.op != "placeholder" for node in ancestors([update]))
