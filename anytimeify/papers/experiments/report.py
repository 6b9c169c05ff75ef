"""What an experiment writes: the table as Markdown and as lines of JSON, the figure, and the finding in a sentence."""

from __future__ import annotations

import json
import math
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from anytimeify.io.files import replaced_file
from anytimeify.papers.experiments.figures import Form, draw
from anytimeify.papers.experiments.findings import Finding, find
from anytimeify.papers.experiments.results import Results, Row
from anytimeify.papers.experiments.setting import Setting
from anytimeify.papers.experiments.study import Study

__all__ = ["Report", "name_of", "number", "write", "write_files"]


@dataclass(frozen=True)
class Report:
    """What came of an experiment.

    Fields
        results: of every seed and network.
        shows: whether the claim does; None where that is not decided.
        sentence: the same in words.
        findings: what the sentence is made of.
        table: Markdown, with means and standard deviations over seeds.
        out: the folder, with `results.jsonl`, `table.md`, `table.jsonl` and `figure.png`.
    """

    results: Results
    shows: bool | None
    sentence: str
    findings: tuple[Finding, ...]
    table: str
    out: Path


def write(
    study: Study, setting: Setting, results: Results, out: str | os.PathLike[str], limit: int | None = None
) -> Report:
    """Writes table, figure and finding into the folder. `limit`: of batches in an epoch."""
    shows, sentence, findings = find(results, study.comparisons(results))
    table = _table(results, study.measured)
    page = _page(study, setting, results, table, sentence, limit)
    write_files(results, page, study.form, study.name, study.measured, Path(out))
    return Report(results, shows, sentence, tuple(findings), table, Path(out))


def write_files(results: Results, page: str, form: Form, title: str, measured: str, folder: Path) -> None:
    """`table.md`, which is the page, `table.jsonl` and `figure.png`."""
    _text(folder / "table.md", page)
    rows = [*((row, "accuracy") for row in results.rows()), *((row, "measured") for row in results.measured())]
    _text(folder / "table.jsonl", "".join(json.dumps(_as_json(row, what)) + "\n" for row, what in rows))
    with replaced_file(folder / "figure.png") as file:
        draw(results, form, title, measured, file)


def _page(study: Study, setting: Setting, results: Results, table: str, sentence: str, limit: int | None) -> str:
    options = [
        ("data", setting.data),
        ("seeds", len(results.seeds)),
        ("scale", setting.scale if setting.scale != "auto" else None),
        ("epochs", setting.epochs),
        ("limit-batches", limit),
        ("out", "DIR"),
    ]
    words = [word for name, value in options if value is not None for word in (f"--{name}", str(value))]
    command = shlex.join(["anytimeify", "papers", study.name, *words])
    seeds = ", ".join(map(str, results.seeds))
    return (
        f"# {study.about}\n\n{study.source}. `{command}`; seeds {seeds}, "
        f"{'small' if setting.small else 'the paper' + chr(39) + 's'} networks and trainings.\n\n"
        f"**Claim:** {study.claim}\n\n**Finding:** {sentence}\n\n{table}\n\n![{study.name}](figure.png)\n"
    )


def _table(results: Results, measured: str) -> str:
    """Accuracies in percent, and under them what was measured besides."""
    lines = ["| network | level | MACs | parameters | accuracy, % |", "|---|---|--:|--:|--:|"]
    for row in results.rows():
        lines.append(f"| {name_of(row)} | {row.level} | {row.macs:,} | {row.params:,} | {number(row)} |")
    others = list(results.measured())
    if others:
        lines += ["", f"| network | {measured} | mean |", "|---|---|--:|"]
        lines += [f"| {name_of(row)} | {row.level} | {number(row, 3)} |" for row in others]
    return "\n".join(lines)


def name_of(row: Row) -> str:
    """The network, and whether it is trained alone."""
    return f"{row.network} (alone)" if row.alone and "alone" not in row.network else row.network


def number(row: Row, digits: int = 2) -> str:
    """The mean, with the standard deviation over seeds where there are several."""
    spread = "" if math.isnan(row.deviation) else f" ± {row.deviation:.{digits}f}"
    return f"{row.mean:.{digits}f}{spread}"


def _as_json(row: Row, what: str) -> dict[str, object]:
    spread = None if math.isnan(row.deviation) else row.deviation
    return {
        "network": row.network,
        "level": row.level,
        "alone": row.alone,
        "macs": row.macs,
        "params": row.params,
        "what": what,
        "mean": row.mean,
        "deviation": spread,
        "seeds": len(row.values),
    }


def _text(path: Path, text: str) -> None:
    with replaced_file(path) as file:
        file.write_text(text, encoding="utf-8")
