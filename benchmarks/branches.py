"""What auxiliary branches cost: in a training step, when exits stop some samples, and when none of them does.

    python benchmarks/branches.py --out docs/branches_time.md

Everything is timed in turns, in an order drawn anew in each round, and compared within its round with the plain
backbone, the named alternative; the tables give medians. Three questions:

1. What is lost at batch 1 when no exit fires? The staged network computes the backbone and all its heads. MACs alone do
   not tell what a head costs: its weights are read from memory for a single sample. So the heads are timed on their own
   too, and beside the chain stands one graph that computes all exits at once.
2. What is won when samples stop: all of them at the first exit, half of those that are there at each exit, or none?
3. How long is a training step, forward, loss and backward, of the backbone with its branches?

`--thread-time` counts the time of the computing thread instead of the clock's, for a machine that others use too.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from anytimeify import AnytimeModel, AuxiliaryBranches, Confidence, Staged, transform
from anytimeify._torch import prepare_torchvision
from anytimeify.codegen.to_modules import to_modules
from anytimeify.ir import Program
from anytimeify.ir.rewritten import Rewritten
from anytimeify.passes.rewrites.fold import fold
from anytimeify.passes.rewrites.fold_batch_norms import fold_batch_norms
from anytimeify.passes.rewrites.project import project
from anytimeify.passes.rewrites.resume import steps

HEADS = ("pool", "branch")
NEVER = Confidence(threshold=2.0)  # of a probability


@dataclass(frozen=True)
class Networks:
    """One backbone in the forms that are compared."""

    heads: str
    backbone: nn.Module
    net: AnytimeModel
    staged: Staged
    unfolded: Staged
    extract: nn.Module  # the backbone, batch norms folded
    together: nn.Module  # all exits in one graph, batch norms folded


def main() -> None:
    """Measure and print; with `--out` also write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the tables as Markdown")
    parser.add_argument("--model", default="resnet18", help="a name of timm")
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=100, help="of single samples; of batches a tenth, 5 at least")
    parser.add_argument("--batch", type=int, default=16, help="samples of a batch, in inference and in training")
    parser.add_argument("--thread-time", action="store_true", help="count the time of this thread alone")
    options = parser.parse_args()
    prepare_torchvision()
    import timm

    clock = time.thread_time if options.thread_time else time.perf_counter
    image = torch.randn(options.batch, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    few = max(5, options.rounds // 10)
    idle, stopping, training = [], [], []
    for heads in HEADS:
        forms = networks(timm.create_model(options.model).eval(), heads, image[:2])
        idle.append(no_exit_fires(forms, image[:1], options.rounds, clock))
        print(idle[-1], flush=True)
        for batch, rounds in ((1, options.rounds), (options.batch, few)):
            stopping.append(samples_stop(forms, image[:batch], rounds, clock))
            print(stopping[-1], flush=True)
        training.append(training_step(forms, image, few, clock))
        print(training[-1], flush=True)
    page = PAGE.format(
        command=f"python benchmarks/branches.py --model {options.model} --size {options.size} "
        f"--rounds {options.rounds} --batch {options.batch}{' --thread-time' if options.thread_time else ''}",
        clock="time of the computing thread" if options.thread_time else "time of the clock",
        idle="\n".join(idle),
        stopping="\n".join(stopping),
        training="\n".join(training),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
    )
    if options.out:
        options.out.write_text(page)
    print(page)


def networks(backbone: nn.Module, heads: str, example: Tensor) -> Networks:
    """The backbone with two branches, in all its forms."""
    net = transform(backbone, AuxiliaryBranches(heads=heads), (example,), verify=False).eval()  # type: ignore[arg-type]
    rewritten = net.rewritten
    together = to_modules(fold_batch_norms(fold(project(rewritten.program, _steps(rewritten)))), training=False)
    staged, unfolded = net.staged(), net.staged(fold=False)
    return Networks(heads, backbone, net, staged, unfolded, net.extract(-1, fold=True), together.requires_grad_(False))


def _steps(rewritten: Rewritten) -> list[int]:
    return [rewritten.position(level, role="step") for level in range(len(rewritten.levels))]


def no_exit_fires(forms: Networks, x: Tensor, rounds: int, clock: Callable[[], float]) -> str:
    """One row of the first table."""
    heads, features = heads_alone(forms, x)
    turns: dict[str, Callable[[], object]] = {
        "plain": lambda: forms.backbone(x),
        "folded": lambda: forms.extract(x),
        "heads": lambda: [head(one) for head, one in zip(heads, features, strict=True)],
        "together": lambda: forms.together(x),
        "unfolded": lambda: forms.unfolded(x, policy=NEVER),
        "staged": lambda: forms.staged(x, policy=NEVER),
    }
    with torch.inference_mode():
        alone, shares = compare(turns, rounds, clock)
    macs = forms.staged.macs[-1] / forms.net.levels[-1].cost.macs - 1
    lost = shares["staged"] - 1 - macs
    beside = shares["staged"] - 1 - shares["heads"]
    numbers = (*(shares[name] for name in ("folded", "together", "unfolded", "staged")), shares["heads"], macs)
    cells = " | ".join(f"{number:.3f}" for number in numbers)
    return f"| {forms.heads} | {1000 * alone:.1f} | {cells} | {100 * lost:+.1f} % | {100 * beside:+.1f} % |"


def heads_alone(forms: Networks, x: Tensor) -> tuple[list[nn.Module], list[Tensor]]:
    """What an exit computes after the trunk, as graphs of their own, and the features that they read."""
    rewritten = forms.net.rewritten
    program = fold_batch_norms(fold(project(rewritten.program, _steps(rewritten))))
    nodes = {node.name: node for node in program.graph.nodes}
    graphs, read = [], []
    with torch.inference_mode():
        known = {"x": x}
        for stage, module in zip(forms.staged.chain.stages, forms.staged.stages, strict=True):
            given = module(*(known[name] for name in stage.reads))
            known.update(zip(stage.gives, given, strict=True))
            if stage is not forms.staged.chain.stages[-1]:
                feature, prediction = stage.gives
                graphs.append(after(program, nodes[feature], nodes[prediction]))
                read.append(known[feature])
    return graphs, read


def after(program: Program, feature: fx.Node, prediction: fx.Node) -> nn.Module:
    """The graph from one node to another."""
    graph = steps(program.graph, [feature, prediction])[1].graph
    names = {str(node.target) for node in graph.find_nodes(op="get_attr")}
    tensors = {name: tensor for name, tensor in program.tensors.items() if name in names}
    return to_modules(Program(graph, tensors), training=False).requires_grad_(False)


def samples_stop(forms: Networks, x: Tensor, rounds: int, clock: Callable[[], float]) -> str:
    """One row of the second table."""

    def half(predictions: list[Tensor], exit: int) -> Tensor:
        return torch.arange(len(predictions[-1])) % 2 == 0

    turns: dict[str, Callable[[], object]] = {
        "plain": lambda: forms.backbone(x),
        "first": lambda: forms.staged(x, policy=lambda predictions, exit: True),
        "half": lambda: forms.staged(x, policy=half),
        "none": lambda: forms.staged(x, policy=NEVER),
    }
    full = forms.net.levels[-1].cost.macs
    with torch.inference_mode():
        alone, shares = compare(turns, rounds, clock)
        left = {name: forms.staged(x, policy=policy).exits for name, policy in (("half", half), ("none", NEVER))}
    macs = {name: sum(forms.staged.macs[exit] for exit in exits) / len(x) / full for name, exits in left.items()}
    macs["first"] = forms.staged.macs[0] / full
    shown = {name: f"{shares[name]:.3f} | {macs[name]:.3f}" for name in ("first", "half", "none")}
    if len(x) == 1:
        shown["half"] = " | "
    cells = " | ".join(shown.values())
    return f"| {forms.heads} | {len(x)} | {1000 * alone:.1f} | {cells} |"


def training_step(forms: Networks, x: Tensor, rounds: int, clock: Callable[[], float]) -> str:
    """One row of the third table."""
    target = torch.arange(len(x)) % 10

    def step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], object]:
        def run() -> None:
            module.zero_grad(set_to_none=True)
            loss().backward()

        return run

    backbone, net = forms.backbone.train(), forms.net.train()
    turns = {
        "plain": step(backbone, lambda: F.cross_entropy(backbone(x), target)),
        "branches": step(net, lambda: net.loss(net(x), target)),
    }
    alone, shares = compare(turns, rounds, clock)
    backbone.eval()
    net.eval()
    everything = forms.staged.macs[-1] / forms.net.levels[-1].cost.macs
    return f"| {forms.heads} | {len(x)} | {1000 * alone:.0f} | {shares['branches']:.3f} | {everything:.3f} |"


