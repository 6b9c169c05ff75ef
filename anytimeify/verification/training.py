"""One step of training: the full level beside its backbone, in train mode and without randomness.

The step is one forward pass and the backward pass of one number, the sum of the predictions with fixed weights. What is
compared: the prediction, the gradient of every parameter, and the buffers afterwards; where the pass changes plain
attributes of the backbone (a counter), also what a second forward pass predicts. In single precision gradients are
rounded more than predictions are; where that leaves a doubt, both run once more in double precision, which decides.

Nothing is left behind: no gradient in any `.grad`, buffers, training flags and plain attributes as before.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from anytimeify._torch import flatten
from anytimeify.capture.compare import buffers_kept, difference, plain_attributes, seeded
from anytimeify.capture.custom_derivatives import direct_checkpoints
from anytimeify.capture.modes import in_mode
from anytimeify.capture.same_draws import SameDraws
from anytimeify.capture.training_form import trains
from anytimeify.codegen.call_signature import CallSignature
from anytimeify.codegen.stacked_parameters import first_member
from anytimeify.errors import AnytimeWarning, VerificationError
from anytimeify.ir import PAIR, Captured, names
from anytimeify.runtime.model import AnytimeModel
from anytimeify.verification.precision import ADVICE, cast_limit, clone, double, in_double, with_batch
from anytimeify.verification.randomness import WithoutRandomness
from anytimeify.verification.tensors import equal, furthest, largest, tensors

__all__ = ["Gap", "Step", "compare_training", "verify_training"]


@dataclass(frozen=True)
class Step:
    """What one step gives: the prediction, or all results; gradients by the names of parameters (None: it got none);
    and buffers."""

    predictions: Sequence[Tensor]
    gradients: Mapping[str, Tensor | None]
    buffers: Mapping[str, Tensor]
    changed: frozenset[str]  # the buffers that the step wrote to
    trains: bool  # whether the prediction has a derivative at all
    # The predictions of a second forward pass, where the first has changed plain attributes.
    again: Sequence[Tensor] | None


@dataclass(frozen=True)
class Gap:
    """The largest differences of a step, relative to the largest element, and where they are."""

    prediction: float
    gradient: float
    parameter: str  # the one nearest to the output whose gradient differs by too much, or by the most
    buffer: float
    name: str  # of the buffer that differs the most
    changed: int  # how many buffers a step of the backbone changes
    followed: int  # how many of them are alike after one of the level
    again: float  # of the prediction of a second forward pass

    def within(self, limit: float) -> bool:
        return max(self.prediction, self.gradient, self.buffer, self.again) <= limit


# Relative differences that are rounding, in single and in double precision. A gradient that is this small beside the
# largest of all parameters is rounding altogether, as that of a bias before a batch norm is.
_SINGLE, _DOUBLE = 1e-4, 1e-7
_NOTHING = {_SINGLE: 1e-5, _DOUBLE: 1e-12}
# The same of a buffer, beside the largest of all: running means of what a norm before has centred.
_NO_STATE = 1e-12


Draws: TypeAlias = Callable[[], AbstractContextManager[object]]
"""What random operations give."""


def verify_training(net: AnytimeModel, *models: nn.Module | ExportedProgram) -> None:
    """`VerificationError` where a full level trains otherwise than its backbone, one of `models` each.

    Left out: models whose full level is no copy of the backbone, and what is known to train differently, which a
    warning has said. Of a backbone that cannot train on the example inputs a warning says so."""
    if not net.exact or net._backbone.lost:
        return
    for place, model in enumerate(models):
        gap, limit = compare_training(net, model, place)
        if gap is not None and not gap.within(limit):
            raise VerificationError(_described(net, gap, limit))


def compare_training(net: AnytimeModel, model: nn.Module | ExportedProgram, place: int = 0) -> tuple[Gap | None, float]:
    """How the training of a full level differs from that of its backbone, and what of it may be rounding; None where
    the backbone does not train on the example inputs, or has no floating-point prediction."""
    backbone = _training_form(model)
    inputs = _inputs(net._backbone, model)
    draws: Draws = WithoutRandomness
    try:
        theirs = _step_of_backbone(net, backbone, inputs, place, draws) if backbone is not None else None
        if (
            theirs is not None
            and backbone is not None
            and not all(bool(x.isfinite().all()) for x in theirs.predictions)
        ):
            draws = SameDraws  # what divides by the spread of a noise has no value at its mean
            theirs = _step_of_backbone(net, backbone, inputs, place, draws)
    except Exception as error:  # such as a batch norm that has one value per channel
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        how = "one step of the backbone, without recomputation of checkpointed parts, fails"
        warnings.warn(f"training was not compared with the backbone's: {how} ({reason})", AnytimeWarning, stacklevel=4)
        return None, _SINGLE
    ours = _step_of_level(net, inputs, place, draws, twice=theirs.again is not None) if theirs is not None else None
    if backbone is None or theirs is None or ours is None:
        return None, _SINGLE
    gap = _gap(net, backbone, theirs, ours, place, _SINGLE)
    if gap.within(_SINGLE):
        return gap, _SINGLE
    limit = 8 * cast_limit(net._backbone.program)
    try:
        doubles = tuple(map(double, inputs))
        wide_net, wide = in_double(net), in_double(backbone)
        theirs = _step_of_backbone(wide_net, wide, doubles, place, draws)
        assert theirs is not None
        ours = _step_of_level(wide_net, doubles, place, draws, twice=theirs.again is not None)
        assert ours is not None
        return _gap(wide_net, wide, theirs, ours, place, _DOUBLE), limit
    except Exception:  # a model that cannot be copied or that insists on its own precision: judged by that
        return gap, 1e-2


def _training_form(model: nn.Module | ExportedProgram) -> nn.Module | None:
    if isinstance(model, nn.Module):
        tensors = [*model.parameters(), *model.buffers()]
        return copy.deepcopy(model) if any(tensor.is_inference() for tensor in tensors) else model
    return model.module(check_guards=False) if trains(model) else None


def _inputs(captured: Captured, model: nn.Module | ExportedProgram) -> tuple[Tensor, ...]:
    """A single sample is no batch to train on, for norms would divide by nothing; a program may take no other."""
    own: tuple[Tensor, ...] = clone(captured.example_inputs)
    if isinstance(model, ExportedProgram) and not model.range_constraints:
        return own
    return with_batch(captured, own, 2) if captured.batch is not None and _single(captured) else own


def _single(captured: Captured) -> bool:
    return with_batch(captured, captured.example_inputs, 1)[0].shape == captured.example_inputs[0].shape


def _score(prediction: Tensor) -> Tensor:
    values = torch.view_as_real(prediction) if prediction.is_complex() else prediction
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(values.shape, generator=generator, dtype=torch.float64).to(values)
    return (values * weights).sum() / max(1.0, math.sqrt(values.numel()))


def _step_of_backbone(
    net: AnytimeModel, model: nn.Module, inputs: tuple[Tensor, ...], place: int, draws: Draws
) -> Step | None:
    captured, prefix = net._backbone, _prefix(net, place)
    held = frozenset(path.removeprefix(prefix) for path in captured.held if path.startswith(prefix))
    signature = captured.signature
    where = signature.prediction if signature.trained is None else signature.trained

    def predict() -> Sequence[Tensor]:
        args, kwargs = CallSignature.of(captured).arguments(clone(inputs), signature)
        leaves = flatten(model(*args, **kwargs))[0]
        return tensors(leaves if captured.results is not None else leaves[where : where + 1])

    with in_mode(model, training=True, held=held), buffers_kept(model), direct_checkpoints():
        before = plain_attributes(model)
        counts = lambda: plain_attributes(model) != before  # noqa: E731  # asked after the first pass
        return _step(predict, dict(model.named_parameters()), lambda: dict(model.named_buffers()), counts, draws)


def _step_of_level(
    net: AnytimeModel, inputs: tuple[Tensor, ...], place: int, draws: Draws, *, twice: bool
) -> Step | None:
    level = net.backbones[place]

    def predict() -> Sequence[Tensor]:
        if net.results is None:
            return [net.graph(level, None if net.taxonomy is None else 0)(*clone(inputs))]
        args, kwargs = net.call_signature.arguments(clone(inputs), net._backbone.signature)
        return tensors(net(*args, level=level, **kwargs))

    parameters = {name: tensor for name, tensor in net.tensors().items() if isinstance(tensor, nn.Parameter)}
    with in_mode(net, training=True), buffers_kept(net):
        return _step(predict, parameters, net.tensors, lambda: twice, draws)


def _prefix(net: AnytimeModel, place: int) -> str:
    return f"{PAIR[place]}." if len(net.backbones) > 1 else ""


def _step(
    predict: Callable[[], Sequence[Tensor]],
    parameters: Mapping[str, Tensor],
    buffers: Callable[[], Mapping[str, Tensor]],
    repeat: Callable[[], bool],
    draws: Draws,
) -> Step | None:
    trained = {name: one for name, one in parameters.items() if one.requires_grad}
    before = {name: one.detach().clone() for name, one in buffers().items() if name not in parameters}
    with torch.enable_grad(), seeded(), draws():
        predictions = predict()
        derived = [one for one in predictions if one.is_floating_point() or one.is_complex()]
        if not derived:
            return None
        known: dict[str, Tensor | None] = dict.fromkeys(parameters)
        score = torch.stack([_score(one) for one in derived]).sum()
        if score.requires_grad and trained:
            found = torch.autograd.grad(score, list(trained.values()), allow_unused=True)
            known.update(zip(trained, map(_dense, found), strict=True))
    # A buffer of another shape was put in its place to hold the state of this batch, and is no state of the model.
    after = {
        name: one.detach().clone()
        for name, one in buffers().items()
        if name in before and one.shape == before[name].shape
    }
    changed = frozenset(name for name, one in after.items() if not torch.equal(before[name], one))
    again = None
    if repeat():
        with torch.no_grad(), seeded(), draws():
            again = predict()
    return Step([one.detach() for one in predictions], known, after, changed, score.requires_grad, again)


def _dense(gradient: Tensor | None) -> Tensor | None:
    return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient


def _gap(net: AnytimeModel, model: nn.Module, theirs: Step, ours: Step, place: int, limit: float) -> Gap:
    prefix, tensors = _prefix(net, place), net.tensors()
    given = [one for one in theirs.gradients.values() if one is not None and one.numel()]
    most = max(map(largest, given), default=0.0)
    moved = not _same_order(net, model, prefix)
    gradient, parameter = 0.0, ""
    for name, one in reversed(list(model.named_parameters()) if theirs.trains else []):
        if prefix + name not in tensors or gradient > limit:
            continue
        other = ours.gradients.get(prefix + name)
        pair = _aligned(one, tensors[prefix + name], theirs.gradients[name], other, moved=moved)
        found = _relative(*pair, floor=most * _NOTHING[limit])
        if found >= gradient:
            gradient, parameter = found, name
    buffer, worst, changed, followed = 0.0, "", 0, 0
    read = {names.layer(str(node.target)) for node in net._backbone.program.graph.find_nodes(op="get_attr")}
    floats = (one for one in theirs.buffers.values() if one.is_floating_point() and one.numel())
    nothing = _NO_STATE * max(map(largest, floats), default=0.0)
    for name, value in theirs.buffers.items():
        # What only other outputs depend on (auxiliary heads of training) is no part of the network any more.
        if prefix + name not in ours.buffers or names.layer(prefix + name) not in read:
            continue
        found = _of_buffers(value, ours.buffers[prefix + name], nothing, moved=moved)
        changed += name in theirs.changed
        followed += found <= limit and name in theirs.changed
        if found > buffer:
            buffer, worst = found, name
    return Gap(
        furthest(theirs.predictions, ours.predictions),
        gradient,
        parameter,
        buffer,
        worst,
        changed,
        followed,
        0.0 if theirs.again is None or ours.again is None else furthest(theirs.again, ours.again),
    )


def _same_order(net: AnytimeModel, model: nn.Module, prefix: str) -> bool:
    """Whether the parameters are the backbone's element for element: a scheme may permute channels."""
    tensors = net.tensors()
    pairs = [(one, tensors[prefix + name]) for name, one in model.named_parameters() if prefix + name in tensors]
    return all(torch.equal(one, first_member(stack.detach(), one.shape)) for one, stack in pairs)


