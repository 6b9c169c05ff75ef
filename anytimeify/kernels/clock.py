"""How long a piece of work takes where it runs."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

__all__ = ["seconds", "wait"]


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one run, until the device has done it."""
    # A single thread is timed by the work that it does, whoever else uses the processor meanwhile.
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    wait(device)
    start = clock()
    run()
    wait(device)
    return clock() - start


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
