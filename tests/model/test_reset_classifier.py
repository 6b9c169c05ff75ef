"""New heads in place: as transforming a backbone whose head was replaced before; and heads replaced by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeError, AnytimeModel, NestedChannels, SchemeError, load, transform
from tests.passes.every_scheme import EVERY, images, net_of

CLASSES = 7


def with_new_head(model: nn.Module) -> nn.Module:
    """As a user does it who knows the backbone."""
    head = model.head
    assert isinstance(head, nn.Linear)
    model.head = nn.Linear(head.in_features, CLASSES)
    return model


def transformed(name: str, consensus: str | None) -> AnytimeModel:
    """The model of a backbone whose head was replaced before."""
    scheme, make = EVERY[name]
    made = make()
    model: Any = tuple(map(with_new_head, made)) if isinstance(made, tuple) else with_new_head(made)
    return transform(model, scheme, images(), consensus=consensus, verify=False)


def shapes(net: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in net.state_dict().items()]


@pytest.mark.parametrize(("name", "consensus"), [*((name, None) for name in EVERY), ("ensemble", "learned")])
def test_as_if_the_head_had_been_replaced_before(name: str, consensus: str | None) -> None:
    net = copy.deepcopy(net_of(name, None, consensus))
    before = net.tensors()
    modules = dict(net.named_modules())
    assert net.reset_classifier(CLASSES) is None  # type: ignore[func-returns-value]  # as in timm
    expected = transformed(name, consensus).eval()
    assert shapes(net) == shapes(expected)
    assert [level.cost for level in net.levels] == [level.cost for level in expected.levels]
    assert str(net.report()) == str(expected.report())
    expected.load_state_dict(net.state_dict())
    expected.recount()
    x = images()
    for own, other in zip(net(x).levels, expected(x).levels, strict=True):
        assert own.shape == (3, CLASSES)
        torch.testing.assert_close(own, other)
    for path, tensor in net.tensors().items():
        if "head" not in path and "pooled" not in path and "consensus" not in path:
            assert tensor is before[path]
    body = {path: module for path, module in net.named_modules() if path and "." in path and "head" not in path}
    assert all(modules[path] is module for path, module in body.items() if not path.startswith("anytime."))


@pytest.mark.parametrize("name", EVERY)
def test_everything_works_afterwards(name: str, tmp_path: Path) -> None:
    net = copy.deepcopy(net_of(name, None))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net.reset_classifier(CLASSES)
    x, target = images(), torch.tensor([0, 5, CLASSES - 1])
    for level in net.levels:
        torch.testing.assert_close(net.extract(level)(x), net(x, level=level), rtol=1e-4, atol=1e-5)
    stream = [prediction for _, prediction in net.stream(x)]
    torch.testing.assert_close(stream[-1], net(x).levels[-1], rtol=1e-4, atol=1e-5)
    net.save(tmp_path / "net.safetensors")
    loaded = load(tmp_path / "net.safetensors")
    assert dict(shapes(loaded)) == dict(shapes(net))
    torch.testing.assert_close(loaded(x).levels, net(x).levels)

    net.train()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    new = [p for p in net.parameters() if id(p) not in held]
    assert new
    assert len(new) < len(held)
    optimizer.add_param_group({"params": new})
    before = [p.detach().clone() for p in net.parameters()]
    net.loss(net(x), target).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    optimizer.step()
    assert not any(torch.equal(p, was) for p, was in zip(net.parameters(), before, strict=True) if p.grad.any())  # type: ignore[union-attr]


def test_as_many_classes_as_before_are_new_ones() -> None:
    net = copy.deepcopy(net_of("ensemble", None))
    before, loss = net.tensors(), net.loss
    count = net(images()).levels[0].shape[1]
    net.reset_classifier(count)
    changed = {name for name, tensor in net.tensors().items() if tensor is not before[name]}
    assert changed == {"head.weight", "head.bias"}
    leaves = net.tensors()["head.weight"].detach().chunk(4)
    assert not any(torch.equal(one, leaves[0]) for one in leaves[1:])
    limit = leaves[0].shape[1] ** -0.5  # of the fan-in, as nn.Linear has it
    assert 0.5 * limit < float(torch.cat(leaves).abs().max()) <= limit
    assert net.loss is loss


def test_state_of_the_model_is_kept() -> None:
    net = copy.deepcopy(net_of("channels", None)).double()
    stage: Any = net.stage1
    stage.eval()
    for parameter in stage.parameters():
        parameter.requires_grad_(False)
    net.reset_classifier(CLASSES)
    assert {tensor.dtype for tensor in net.parameters()} == {torch.float64}
    assert not any(parameter.requires_grad for parameter in stage.parameters())
    assert net(images().double()).levels[0].shape == (3, CLASSES)
    copied = copy.deepcopy(net)
    copied.reset_classifier(3)
    assert copied(images().double()).levels[1].shape == (3, 3)
    assert net(images().double()).levels[1].shape == (3, CLASSES)


def test_a_stack_takes_checkpoints_of_the_new_backbone() -> None:
    net = copy.deepcopy(net_of("ensemble", None))
    net.reset_classifier(CLASSES)
    backbone = with_new_head(EVERY["ensemble"][1]()).eval()
    net.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(net(images(), level=0), backbone(images()), rtol=1e-4, atol=1e-5)


class Network(nn.Module):
    """Pooled features, and a head."""

    def __init__(self, head: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.make = head
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.make(self, self.features(x))


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


HEADS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: Network(lambda net, x: net.fc(x).mean((2, 3)), fc=nn.Conv2d(8, 5, 1)),
    "dense": lambda: Network(lambda net, x: net.fc(x), fc=nn.Conv2d(8, 5, 3, padding=1, bias=False)),
    "matrix": lambda: Network(lambda net, x: pooled(x) @ net.fc, fc=nn.Parameter(torch.randn(8, 5))),
    "normalised": lambda: Network(lambda net, x: net.bn(net.fc(pooled(x))), fc=nn.Linear(8, 5), bn=nn.BatchNorm1d(5)),
    "over their sum": lambda: Network(
        lambda net, x: net.fc(pooled(x)).exp() / net.fc(pooled(x)).exp().sum(1, keepdim=True), fc=nn.Linear(8, 5)
    ),
    "two layers": lambda: Network(
        lambda net, x: net.fc(net.hidden(pooled(x)).relu()), fc=nn.Linear(6, 5), hidden=nn.Linear(8, 6)
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_any_kind(name: str) -> None:
    net = transform(HEADS[name](), NestedChannels((0.5, 1.0)), images())
    hidden = net.tensors().get("hidden.weight")
    net.reset_classifier(CLASSES)
    net.eval()
    assert net.tensors().get("hidden.weight") is hidden
    for level, prediction in zip(net.levels, net(images()).levels, strict=True):
        assert prediction.shape[1] == CLASSES
        torch.testing.assert_close(net.extract(level)(images()), prediction)
    if name == "over their sum":
        torch.testing.assert_close(net(images()).levels[0].sum(1), torch.ones(3))


def test_a_norm_of_classes_starts_as_a_norm_does() -> None:
    backbone = HEADS["normalised"]()
    nn.init.normal_(backbone.bn.weight)  # type: ignore[union-attr, arg-type]
    backbone(images())
    net = transform(backbone, NestedChannels((0.5, 1.0)), images())
    net.reset_classifier(CLASSES)
    fresh = nn.BatchNorm1d(CLASSES).state_dict()
    state = net.state_dict()
    for key in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(state[f"bn.{key}"], fresh[key])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.embedding(x)).relu().mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transform(Tied(), NestedChannels((0.5, 1.0)), torch.randint(11, (2, 3))), "tied|also read"),
        (lambda: net_of("channels"), "taxonomy of this model says how many classes"),
    ],
)
def test_heads_that_cannot_be_replaced(make: Callable[[], AnytimeModel], message: str) -> None:
    net = copy.deepcopy(make())
    before = net.state_dict(keep_vars=True)
    with pytest.raises(SchemeError, match=message):
        net.reset_classifier(CLASSES)
    assert all(tensor is before[name] for name, tensor in net.state_dict(keep_vars=True).items())


@pytest.mark.parametrize("classes", [0, -1, 2.0, True, "7", None])
def test_what_is_no_number_of_classes(classes: Any) -> None:
    with pytest.raises(ValueError, match="expected a number of classes, 1 or more") as found:
        net_of("channels", None).reset_classifier(classes)
    assert isinstance(found.value, AnytimeError)


# Heads, and other layers, that are replaced by hand.


@pytest.mark.parametrize("name", ["channels", "shared channels", "ensemble", "depth", "branches"])
def test_another_number_of_classes_by_hand_is_noticed(name: str) -> None:
    net, x = copy.deepcopy(net_of(name, None)), images()
    features = int(net.tensors()["head.weight"].shape[1])
    net.head = nn.Linear(features, CLASSES)
    calls: tuple[Callable[[], Any], ...] = (lambda: net(x), lambda: net(x, level=0), lambda: net(x))
    for call in calls:  # until it is mended
        with pytest.raises(ValueError, match=r"head.weight was replaced.*net.reset_classifier\(classes\)") as found:
            call()
        assert isinstance(found.value, AnytimeError)
    net.reset_classifier(CLASSES)
    assert net(x).levels[0].shape == (3, CLASSES)


def test_layers_inside_parts_are_noticed() -> None:
    net = copy.deepcopy(net_of("channels", None))
    path = next(p for p, m in net.named_modules() if isinstance(m, nn.Conv2d) and p.startswith("stage1"))
    layer = net.get_submodule(path)
    assert isinstance(layer, nn.Conv2d)
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, nn.Conv2d(layer.in_channels, layer.out_channels, 5, padding=2, bias=False))
    with pytest.raises(ValueError, match=rf"{path}.weight was replaced.*transform it again"):
        net(images())
    with pytest.raises(ValueError, match=f"{path}.weight was replaced"):
        net.reset_classifier(CLASSES)
    setattr(net.get_submodule(parent), name, layer)
    net(images())


class Adapted(nn.Module):
    """A layer with an adapter beside it, under another name."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))  # type: ignore[no-any-return]


def test_wrappers_and_layers_of_the_same_shape_are_let_in() -> None:
    net, x = copy.deepcopy(net_of("depth", None)), images()
    head = net.head
    assert isinstance(head, nn.Linear)
    net.head = Adapted(head)
    assert net(x).levels[-1].shape == (3, head.out_features)
    net.head = nn.Linear(head.in_features, head.out_features)
    net(x)
    net.head = Adapted(head)
    net.reset_classifier(CLASSES)  # in place of the wrapper
    assert isinstance(net.head, nn.Linear)
    assert net(x).levels[0].shape == (3, CLASSES)


def test_nothing_is_looked_at_where_nothing_was_assigned(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = copy.deepcopy(net_of("channels", None)), images()
    monkeypatch.setattr("anytimeify.runtime.model.check_shapes", lambda *given: pytest.fail("looked at"))
    net.train()(x)
    net.eval()(x)
    net.half().float()(x)
    net.load_state_dict(net.state_dict())
    net(x)
