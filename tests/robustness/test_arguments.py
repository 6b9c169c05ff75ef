"""Arguments of the wrong kind, and everything that people do to a module to move it somewhere else."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anytimeify import AnytimeError, AnytimeModel, ArtifactError, load
from tests.backbones import images, residual_net
from tests.rounding import close


@pytest.mark.parametrize("level", [[0], True, {}, None])
def test_what_names_no_level(level: Any) -> None:
    net = residual_net()
    calls: list[Callable[[], Any]] = [lambda: net.extract(level), lambda: net.latency(level)]
    if level is not None:  # all levels
        calls.append(lambda: net(images(), level=level))
    for call in calls:
        with pytest.raises(AnytimeError, match=r"a level is given as .*levels are 0 \(width 0.25\)") as error:
            call()
        assert isinstance(error.value, TypeError)


@pytest.mark.parametrize("level", [np.int64(1), torch.tensor(1)])
def test_levels_that_are_numbers_of_another_kind(level: Any) -> None:
    net = residual_net()
    assert torch.equal(net(images(), level=level), net(images(), level=1))


@pytest.mark.parametrize("budget", [5, None, {"macs": 5}, "macs=5"])
def test_budgets_that_are_none(budget: Any) -> None:
    with pytest.raises(AnytimeError, match=r"expected a Budget, such as Budget\(macs=5e8\)") as error:
        residual_net().select(budget)
    assert isinstance(error.value, TypeError)


def test_pictures_that_cannot_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = residual_net().report()
    for path, message in {
        tmp_path: "is a folder",
        tmp_path / "nowhere" / "a.png": "There is no folder .*nowhere",
        tmp_path / "a.docx": "its suffix chooses the format, one of .*png",
        tmp_path / "a": "its suffix chooses the format",
    }.items():
        with pytest.raises(ArtifactError, match=message):
            report.plot(path)
    assert list(tmp_path.iterdir()) == []


def saved(net: AnytimeModel) -> None:
    torch.save(net, io.BytesIO())


@pytest.mark.parametrize("save", [saved, pickle.dumps])
def test_nets_are_not_pickled_and_say_what_to_do(save: Callable[[AnytimeModel], Any]) -> None:
    with pytest.raises(TypeError, match=r"net\.save\(path\).*anytimeify\.load\(path\).*another process.*state_dict"):
        save(residual_net())


def test_copies_pickled_extracts_and_files_compute_the_same(tmp_path: Path) -> None:
    net, x = residual_net(), images()
    net.save(tmp_path / "net.safetensors")
    for same in (copy.deepcopy(net), load(tmp_path / "net.safetensors").eval()):
        assert close(same(x, level=0), net(x, level=0))
    small, file = net.extract(0), io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    for twin in (
        copy.deepcopy(small),
        pickle.loads(pickle.dumps(small)),
        torch.load(file, weights_only=False),
    ):
        assert close(twin(x), small(x))


def test_what_a_net_gives_back_is_pickled() -> None:
    net = residual_net()
    for value in (net(images()), net.levels, net.scheme, net.report()):
        assert type(pickle.loads(pickle.dumps(value))) is type(value)


def test_another_process_is_refused_the_net() -> None:
    """What `spawn` and its users do; files for other processes have tests of their own."""
    process = torch.multiprocessing.get_context("spawn").Process(target=print, args=(residual_net(),))
    with pytest.raises(TypeError, match=r"anytimeify\.load\(path\), in another process too"):
        process.start()
    assert process.pid is None