def compare(
    turns: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> tuple[float, dict[str, float]]:
    """Seconds of the plain network, and of every other its median share of that within a round."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    order = random.Random(0)
    for turn in turns.values():
        turn()
    for _ in range(rounds):
        for name in order.sample(list(turns), len(turns)):
            start = clock()
            turns[name]()
            seconds[name].append(clock() - start)
    plain = seconds.pop("plain")
    shares = {name: [one / base for one, base in zip(found, plain, strict=True)] for name, found in seconds.items()}
    return statistics.median(plain), {name: statistics.median(found) for name, found in shares.items()}


PAGE = """# Auxiliary branches: what they cost and what they save

`{command}`, torch {torch}, Python {python}, {threads} CPU threads, {clock}. Shares are of the time of the plain
backbone, in eager torch, within the same round; below 1 is faster. Two branches are chosen by the scheme; heads are
average pooling to 4x4 and a linear layer (pool), or what is left of the network, shortened (branch).

## No exit fires, batch 1

Lost: the staged network, batch norms folded, against the plain backbone and the MACs of its heads; beside the heads:
against the plain backbone and the time of its heads, run on their own.

| heads | plain, ms | folded | all exits in one graph | staged, not folded | staged | heads alone | heads' MACs | lost \
| lost beside the heads |
|---|---|---|---|---|---|---|---|---|---|
{idle}

## Some samples stop

Time and MACs (both shares of the plain backbone's) of the staged network when all samples stop at the first exit, when
at every exit the half of those that are there stops, and when none does.

| heads | batch | plain, ms | first: time | MACs | half: time | MACs | none: time | MACs |
|---|---|---|---|---|---|---|---|---|
{stopping}

## Training step

| heads | batch | plain, ms | with branches | MACs |
|---|---|---|---|---|
{training}
"""

if __name__ == "__main__":
    main()
