"""The child: one backbone and one scheme, step by step. `python -m benchmarks.coverage.worker TASK FILE`."""

from __future__ import annotations

import gc
import os
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytimeify import AnytimeModel, HierarchicalEnsemble, NestedChannels, verification
from anytimeify.analysis.axes import Axes, Widths, analyse
from anytimeify.analysis.cost import macs_by_node, sizes
from anytimeify.capture import capture
from anytimeify.capture.export import export
from anytimeify.capture.inputs import CallInputs, call_inputs
from anytimeify.errors import AnytimeError
from anytimeify.graph.builder import Builder
from anytimeify.ir import Captured, Outputs
from anytimeify.passes.options import Options
from anytimeify.passes.rewrites.narrow import clone_narrowed
from anytimeify.passes.scheme import parse_scheme, schemes
from anytimeify.rules.factors import Expr, Pin, flat, leaves
from anytimeify.runtime.compiled import compiled
from anytimeify.testing import assert_costs_increase
from benchmarks.coverage import ensembles, triangles
from benchmarks.coverage.children import Say, asked
from benchmarks.zoo import build, catalogue, family

__all__ = ["held", "main", "measure"]

WIDTH = 0.25
DEFAULTS = {
    "hierarchical-ensemble": "hierarchical-ensemble{depth=2}",
    "nested-channels": "nested-channels{widths=0.25,0.5,1}",
}


def main() -> None:
    """Does the task of the command line."""
    task, say = asked()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    warnings.simplefilter("ignore")  # what backbones and the exporter say of themselves
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    tasks: dict[str, Callable[..., None]] = {"list": list_names, "measure": measure, "prune": prune}
    tasks[task.pop("do")](say, **task)


def list_names(say: Say, kinds: list[str]) -> None:
    """Names of backbones by prefix, and the spec string of every scheme."""
    say({"names": {kind: catalogue(kind) for kind in kinds}})
    say({"schemes": [DEFAULTS.get(name, name) for name in schemes()]})


def prune(say: Say, **task: Any) -> None:
    """The same backbone through Torch-Pruning."""
    from benchmarks.coverage.torch_pruning import prune

    prune(say, **task)


