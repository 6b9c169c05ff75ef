"""In-place operations: by the printed graph where it is short, and by numbers always."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anytimeify import NestedChannels, transform
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
        y.narrow(2, 1, 3).mul_(3)
        y.diagonal(0, 1, 2).fill_(0.5)
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


class OtherOverloads(nn.Module):
    """In place these have another overload, or another order of arguments, than out of place."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.abs() + 1
        y.pow_(-0.5)
        y.pow_(x.sigmoid())
        y.ldexp_(torch.ones_like(x))
        y.polygamma_(1)
        y.transpose_(1, 2)
        marked = y > 1
        marked &= y < 2
        marked |= y > 3
        count = marked.long()
        count <<= 2
        return y.transpose(1, 2) * count.transpose(1, 2)


class IntoATensor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y, power = torch.empty_like(x), torch.empty_like(x)
        torch.mul(x, 2, out=y)
        torch.pow(y.abs() + 1, 0.5, out=power)
        row = torch.empty(6)
        torch.arange(6, out=row)
        filled = torch.empty(4, 6)
        torch.full((4, 6), 0.5, out=filled)
        return y * power + row * filled


@pytest.mark.parametrize(
    "kind",
    [
        *(ThroughSelectTwice, ThroughParts, ThroughPermutation, ReshapeThatCopies, Assignments, KeepsType),
        *(OtherOverloads, IntoATensor),
    ],
)
def test_same_numbers(kind: type[nn.Module]) -> None:
    program = check(kind(), X).program
    assert not [node for node in program.graph.nodes if str(node.target).removesuffix(".default").endswith("_")]


class ThroughWindows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.0
        y.unfold(2, 3, 3).add_(1)
        return y


def test_write_through_a_view_without_inverse_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match=r"add_.*test_functionalise\.py.*view.*read afterwards"):
        capture(ThroughWindows(), X)


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


class Drawn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        if self.training:
            h = h + torch.empty_like(h).normal_(0, 0.1) + torch.zeros_like(h).uniform_(-0.1, 0.1)
            h = h * (h * 0).exponential_(2.0)  # nothing of what was there is left
        return self.head(h)  # type: ignore[no-any-return]  # of torch


def test_numbers_drawn_in_place_take_no_gradient() -> None:
    program = check(Drawn(), X).program
    assert {"normal_functional", "uniform", "exponential"} <= {
        str(node.target).split(".")[1] for node in program.graph.nodes if node.op == "call_function"
    }
    net = transform(Drawn(), NestedChannels(widths=(0.5, 1.0)), X)
    torch.stack(net.train()(X).levels).sum().backward()
    assert all(one.grad is not None for one in net.parameters())


class DropsInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        torch.nn.functional.dropout(h, 0.5, self.training, inplace=True)
        h = torch.nn.functional.rrelu(h, training=self.training, inplace=True)
        return self.head(h)  # type: ignore[no-any-return]  # of torch


def test_what_is_dropped_in_place_is_what_was_there() -> None:
    check(DropsInPlace(), X)
    net = transform(DropsInPlace(), NestedChannels(widths=(0.5, 1.0)), X)
    torch.stack(net.train()(X).levels).square().sum().backward()
    gradient = net.get_parameter("linear.weight").grad
    assert gradient is not None
    assert gradient.abs().max() > 0


class FillsADiagonal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.mean(0)
        y.fill_diagonal_(0.0)
        return y


def test_no_functional_form() -> None:
    with pytest.raises(UnsupportedOpError, match=r"has no functional form\. Write it out of place"):
        capture(FillsADiagonal(), (X,))
