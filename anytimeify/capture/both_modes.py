"""A module captured in train mode if that gives a program that is right in eval mode, else in eval mode or in both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram

from anytimeify._torch import unflatten
from anytimeify.capture.canonical import Counterpart, canonicalise, results_of
from anytimeify.capture.compare import (
    Expected,
    Gap,
    difference,
    drawing,
    expected_from_module,
    fits,
    gaps,
    randomness,
    results_of_program,
    tolerance,
    traced_from_module,
    with_other_values,
)
from anytimeify.capture.export import does_not_run, explain, export
from anytimeify.capture.generalise import Differs
from anytimeify.capture.guards import unkept_guard
from anytimeify.capture.inputs import Arguments, CallInputs, of_batch
from anytimeify.capture.kept_whole import KeptWhole
from anytimeify.capture.modes import Modes
from anytimeify.capture.on_meta import Shell
from anytimeify.capture.outputs import choose
from anytimeify.capture.results import agrees, distinct, structure_of, tensor_places, with_results
from anytimeify.capture.same_in_eval_mode import same_in_eval_mode
from anytimeify.capture.traced import takes_long
from anytimeify.capture.two_modes import merge
from anytimeify.capture.work_graph import BufferMutation
from anytimeify.errors import AnytimeError, CaptureError, UnsupportedOpError, VerificationError
from anytimeify.ir import Captured, Program, Results

__all__ = ["Found", "Source", "first_line"]


@dataclass(frozen=True)
class Attempt:
    """A capture in one mode: a program that is right in eval mode, or what prevented it."""

    captured: Captured | None = None
    why: Exception | None = None
    collected: Mapping[str, fx.Node] = field(default_factory=dict)  # buffers that are written but not read
    wrong: Captured | None = None  # what came out, but computes something else
    gap: float = 0.0
    untold: bool = False  # what this mode returns does not tell the prediction

    @property
    def draws(self) -> int:
        """How many operations draw random numbers in eval mode, too."""
        return 0 if self.captured is None else len(drawing(self.captured.program))


@dataclass(frozen=True)
class Found:
    """The outcome of both modes: a program, and why it lacks what training does besides; or why there is none."""

    source: Source
    captured: Captured | None
    why: Exception | None = None
    again: Attempt = Attempt()  # in eval mode
    untold: bool = False  # what train mode returns does not tell the prediction
    unexported: bool = False  # one of the modes could not be exported

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
class Exported:
    """A program; with a counterpart where the batch is fixed in both and is made dynamic afterwards."""

    program: ExportedProgram
    counterpart: Counterpart | None = None
    note: str | None = None  # on the way that the export took


@dataclass(frozen=True)
class Source:
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
    whole: KeptWhole | None = None  # modules that no export looks into
    traced: bool = False  # what takes long to compute is compared without values, if it can be
    shell: Shell | None = None  # what the model is, where its tensors have no values: then nothing is compared by them

    @property
    def name(self) -> str:
        return type(self.model).__qualname__

    def capture_both(self, check: bool) -> Found:
        """From train mode if that gives a program that is right in eval mode, else from eval mode."""
        trained, why = self.export(training=True)
        wanted = (check or self.everything) and self.expected is None
        source = self.tracing(trained)
        source = replace(source, expected=source.in_eval_mode()) if wanted else source
        attempt = source.capture(trained, training=True) if trained is not None else Attempt(why=why)
        if attempt.captured is not None and not attempt.collected and self.shell is None and not attempt.draws:
            return Found(source, attempt.captured)
        exported, why = source.export(training=False)
        if attempt.untold and exported is not None and self.output is None:
            found = replace(source, everything=True).from_exports(trained, exported)
            if found is not None:
                return found
        again = source.capture(exported, training=False) if exported is not None else Attempt(why=why)
        if attempt.captured is not None and source.tells(attempt, again):
            return Found(source, _kept_in_eval_mode(attempt.captured, again.collected))
        if exported is not None and again.captured is not None:
            both = source.in_both_modes(attempt, exported)
            if both is not None:
                return Found(source, _kept_in_eval_mode(both, again.collected))
        why, unexported = attempt.why or _mutation(attempt.collected), trained is None or exported is None
        if why is None:  # nothing but values could say that both modes compute the same
            why = CaptureError("train mode has another graph than eval mode, and no values to compare them by")
        return Found(source, again.captured, why, again, attempt.untold, unexported)

    def from_exports(self, trained: Exported | None, exported: Exported) -> Found | None:
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
        return Found(self, _kept_in_eval_mode(both, again.collected))

    def export(self, *, training: bool) -> tuple[Exported | None, Exception | None]:
        try:
            if self.generalises:
                return self._export_twice(training), None
            exported, note = self._export(self.inputs, self.dynamic_shapes, training)
            guard = unkept_guard(exported) if self.dynamic_shapes is None else None
            if guard is not None:
                return None, CaptureError(f"forward() decides something by the size of its batch ({guard})")
            return Exported(exported, note=note), None
        except Exception as error:
            return None, error

    def _export(self, inputs: CallInputs, dynamic_shapes: Any, training: bool) -> tuple[ExportedProgram, str | None]:
        program, note = export(
            self.model, inputs, dynamic_shapes, training=training, held=self.modes.held, whole=self.whole
        )
        return (program if self.shell is None else self.shell.restore(program)), note

    def _export_twice(self, training: bool) -> Exported:
        size = self.first_batch
        (one, note), (two, _) = (self._export(of_batch(self.inputs, n), {}, training) for n in (size, size + 1))
        return Exported(one, Counterpart(two, size, size + 1), note)

    @property
    def first_batch(self) -> int:
        """Not the example's, which the model may remember, and not 1, which may mean that something is repeated."""
        return max(2, self.inputs.batch or 0) + 1

    def tracing(self, trained: Exported | None) -> Source:
        """The same, which traces if that is wanted, and quicker than to compute."""
        return replace(self, traced=self.traced and trained is not None and takes_long(trained.program, self.inputs))

    def expected_for(self, inputs: CallInputs) -> Expected:
        """What the model returns in eval mode; raises whatever it raises."""
        find = traced_from_module if self.traced else expected_from_module
        return find(self.model, inputs, self.output)

    def in_eval_mode(self) -> Expected:
        try:
            return self.expected_for(self.inputs)
        except AnytimeError:
            raise
        except Exception as error:
            raise does_not_run(self.model, self.inputs, error) from error

    def capture(self, exported: Exported, *, training: bool) -> Attempt:
        """A wrong `output` is wrong in both modes, and raised."""
        mode = "train" if training else "eval"
        order = list(self.model.state_dict())
        try:
            found = self.candidates(exported, training=training)
            if len(found) != 1 and not self.everything:
                untold = CaptureError(f"what {mode} mode returns does not tell the prediction of eval mode")
                return Attempt(why=untold, untold=not found)
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
            return Attempt(why=error)
        names, positional = self.arguments.names, self.arguments.positional
        signature = replace(captured.signature, names=names, positional=positional, trained=position)
        notes = (*captured.notes, *([exported.note] if exported.note is not None else []))
        captured = replace(captured, signature=signature, held=self.modes.held, notes=notes)
        captured = _told(captured).losing(*self.modes.lost)
        if self.expected is None:
            return Attempt(captured, collected=collected)
        if self.everything:
            structure = structure_of(exported.program, position)
            captured = with_results(captured, Results(structure, structure))
            if not agrees(structure, self.expected.spec, self.expected.leaves):
                other = CaptureError(f"{mode} mode returns another structure than eval mode")
                return Attempt(why=_mutation(collected) or other, collected=collected, wrong=captured, gap=math.inf)
        if self.shell is not None:
            return Attempt(self.as_in_eval_mode(captured), collected=collected)
        gap = Gap.of(captured, self.expected)
        if gap.is_rounding:
            return Attempt(self.as_in_eval_mode(captured), collected=collected)
        differs = CaptureError(f"the graph of {mode} mode differs from the model in eval mode by {gap.size:.1e}")
        return Attempt(why=_mutation(collected) or differs, collected=collected, wrong=captured, gap=gap.size)

    def candidates(self, exported: Exported, *, training: bool) -> list[int]:
        """Which of the exported results may be the prediction: the one in its place where the structure is that of eval
        mode; else those that compute the same in eval mode, or the only one of its type."""
        results = results_of(exported.program)
        if self.expected is None:
            return [self.first(exported)]
        if exported.program.call_spec.out_spec == self.expected.spec:
            return [self.expected.position]
        want = self.expected.prediction
        others = results if exported.counterpart is None else results_of(exported.counterpart.exported)
        if len(others) != len(results):
            raise Differs("the batch decides how many results there are")
        pairs = enumerate(zip(results, others, strict=True))
        candidates = [place for place, (one, other) in pairs if one is not None and fits(want, one, other)]
        if len(candidates) < 2 or self.shell is not None:
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
        found = gaps(captured, self.expected)
        return [place for place, gap in zip(candidates, found, strict=True) if gap <= tolerance(want.dtype)]

    def first(self, exported: Exported) -> int:
        """The exported result that is the prediction by its name or place."""
        results = results_of(exported.program)
        tree = unflatten(list(range(len(results))), exported.program.call_spec.out_spec)
        return choose(tree, [one is not None for one in results], None if self.expected is not None else self.output)

    def tells(self, attempt: Attempt, again: Attempt) -> bool:
        """Whether the program of train mode, which computes the same in eval mode, does so for the same reason. Without
        values, whether it is the same graph in eval mode.

        Buffers that train mode only writes to may be what eval mode reads, and be neutral by chance (zeros) today: so
        both programs are run with others. A coin that train mode throws may fall as if it was not thrown."""
        if again.captured is None:
            return not isinstance(again.why, BufferMutation)
        assert attempt.captured is not None
        if self.shell is not None:
            return same_in_eval_mode(attempt.captured.program, again.captured.program)
        if self.expected is None:
            return True
        if attempt.draws != again.draws:
            return False
        mine, other = (with_other_values(one, attempt.collected) for one in (attempt.captured, again.captured))
        return Gap.between(results_of_program(other), results_of_program(mine)).is_rounding

    def in_both_modes(self, attempt: Attempt, exported: Exported) -> Captured | None:
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
        return captured if self.shell is not None or Gap.of(captured, self.expected).is_rounding else None

    def merged(self, trained: Captured, own: Program, exported: Exported) -> Captured:
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
        kept = self.shell is None and not self.expected.traced
        return replace(captured, signature=signature, reference=self.expected.prediction if kept else None)

    def refusal(self, why: Exception | None, again: Attempt) -> Exception:
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
                f"{self.name} is random in eval mode, and its graph differs from it even where every operation draws "
                f"the same numbers: {random}. Let it do so in train mode only (if self.training: ...)."
            )
        assert self.expected is not None
        repeated = difference(self.expected.computed.prediction, replace(self, traced=False).in_eval_mode().prediction)
        reason = "Its forward() reads or changes something that torch.export cannot see, such as Python state."
        if repeated > 0:
            reason = (
                f"Two runs of the model itself from the same random state of torch differ by {repeated:.1e}: it draws "
                "random numbers elsewhere (numpy, random), or changes Python state. Take that out of forward()."
            )
        return CaptureError(
            f"{self.name} does not survive capture: in eval mode, on the example inputs, the graph differs from the "
            f"model by {gap:.1e} of the largest output ({first_line(why)}). {reason}"
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


def first_line(error: Exception | None) -> str:
    """What an error says first; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
