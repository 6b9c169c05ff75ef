"""The accelerator of a training."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from anytimeify.errors import ArgumentValueError, MissingExtraError
from anytimeify.train.training import Training

__all__ = ["accelerator_for"]


@contextmanager
def accelerator_for(training: Training, given: Any = None, *, device: str | None = None) -> Iterator[Any]:
    """The accelerator that was given, or one of the recipe's precision for as long as this lasts, on a device (by
    default the best there is). `MissingExtraError` without accelerate.

    Accelerate keeps one precision for the whole process. Where nobody has made an accelerator before, it is forgotten
    at the end, so that the next training may have another."""
    before = _has_state()
    accelerator = _accelerator(training.precision, device) if given is None else given
    try:
        if accelerator.gradient_accumulation_steps != 1:
            raise ArgumentValueError("the accelerator accumulates gradients: take Training(accumulate=...) instead")
        if accelerator.mixed_precision != training.precision:
            raise ArgumentValueError(
                f"the accelerator has the precision {accelerator.mixed_precision!r}, and the recipe "
                f"{training.precision!r}"
            )
        if training.precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would leave it out
            raise ArgumentValueError("precision='fp16' is for GPUs: take 'bf16' on a CPU")
        yield accelerator
    finally:
        if given is None and not before:
            _forget_state()


def _accelerator(precision: str, device: str | None) -> Any:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingExtraError("accelerate", "train", "training") from error
    try:
        return Accelerator(mixed_precision=precision, cpu=device == "cpu")
    except ValueError as error:  # the state of accelerate is that of the process
        raise ArgumentValueError(f"precision={precision!r}: {error}") from error


def _has_state() -> bool:
    """Whether an accelerator was made in this process, by anybody."""
    return "accelerate" in sys.modules and bool(_state()._shared_state)


def _forget_state() -> None:
    """There is no public call for it: the state lasts as long as the process, otherwise."""
    _state()._reset_state()


def _state() -> Any:
    from accelerate.state import AcceleratorState

    return AcceleratorState
