"""Every network of every paper: it is found, it is listed, it runs, and its recipe is passed on."""

from __future__ import annotations

import json
import pkgutil
import re
import sys
from dataclasses import FrozenInstanceError, replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from anytimeify import AnytimeError, MissingExtraError, NestedChannels, cli, papers
from anytimeify.losses import JointLoss
from anytimeify.papers import Optimiser, Schedule, Training, alone, entries, experiment_names, names, recipe
from anytimeify.papers.networks import PreActivationResNet, imagenet
from anytimeify.passes.scheme import parse_scheme

MACHINERY = {"catalogue", "experiments", "networks", "recipe", "taxonomies"}
# One of every file, and a pair: what is true of small ones is not said of large ones again.
SMALL = ("hne/resnet50-cifar-small", "dhm/resnet-32", "dcm/densenet-40-12")


def test_every_file_of_a_paper_lists_its_networks() -> None:
    files = {info.name for info in pkgutil.iter_modules(papers.__path__)} - MACHINERY
    assert {name.partition("/")[0] for name in names()} == files
    assert len(set(names())) == len(names()) == len(entries())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "1202" in name else ()) for name in names()]
)
def test_recipes_are_whole(name: str) -> None:
    with torch.device("meta"):  # sizes are all that is computed
        made = recipe(name, num_classes=7)
    assert made.name == name
    (x,) = made.example_inputs
    assert x.shape[0] == 2
    for backbone in made.backbones:
        assert backbone.eval()(x).shape == (2, 7)
        optimiser = made.training.optimiser.build(backbone.parameters())
        assert optimiser.defaults["lr"] == made.training.optimiser.learning_rate
        assert optimiser.defaults["weight_decay"] == made.training.optimiser.weight_decay
    assert isinstance(made.loss, nn.Module)
    assert made.training.learning_rate(0) > made.training.learning_rate(made.training.epochs - 1) >= 0
    with pytest.raises(FrozenInstanceError):
        made.name = ""  # type: ignore[misc]  # what is tested


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_schemes_can_be_read_and_written(entry: papers.Entry) -> None:
    scheme = parse_scheme(entry.scheme) if isinstance(entry.scheme, str) else entry.scheme
    assert parse_scheme(str(scheme)) == scheme


@pytest.mark.parametrize("entry", [entry for entry in entries() if entry.name in SMALL], ids=lambda entry: entry.name)
def test_parameters_are_counted_without_building(entry: papers.Entry) -> None:
    made = entry.recipe()
    assert isinstance(made.backbone, tuple) == entry.name.startswith("dcm/")
    parameters = [parameter for backbone in made.backbones for parameter in backbone.parameters()]
    assert entry.params() == sum(parameter.numel() for parameter in parameters)
    assert {tensor.device.type for tensor in (*parameters, *made.example_inputs)} == {"cpu"}


def test_parameters_of_what_is_not_installed_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    listed = next(entry for entry in entries() if entry.name == "dhm/resnet-18-imagenet")
    entry = replace(listed, backbone=partial(imagenet, network="resnet18"))  # one that has not been counted yet
    assert entry.params() is None
    with pytest.raises(
        MissingExtraError, match=r"'resnet18' of ImageNet needs the package 'torchvision'.*anytimeify\[zoo\]"
    ):
        entry.recipe()


def test_build_is_transform_with_the_objective_of_the_paper() -> None:
    made = replace(recipe("hne/resnet50-cifar-small"), scheme=NestedChannels((0.5, 1.0)))
    x = made.example_inputs[0]
    net = made.build(verify=False).eval()
    assert net.loss is made.loss
    (backbone,) = made.backbones
    torch.testing.assert_close(net(x, level=-1), backbone.eval()(x), rtol=1e-4, atol=1e-5)
    other = JointLoss()
    assert made.build(loss=other, verify=False).loss is other


