"""`docs/first_norm.md` as it is printed: a norm of another package, added in one file; and other norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from anytimeify import AnytimeModel, HierarchicalEnsemble, NestedChannels, load, transform
from anytimeify.capture import capture
from anytimeify.codegen.to_modules import to_modules
from anytimeify.graph.traversal import ancestors
from anytimeify.passes.rewrites.fold_batch_norms import fold_batch_norms
from anytimeify.rules import axis_rule
from anytimeify.rules.table import registered, unregister
from tests.building import BATCH, Build, run
from tests.passes.ensembles import differences
from tests.printing import calls
from tests.rounding import close
from tests.test_docs import blocks

OP, RULE, POSITIONS, TEST = blocks("docs/first_norm.md")
LIBRARIES: list[dict[str, object]] = []  # operations live as long as what defines them
INPUTS = (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),)
IMAGES = (torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)),)


class MyModel(nn.Module):
    """Two layers, each with a norm of another package after it, and a head."""

    def __init__(self, norm: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.stem, self.hidden, self.head = nn.Linear(8, 12), nn.Linear(12, 10), nn.Linear(10, 5)
        self.first, self.second = (nn.Parameter(torch.rand(size) + 0.5) for size in (12, 10))
        self.norm = norm or torch.ops.somebody.rms_norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x), self.first).relu()
        result: Tensor = self.head(self.norm(self.hidden(x), self.second).relu())
        return result


class Images(nn.Module):
    """The same with convolutions."""

    def __init__(self, norm: Callable[..., Tensor]) -> None:
        super().__init__()
        self.stem, self.hidden, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Linear(6, 5)
        self.gain, self.norm = nn.Parameter(torch.rand(6) + 0.5), norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.hidden(self.stem(x).relu()), self.gain)
        result: Tensor = self.head(x.relu().mean((2, 3)))
        return result


@pytest.fixture(scope="module")
def operation() -> None:
    namespace: dict[str, object] = {}
    exec(OP, namespace)
    LIBRARIES.append(namespace)


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Rules that a test registers are forgotten after it."""
    before = set(registered())
    yield
    for target in set(registered()) - before:
        unregister(target)


@pytest.fixture
def rule(operation: None, forgotten: None) -> None:
    exec(RULE, {})


def joint_calls(net: AnytimeModel, name: str) -> list[fx.Node]:
    """The calls of an operation where all members are computed together."""
    joint = ancestors([net.rewritten.outputs[one] for one in net.rewritten.joint])
    return [node for node in joint if name in str(node.target)]


@pytest.mark.usefixtures("rule")
def test_the_page() -> None:
    namespace: dict[str, object] = {"torch": torch, "MyModel": MyModel}
    exec(TEST, namespace)
    namespace["test_rms_norm"]()  # type: ignore[operator]  # a function of the page


@pytest.mark.usefixtures("rule")
@pytest.mark.parametrize(("norms", "own"), [("private", {"first", "second"}), ("shared", set())])
def test_levels_have_norms_of_their_own(norms: str, own: set[str]) -> None:
    model = MyModel()
    net = transform(model, NestedChannels((0.5, 1.0), norms=norms), INPUTS)  # type: ignore[arg-type]  # one of two
    assert {group.name for group in net.axes.narrowable} == {"stem", "hidden"}
    names = {name for name, _ in net.named_parameters() if name.startswith("anytime.")}
    assert names == {f"anytime.0.{name}" for name in ("head.weight", "head.bias", *own)}
    x = nn.functional.linear(INPUTS[0], model.stem.weight[:6], model.stem.bias[:6])
    x = model.norm(x, model.first[:6]).relu()
    x = nn.functional.linear(x, model.hidden.weight[:5, :6], model.hidden.bias[:5])
    x = model.norm(x, model.second[:5]).relu()
    torch.testing.assert_close(
        net(*INPUTS).levels[0], nn.functional.linear(x, model.head.weight[:, :5], model.head.bias)
    )


