"""Experiments: what is run, what is not run again, what is written, and whether a claim shows."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeError, cli
from anytimeify.cli.commands import papers as papers_command
from anytimeify.errors import ArgumentValueError, ArtifactError, MissingExtraError
from anytimeify.ir import Outputs
from anytimeify.papers import experiment, experiment_names, experiments, recipe
from anytimeify.papers.experiments import Contender, Experiment, Setting, Study, running
from anytimeify.papers.experiments.dhm import _correlation, _wrong
from anytimeify.papers.experiments.findings import Comparison, Finding, find
from anytimeify.papers.experiments.nestednet import _coarse
from anytimeify.papers.experiments.recipes import levels_alone, printed
from anytimeify.papers.experiments.results import Results
from anytimeify.papers.experiments.shared import Shared
from anytimeify.papers.networks import PreActivationResNet, WideResNet
from anytimeify.passes.schemes.nested_channels import NestedChannels
from anytimeify.train import Held, OneAfterTheOther, Training
from tests.papers.tiny_data import images
from tests.result_lines import begun, lines

pytest.importorskip("matplotlib")

DATA = "tests.papers.tiny_data:images"


def contenders(setting: Setting) -> list[Contender]:
    make = partial(
        printed, setting, "nestednet/wrn-14-4", partial(PreActivationResNet, depth=8), NestedChannels((0.25, 1.0))
    )
    return [Contender("nested", make), *levels_alone(make, {0: "core alone"})]


def comparisons(results: Results) -> Iterator[Comparison]:
    yield Comparison("core, nested over alone", ("nested", 0), ("core alone", 0))


STUDY = Study("tests/figure", "a figure", "nobody", "Nesting helps.", contenders, comparisons)
TINY = Experiment(STUDY, Setting(DATA, epochs=1))


def run(folder: Path, seeds: Any = 1, tried: Experiment = TINY) -> Any:
    return tried.run(folder, seeds, limit_batches=1)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one seed."""
    folder = tmp_path_factory.mktemp("experiment")
    run(folder)
    return folder


@pytest.fixture
def copied(once: Path, tmp_path: Path) -> Path:
    return begun(tmp_path, as_in=once)


