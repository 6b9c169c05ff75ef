"""`capture`: any backbone to a canonical program. Read this file first; every step is a file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, OutputSpec

from anytimeify import spec
from anytimeify._torch import OpOverload, unflatten
from anytimeify.capture.compare import difference_from_exported, difference_from_module, tolerance
from anytimeify.capture.constants import free_of_device
from anytimeify.capture.draft import BufferMutation, Draft, fake
from anytimeify.capture.finish import batch_symbols, finish
from anytimeify.capture.front_end import MOMENTUM, cumulative_norms, explain, export
from anytimeify.capture.functionalise import functionalise
from anytimeify.capture.inputs import CallInputs, call_inputs, infer
from anytimeify.capture.lower import lower
from anytimeify.capture.outputs import choose
from anytimeify.capture.recompose import recompose
from anytimeify.capture.simplify import drop_identities, freeze_unread, simplify
from anytimeify.capture.stochastic_depth import recognise_stochastic_depth
from anytimeify.capture.training_form import restore_training_form, trains
from anytimeify.errors import AnytimeError, CaptureError, UnsupportedOpError
from anytimeify.ir import Captured, Signature, TensorType

__all__ = ["capture"]


def capture(
    model: nn.Module | ExportedProgram,
    example_inputs: Any = None,
    *,
    dynamic_shapes: Any = None,
    output: int | str | None = None,
    check: bool = True,
) -> Captured:
    """A backbone in canonical form; `model` and its tensors stay untouched, the program holds copies.

    `example_inputs`: a tensor, a tuple of positional or a mapping of keyword arguments; inferred where the model tells.
    `dynamic_shapes`: as in `torch.export`; by default the common first dimension of the inputs is dynamic.
    `output`: which of several outputs is the prediction: a position, a field, or a path such as `"heads.0"`.
    `check`: compare with the backbone in eval mode on the example inputs.

    Raises `CaptureError` when the model cannot be exported or does not survive it, `UnsupportedOpError` when an
    operation has no functional meaning.
    """
    if isinstance(model, ExportedProgram):
        return _from_exported(model, example_inputs, output, check=check)
    if not _is_backbone(model):
        raise CaptureError(f"A backbone is an nn.Module or an ExportedProgram, not a {type(model).__name__}.")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise CaptureError(f"'{name}' is not initialised: run the lazy model once before it is transformed.")
    inputs = infer(model) if example_inputs is None else call_inputs(example_inputs)
    return _from_module(model, inputs, dynamic_shapes, output, check=check)


def _is_backbone(model: object) -> bool:
    """Compiled TorchScript is an nn.Module too, but holds no Python that could be traced."""
    return isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule)


def _from_module(
    model: nn.Module, inputs: CallInputs, dynamic_shapes: Any, output: int | str | None, *, check: bool
) -> Captured:
    """In train mode if that gives a program that is right in eval mode; else in eval mode, noting what is lost."""
    captured, why = _attempt(model, inputs, dynamic_shapes, output, training=True)
    if captured is not None and check:
        gap, reference = difference_from_module(captured, model, inputs, output)
        captured = replace(captured, reference=reference)
        if gap > tolerance(_prediction_type(captured)):
            why = CaptureError(f"the graph of train mode differs from the model in eval mode by {gap:.1e}")
    if captured is not None and why is None:
        return captured
    again, _ = _attempt(model, inputs, dynamic_shapes, output, training=False)
    if again is None:
        raise _final(model, inputs, dynamic_shapes, why)
    gap, reference = difference_from_module(again, model, inputs, output)
    if gap > tolerance(_prediction_type(again)):
        raise CaptureError(
            f"{type(model).__qualname__} does not survive capture: in eval mode, on the example inputs, the graph "
            f"differs from the model by {gap:.1e} of the largest output ({_first_line(why)}). Its forward() reads or "
            "changes something that torch.export cannot see, such as random numbers in eval mode or Python state."
        )
    lost = f"training-only behaviour was lost: {_first_line(why)}"
    return replace(again, reference=reference, notes=(*again.notes, lost))


def _attempt(
    model: nn.Module, inputs: CallInputs, dynamic_shapes: Any, output: int | str | None, *, training: bool
) -> tuple[Captured | None, Exception | None]:
    """A capture in one mode, or what prevented it. A wrong `output` is wrong in both."""
    try:
        exported = export(model, inputs, dynamic_shapes, training=training)
    except Exception as error:
        return None, error
    try:
        captured = _canonicalise(exported, inputs, output, restore=not training, order=list(model.state_dict()))
    except (BufferMutation, UnsupportedOpError) as error:
        return None, error
    averaging = list(cumulative_norms(model))
    if averaging:
        note = f"momentum=None became {MOMENTUM} in {len(averaging)} norms, net.calibrate() averages: {averaging[0]}"
        captured = replace(captured, notes=(*captured.notes, note))
    return captured, None


def _final(model: nn.Module, inputs: CallInputs, dynamic_shapes: Any, error: Exception | None) -> Exception:
    """The error for the user when neither mode could be captured: why train mode could not."""
    assert error is not None
    final = error
    if isinstance(error, BufferMutation):
        final = UnsupportedOpError(
            f"{error}, in eval mode too. Keep that state outside the model, or write to it in train mode only."
        )
    elif not isinstance(error, AnytimeError):
        final = explain(model, inputs, dynamic_shapes, error)
    final.__cause__ = error if final is not error else None
    return final


def _first_line(error: Exception | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _prediction_type(captured: Captured) -> torch.dtype:
    found: TensorType = captured.program.outputs[0].meta["type"]
    return found.dtype


def _from_exported(
    exported: ExportedProgram, example_inputs: Any, output: int | str | None, *, check: bool
) -> Captured:
    if example_inputs is not None:
        inputs = call_inputs(example_inputs)
    elif exported.example_inputs is not None:
        inputs = CallInputs(tuple(exported.example_inputs[0]), dict(exported.example_inputs[1]))
    else:
        raise CaptureError("The exported program carries no example inputs. Pass example_inputs.")
    _check_inputs(exported, inputs)
    training = trains(exported)
    try:
        captured = _canonicalise(exported, inputs, output, restore=not training)
    except BufferMutation as error:
        raise UnsupportedOpError(
            f"The exported program writes to a tensor of its own: {error}. Export it without."
        ) from error
    notes = list(captured.notes)
    if not training:
        notes.append("exported in eval mode: norms train again, dropout and stochastic depth are lost")
    if captured.batch is None:
        notes.append("the batch size is fixed, as in the exported program")
    captured = replace(captured, notes=tuple(notes))
    if check:
        gap, _ = difference_from_exported(captured, exported, inputs, output, training=training)
        if gap > tolerance(_prediction_type(captured)) and not _random(captured):
            raise CaptureError(
                f"The exported program does not survive capture: on its example inputs the canonical graph differs by "
                f"{gap:.1e} of the largest output. Export the model anew, in train mode."
            )
    return captured


def _check_inputs(exported: ExportedProgram, inputs: CallInputs) -> None:
    """`CaptureError` where the inputs are not what the program was exported for."""
    names = [one.arg.name for one in exported.graph_signature.input_specs if one.kind is InputKind.USER_INPUT]
    leaves = inputs.flat(exported.call_spec.in_spec)
    if len(leaves) != len(names):
        raise CaptureError(f"The exported program takes {len(names)} inputs, but {len(leaves)} examples were given.")
    expected = {node.name: fake(node) for node in exported.graph.find_nodes(op="placeholder")}
    for leaf, name in zip(leaves, names, strict=True):
        want = expected.get(name)
        if want is not None and not (isinstance(leaf, Tensor) and _fits(leaf, want)):
            found = f"{list(leaf.shape)} {leaf.dtype}" if isinstance(leaf, Tensor) else type(leaf).__name__
            raise CaptureError(
                f"The exported program takes '{name}' as {list(want.shape)} {want.dtype}, but the example input is "
                f"{found}. Pass example_inputs that it accepts, or export the model anew."
            )


def _fits(tensor: Tensor, want: Tensor) -> bool:
    sizes: list[Any] = list(want.shape)  # an int, or a SymInt where the size is dynamic
    static = all(size == found for size, found in zip(sizes, tensor.shape, strict=False) if isinstance(size, int))
    return tensor.dtype == want.dtype and tensor.dim() == want.dim() and static


def _random(captured: Captured) -> bool:
    """Whether the graph draws random numbers, so that two runs in train mode need not agree."""
    return any(
        (isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags)
        or node.target is torch.ops.anytimeify.drop_path.default
        for node in captured.program.graph.nodes
    )  # fmt: skip


def _canonicalise(
    exported: ExportedProgram,
    inputs: CallInputs,
    output: int | str | None,
    *,
    restore: bool = False,
    order: Sequence[str] = (),
) -> Captured:
    """Every canonical pass, in order. `restore`: the export was made in eval mode, norms shall train again.

    `order`: the names of the backbone's state dict, for the program's tensors.
    """
    draft = lower(exported, order)
    recompose(draft)
    results = list(exported.graph_signature.output_specs)
    prediction = _prediction(draft, results, exported.call_spec.out_spec, output)
    drop_identities(draft)
    functionalise(draft)
    if restore:
        restore_training_form(draft)
    simplify(draft)
    recognise_stochastic_depth(draft)
    free_of_device(draft)
    freeze_unread(draft)
    flat = [leaf for leaf in inputs.flat(exported.call_spec.in_spec) if isinstance(leaf, Tensor)]
    batch, renaming = batch_symbols(draft, [tensor.shape[0] if tensor.dim() else None for tensor in flat])
    program = finish(draft, renaming)
    spec.verify(program, after="capture")
    signature = Signature(
        exported.call_spec.in_spec, exported.call_spec.out_spec, prediction, tuple(draft.constant_inputs)
    )
    return Captured(program, signature, tuple(flat), batch, tuple(draft.notes))


def _prediction(draft: Draft, specs: list[OutputSpec], out_spec: Any, output: int | str | None) -> int:
    """The position of the prediction among the backbone's flat results; the draft keeps this one alone."""
    node = draft.graph.output_node()
    pairs = zip(node.args[0], specs, strict=True)  # type: ignore[arg-type]  # lower: one tuple
    results = [result for result, kind in pairs if kind.kind is OutputKind.USER_OUTPUT]
    tensors = [isinstance(result, fx.Node) and fake(result) is not None for result in results]
    prediction = choose(unflatten(list(range(len(results))), out_spec), tensors, output)
    node.args = ((results[prediction],),)
    if sum(tensors) > 1:
        draft.notes.append(
            f"of {sum(tensors)} outputs of the backbone, number {prediction} is the prediction; the others are dropped"
        )
    return prediction
