"""Derivatives that the user wrote, and recomputation: what a graph of a forward pass alone would lose."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anytimeify import AnytimeModel, CaptureError, NestedChannels, VerificationError, load, transform
from anytimeify.capture.custom_derivatives import direct_checkpoints, kept
from anytimeify.testing import assert_levels_equal_extracts

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
SCHEMES = [
    "nested-channels{widths=0.5,1}",
    "nested-channels{widths=0.5,1 connectivity=triangular}",
    "nested-weights{densities=0.5,1}",
    "hierarchical-ensemble{depth=1}",
    "auxiliary-branches{branches=1}",
]


class Rounded(torch.autograd.Function):
    """Rounding to steps, straight through where the input is small."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: int) -> Tensor:
        ctx.save_for_backward(x)
        return torch.round(x * steps) / steps

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return gradients[0] * (x.abs() < 1), None


class Spike(torch.autograd.Function):
    """A step with a smooth derivative, in the newer style."""

    @staticmethod
    def forward(x: Tensor, slope: float = 5.0) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, ctx.slope = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return gradients[0] / (1 + ctx.slope * x.abs()) ** 2, None


class Both(torch.autograd.Function):
    """Two inputs, two results, and a derivative of neither."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * y, x + y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * 3, gradients[1] * 2


rounded: Callable[..., Any] = Rounded.apply  # as libraries do: bound before anything is captured
spike: Callable[..., Any] = Spike.apply
both: Callable[..., Any] = Both.apply
SLOPE = {"slope": 2.0}  # by name, which an older torch refuses


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)


class Quantised(Net):
    """A weight and activations through rounding."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.linear(x, rounded(self.first.weight, 8), self.first.bias)
        result: Tensor = self.head(self.second(rounded(hidden, 4).relu()).relu())
        return result


class Spiking(Net):
    def forward(self, x: Tensor) -> Tensor:
        hidden = spike(self.first(x), **SLOPE) if torch.__version__ >= "2.13" else spike(self.first(x), 2.0)
        result: Tensor = self.head(spike(self.second(hidden)))
        return result


class ByMode(Net):
    """Steps that are finer, and have a flatter derivative, in training."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = rounded(self.first(x), 8 if self.training else 2)
        result: Tensor = self.head(spike(self.second(hidden), 1.0 if self.training else 9.0))
        return result


class Paired(Net):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        product, total = both(hidden, self.second(hidden).tanh())
        result: Tensor = self.head(product - total)
        return result


def gradients(predict: Callable[[Tensor], Tensor], named: nn.Module) -> dict[str, Tensor]:
    parameters = dict(named.named_parameters())
    found = torch.autograd.grad(predict(X).square().sum(), list(parameters.values()), allow_unused=True)
    given: dict[str, Tensor | None] = dict(zip(parameters, found, strict=True))
    return {name: one for name, one in given.items() if one is not None}


def assert_trains_alike(net: AnytimeModel, model: nn.Module) -> None:
    want = gradients(model, model)
    have = gradients(lambda x: net(x, level=net.full), net)
    assert want.keys() <= have.keys()
    for name, gradient in want.items():
        part = have[name][: gradient.shape[0]].reshape(gradient.shape)  # of stacked members the first
        torch.testing.assert_close(part, gradient, msg=name)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("make", [Quantised, Spiking, ByMode, Paired])
def test_functions_keep_their_derivatives(make: type[Net], scheme: str) -> None:
    model = make()
    net = transform(model, scheme, X)
    if net.exact:
        assert_trains_alike(net, model)
    assert_levels_equal_extracts(net)
    assert net.levels[0].cost.params <= net.levels[-1].cost.params
    for graph in (net.extract(0), net.extract(-1)):
        assert "anytimeify" not in graph.code
        assert not any("anytimeify" in type(module).__module__ for module in graph.modules())


def test_axes_pass_through_functions() -> None:
    net = transform(Spiking(), NestedChannels((0.5, 1.0)), X)
    assert net.extract(0).get_parameter("second.weight").shape == (4, 4)


def test_a_file_names_the_function_and_imports_nothing(tmp_path: Path) -> None:
    model = Quantised()
    net = transform(model, NestedChannels((0.5, 1.0)), X)
    net.save(tmp_path / "net.safetensors")
    assert_trains_alike(load(tmp_path / "net.safetensors"), model)


class Elsewhere(Net):
    def __init__(self, call: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.call(self.first(x), self.second))
        return result


class Applied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        result: Tensor = layer(x)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


applied: Callable[..., Any] = Applied.apply
inplace: Callable[..., Any] = InPlace.apply


class Sparsemax(torch.autograd.Function):
    """Writes to its input before it uses it, as pytorch-tabnet does; backward reads what it saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x -= x.max(-1, keepdim=True).values
        ordered = x.sort(-1, descending=True).values
        sums = ordered.cumsum(-1) - 1
        size = (torch.arange(1, x.shape[-1] + 1) * ordered > sums).sum(-1, keepdim=True)
        result = (x - sums.gather(-1, size - 1) / size).clamp(min=0)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        support = (result > 0).to(result.dtype)
        mean = (gradients[0] * support).sum(-1, keepdim=True) / support.sum(-1, keepdim=True)
        return torch.where(result > 0, gradients[0] - mean, 0.0)


