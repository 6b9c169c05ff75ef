"""Extracts of a level: small, equal to it, and independent of everything here."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anytimeify import Budget, NestedChannels
from anytimeify.capture import capture
from anytimeify.passes.rewrites.project import project
from anytimeify.runtime.extraction import small_program
from tests.backbones import Residual, images, residual_net
from tests.building import run
from tests.printing import applied, calls, lines
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


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.body(x)))
        return result


def test_printed() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    program = applied(NestedChannels((0.5, 1.0)), capture(Normed(), x)).program
    half = project(program, [0])
    norm = ", ".join(f"anytime_0_norm_{name}" for name in ("weight", "bias", "running_mean", "running_var"))
    assert [line.partition(", True")[0] for line in calls(half)] == lines(f"""
        level0_body_weight_part0 = slice.Tensor(body_weight, 0, 0, 3)
        level0_body_bias_part0 = slice.Tensor(body_bias, 0, 0, 3)
        level0_body = linear(x, level0_body_weight_part0, level0_body_bias_part0)
        level0_norm = batch_norm(level0_body, {norm}
        level0_head = linear(level0_norm, anytime_0_head_weight, anytime_0_head_bias)
        return level0_head
    """)
    small = small_program(program, 0)
    assert [line.partition(", True")[0] for line in calls(small)] == lines(f"""
        body = linear(x, body_weight, body_bias)
        norm = batch_norm(body, {norm.replace("anytime_0_", "")}
        head = linear(norm, head_weight, head_bias)
        return head
    """)
    network = Normed()
    network.body, network.norm, network.head = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 5)
    network.load_state_dict(small.tensors)
    for result in (run(half, x), run(small, x)):
        torch.testing.assert_close(result, (network.eval()(x),))


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
