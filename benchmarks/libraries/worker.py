"""The child: one network under some schemes. `python -m benchmarks.libraries.worker TASK FILE`.

It imports what the network needs, builds and calls it once, and then forks for every scheme, so that libraries are
imported once and no scheme finds what another one left behind. The peak memory of a fork begins with what was imported,
as that of a process of its own would.
"""

from __future__ import annotations

import os
import resource
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from anytimeify import AnytimeModel, CaptureError, transform
from anytimeify._torch import prepare_torchvision
from anytimeify.capture.inputs import call_inputs
from anytimeify.errors import AnytimeError, VerificationError
from benchmarks.coverage.children import Say, asked, forked
from benchmarks.libraries import comparison
from benchmarks.libraries.networks import NETWORKS, Example

__all__ = ["EXPORT", "export", "main", "measure"]

EXPORT = "torch.export"


def main() -> None:
    """Does the task of the command line: says `{scheme: what was found}`, and with `ended` how its process ended."""
    task, say = asked()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    warnings.simplefilter("ignore")  # what the libraries and the exporter say of themselves
    prepare_torchvision()
    make = NETWORKS[task["backbone"]]
    _try(make)
    for scheme in task["schemes"]:
        found: dict[str, Any] = {"step": "build"}
        ended = forked(partial(_measured, task, say, make, scheme, found), task["seconds"])
        say({f"ended {scheme}": asdict(ended)})


def _measured(task: dict[str, Any], say: Say, make: Callable[[], Example], scheme: str, found: dict[str, Any]) -> None:
    if task["gib"]:
        resource.setrlimit(resource.RLIMIT_AS, (int(task["gib"] * 2**30),) * 2)

    def add(more: Mapping[str, Any]) -> None:
        found.update(more)
        say({scheme: found})

    run(add, make, scheme)


def _try(make: Callable[[], Example]) -> None:
    """Another network than those that are transformed: some remember the sizes of a call."""
    torch.manual_seed(0)
    with suppress(Exception), torch.no_grad():  # said by every scheme
        tried = make()
        comparison.call(tried.model.eval(), tried.inputs)


def run(say: Say, make: Callable[[], Example], scheme: str) -> None:
    """Says the status of one cell, and why it is not `verified`."""
    say({"step": "build"})
    torch.manual_seed(0)
    try:
        with torch.no_grad():  # another one than is transformed: some networks remember the sizes of a call
            tried = make()
            comparison.call(tried.model.eval(), tried.inputs)
        torch.manual_seed(0)
        example = make()
    except Exception as error:
        say({"status": "does not run", "why": line(error)})
        return
    example.model.train()
    try:
        say(export(say, example) if scheme == EXPORT else measure(say, example, scheme))
    except comparison.WrongModelError as error:
        say({"status": "wrong", "why": str(error)})
    except VerificationError as error:
        say({"status": "wrong", "why": line(error)})
    except AnytimeError as error:
        say({"status": "refused", "why": line(error)})
    except Exception as error:
        say({"status": "crashed", "why": line(error)})


def export(say: Say, example: Example) -> dict[str, Any]:
    """torch.export and nothing else, with the sizes of the example, in the mode in which it succeeds."""
    say({"step": "export"})
    given = call_inputs(example.inputs)
    why = ""
    for mode in ("train", "eval"):
        example.model.train(mode == "train")
        try:
            torch.export.export(example.model, given.args, dict(given.kwargs), strict=False)
        except Exception as error:
            why = line(error)
        else:
            return {"status": "verified", "why": "", "mode": mode}
    return {"status": "not exported", "why": why}


def measure(say: Say, example: Example, scheme: str) -> dict[str, Any]:
    """Transforms and compares; where the batch cannot be dynamic, with the sizes of the example."""
    say({"step": "transform"})
    model = example.model
    batched = example.batched
    try:
        net = _transform(model, scheme, example.inputs)
    except CaptureError as error:
        if "dynamic_shapes={}" not in str(error):
            raise
        net, batched = _transform(model, scheme, example.inputs, dynamic_shapes={}), False
        say({"fixed": line(error)})
    shares = [level.cost.macs / max(1, net.levels[net.full].cost.macs) for level in net.levels]
    say({"step": "compare", "shares": shares})
    return {"status": "verified", **comparison.compare(net, model, example.inputs, batched=batched)}


def _transform(model: nn.Module, scheme: str, inputs: Any, **more: Any) -> AnytimeModel:
    """On tensors of its own: an export leaves marks on those that it is given."""
    own = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, inputs)
    return transform(model, scheme, own, **more)


def line(error: Exception) -> str:
    """The error in one line; those that were not raised for a user say where they come from."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}".removesuffix(": ")
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, AnytimeError) or not frames:
        return text
    return f"{text} (at {Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})"


if __name__ == "__main__":
    main()
