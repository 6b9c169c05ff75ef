"""Extracts of a level: small, equal to it, and independent of everything here."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from anytimeify import Budget
from tests.backbones import Residual, images, residual_net
from tests.rounding import close


@pytest.mark.parametrize("fold", [False, True])
def test_extracts_are_small_and_equal_their_level(fold: bool) -> None:
    net, x = residual_net(), images()
    storages = {tensor.untyped_storage().data_ptr() for tensor in net.tensors().values()}
    for level in net.levels:
        small = net.extract(level, fold=fold)
        assert not small.training
        assert close(small(x), net(x, level=level))
        if not fold:
            assert sum(parameter.numel() for parameter in small.parameters()) == level.cost.params
            assert small.state_dict().keys() == Residual().state_dict().keys() - {"unused.weight", "unused.bias"}
        else:
            assert not any(isinstance(module, nn.BatchNorm2d) for module in small.modules())
            assert {"stem.weight", "stem.bias"} <= small.state_dict().keys()
        for tensor in small.state_dict().values():
            assert tensor.untyped_storage().data_ptr() not in storages
    assert [node.name for node in net.extract(0).graph.nodes][:3] == ["x", "stem", "bn1"]


def test_an_extract_follows_the_weights_as_they_are_now() -> None:
    net, x = residual_net(), images()
    before = net.extract(0)
    with torch.no_grad():
        net.get_parameter("stem.weight").mul_(2)
    assert close(net.extract(0)(x), net(x, level=0))
    assert not close(before(x), net(x, level=0))


def test_an_extract_by_budget() -> None:
    net, x = residual_net(), images()
    assert close(net.extract(Budget(macs=net.levels[1].cost.macs))(x), net(x, level=1))


def test_an_extract_runs_where_anytimeify_was_never_imported(tmp_path: Path) -> None:
    net, x = residual_net(), images()
    small = net.extract(0)
    torch.save(small, tmp_path / "small.pt")
    exported = torch.export.export(small, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(exported, tmp_path / "small.pt2")
    torch.save((x, net(x, level=0).detach()), tmp_path / "data.pt")
    script = textwrap.dedent(
        """
        import sys, torch
        x, expected = torch.load("data.pt")
        pickled = torch.load("small.pt", weights_only=False)
        exported = torch.export.load("small.pt2").module()
        for module in (pickled, exported):
            torch.testing.assert_close(module(x), expected)
            torch.testing.assert_close(module(x[:3]), expected[:3])
        assert not any(name.split(".")[0] in ("anytimeify", "passes") for name in sys.modules)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