@pytest.mark.usefixtures("rule")
def test_it_trains() -> None:
    torch.manual_seed(0)
    net = transform(MyModel(), NestedChannels((0.5, 1.0), norms="private"), INPUTS)
    optimizer, losses = torch.optim.Adam(net.parameters(), 0.01), []
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    for _ in range(10):
        optimizer.zero_grad()
        loss = net.loss(net(*INPUTS), torch.tensor([0, 1, 2, 3]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name in ("first", "anytime.0.first", "second", "anytime.0.second"):
        assert not torch.equal(net.get_parameter(name), before[name])


@pytest.mark.usefixtures("rule")
def test_members_are_normalised_together() -> None:
    net = transform(MyModel(), HierarchicalEnsemble(cuts=("stem", "hidden")), INPUTS)
    assert all(node.args[1:] == () for node in joint_calls(net, "rms_norm"))  # without weights
    assert len(joint_calls(net, "rms_norm")) == 2
    assert not net.rewritten.notes


@pytest.mark.usefixtures("rule")
def test_saved_and_loaded(tmp_path: Path) -> None:
    net, path = transform(MyModel(), NestedChannels((0.5, 1.0)), INPUTS).eval(), tmp_path / "net.safetensors"
    net.save(path)
    for one, other in zip(load(path).eval()(*INPUTS).levels, net(*INPUTS).levels, strict=True):
        assert close(one, other)


# Norms that are not torch's: members of those are computed one after the other, or are more channels.


def define(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """An operation `somebody::<name>` of a tensor and a weight."""
    opaque = torch.library.custom_op(
        f"somebody::{name}", function, mutates_args=(), schema="(Tensor input, Tensor weight) -> Tensor"
    )
    opaque.register_fake(lambda input, weight: torch.empty_like(input))

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        given = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            return torch.autograd.grad(function(*given), given, grad)

    opaque.register_autograd(backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
    LIBRARIES.append({name: opaque})
    return getattr(torch.ops.somebody, name)  # type: ignore[no-any-return]  # a packet of overloads


def one_plus_weight(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + weight)


def over_positions(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean((2, 3), keepdim=True) + 1e-6).rsqrt() * weight[:, None, None]


def over_channels(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt() * weight[:, None, None]


NORMS = {
    "one_plus_norm": (one_plus_weight, "... c~, c -> ... c", MyModel, INPUTS, ("hidden",), 2),
    "position_norm": (over_positions, "n c h~ w~, c -> n c h w", Images, IMAGES, ("stem",), 1),
    "channel_norm": (over_channels, "n c~ h w, c -> n c h w", Images, IMAGES, ("stem",), 2),
}


@pytest.fixture(scope="module")
def norms() -> dict[str, Callable[..., Tensor]]:
    return {name: define(name, row[0]) for name, row in NORMS.items()}


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("name", NORMS)
def test_other_norms(name: str, norms: dict[str, Callable[..., Tensor]]) -> None:
    """The schemes are exact; `count` is how often a norm of two members is called."""
    _, line, kind, inputs, cuts, count = NORMS[name]
    if name == "position_norm":
        exec(POSITIONS, {"axis_rule": axis_rule})
    else:
        axis_rule(f"somebody.{name}.default", line, kind="norm")
    torch.manual_seed(0)
    model = kind(norms[name])
    for connectivity in ("dense", "triangular"):
        transform(model, NestedChannels((0.5, 1.0), connectivity=connectivity), inputs)  # which compares
    scheme = HierarchicalEnsemble(cuts=cuts)
    differences(model, inputs, scheme)
    net = transform(model, scheme, inputs)
    assert len(joint_calls(net, name)) == count + (kind is MyModel)  # and the norm before the cut
    assert bool(net.rewritten.notes) == (count > 1)


@pytest.mark.usefixtures("forgotten")
def test_a_norm_over_samples_with_other_arguments_is_not_folded() -> None:
    norm: Any = define("sample_norm", lambda x, weight: x / (x.square().mean(0) + 1e-6).sqrt() * weight)
    axis_rule("somebody.sample_norm.default", "n~ c, c -> n c", kind="norm")
    x = torch.randn(BATCH, 3)
    b = Build({"fc.weight": nn.Parameter(torch.randn(4, 3)), "norm.weight": nn.Parameter(torch.rand(4))}, x=x)
    layer = b(torch.ops.aten.linear.default, b.x, b.read("fc.weight"), name="fc")
    program = b.done(b(norm.default, layer, b.read("norm.weight"), name="norm"))
    folded = fold_batch_norms(program)
    assert calls(folded) == calls(program)
    torch.testing.assert_close(run(folded, x), run(program, x))


class Flagged(nn.Module):
    """A norm that is told whether it trains, and has no running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(torch.ops.somebody.flagged_norm(self.stem(x), self.training))
        return result


@pytest.mark.usefixtures("forgotten")
def test_a_norm_with_a_flag_follows_the_mode() -> None:
    library = torch.library.Library("somebody", "FRAGMENT")
    library.define("flagged_norm(Tensor input, bool training) -> Tensor")
    library.impl("flagged_norm", lambda input, training: input / (2 if training else 3), "CompositeImplicitAutograd")
    LIBRARIES.append({"library": library})
    axis_rule("somebody.flagged_norm.default", "... c~ -> ... c", kind="norm", training="training")
    model = Flagged()
    captured = capture(model, INPUTS)
    assert any("flagged_norm" in line for line in calls(captured.program))
    for training in (True, False):
        torch.testing.assert_close(
            to_modules(captured.program).train(training)(*INPUTS), (model.train(training)(*INPUTS),)
        )
    torch.testing.assert_close(to_modules(captured.program, training=False)(*INPUTS), (model(*INPUTS),))