def test_a_level_alone() -> None:
    """Its own architecture and start, as a model of one level that learns from the labels."""
    torch.manual_seed(0)
    thin = replace(recipe("nestednet/wrn-14-4"), backbone=PreActivationResNet(5, depth=8, widening=4).eval())
    torch.manual_seed(0)
    made = alone(thin, 0)
    net, whole = made.build().eval(), thin.build(verify=False).eval()
    x = thin.example_inputs[0]
    torch.testing.assert_close(net(x, level=0), whole(x, level=0), rtol=1e-4, atol=1e-5)
    assert [level.cost.macs for level in net.levels] == [whole.levels[0].cost.macs]
    assert isinstance(net.loss, JointLoss)
    assert not {id(one) for one in net.parameters()} & {id(one) for one in whole.parameters()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hne/resnet50-cifra", r"'hne/resnet50-cifra' is no network of the papers; did you mean hne/resnet50-cifar,"),
        ("resnet50-cifar-small", "did you mean hne/resnet50-cifar-small"),
        ("hne/", "did you mean hne/"),
        ("alexnet?", f"there are: {names()[0]}"),
        ("", f"there are: {names()[0]}"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(AnytimeError, match=message):
        recipe(name)


@pytest.mark.parametrize("classes", [0, -1, 2.5, True, "10"])
def test_numbers_of_classes_that_are_none(classes: int) -> None:
    with pytest.raises(AnytimeError, match=r"num_classes=.*expected a whole number, 1 or more"):
        recipe(names()[0], classes)


def test_schedules() -> None:
    def rates(kind: str, **options: object) -> list[float]:
        schedule = Schedule(kind=kind, **options)  # type: ignore[arg-type]  # parameters of the test
        return [schedule.factor(epoch, 12) for epoch in range(13)]

    assert rates("steps", milestones=(4, 8.5)) == pytest.approx([1.0] * 4 + [0.1] * 5 + [0.01] * 4)
    cosine = rates("cosine")
    assert (cosine[0], cosine[6], cosine[12]) == pytest.approx((1.0, 0.5, 0.0))
    assert all(one > other for one, other in pairwise(cosine))
    cyclic = rates("cyclic", cycle=4, milestones=(9,), gamma=0.5)
    assert cyclic == pytest.approx([1, 4, 3, 2, 1, 4, 3, 2, 1, 2, 1.5, 1, 0.5])


def test_a_schedule_drives_an_optimiser() -> None:
    training = Training(
        data="none",
        optimiser=Optimiser(learning_rate=0.2, weight_decay=0.0, nesterov=True),
        schedule=Schedule(kind="steps", milestones=(1,), gamma=0.25),
        batch=1,
        epochs=2,
    )
    optimiser = training.optimiser.build(nn.Linear(2, 2).parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda epoch: training.schedule.factor(epoch, training.epochs)
    )
    seen = []
    for epoch in range(2):
        seen.append((optimiser.param_groups[0]["lr"], training.learning_rate(epoch)))
        optimiser.step()
        scheduler.step()
    assert seen == [(0.2, 0.2), (0.05, 0.05)]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main(["papers", *arguments])
    out, err = capsys.readouterr()
    assert (caught.value.code, err) == (0, "")
    return out


def test_the_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    networks, studies = re.split(r"\n(?=experiment )", run(capsys))
    first, *rest = networks.splitlines()
    assert first.split() == ["name", "backbone", "parameters", "scheme", "from"]
    assert [line.split()[0] for line in rest if line.strip() and not line.startswith(" ")] == list(names())
    first, *rest = studies.splitlines()
    assert first.split() == ["experiment", "about", "from"]
    assert [line.split()[0] for line in rest if line.strip() and line[0] != " "] == list(experiment_names())
    given = json.loads(run(capsys, "--json"))
    assert [row["name"] for row in given["experiments"]] == list(experiment_names())
    listed = given["networks"]
    assert [row["name"] for row in listed] == list(names())
    for row, entry in zip(listed, entries(), strict=True):
        assert row["params"] == entry.params()
        assert row["scheme"] == str(entry.scheme)
        assert row["training"]["batch"] == entry.training.batch
        assert row["training"]["optimiser"]["learning_rate"] == entry.training.optimiser.learning_rate
