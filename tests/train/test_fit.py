"""`fit`: what it learns, what it writes, and that a run that is killed ends as if it had not been."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, AuxiliaryBranches, NestedChannels, cli, kernels, load, progress, transform
from anytimeify.errors import AnytimeError, ArtifactError
from anytimeify.train import (
    Data,
    Held,
    OneAfterTheOther,
    Optimiser,
    Phase,
    Sandwich,
    Schedule,
    Teacher,
    Training,
    fit,
    open_data,
)

pytest.importorskip("accelerate")
pytest.importorskip("tensorboard")
pytest.importorskip("torchmetrics")
pytestmark = [
    # tensorboard and torchmetrics, about packages that they import
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

TRAINING = Training(
    data="digits",
    optimiser=Optimiser(learning_rate=0.05, weight_decay=1e-4),
    schedule=Schedule(kind="cosine", per="step", warm_up=0.5),
    batch=32,
    epochs=2,
    augmentation=("normalise",),
)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.drop, self.fc = nn.Conv2d(8, 8, 3, stride=2), nn.Dropout(0.2), nn.Linear(72, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.drop(self.conv2(self.bn(self.conv1(x)).relu()).relu().flatten(1)))
        return result


@pytest.fixture(scope="module")
def made() -> AnytimeModel:
    torch.manual_seed(0)
    return transform(Small(), NestedChannels((0.5, 1.0)), torch.randn(2, 1, 8, 8), verify=False)


@pytest.fixture
def net(made: AnytimeModel) -> AnytimeModel:
    return copy.deepcopy(made)


@pytest.fixture(scope="module")
def digits() -> Data:
    return some_digits()


def some_digits() -> Data:
    whole = open_data("digits")
    parts = [samples.take(torch.arange(count)) for samples, count in ((whole.train, 640), (whole.test, 100))]
    train, test = (Held(torch.as_tensor(inputs), labels) for inputs, labels in parts)
    return Data("digits", train, test, whole.classes)


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_learns_and_writes_a_folder(net: AnytimeModel, digits: Data, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    training = replace(TRAINING, epochs=4)
    with progress.shown_by(lambda name, share: told.append((name, share))):
        run = fit(net, digits, training, out=tmp_path / "run")
    assert list(run.accuracy) == ["width 0.5", "width 1"]
    assert run.accuracy["width 1"] > 0.7
    assert [line["epoch"] for line in run.history] == [1, 2, 3, 4]
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() == [json.dumps(line) for line in run.history]
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= {"config.json", "curves.png", "start.safetensors", "net.safetensors", "tensorboard"}
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2
    assert same(weights(load(tmp_path / "run" / "net.safetensors")), weights(net))
    assert told[-1][1] == 1
    assert "epoch 4 of 4: loss" in told[-1][0]
    assert "samples/s, 0:00:00 left; accuracy of levels" in told[-1][0]
    # Nothing is left to do, and nothing changes.
    again = fit(copy.deepcopy(net), digits, training, out=tmp_path / "run", resume=True)
    assert again.history == run.history
    with pytest.raises(ArtifactError, match=r"holds another run: its training.batch is 32, and now it is 16"):
        fit(net, digits, replace(training, batch=16), out=tmp_path / "run")
    with pytest.raises(ArtifactError, match="holds a run already"):
        fit(net, digits, training, out=tmp_path / "run", resume=False)
    with pytest.raises(ArtifactError, match="holds no run that could be resumed"):
        fit(net, digits, training, out=tmp_path / "other", resume=True)


VARIANTS = {
    "plain": TRAINING,
    "everything": replace(
        TRAINING,
        optimiser=Optimiser(kind="adamw", learning_rate=1e-3, weight_decay=0.01),
        order=Sandwich(random=1, inplace=False),
        ema=0.9,
        clip=1.0,
        accumulate=2,
        label_smoothing=0.1,
        augmentation=("pad 1 and crop", "normalise"),
        mixup=0.2,
        cutmix=1.0,
        teacher=Teacher(),
        phases=(Phase(epochs=1, parts=("fc.*",), frozen_norms=True),),
    ),
}


def started(what: Callable[..., None], *arguments: Any) -> Any:
    """A process of its own, and not a copy of this one: autograd cannot be copied once it has threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=what, args=arguments)
    process.start()
    return process


