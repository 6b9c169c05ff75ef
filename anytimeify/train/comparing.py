"""`compare`: several schemes on one backbone, trained alike, beside networks that are trained alone.

    found = compare("timm:resnet18", "cifar10:DIR", ("nested-channels", "nested-depth"), out="compared")
    print(found.table)

Results per seed, the table and the figure are those of the papers' experiments.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytimeify.analysis.cost import cost, sizes
from anytimeify.capture.inputs import call_inputs
from anytimeify.compiler import transform
from anytimeify.errors import AnytimeError, ArgumentValueError, SchemeError
from anytimeify.losses.joint import JointLoss
from anytimeify.losses.objective import Objective
from anytimeify.papers.experiments.findings import Comparison, Finding, find
from anytimeify.papers.experiments.report import name_of, number, write_files
from anytimeify.papers.experiments.results import Results, Row
from anytimeify.papers.experiments.running import run
from anytimeify.papers.experiments.study import Contender
from anytimeify.papers.recipe import ALONE
from anytimeify.passes.rewrites.evaluate import evaluate
from anytimeify.passes.scheme import parse_scheme
from anytimeify.runtime.budget import Budget
from anytimeify.runtime.latency import Runtime
from anytimeify.runtime.model import AnytimeModel
from anytimeify.train.data import Data, open_data
from anytimeify.train.data.samples import Some
from anytimeify.train.encoding import as_json
from anytimeify.train.fitting import fit
from anytimeify.train.loading import Loader
from anytimeify.train.start import Start, changes
from anytimeify.train.training import Training

__all__ = ["SCHEMES", "Compared", "compare"]

SCHEMES = (
    "nested-channels",
    "nested-depth",
    "nested-resolution",
    "nested-weights",
    "hierarchical-ensemble{depth=2}",
    "auxiliary-branches",
)


@dataclass(frozen=True)
class Compared:
    """What came of a comparison.

    Fields
        results: of every seed and network.
        findings: for every level of every scheme, what it has over the best network alone that costs no more; levels
            that cost less than all of these have none.
        sentence: the same in words, a part for every scheme.
        table: Markdown, with means and standard deviations over seeds.
        out: the folder, with `results.jsonl`, `table.md`, `table.jsonl` and `figure.png`.
    """

    results: Results
    findings: tuple[Finding, ...]
    sentence: str
    table: str
    out: Path


def compare(
    source: str,
    data: str,
    schemes: Sequence[str] | None = None,
    *,
    out: str | os.PathLike[str],
    alone: str = "first",
    training: Training | None = None,
    epochs: int | None = None,
    budget: Budget | None = None,
    seeds: int | Sequence[int] = 3,
    examples: Any = None,
    runtime: Runtime = "torch",
    threads: int | None = None,
    batch_size: int = 1,
    limit_batches: int | None = None,
    trust_pickle: bool = False,
    said: Callable[[str], Any] | None = None,
) -> Compared:
    """Trains one backbone under several schemes by one recipe, and levels by themselves, with several seeds; writes
    table and figure into the folder `out`. What is there is not trained again.

    Parameters
        source: the backbone, as on the command line: `"timm:resnet18"`, `"package.module:factory"`, `"paper:NAME"`.
        data: what `open_data` takes.
        schemes: spec strings; by default those of `SCHEMES` that apply to the backbone.
        alone: a scheme whose levels are trained alone too, each as a network of its own; `"first"`: the first of
            `schemes`; `"none"`: nothing is.
        training: the recipe of all networks; by default the paper's, or that of `anytimeify train`.
        epochs: of every network; milestones and the like keep their share.
        budget: `Budget(macs=...)`: multiply-accumulates of forward passes that every network is trained with, epochs
            times samples times what one sample costs. Each gets the whole number of epochs that is nearest to it, so
            that cheap networks are trained for longer. By default all have the same epochs.
        seeds: how many, from 0 on, or which.
        examples: example inputs, where the source has none.
        runtime, threads, batch_size: how milliseconds of levels are measured (`AnytimeModel.latency`).
        limit_batches: at most so many in an epoch, and in an evaluation.
        said: called with a line of text before each training.

    Raises, before anything is trained, `SchemeError` where a scheme that was asked for does not apply or go with the
    recipe; `ArtifactError` where the folder holds other results; `ArgumentValueError` for a budget of less than one
    epoch.
    """
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen:
        raise ArgumentValueError(f"seeds is {seeds!r}: expected one or more")
    if budget is not None and set(budget.limits) != {"macs"}:
        raise ArgumentValueError(f"the budget {budget}: expected macs alone, of a whole training, such as macs=1e12")
    say = said or (lambda _: None)
    samples = open_data(data)
    start = Start(source, examples=examples, trust_pickle=trust_pickle)
    recipe = training or start.recipe()
    recipe = replace(recipe if epochs is None else recipe.for_epochs(epochs), seed=0)
    measured = f"milliseconds, batch of {batch_size}, {runtime}" + (f", {threads} threads" if threads else "")
    measures = partial(_milliseconds, runtime=runtime, threads=threads, batch_size=batch_size)

    planned = _Planned(start, samples, recipe, budget, limit_batches, measures)
    contenders = planned.contenders(schemes, alone, say)
    shapes = [",".join(map(str, one.shape)) for one in call_inputs(examples).tensors] if examples is not None else []
    described = {
        "experiment": "compare",
        "source": source,
        "input_shapes": shapes or None,
        "data": data,
        "levels_alone": planned.levels_of,
        "budget": str(budget) if budget is not None else None,
        "limit_batches": limit_batches,
        "measured": measured,
        "losses": "sums over levels or members",
        "training": {name: value for name, value in as_json(recipe).items() if name not in ("seed", "workers")},
    }
    options: list[tuple[str, object]] = [
        ("data", data),
        *(("scheme", one.name) for one in contenders if not one.alone),
        ("alone", alone),
        ("budget", budget),
        *(("set", text) for text in changes(start.recipe(), recipe)),
        ("seeds", len(chosen)),
        ("limit-batches", limit_batches),
        *(("input-shape", shape) for shape in shapes),
        ("runtime", runtime),
        ("threads", threads),
        ("batch-size", batch_size),
        ("out", "DIR"),
    ]
    words = [word for name, value in options if value is not None for word in (f"--{name}", str(value))]
    command = shlex.join(["anytimeify", "compare", source, *words, *(["--trust-pickle"] if trust_pickle else [])])
    results = run(contenders, samples, described, out, chosen, say, limit=limit_batches)
    return _write(results, planned.epochs, command, measured, recipe, Path(out))


@dataclass(frozen=True)
class _Network:
    """A network that is built anew for every seed, and its recipe."""

    make: Callable[[bool], AnytimeModel]
    training: Training

    def build(self, *, verify: bool) -> AnytimeModel:
        return self.make(verify)


class _Planned:
    """The networks of a comparison, and how long each is trained."""

    def __init__(
        self,
        start: Start,
        data: Data,
        training: Training,
        budget: Budget | None,
        limit: int | None,
        measures: Callable[..., Mapping[str, float]],
    ) -> None:
        self.start, self.data, self.training, self.measures = start, data, training, measures
        self.budget = budget
        train = data.held_out(training.holdout, 0).train
        loader = Loader(train, training.batch, 0, limit=limit)
        self.samples = loader.steps * loader.size  # in an epoch
        self.epochs: dict[str, int] = {}
        self.levels_of: str | None = None

    def contenders(self, schemes: Sequence[str] | None, alone: str, say: Callable[[str], Any]) -> list[Contender]:
        """All networks, those of schemes first. Each is built, measured and trained for a moment, so that what does not
        apply is known before long work."""
        found: dict[str, AnytimeModel] = {}
        for spec in SCHEMES if schemes is None else schemes:
            scheme = str(parse_scheme(spec))
            try:
                net = self._built(scheme, True)
                self._try(scheme, net)
                found[scheme] = net
            except SchemeError as error:
                if schemes is not None:
                    raise
                say(f"{scheme} is left out: {error}")
        if not found:
            raise SchemeError(f"no scheme applies to '{self.start.source}'")
        contenders = [self._contender(name, net, partial(self._built, name)) for name, net in found.items()]
        if alone == "none":
            return contenders
        self.levels_of = next(iter(found)) if alone == "first" else str(parse_scheme(alone))
        net = found.get(self.levels_of) or self._built(self.levels_of, True)
        for level in net.levels:
            make = partial(self._level, level.index)
            single = make(False)
            self._try(f"{level.name} alone", single)
            contenders.append(self._contender(f"{level.name} alone", single, make, alone=True))
        return contenders

    def _contender(
        self, name: str, net: AnytimeModel, make: Callable[[bool], AnytimeModel], alone: bool = False
    ) -> Contender:
        training = self.training
        if self.budget is not None:
            epoch = _macs(net) * self.samples
            epochs = round((self.budget.macs or 0) / epoch)
            if not epochs:
                raise ArgumentValueError(
                    f"the budget {self.budget} is less than an epoch of {name}, which takes {epoch:.2e} "
                    "multiply-accumulates"
                )
            training = training.for_epochs(epochs)
        self.epochs[name] = training.epochs
        self.measures(net, None, None, seconds=0, cached=False)
        return Contender(name, lambda: _Network(make, training), alone=alone, measures=self.measures)

    def _try(self, name: str, net: AnytimeModel) -> None:
        """`SchemeError` for a network that the recipe does not train: takes a step of every phase, on a few samples."""
        training = self.training
        count = min(training.batch, len(self.data.train), 2 * training.accumulate * len(net.levels))
        few = replace(
            self.data, train=Some(self.data.train, torch.arange(count)), test=Some(self.data.test, torch.arange(1))
        )
        phases = tuple(replace(phase, epochs=1, batch=count) for phase in training.phases)
        step = replace(training, epochs=1, batch=count, phases=phases, holdout=0.0, compile=False, workers=0)
        try:
            fit(net, few, step)
        except AnytimeError as error:
            raise SchemeError(f"{name} cannot be trained by this recipe: {error}") from error

    def _built(self, scheme: str, verify: bool) -> AnytimeModel:
        """Weights are drawn with the global generator, which is seeded before each training."""
        net = replace(self.start, scheme=scheme).build(self.data, None, verify=verify)
        if isinstance(net.loss, Objective):  # one learning rate is for all networks
            net.loss = net.loss.summed()
        return net

    def _level(self, level: int, verify: bool) -> AnytimeModel:
        """A level with parameters of its own, which start as it would."""
        net = self._built(self.levels_of or "", verify)
        return transform(net.extract(level), ALONE, net.captured.example_inputs, loss=JointLoss(), verify=verify)


def _macs(net: AnytimeModel) -> int:
    """Multiply-accumulates of a sample in a step on all levels together; of masked weights those that masks keep."""
    captured, rewritten = net.captured, net.rewritten
    program = evaluate(rewritten.program)
    joint = [program.outputs[rewritten.names.index(output)] for output in rewritten.joint]
    return cost(program, captured.batch, *sizes(captured), outputs=joint).macs


def _milliseconds(net: AnytimeModel, inputs: Tensor | None, labels: Tensor | None, **place: Any) -> dict[str, float]:
    return {level.name: net.latency(level, **place) for level in net.levels if not level.training_only}


# What is written.


def _write(
    results: Results, epochs: Mapping[str, int], command: str, measured: str, training: Training, out: Path
) -> Compared:
    comparisons = list(_over_alone(results))
    findings = tuple(find(results, comparisons)[2])
    sentence = _sentence(results, findings)
    table = _table(results, findings, epochs, measured)
    page = (
        f"# Schemes on one backbone\n\n`{command}`; seeds {', '.join(map(str, results.seeds))}, learning rate "
        f"{training.optimiser.learning_rate:g}, batches of {training.batch}.\n\n**Finding:** {sentence}\n\n{table}\n\n"
        "![accuracy against cost](figure.png)\n"
    )
    write_files(results, page, "costs", "", measured, out)
    return Compared(results, findings, sentence, table, out)


def _over_alone(results: Results) -> Iterator[Comparison]:
    """Every level over the best network alone that costs no more."""
    singles = [row for row in results.rows() if row.alone]
    for network in results.networks:
        for place, row in enumerate(results.levels(network)):
            cheaper = [one for one in singles if (one.macs or 0) <= (row.macs or 0)]
            if not row.alone and cheaper:
                best = max(cheaper, key=lambda one: one.mean)
                what = f"{row.level} over {best.network}"
                yield Comparison(what, (network, place), (best.network, 0))


def _sentence(results: Results, findings: Sequence[Finding]) -> str:
    if not findings:
        return "No network was trained alone that costs no more than a level."
    parts = []
    for network in dict.fromkeys(one.comparison.better[0] for one in findings):
        verdicts = [one.shows for one in findings if one.comparison.better[0] == network]
        parts.append(
            f"{network}: {verdicts.count(True)} of {len(verdicts)} levels are above the best network alone that costs "
            f"no more, {verdicts.count(False)} below, {verdicts.count(None)} not decided"
        )
    note = "by two standard errors of the differences" if len(results.seeds) > 1 else "one seed decides nothing"
    return f"{'; '.join(parts)} ({note})."


def _table(results: Results, findings: Sequence[Finding], epochs: Mapping[str, int], measured: str) -> str:
    milliseconds = {(row.network, row.level): row for row in results.measured()}
    over = {one.comparison.better: one for one in findings}
    lines = [
        f"| network | level | MACs | {measured} | parameters | epochs | accuracy, % | over the best alone |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for network in results.networks:
        for place, row in enumerate(results.levels(network)):
            took = milliseconds.get((network, row.level))
            cells = (
                name_of(row),
                row.level,
                f"{row.macs:,}",
                number(took, 3) if took is not None else "",
                f"{row.params:,}",
                str(epochs[network]),
                number(row),
                _difference(row, over.get((network, place))),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(row: Row, finding: Finding | None) -> str:
    if finding is None:
        return ""
    found = replace(row, values=finding.differences)
    return f"{'+' if found.mean >= 0 else ''}{number(found)}"