def test_what_is_written(once: Path) -> None:
    assert {path.name for path in once.iterdir()} == {"results.jsonl", "table.md", "table.jsonl", "figure.png"}
    first, second = lines(once)
    assert [(one["network"], one["seed"], one["alone"]) for one in (first, second)] == [
        ("nested", 0, False),
        ("core alone", 0, True),
    ]
    assert [level["level"] for level in first["levels"]] == ["width 0.25", "width 1"]
    assert first["levels"][0]["macs"] == second["levels"][0]["macs"]
    rows = [json.loads(line) for line in (once / "table.jsonl").read_text().splitlines()]
    assert [(row["network"], row["level"], row["seeds"]) for row in rows] == [
        ("nested", "width 0.25", 1),
        ("nested", "width 1", 1),
        ("core alone", "width 1", 1),
    ]
    page = (once / "table.md").read_text()
    assert f"`anytimeify papers tests/figure --data {DATA} --seeds 1 --epochs 1 --limit-batches 1 --out DIR`" in page
    assert "**Claim:** Nesting helps." in page
    assert "**Finding:** The claim is not decided here. core, nested over alone:" in page  # by one seed
    assert (once / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("place", ["file", "file/folder"])
def test_a_folder_that_cannot_be_made(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(running, "fit", None)
    with pytest.raises(ArtifactError, match=f"{place}' cannot be made: "):
        run(tmp_path / place)


def test_without_matplotlib_nothing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "fit", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="The figure of an experiment needs the package 'matplotlib'"):
        run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_trained_again(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = lines(copied)
    monkeypatch.setattr(running, "fit", None)
    assert run(copied).results.lines == tuple(before)
    assert lines(copied) == before


def test_experiments_share_what_they_both_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another experiment with the same networks trains none of them."""
    shared = tmp_path / "networks"
    first = TINY.run(tmp_path / "one", 1, limit_batches=1, shared=shared)
    assert len(list(shared.iterdir())) == 2
    monkeypatch.setattr(running, "fit", None)
    again = Experiment(replace(STUDY, name="tests/again"), TINY.setting).run(
        tmp_path / "two", 1, limit_batches=1, shared=shared
    )
    assert [line["levels"] for line in again.results.lines] == [line["levels"] for line in first.results.lines]
    with pytest.raises(TypeError):  # the other seed is trained
        TINY.run(tmp_path / "one", 2, limit_batches=1, shared=shared)
    changed = replace(TINY.contenders[0], data=lambda data, seed: data)
    other = replace(STUDY, contenders=lambda setting: [changed, *contenders(setting)[1:]])
    with pytest.raises(TypeError):  # nor are networks shared whose data are changed
        Experiment(other, TINY.setting).run(tmp_path / "three", 1, limit_batches=1, shared=shared)


def test_what_makes_a_network_another_one() -> None:
    """Each of what it was trained from, dropout too, which no weight tells."""
    shared = Shared(Path("networks"))
    made = recipe("nestednet/wrn-14-4")
    made = replace(made, example_inputs=(torch.randn(2, 3, 8, 8),), backbone=PreActivationResNet(4, depth=8))

    def path(changed: Any = made, training: Training = made.training, data: str = "images", seed: int = 0) -> Path:
        torch.manual_seed(seed)
        wide = WideResNet(4, depth=10, widening=1, dropout=0.3 if changed == "dropout" else 0.0)
        chosen = made if changed is made else replace(made, backbone=wide)
        return shared.path(chosen.build(verify=False), training, data, None)

    others = [
        path(data="others"),
        path(training=replace(made.training, seed=1)),
        path("plain"),
        path("plain", seed=1),
        path("dropout"),
    ]
    assert path() == path()
    assert len({path(), *others}) == 6


def test_what_is_missing_is_added(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was stopped while it wrote a line loses this line alone, and a seed more adds its own."""
    whole = lines(copied)
    path = copied / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    trained: list[str] = []

    def fake(contender: Contender, _: Any, seed: int, *rest: Any) -> dict[str, Any]:
        trained.append(f"{contender.name} {seed}")
        return {**whole[1], "network": contender.name, "seed": seed}

    monkeypatch.setattr(running, "_trained", fake)
    described = {name: whole[0][name] for name in ("experiment", "data", "scale", "epochs", "limit_batches")}
    found = running.run(TINY.contenders, TINY.setting.loaded, described, copied, (0, 1), trained.append, limit=1)
    assert [one for one in trained if "," not in one] == ["core alone 0", "nested 1", "core alone 1"]
    assert [(line["network"], line["seed"]) for line in found.lines] == [
        ("nested", 0),
        ("nested", 1),
        ("core alone", 0),
        ("core alone", 1),
    ]
    assert lines(copied)[:2] == whole


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (replace(TINY, setting=Setting(DATA, epochs=2)), "their epochs is 1, and now it is 2"),
        (replace(TINY, study=replace(STUDY, name="tests/other")), "their experiment is 'tests/figure'"),
    ],
)
def test_results_of_something_else_are_refused(copied: Path, other: Experiment, says: str) -> None:
    with pytest.raises(ArtifactError, match=says):
        run(copied, 1, other)


def test_damaged_results_are_refused(copied: Path) -> None:
    (copied / "results.jsonl").write_text("{]\n")
    with pytest.raises(ArtifactError, match=r"results\.jsonl is damaged"):
        run(copied)


# Findings.


