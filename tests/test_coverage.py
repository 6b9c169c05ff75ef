"""The coverage benchmark's own logic: what it selects, what it does with children that fail, and what it writes."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anytimeify import HierarchicalEnsemble, transform
from anytimeify.analysis.axes import analyse
from anytimeify.capture import capture
from anytimeify.passes.fusion.fuse_replicas import RULES
from benchmarks.coverage import __main__ as coverage
from benchmarks.coverage import children, ensembles, page, summaries
from benchmarks.coverage.selection import Backbone, backbones, read_list
from benchmarks.coverage.worker import held, measure

SCHEME = "nested-channels{widths=0.25,0.5,1}"
ENSEMBLE = "hierarchical-ensemble{depth=2}"
HERE = "tests.test_coverage"

# Backbones for the children.


def small() -> tuple[nn.Module, Any]:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.Flatten())
    return nn.Sequential(model, nn.Linear(32 * 16, 5)), (torch.randn(2, 3, 8, 8),)


class Steps(nn.Module):
    """Behind a stem, two recurrent layers, of which replicas cannot be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 5)
        self.one, self.two = (nn.LSTM(8, 8, batch_first=True) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.two(self.one(self.stem(x))[0])[0][:, -1])
        return result


def steps() -> tuple[nn.Module, Any]:
    return Steps(), (torch.randn(2, 4, 6),)


def hangs() -> tuple[nn.Module, Any]:
    time.sleep(600)
    raise AssertionError


def crashes() -> tuple[nn.Module, Any]:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def refuses() -> tuple[nn.Module, Any]:
    raise ValueError("no such weights\nsecond line")


def unmeasured(backbone: Backbone, scheme: str, *, seconds: float, threads: int) -> dict[str, Any]:
    """In place of the process of a backbone."""
    return {"backbone": backbone.name, "scheme": scheme, "verified": True, "seconds": seconds, "shares": [0.1, 0.3, 1]}


# Selection.


