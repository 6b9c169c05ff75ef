"""docs/evidence.md and its figures, from the results of experiments."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from anytimeify.io.files import replaced_file
from anytimeify.papers.experiments import Experiment, Report, report
from anytimeify.papers.experiments.findings import Finding
from anytimeify.papers.experiments.results import Results, read
from benchmarks.evidence.plan import REMARKS, command, experiments_of, papers

__all__ = ["write"]

_PAPERS = {
    "nestednet": "NestedNet",
    "hne": "Hierarchical neural ensembles",
    "dhm": "Dynamic hierarchical mimicking",
    "dcm": "Dense cross-layer mutual distillation",
    "anytime": "I-ResNeXt and IS-ResNeXt",
}
_VERDICTS = {True: "shows", False: "does not show", None: "not decided"}
_COLOURS = 48  # of a figure, which makes its file small


@dataclass(frozen=True)
class _Entry:
    """An experiment and what is there of it."""

    experiment: Experiment
    report: Report
    seconds: float  # of one core
    chance: float  # accuracy in percent

    @property
    def name(self) -> str:
        return self.experiment.study.name

    @property
    def slug(self) -> str:
        return self.name.replace("/", "-")

    @property
    def seeds(self) -> int:
        return len(self.report.results.seeds)


def write(out: Path, page: Path) -> None:
    """The page, with figures in a folder `images/evidence` beside it. Only seeds that all networks of an experiment
    have been trained with are in it; where there is none, nothing is written."""
    by_paper = {paper: [found for one in experiments_of(paper) if (found := _entry(one, out))] for paper in papers()}
    entries = [entry for group in by_paper.values() for entry in group]
    if not entries:
        return
    images = page.parent / "images" / "evidence"
    images.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        _copy_figure(entry.report.out / "figure.png", images / f"{entry.slug}.png")
    parts = [_HEAD, _measured(entries), "## Summary", _summary(entries), _counted(entries), _READING]
    for paper, group in by_paper.items():
        parts += [f"## {_PAPERS[paper]}", *(_section(entry) for entry in group)] if group else []
    with replaced_file(page) as file:
        file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _entry(made: Experiment, out: Path) -> _Entry | None:
    folder = out / made.study.name.replace("/", "-")
    lines = read(folder / "results.jsonl")
    trained = {(line["network"], line["seed"]) for line in lines}
    names = [one.name for one in made.contenders]
    seeds = [seed for seed in sorted({line["seed"] for line in lines}) if all((one, seed) in trained for one in names)]
    if not seeds:
        return None
    chosen = [
        line for name in names for seed in seeds for line in lines if (line["network"], line["seed"]) == (name, seed)
    ]
    times = [line["processor"] for line in read(folder / "times.jsonl")]
    written = report.write(made.study, made.setting, Results(tuple(chosen)), folder)
    return _Entry(made, written, sum(times), 100 / made.setting.classes)


def _copy_figure(source: Path, target: Path) -> None:
    """With few colours."""
    from PIL import Image

    with Image.open(source) as image, replaced_file(target) as file:
        image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(file, format="png", optimize=True)


# The summary.


def _measured(entries: Sequence[_Entry]) -> str:
    seeds = sorted({entry.seeds for entry in entries})
    said = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    minutes = sum(entry.seconds for entry in entries) / 60
    count = "1 experiment" if len(entries) == 1 else f"{len(entries)} experiments"
    return (
        f"{count} with {said} seeds took {minutes:.0f} minutes of processor time, on two cores half as long; "
        f"torch {metadata.version('torch')}, Python {platform.python_version()}."
    )


def _summary(entries: Sequence[_Entry]) -> str:
    lines = ["| experiment | claim | here | seeds |", "|---|---|---|--:|"]
    for entry in entries:
        link = f"[{entry.name}](#{_anchor(entry)})"
        verdict = _VERDICTS[entry.report.shows] + (", with a remark" if entry.name in REMARKS else "")
        lines.append(f"| {link} | {entry.experiment.study.claim} | {verdict} | {entry.seeds} |")
    return "\n".join(lines)


def _counted(entries: Sequence[_Entry]) -> str:
    claims = Counter(entry.report.shows for entry in entries)
    parts = Counter(finding.shows for entry in entries for finding in entry.report.findings)
    return (
        f"Claims: {claims[True]} of {len(entries)} show, {claims[False]} do not show, {claims[None]} not decided. "
        f"Comparisons, which these consist of: {parts[True]} of {parts.total()} show, {parts[False]} do not show, "
        f"{parts[None]} not decided."
    )


# An experiment.


def _anchor(entry: _Entry) -> str:
    return entry.name.replace("/", "")


def _section(entry: _Entry) -> str:
    study = entry.experiment.study
    seeds = f"{entry.seeds} seeds" if entry.seeds > 1 else "1 seed"
    parts = [
        f"### {entry.name}",
        f"{study.about} ({study.source}).",
        f"    {command(entry.experiment, entry.seeds)}",
        f"**Claim:** {study.claim}",
        f"**Here, {seeds}:** {_said(entry)}",
        *([REMARKS[entry.name]] if entry.name in REMARKS else []),
        "\n".join(_findings(entry.report.findings)),
        entry.report.table,
        f"![{study.about}](images/evidence/{entry.slug}.png)",
    ]
    return "\n\n".join(parts)


def _said(entry: _Entry) -> str:
    """What is found in a sentence or two."""
    findings = entry.report.findings
    count = Counter(finding.shows for finding in findings)
    verdict = {True: "the claim shows", False: "the claim does not show", None: "the claim is not decided"}
    said = (
        f"{verdict[entry.report.shows]}. What it says shows in {count[True]} of {len(findings)} comparisons, does not "
    )
    said += f"show in {count[False]}, and is not decided in {count[None]}."
    low = [row for row in entry.report.results.rows() if row.mean < 2 * entry.chance]
    if low:
        names = ", ".join(f"{row.network} ({row.level})" for row in low)
        said += f" Hardly learnt at all: {names}; chance is {entry.chance:.1f} %."
    return said


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    for finding in findings:
        yield f"* {finding}: {_VERDICTS[finding.shows]}"


_HEAD = """# What the experiments show here

    python -m benchmarks.evidence --seeds 3 --processes 2

runs every experiment of the papers ([how they work](experiments.md)) and writes this page: its numbers, verdicts and
figures. It goes on where it was stopped; `--minutes` ends it, `--papers` runs some. The command of one experiment is
above its table.

**These are small networks**, of 8 to 20 layers and of the papers' kinds, trained for 15 epochs of 1,000 images of
16x16: digits of MNIST, with 4,000 others to test with, or generated shapes, with 2,000. Each takes seconds. What shows
here is said of these alone, and what does not show may be there in networks of the papers' size, for which nothing here
speaks. All networks of an experiment, those that are trained alone too, have the same learning rate."""

_READING = """**How to read it.** Accuracies are those of test images in percent, means and standard deviations over
seeds. Networks in black are trained alone: the line to beat. Bars do not begin at zero. A comparison is made seed by
seed. It shows if the mean difference is more than two standard errors above its margin (0, or "at most so much worse"
where the claim is that two are equal), does not show if as far below, and is otherwise not decided. A claim shows if
all of its comparisons do, and does not if one does not. This is a rough measure: of two networks that are alike, one is
found to be better by chance in 18 % of comparisons of three seeds, and in 12 % of five."""
