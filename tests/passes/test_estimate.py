"""How large results will be, before they are made; and the limits that they stay within."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from anytimeify import Limits, SchemeError, parse_scheme, transform
from anytimeify.analysis.axes import Axes, analyse
from anytimeify.capture import capture
from anytimeify.ir import Captured
from anytimeify.ir.sizes import ProgramSize, without_data
from anytimeify.passes.estimate import estimate


class Residual(nn.Module):
    """Convolutions with norms, in blocks with shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(6))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(6))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + norm(conv(x)).relu()
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Blocks of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True) for _ in range(6)
        )
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


class Dense(nn.Module):
    """Layers that read the concatenation of those before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(8 + 4 * index, 4, 3, padding=1) for index in range(6))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x).relu()], 1)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Running(nn.Module):
    """An operation that no rule fuses: members are computed one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3 * 32 * 32, 12)
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for layer in self.layers:
            x = layer(x).cumsum(1)
        return x


KINDS = {kind.__name__: kind for kind in (Residual, Attention, Dense, Running)}
SCHEMES = (
    "hierarchical-ensemble{depth=1 init=copy}",
    "hierarchical-ensemble{depth=3 init=copy}",
    "hierarchical-ensemble{depth=4 init=copy}",
    "hierarchical-ensemble{depth=2 init=copy sizes=all}",
    "hierarchical-ensemble{depth=3 init=copy fuse=false}",
    "hierarchical-ensemble{splits=(input,16) init=copy}",
    "nested-channels{widths=0.25,0.5,0.75,1}",
    "nested-channels{widths=0.25,0.5,0.75,1 connectivity=triangular}",
    "nested-depth{depths=0.34,0.67,1}",
    "nested-resolution{sizes=0.5,1}",
    "auxiliary-branches",
)


@cache
def captured(kind: str) -> tuple[Captured, Axes]:
    found = capture(KINDS[kind]().eval(), torch.randn(2, 3, 32, 32))
    return found, analyse(found.program)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_estimates_are_close(kind: str, scheme: str) -> None:
    found, axes = captured(kind)
    chosen = parse_scheme(scheme)
    try:
        made = ProgramSize.of(chosen.apply(found, axes).program)
    except SchemeError:
        pytest.skip("no such levels")
    said = estimate(chosen, found, axes)
    assert said is not None
    assert said.nodes == pytest.approx(made.nodes, rel=0.15)
    assert said.memory_bytes == pytest.approx(made.memory_bytes, rel=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_nearly_every_scheme_is_made(kind: str) -> None:
    """So that the test before does not skip what it shall find."""
    found, axes = captured(kind)
    refused = set()
    for scheme in SCHEMES:
        try:
            estimate(parse_scheme(scheme), found, axes)
        except SchemeError:
            refused.add(scheme)
    assert len(refused) <= 3, refused


def test_an_estimate_copies_nothing() -> None:
    found, axes = captured("Residual")
    drawn: list[Mapping[str, Tensor]] = []

    def draw(wanted: object) -> Mapping[str, Tensor]:
        drawn.append({})
        return {}

    estimate(parse_scheme("hierarchical-ensemble{depth=3}"), replace(found, reinitialised=draw), axes)
    assert drawn == []
    assert all(tensor.is_meta for tensor in without_data(found.program).tensors.values())


def test_too_many_nodes() -> None:
    model, images = Residual(), torch.randn(2, 3, 16, 16)
    with pytest.raises(
        SchemeError, match=r"would make a network of about [\d,]+ nodes, and the limit is nodes=500\."
    ) as raised:
        transform(model, "hierarchical-ensemble{depth=5 init=copy}", images, limits=Limits(nodes=500))
    allowed = Limits.parse(str(raised.value).rpartition("--limits ")[2])
    net = transform(model, "hierarchical-ensemble{depth=5 init=copy}", images, limits=allowed, verify=False)
    assert 500 < len(net.rewritten.program.graph.nodes) <= allowed.nodes


def test_too_many_bytes() -> None:
    images = torch.randn(2, 3, 16, 16)
    scheme = "hierarchical-ensemble{splits=(input,32) init=copy}"
    with pytest.raises(SchemeError, match=r"about [\d,]+ bytes, and the limit is memory_bytes=100,000"):
        transform(Residual(), scheme, images, limits=Limits(memory_bytes=100_000))
    with torch.device("meta"):
        model = Residual()
    transform(model, scheme, images, limits=Limits(memory_bytes=1), verify=False)


def test_what_is_far_from_the_limits_is_not_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anytimeify.passes.estimate.estimate", lambda *given: pytest.fail("was estimated"))
    Limits().check(parse_scheme("nested-channels"), *captured("Residual"))


@pytest.mark.parametrize("text", ["", "nodes", "nodes=x", "size=3", "nodes=0", "nodes=-1", "nodes=inf"])
def test_limits_that_are_none(text: str) -> None:
    with pytest.raises(SchemeError, match="limits"):
        Limits.parse(text)
    assert Limits.parse("nodes=2e5,memory_bytes=4e10") == Limits(200_000, 40_000_000_000)
