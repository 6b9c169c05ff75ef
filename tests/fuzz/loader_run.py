"""Folders of runs: the config and the last checkpoint, as a run reads them that goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, NestedChannels, transform
from anytimeify.errors import ArtifactError
from anytimeify.train import Data, Optimiser, Schedule, Training, fit, open_data
from anytimeify.train.fitting import _Fitting
from anytimeify.train.stage import Stage, gradients_kept
from tests.fuzz.loader import Case, Loader, Results
from tests.fuzz.loader_checkpoint import plain
from tests.fuzz.mutations import members_of, mutate_bytes, mutate_json, mutate_text, write_archive

__all__ = ["LOADER"]

TRAINING = Training(
    data="digits",
    optimiser=Optimiser(learning_rate=0.05, weight_decay=0.0),
    schedule=Schedule(kind="cosine"),
    batch=8,
    epochs=2,
    ema=0.9,
    augmentation=("normalise",),
)
LIMIT = 2


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3, stride=3), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.conv(x)).relu().mean((2, 3)))
        return result


@cache
def _net() -> AnytimeModel:
    torch.manual_seed(0)
    return transform(Small(), NestedChannels((0.5, 1.0)), torch.randn(2, 1, 8, 8), verify=False)


@cache
def _data() -> Data:
    return open_data("digits")


@cache
def _accelerator() -> Any:
    """One for all: to make it changes the environment."""
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def _make(folder: Path) -> None:
    fit(_net(), _data(), TRAINING, out=folder / "run", limit_batches=LIMIT, accelerator=_accelerator())
    for part in ("tensorboard", "curves.png", "net.safetensors", "start.safetensors"):
        path = folder / "run" / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _checkpoint(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir())


def _mutate(random: Random, originals: Path, folder: Path) -> Case:
    target = Path(shutil.copytree(originals / "run", folder / "run"))
    way = random.choice((_in_config, _in_bytes, _in_member, _in_state, _in_state, _in_state, _in_names))
    what = way(random, target)
    return Case(target, "run", what, sealed=way not in (_in_bytes, _in_config))


def _in_config(random: Random, folder: Path) -> str:
    file = folder / "config.json"
    if random.random() < 0.5:
        data, what = mutate_bytes(random, file.read_bytes())
        file.write_bytes(data)
        return f"config: {what}"
    document = json.loads(file.read_text())
    what = "; ".join(mutate_json(random, document) for _ in range(random.choice((1, 1, 2))))
    file.write_text(json.dumps(document), encoding="utf-8", errors="surrogatepass")
    return f"config: {what}"


def _in_bytes(random: Random, folder: Path) -> str:
    """Bytes of the checkpoint, under its own checksums."""
    file = _checkpoint(folder)
    data, what = mutate_bytes(random, file.read_bytes())
    file.write_bytes(data)
    return f"bytes: {what}"


def _in_member(random: Random, folder: Path) -> str:
    """Bytes of a member, under a checksum that fits."""
    file = _checkpoint(folder)
    members = members_of(file)
    name = random.choice(("data.pkl", *sorted(members)))
    members[name], what = mutate_bytes(random, members[name])
    write_archive(members, file)
    return f"member {name}: {what}"


def _in_state(random: Random, folder: Path) -> str:
    """What is pickled: where the run is, tensors by name, the optimiser, generators, the history."""
    file = _checkpoint(folder)
    found = plain(torch.load(file, weights_only=True))
    what = "; ".join(mutate_json(random, found) for _ in range(random.choice((1, 1, 2))))
    torch.save(found, file)
    return f"state: {what}"


def _in_names(random: Random, folder: Path) -> str:
    """A file is called something else, or is not there."""
    file = random.choice((_checkpoint(folder), folder / "config.json"))
    if random.random() < 0.5:
        file.unlink()
        return f"no {file.name}"
    name = mutate_text(random, file.name).encode("utf-8", "replace").decode().replace("\0", "").replace("/", "")
    if name in ("", ".", "..") or len(name.encode()) > 200:
        return "nothing"
    file.rename(file.with_name(name))
    return f"{file.name} is called {name}"


def _load(path: Path) -> tuple[_Fitting, Stage]:
    """What a run does before its next step."""
    net = _net()
    with gradients_kept(net) as restore:
        fitting = _Fitting(net, _data(), TRAINING, _accelerator(), path, LIMIT, None, restore)
        assert fitting.folder is not None
        checkpoint = fitting.found(fitting.folder)
        if checkpoint is None:
            raise ArtifactError("there is no checkpoint: the run begins")
        stage = fitting.begin(0, TRAINING, None)
        fitting.go_on(stage, checkpoint)
    return fitting, stage


def _results(found: tuple[_Fitting, Stage]) -> Results:
    fitting, stage = found
    place = f"{fitting.stage} {fitting.epoch} {fitting.step} {fitting.steps}"
    return {"place": place, **fitting.net.state_dict(), "optimiser": str(stage.optimiser.state_dict()["param_groups"])}


def _crafted(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], Case]:
    def craft(originals: Path, folder: Path) -> Case:
        target = Path(shutil.copytree(originals / "run", folder / "run"))
        state = plain(torch.load(_checkpoint(target), weights_only=True))
        change(state)
        torch.save(state, _checkpoint(target))
        return Case(target, "run", "made by hand", sealed=True)

    return craft


def _momentum(change: Callable[[Tensor], object]) -> Callable[[dict[str, Any]], object]:
    def changed(state: dict[str, Any]) -> None:
        kept = state["optimiser"]["state"][0]
        kept["momentum_buffer"] = change(kept["momentum_buffer"])

    return changed


def _flipped(originals: Path, folder: Path) -> Case:
    """A bit of a weight, as a disk may lose it."""
    target = Path(shutil.copytree(originals / "run", folder / "run"))
    file = _checkpoint(target)
    weights = members_of(file)["data/1"]
    file.write_bytes(file.read_bytes().replace(weights, bytes([weights[0] ^ 1]) + weights[1:]))
    return Case(target, "run", "made by hand")


LOADER = Loader(
    "run",
    _make,
    _mutate,
    _load,
    _results,
    {
        "a bit": _flipped,
        "no network": _crafted(lambda state: state.pop("net")),
        "another network": _crafted(lambda state: state["net"].update({"head.weight": torch.zeros(3)})),
        "a stage that there is not": _crafted(lambda state: state.update(stage=7)),
        "beyond the end": _crafted(lambda state: state.update(epoch=99)),
        "a step that there is not": _crafted(lambda state: state.update(step=1 << 40)),
        "before the beginning": _crafted(lambda state: state.update(epoch=-1)),
        "no state of the generators": _crafted(lambda state: state.update(random=[{}])),
        "a history of numbers": _crafted(lambda state: state.update(history=[1, 2])),
        "losses that are many": _crafted(lambda state: state.update(losses=torch.zeros(3))),
        "momentum of another shape": _crafted(_momentum(lambda one: one[:1])),
        "momentum that is a number": _crafted(_momentum(lambda one: 1.0)),
        "an optimiser of other parameters": _crafted(lambda state: state["optimiser"]["param_groups"].pop()),
    },
)
