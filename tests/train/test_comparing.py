"""`compare`: what is trained, for how long, what is written, and what is not trained again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, Budget, cli, transform
from anytimeify.errors import ArgumentValueError, ArtifactError, SchemeError
from anytimeify.papers.experiments import running
from anytimeify.papers.experiments.results import Results
from anytimeify.train import comparing
from anytimeify.train.comparing import compare
from anytimeify.train.data import open_data
from anytimeify.train.orders import OneAfterTheOther
from anytimeify.train.start import DEFAULT, Start, changed, changes
from tests.result_lines import begun, lines

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")
pytestmark = [
    # torchmetrics, about packages that it imports
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

DATA = "tests.papers.tiny_data:images"
SOURCE = "tests.train.test_comparing:small"
CHANNELS, WEIGHTS = "nested-channels{widths=0.5,1}", "nested-weights{densities=0.5,1}"
ENSEMBLE = "hierarchical-ensemble{depth=1}"


class Small(nn.Module):
    """Of ten classes; the data have four."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn, self.conv2 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv2(torch.relu(self.bn(self.conv1(x)))).relu().mean((2, 3)))
        return logits


def small() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Small(), (torch.randn(2, 1, 8, 8),)


@pytest.fixture(scope="module", autouse=True)
def short_measurements() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "_milliseconds", partial(comparing._milliseconds, seconds=0.01))
        yield


def run(out: Path, schemes: tuple[str, ...] = (CHANNELS, WEIGHTS), **options: Any) -> comparing.Compared:
    return compare(SOURCE, DATA, schemes, out=out, **{"epochs": 1, "seeds": 1, "limit_batches": 1, **options})


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one seed."""
    folder = tmp_path_factory.mktemp("compared")
    run(folder)
    return folder


@pytest.fixture
def copied(once: Path, tmp_path: Path) -> Path:
    return begun(tmp_path, as_in=once)


def test_what_is_trained_and_written(once: Path) -> None:
    """Each scheme once, and every width by itself, which costs what the level does."""
    assert {path.name for path in once.iterdir()} == {"results.jsonl", "table.md", "table.jsonl", "figure.png"}
    found = lines(once)
    assert [(line["network"], line["alone"]) for line in found] == [
        (CHANNELS, False),
        (WEIGHTS, False),
        ("width 0.5 alone", True),
        ("width 1 alone", True),
    ]
    nested, _, half, whole = found
    assert [level["macs"] for level in nested["levels"]] == [half["levels"][0]["macs"], whole["levels"][0]["macs"]]
    assert all(line["values"].keys() == {level["level"] for level in line["levels"]} for line in found)
    assert all(took > 0 for line in found for took in line["values"].values())
    page = (once / "table.md").read_text()
    assert "| MACs | milliseconds, batch of 1, torch | parameters | epochs |" in page
    assert f"--scheme '{CHANNELS}' --scheme '{WEIGHTS}' --alone first" in page
    assert f"{CHANNELS}: 0 of 2 levels are above" in page  # one seed decides nothing
    assert (once / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_there_is_not_trained_again(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other trainings and measurements are refused."""
    before = lines(copied)
    monkeypatch.setattr(running, "fit", None)
    assert run(copied).results.lines == tuple(before)
    with pytest.raises(ArtifactError, match=r"their training\.schedule\.warm_up is 0\.1, and now it is 0\.2"):
        run(copied, (CHANNELS,), epochs=2)
    with pytest.raises(ArtifactError, match="their measured is 'milliseconds, batch of 1, torch'"):
        run(copied, (CHANNELS,), batch_size=4)


def test_every_network_has_the_budget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Epochs, times samples, times what a sample costs on all levels together. A batch is all 128 samples."""
    wanted: dict[str, int] = {}

    def fake(contenders: Any, *_: Any, **__: Any) -> Results:
        wanted.update({one.name: one.make().training.epochs for one in contenders})
        return Results(())

    monkeypatch.setattr(comparing, "run", fake)
    monkeypatch.setattr(comparing, "_write", lambda *_: None)
    half, whole = (level.cost.macs for level in transform(Small(), CHANNELS, small()[1], verify=False).levels)
    half, whole = (macs - channels * 6 for macs, channels in ((half, 2), (whole, 4)))  # four classes in place of ten
    run(tmp_path, (CHANNELS,), budget=Budget(macs=6 * 128 * whole))
    assert wanted == {
        CHANNELS: round(6 * whole / (half + whole)),
        "width 0.5 alone": round(6 * whole / half),
        "width 1 alone": 6,
    }
    with pytest.raises(ArgumentValueError, match="less than an epoch of nested-channels"):
        run(tmp_path, (CHANNELS,), budget=Budget(macs=whole))
    with pytest.raises(ArgumentValueError, match="expected macs alone"):
        run(tmp_path, (CHANNELS,), budget=Budget(params=10))


def test_leaves_learn_at_the_rate_of_networks_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By sums: a mean over leaves gives each of them a share of the gradients of a network alone."""
    found: dict[str, AnytimeModel] = {}
    monkeypatch.setattr(
        comparing,
        "run",
        lambda contenders, *_, **__: found.update({c.name: c.make().build(verify=False) for c in contenders}),
    )
    monkeypatch.setattr(comparing, "_write", lambda *_: None)
    run(tmp_path, (ENSEMBLE, CHANNELS), alone="none")
    assert [found[name].loss.reduction for name in (ENSEMBLE, CHANNELS)] == ["sum", "sum"]
    assert transform(Small(), ENSEMBLE, small()[1], verify=False).loss.reduction == "mean"


