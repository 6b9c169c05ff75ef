"""What the benchmark looks at in an ensemble besides what holds for every scheme."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from anytimeify import AnytimeModel, HierarchicalEnsemble
from anytimeify.analysis.cost import macs_by_node, sizes
from anytimeify.passes.options import Options
from anytimeify.passes.rewrites.project import project
from anytimeify.passes.rewrites.resume import steps
from anytimeify.runtime.compiled import compiled
from anytimeify.verification import TOLERANCE
from benchmarks.coverage import comparing

__all__ = ["assert_fused_equals_unrolled", "ensemble"]

Say = Callable[[Mapping[str, Any]], None]
_MEMBER = re.compile(r"member\d+_")


def ensemble(net: AnytimeModel) -> dict[str, Any]:
    """How much of the replicas is computed together, and what streaming costs.

    `fused`: the share of the MACs after the first cut that run as one operation for all replicas. `unrolled`: the
    operations that run member by member, how many nodes of the backbone they are, and their share of those MACs.
    `stream`: the MACs of all steps of a stream over those of one evaluation of all leaves.
    """
    captured, rewritten = net.captured, net.rewritten
    program = rewritten.program
    last = project(program, [rewritten.position(len(net.levels) - 1)])
    shared = {node.name for node in captured.program.graph.nodes}
    macs = macs_by_node(last, captured.batch, *sizes(captured))
    counts: Counter[str] = Counter()
    apart: Counter[str] = Counter()
    for node in last.graph.nodes:
        if node.op == "call_function" and _MEMBER.match(node.name) and node.target is not operator.getitem:
            counts[str(node.target)] += node.name.startswith("member0_")
            apart[str(node.target)] += macs.get(node, 0)
    total = sum(one for node, one in macs.items() if node.name not in shared)
    chain = steps(
        program.graph, [program.outputs[rewritten.position(level.index, role="step")] for level in net.levels]
    )
    streamed = [
        sum(macs_by_node(program, captured.batch, *sizes(captured), nodes=dict.fromkeys(step.graph.nodes)).values())
        for step in chain
    ]
    return {
        "members": len(rewritten.members),
        "fused": 1 - sum(apart.values()) / total if total else None,
        "unrolled": [(name, count, apart[name] / total if total else 0.0) for name, count in counts.most_common()],
        "stream": sum(streamed) / net.levels[-1].cost.macs,
    }


def assert_fused_equals_unrolled(say: Say, net: AnytimeModel, params: int) -> None:
    """Levels, members and streamed levels against the network with `fuse=False`, and gradients of small ones. Says the
    differences in `fused_equals_unrolled`, with the precision in which they are; `net` is not to be used afterwards.
    """
    scheme = replace(cast("HierarchicalEnsemble", net.scheme), fuse=False, init="copy")
    net.zero_grad(set_to_none=True)
    captured = net.captured
    apart = AnytimeModel(
        compiled(captured, net.axes, scheme, scheme.apply(captured, net.axes), Options()), nn.Identity()
    )
    comparing.stir(net)
    apart.load_state_dict(net.state_dict())
    small = params < comparing.SMALL["params"] and net.levels[net.full].cost.macs < comparing.SMALL["macs"]
    found: dict[str, Any] = {}
    for dtype in (torch.float64, torch.float32) if small else (torch.float32, torch.float64):
        try:
            found = _differences(net.eval().to(dtype), apart.eval().to(dtype), dtype, gradients=small)
        except RuntimeError as error:
            if found or dtype is torch.float32:
                raise
            say({"not_in_double": " ".join(str(error).split())[:200]})
            continue
        worst = max(found["outputs"], found["stream"], found.get("gradients", 0.0))
        if worst <= TOLERANCE:
            break
    say({"fused_equals_unrolled": found})
    if not worst <= TOLERANCE:
        raise AssertionError(f"fused and unrolled differ: {found}")


def _differences(net: AnytimeModel, apart: AnytimeModel, dtype: torch.dtype, *, gradients: bool) -> dict[str, Any]:
    given = tuple(x.to(dtype) if x.is_floating_point() else x.clone() for x in net.captured.example_inputs)
    args, kwargs = net.call_signature.arguments(given, net.captured.signature)
    with torch.no_grad():
        fused = net(*args, **kwargs)
        stream = [prediction for _, prediction in net.stream(*args, **kwargs)]
        unrolled = apart(*args, **kwargs)
    found = {
        "precision": str(dtype).removeprefix("torch."),
        "outputs": comparing.worst((*unrolled.levels, *unrolled.members), (*fused.levels, *fused.members)),
        "stream": comparing.worst(unrolled.levels, stream),
    }
    if gradients:
        weights = [torch.randn_like(one) for one in unrolled.members]
        vectors = [comparing.gradients(one, one(*args, **kwargs).members, weights) for one in (apart, net)]
        found["gradients"] = comparing.worst(vectors[:1], vectors[1:])
    return found