def train(net: Path, training: Training, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    fit(load(net), some_digits(), training, **options)


def killed_and_resumed(net: AnytimeModel, data: Data, training: Training, out: Path, kills: int) -> AnytimeModel:
    """Trains in processes of their own, each killed at some point after another checkpoint."""
    draw = random.Random(kills)
    options: dict[str, Any] = {"out": out, "checkpoint_every": 7}
    net.save(out.parent / "net.safetensors")
    for _ in range(kills):
        before = set(out.glob("checkpoints/*.pt"))
        process = started(train, out.parent / "net.safetensors", training, options)
        while process.is_alive() and set(out.glob("checkpoints/*.pt")) <= before:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.1)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL  # and had not ended before
    result = copy.deepcopy(net)
    fit(result, data, training, **options)
    return result


@pytest.mark.parametrize("variant", ["plain", pytest.param("everything", marks=pytest.mark.slow)])
def test_a_run_that_is_killed_ends_with_the_same_weights(
    net: AnytimeModel, digits: Data, tmp_path: Path, variant: str
) -> None:
    training = VARIANTS[variant]
    resumed = killed_and_resumed(net, digits, training, tmp_path / "run", 1)
    fit(net, digits, training)
    assert same(weights(resumed), weights(net))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_twenty_kills(net: AnytimeModel, digits: Data, tmp_path: Path, variant: str) -> None:
    training = replace(VARIANTS[variant], epochs=16)
    resumed = killed_and_resumed(net, digits, training, tmp_path / "run", 20)
    fit(net, digits, training)
    assert same(weights(resumed), weights(net))