def test_a_scheme_that_does_not_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is refused before anything is trained where it was asked for, and otherwise left out."""
    with pytest.raises(SchemeError, match="depth"):
        run(tmp_path / "out", (CHANNELS, "nested-depth"))
    assert not (tmp_path / "out").exists()
    ensemble = "hierarchical-ensemble{depth=1}"  # whose loss is no sum over levels
    monkeypatch.setattr(comparing, "SCHEMES", (CHANNELS, "nested-depth", ensemble))
    monkeypatch.setattr(comparing, "run", lambda contenders, *_, **__: contenders)
    trained: list[str] = []
    monkeypatch.setattr(comparing, "_write", lambda contenders, *_: trained.extend(one.name for one in contenders))
    said: list[str] = []
    recipe = replace(DEFAULT, order=OneAfterTheOther())
    compare(SOURCE, DATA, out=tmp_path, alone="none", training=recipe, said=said.append)
    assert trained == [CHANNELS]
    assert said[0].startswith("nested-depth is left out: ")
    assert said[1].startswith(f"{ensemble} is left out: {ensemble} cannot be trained by this recipe: ")


def of(network: str, alone: bool, *levels: tuple[int, float]) -> dict[str, Any]:
    named = [{"level": f"{macs}", "macs": macs, "params": 1, "accuracy": found} for macs, found in levels]
    return {"network": network, "seed": 0, "alone": alone, "levels": named, "values": {}}


def test_the_line_to_beat() -> None:
    """The best network alone that costs no more, whichever that is."""
    singles = [of(f"{macs} alone", True, (macs, found)) for macs, found in ((10, 80.0), (20, 95.0), (40, 90.0))]
    results = Results((of("net", False, (5, 50.0), (20, 90.0), (50, 96.0)), *singles))
    found = {one.better: one.worse for one in comparing._over_alone(results)}
    assert found == {("net", 1): ("20 alone", 0), ("net", 2): ("20 alone", 0)}


def test_the_command_goes_on(copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(running, "fit", None)
    schemes = ("--scheme", CHANNELS)
    options = ("--epochs", "1", "--seeds", "1", "--limit-batches", "1", "--out", str(copied))
    with pytest.raises(SystemExit) as caught:
        cli.main(["compare", SOURCE, "--data", DATA, *schemes, *options])
    out, err = capsys.readouterr()
    assert caught.value.code == 0, err
    assert f"| {CHANNELS} | width 0.5 |" in out
    with pytest.raises(SystemExit) as caught:
        cli.main(["compare", SOURCE, "--data", DATA, "--budget", "speed=1", *options])
    assert caught.value.code == 2


def test_the_command_of_the_page_is_the_whole_of_it(
    once: Path, copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a recipe of its own, too: what is there fits, and nothing is trained."""
    _, words, _ = (once / "table.md").read_text().split("`", 2)
    monkeypatch.setattr(running, "fit", None)
    with pytest.raises(SystemExit) as caught:
        cli.main([str(copied) if word == "DIR" else word for word in shlex.split(words)[1:]])
    assert caught.value.code == 0, capsys.readouterr().err
    recipe = replace(DEFAULT, batch=7, optimiser=replace(DEFAULT.optimiser, learning_rate=0.2), ema=0.9)
    assert changed(DEFAULT, changes(DEFAULT, recipe)) == recipe


def test_what_cannot_be_measured_is_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise ArgumentValueError("no such runtime")

    monkeypatch.setattr(comparing, "_milliseconds", refused)
    with pytest.raises(ArgumentValueError, match="no such runtime"):
        run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_does_not_train_all_networks_trains_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "fit", None)
    message = r"density 0.5 alone cannot be trained by this recipe: masks belong to models .*NestedWeights"
    with pytest.raises(SchemeError, match=message):
        run(tmp_path / "out", (WEIGHTS,), training=replace(DEFAULT, refresh_masks=1))
    assert not (tmp_path / "out").exists()


def test_a_network_of_the_papers_has_the_size_that_is_given() -> None:
    """Not the one that the paper has."""
    start = Start("paper:shallow/resnext-29-blocks-2", CHANNELS, torch.randn(2, 3, 16, 16))
    net = start.build(open_data(DATA), 0, verify=False)
    assert net.captured.example_inputs[0].shape == (2, 3, 16, 16)


def test_a_size_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written down; results of another size are other results."""
    options = ("--alone", "none", "--epochs", "1", "--seeds", "1", "--limit-batches", "1", "--out", str(tmp_path))
    command = ["compare", SOURCE, "--data", DATA, "--scheme", CHANNELS, *options, "--input-shape"]
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "2,1,12,12"])
    assert caught.value.code == 0
    assert "--input-shape 2,1,12,12 " in (tmp_path / "table.md").read_text()
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "2,1,10,10"])
    assert caught.value.code == 1


@pytest.mark.slow
def test_a_network_of_the_papers(tmp_path: Path) -> None:
    """Its backbone and its recipe, under schemes that are not the paper's."""
    options: dict[str, Any] = {"alone": "none", "epochs": 1, "seeds": 1, "limit_batches": 1}
    found = compare("paper:nestednet/resnet-56", DATA, ("nested-depth", "auxiliary-branches"), out=tmp_path, **options)
    assert found.results.networks == ("nested-depth", "auxiliary-branches")
    assert found.findings == ()
