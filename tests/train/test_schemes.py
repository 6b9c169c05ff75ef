"""`anytimeify train timm:resnet18` under every scheme, on some hundred images of MNIST."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from anytimeify import MutualDistillation, cli, load, source, transform

pytest.importorskip("accelerate")
pytest.importorskip("mlxtend")
pytest.importorskip("tensorboard")
pytest.importorskip("timm")
pytest.importorskip("torchmetrics")
pytestmark = [
    pytest.mark.slow,
    # tensorboard and torchmetrics, about packages that they import
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

NAME = "timm:resnet18"
OPTIONS = ("--data", "mnist5k", "--input-shape", "2,3,32,32", "--batch", "16", "--limit-batches", "16", "--epochs", "4")
CHANNELS = "nested-channels{widths=0.5,1}"
SCHEMES = (
    CHANNELS,
    "nested-channels{widths=0.5,1 connectivity=triangular}",
    "nested-weights{densities=0.3,1}",
    "nested-depth{depths=0.5,1}",
    "nested-depth{depths=0.5,1} nested-channels{widths=0.5,1}",
    "nested-resolution{sizes=0.5,1}",
    "hierarchical-ensemble{depth=1}",
    "auxiliary-branches{branches=1}",
)


def train(capsys: pytest.CaptureFixture[str], *arguments: object) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", *map(str, arguments)])
    assert caught.value.code == 0, capsys.readouterr().err


def assert_it_learned(run: Path) -> None:
    first, *_, last = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert last["loss"] < 0.9 * first["loss"]
    assert len(last["accuracy"]) == len(load(run / "net.safetensors").levels)
    assert min(last["accuracy"].values()) > 0.7  # chance is 0.1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_backbone_trains(scheme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(capsys, NAME, "--scheme", scheme, *OPTIONS, "--out", tmp_path / "run")
    assert_it_learned(tmp_path / "run")


def test_two_backbones_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are no source of the command line, but a saved model is."""
    torch.manual_seed(0)
    net = transform(
        (source(NAME), source(NAME)), MutualDistillation(branches=1), torch.randn(2, 3, 32, 32), verify=False
    )
    net.save(tmp_path / "net.safetensors")
    options = [one for one in OPTIONS if one not in ("--input-shape", "2,3,32,32")]
    train(capsys, tmp_path / "net.safetensors", *options, "--out", tmp_path / "run")
    assert_it_learned(tmp_path / "run")


def test_a_command_that_is_killed_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("train", NAME, "--scheme", CHANNELS, *OPTIONS)
    run = subprocess.Popen([sys.executable, "-m", "anytimeify", *command, "--out", tmp_path / "killed"])
    while not (tmp_path / "killed" / "checkpoints" / "step-000000032.pt").exists():
        assert run.poll() is None
        time.sleep(0.01)
    time.sleep(1)
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "net.safetensors").exists()
    train(capsys, *command[1:], "--out", tmp_path / "killed", "--resume")
    train(capsys, *command[1:], "--out", tmp_path / "whole")
    resumed, whole = (load(tmp_path / name / "net.safetensors").state_dict() for name in ("killed", "whole"))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
