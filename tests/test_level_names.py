"""A level named by its index, its `Level`, its name and its number, wherever one is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from anytimeify import AnytimeError, Budget, BudgetError
from anytimeify.ir.rewritten import LevelData, numbered
from anytimeify.level_names import find_level, parse_level
from tests.backbones import images, residual_net

WIDTHS = numbered("width", (0.25, 1 / 3, 1.0))
DENSITIES = numbered("density", (1e-5, 1.0))
LEAVES = (LevelData("1 leaf", 1), LevelData("2 leaves", 2), LevelData("4 leaves", 4), LevelData("consensus"))
BOTH = (LevelData("depth 0.5, width 0.5"), LevelData("depth 1, width 1"))
BRANCHES = (LevelData("branch at layer1.0"), LevelData("branch at 3"), LevelData("full"))
NAMED_ALIKE = (LevelData("width 0.5"), LevelData("any", 0.5))  # a name is not read as a number


@pytest.mark.parametrize(
    ("levels", "level", "index"),
    [
        (WIDTHS, 1, 1),
        (WIDTHS, -1, 2),
        (WIDTHS, np.int64(1), 1),
        (WIDTHS, torch.tensor(1), 1),
        (WIDTHS, "width 0.25", 0),
        (WIDTHS, 0.25, 0),
        (WIDTHS, 1 / 3, 1),
        (WIDTHS, np.float32(0.25), 0),
        (WIDTHS, 1.0, 2),  # a float is a number, the integer 1 an index
        (LEAVES, 2.0, 1),
        (LEAVES, "consensus", 3),
        (DENSITIES, 1e-5, 0),
        (BOTH, "depth 0.5, width 0.5", 0),
        (BRANCHES, "branch at 3", 1),
        (WIDTHS, 0.333333, 1),  # as the name has it
        (NAMED_ALIKE, 0.5, 1),
    ],
)
def test_names(levels: tuple[LevelData, ...], level: Any, index: int) -> None:
    assert find_level(levels, level) == index


@pytest.mark.parametrize(
    ("levels", "level", "message"),
    [
        (WIDTHS, 3, r"there is no level 3: levels are 0 \(width 0.25\), 1 \(width 0.333333\), 2 \(width 1\)"),
        (WIDTHS, -4, "there is no level -4"),
        (WIDTHS, 0.5, "there is no level 0.5: levels are 0"),
        (WIDTHS, float("nan"), "there is no level nan"),
        (WIDTHS, "width 0.3", "there is no level 'width 0.3'"),
        (WIDTHS, True, "a level is given as True: expected its index, its name"),
        (WIDTHS, [0], r"a level is given as \[0\]"),
        (WIDTHS, torch.tensor([0.25, 0.5]), "a level is given as tensor"),
        (BOTH, 0.5, "there is no level 0.5"),  # two numbers a level
        (BRANCHES, 3.0, "there is no level 3.0"),  # the name of a layer is not a number of the scheme
        (numbered("width", (0.5, 0.5)), 0.5, "levels 0, 1 are all called 0.5"),
        (numbered("width", range(1, 100)), 0.5, r"5 \(width 6\), \.\.\., 94 \(width 95\)"),
    ],
)
def test_what_names_no_level(levels: tuple[LevelData, ...], level: Any, message: str) -> None:
    with pytest.raises(AnytimeError, match=message):
        find_level(levels, level)


def test_levels_as_text() -> None:
    assert [parse_level(text) for text in ("1", "-1", "0.25", "1.0", "full")] == [1, -1, 0.25, 1.0, "full"]
    assert isinstance(parse_level("1.0"), float)


def test_wherever_a_level_is_named() -> None:
    net, x = residual_net(), images()
    expected = net(x).levels[1]
    for name in (1, -2, net.levels[1], "width 0.5", 0.5):
        assert torch.equal(net(x, level=name), expected)
        assert net.graph(name) is net.graph(1)
        torch.testing.assert_close(net.extract(name)(x), expected)
        assert net.select(Budget(level=name)) is net.levels[1]
        torch.testing.assert_close(net.extract(Budget(level=name))(x), expected)
        assert [level.index for level in net.staged(levels=[name, "width 1"]).levels] == [1, 2]
        assert net.latency(name, seconds=0.01) == net.latency(1)


@pytest.mark.parametrize("call", ["forward", "graph", "extract", "latency", "staged", "select"])
def test_unknown_levels_are_refused_wherever_one_is_named(call: str) -> None:
    net = residual_net()
    calls: dict[str, Any] = {
        "forward": lambda: net(images(), level=0.3),
        "graph": lambda: net.graph("width 0.3"),
        "extract": lambda: net.extract(0.3),
        "latency": lambda: net.latency("0.5"),
        "staged": lambda: net.staged(levels=[0.3]),
        "select": lambda: net.select(Budget(level="narrow")),
    }
    with pytest.raises(BudgetError, match=r"there is no level .*: levels are 0 \(width 0.25\)") as found:
        calls[call]()
    assert isinstance(found.value, ValueError)


def test_in_compiled_code() -> None:
    net = residual_net()
    x = images()
    for level in (1, 0.5, "width 0.5"):
        compiled = torch.compile(lambda y, level=level: net(y, level=level), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), net(x, level=1))
