"""What users type and files hold as text: spec strings of schemes, `where` patterns, budgets, and taxonomies."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from anytimeify import Budget, Taxonomy, parse_scheme
from anytimeify.analysis.axes import Axes, analyse
from anytimeify.capture import capture
from anytimeify.ir import Captured
from tests.backbones import Residual, images
from tests.fuzz.loader import Case, Loader, Results
from tests.fuzz.mutations import CANARY, mutate_json, mutate_text

__all__ = ["LOADER"]

SPECS = (
    "nested-channels{widths=0.25,0.5,1}",
    "nested-channels{widths=0.5,1 where=stem,layer1.*.conv connectivity=dense norms=shared heads=shared}",
    "nested-channels{widths=0.5,1 connectivity=triangular multiple_of=2}",
    "nested-weights{densities=0.1,0.3,1 scope=global}",
    "nested-depth{depths=0.5,1} nested-channels{widths=0.5,1}",
    "hierarchical-ensemble{depth=2 fuse=false init=copy}",
    "hierarchical-ensemble{splits=((conv,3),) sizes=all}",
    "auxiliary-branches{branches=((conv,2,0.5),) heads=pool}",
    "mutual-distillation{branches=1}",
)
BUDGETS = ("macs=5e8,params=2e6", "latency_ms=12,device=cpu,batch_size=4", "level=-1", "memory_bytes=1e9")
DATA: dict[str, Any] = {"granularities": ["fine", "coarse"], "parents": [[0, 0, 1, 1, 1]], "heads": None, "serve": None}
DATA |= {"classes": [["a", "b", "c", "d", "e"], ["x", "y"]], "heads": [["fine", "coarse"]], "serve": ["coarse"]}
TREE = {"animal": {"pet": ["cat", "dog"], "wild": ["fox"]}, "thing": {"big": ["car"], "small": ["cup", "pen"]}}
ROWS = "fine,coarse\ncat,animal\ndog,animal\ncar,thing\n"
TOKENS = (
    *(
        "where=",
        "widths=",
        "depths=",
        "splits=",
        "cuts=",
        "depth=",
        "branches=",
        "(",
        ")",
        "{",
        "}",
        ",",
        "none",
        "true",
    ),
    *("*", "**", "?", "[", "[!", "(?:a+)+$", "conv", "nested-depth{depths=0.5,1}", "1e400", "inf", "nan", "1" * 5000),
)


@cache
def _backbone() -> tuple[Captured, Axes]:
    captured = capture(Residual(), images())
    return captured, analyse(captured.program)


def _scheme(text: str) -> str:
    """Reads a spec string, writes and reads it again, and applies it."""
    scheme = parse_scheme(text)
    assert parse_scheme(str(scheme)) == scheme, f"{text!r} is written as {scheme}, which is another"
    captured, axes = _backbone()
    if scheme.backbones == 1:
        scheme.apply(scheme.prepare(captured, axes), axes)
    return str(scheme)


def _budget(text: str) -> str:
    budget = Budget.parse(text)
    assert Budget.parse(str(budget)) == budget
    return str(budget)


VERBS: dict[str, Callable[[Path], str]] = {
    ".scheme": lambda path: _scheme(_text(path)),
    ".budget": lambda path: _budget(_text(path)),
    ".json": lambda path: str(Taxonomy.load(path)),
    ".csv": lambda path: str(Taxonomy.load(path)),
}


def _text(path: Path) -> str:
    return path.read_text("utf-8", "surrogatepass")


def _make(folder: Path) -> None:
    _backbone()
    for index, text in enumerate(SPECS[:4]):
        (folder / f"{index}.scheme").write_text(text)
    for index, text in enumerate(BUDGETS):
        (folder / f"{index}.budget").write_text(text)
    (folder / "data.json").write_text(json.dumps(DATA))
    (folder / "tree.json").write_text(json.dumps(TREE))
    (folder / "rows.csv").write_text(ROWS)


def _mutate(random: Random, originals: Path, folder: Path) -> Case:
    suffix = random.choice((".scheme", ".scheme", ".scheme", ".budget", ".json", ".json", ".csv"))
    name = random.choice(sorted(path.name for path in originals.glob(f"*{suffix}")))
    text = random.choice(SPECS) if suffix == ".scheme" else (originals / name).read_text()
    target = folder / f"case{suffix}"
    if suffix == ".json" and random.random() < 0.7:
        document = json.loads(text)
        what = "; ".join(mutate_json(random, document) for _ in range(random.choice((1, 1, 2))))
        text = json.dumps(document)
    else:
        for _ in range(random.choice((1, 1, 2, 3))):
            text = mutate_text(random, text, TOKENS)
        what = text[:200]
    target.write_bytes(text.encode("utf-8", "surrogatepass"))
    return Case(target, name, what, sealed=True)


def _load(path: Path) -> str:
    return VERBS[path.suffix](path)


def _results(found: str) -> Results:
    return {"text": found}


def crafted(suffix: str, text: str) -> Callable[..., Case]:
    """A text that was written by hand."""

    def craft(originals: Path, folder: Path) -> Case:
        path = folder / f"case{suffix}"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        return Case(path, next(originals.glob(f"*{suffix}")).name, text[:100], sealed=True)

    return craft


LOADER = Loader(
    "text",
    _make,
    _mutate,
    _load,
    _results,
    {
        "an endless number": crafted(".scheme", "nested-channels{widths=" + "9" * 5000 + ",1}"),
        "deep brackets": crafted(".scheme", "hierarchical-ensemble{splits=" + "(" * 5000 + ")" * 5000 + "}"),
        "a billion leaves": crafted(".scheme", "hierarchical-ensemble{splits=((stem,1000000000),)}"),
        "a million forks": crafted(".scheme", "hierarchical-ensemble{depth=1000000}"),
        "a pattern that backtracks": crafted(".scheme", "nested-channels{where=" + "*a" * 40 + "b}"),
        "code as a pattern": crafted(".scheme", f"nested-channels{{where={CANARY}}}"),
        "an infinite level": crafted(".budget", "level=1e999"),
        "infinitely many classes": crafted(".json", '{"granularities": ["a", "b"], "parents": [[1e999, 0]]}'),
        "classes without end": crafted(".json", '{"parents": [[0, 1000000000]]}'),
        "deep trees": crafted(".json", '{"a": ' * 3000 + '["b"]' + "}" * 3000),
        "no text": crafted(".csv", "\0\ud800"),
    },
)
