"""Is it the same network? Code of its own, so that what `verify` overlooks is seen: it uses `AnytimeModel` as users do.

Everything is compared on inputs that the transformation has not seen. Random operations draw the same numbers on both
sides: see `SameDraws`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from anytimeify import AnytimeModel

__all__ = ["WrongModelError", "call", "compare", "gradients_differ", "new_inputs"]

TOLERANCE = 1e-4
OTHER_BATCHES = (1, 3)


class WrongModelError(AssertionError):
    """The anytime model is not what it should be."""


class SameDraws(TorchDispatchMode):
    """Every random operation starts from one seed: what is drawn depends on the operation, and neither on the order nor
    on how its tensor lies in memory, nor on whether a coin is thrown by `bernoulli` or by `floor(p + rand)`. Noise
    depends on the place of an element alone: a level of fewer channels draws for them what all channels draw."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        torch.manual_seed(0)
        if func is torch.ops.aten.bernoulli_.float:
            kept = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            return args[0].copy_((torch.rand(args[0].shape) + kept).floor())
        result = func(*args, **kwargs)
        return result.copy_(_noise(result.shape)) if func in _NOISE else result


_NOISE = {torch.ops.aten.randn.default, torch.ops.aten.randn_like.default}


def _noise(shape: Sequence[int]) -> Tensor:
    angles = torch.ones(tuple(shape), dtype=torch.float64)
    for dim, size in enumerate(shape):
        places = torch.arange(size, dtype=torch.float64).reshape([size] + [1] * (len(shape) - dim - 1))
        angles += (37.7 + 11.3 * dim) * places
    return 2**0.5 * torch.sin(angles**1.5)


def compare(net: AnytimeModel, model: nn.Module, inputs: Any, *, batched: bool = True) -> dict[str, Any]:
    """Compares an anytime model with its backbone: `WrongModelError`, or what was compared.

    1. in eval mode the full level is the backbone; 2. every level run alone is the same level among all, and its
    extract; 3. costs increase; 4. in train mode the gradients of the full level are the backbone's. The first and the
    last where the full level has the backbone's weights: with triangular connectivity it has some of them."""
    costs_increase(net)
    compared = []
    batch = batch_of(inputs)
    for size in (batch, *OTHER_BATCHES) if batched else (batch,):
        given = new_inputs(inputs, size)
        with _eval(model):
            expected = call(model, given) if size == batch else _unless_refused(model, given)
        if expected is None:  # the backbone takes no such batch
            continue
        with _eval(net):
            _levels(net, given, prediction(expected) if net.exact else None, f"batch of {size}")
        compared.append(size)
    gradients = gradients_differ(net, model, new_inputs(inputs, batch)) if net.exact else "not promised"
    return {"batches": compared, "gradients": gradients}


def call(model: Callable[..., Any], inputs: Any, **more: Any) -> Any:
    """Calls with inputs as positional arguments, or as keyword arguments where they are a mapping."""
    given = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
    with SameDraws():
        return model(**given, **more) if isinstance(given, Mapping) else model(*given, **more)


def prediction(result: Any) -> Tensor:
    """Of a structure the field `logits`, or the first tensor."""
    if isinstance(result, Tensor):
        return result
    logits = result.get("logits") if isinstance(result, Mapping) else None
    if isinstance(logits, Tensor):
        return logits
    return next(leaf for leaf in tree_leaves(_plain(result)) if isinstance(leaf, Tensor))


def _plain(result: Any) -> Any:
    """A structure in types that torch sees into: some libraries return dictionaries of a class of their own."""
    if isinstance(result, Mapping):
        return {key: _plain(value) for key, value in result.items()}
    return tuple(map(_plain, result)) if isinstance(result, (tuple, list)) else result


def batch_of(inputs: Any) -> int:
    return next(int(leaf.shape[0]) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim())


def new_inputs(inputs: Any, batch: int) -> Any:
    """Other values in the same ranges: every entry is that of a sample drawn at random, and what is continuous is
    varied by a tenth. Tensors of another first size stay as they are."""
    generator = torch.Generator().manual_seed(batch + 7)
    own = batch_of(inputs)

    def new(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != own:
            return leaf
        samples = torch.randint(0, own, (batch, *leaf.shape[1:]), generator=generator)
        mixed = leaf.gather(0, samples)
        if not leaf.is_floating_point() or torch.equal(leaf, leaf.round()):
            return mixed  # indices or a mask
        return mixed * (1 + 0.1 * torch.rand(mixed.shape, generator=generator)).to(mixed)

    return tree_map(new, inputs)


def costs_increase(net: AnytimeModel) -> None:
    levels = [level for level in net.levels if not level.training_only]
    for one, other in pairwise(levels):
        if not one.cost.macs < other.cost.macs:
            raise WrongModelError(
                f"{one.name} costs {one.cost.macs} multiply-accumulates, {other.name} {other.cost.macs}"
            )


def _levels(net: AnytimeModel, inputs: Any, expected: Tensor | None, where: str) -> None:
    joint = call(net, inputs).levels
    if expected is not None:
        _close(expected, joint[net.full], f"the full level among all against the backbone, {where}")
    for level, among in zip(net.levels, joint, strict=True):
        alone = prediction(call(net, inputs, level=level))
        _close(among, alone, f"{level.name} alone against the same among all, {where}")
        if not level.training_only:
            _close(alone, prediction(call(net.extract(level), inputs)), f"the extract of {level.name}, {where}")


def gradients_differ(net: AnytimeModel, model: nn.Module, inputs: Any) -> str:
    """How gradients were compared; `WrongModelError` where they differ, in double precision too if that can be had."""
    with _kept(model), _kept(net):
        model.train()
        net.train()
        mode = "train"
        try:
            theirs, ours = _gradients_of_both(net, model, inputs)
        except _OtherStructureError:
            model.eval()
            net.eval()
            mode = "eval"
            theirs, ours = _gradients_of_both(net, model, inputs)
        if theirs is None:
            return "none"
        found = _worst(theirs, ours)
        if found is None:
            return mode
        try:
            wide = tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)
            theirs, ours = _gradients_of_both(copy.deepcopy(net).double(), copy.deepcopy(model).double(), wide)
        except Exception:
            raise WrongModelError(f"{found}, {mode} mode, single precision") from None
    found = _worst(theirs, ours, 1e-8)
    if found is not None:
        raise WrongModelError(f"{found}, {mode} mode, double precision")
    return f"{mode}, double"


