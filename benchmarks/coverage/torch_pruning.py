"""The same backbone through Torch-Pruning, as its documentation starts: magnitude importance, one ratio, head left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from anytimeify._torch import flatten
from anytimeify.capture.inputs import call_inputs
from benchmarks.zoo import build

__all__ = ["prune"]

RATIO = 0.5


def prune(say: Callable[[Mapping[str, Any]], None], backbone: str, input_size: list[int] | None = None) -> None:
    """Prunes, runs the result on the example inputs, and counts multiply-accumulates with Torch-Pruning's counter."""
    try:
        import torch_pruning  # type: ignore[import-not-found]  # optional, and without types
    except ImportError:
        say({"verified": False, "why": "torch-pruning is not installed"})
        raise
    say({"step": "build"})
    model, example = build(backbone, input_size)
    inputs = call_inputs(example)
    given = dict(inputs.kwargs) if inputs.kwargs else inputs.args
    model.eval()
    try:
        start = time.perf_counter()
        with torch.no_grad():
            classes = next(x for x in flatten(model(*inputs.args, **inputs.kwargs))[0] if isinstance(x, torch.Tensor))
            macs, _ = torch_pruning.utils.count_ops_and_params(model, given)
        heads = [
            layer
            for layer in model.modules()
            if getattr(layer, "out_features", getattr(layer, "out_channels", None)) in classes.shape[1:]
            and isinstance(layer, nn.Linear | nn.Conv2d)
        ]
        say({"step": "prune"})
        pruner = torch_pruning.pruner.BasePruner(
            model,
            given,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=RATIO,
            ignored_layers=heads,
        )
        pruner.step()
        say({"step": "run", "prune_seconds": time.perf_counter() - start})
        with torch.no_grad():
            model(*inputs.args, **inputs.kwargs)
            left, _ = torch_pruning.utils.count_ops_and_params(model, given)
        say({"verified": True, "shares": [left / macs], "step": "done"})
    except Exception as error:
        lines = str(error).strip().splitlines()
        say({"verified": False, "why": f"{type(error).__name__}: {lines[0][:200] if lines else ''}"})
