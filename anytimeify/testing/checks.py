"""What must hold for every anytime model, as assertions that say what differs and where.

All of them run in eval mode (gradients: also in training mode, on request) on `inputs`, the positional arguments of the
backbone, or on the example inputs that the model was made with. They leave weights, statistics and training flags as
they were. Tolerances are relative to the largest magnitude of the reference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytimeify._torch import flatten
from anytimeify.codegen.stacked_parameters import first_member
from anytimeify.errors import VerificationError
from anytimeify.ir import Level, names
from anytimeify.runtime.load import load
from anytimeify.runtime.model import AnytimeModel
from anytimeify.verification import TOLERANCE, difference, verify

__all__ = [
    "assert_costs_increase",
    "assert_exactly_thin",
    "assert_full_equals_backbone",
    "assert_gradients_add_up",
    "assert_levels_equal_extracts",
    "assert_round_trip",
    "assert_sites_nested",
]

Inputs = Sequence[Any] | None


def assert_full_equals_backbone(
    net: AnytimeModel,
    model: nn.Module,
    inputs: Inputs = None,
    *,
    same_weights: bool = True,
    tolerance: float = TOLERANCE,
) -> None:
    """The full level computes what `model` computes, alone and among the others, and holds bit for bit its weights."""
    given = given_inputs(net, inputs)
    with evaluating(net, model), torch.no_grad():
        expected = flatten(model(*given))[0][net.captured.signature.prediction]
        joint, alone = net(*given).levels[net.full], net(*given, level=net.full)
    try:
        _assert_close(expected, joint, "the full level, run with the others, against the backbone", tolerance)
        _assert_close(expected, alone, "the full level, run alone, against the backbone", tolerance)
    except AssertionError as error:
        raise AssertionError(f"{error}. {_explained(net, model)}") from None
    if same_weights:
        own = model.state_dict()
        found = {
            name: first_member(tensor, own[name].shape) if name in net.rewritten.stacked_parameters else tensor
            for name, tensor in net.state_dict().items()
        }
        _assert_same_tensors(own, found, "the backbone", "the anytime model")


def assert_levels_equal_extracts(net: AnytimeModel, inputs: Inputs = None, *, tolerance: float = TOLERANCE) -> None:
    """Every level gives the same run with the others, run alone, and extracted."""
    given = given_inputs(net, inputs)
    with evaluating(net), torch.no_grad():
        joint = net(*given).levels
        for level, expected in zip(net.levels, joint, strict=True):
            _assert_close(expected, net(*given, level=level), f"{_name(level)}, alone against joint", tolerance)
            if not level.training_only:
                small = net.extract(level)
                _assert_close(expected, small(*given), f"{_name(level)}, its extract against joint", tolerance)
                _assert_standalone(small, level)


def assert_costs_increase(net: AnytimeModel) -> None:
    """Levels are ordered by cost: each computes more than the one before, and where they nest reads no fewer
    parameters.
    """
    levels = [level for level in net.levels if not level.training_only]
    for one, other in pairwise(levels):
        assert one.cost.macs < other.cost.macs, (
            f"{_name(one)} costs {one.cost.macs} multiply-accumulates and {_name(other)} {other.cost.macs}: "
            "costs must increase"
        )
        assert not net.scheme.nested or one.cost.params <= other.cost.params, (
            f"{_name(one)} reads {one.cost.params} parameters and {_name(other)} only {other.cost.params}"
        )


def assert_sites_nested(net: AnytimeModel) -> None:
    """What a level reads of a shared tensor, the next level reads too.

    Every element of the shared tensors is numbered for a moment, and the extracts tell which numbers they hold. Tensors
    with too many elements to number exactly in their type are compared by shape alone, and so are private ones.
    """
    levels = [level for level in net.levels if not level.training_only]
    shared = {name: tensor for name, tensor in net.tensors().items() if not names.is_added(name)}
    numbered = {name for name, tensor in shared.items() if tensor.numel() < _exact_integers(tensor.dtype)}
    with _replaced([shared[name] for name in numbered], lambda x: torch.arange(1, x.numel() + 1).view(x.shape)):
        held = [dict(_tensors(net.extract(level))) for level in levels]
    for position, (one, other) in enumerate(pairwise(held)):
        which = f"{_name(levels[position])} and {_name(levels[position + 1])}"
        for name in (name for name in one.keys() & other.keys() if not names.is_added(name)):
            small, large = one[name], other[name]
            larger = [dim for dim in range(small.ndim) if small.shape[dim] > large.shape[dim]]
            assert not larger, (
                f"{name} has shape {tuple(small.shape)} in the first and {tuple(large.shape)} in the second of {which}"
            )
            private = any(names.of_level(level.index, name) in net.tensors() for level in levels)
            if name in numbered and not private:
                extra = set(small.flatten().tolist()) - set(large.flatten().tolist()) - {0}  # which a mask leaves
                places = [_unravel(int(number) - 1, shared[name].shape) for number in sorted(extra)[:3]]
                assert not extra, f"of {which}, the first reads {name} at {places} and the second does not"


def assert_round_trip(
    net: AnytimeModel, folder: str | os.PathLike[str], inputs: Inputs = None, *, tolerance: float = TOLERANCE
) -> None:
    """A model that was saved into `folder` and loaded has the same levels and, bit for bit, tensors; and its outputs.

    Outputs are compared within `tolerance`: the tensors lie elsewhere, where a processor may add up in another order.
    """
    path = Path(folder) / "round_trip.anytime"
    net.save(path)
    again = load(path)
    assert again.scheme == net.scheme, f"the scheme {net.scheme} came back as {again.scheme}"
    assert again.levels == net.levels, f"the levels {net.levels} came back as {again.levels}"
    _assert_same_tensors(net.tensors(), again.tensors(), "the saved model", "the loaded one")
    given = given_inputs(net, inputs)
    with evaluating(net, again), torch.no_grad():
        for level, one, other in zip(net.levels, net(*given).levels, again(*given).levels, strict=True):
            _assert_close(one, other, f"{_name(level)}, loaded against saved", tolerance)
        one, other = net.extract(0)(*given), again.extract(0)(*given)
        _assert_close(one, other, "level 0, extracted from the loaded model against the saved one", tolerance)


def assert_gradients_add_up(
    net: AnytimeModel, inputs: Inputs = None, *, training: bool = False, tolerance: float = 1e-4
) -> None:
    """One backward pass through all levels gives every trainable parameter a gradient, and it is the sum of what the
    levels give one by one, within `tolerance` of the largest gradient. `training=True` uses batch statistics, for a
    model without dropout."""
    given = given_inputs(net, inputs)
    names, parameters = zip(*((n, p) for n, p in net.named_parameters() if p.requires_grad), strict=True)

    def gradients(outputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        generator = torch.Generator().manual_seed(0)
        directions = [torch.randn(x.shape[1:], generator=generator).to(x) for x in outputs]
        total = torch.stack([(x * direction).sum() for x, direction in zip(outputs, directions, strict=True)]).sum()
        return torch.autograd.grad(total, parameters, allow_unused=True)

    with evaluating(net, training=training), _replaced(list(net.buffers()), lambda x: x):
        joint = gradients(net(*given).levels)
        single = [gradients(_one_of(net(*given, level=level), level, net)) for level in net.levels]
    # Some gradients are zero but for rounding (the bias of a key in attention), so the largest of all sets the scale.
    scale = max(float(gradient.abs().max()) for gradient in joint if gradient is not None and gradient.numel())
    for name, together, *apart in zip(names, joint, *single, strict=True):
        assert together is not None, f"no level gives parameter {name} a gradient"
        added = sum((gradient for gradient in apart if gradient is not None), torch.zeros_like(together))
        error = float((added - together).abs().max()) if together.numel() else 0.0
        assert error <= tolerance * scale, (
            f"the gradient of {name}, joint against added up over the levels: differs by {error:.2e}, "
            f"where the largest gradient of all is {scale:.2e} (allowed {tolerance:.0e} of it)"
        )


def assert_exactly_thin(
    net: AnytimeModel, level: int | Level, thin: nn.Module, inputs: Inputs = None, *, tolerance: float = TOLERANCE
) -> None:
    """A level, in the model and extracted, computes what `thin` computes, with as many parameters.

    An extract may hold the result of a computation on parameters in their place (`folded.*`); then only the level's
    own count of parameters is compared.
    """
    given = given_inputs(net, inputs)
    small, cost = net.extract(level), net.levels[level if isinstance(level, int) else level.index].cost
    ours, theirs = dict(small.named_parameters()), dict(thin.named_parameters())
    other = [
        f"{name} has shape {tuple(ours[name].shape)}, not {tuple(theirs[name].shape)}"
        for name in theirs
        if name in ours and ours[name].shape != theirs[name].shape
    ]
    assert not other, f"level {level} is not the thin network: {'; '.join(other[:5])} ({len(other)} in all)"
    own, count = (sum(p.numel() for p in parameters.values()) for parameters in (ours, theirs))
    folded = any(name.startswith("folded.") for name in ours)
    differing = f"only in one of them: {sorted(ours.keys() ^ theirs.keys())[:10]}"
    assert cost.params == count, f"level {level} reads {cost.params} parameters, the thin network {count}; {differing}"
    assert folded or own == count, f"the extract of level {level} has {own} parameters, not {count}; {differing}"
    with evaluating(net, thin), torch.no_grad():
        expected = flatten(thin(*given))[0][net.captured.signature.prediction]
        _assert_close(expected, small(*given), f"level {level}, extracted, against the thin network", tolerance)
        _assert_close(expected, net(*given, level=level), f"level {level} against the thin network", tolerance)


def given_inputs(net: AnytimeModel, inputs: Inputs) -> tuple[Any, ...]:
    if inputs is not None:
        return tuple(inputs)
    captured = net.captured
    args, kwargs = net.call_signature.arguments(captured.example_inputs, captured.signature)
    assert not kwargs, "the backbone is called with keywords: give the inputs of the check by position"
    return args


def _name(level: Level) -> str:
    return f"level {level.index} ({level.name})"


def _assert_close(expected: Tensor, found: Tensor, what: str, tolerance: float) -> None:
    assert expected.shape == found.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    error = difference(expected, found)
    if error > tolerance:
        worst = int((expected.detach().double() - found.detach().double()).abs().nan_to_num(nan=torch.inf).argmax())
        place = _unravel(worst, expected.shape)
        raise AssertionError(
            f"{what}: differs by {error:.2e} (allowed {tolerance:.0e}), most at {place}: "
            f"{found[place].item():.6g}, expected {expected[place].item():.6g}"
        )


def _assert_same_tensors(expected: Any, found: Any, one: str, other: str) -> None:
    for name, tensor in expected.items():
        assert name in found, f"{name} is in {one} and not in {other}"
        same = tensor.dtype == found[name].dtype and tensor.shape == found[name].shape
        if not same or not torch.equal(_bits(tensor), _bits(found[name])):
            raise AssertionError(f"{name} is not the same, bit for bit, in {one} and in {other}")


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _assert_standalone(small: fx.GraphModule, level: Level) -> None:
    ours = [type(m).__qualname__ for m in small.modules() if type(m).__module__.partition(".")[0] == "anytimeify"]
    assert not ours, f"the extract of {_name(level)} needs modules of anytimeify: {sorted(set(ours))}"
    assert "anytimeify" not in small.code, f"the code of the extract of {_name(level)} names anytimeify"


def _explained(net: AnytimeModel, model: nn.Module) -> str:
    """Why the full level is not the backbone: other weights, or the node that the translation validation blames."""
    ours = net.tensors()
    other = [
        name for name, tensor in model.state_dict().items() if name in ours and not torch.equal(tensor, ours[name])
    ]
    try:
        verify(net, model)
    except VerificationError as error:
        return f"{error}. Tensors that are not the backbone's: {', '.join(other[:5]) or 'none'}"
    return "On the example inputs they agree"


def _one_of(prediction: Tensor, level: Level, net: AnytimeModel) -> list[Tensor]:
    """The prediction at its own place among the levels, so that it meets the same random direction."""
    zeros = torch.zeros_like(prediction)
    return [prediction if index == level.index else zeros for index in range(len(net.levels))]


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _exact_integers(dtype: torch.dtype) -> int:
    """How far a type counts without rounding."""
    return int(2 / torch.finfo(dtype).eps) if dtype.is_floating_point else 0


def _unravel(position: int, shape: torch.Size) -> tuple[int, ...]:
    return tuple(int(index) for index in torch.unravel_index(torch.tensor(position), shape))


@contextmanager
def _replaced(tensors: Sequence[Tensor], value: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Other values in place for a moment; also restores what happens to them meanwhile."""
    saved = [tensor.detach().clone() for tensor in tensors]
    try:
        with torch.no_grad():
            for tensor in tensors:
                tensor.copy_(value(tensor))
        yield
    finally:
        with torch.no_grad():
            for tensor, old in zip(tensors, saved, strict=True):
                tensor.copy_(old)


@contextmanager
def evaluating(*modules: nn.Module, training: bool = False) -> Iterator[None]:
    modes = [(module, module.training) for one in modules for module in one.modules()]
    for one in modules:
        one.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
