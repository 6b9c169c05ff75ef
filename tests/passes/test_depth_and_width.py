"""Depth and widths together: a lower level is the same network built thin and shallower, over the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anytimeify
from anytimeify import (
    AnytimeModel,
    AuxiliaryBranches,
    NestedChannels,
    NestedDepth,
    SchemeError,
    cli,
    parse_scheme,
    schemes,
    transform,
)
from anytimeify.passes.schemes.depth_and_width import DepthAndWidth
from anytimeify.testing import assert_costs_increase, check, randomise
from tests.passes.branches import KINDS, Dense, Projected, Separable, Staged, images
from tests.rounding import close

STEPS = (NestedDepth((0.5, 0.5, 1.0)), NestedChannels((0.5, 1.0, 1.0)))
SPEC = "nested-depth{depths=0.5,0.5,1} nested-channels{widths=0.5,1,1}"


def net_of(backbone: nn.Module, depth: dict[str, Any] | None = None, **channels: Any) -> AnytimeModel:
    chosen = (NestedDepth(**(depth or {})), NestedChannels(**{"widths": (0.5, 1.0), **channels}))
    return transform(backbone, chosen, (images(),)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_levels_are_networks_with_fewer_and_thinner_blocks(kind: type[Staged]) -> None:
    backbone = randomise(kind(repeats=(4, 4, 4))).eval()
    net = transform(backbone, STEPS, (images(),)).eval()
    assert [level.name for level in net.levels] == [
        "depth 0.5, width 0.5",
        "depth 0.5, width 1",
        "depth 1, width 1",
    ]
    for level, widths in ((0, (4, 8, 16)), (1, (8, 16, 32))):
        if kind is not Separable:  # in a chain, another block than the last one may be left out
            expected = kind(repeats=(2, 2, 2), widths=widths).eval()
            expected.load_state_dict(net.extract(level).state_dict())
            torch.testing.assert_close(net(images()).levels[level], expected(images()))
    check(net, backbone, (images(),))
    assert_costs_increase(net)


def private(net: AnytimeModel) -> set[str]:
    return {name for name, _ in net.named_parameters() if name.startswith("anytime.")}


def test_each_scheme_says_what_its_levels_have_for_themselves() -> None:
    backbone = Projected(repeats=(1, 1, 4))
    both = private(net_of(backbone))
    assert "anytime.0.head.weight" in both
    assert "anytime.0.stage1.0.bn1.weight" in both
    assert not any("stage3.3" in name for name in both)
    # Behind the gap the depth's norms are private; before it only narrowed axes make a difference.
    behind = private(net_of(backbone, norms="shared", heads="shared"))
    assert behind == {"anytime.0.norm.weight", "anytime.0.norm.bias"}
    assert private(net_of(backbone, {"norms": "shared"}, norms="shared", heads="shared")) == set()
    assert private(net_of(backbone, {"norms": "shared"}, heads="shared")) == both - {
        "anytime.0.head.weight",
        "anytime.0.head.bias",
    }


def test_heads_are_private_at_full_width_too() -> None:
    net = transform(Projected(repeats=(1, 1, 4)), STEPS, (images(),))
    assert {"anytime.0.head.weight", "anytime.1.head.weight"} <= private(net)
    assert "anytime.1.stage1.0.bn1.weight" not in private(net)


def test_what_nothing_reaches_is_computed_once() -> None:
    net = net_of(Projected(repeats=(2, 2, 2)), where=("stage3.*",))
    names = [node.name for node in net.rewritten.program.graph.nodes]
    assert "level0_stage3_0_conv1" in names
    assert "level0_stem" not in names


def test_levels_train_together() -> None:
    net = transform(Dense(repeats=(2, 2, 2)), STEPS, (images(),)).train()
    net.loss(net(images()), torch.tensor([0, 1])).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_importance_comes_first() -> None:
    backbone = Projected(repeats=(2, 2, 2)).eval()
    check(net_of(backbone, order="l1"), backbone, (images(),), same_weights=False)


@pytest.mark.parametrize(
    "given",
    [
        STEPS,
        STEPS[::-1],
        [str(STEPS[0]), STEPS[1]],
        SPEC,
        f"{STEPS[1]}, {STEPS[0]}",
        " nested-depth { depths=0.5,0.5,1 }\n nested-channels { widths=(0.5, 1, 1) } ",
    ],
    ids=str,
)
def test_sequences_in_every_spelling(given: Any) -> None:
    net = transform(Projected(repeats=(2, 2, 2)), given, (images(),), verify=False)
    assert str(net.scheme) == SPEC
    assert parse_scheme(SPEC) == net.scheme == DepthAndWidth(*STEPS)
    assert not any("nested-depth nested-channels" in name for name in schemes())


def test_saved_models_come_back(tmp_path: Path) -> None:
    net = transform(Projected(repeats=(2, 2, 2)), SPEC, (images(),)).eval()
    net.save(tmp_path / "net.safetensors")
    again = anytimeify.load(tmp_path / "net.safetensors")
    assert again.scheme == net.scheme
    for one, other in zip(net(images()).levels, again(images()).levels, strict=True):
        assert close(one, other)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported = torch.export.export(Projected(repeats=(2, 2, 2)), (images(),), strict=False)
    torch.export.save(exported, tmp_path / "model.pt2")
    with pytest.raises(SystemExit) as ended:
        cli.main(["convert", str(tmp_path / "model.pt2"), "--scheme", SPEC, "--out", str(tmp_path / "net")])
    assert not ended.value.code
    assert f"{SPEC}: 3 levels" in capsys.readouterr().out
    assert str(anytimeify.load(tmp_path / "net" / "net.safetensors").scheme) == SPEC


class Chain(nn.Module):
    """Blocks of equal sizes, each with channels of its own: where some are narrowed, neighbours differ."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 3)
        self.layers = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.layers(self.stem(x))).mean((2, 3))
        return result


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((NestedDepth(), NestedChannels((0.25, 0.5, 1.0))), "depths has 2 levels and widths 3"),
        ((NestedDepth((0.5, 0.5, 1.0)), NestedChannels((0.5, 0.5, 1.0))), "levels 0 and 1 both have depth 0.5"),
        ((NestedDepth((0.5, 1.0, 1.0)), NestedChannels((0.5, 1.0, 1.0))), "levels 1 and 2 both have depth 1"),
        ((NestedDepth((0.5, 0.6, 1.0)), NestedChannels((0.25, 0.5, 1.0))), "0.6 leaves out the same blocks as 0.5"),
        ((NestedDepth((0.25, 0.5, 1.0)), NestedChannels((0.5, 0.51, 1.0))), "0.51 keeps as many channels as 0.5"),
        ((NestedDepth(), NestedDepth()), "nested-depth, nested-depth cannot be combined; what can be: nested-depth wi"),
        ((NestedDepth(), AuxiliaryBranches()), "nested-depth, auxiliary-branches cannot be combined"),
        ((*STEPS, NestedDepth()), "cannot be combined; what can be: nested-depth with nested-channels"),
        ("nested-depth nested-canals", "'nested-canals' is not a scheme"),
        (NestedDepth((0.5, 0.5, 1.0)), "depths=0.5,0.5,1: expected increasing"),
        (NestedChannels((0.5, 0.5, 1.0)), "widths=0.5,0.5,1: expected increasing"),
    ],
)
def test_what_is_refused(given: Any, says: str) -> None:
    with pytest.raises(SchemeError) as error:
        transform(Projected(repeats=(3, 3, 3)), given, (images(),))
    assert says in str(error.value)


def test_triangular_connectivity_is_refused() -> None:
    with pytest.raises(SchemeError, match="triangular"):
        transform(Projected(), (NestedDepth(), NestedChannels((0.5, 1.0), connectivity="triangular")), (images(),))


def test_a_gap_between_different_widths_is_refused() -> None:
    with pytest.raises(SchemeError, match="cannot be left out at these widths"):
        transform(Chain(), (NestedDepth(), NestedChannels((0.5, 1.0), where=("layers.0", "layers.1"))), (images(),))
