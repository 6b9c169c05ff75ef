"""From a module: captured in train mode if that gives a program that is right in eval mode, else in eval mode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from anytimeify._torch import unflatten
from anytimeify.capture.canonical import Counterpart, canonicalise, results_of
from anytimeify.capture.compare import (
    Expected,
    Gap,
    difference,
    expected_from_module,
    fits,
    gaps,
    other_values,
    randomness,
    results_of_program,
    tolerance,
)
from anytimeify.capture.export import does_not_run, explain, export, reason_of
from anytimeify.capture.generalise import Differs
from anytimeify.capture.guards import unkept_guard
from anytimeify.capture.inputs import Arguments, CallInputs, in_order, of_batch, refuse_no_sample
from anytimeify.capture.modes import Modes, refuse_hooks
from anytimeify.capture.outputs import choose
from anytimeify.capture.results import agrees, distinct, structure_of, tensor_places, with_results
from anytimeify.capture.two_modes import merge
from anytimeify.capture.work_graph import BufferMutation
from anytimeify.errors import AnytimeError, CaptureError, UnsupportedOpError, VerificationError
from anytimeify.ir import Captured, Program, Results

__all__ = ["from_module"]

_LARGEST_TRIED = 256  # samples of a batch, to find out whether a limit is one of the model


def from_module(
    model: nn.Module,
    inputs: CallInputs,
    dynamic_shapes: Any,
    output: int | str | None,
    *,
    everything: bool = False,
    check: bool,
) -> Captured:
    """The prediction is what the model returns in eval mode; train mode may return more, or another structure.

    `everything`: all that the model returns is captured, in both modes. So it is where what train mode returns does not
    tell the prediction.

    Where no `dynamic_shapes` are given and the batch cannot be dynamic, it is made so from two exports for a fixed one;
    where that fails too, it stays as in the example.
    """
    inputs, arguments = in_order(model, inputs)
    refuse_hooks(model)
    if dynamic_shapes is None:
        refuse_no_sample(inputs)
    source = _Source(model, inputs, arguments, dynamic_shapes, output, Modes.of(model), everything=everything)
    found = source.capture_both(check)
    if dynamic_shapes is None and (found.captured is None or found.unexported):
        found = source.for_fixed_batches(found)
    if found.captured is None:
        raise found.refusal()
    # Who gives the dynamic sizes gives their ranges, too.
    captured = found.source.within_range(found.captured) if dynamic_shapes is None else found.captured
    if found.why is not None:
        return captured.losing(f"training-only behaviour was lost: {_first_line(found.why)}")
    return captured


@dataclass(frozen=True)
class _Attempt:
    """A capture in one mode: a program that is right in eval mode, or what prevented it."""

    captured: Captured | None = None
    why: Exception | None = None
    collected: Mapping[str, fx.Node] = field(default_factory=dict)  # buffers that are written but not read
    wrong: Captured | None = None  # what came out, but computes something else
    gap: float = 0.0
    untold: bool = False  # what this mode returns does not tell the prediction


@dataclass(frozen=True)
class _Found:
    """The outcome of both modes: a program, and why it lacks what training does besides; or why there is none."""

    source: _Source
    captured: Captured | None
    why: Exception | None = None
    again: _Attempt = _Attempt()  # in eval mode
    untold: bool = False  # what train mode returns does not tell the prediction

    @property
    def unexported(self) -> bool:
        """Whether train mode could not be exported: not because of what the graph says."""
        return self.why is not None and not isinstance(self.why, BufferMutation | UnsupportedOpError)

    @property
    def reason(self) -> Exception:
        """Why there is no program: that of eval mode where train mode alone would not have prevented it."""
        found = self.again.why if self.untold and self.again.why is not None else self.why
        assert found is not None
        return found

    def refusal(self) -> Exception:
        assert self.why is not None
        return self.source.refusal(self.why, self.again)


@dataclass(frozen=True)
class _Exported:
    """A program; with a counterpart where the batch is fixed in both and is made dynamic afterwards."""

    program: ExportedProgram
    counterpart: Counterpart | None = None
    note: str | None = None  # on the way that the export took


@dataclass(frozen=True)
class _Source:
    """A module, how it is called, and what it returns in eval mode, once that is known."""

    model: nn.Module
    inputs: CallInputs
    arguments: Arguments
    dynamic_shapes: Any
    output: int | str | None
    modes: Modes
    expected: Expected | None = None
    generalises: bool = False  # exports for two fixed batches are put together
    everything: bool = False  # all results are captured

    @property
    def name(self) -> str:
        return type(self.model).__qualname__

    def capture_both(self, check: bool) -> _Found:
        """From train mode if that gives a program that is right in eval mode, else from eval mode."""
        trained, why = self.export(training=True)
        wanted = (check or self.everything) and self.expected is None
        source = replace(self, expected=self.in_eval_mode()) if wanted else self
        attempt = source.capture(trained, training=True) if trained is not None else _Attempt(why=why)
        if attempt.captured is not None and not attempt.collected:
            return _Found(source, attempt.captured)
        exported, why = source.export(training=False)
        if attempt.untold and exported is not None and self.output is None:
            found = replace(source, everything=True).from_exports(trained, exported)
            if found is not None:
                return found
        again = source.capture(exported, training=False) if exported is not None else _Attempt(why=why)
        if attempt.captured is not None and source.tells(attempt, again):
            return _Found(source, _kept_in_eval_mode(attempt.captured, again.collected))
        if exported is not None and again.captured is not None:
            both = source.in_both_modes(attempt, exported)
            if both is not None:
                return _Found(source, _kept_in_eval_mode(both, again.collected))
        return _Found(source, again.captured, attempt.why or _mutation(attempt.collected), again, attempt.untold)

    def from_exports(self, trained: _Exported | None, exported: _Exported) -> _Found | None:
        """All that both modes return, though only the prediction was asked for; None where that cannot be had."""
        assert trained is not None
        attempt, again = self.capture(trained, training=True), self.capture(exported, training=False)
        both = self.in_both_modes(attempt, exported) if again.captured is not None else None
        if both is None:
            return None
        note = (
            "what train mode returns does not tell the prediction of eval mode, so every level returns in each mode "
            "all that the backbone returns in it, as with output='all'"
        )
        both = replace(both, notes=(*both.notes, note))
        return _Found(self, _kept_in_eval_mode(both, again.collected))

    def for_fixed_batches(self, dynamic: _Found) -> _Found:
        """What exports for fixed batches give, where one for every batch fails, or loses what training does: a program
        whose batch was made dynamic, else one for the batch of the example. Where both fail, the latter says why."""
        source = replace(dynamic.source, dynamic_shapes={})
        fixed = source.capture_both(check=False)
        if fixed.captured is None:
            return dynamic if dynamic.captured is not None else fixed
        general = replace(source, generalises=True).capture_both(check=False)
        why = general.why if general.captured is None else source.differs_at_another_batch(general.captured)
        if general.captured is not None and why is None:
            size = self._first_batch
            note = f"the batch was made dynamic from exports for {size} and {size + 1} samples"
            captured = replace(general.captured, notes=(*general.captured.notes, note))
            return replace(general, captured=captured)
        if dynamic.captured is not None:
            return dynamic
        limit = f"batches of {self.inputs.batch}, the size in the example, for {reason_of(dynamic.reason)}"
        if isinstance(why, Differs | AnytimeError):
            limit += f"; and of exports for two other sizes, {_first_line(why)}"
        return replace(fixed, captured=fixed.captured.limited_to(limit))

    def export(self, *, training: bool) -> tuple[_Exported | None, Exception | None]:
        try:
            if self.generalises:
                return self._export_twice(training), None
            exported, note = self._export(self.inputs, self.dynamic_shapes, training)
            guard = unkept_guard(exported) if self.dynamic_shapes is None else None
            if guard is not None:
                return None, CaptureError(f"forward() decides something by the size of its batch ({guard})")
            return _Exported(exported, note=note), None
        except Exception as error:
            return None, error

    def _export(self, inputs: CallInputs, dynamic_shapes: Any, training: bool) -> tuple[ExportedProgram, str | None]:
        return export(self.model, inputs, dynamic_shapes, training=training, held=self.modes.held)

    def _export_twice(self, training: bool) -> _Exported:
        size = self._first_batch
        (one, note), (two, _) = (self._export(of_batch(self.inputs, n), {}, training) for n in (size, size + 1))
        return _Exported(one, Counterpart(two, size, size + 1), note)

    @property
    def _first_batch(self) -> int:
        """Not the example's, which the model may remember, and not 1, which may mean that something is repeated."""
        return max(2, self.inputs.batch or 0) + 1

    def within_range(self, captured: Captured) -> Captured:
        """The capture with the sizes of a batch that it is right for, where those are not all.

        Exporters do not tell what a model does with a single sample alone: that is tried."""
        least, most = captured.batch_range
        if captured.batch is None:
            return captured
        # Operations of torch ask for sizes too, to choose among ways to compute one thing.
        if least > 1 and self.is_other_at(least - 1, captured) is False:
            least = 1
        if most is not None and most < _LARGEST_TRIED and self.is_other_at(most + 1, captured) is False:
            most = None
        if least == 1 and self.inputs.batch != 1 and self.is_other_at(1, captured):
            least = 2
        captured = replace(captured, batch_range=(least, most))
        if (least, most) == (1, None):
            return captured
        return captured.limited_to(f"batches of {captured.batches}, for forward() does something else with others")

    def is_other_at(self, count: int, captured: Captured) -> bool | None:
        """Whether the program computes something else than the model for a batch of that size, or fails; None where
        that cannot be told, for the model does not take it."""
        if self.expected is None:
            return None
        inputs = of_batch(self.inputs, count)
        try:
            expected = expected_from_module(self.model, inputs, self.output)
        except Exception:
            return None
        return self.differs_at(inputs, expected, captured) is not None

    def differs_at_another_batch(self, captured: Captured) -> Exception | None:
        """Why a program whose batch was made dynamic is wrong at another size; None where it is right."""
        if self.expected is None:
            return None
        inputs = of_batch(self.inputs, 2 * self._first_batch + 1)
        try:
            expected = expected_from_module(self.model, inputs, self.output)
        except Exception as error:
            return error
        return self.differs_at(inputs, expected, captured)

    def differs_at(self, inputs: CallInputs, expected: Expected, captured: Captured) -> Exception | None:
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

    def in_eval_mode(self) -> Expected:
        try:
            return expected_from_module(self.model, self.inputs, self.output)
        except AnytimeError:
            raise
        except Exception as error:
            raise does_not_run(self.model, self.inputs, error) from error

    def capture(self, exported: _Exported, *, training: bool) -> _Attempt:
        """A wrong `output` is wrong in both modes, and raised."""
        mode = "train" if training else "eval"
        order = list(self.model.state_dict())
        try:
            found = self.candidates(exported, training=training)
            if len(found) != 1 and not self.everything:
                untold = CaptureError(f"what {mode} mode returns does not tell the prediction of eval mode")
                return _Attempt(why=untold, untold=not found)
            position = found[0] if len(found) == 1 else self.first(exported)
            captured, collected = canonicalise(
                exported.program,
                self.inputs,
                tensor_places(exported.program) if self.everything else [position],
                restore=None if training else self.modes.held,
                updates=training,
                order=order,
                counterpart=exported.counterpart,
            )
        except (BufferMutation, Differs, UnsupportedOpError) as error:
            return _Attempt(why=error)
        names, positional = self.arguments.names, self.arguments.positional
        signature = replace(captured.signature, names=names, positional=positional, trained=position)
        notes = (*captured.notes, *([exported.note] if exported.note is not None else []))
        captured = replace(captured, signature=signature, held=self.modes.held, notes=notes)
        captured = _told(captured).losing(*self.modes.lost)
        if self.expected is None:
            return _Attempt(captured, collected=collected)
        if self.everything:
            structure = structure_of(exported.program, position)
            captured = with_results(captured, Results(structure, structure))
            if not agrees(structure, self.expected.spec, self.expected.leaves):
                other = CaptureError(f"{mode} mode returns another structure than eval mode")
                return _Attempt(why=_mutation(collected) or other, collected=collected, wrong=captured, gap=math.inf)
        gap = Gap.of(captured, self.expected)
        if gap.is_rounding:
            return _Attempt(self.as_in_eval_mode(captured), collected=collected)
        differs = CaptureError(f"the graph of {mode} mode differs from the model in eval mode by {gap.size:.1e}")
        return _Attempt(why=_mutation(collected) or differs, collected=collected, wrong=captured, gap=gap.size)

    def candidates(self, exported: _Exported, *, training: bool) -> list[int]:
        """Which of the exported results may be the prediction: the one in its place where the structure is that of eval
        mode; else those that compute the same in eval mode, or the only one of its type."""
        results = results_of(exported.program)
        if self.expected is None:
            return [self.first(exported)]
        if exported.program.call_spec.out_spec == self.expected.spec:
            return [self.expected.position]
        want = self.expected.prediction
        candidates = [place for place, one in enumerate(results) if one is not None and fits(want, one)]
        if len(candidates) < 2:
            return candidates
        restore = None if training else self.modes.held
        captured, _ = canonicalise(
            exported.program,
            self.inputs,
            candidates,
            restore=restore,
            updates=training,
            counterpart=exported.counterpart,
        )
        found = gaps(captured, self.expected, training=False)
        return [place for place, gap in zip(candidates, found, strict=True) if gap <= tolerance(want.dtype)]

    def first(self, exported: _Exported) -> int:
        """The exported result that is the prediction by its name or place."""
        results = results_of(exported.program)
        tree = unflatten(list(range(len(results))), exported.program.call_spec.out_spec)
        return choose(tree, [one is not None for one in results], None if self.expected is not None else self.output)

    def tells(self, attempt: _Attempt, again: _Attempt) -> bool:
        """Whether the program of train mode, which computes the same in eval mode, does so for the same reason.

        Buffers that train mode only writes to may be what eval mode reads, and be neutral by chance (zeros) today: so
        both programs are run with others."""
        if again.captured is None:
            return not isinstance(again.why, BufferMutation)
        assert attempt.captured is not None
        if self.expected is None:
            return True
        with other_values(attempt.captured.program, again.captured.program, names=attempt.collected):
            return Gap.between(results_of_program(again.captured), results_of_program(attempt.captured)).is_rounding

    def in_both_modes(self, attempt: _Attempt, exported: _Exported) -> Captured | None:
        """The program of train mode with that of eval mode, `exported`, where they part; None where they cannot be put
        together."""
        trained = attempt.captured or attempt.wrong
        if trained is None or self.expected is None:
            return None
        try:
            own, _ = canonicalise(
                exported.program,
                self.inputs,
                tensor_places(exported.program) if self.everything else [self.expected.position],
                order=list(self.model.state_dict()),
                counterpart=exported.counterpart,
            )
            both = self.merged(trained, own.program, exported)
        except (BufferMutation, CaptureError, Differs, UnsupportedOpError):
            return None
        note = "train mode and eval mode compute different things: both are kept"
        captured = self.as_in_eval_mode(replace(both, notes=(*trained.notes, note)))
        return captured if Gap.of(captured, self.expected).is_rounding else None

    def merged(self, trained: Captured, own: Program, exported: _Exported) -> Captured:
        """The program of train mode with that of eval mode."""
        if trained.results is None:
            return replace(trained, program=merge(trained.program, own))
        assert self.expected is not None
        structure = structure_of(exported.program, self.expected.position)
        own, results = distinct(own, Results(structure, structure))
        behind = {output: output + len(own.outputs) for output in trained.results.training.outputs}
        results = Results(results.evaluation, trained.results.training.renumbered(behind))
        return with_results(replace(trained, program=merge(trained.program, own, apart=True)), results)

    def as_in_eval_mode(self, captured: Captured) -> Captured:
        """Models are compared in eval mode, so that is what a signature tells."""
        assert self.expected is not None
        signature = replace(captured.signature, out_spec=self.expected.spec, prediction=self.expected.position)
        return replace(captured, signature=signature, reference=self.expected.prediction)

    def refusal(self, why: Exception | None, again: _Attempt) -> Exception:
        """The error for the user when neither mode could be captured: why train mode could not, and eval mode where
        that is another reason."""
        assert why is not None
        if again.wrong is not None:
            return self.does_not_survive(why, again.wrong, again.gap)
        final = self.explained(why)
        if again.why is not None and not isinstance(why, BufferMutation):
            other = self.explained(again.why)
            if str(other) != str(final):
                final = type(final)(f"In train mode: {final} In eval mode: {other}")
        final.__cause__ = why if final is not why else None
        return final

    def explained(self, why: Exception) -> Exception:
        final = why
        if isinstance(why, BufferMutation):
            final = UnsupportedOpError(
                f"{why}, in eval mode too. Keep that state outside the model, or write to it in train mode only."
            )
        elif not isinstance(why, AnytimeError):
            final = explain(self.model, self.inputs, why)
        return final

    def does_not_survive(self, why: Exception, wrong: Captured, gap: float) -> Exception:
        random = randomness(wrong.program)
        if random is not None:
            return VerificationError(
                f"{self.name} is random in eval mode, so that no two runs agree: {random}. Let it do so in train mode "
                "only (if self.training: ...)."
            )
        assert self.expected is not None
        repeated = difference(self.expected.prediction, self.in_eval_mode().prediction)
        reason = "Its forward() reads or changes something that torch.export cannot see, such as Python state."
        if repeated > 0:
            reason = (
                f"Two runs of the model itself from the same random state of torch differ by {repeated:.1e}: it draws "
                "random numbers elsewhere (numpy, random), or changes Python state. Take that out of forward()."
            )
        return CaptureError(
            f"{self.name} does not survive capture: in eval mode, on the example inputs, the graph differs from the "
            f"model by {gap:.1e} of the largest output ({_first_line(why)}). {reason}"
        )


def _kept_in_eval_mode(captured: Captured, written: Iterable[str]) -> Captured:
    """The capture with a note on buffers that the backbone writes to in eval mode, and nothing reads."""
    notes = (f"in eval mode '{name}' keeps its value, which the backbone writes to there too" for name in written)
    return replace(captured, notes=(*captured.notes, *notes))


def _told(captured: Captured) -> Captured:
    """The capture with a note on the modules that stay in eval mode; of nested ones the outermost is named."""
    outermost = sorted(path for path in captured.held if not any(path.startswith(f"{one}.") for one in captured.held))
    if not outermost:
        return captured
    shown = ", ".join(outermost[:3]) + (f" and {len(outermost) - 3} more" if len(outermost) > 3 else "")
    return replace(captured, notes=(*captured.notes, f"in eval mode in training too, as in the backbone: {shown}"))


def _mutation(collected: Mapping[str, fx.Node]) -> BufferMutation | None:
    return next((BufferMutation(name, node) for name, node in collected.items()), None)


def _first_line(error: Exception | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
