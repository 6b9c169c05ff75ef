"""Verification of training: what it finds, and what it takes for the rounding that it is."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytimeify import AnytimeWarning, NestedChannels, VerificationError, transform, verification
from anytimeify.verification import training
from anytimeify.verification.randomness import WithoutRandomness
from anytimeify.verification.training import Step
from tests.backbones import Residual, images

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
SCHEME = NestedChannels((0.5, 1.0))


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.more, self.head = (
            nn.Linear(4, 8),
            nn.BatchNorm1d(8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )

    def hidden(self, x: Tensor) -> Tensor:
        result: Tensor = self.more(self.norm(self.body(x)).relu())
        return result

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.hidden(x))
        return result


class Random(Base):
    """Dropout of every kind, noise, and a leaky slope that is drawn."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.rrelu(self.hidden(x), training=self.training)
        x = F.alpha_dropout(F.dropout(x, 0.4, self.training), 0.3, self.training)
        heads = x.reshape(-1, 2, 1, 4)
        x = F.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.5 if self.training else 0.0).reshape(-1, 8)
        if self.training:
            x = x + torch.randn_like(x) * torch.rand_like(x) + torch.empty_like(x).exponential_()
        result: Tensor = self.head(x)
        return result


def test_randomness_is_no_difference() -> None:
    model = Random()
    net = transform(model, SCHEME, X)
    state = torch.get_rng_state()
    gap, _ = verification.compare_training(net, model)
    assert torch.equal(torch.get_rng_state(), state)
    assert gap is not None
    assert (gap.prediction, gap.gradient, gap.buffer) == pytest.approx((0, 0, 0), abs=1e-6)
    assert (gap.changed, gap.followed) == (3, 3)


def test_without_randomness() -> None:
    x = torch.linspace(-1, 1, 8)
    with WithoutRandomness():
        assert torch.equal(F.dropout(x, 0.7), x)
        assert torch.equal(torch.bernoulli(x.abs()), x.abs())
        assert torch.equal(torch.randn(3) + torch.rand(3), torch.full((3,), 0.5))
        assert torch.equal(torch.empty(2).uniform_(1, 3), torch.full((2,), 2.0))
        assert torch.equal(torch.randperm(9), torch.randperm(9))
        assert torch.equal(torch.floor(0.75 + torch.rand(3)), torch.full((3,), 0.75))
        assert torch.equal((torch.rand_like(x) + 0.75).floor_(), torch.full((8,), 0.75))
        assert torch.equal(torch.floor(torch.rand(3) * 4), torch.full((3,), 2.0))
        assert torch.equal(F.rrelu(x, training=True), torch.where(x < 0, x * (1 / 8 + 1 / 3) / 2, x))


class Python(Base):
    """State that no tensor holds: each pass in train mode is scaled differently."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part, self.passes = part, itertools.count(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(x)
        scale = next(self.passes)
        if self.part == "prediction":
            x = x * scale if self.training else x
        elif self.training:  # the same value with another derivative
            x = x * scale - x.detach() * (scale - 1)
        result: Tensor = self.head(x)
        return result


@pytest.mark.parametrize(
    ("part", "what"), [("prediction", "its prediction differs by"), ("gradient", "the gradient of 'more.bias' differs")]
)
def test_what_trains_differently_is_refused_and_named(part: str, what: str) -> None:
    with pytest.raises(VerificationError, match=f"does not train as the backbone does: .*{what}"):
        transform(Python(part), SCHEME, X)
    transform(Python(part), SCHEME, X, verify=False)


class Warmup(Base):
    """Counts its passes in an attribute: the first of them is what a graph holds."""

    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(x)
        if self.training:
            self.passes += 1
            x = x * min(1.0, self.passes / 4)
        result: Tensor = self.head(x)
        return result


def test_what_a_second_pass_does_otherwise_is_refused_and_undone() -> None:
    model = Warmup()
    model.passes = 1
    with pytest.raises(
        VerificationError, match=r"prediction differs by .* in a second forward pass, and not in the first"
    ):
        transform(model, SCHEME, X)
    assert model.passes == 1
    model.passes = 5  # is past its warmup
    net = transform(model, SCHEME, X)
    assert model.passes == 5
    torch.testing.assert_close(net(X, level=-1), model(X))


class FlooredCoins(Base):
    """Stochastic depth as it was written before `bernoulli_` was common."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(x)
        if self.training:
            x = x / 0.8 * torch.floor(0.8 + torch.rand([x.shape[0], 1], dtype=x.dtype))
        result: Tensor = self.head(x)
        return result


def test_coins_of_both_kinds_have_one_mean() -> None:
    net = transform(FlooredCoins(), SCHEME, X)
    assert any("drop_path" in str(node.target) for node in net.captured.program.graph.nodes)


class Remembers(Base):
    """What it keeps between calls: the last shape, a state, and a table that was made for it."""

    shape: torch.Size | None = None
    state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.shape != x.shape:
            self.shape, self.table = x.shape, len(x.shape)
        x = self.hidden(x)
        if not torch.compiler.is_exporting():
            self.state = x if self.state is None or self.state.shape != x.shape else self.state + x
        result: Tensor = self.head(x * self.table)
        return result


