"""The page of what the experiments show: from results alone, and of whole seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anytimeify.papers.experiments import experiment_names
from benchmarks.evidence import page
from benchmarks.evidence.plan import experiments_of, papers

pytest.importorskip("matplotlib")
pytest.importorskip("mlxtend")

LEVELS = ("branch at layer1", "branch at layer2", "full")


def line(network: str, seed: int, accuracies: tuple[float, ...]) -> dict[str, Any]:
    names = LEVELS[-len(accuracies) :]
    levels = [
        {"level": name, "macs": 10 * place, "params": place, "accuracy": accuracy}
        for place, (name, accuracy) in enumerate(zip(names, accuracies, strict=True), 1)
    ]
    return {"network": network, "seed": seed, "alone": len(names) == 1, "levels": levels, "values": {}, "seconds": 1}


def write(folder: Path, *lines: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (folder / "times.jsonl").write_text(json.dumps({"seeds": 1, "wall": 200.0, "processor": 120.0}) + "\n")


def test_every_experiment_is_in_the_plan() -> None:
    found = [one for paper in papers() for one in experiments_of(paper)]
    assert sorted(one.study.name for one in found) == sorted(experiment_names())
    assert all(one.setting.small for one in found)


def test_no_page_of_nothing(tmp_path: Path) -> None:
    page.write(tmp_path / "out", tmp_path / "docs" / "evidence.md")
    assert list(tmp_path.iterdir()) == []


def test_the_page(tmp_path: Path) -> None:
    """A seed that one network lacks is left out."""
    mimicking = [line("mimicking", seed, (60.0, 70.0, 80.0 + seed)) for seed in range(3)]
    supervised = [line("deep supervision", seed, (60.0, 70.0, 81.0 + seed)) for seed in range(3)]
    drawn = [line("Bernoulli", seed, (60.0, 70.0, 75.0 + seed)) for seed in range(2)]
    alone = [line("backbone alone", seed, (11.0,)) for seed in range(3)]
    write(tmp_path / "out" / "dhm-d", *alone, *mimicking, *supervised, *drawn)
    page.write(tmp_path / "out", tmp_path / "docs" / "evidence.md")
    text = (tmp_path / "docs" / "evidence.md").read_text()
    assert "1 experiment with 2 seeds took 2 minutes" in text
    assert "| [dhm/d](#dhmd) |" in text
    assert "| does not show | 2 |" in text
    assert "    anytimeify papers dhm/d --data mnist5k:train=1000 --seeds 2 --out DIR" in text
    assert "* backbone, Bernoulli over deep supervision: -6.00 ± 0.00 points, so in 0 of 2 seeds: does not show" in text
    assert "Hardly learnt at all: backbone alone (full); chance is 10.0 %." in text
    assert "| deep supervision | full | 30 | 3 | 81.50 ± 0.71 |" in text
    image = tmp_path / "docs" / "images" / "evidence" / "dhm-d.png"
    assert image.read_bytes().startswith(b"\x89PNG")
    assert image.stat().st_size < 40_000