def test_nothing_that_is_timed_decides_how_layers_are_computed(monkeypatch: pytest.MonkeyPatch, digits: Data) -> None:
    """On CPU a run has the same bits every time: on a busy machine other forms of a layer are the fastest."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
            self.fc = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.fc(self.conv2(self.conv1(x).relu()).relu().mean((2, 3)))
            return result

    net = transform(
        Wide(), NestedChannels((0.5, 1.0), connectivity="triangular"), torch.randn(2, 1, 8, 8), verify=False
    )
    kernels.forget()
    fit(net, digits, replace(TRAINING, epochs=1), limit_batches=1)
    assert not kernels.choices()
    assert kernels.kind() == "measured"
    net(torch.randn(16, 1, 8, 8)).levels[0].sum().backward()
    assert kernels.choices(), "such layers are measured elsewhere"
    kernels.forget()


def train_without_room(net: Path, out: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        train(net, TRAINING, {"out": out, "limit_batches": 2})
    except ArtifactError:
        os._exit(7)


def test_a_full_disk_loses_no_checkpoint(net: AnytimeModel, digits: Data, tmp_path: Path) -> None:
    out = tmp_path / "run"
    net.save(tmp_path / "net.safetensors")
    fit(net, digits, TRAINING, out=out, limit_batches=2)
    before = {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()}
    first, last = sorted(before)
    (out / "checkpoints" / last).unlink()  # as if killed in the last epoch
    assert torch.load(out / "checkpoints" / first, weights_only=True)["epoch"] == 1
    process = started(train_without_room, tmp_path / "net.safetensors", out)
    process.join()
    assert process.exitcode == 7
    assert [path.name for path in (out / "checkpoints").iterdir()] == [first]
    assert (out / "checkpoints" / first).read_bytes() == before[first]


def test_a_damaged_checkpoint_is_refused(net: AnytimeModel, digits: Data, tmp_path: Path) -> None:
    out, start = tmp_path / "run", copy.deepcopy(net)
    fit(net, digits, TRAINING, out=out, limit_batches=2)
    last = max((out / "checkpoints").iterdir())
    data, state = last.read_bytes(), torch.load(last, weights_only=True)
    weight = state["net"]["fc.weight"].numpy().tobytes()
    assert weight in data
    last.write_bytes(data.replace(weight, bytes([weight[0] ^ 1]) + weight[1:]))  # torch would read it
    with pytest.raises(ArtifactError, match=r"000004\.pt' is damaged.*CRC.*goes on from the checkpoint before"):
        fit(copy.deepcopy(start), digits, TRAINING, out=out, limit_batches=2)
    for change, message in (
        ({"stage": 3}, "of a phase that there is not"),
        ({"epoch": 9}, "at step 0 of epoch 9, which there is not"),
        ({"steps": -1}, "its steps is -1"),
        ({"net": {}}, r"step-000000004\.pt is damaged.*goes on from the checkpoint before"),
    ):
        torch.save({**state, **change}, last)
        with pytest.raises(ArtifactError, match=message):
            fit(copy.deepcopy(start), digits, TRAINING, out=out, limit_batches=2)
    last.unlink()
    fit(start, digits, TRAINING, out=out, limit_batches=2)
    assert torch.equal(start.get_parameter("fc.weight"), net.get_parameter("fc.weight"))


@pytest.mark.parametrize(
    ("kind", "entry", "change", "message"),
    [
        ("sgd", "momentum_buffer", lambda one: one[:1], r"a tensor of shape \[1, 1, 3, 3\] as momentum_buffer of"),
        ("sgd", "momentum_buffer", lambda one: one.sum(), r"a tensor of shape \[\] as momentum_buffer of"),
        ("sgd", "momentum_buffer", lambda one: "one", "a str as momentum_buffer of"),
        ("adamw", "exp_avg_sq", lambda one: one.squeeze(1), r"a tensor of shape \[8, 3, 3\] as exp_avg_sq of"),
        ("adamw", "step", lambda one: one.expand(2), r"a tensor of shape \[2\] as step of"),
    ],
)
def test_the_state_of_an_optimiser_has_the_shapes_of_its_parameters(
    net: AnytimeModel, digits: Data, tmp_path: Path, kind: Any, entry: str, change: Any, message: str
) -> None:
    out, start = tmp_path / "run", copy.deepcopy(net)
    training = replace(TRAINING, optimiser=Optimiser(learning_rate=0.01, weight_decay=0.0, kind=kind))
    fit(net, digits, training, out=out, limit_batches=2)
    last = max((out / "checkpoints").iterdir())
    state = torch.load(last, weights_only=True)
    kept = state["optimiser"]["state"][0]
    kept[entry] = change(kept[entry])
    torch.save(state, last)
    before = weights(start)
    with pytest.raises(ArtifactError, match=rf"step-000000004\.pt is damaged.*{message} 'conv1.weight'.*Remove it"):
        fit(start, digits, training, out=out, limit_batches=2)
    assert same(weights(start), before)


def test_averaged_weights_have_the_shapes_of_weights(net: AnytimeModel, digits: Data, tmp_path: Path) -> None:
    out, start = tmp_path / "run", copy.deepcopy(net)
    training = replace(TRAINING, ema=0.9)
    fit(net, digits, training, out=out, limit_batches=2)
    last = max((out / "checkpoints").iterdir())
    state = torch.load(last, weights_only=True)
    state["average"]["average"][0] = torch.zeros(1)
    torch.save(state, last)
    before = weights(start)
    with pytest.raises(ArtifactError, match=r"averaged weights have a tensor of shape \[1\] in place 0.*Remove it"):
        fit(start, digits, training, out=out, limit_batches=2)
    assert same(weights(start), before)


def test_phases_and_parts(net: AnytimeModel, digits: Data) -> None:
    training = replace(TRAINING, epochs=1, parts=("conv*", "bn*"), phases=(Phase(epochs=1, parts=("fc.*", "any*")),))
    first = copy.deepcopy(net)
    fit(first, digits, replace(training, phases=()), limit_batches=2)
    assert torch.equal(first.get_parameter("fc.weight"), net.get_parameter("fc.weight"))
    assert not torch.equal(first.get_parameter("conv1.weight"), net.get_parameter("conv1.weight"))
    both = copy.deepcopy(net)
    run = fit(both, digits, training, limit_batches=2)
    assert [line["stage"] for line in run.history] == [0, 1]
    assert torch.equal(both.get_parameter("conv1.weight"), first.get_parameter("conv1.weight"))
    assert not torch.equal(both.get_parameter("fc.weight"), net.get_parameter("fc.weight"))
    assert all(parameter.requires_grad for parameter in both.parameters())


def test_a_consensus_is_trained_after_the_rest(digits: Data) -> None:
    torch.manual_seed(0)
    net = transform(Small(), NestedChannels((0.5, 1.0)), torch.randn(2, 1, 8, 8), consensus="learned", verify=False)
    before = [parameter.detach().clone() for parameter in net.consensus_parameters()]
    training = replace(TRAINING, epochs=1, parts="levels")
    fit(net, digits, training, limit_batches=2)
    assert all(map(torch.equal, before, net.consensus_parameters()))
    levels = net.get_parameter("conv1.weight").detach().clone()
    run = fit(net, digits, replace(training, parts="consensus"), limit_batches=2)
    assert not any(map(torch.equal, before, net.consensus_parameters()))
    assert torch.equal(levels, net.get_parameter("conv1.weight"))
    assert list(run.accuracy)[-1] == net.levels[-1].name


def test_frozen_norms_keep_their_statistics(net: AnytimeModel, digits: Data) -> None:
    before = weights(net)
    fit(net, digits, replace(TRAINING, epochs=1, frozen_norms=True), limit_batches=2)
    after = weights(net)
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)
    assert not torch.equal(before["bn.weight"], after["bn.weight"])
    assert net.training


def test_accumulated_gradients_are_those_of_the_batch(net: AnytimeModel, digits: Data) -> None:
    net.get_submodule("drop").eval()
    training = replace(TRAINING, epochs=1, frozen_norms=True, order=OneAfterTheOther())
    found = []
    for parts in (1, 4):
        own = copy.deepcopy(net)
        fit(own, digits, replace(training, accumulate=parts), limit_batches=3)
        found.append(weights(own))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6)


def test_a_teacher_teaches(net: AnytimeModel, digits: Data) -> None:
    """With nothing but the teacher, who is the full level as it was, the full level has nothing to learn."""
    net.get_submodule("drop").eval()
    net.get_submodule("bn").eval()
    own = copy.deepcopy(net)
    training = replace(TRAINING, epochs=1, teacher=Teacher(weight=1.0), frozen_norms=True)
    run = fit(
        own, digits, replace(training, optimiser=Optimiser(learning_rate=1e-9, weight_decay=0.0)), limit_batches=1
    )
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(own.eval()(x, level=-1), net.eval()(x, level=-1), rtol=1e-4, atol=1e-5)
    assert 0 < run.history[0]["loss"] < 1
    with pytest.raises(AnytimeError, match="the full level is the teacher of the others"):
        fit(own, digits, replace(training, order=Sandwich()), limit_batches=1)


def test_trainings_of_several_precisions_follow_each_other(net: AnytimeModel, digits: Data) -> None:
    for precision in ("no", "bf16", "no"):
        training = replace(TRAINING, epochs=1, precision=precision)
        assert fit(copy.deepcopy(net), digits, training, limit_batches=1).history


def test_labels_that_the_network_does_not_predict(net: AnytimeModel, digits: Data) -> None:
    own = copy.deepcopy(net)
    own.reset_classifier(5)
    with pytest.raises(AnytimeError, match=r"predicts 5 classes, and digits has 10: net.reset_classifier\(10\)"):
        fit(own, digits, TRAINING)
    own.reset_classifier(12)
    assert fit(own, digits, replace(TRAINING, epochs=1), limit_batches=1).history


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"augmentation": ("wobble",)}, "'wobble' is no step; there are 'pad N and crop'"),
        ({"optimiser": Optimiser(learning_rate=1e30, weight_decay=0.0)}, "the loss is .* in epoch 1: take a lower"),
        ({"parts": ("nothing*",)}, "the network has no such parameters"),
    ],
)
def test_what_cannot_be_trained(net: AnytimeModel, digits: Data, change: dict[str, Any], message: str) -> None:
    with pytest.raises(AnytimeError, match=message):
        fit(net, digits, replace(TRAINING, **change))


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_the_command(made: AnytimeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.save(tmp_path / "net.safetensors")
    run = (tmp_path / "net.safetensors", "--data", "digits", "--limit-batches", 2, "--batch", 16, "--epochs", 1)
    code, out, err = command(capsys, *run, "--out", tmp_path / "run", "--set", "ema=0.9")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["level", "width", "width"]
    assert "100% epoch 1 of 1: loss" in err
    training = json.loads((tmp_path / "run" / "config.json").read_text())["training"]
    assert (training["ema"], training["batch"], training["schedule"]["warm_up"]) == (0.9, 16, 0.1)
    assert command(capsys, *run, "--out", tmp_path / "run")[0] == 1
    again = ("--recipe", tmp_path / "run" / "config.json", "--resume")
    assert command(capsys, *run, "--out", tmp_path / "run", *again)[0] == 0
    for other, message in (
        (("--scheme", "nested-depth"), "its scheme is nested-channels{widths=0.5,1}, and now it is nested-depth"),
        (("--input-shape", "2,1,9,9"), "its input shape, without the batch, is 1,8,8, and now it is 1,9,9"),
    ):
        code, _, err = command(capsys, *run, "--out", tmp_path / "run", *again, *other)
        assert (code, message in err) == (1, True), err
    for wrong, message in (
        (("--data", "cifar11"), "'cifar11' names no data; there are cifar10:DIR"),
        (("--set", "speed=3"), "the training has no field 'speed'"),
        (("--set", "optimiser"), "'optimiser' changes no field"),
        (("--checkpoint", tmp_path / "net.safetensors"), "has no weights to choose"),
        (("--scheme", "nested-channels"), "is a saved model, which has a scheme"),
        (("--scheme", "nested-chanels"), "'nested-chanels' is not a scheme"),
        (("--input-shape", "2,1,8,8"), "whose inputs have their sizes already: leave out --input-shape"),
        (("--lr", -1), "learning_rate is -1.0: expected a number, 0 or more"),
        (("--seed", 2**70), "expected a whole number of 64 bits"),
        (("--recipe", tmp_path / "none.json"), "does not exist"),
    ):
        code, _, err = command(capsys, *run, "--out", tmp_path / "other", *wrong)
        assert code == 1
        assert message in err
        assert not (tmp_path / "other").exists()


def test_it_starts_from_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(Small().state_dict(), tmp_path / "small.pt")
    source = ("tests.train.test_fit:Small", "--scheme", "nested-channels{widths=0.5,1}", "--input-shape", "2,1,8,8")
    run = (*source, "--data", "digits", "--limit-batches", 1, "--epochs", 1, "--lr", 0)
    code, _, err = command(capsys, *run, "--checkpoint", tmp_path / "small.pt", "--out", tmp_path / "run")
    assert code == 0, err
    trained = load(tmp_path / "run" / "net.safetensors")
    assert torch.equal(trained.get_parameter("fc.weight"), torch.load(tmp_path / "small.pt")["fc.weight"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "anytime/is-resnext-47-cifar",
        "nestednet/resnet-56",
        "hne/resnet50-cifar-small",
        "dhm/resnet-32",
        "dcm/resnet-110",
    ],
)
def test_recipes_of_the_papers_train(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--data", "mnist5k", "--limit-batches", 1, "--batch", 8, "--epochs", 1, "--out", tmp_path / "run")
    code, _, err = command(capsys, f"paper:{name}", *options)
    assert code == 0, err


def test_branches_train(digits: Data) -> None:
    torch.manual_seed(0)
    net = transform(Small(), AuxiliaryBranches(branches=1), torch.randn(2, 1, 8, 8), verify=False)
    run = fit(net, digits, replace(TRAINING, epochs=1), limit_batches=4)
    assert len(run.accuracy) == len(net.levels) == 2