sparsemax: Callable[..., Any] = Sparsemax.apply


def read_later(x: Tensor, _: nn.Module) -> Tensor:
    h = x * 1
    y: Tensor = inplace(h) * 2 + h
    return y


def gated(x: Tensor, second: nn.Module) -> Tensor:
    y: Tensor = second(x).relu()
    gates: Tensor = sparsemax(y[:, :1] * torch.ones(8))
    return y * gates


@pytest.mark.parametrize("call", [lambda x, _: inplace(x * 1), gated, read_later])
def test_a_function_may_write_to_its_input(call: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Elsewhere(call)
    net = transform(model, NestedChannels((0.5, 1.0)), X)
    net.train()
    net(X, level=-1).square().sum().backward()
    model.train()(X).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(net.get_parameter(name).grad, parameter.grad, msg=name)
    net.save(tmp_path / "net")
    torch.testing.assert_close(load(tmp_path / "net").eval()(X, level=-1), model.eval()(X))


class Unmarked(InPlace):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.mul_(2) + 0


unmarked: Callable[..., Any] = Unmarked.apply


def read_without_a_mark(x: Tensor, _: nn.Module) -> Tensor:
    h = x * 1
    y: Tensor = unmarked(h) * 2 + h
    return y


def test_a_write_that_autograd_is_not_told_of_is_refused_where_it_is_read() -> None:
    with pytest.raises(VerificationError, match="does not train as the backbone does"):
        transform(Elsewhere(read_without_a_mark), NestedChannels((0.5, 1.0)), X)


def hooked(x: Tensor, _: nn.Module) -> Tensor:
    x = x * 1
    if x.requires_grad:
        x.register_hook(halved)
    return x


def halved(gradient: Tensor) -> Tensor:
    return gradient / 2


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (applied, "function Applied, which takes a Linear"),
        (hooked, "a hook on the gradient of an intermediate tensor.*: halved"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused_by_name(call: Any, why: str) -> None:
    with pytest.raises(CaptureError, match=why):
        transform(Elsewhere(call), NestedChannels((0.5, 1.0)), X, verify=False)
    Elsewhere(lambda x, layer: rounded(x, 2))(X).sum().backward()  # nothing stays replaced


class Checkpointed(Net):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant, self.norm = reentrant, nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(lambda x: self.norm(self.second(x)).relu(), self.first(x), use_reentrant=self.reentrant)
        result: Tensor = self.head(hidden)
        return result


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_parts_train(reentrant: bool) -> None:
    model = Checkpointed(reentrant)
    net = transform(model, NestedChannels((0.5, 1.0)), X)
    net(X, level=-1).square().sum().backward()
    model(X).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(net.get_parameter(name).grad, parameter.grad, msg=name)


def test_other_threads_call_what_they_always_called() -> None:
    inside, done = threading.Event(), threading.Event()
    found: list[str] = []

    def other() -> None:
        inside.wait(10)
        x = torch.ones(2, requires_grad=True)
        name = type(rounded(x, 2).grad_fn).__name__
        checkpoint(lambda x: x * 2, x, use_reentrant=True).sum().backward()
        found.append(name)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with kept(), direct_checkpoints():
        inside.set()
        done.wait(10)
    thread.join()
    assert found == ["RoundedBackward"]
