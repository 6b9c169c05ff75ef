"""Every canonical pass, in order: from an exported program to a canonical one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind

from anytimeify.capture.constants import free_of_device
from anytimeify.capture.finish import batch_symbols, finish
from anytimeify.capture.functionalise import drop_dead_writes, functionalise
from anytimeify.capture.generalise import generalise
from anytimeify.capture.guards import batch_range
from anytimeify.capture.inputs import CallInputs
from anytimeify.capture.lower import lower
from anytimeify.capture.recompose import recompose
from anytimeify.capture.simplify import drop_identities, freeze_unread, simplify
from anytimeify.capture.stochastic_depth import recognise_stochastic_depth
from anytimeify.capture.training_form import restore_training_form
from anytimeify.capture.work_graph import WorkGraph, fake
from anytimeify.ir import Captured, Signature, names

__all__ = ["Canonical", "Counterpart", "canonicalise", "results_of", "user_outputs"]


class Counterpart(NamedTuple):
    """The same model exported for a batch of another size, where neither export has a dynamic batch."""

    exported: ExportedProgram
    batch: int  # of the first export
    other_batch: int  # of this one


class Canonical(NamedTuple):
    """What the passes make of an exported program."""

    captured: Captured
    # Buffers that the backbone writes to, with one write: all of them with `updates`, else those whose new value the
    # prediction does not read.
    collected: Mapping[str, fx.Node]


def canonicalise(
    exported: ExportedProgram,
    inputs: CallInputs,
    positions: Sequence[int],
    *,
    restore: frozenset[str] | None = None,
    updates: bool = False,
    order: Sequence[str] = (),
    counterpart: Counterpart | None = None,
) -> Canonical:
    """`positions`: the flat results to keep; the first of them is the prediction.

    `counterpart`: makes the batch dynamic from two exports for a fixed one; raises `Differs` where that fails.

    `restore`: the export was made in eval mode, norms shall train again, except for modules of these paths.
    `updates`: what is written to buffers is part of the program. `order`: the names of the backbone's state dict, for
    the program's tensors.
    """
    work = lower(exported, order)
    if counterpart is not None:
        generalise(work, lower(counterpart.exported, order), counterpart.batch, counterpart.other_batch)
    recompose(work)
    _keep_results(work, exported, positions)
    drop_identities(work)
    collected = drop_dead_writes(work, updates=updates)
    functionalise(work, updates=updates)
    if restore is not None:
        restore_training_form(work, held=restore)
    simplify(work)
    recognise_stochastic_depth(work)
    free_of_device(work)
    freeze_unread(work)
    flat = [leaf for leaf in inputs.flat(exported.call_spec.in_spec) if isinstance(leaf, Tensor)]
    batch, renaming = batch_symbols(work, [tensor.shape[0] if tensor.dim() else None for tensor in flat])
    program = replace(finish(work, renaming), passes=("capture",))  # one pass, to those that follow
    signature = Signature(
        exported.call_spec.in_spec, exported.call_spec.out_spec, positions[0], tuple(work.constant_inputs)
    )
    # Norms count their batches; nothing but momentum=None, which is no part of a graph, reads that.
    collected = {name: node for name, node in collected.items() if not names.is_counter(name)}
    work.notes.extend(
        f"'{name}' is written to in training, as in the backbone"
        if updates
        else f"'{name}' keeps its value: the backbone writes to it, but its prediction does not read it"
        for name in collected
    )
    captured = Captured(
        program, signature, tuple(flat), batch, tuple(work.notes), batch_range=batch_range(exported, batch)
    )
    return Canonical(captured, collected)


def results_of(exported: ExportedProgram) -> list[Tensor | None]:
    """The flat results of the backbone: without data, as the exporter recorded them; None for what is no tensor."""
    node = exported.graph.output_node()
    results = user_outputs(node, exported)
    return [fake(result) if isinstance(result, fx.Node) else None for result in results]


def user_outputs(node: fx.Node, exported: ExportedProgram) -> list[Any]:
    """What `node`, an output node, holds of the backbone's results: nodes and constants."""
    results: Any = node.args[0]  # the exporter: one tuple
    pairs = zip(results, exported.graph_signature.output_specs, strict=True)
    return [result for result, kind in pairs if kind.kind is OutputKind.USER_OUTPUT]


def _keep_results(work: WorkGraph, exported: ExportedProgram, positions: Sequence[int]) -> None:
    node = work.graph.output_node()
    results = user_outputs(node, exported)
    node.args = (tuple(results[position] for position in positions),)
    tensors = sum(isinstance(result, fx.Node) and fake(result) is not None for result in results)
    if tensors > len(positions) == 1:
        work.notes.append(
            f"of {tensors} outputs of the backbone, number {positions[0]} is the prediction; the others are dropped"
        )
