"""Channels by importance: what each criterion measures, and that sorting by it changes no function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytimeify import ArgumentError, NestedChannels, SchemeError, transform
from anytimeify.analysis.axes import Axes, analyse
from anytimeify.capture import capture
from anytimeify.ir import Captured
from anytimeify.ir.evidence import Evidence
from anytimeify.losses import JointLoss
from anytimeify.passes.importance import CRITERIA, READ_BATCHES, importance
from tests.rounding import close


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8, 6)
        self.head = nn.Linear(6, 4)

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu().mean((2, 3))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.features(x)).relu())  # type: ignore[no-any-return]


def network() -> Small:
    model = Small()
    with torch.no_grad():
        model.norm.weight.uniform_(-1, 1)
        model.norm.bias.normal_()
        model.norm.running_mean.normal_()  # type: ignore[union-attr]
        model.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(5, 3, 6, 6), torch.randint(0, 4, (5,))) for _ in range(count)]


def found(model: nn.Module, criterion: str, given: Any = None) -> dict[str, np.ndarray[Any, Any]]:
    """By the name of the axis group."""
    captured = capture(model, torch.randn(2, 3, 6, 6))
    if given is not None:
        captured = with_evidence(captured, given)
    axes: Axes = analyse(captured.program)
    scores = importance(criterion, captured, axes)
    return {group.name: scores[group.factor] for group in axes.narrowable if group.factor in scores}


def with_evidence(captured: Captured, given: Any) -> Captured:
    from dataclasses import replace

    return replace(captured, evidence=Evidence(given, JointLoss()))


def test_l1_sums_all_weights_of_a_channel() -> None:
    model = network()
    scores = found(model, "l1")
    expected = model.conv.weight.abs().sum((1, 2, 3)) + model.hidden.weight.abs().sum(0)
    np.testing.assert_allclose(scores["conv"], expected.detach().numpy(), rtol=1e-5)


def test_norm_scale_is_that_of_the_norm() -> None:
    model = network()
    scores = found(model, "norm-scale")
    assert set(scores) == {"conv"}
    np.testing.assert_allclose(scores["conv"], model.norm.weight.detach().abs().numpy(), rtol=1e-6)


def test_taylor_is_what_gates_would_say() -> None:
    model, data = network().eval(), batches()
    scores = found(model, "taylor", data)
    expected = torch.zeros(8)
    for x, target in data:
        model.zero_grad()
        F.cross_entropy(model(x), target).backward()
        for parameter, rest in (
            (model.conv.weight, (1, 2, 3)),
            (model.norm.weight, ()),
            (model.norm.bias, ()),
            (model.hidden.weight, (0,)),
        ):
            assert parameter.grad is not None
            product = parameter * parameter.grad
            expected += (product.sum(rest) if rest else product).detach() ** 2
    np.testing.assert_allclose(scores["conv"], expected.numpy(), rtol=1e-4)


def test_activation_is_what_layers_read() -> None:
    model, data = network().eval(), batches()
    scores = found(model, "activation", data)
    with torch.no_grad():
        hidden = sum(model.hidden(model.features(x)).relu().abs().mean(0) for x, _ in data)
        expected = sum(model.features(x).abs().mean(0) for x, _ in data)
    assert isinstance(expected, Tensor)
    assert isinstance(hidden, Tensor)
    np.testing.assert_allclose(scores["conv"], expected.numpy(), rtol=1e-4)
    np.testing.assert_allclose(scores["hidden"], hidden.numpy(), rtol=1e-4)


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_sorting_keeps_the_function(criterion: str) -> None:
    model, x = network().eval(), torch.randn(4, 3, 6, 6)
    data = batches() if criterion in READ_BATCHES else None
    net = transform(model, NestedChannels((0.5, 1.0), order=criterion), x, batches=data)  # type: ignore[arg-type]
    assert close(net(x).levels[-1], model(x))
    assert net.captured.evidence is None
    if criterion == "norm-scale":
        scale = net.extract(-1).state_dict()["norm.weight"].abs()
        assert scale.tolist() == sorted(scale.tolist(), reverse=True)
        assert any("order=norm-scale says nothing about hidden" in note for note in net.report().notes)


def test_a_channel_that_does_nothing_goes_first() -> None:
    model = network().eval()
    with torch.no_grad():
        model.hidden.weight[:, 2] = 0.0  # nobody reads it, however large its own weights are
        model.conv.weight[2] *= 100
        model.norm.running_var[2] *= 1e4  # type: ignore[index]
    data = batches()
    assert found(model, "taylor", data)["conv"][2] == 0.0
    scores = found(model, "l1", data)["conv"]
    assert scores[2] == scores.max()


def test_several_inputs_and_heads_of_attention() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.head((x + self.attention(x, y, y, need_weights=False)[0]).mean(1))  # type: ignore[no-any-return]

    model, given = Two().eval(), (torch.randn(2, 5, 16), torch.randn(2, 7, 16))
    data = [((torch.randn(4, 5, 16), torch.randn(4, 7, 16)), torch.randint(0, 3, (4,)))]
    for criterion in sorted(READ_BATCHES):
        net = transform(model, NestedChannels((0.5, 1.0), order=criterion), given, batches=data)  # type: ignore[arg-type]
        assert close(net(*given).levels[-1], model(*given))


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        ([], SchemeError, "batches: there is none to look at"),
        (None, SchemeError, r"order='taylor' looks at the network on data: give transform\(..., batches=loader\)"),
        ([torch.randn(2, 3, 6, 6)], ArgumentError, "expected pairs"),
        ([("a", 1)], ArgumentError, "the inputs of a batch are a tensor"),
        ([(torch.randn(2, 3, 5, 6), torch.zeros(2))], SchemeError, r"shape \(2, 3, 5, 6\).*\(2, 3, 6, 6\)"),
        ([((torch.randn(2, 3, 6, 6),) * 2, torch.zeros(2))], SchemeError, "2 inputs in a batch; the backbone takes 1"),
    ],
)
def test_what_is_no_data_is_refused(data: Any, error: Callable[..., Exception], says: str) -> None:
    with pytest.raises(error, match=says):  # type: ignore[call-overload]
        transform(network(), NestedChannels((0.5, 1.0), order="taylor"), torch.randn(2, 3, 6, 6), batches=data)
