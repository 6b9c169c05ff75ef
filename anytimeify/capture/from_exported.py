"""From an exported program, which is what it is: in one mode, with the batch that it was exported for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from anytimeify._torch import unflatten
from anytimeify.capture.another_batch import agrees_on_parts, for_other_batches
from anytimeify.capture.canonical import Counterpart, canonicalise, results_of
from anytimeify.capture.compare import Gap, expected_from_exported, fits
from anytimeify.capture.inputs import CallInputs, call_inputs, of_batch
from anytimeify.capture.outputs import choose
from anytimeify.capture.results import structure_of, tensor_places, with_results
from anytimeify.capture.training_form import trains
from anytimeify.capture.work_graph import BufferMutation, fake
from anytimeify.contract.spec import SpecError
from anytimeify.errors import AnytimeError, CaptureError, PassError, UnsupportedOpError
from anytimeify.ir import Captured, Results
from anytimeify.rules.table import has_kind
from anytimeify.rules.training import is_random

__all__ = ["from_exported"]


def from_exported(
    exported: ExportedProgram, example_inputs: Any, output: int | str | None, *, everything: bool = False, check: bool
) -> Captured:
    """`everything`: capture all results, and not the prediction alone. `check`: compare on the example inputs, in the
    mode of the export, unless that is random.

    A program may have been read from a file, whose parts need not fit together: whatever goes wrong is a
    `CaptureError`, and the grad mode, which a program switches while it runs, is what it was.
    """
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            return _captured(exported, example_inputs, output, everything=everything, check=check)
    except Exception as error:
        if isinstance(error, AnytimeError) and not isinstance(error, PassError | SpecError):
            raise
        cause = error.__cause__ if isinstance(error, PassError) and error.__cause__ else error
        first = (str(cause).strip().splitlines() or [""])[0]
        raise CaptureError(
            f"The exported program does not run, or its parts do not fit together ({type(cause).__name__}: {first}). "
            "Export the model anew."
        ) from error


def _captured(
    exported: ExportedProgram, example_inputs: Any, output: int | str | None, *, everything: bool, check: bool
) -> Captured:
    if example_inputs is not None:
        inputs = call_inputs(example_inputs)
    elif exported.example_inputs is not None:
        inputs = CallInputs(tuple(exported.example_inputs[0]), dict(exported.example_inputs[1]))
    else:
        raise CaptureError("The exported program carries no example inputs. Pass example_inputs.")
    _check_inputs(exported, inputs)
    training = trains(exported)
    results = results_of(exported)
    tree = unflatten(list(range(len(results))), exported.call_spec.out_spec)
    position = choose(tree, [result is not None for result in results], output)
    try:
        captured = _canonical(exported, inputs, position, training=training, everything=everything)
    except BufferMutation as error:
        raise UnsupportedOpError(
            f"The exported program writes to a tensor of its own: {error}. Export it without."
        ) from error
    if check:
        _compare(exported, inputs, output, captured, training=training)
    if captured.batch is None:
        general = _with_any_batch(exported, inputs, position, captured, training=training, everything=everything)
        captured = general if general is not None else _with_fixed_batch(captured, inputs)
    elif captured.batch_range != (1, None):
        some = f"takes batches of {captured.batches}, as the exported program does"
        captured = replace(captured, notes=(*captured.notes, some))
    if not training:
        captured = captured.losing("exported in eval mode: norms train again, dropout and stochastic depth are lost")
    return captured


def _canonical(
    exported: ExportedProgram,
    inputs: CallInputs,
    position: int,
    *,
    training: bool,
    everything: bool,
    counterpart: Counterpart | None = None,
) -> Captured:
    restore = None if training else frozenset[str]()
    places = tensor_places(exported) if everything else [position]
    captured, _ = canonicalise(exported, inputs, places, restore=restore, updates=training, counterpart=counterpart)
    if not everything:
        return captured
    structure = structure_of(exported, position)
    signature = replace(captured.signature, prediction=position)
    return replace(with_results(captured, Results(structure, structure)), signature=signature)


def _with_any_batch(
    exported: ExportedProgram,
    inputs: CallInputs,
    position: int,
    fixed: Captured,
    *,
    training: bool,
    everything: bool,
) -> Captured | None:
    """The program with a dynamic batch, where its own parts confirm it."""
    found = for_other_batches(exported, inputs)
    if found is None:
        return None
    first, other = found
    try:
        given = of_batch(inputs, other.batch)
        general = _canonical(first, given, position, training=training, everything=everything, counterpart=other)
        general = replace(general, example_inputs=fixed.example_inputs)
        if general.batch is None or not agrees_on_parts(fixed, general):
            return None
    except Exception:  # a guess, and whatever comes of it where it is wrong
        return None
    note = (
        f"the batch was made dynamic: the program is written for batches of {inputs.batch}, and was compared with "
        "itself on such parts of larger ones"
    )
    return replace(general, notes=(*general.notes, note))


def _with_fixed_batch(captured: Captured, inputs: CallInputs) -> Captured:
    limit = (
        f"batches of {inputs.batch}, which is written into the exported program: export it with dynamic_shapes, such "
        "as torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), or pass the model itself"
    )
    return captured.limited_to(limit)


def _compare(
    exported: ExportedProgram, inputs: CallInputs, output: int | str | None, captured: Captured, *, training: bool
) -> None:
    """`CaptureError` where the capture is not what the program is, in the mode of the export, unless that is random."""
    expected = expected_from_exported(exported, inputs, output)
    gap = Gap.of(captured, expected, training=training)
    if not gap.is_rounding and not _random(captured):
        raise CaptureError(
            f"The exported program does not survive capture: on its example inputs the canonical graph differs by "
            f"{gap.size:.1e} of the largest output. Export the model anew, in train mode."
        )


def _check_inputs(exported: ExportedProgram, inputs: CallInputs) -> None:
    """`CaptureError` where the inputs are not what the program was exported for."""
    names = [one.arg.name for one in exported.graph_signature.input_specs if one.kind is InputKind.USER_INPUT]
    leaves = inputs.flat(exported.call_spec.in_spec)
    if len(leaves) != len(names):
        raise CaptureError(f"The exported program takes {len(names)} inputs, but {len(leaves)} examples were given.")
    expected = {node.name: fake(node) for node in exported.graph.find_nodes(op="placeholder")}
    for leaf, name in zip(leaves, names, strict=True):
        want = expected.get(name)
        if want is not None and not (isinstance(leaf, Tensor) and fits(leaf, want)):
            found = f"{list(leaf.shape)} {leaf.dtype}" if isinstance(leaf, Tensor) else type(leaf).__name__
            raise CaptureError(
                f"The exported program takes '{name}' as {list(want.shape)} {want.dtype}, but the example input is "
                f"{found}. Pass example_inputs that it accepts, or export the model anew."
            )


def _random(captured: Captured) -> bool:
    """Whether the graph draws random numbers, so that two runs in train mode need not agree."""
    return any(is_random(node.target) or has_kind(node, "stochastic depth") for node in captured.program.graph.nodes)