@pytest.mark.parametrize(
    ("differences", "margin", "shows"),
    [
        ((1.0, 1.2, 0.9), 0.0, True),
        ((-1.0, -1.2, -0.9), 0.0, False),
        ((-0.4, -0.5, -0.3), -1.0, True),  # as good as
        ((1.0, 1.2, 0.9), 2.0, False),
        ((3.0, -2.0, 0.5), 0.0, None),
        ((5.0,), 0.0, None),  # one seed
    ],
)
def test_whether_a_comparison_shows(differences: tuple[float, ...], margin: float, shows: bool | None) -> None:
    comparison = Comparison("a over b", ("a", 0), ("b", 0), margin)
    assert Finding(comparison, differences).shows is shows


def results_of(**networks: tuple[float, ...]) -> Results:
    return Results(
        tuple(
            {
                "network": name,
                "seed": seed,
                "alone": False,
                "levels": [{"level": "full", "macs": 1, "params": 1, "accuracy": accuracy}],
                "values": {"spread": accuracy / 10},
            }
            for name, accuracies in networks.items()
            for seed, accuracy in enumerate(accuracies)
        )
    )


def test_one_comparison_that_fails_is_enough() -> None:
    results = results_of(a=(90.0, 91.0, 90.5), b=(80.0, 80.5, 81.0), c=(99.0, 98.0, 98.5))
    over = [Comparison(f"a over {name}", ("a", "full"), (name, 0)) for name in ("b", "c")]
    shows, sentence, findings = find(results, over)
    assert shows is False
    assert sentence.startswith(
        "The claim does not show here. a over b: +10.00 ± 0.50 points, so in 3 of 3 seeds (shows)"
    )
    assert [finding.shows for finding in findings] == [True, False]
    assert find(results, over[:1])[0] is True
    spread = Comparison("spread", ("a", "spread"), ("b", "spread"), unit="")
    assert find(results, [spread])[2][0].differences == pytest.approx((1.0, 1.05, 0.95))


def test_means_and_deviations() -> None:
    row, _ = results_of(a=(90.0, 92.0), b=(1.0,)).rows()
    assert (row.mean, row.deviation) == pytest.approx((91.0, math.sqrt(2)))
    (only,) = results_of(b=(1.0,)).rows()
    assert math.isnan(only.deviation)


# Settings.


def test_trainings_are_printed_or_short() -> None:
    """At the paper's scale as printed; small ones have the same order and phases, and few epochs at a low rate."""
    thin = recipe("anytime/i-resnext-29").training
    assert Setting("cifar10:nowhere").training(thin) is thin
    assert not Setting("cifar10:nowhere").small
    assert Setting("cifar10:nowhere", "small").small
    shortened = Setting("cifar10:nowhere", epochs=30).training(thin)
    assert (shortened.epochs, shortened.schedule.milestones) == (30, (15, 22.5))
    small = Setting(DATA).training(thin, rate=0.02)
    assert small.order == OneAfterTheOther(update="accumulate")
    assert (small.epochs, small.optimiser.learning_rate, small.optimiser.nesterov) == (15, 0.02, True)
    assert small.learning_rate(0) < small.learning_rate(2)
    assert small.learning_rate(14.9) < 0.001
    assert isinstance(small, Training)


def test_images_and_labels_of_a_setting() -> None:
    setting = Setting(DATA)
    assert (setting.shape, setting.classes) == ((3, 8, 8), 4)
    assert setting.taxonomy.parents[0] == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"scale": "tiny"}, "scale is 'tiny'"), ({"epochs": 0}, "epochs is 0: expected a whole number")],
)
def test_settings_that_are_none(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ArgumentValueError, match=says):
        experiment("hne/table-1", DATA, **options)


# Those of the papers.


def test_every_figure_has_an_entry() -> None:
    wanted = {
        "nestednet": "figure-1 figure-2 compression consensus",
        "hne": "table-1 figure-4 figure-5 figure-6 figure-9",
        "dhm": "d e f h",
        "dcm": "mutual q heads",
        "anytime": "figure-3a figure-3b figure-3c figure-4 figure-5",
    }
    names = {f"{paper}/{figure}" for paper, figures in wanted.items() for figure in figures.split()}
    assert names <= set(experiment_names())
    with pytest.raises(AnytimeError, match="did you mean hne/figure-5"):
        experiment("hne/figur-5")


