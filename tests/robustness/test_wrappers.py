"""Modules in other people's clothes: wrappers, hooks, parametrizations, grad modes, and layouts of memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from anytimeify import CaptureError, transform
from tests.robustness.helpers import SCHEME, check, close

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.body(x)).relu())
        return result


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        result: Tensor = self.head(x.view(x.shape[0], 8, -1).mean(-1))
        return result


def compiled() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own scripted modules, at the first compilation
        return torch.compile(Base(), backend="eager")  # type: ignore[return-value]  # an OptimizedModule


def compiled_in_place() -> nn.Module:
    model = Base()
    model.compile(backend="eager")
    return model


WRAPPERS: dict[str, Callable[[], nn.Module]] = {
    "data parallel": lambda: nn.DataParallel(Base()),
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "graph module": lambda: fx.symbolic_trace(Base()),
    "graph module of a net": lambda: transform(Base(), SCHEME, X).extract(-1),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_modules_keep_their_names(name: str) -> None:
    model = WRAPPERS[name]()
    net = check(model, X.to(next(model.parameters()).device))  # data parallelism moves to a GPU where there is one
    assert model.state_dict().keys() <= net.state_dict().keys()


class NoGrad(Base):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Inference(Base):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Checkpointed(Base):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(checkpoint(lambda x: self.norm(self.body(x)).relu(), x, use_reentrant=False))
        return result


@pytest.mark.parametrize("make", [NoGrad, Inference, Checkpointed])
def test_decorated_forwards(make: Callable[[], nn.Module]) -> None:
    check(make(), X)


def test_under_grad_modes_of_the_caller() -> None:
    model = Base()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            net = transform(model, SCHEME, X)
        close(net.eval()(X, level=-1), model.eval()(X))
        assert not any(tensor.is_inference() for tensor in net.captured.program.tensors.values())
        model.train()


def test_models_and_inputs_made_in_inference_mode_train_all_the_same() -> None:
    with torch.inference_mode():
        model, x = Base(), torch.randn(3, 4)
    assert model.body.weight.is_inference()
    net = transform(model, SCHEME, x)
    with torch.no_grad():
        close(net.eval()(X, level=-1), model.eval()(X))
    net.train()(X).levels[0].sum().backward()
    assert net.get_parameter("body.weight").grad is not None
    assert model.body.weight.is_inference()


def test_frozen_parameters_stay_frozen() -> None:
    model = Base().requires_grad_(False)
    model.head.requires_grad_(True)
    net = check(model, X)
    wanted = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert {"head.weight", "head.bias"} <= wanted
    assert not {"body.weight", "norm.weight"} & wanted


# Hooks and parametrizations.


def doubled(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 2


def doubled_before(module: nn.Module, inputs: Any) -> tuple[Tensor]:
    return (inputs[0] * 2,)


def nothing(*args: Any) -> None: ...


HOOKS: dict[str, Callable[[Base], Any]] = {
    "forward, on the model": lambda model: model.register_forward_hook(doubled),
    "forward": lambda model: model.body.register_forward_hook(doubled),
    "before forward": lambda model: model.body.register_forward_pre_hook(doubled_before),
    "pruned": lambda model: prune.l1_unstructured(model.body, "weight", amount=0.3),
    "weight norm": lambda model: parametrizations.weight_norm(model.body),
    "orthogonal": lambda model: parametrizations.orthogonal(model.head),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_and_parametrizations_are_part_of_the_graph(name: str) -> None:
    model, plain = Base().eval(), Base().eval()
    plain.load_state_dict(model.state_dict())
    HOOKS[name](model)
    net = check(model, X)
    if "forward" in name or name == "pruned":
        assert not torch.allclose(net(X, level=-1), plain(X))


class WithSpectralNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(8, 8)
        parametrizations.spectral_norm(self.body)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.more(self.norm(self.body(x)).relu()).relu())
        return result


def test_spectral_norm() -> None:
    """Its power iteration of training writes to buffers that eval mode reads."""
    check(WithSpectralNorm(), X)


@pytest.mark.parametrize(
    ("register", "where"),
    [
        (
            lambda model: model.body.register_full_backward_hook(nothing),
            r"backward hook .* on 'body' \(Linear\): nothing",
        ),
        (lambda model: model.register_full_backward_pre_hook(nothing), r"backward hook .* on Base: nothing"),
        (lambda model: model.body.weight.register_hook(nothing), r"gradient hook .* the parameter 'body.weight'"),
        (
            lambda model: model.body.weight.register_post_accumulate_grad_hook(nothing),
            r"gradient hook .* the parameter 'body.weight'",
        ),
    ],
)
def test_hooks_of_the_backward_pass_are_refused_by_name(register: Callable[[Base], Any], where: str) -> None:
    model = Base()
    handle = register(model)
    with pytest.raises(CaptureError, match=where):
        transform(model, SCHEME, X, verify=False)
    handle.remove()
    check(model, X)


def test_hooks_that_record_are_run_but_change_nothing() -> None:
    model, seen = Base(), []
    model.body.register_forward_hook(lambda module, inputs, output: seen.append(type(output)))
    check(model, X)
    assert seen


# Batches and layouts.


def test_a_batch_of_one_is_no_constant() -> None:
    net = check(Images(), IMAGES[:1])
    for batch in (1, 2, 4):
        assert net(IMAGES[:batch], level=0).shape == (batch, 3)
        assert net.extract(0)(IMAGES[:batch]).shape == (batch, 3)


def test_a_batch_of_one_that_batch_norm_could_not_train_on() -> None:
    net = transform(Base(), SCHEME, X[:1])
    assert net.eval()(X, level=0).shape == (3, 3)
    assert not [note for note in net.captured.notes if "lost" in note]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3),
        lambda x: x[:1].expand(4, -1, -1, -1),
        lambda x: x.clone().requires_grad_(),
        lambda x: nn.Parameter(x.clone()),
        lambda x: torch.cat([x, x], 3)[..., ::2],
    ],
)
def test_layouts_of_the_example(change: Callable[[Tensor], Tensor]) -> None:
    net = check(Images(), change(IMAGES.clone()))
    assert net(IMAGES, level=0).shape == (4, 3)


def test_layouts_of_the_model() -> None:
    last = IMAGES.contiguous(memory_format=torch.channels_last)
    model = Images().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's types
    net = transform(model.eval(), SCHEME, IMAGES)
    assert net.get_parameter("conv.weight").is_contiguous(memory_format=torch.channels_last)
    close(net(last, level=0), net(IMAGES, level=0))


def test_calls_in_another_layout_than_the_example() -> None:
    """The backbone's `view` would fail on some; the canonical form has no strides."""
    net = transform(Images().eval(), SCHEME, IMAGES)
    close(net(IMAGES.contiguous(memory_format=torch.channels_last), level=0), net(IMAGES, level=0))
