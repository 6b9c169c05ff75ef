"""In-place operations: by the printed graph where it is short, and by numbers always."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anytimeify.capture import capture
from anytimeify.errors import UnsupportedOpError
from tests.capture.helpers import check, text

X = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        z = y.relu_()
        y += x
        return y * z


def test_later_readers_see_the_result() -> None:
    program = check(Residual(), X).program
    assert text(program) == "\n".join([
        "mul = mul(x, 2)",
        "relu = relu(mul)",
        "add = add(relu, x)",
        "mul_1 = mul(add, add)",
        "return mul_1",
    ])  # fmt: skip


class ThroughSlice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        y[:, 1:3].mul_(3)
        return y


def test_write_through_a_slice() -> None:
    program = check(ThroughSlice(), X).program
    assert text(program) == "\n".join([
        "add = add(x, 1)",
        "slice_op = slice(add, 1, 1, 3)",
        "mul = mul(slice_op, 3)",
        "slice_scatter = slice_scatter(add, mul, 1, 1, 3)",
        "return slice_scatter",
    ])  # fmt: skip


class ThroughSelectTwice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        whole = y.view(x.shape[0], -1)
        y[:, 0] += 5
        y[:, :, 1] = 7.0
        return whole * 2 + y.flatten(1)


class ThroughParts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.5
        a, b = y.chunk(2, 1)
        a.add_(1)
        first, *_ = y.unbind(1)
        first.mul_(b[:, 0])
        *_, last = y.split([1, 3, 2], 2)
        last.sigmoid_()
        return y + torch.cat([a, b], 1)


class ThroughPermutation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.5
        y.transpose(1, 2).add_(x.mean(1, keepdim=True).transpose(1, 2))
        y.permute(2, 0, 1)[0].mul_(2)
        y.unsqueeze(1).squeeze(1).sub_(0.5)
        return y


class ReshapeThatCopies(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.5
        z = y.transpose(1, 2).reshape(x.shape[0], -1)  # not a view: its memory is its own
        z.add_(1)
        w = y.transpose(1, 2).contiguous()
        w.add_(1)
        return y.flatten(1) * z * w.flatten(1)


class Assignments(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, 0] = x[:, 0]
        y[:, 1, :2].copy_(x[:, 2, :2])
        z = torch.empty_like(x)
        z.fill_(0.5)
        count = torch.ones(4, dtype=torch.int64)
        count += 2
        z[:, :, 1:] = x[:, :, :1]
        y[:, 3].zero_()
        return y * z + count.view(1, 4, 1)


class KeepsType(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.to(torch.float16)
        y.mul_(torch.ones(1, dtype=torch.float32) * 1.5)  # stays half in place
        return y.float()


@pytest.mark.parametrize(
    "kind", [ThroughSelectTwice, ThroughParts, ThroughPermutation, ReshapeThatCopies, Assignments, KeepsType]
)
def test_same_numbers(kind: type[nn.Module]) -> None:
    program = check(kind(), X).program
    assert not [node for node in program.graph.nodes if str(node.target).removesuffix(".default").endswith("_")]


class ThroughExpansion(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.mean(1, keepdim=True) * 1.0
        y.expand(-1, 1, -1).diagonal(0, 1, 2).add_(1)
        return y


def test_write_through_a_view_without_inverse_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match=r"add_.*test_functionalise\.py.*diagonal.*read afterwards"):
        capture(ThroughExpansion(), X)


class Counter(nn.Module):
    """Writes to a buffer in train mode only."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)
        self.register_buffer("average", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.average.mul_(0.9).add_(x.mean((0, 1)).detach())
        result: Tensor = self.linear(x - self.average)
        return result


def test_buffers_written_in_training_are_updated_there() -> None:
    captured = check(Counter(), X, training=False)
    assert captured.notes == ("'average' is written to in training, as in the backbone",)
    assert "update_buffer(average, " in text(captured.program)


class Always(Counter):
    def forward(self, x: Tensor) -> Tensor:
        self.average.add_(x.mean((0, 1)).detach())
        return super().forward(x)


def test_buffers_written_always_are_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="'average' is written to"):
        capture(Always(), X)


class KeepsBatch(Counter):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.average = x.detach()[:, 0, :]
        result: Tensor = self.linear(x)
        return result


def test_a_buffer_that_gets_another_shape_is_said_to_be_lost() -> None:
    captured = check(KeepsBatch(), X, training=False)
    assert any("puts values of shape" in lost and "where (6,) is" in lost for lost in captured.lost)
    assert "update_buffer" not in text(captured.program)