@pytest.mark.parametrize("study", experiments(), ids=lambda study: study.name)
def test_networks_alone_stand_in_every_figure(study: Study) -> None:
    for scale in ("small", "paper"):
        found = study.contenders(Setting(DATA, scale))
        assert any(contender.alone for contender in found)
        assert max(Counter(contender.name for contender in found).values()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_runs(name: str, tmp_path: Path) -> None:
    """Every network is made, trained for a step and evaluated; what is compared is there."""
    tried = experiment(name, DATA, epochs=1)
    report = tried.run(tmp_path, 1, limit_batches=1)
    assert report.shows is None
    assert all(finding.differences for finding in report.findings)
    assert report.results.networks == tuple(contender.name for contender in tried.contenders)


def test_wrong_labels() -> None:
    """Drawn anew with every seed, for the training samples alone."""
    data = images()
    changed = [_wrong(0.5, data, seed).train.take(torch.arange(128))[1] for seed in (0, 0, 1)]
    assert torch.equal(changed[0], changed[1])
    assert not torch.equal(changed[0], changed[2])
    share = float((changed[0] != torch.arange(128) % 4).float().mean())
    assert 0.25 < share < 0.5  # a quarter of what is drawn is right
    assert _wrong(0.5, data, 0).test is data.test


def test_coarse_labels() -> None:
    changed = _coarse(Setting(DATA), images(), 0)
    assert changed.classes == ("0", "1")
    assert changed.train.take(torch.arange(4))[1].tolist() == [0, 0, 1, 1]


class Twice(nn.Module):
    """Two levels that are the same, and one that reads other pixels."""

    levels = (SimpleNamespace(name="a"), SimpleNamespace(name="branch at b"), SimpleNamespace(name="c"))

    def forward(self, x: Tensor) -> Outputs:
        top, bottom = x[:, :, :4].flatten(1)[:, :4], x[:, :, 4:].flatten(1)[:, :4]
        return Outputs((top, top, bottom))


def test_measures_see_all_classes() -> None:
    """Test samples that are sorted by class, more than are looked at."""
    made = contenders(TINY.setting)[0].make()
    labels = torch.arange(4).repeat_interleave(600)
    data = replace(images(), test=Held(torch.zeros(2400, 1, 8, 8, dtype=torch.uint8), labels))
    inputs, seen = running._samples(made.build(verify=False), data, made.training)
    assert inputs.shape == (800, 3, 8, 8)
    assert seen.bincount().tolist() == [200] * 4


def test_correlation_of_gradients() -> None:
    x, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    found = _correlation(Twice(), x, labels)  # type: ignore[arg-type]  # it has what is read
    assert found["a and b"] == pytest.approx(1.0)
    assert found["a and c"] == pytest.approx(0.0, abs=0.1)
    assert found["all pairs"] == pytest.approx((found["a and b"] + found["a and c"] + found["b and c"]) / 3)


# The command.


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(["papers", *arguments])
    return caught.value.code, capsys.readouterr().err


def test_the_command_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, said = refused(capsys, "hne/figure-7", "--out", str(tmp_path))
    assert status == 1
    assert "'hne/figure-7' is no experiment of the papers; did you mean" in said
    assert refused(capsys, "hne/figure-5")[0] == 2
    assert refused(capsys, "hne/figure-5", "--scale", "tiny", "--out", str(tmp_path))[0] == 2


def test_the_command_goes_on_with_a_run(
    capsys: pytest.CaptureFixture[str], copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(papers_command, "experiment", lambda *_, **__: TINY)
    with pytest.raises(SystemExit) as caught:
        cli.main(["papers", "tests/figure", "--out", str(copied), "--seeds", "1", "--limit-batches", "1"])
    out, _ = capsys.readouterr()
    assert caught.value.code == 0
    assert "| nested | width 0.25 |" in out
    assert "The claim is not decided here." in out