class _OtherStructureError(Exception):
    """In train mode the backbone gives something else than in eval mode."""


def _gradients_of_both(net: AnytimeModel, model: nn.Module, inputs: Any) -> tuple[Any, Any]:
    level = net.levels[net.full]
    expected = call(model, inputs)
    found = prediction(call(net, inputs, level=level))
    shapes = [leaf for leaf in tree_leaves(_plain(expected)) if isinstance(leaf, Tensor)]
    chosen = prediction(expected)
    if chosen.shape != found.shape:
        alike = [leaf for leaf in shapes if leaf.shape == found.shape]
        if not alike:
            if net.training:
                raise _OtherStructureError
            raise WrongModelError(f"the prediction is {tuple(found.shape)}, the backbone's {tuple(chosen.shape)}")
        chosen = alike[0]
    if not chosen.requires_grad:
        return None, None
    _close(chosen, found, "the full level against the backbone in " + ("train mode" if net.training else "eval mode"))
    theirs = _gradients(chosen, dict(model.named_parameters()))
    return theirs, _gradients(found, dict(net.named_parameters(remove_duplicate=False)))


def _gradients(result: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a sum of squares with fixed weights: without these it has no gradient through a norm at the end."""
    trained = {name: one for name, one in parameters.items() if one.requires_grad}
    values = torch.view_as_real(result) if result.is_complex() else result
    values = values * torch.rand(values.shape, generator=torch.Generator().manual_seed(5)).to(values)
    given: tuple[Tensor | None, ...] = torch.autograd.grad(
        values.square().sum(), list(trained.values()), allow_unused=True
    )
    return {
        name: torch.zeros_like(one) if grad is None else grad
        for (name, one), grad in zip(trained.items(), given, strict=True)
    }


def _worst(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], tolerance: float = 1e-3) -> str | None:
    largest = max((float(one.abs().max()) for one in theirs.values() if one.numel()), default=0.0)
    worst: tuple[float, str] = (0.0, "")
    for name, one in theirs.items():
        if not one.numel() or not one.isfinite().all():
            continue
        if name not in ours:
            if one.abs().max() > 1e-5 * largest:
                return f"there is no parameter {name}, which has a gradient in the backbone"
            continue
        other = ours[name]
        if other.shape != one.shape:  # several members one after the other, the backbone's first
            other = other[: one.shape[0] if one.dim() else 1].reshape(one.shape)
        error = float((one - other).abs().max()) / (float(one.abs().max()) + 1e-2 * largest + 1e-30)
        worst = max(worst, (error if error == error else float("inf"), name))
    return f"the gradient of {worst[1]} differs by {worst[0]:.1e}" if worst[0] > tolerance else None


def _close(expected: Tensor, found: Tensor, what: str) -> None:
    if expected.shape != found.shape:
        raise WrongModelError(f"{what}: shapes {tuple(expected.shape)} and {tuple(found.shape)}")
    one, other = (x.detach().to(torch.complex128 if x.is_complex() else torch.float64) for x in (expected, found))
    if torch.equal(one.isfinite(), other.isfinite()):
        one, other = one[one.isfinite()], other[other.isfinite()]
    if not one.numel():
        return
    error = float((one - other).abs().max()) / (float(one.abs().max()) or 1.0)
    if not error <= TOLERANCE:
        raise WrongModelError(f"{what}: differs by {error:.1e}")


def _unless_refused(model: nn.Module, inputs: Any) -> Any:
    try:
        return call(model, inputs)
    except Exception:
        return None


@contextmanager
def _eval(module: nn.Module) -> Iterator[None]:
    with _kept(module), torch.no_grad():
        module.eval()
        yield


@contextmanager
def _kept(module: nn.Module) -> Iterator[None]:
    """Training flags and buffers as before."""
    flags = {part: part.training for part in module.modules()}
    buffers = {buffer: buffer.clone() for buffer in module.buffers()}
    try:
        yield
    finally:
        for part, flag in flags.items():
            part.training = flag
        with torch.no_grad():
            for buffer, value in buffers.items():
                if buffer.shape == value.shape:
                    buffer.copy_(value)
