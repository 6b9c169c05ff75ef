"""Running statistics of batch norms, estimated anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from anytimeify.capture.modes import in_mode
from anytimeify.errors import ArgumentValueError
from anytimeify.operators.modules import BatchNormCall

__all__ = ["calibrate"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNormCall)


def calibrate(module: nn.Module, batches: Iterable[Any], forward: Callable[[Any], object]) -> int:
    """Re-estimates the running statistics of every batch norm in `module`: their mean over the batches, equal weights.

    Batch norms run in training mode and everything else in eval mode, so that dropout does not blur the statistics.
    Training flags and momenta are afterwards as before. Returns the number of batches; `ValueError` if there are none.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, _BATCH_NORMS)]
    momenta = [(norm, norm.momentum) for norm in norms]
    count = 0
    try:
        with in_mode(module, training=False), torch.no_grad():
            for norm in norms:
                norm.train()
            for batch in batches:
                count += 1
                for norm in norms:
                    norm.momentum = 1 / count  # the cumulative average; the first batch replaces what was there
                forward(batch)
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum
    if not count:
        raise ArgumentValueError(
            "calibrate was given no batches: nothing was re-estimated. Pass a few batches of training inputs"
        )
    for norm in norms:
        tracked = getattr(norm, "num_batches_tracked", None)
        if isinstance(tracked, Tensor):
            tracked.fill_(count)
    return count