def test_a_list_may_hold_names_or_objects_and_puts_small_models_first(tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    large = {"model": "resnet50", "family": "resnet", "input_size": [3, 64, 64], "params": 25_000_000}
    file.write_text(json.dumps([large, {"model": "torchvision:alexnet", "params": 7}, "hf:bert"]))
    assert read_list(file) == [
        Backbone("hf:bert", listed="list"),
        Backbone("torchvision:alexnet", listed="list"),
        Backbone("timm:resnet50", (3, 64, 64), "resnet", "list"),
    ]


def test_the_further_members_are_others_of_the_same_families() -> None:
    one, further = (read_list(coverage.ROOT / "benchmarks" / f"{name}.json") for name in ("backbones", "members"))
    assert not {backbone.name for backbone in one} & {backbone.name for backbone in further}
    assert {backbone.family for backbone in further} <= {backbone.family for backbone in one}
    assert all(backbone.input_size for backbone in further)


def test_the_default_list_is_that_of_the_families_of_timm() -> None:
    rows = json.loads((coverage.ROOT / "benchmarks" / "backbones.json").read_text())
    assert (
        len(rows) == len({row["family"] for row in rows}) == len(read_list(coverage.ROOT / "benchmarks/backbones.json"))
    )
    assert all(row.keys() == {"family", "model", "input_size"} for row in rows)


def test_patterns_are_matched_against_the_names_behind_their_prefix(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def names(kinds: Sequence[str]) -> dict[str, list[str]]:
        asked.append(list(kinds))
        return {"timm": ["resnet18", "resnet50", "vgg11"], "hf": ["bert", "gpt2"]}

    file = tmp_path / "list.json"
    file.write_text('["resnet18"]')
    chosen = backbones([str(file), "timm:res*", "hf:b*", "hf:gpt2", "own.module:factory"], names)
    assert [one.name for one in chosen] == [
        "timm:resnet18", "timm:resnet50", "hf:bert", "hf:gpt2", "own.module:factory",
    ]  # fmt: skip
    assert asked == [["hf", "timm"]]
    with pytest.raises(ValueError, match=r"'timm:nothing\*' names no backbone"):
        backbones(["timm:nothing*"], names)
    with pytest.raises(ValueError, match=r"'resnet18': expected a \.json file, or one of timm:, torchvision:, hf:"):
        backbones(["resnet18"], names)


# Children.


def test_a_child_that_hangs_is_killed_with_what_it_started() -> None:
    script = "import subprocess, sys; print('busy', file=sys.stderr, flush=True); subprocess.run(['sleep', '60'])"
    start = time.monotonic()
    ended = children.run([sys.executable, "-c", script], 2.0)
    assert ended.timed_out
    assert ended.code == -signal.SIGKILL
    assert ended.last == "busy"
    assert ended.cpu_seconds < 2 <= ended.seconds
    assert time.monotonic() - start < 50  # the child's own child sleeps for longer


def test_a_child_tells_its_peak_memory_and_its_last_words() -> None:
    script = "import sys; x = bytearray(80 * 2**20); print('a', file=sys.stderr); sys.exit('the end')"
    ended = children.run([sys.executable, "-c", script], 60)
    assert not ended.timed_out
    assert ended.code == 1
    assert ended.last == "the end"
    assert ended.peak_mib > 80


@pytest.mark.parametrize(
    ("factory", "seconds", "why"),
    [
        pytest.param(
            "hangs", 3, r"^time limit of 3 s in step: (start|build), after \d+ s of CPU$", marks=pytest.mark.slow
        ),
        pytest.param("crashes", 300, r"the process ended with signal 11 in step: build", marks=pytest.mark.slow),
        ("refuses", 300, r"^ValueError: no such weights second line \(at test_coverage.py:\d+ in refuses\)$"),
    ],
)
def test_a_backbone_that_fails_says_why(factory: str, seconds: float, why: str) -> None:
    row = coverage.measure(Backbone(f"{HERE}:{factory}", family="own"), SCHEME, seconds=seconds, threads=1)
    assert not row["verified"]
    assert row["family"] == "own"
    assert re.search(why, row["why"]), row["why"]


def test_a_backbone_is_measured_step_by_step() -> None:
    row: dict[str, Any] = {}
    steps: list[str] = []

    def say(found: Any) -> None:
        steps.extend([found["step"]] if "step" in found else [])
        row.update(found)

    measure(say, f"{HERE}:small", SCHEME)
    assert row["verified"], row.get("why")
    assert steps == ["build", "export", "build", "capture", "analysis", "rewrite", "verify", "training step", "done"]
    assert row["exported"] == "train"
    assert row["macs"] == sorted(row["macs"])
    assert row["shares"][-1] == 1
    assert row["gradients"] == {"missing": 0, "not finite": 0, "zero": 0}
    assert row["without_rule"] == []
    assert all(row[f"{name}_seconds"] >= 0 for name in ("export", "analysis", "rest"))


@pytest.mark.slow
def test_an_ensemble_is_compared_with_its_unrolled_form() -> None:
    row: dict[str, Any] = {}
    steps: list[str] = []

    def say(found: Any) -> None:
        steps.extend([found["step"]] if "step" in found else [])
        row.update(found)

    measure(say, f"{HERE}:steps", ENSEMBLE)
    assert row["verified"], row.get("why")
    assert steps[-3:] == ["training step", "fused against unrolled", "done"]
    assert row["levels"] == ["1 leaf", "2 leaves", "4 leaves"]
    assert row["members"] == 4
    assert row["shares"][0] == row["parameter_shares"][0] == 1
    assert row["shares"][2] > row["shares"][1] > 1
    assert row["stream"] == 1
    assert "held" not in row
    ((name, count, part),) = row["unrolled"]
    assert (name, count) == ("aten.lstm.input", 2)
    assert 0 < part == pytest.approx(1 - row["fused"])
    assert row["fused_equals_unrolled"].keys() == {"precision", "outputs", "stream", "gradients"}
    assert row["fused_equals_unrolled"]["precision"] == "float64"
    assert max(row["fused_equals_unrolled"][name] for name in ("outputs", "stream", "gradients")) < 1e-12


def test_a_wrong_fusion_is_found_behind_a_gain_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.gain = nn.Linear(6, 8), nn.Linear(8, 8), nn.Parameter(torch.zeros(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            result: torch.Tensor = x + self.gain * self.body(x).relu()
            return result

    pointwise = RULES["pointwise"]

    def forgets(replicas: Any, node: Any) -> Any:
        return (
            replicas.values[node.args[0]] if node.target is torch.ops.aten.relu.default else pointwise(replicas, node)
        )

    monkeypatch.setitem(RULES, "pointwise", forgets)
    net = transform(Gated(), HierarchicalEnsemble(cuts=("stem",)), (torch.randn(2, 6),))  # a gain of zero hides it
    found: dict[str, Any] = {}
    with pytest.raises(AssertionError, match="fused and unrolled differ"):
        ensembles.assert_fused_equals_unrolled(found.update, net, 100)
    assert found["fused_equals_unrolled"]["outputs"] > 1e-3
    assert found["fused_equals_unrolled"]["stream"] == 0  # which is not fused


def test_what_holds_the_cost_is_the_pin_of_the_axis_that_stays() -> None:
    class Flipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(8, 16), nn.Linear(16, 64), nn.Linear(64, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.second(self.first(x).cumsum(1)))
            return result

    captured = capture(Flipped(), (torch.randn(2, 8),))
    found = held(captured, analyse(captured.program))
    total = 8 * 16 + 16 * 64 + 64 * 4
    assert found["pinned"] == 8 * 16 / total  # neither of its axes is narrowed
    shares = {operation: share for share, _, operation, *_ in found["held"]}
    above = (8 * 16 - 8 * 16 / 16) + (16 * 64 / 4 - 16 * 64 / 16)  # all of `first`, a quarter of `second`
    assert shares["aten.cumsum.default"] == pytest.approx(above / total)
    assert shares["output"] == pytest.approx((64 * 4 / 4 - 64 * 4 / 16) / total)


# Results and the page.


def test_resume_skips_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, out, file = tmp_path / "results.jsonl", tmp_path / "page.md", tmp_path / "list.json"
    file.write_text('["a", "b"]')
    called: list[str] = []

    def counted(backbone: Backbone, scheme: str, **limits: Any) -> dict[str, Any]:
        called.append(f"{backbone.name} {scheme}")
        return unmeasured(backbone, scheme, **limits)

    monkeypatch.setattr(coverage, "measure", counted)
    results.write_text(json.dumps({"backbone": "timm:a", "scheme": SCHEME, "verified": False}) + '\n{"backbone": "ti')
    options = ["--models", str(file), "--schemes", SCHEME, "--results", str(results), "--out", str(out)]
    assert coverage.main([*options, "--resume"]) == 0
    assert called == [f"timm:b {SCHEME}"]
    assert coverage.main([*options, "--resume", "--torch-pruning"]) == 0
    assert called[1:] == [f"timm:a {coverage.PRUNING}", f"timm:b {coverage.PRUNING}"]
    assert len(coverage.read_results(results)) == 4
    called.clear()
    assert coverage.main(options) == 0
    assert called == [f"timm:a {SCHEME}", f"timm:b {SCHEME}"]


def test_a_page_of_several_results_takes_the_last_row_of_a_backbone(tmp_path: Path) -> None:
    first, second, out = tmp_path / "1.jsonl", tmp_path / "2.jsonl", tmp_path / "page.md"
    old = {"backbone": "timm:a", "scheme": SCHEME, "verified": False, "why": "old"}
    first.write_text("".join(json.dumps(row) + "\n" for row in (old, rows()[0])))
    second.write_text(json.dumps(rows()[1]) + "\n")
    raw = tmp_path / "rows.json"
    assert coverage.main(["--page-of", str(first), str(second), "--out", str(out), "--json", str(raw)]) == 0
    assert json.loads(raw.read_text()) == [rows()[1], rows()[0]]


def test_the_suite_is_run_where_nothing_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "list.json"
    file.write_text('["a"]')
    monkeypatch.setattr(coverage, "SUITE", ((str(file), (SCHEME, ENSEMBLE), True), ("hf:bert", (SCHEME,), False)))
    monkeypatch.setattr(coverage, "measure", unmeasured)
    results = tmp_path / "results.jsonl"
    options = ["--results", str(results), "--out", str(tmp_path / "page.md"), "--torch-pruning"]
    assert coverage.main(options) == 0
    assert [(row["backbone"], row["scheme"]) for row in coverage.read_results(results)] == [
        *(("timm:a", scheme) for scheme in (SCHEME, ENSEMBLE, coverage.PRUNING)),
        ("hf:bert", SCHEME),
    ]


def test_a_wrong_name_is_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert coverage.main(["--models", "resnet18", "--results", str(tmp_path / "r.jsonl")]) == 2
    assert "'resnet18'" in capsys.readouterr().err
    assert not (tmp_path / "r.jsonl").exists()


def rows() -> list[dict[str, Any]]:
    good = {"scheme": SCHEME, "revision": "abc", "verified": True, "analysis_seconds": 0.1, "shares": [0.1, 0.3, 1.0]}
    late = "time limit of 60 s in step: prune"
    return [
        {**good, "backbone": "timm:b"},
        {**good, "backbone": "timm:a", "revision": "abd+", "analysis_seconds": 0.3, "shares": [0.5, 0.6, 1.0]},
        {"backbone": "timm:c", "scheme": SCHEME, "verified": False, "why": "CaptureError: two|three\nlines"},
        {"backbone": "timm:a", "scheme": coverage.PRUNING, "verified": True, "shares": [0.25]},
        {"backbone": "timm:b", "scheme": coverage.PRUNING, "verified": False, "why": late},
        {**good, "backbone": "hf:bert"},
    ]


def test_the_page_summarises_every_source_and_scheme(tmp_path: Path) -> None:
    file = tmp_path / "docs" / "coverage.md"
    page.write(rows(), file, coverage.PRUNING, "Measured on a Monday.")
    text = file.read_text()
    assert "\n\nMeasured on a Monday.\n\n## Summary" in text
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        "| backbones | scheme | verified | MACs | analysis s: median, worst | revision |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| timm | `{SCHEME}` | 2 of 3 | cheapest level: median 0.300, below 0.20 for 50 % | 0.20, 0.30 | abc, abd+ |",
        f"| timm | `{coverage.PRUNING}` | 1 of 2 | not finished in time: 1 | - | - |",
        f"| transformers, tiny configurations | `{SCHEME}` | 1 of 1 "
        "| cheapest level: median 0.100, below 0.20 for 100 % | 0.10, 0.10 | abc |",
        "| backbones | backbone | scheme | why |",
        "| --- | --- | --- | --- |",
        f"| timm | timm:c | `{SCHEME}` | CaptureError: two\\|three lines |",
    ]
    assert text.endswith("**timm** (3): a, b, c\n\n**transformers, tiny configurations** (1): bert\n")
    assert page.summaries(rows(), coverage.PRUNING)[1] == (
        f"timm | `{coverage.PRUNING}` | 1 of 2 | not finished in time: 1 | - | -"
    )
    assert sorted(path.name for path in file.parent.iterdir()) == ["coverage.md"]


def test_the_summary_depends_on_the_scheme(tmp_path: Path) -> None:
    common = {"verified": True, "backbone": "timm:a"}
    ensemble = {**common, "scheme": ENSEMBLE, "shares": [1.0, 1.5, 2.5], "fused": 1.0}
    other = {**ensemble, "backbone": "timm:b", "shares": [1.0, 1.5, 2.75], "fused": 0.5}
    failed = {"scheme": ENSEMBLE, "backbone": "timm:c", "verified": False, "why": "no cut"}
    triangle = {**common, "scheme": coverage.TRIANGULAR, "once": 0.72, "stream": 0.86}
    exits = {**common, "scheme": "exits{at=2}", "shares": [0.5, 1.0]}
    file = tmp_path / "coverage.md"
    page.write([ensemble, other, failed, triangle, exits], file, coverage.PRUNING)
    text = file.read_text()
    assert text.count("* **hierarchical-ensemble**") == text.count("* **connectivity=triangular**") == 1
    assert "Torch-Pruning" not in text
    costs = [line.split(" | ")[3] for line in text.splitlines() if line.startswith("| timm | `")]
    assert costs == [
        "all leaves: median 2.62 of the backbone; fused share: median 75.0 %, everything for 1",
        "one pass for all levels: median 0.72 of the backbone; streams: at most 0.860 of the full level",
        "most expensive level over cheapest: median 2.00",
    ]


def test_a_scheme_is_summarised_by_its_name() -> None:
    assert summaries.kind_of(SCHEME) is summaries.kind_of("nested-channels") is summaries.WIDTHS
    assert summaries.kind_of(ENSEMBLE) is summaries.LEAVES
    assert summaries.kind_of(coverage.TRIANGULAR) is summaries.TRIANGLES
    assert summaries.kind_of("other") == summaries.Kind()
