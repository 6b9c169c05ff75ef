"""Forwards that a graph cannot say, or that give something else each time: one error, with what, where, what to do."""

from __future__ import annotations

import random
import re
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytimeify import (
    AnytimeError,
    AnytimeWarning,
    CaptureError,
    NestedChannels,
    UnsupportedOpError,
    VerificationError,
    transform,
    verification,
)
from tests.robustness.helpers import SCHEME, check

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.body(x))

    def finish(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(hidden).relu())
        return result


# Random in eval mode.


class Noise(Base):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        return self.finish(hidden + torch.randn_like(hidden))


class OwnNoise(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.body(x) * torch.rand(x.shape[0], 1))


class AlwaysDropout(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.finish(F.dropout(self.body(x), 0.5, training=True))


class Spread(Base):
    """Noise between 0 and 1, which has no value at the mean of what is drawn."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        noise = torch.randn_like(hidden)
        noise = (noise - noise.amin(1, True)) / (noise - noise.amin(1, True)).amax(1, True)
        return self.finish(hidden + noise)


@pytest.mark.parametrize("scheme", [SCHEME, NestedChannels(widths=(0.5, 1.0), connectivity="triangular")])
@pytest.mark.parametrize(
    ("make", "operation"),
    [(Noise, "randn_like"), (OwnNoise, "rand_like"), (AlwaysDropout, "bernoulli"), (Spread, "randn_like")],
)
def test_random_numbers_in_eval_mode_are_held_and_named(make: type[Base], operation: str, scheme: Any) -> None:
    with pytest.warns(AnytimeWarning) if make is AlwaysDropout else nullcontext():
        net = transform(make(), scheme, X).eval()
    (note,) = (note for note in net.captured.notes if note.startswith("random in eval mode"))
    assert re.search(rf"aten.{operation}.*test_refusals\.py:\d+", note)
    assert note in " ".join(str(net.report()).split())
    assert not torch.equal(net(X, level=-1), net(X, level=-1))


class Coin(Base):
    """Drops samples in training, so seldom that those of the example stay."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        if self.training:
            hidden = hidden * (torch.rand(len(x), 1) > 0.02)
        return self.finish(hidden)


def test_a_coin_that_falls_well_is_no_part_of_eval_mode() -> None:
    model = Coin()
    net = transform(model, SCHEME, X).eval()
    x = torch.randn(200, 4)
    torch.testing.assert_close(net(x, level=-1), model.eval()(x))
    assert not [note for note in net.captured.notes if note.startswith("random in eval mode")]
    torch.manual_seed(0)
    ours = net.train()(x, level=-1)
    assert not torch.allclose(ours, net(x, level=-1))


def test_what_is_held_is_still_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    net = transform(Noise(), SCHEME, X).eval()
    other = Noise()
    with pytest.raises(VerificationError, match=r"random in eval mode, and the result differs from it.*randn_like"):
        verification.verify(net, other)


def test_dropout_that_is_always_on_stays_on_by_the_same_rule() -> None:
    model = AlwaysDropout().eval()
    with pytest.warns(AnytimeWarning, match="training-only behaviour was lost"):
        net = transform(model, SCHEME, X, verify=False).eval()
    torch.manual_seed(5)
    expected = model(X)
    torch.manual_seed(5)
    torch.testing.assert_close(net(X, level=-1), expected)


class OtherNoise(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.body(x) * random.random())


def test_random_numbers_that_torch_does_not_draw() -> None:
    with pytest.raises(
        CaptureError, match=r"OtherNoise does not survive capture: .* Two runs of the model itself .*random"
    ):
        transform(OtherNoise(), SCHEME, X)


# Control flow, and values that leave the graph.


class Branch(Base):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        if hidden.mean() > 0:
            hidden = hidden * 2
        return self.finish(hidden)


class Loop(Base):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        while hidden.norm() > 1:
            hidden = hidden / 2
        return self.finish(hidden)


class Number(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.body(x))[: int(x.argmax()) + 1]


class Array(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.finish(torch.from_numpy(self.body(x).detach().numpy()))


@pytest.mark.parametrize("make", [Branch, Loop, Number, Array])
def test_control_flow_says_where_and_prints_nothing(make: type[Base], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError, match=rf"{make.__name__} .*at test_refusals\.py:\d+ in forward: ") as error:
        transform(make(), SCHEME, X)
    wanted = "Change that line" if make is Array else "replace the branch by arithmetic"
    assert wanted in str(error.value)
    assert capfd.readouterr() == ("", "")


class Scaled(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.body(x) * x.sum().item())


def test_a_number_that_is_only_multiplied_with_is_no_control_flow() -> None:
    check(Scaled(), X)


class Checked(Base):
    """Control flow in train mode alone."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        if self.training:
            assert not torch.isnan(hidden).any()
        return self.finish(hidden)


def test_control_flow_of_training_alone_costs_a_note() -> None:
    check(Checked(), X, lost=True)


class Conditional(Base):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.cond(
            x.sum() > 0, lambda x: self.finish(self.body(x)), lambda x: self.finish(self.body(2 * x)), (x,)
        )
        return result


def test_conditions_of_torch() -> None:
    with pytest.raises(AnytimeError, match=r"Conditional|'cond'") as error:
        transform(Conditional().eval(), SCHEME, X)
    assert len(str(error.value)) < 600


class Autocast(Base):
    @torch.autocast("cpu", dtype=torch.bfloat16)  # type: ignore[untyped-decorator]  # of torch
    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.body(x))


def test_autocast_around_forward() -> None:
    with pytest.raises(UnsupportedOpError, match=r"switches autocast on .*Move autocast around the call"):
        transform(Autocast(), SCHEME, X)


def test_what_is_no_backbone() -> None:
    for other in (nn.ModuleList([Base()]), nn.ModuleDict({"a": Base()})):
        with pytest.raises(CaptureError, match=r"does not run on the example inputs .*missing the required"):
            transform(other, SCHEME, X)
    with pytest.raises(CaptureError, match="not a type"):
        transform(Base, SCHEME, X)  # type: ignore[arg-type]  # refused input