def _aligned(
    one: Tensor, stack: Tensor, theirs: Tensor | None, ours: Tensor | None, *, moved: bool
) -> tuple[Tensor, Tensor]:
    """Both gradients, of a stack of members the first member's; sorted where channels have `moved`."""
    first = torch.zeros_like(one) if theirs is None else theirs
    second = first_member(torch.zeros_like(stack) if ours is None else ours, one.shape)
    return (first.flatten().sort().values, second.flatten().sort().values) if moved else (first, second)


def _relative(reference: Tensor, result: Tensor, floor: float) -> float:
    if reference.shape != result.shape:
        return float("inf")
    if equal(reference, result):
        return 0.0
    scale = largest(reference)
    if not math.isfinite(scale):
        return 0.0
    error = largest(reference - result)
    if not math.isfinite(error):
        return float("inf")
    if error <= floor:
        return 0.0
    return error / scale if scale > 0 else float("inf")


def _of_buffers(value: Tensor, other: Tensor, nothing: float, *, moved: bool) -> float:
    other = first_member(other, value.shape)
    if value.is_complex() and other.is_complex():
        value, other = torch.view_as_real(value), torch.view_as_real(other)
    if moved and value.shape == other.shape:
        value, other = value.flatten().sort().values, other.flatten().sort().values
    if value.is_floating_point():
        same = value.shape == other.shape and torch.allclose(value, other, rtol=0, atol=nothing, equal_nan=True)
        return 0.0 if same else difference(value, other)
    return 0.0 if torch.equal(value, other) else float("inf")


def _described(net: AnytimeModel, gap: Gap, limit: float) -> str:
    if gap.prediction > limit:
        what = f"its prediction differs by {gap.prediction:.1e}"
    elif gap.gradient > limit:
        what = f"the gradient of '{gap.parameter}' differs by {gap.gradient:.1e} of its largest element"
    elif gap.buffer > limit:
        what = f"the buffer '{gap.name}' differs by {gap.buffer:.1e} after one step"
    else:
        what = f"its prediction differs by {gap.again:.1e} in a second forward pass, and not in the first"
    return (
        f"the full level does not train as the backbone does: in train mode, without randomness, {what}. The backbone "
        "does something in training that its graph does not hold, such as Python state that a forward pass changes. "
        f"{ADVICE}"
    )