def test_what_a_backbone_remembers_is_put_back() -> None:
    model = Remembers()
    net = transform(model, SCHEME, X)
    assert net.captured.batch is not None
    assert "table" not in vars(model)
    assert (model.shape, model.state) == (None, None)


def test_a_parameter_without_elements() -> None:
    class Empty(Base):
        def __init__(self) -> None:
            super().__init__()
            self.none = nn.Parameter(torch.empty(0))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.hidden(x)) + self.none.sum()
            return result

    transform(Empty(), SCHEME, X)


def test_nothing_is_left_behind() -> None:
    backbone = Residual()
    backbone.bn1.eval()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    net = transform(backbone, SCHEME, images(), verify=False)
    own = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    verification.verify(net, backbone)
    for model, state in ((backbone, before), (net, own)):
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert model.training
    assert not backbone.bn1.training


class Counting(Base):
    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(x)


def test_counters_in_python_are_put_back() -> None:
    model = Counting()
    model(X)
    transform(model, SCHEME, X)
    assert model.passes == 1


@pytest.mark.parametrize("options", ["order=l1", "norms=shared heads=shared"])
def test_permuted_and_shared_parameters_are_compared(options: str) -> None:
    backbone = Residual()
    net = transform(backbone, f"nested-channels{{widths=0.5,1 {options}}}", images())
    gap, limit = verification.compare_training(net, backbone)
    assert gap is not None
    assert gap.within(limit)
    assert gap.followed == gap.changed > 0


def test_a_backbone_that_cannot_train_on_the_example_inputs_is_said() -> None:
    """A batch norm that has one value for each channel is refused by torch, in train mode."""
    model = Base()
    with pytest.warns(AnytimeWarning, match="Expected more than 1 value per channel"):
        net = transform(model.eval(), SCHEME, X[:1], dynamic_shapes={})
    with pytest.warns(AnytimeWarning, match="training was not compared .* fails .*more than 1 value per channel"):
        assert verification.compare_training(net, model)[0] is None


def gap_of_changed(monkeypatch: pytest.MonkeyPatch, change: Callable[[Step], dict[str, Any]]) -> tuple[Any, float]:
    """What is found where a step of the full level is changed."""
    model = Base()
    net = transform(model, SCHEME, X)
    step = training._step_of_level

    def broken(*args: Any, **kwargs: Any) -> Step | None:
        found = step(*args, **kwargs)
        assert found is not None
        return dataclasses.replace(found, **change(found))

    monkeypatch.setattr(training, "_step_of_level", broken)
    gap, limit = verification.compare_training(net, model)
    assert gap is not None
    return gap, limit


def test_a_gradient_that_is_no_number_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_number(step: Step) -> dict[str, Any]:
        gradient = step.gradients["more.weight"]
        assert gradient is not None
        return {"gradients": {**step.gradients, "more.weight": gradient * float("nan")}}

    gap, limit = gap_of_changed(monkeypatch, without_number)
    assert (gap.gradient, gap.parameter) == (float("inf"), "more.weight")
    assert not gap.within(limit)


def test_buffers_are_compared_entry_for_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics in another order are other statistics, unless the scheme has permuted the channels."""

    def turned(step: Step) -> dict[str, Any]:
        return {"buffers": {**step.buffers, "norm.running_mean": step.buffers["norm.running_mean"].flip(0)}}

    gap, _ = gap_of_changed(monkeypatch, turned)
    assert gap.name == "norm.running_mean"
    assert gap.buffer > 0.01


class Auxiliary(Base):
    """A head that only training has, with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Any:
        hidden = self.hidden(x)
        return (self.head(hidden), self.aux(hidden)) if self.training else self.head(hidden)


def test_buffers_of_other_outputs_are_left_out() -> None:
    model = Auxiliary()
    gap, limit = verification.compare_training(transform(model, SCHEME, X), model)
    assert gap is not None
    assert gap.within(limit)
    assert (gap.changed, gap.followed) == (3, 3)


class Indices(Base):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).argmax(1)


def test_predictions_without_a_derivative_are_left_out() -> None:
    model = Indices()
    gap, _ = verification.compare_training(transform(model, SCHEME, X), model)
    assert gap is None


class Table(nn.Module):
    """A table whose gradient is sparse: rows one by one, or the means of rows."""

    def __init__(self, kind: type[nn.Embedding | nn.EmbeddingBag]) -> None:
        super().__init__()
        self.table, self.body, self.head = kind(9, 8, sparse=True), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table(x)
        result: Tensor = self.head(self.body(rows.mean(1) if rows.ndim == 3 else rows).relu())
        return result


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_gradients_are_compared_and_reach_every_level(kind: type[nn.Embedding | nn.EmbeddingBag]) -> None:
    model, x = Table(kind), torch.arange(6).view(2, 3)
    net = transform(model, SCHEME, x)
    (want,) = torch.autograd.grad(model(x).square().sum(), model.get_parameter("table.weight"))
    found, narrow = (
        torch.autograd.grad(net(x, level=level).square().sum(), net.get_parameter("table.weight"))[0].to_dense()
        for level in (-1, 0)
    )
    torch.testing.assert_close(found, want.to_dense())
    assert narrow[:6, :4].abs().min() > 0
    assert kind is nn.EmbeddingBag or not narrow[:, 4:].any()  # bags are not narrowed