class Steps:
    """Clocks steps and says which one runs, so that a child which is killed leaves word of how far it came."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.say({"step": name})
        gc.collect()  # what a step before has left is not this one's
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


def measure(say: Say, backbone: str, scheme: str, input_size: list[int] | None = None) -> None:
    """Everything that is known of one backbone under one scheme; what fails is said in `why`, with its step."""
    step = Steps(say)
    try:
        _measure(say, step, backbone, scheme, input_size)
    except Exception as error:
        say({"verified": False, "why": _line(error)})


def _measure(say: Say, step: Steps, backbone: str, scheme: str, input_size: list[int] | None) -> None:
    with step("build"):
        model, example = build(backbone, input_size)
        params = sum(parameter.numel() for parameter in model.parameters())
        say({"family": family(backbone), "params": params})
        capture(nn.Linear(2, 2), (torch.randn(2, 2),))  # the first export of a process loads much of torch
    with step("export"):
        say({"exported": _export_alone(model, call_inputs(example))})
    say({"export_seconds": step.seconds["export"]})
    with step("build"):
        model, example = build(backbone, input_size)  # an export may leave something behind in the model
    with step("capture"):
        captured = capture(model, example)
    say({"notes": captured.notes, "nodes": len(captured.program.graph.nodes)})
    with step("analysis"):
        axes = analyse(captured.program)
    say({"analysis_seconds": step.seconds["analysis"], "without_rule": _without_rule(axes)})
    chosen = parse_scheme(scheme)
    with step("rewrite"):
        reference, captured = captured.reference, chosen.prepare(captured, axes)
        net = AnytimeModel(compiled(captured, axes, chosen, chosen.apply(captured, axes), Options()))
    say(_costs(net))
    if isinstance(chosen, NestedChannels):
        say(held(captured, axes))
    if isinstance(chosen, HierarchicalEnsemble):
        say(ensembles.ensemble(net))
    with step("verify"):
        verification.verify(net, model, references=[reference])
    rest = max(0.0, step.seconds["capture"] - step.seconds["export"]) + step.seconds["rewrite"] + step.seconds["verify"]
    say({"rest_seconds": rest, **{f"{name}_seconds": step.seconds[name] for name in ("capture", "rewrite", "verify")}})
    assert_costs_increase(net)
    with step("training step"):
        gradients = _training_step(net)
    counts = {problem: len(names) for problem, names in gradients.items()}
    say({"gradients": counts, "training_seconds": step.seconds["training step"]})
    for problem in ("missing", "not finite"):
        if names := gradients[problem]:
            raise AssertionError(f"gradients {problem} after a training step: {len(names)}, such as {names[0]}")
    if not net.exact:
        say(triangles.triangle(net))
        with step("one pass against many"):
            triangles.assert_one_pass_is_many(say, net, params)
    if isinstance(chosen, HierarchicalEnsemble) and chosen.fuse:
        del model, captured  # what follows makes a second network
        with step("fused against unrolled"):
            ensembles.assert_fused_equals_unrolled(say, net, params)
    say({"verified": True, "step": "done"})


def _export_alone(model: nn.Module, inputs: CallInputs) -> str:
    """torch.export and nothing else, in the mode in which it succeeds."""
    for training in (True, False):
        try:
            export(model, inputs, None, training=training)
        except Exception:
            continue
        return "train" if training else "eval"
    return "fails"


def _training_step(net: AnytimeModel) -> dict[str, list[str]]:
    """Parameters without a gradient. The loss is the model's own for class scores, alone or at every pixel; for results
    of other shapes it is the sum of squares: plain sums have no gradient through a norm."""
    args, kwargs = net.call_signature.arguments(
        tuple(x.clone() for x in net.captured.example_inputs), net.captured.signature
    )
    net.train()
    outputs: Outputs = net(*args, **kwargs)
    _loss(net, outputs).backward()
    asked = {name: parameter.grad for name, parameter in net.named_parameters() if parameter.requires_grad}
    there = {name: grad for name, grad in asked.items() if grad is not None}
    return {
        "missing": [name for name in asked if name not in there],
        "not finite": [name for name, grad in there.items() if not grad.isfinite().all()],
        "zero": [name for name, grad in there.items() if not grad.any()],
    }


def _loss(net: AnytimeModel, outputs: Outputs) -> Tensor:
    full = outputs.levels[net.full]
    if full.ndim in (2, 4) and full.shape[1] > 1:
        target = torch.randint(0, full.shape[1], (full.shape[0], *full.shape[2:]))
        loss: Tensor = net.loss(outputs, target)
        return loss
    return torch.stack([level.square().sum() for level in (*outputs.levels, *outputs.members)]).sum()


def _costs(net: AnytimeModel) -> dict[str, Any]:
    """Of every level, also as shares of the level that is the backbone."""
    full = net.levels[net.full].cost
    return {
        "levels": [level.name for level in net.levels],
        "macs": [level.cost.macs for level in net.levels],
        "shares": [level.cost.macs / full.macs for level in net.levels],
        "parameter_shares": [level.cost.params / full.params for level in net.levels],
    }


def _without_rule(axes: Axes) -> list[str]:
    return sorted({str(node.target) for node in axes.unknown})


def held(captured: Captured, axes: Axes, width: float = WIDTH) -> dict[str, Any]:
    """What keeps the cost up at a width, whatever the scheme.

    `pinned`: the share of the MACs of operations that cost there what they cost in full. `held`: what a layer costs
    above the square of the width, summed by why one of its channel axes stays longer, largest first: a share of all
    MACs, the reason, the operation that pins, the line of the backbone, and a node for example.
    """
    program = captured.program
    full = macs_by_node(program, captured.batch, *sizes(captured))
    total = sum(full.values())
    widths = axes.widths(width) if axes.narrowable else {}
    builder = Builder.copying(program)
    env = clone_narrowed(builder, program, axes, widths, prefix="")
    thin = macs_by_node(
        program, captured.batch, *sizes(captured), nodes=dict.fromkeys(env.get(node, node) for node in full)
    )
    pinned = 0
    rows: dict[tuple[str, str], list[Any]] = {}
    for node, macs in full.items():
        kept = thin.get(env.get(node, node), 0)
        pinned += macs if kept == macs else 0
        excess = kept - macs * width**2
        why = _why(node, axes, widths, width, kept / macs) if excess > 0.01 * macs else None
        if why is not None:
            row = rows.setdefault((why.reason, why.where.op), [0.0, *_cells(why), node.name])
            row[0] += excess / total
    listed = sorted(rows.values(), key=lambda row: -row[0])[:8]
    return {"pinned": pinned / total if total else None, "held": listed}


def _cells(pin: Pin) -> tuple[str, str, str]:
    return pin.reason, pin.where.op, str(pin.where.origin) if pin.where.op else ""


def _why(node: fx.Node, axes: Axes, widths: Widths, width: float, kept: float) -> Pin:
    """Of a layer's own parameters first, then of what it reads: the pin of an axis, or that whole units are kept."""
    sources = node.all_input_nodes
    channels = [expr for source in sources if source.op == "get_attr" for expr in axes.dims[source][:2]]
    exprs = [*channels, *(expr for one in (*sources, node) for expr in flat(axes.dims[one]))]
    narrowed = [expr for expr in exprs if axes.narrowed(expr, widths)]
    for pin in _pins(channels, axes, widths):
        if pin.kind in ("fixed", "input", "output"):
            return pin
    pins = list(_pins(exprs, axes, widths))
    for pin in pins:
        if pin.kind == "fixed":
            return pin
    for leaf in (leaf for expr in narrowed for leaf in leaves(expr) if leaf in widths):
        if widths[leaf] > 1.15 * width * leaf.size.coefficient:
            return Pin(f"whole heads or groups: {widths[leaf]} of {leaf.size.coefficient} are kept")
    if narrowed and kept <= 1.15 * width:
        return Pin("one channel axis: depthwise, or attention between positions")
    if narrowed:
        return Pin("one of two channel axes is not narrowed")
    return next(iter(pins), Pin("no axis can be narrowed"))


def _pins(exprs: Iterable[Expr], axes: Axes, widths: Widths) -> Iterator[Pin]:
    """Why the dimensions that stay whole do so; a pinned part of a narrowed dimension (q, k and v) holds nothing."""
    for expr in exprs:
        if not axes.narrowed(expr, widths):
            yield from (leaf.pin for leaf in leaves(expr) if leaf.pin is not None)


def _line(error: Exception) -> str:
    """The error in one line; those that were not raised for a user say where they come from."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}".removesuffix(": ")
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, AnytimeError) or not frames:
        return text
    return f"{text} (at {Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})"


if __name__ == "__main__":
    main()
