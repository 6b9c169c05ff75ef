"""Whether a captured program computes what its source computes, on the example inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from anytimeify._torch import flatten, unflatten
from anytimeify.capture.front_end import in_mode
from anytimeify.capture.inputs import CallInputs
from anytimeify.capture.outputs import choose
from anytimeify.ir import Captured
from anytimeify.lift import lift

__all__ = ["difference_from_exported", "difference_from_module", "tolerance"]


def tolerance(dtype: torch.dtype) -> float:
    """Largest difference that is rounding, relative to the largest element."""
    return max(1e-5, 8 * torch.finfo(dtype).eps) if dtype.is_floating_point else 0.0


def difference_from_module(
    captured: Captured, model: nn.Module, inputs: CallInputs, output: int | str | None
) -> tuple[float, Tensor]:
    """How far the prediction in eval mode is from the model's, relative to its largest element; and the model's."""
    with in_mode(model, training=False), _quietly():
        expected = model(*inputs.args, **inputs.kwargs)
    return _difference(captured, expected, output, training=False)


def difference_from_exported(
    captured: Captured, exported: ExportedProgram, inputs: CallInputs, output: int | str | None, *, training: bool
) -> tuple[float, Tensor]:
    """The same for an exported program, which runs in the mode that it was exported in; its buffers are put back."""
    with _kept(exported.state_dict), _quietly():
        expected = exported.module(check_guards=False)(*inputs.args, **inputs.kwargs)
    return _difference(captured, expected, output, training=training)


def _difference(captured: Captured, expected: Any, output: int | str | None, *, training: bool) -> tuple[float, Tensor]:
    leaves, tree = flatten(expected)  # not the captured structure: a model may return less in eval mode
    tensors = [isinstance(leaf, Tensor) for leaf in leaves]
    want = leaves[choose(unflatten(list(range(len(leaves))), tree), tensors, output)]
    network = lift(captured.program)
    with in_mode(network, training=training), _kept(captured.program.tensors), _quietly():
        (have,) = network(*captured.example_inputs)
    return _distance(have, want), want


def _distance(have: Tensor, want: Tensor) -> float:
    if have.shape != want.shape or have.dtype != want.dtype:
        return float("inf")
    if have.numel() == 0 or torch.equal(have, want):
        return 0.0
    have, want = have.double(), want.double()
    unequal = ~torch.isclose(
        have, want, rtol=0.0, atol=0.0, equal_nan=True
    )  # an infinity that both have is no difference
    if not unequal.any():
        return 0.0
    gap = (have - want)[unequal].abs().max()
    scale = want[want.isfinite()].abs().max() if want.isfinite().any() else torch.ones(())
    return float(gap / scale.clamp_min(1e-12)) if gap.isfinite() else float("inf")


@contextmanager
def _quietly() -> Iterator[None]:
    """No gradients; the caller's random state is put back, and every call starts from the same one."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@contextmanager
def _kept(tensors: Mapping[str, Any]) -> Iterator[None]:
    """Norms in training write to their statistics: every buffer gets its value back."""
    buffers = {
        name: value.clone()
        for name, value in tensors.items()
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
    }
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in buffers.items():
                tensors[name].copy_(value)
