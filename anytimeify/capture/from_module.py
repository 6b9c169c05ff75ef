"""From a module: in both modes, and for every batch where that can be had."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from anytimeify.capture.both_modes import Found, Source, first_line
from anytimeify.capture.compare import Expected, Gap, randomness
from anytimeify.capture.export import reason_of, shown
from anytimeify.capture.generalise import Differs
from anytimeify.capture.inputs import CallInputs, in_order, of_batch, refuse_no_sample
from anytimeify.capture.kept_whole import KeepingError, KeptWhole, culprit
from anytimeify.capture.modes import Modes, refuse_hooks
from anytimeify.capture.on_meta import Shell
from anytimeify.errors import AnytimeError
from anytimeify.ir import Captured

__all__ = ["from_module"]

_MOST_WHOLE = 64  # modules that are kept whole
_LARGEST_TRIED = 256  # samples of a batch, to find out whether a limit is one of the model


def from_module(
    model: nn.Module,
    inputs: CallInputs,
    dynamic_shapes: Any,
    output: int | str | None,
    *,
    everything: bool = False,
    check: bool,
    traced: bool = False,
    shell: Shell | None = None,
) -> Captured:
    """The prediction is what the model returns in eval mode; train mode may return more, or another structure.

    `everything`: all that the model returns is captured, in both modes. So it is where what train mode returns does not
    tell the prediction.

    `traced`: what takes long to compute is compared without values, where that can be done.

    Where no `dynamic_shapes` are given and the batch cannot be dynamic, it is made so from two exports for a fixed one;
    where that fails too, it stays as in the example.

    `shell`: the model is the copy that stands for one without values, and the result has that one's tensors.
    """
    inputs, arguments = in_order(model, inputs)
    refuse_hooks(model)
    if dynamic_shapes is None:
        refuse_no_sample(inputs)
    source = Source(
        model,
        inputs,
        arguments,
        dynamic_shapes,
        output,
        Modes.of(model),
        everything=everything,
        traced=traced,
        shell=shell,
    )
    found = _found(source, check)
    if found.captured is None and shell is not None:  # without values nothing can be run
        raise found.refusal()
    if found.captured is None:
        found = _with_modules_whole(source, found, check)
    assert found.captured is not None
    # Who gives the dynamic sizes gives their ranges, too.
    captured = _within_range(found.source, found.captured) if dynamic_shapes is None else found.captured
    random = randomness(captured.program)
    if random is not None:
        note = f"random in eval mode too, and compared with the same draws on both sides: {random}"
        captured = replace(captured, notes=(*captured.notes, note))
    if found.why is not None:
        return captured.losing(f"training-only behaviour was lost: {first_line(found.why)}")
    return captured


def _found(source: Source, check: bool) -> Found:
    found = source.capture_both(check)
    if source.dynamic_shapes is None and (found.captured is None or found.unexported):
        return _for_fixed_batches(found)
    return found


def _with_modules_whole(source: Source, refused: Found, check: bool) -> Found:
    """With those sub-modules kept whole in which exports fail, one more at a time; raises the first refusal where that
    does not help."""
    found, whole = refused, KeptWhole(source.model)
    while found.captured is None:
        errors = [error for error in (found.why, found.again.why) if error is not None]
        named = ((culprit(source.model, error, whole.why), error) for error in errors)
        path, error = next((pair for pair in named if pair[0] is not None), (None, None))
        if path is None or error is None or len(whole.why) > _MOST_WHOLE:
            raise _with_reason(refused.refusal(), next((e for e in errors if isinstance(e, KeepingError)), None))
        whole = whole.growing(path, shown(error))
        found = _found(replace(source, whole=whole), check)
    return replace(found, captured=found.captured.keeping(*whole.notes()))


def _with_reason(refusal: Exception, why: KeepingError | None) -> Exception:
    return refusal if why is None else type(refusal)(f"{refusal} {why}")


def _for_fixed_batches(dynamic: Found) -> Found:
    """What exports for fixed batches give, where one for every batch fails, or loses what training does: a program
    whose batch was made dynamic, else one for the batch of the example. Where both fail, the latter says why."""
    source = replace(dynamic.source, dynamic_shapes={})
    fixed = source.capture_both(check=False)
    if fixed.captured is None:
        return dynamic if dynamic.captured is not None else fixed
    general = replace(source, generalises=True).capture_both(check=False)
    why = general.why if general.captured is None else _differs_at_another_batch(source, general.captured)
    if general.captured is not None and why is None:
        size = source.first_batch
        note = f"the batch was made dynamic from exports for {size} and {size + 1} samples"
        captured = replace(general.captured, notes=(*general.captured.notes, note))
        return replace(general, captured=captured)
    if dynamic.captured is not None:
        return dynamic
    limit = f"batches of {source.inputs.batch}, the size in the example, for {reason_of(dynamic.reason)}"
    if isinstance(why, Differs | AnytimeError):
        limit += f"; and of exports for two other sizes, {first_line(why)}"
    return replace(fixed, captured=fixed.captured.limited_to(limit))


def _within_range(source: Source, captured: Captured) -> Captured:
    """The capture with the sizes of a batch that it is right for, where those are not all.

    Exporters do not tell what a model does with a single sample alone: that is tried."""
    least, most = captured.batch_range
    if captured.batch is None:
        return captured
    # Operations of torch ask for sizes too, to choose among ways to compute one thing.
    if least > 1 and _is_other_at(source, least - 1, captured) is False:
        least = 1
    if most is not None and most < _LARGEST_TRIED and _is_other_at(source, most + 1, captured) is False:
        most = None
    if least == 1 and source.inputs.batch != 1 and _is_other_at(source, 1, captured):
        least = 2
    captured = replace(captured, batch_range=(least, most))
    if (least, most) == (1, None):
        return captured
    return captured.limited_to(f"batches of {captured.batches}, for forward() does something else with others")


def _is_other_at(source: Source, count: int, captured: Captured) -> bool | None:
    """Whether the program computes something else than the model for a batch of that size, or fails; None where
    that cannot be told, for the model does not take it."""
    if source.expected is None or source.shell is not None:
        return None
    inputs = of_batch(source.inputs, count)
    try:
        expected = source.expected_for(inputs)
    except Exception:
        return None
    return _differs_at(inputs, expected, captured) is not None


def _differs_at_another_batch(source: Source, captured: Captured) -> Exception | None:
    """Why a program whose batch was made dynamic is wrong at another size; None where it is right."""
    if source.shell is not None:
        return Differs("it cannot be compared with a model that has no values")
    inputs = of_batch(source.inputs, 2 * source.first_batch + 1)
    try:
        expected = source.expected_for(inputs)
    except Exception as error:
        return error
    return _differs_at(inputs, expected, captured)


def _differs_at(inputs: CallInputs, expected: Expected, captured: Captured) -> Exception | None:
    """Why a program does not give what the model gives for these inputs, in eval mode; None where it does."""
    try:
        flat = inputs.flat(captured.signature.in_spec)
        tensors = tuple(leaf for leaf in flat if isinstance(leaf, Tensor))
        gap = Gap.of(replace(captured, example_inputs=tensors), expected)
    except Exception as error:
        return error
    if gap.is_rounding:
        return None
    return Differs(f"a batch of {inputs.batch} gives something else by {gap.size:.1e}")
