"""Nested channels: what levels share, what they have for themselves, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify.analysis.axes import analyse
from anytimeify.capture import capture
from anytimeify.codegen.to_modules import to_modules
from anytimeify.compiler import transform
from anytimeify.contract import spec
from anytimeify.errors import SchemeError
from anytimeify.ir import Program
from anytimeify.ir.rewritten import Rewritten
from anytimeify.passes.scheme import parse_scheme
from anytimeify.passes.schemes.nested_channels import NestedChannels
from tests.passes.test_narrow import assert_types_are_true


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.mid = nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.mid(self.norm(self.stem(x)).relu()).mean((2, 3)))
        return result


def rewrite(model: nn.Module, scheme: NestedChannels, *inputs: Tensor) -> Rewritten:
    captured = capture(model, inputs)
    result = scheme.apply(captured, analyse(captured.program))
    spec.verify(result.program)
    return result


def own(program: Program, level: int) -> set[str]:
    return {name.removeprefix(f"anytime.{level}.") for name in program.tensors if name.startswith(f"anytime.{level}.")}


def test_private_norms_and_heads_are_tensors_of_their_own() -> None:
    model = Small()
    program = rewrite(model, NestedChannels((0.5, 1.0)), torch.randn(2, 3, 4, 4)).program
    assert own(program, 0) == {
        *("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"),
        *("head.weight", "head.bias"),
    }
    assert torch.equal(program.tensors["anytime.0.head.weight"], model.head.weight[:, :6])
    assert_types_are_true(program, torch.randn(2, 3, 4, 4))


def test_shared_norms_and_heads_add_no_tensors() -> None:
    scheme = NestedChannels((0.25, 0.5, 1.0), norms="shared", heads="shared")
    assert not own(rewrite(Small(), scheme, torch.randn(2, 3, 4, 4)).program, 0)


def test_shared_statistics_are_trained_by_every_level() -> None:
    torch.manual_seed(0)
    program = rewrite(Small(), NestedChannels((0.5, 1.0), norms="shared"), torch.randn(2, 3, 4, 4)).program
    module = to_modules(program).train()
    before = program.tensors["norm.running_mean"].clone()
    module(torch.randn(4, 3, 4, 4))
    moved = (module.get_buffer("norm.running_mean") - before).abs() > 0
    assert moved.all()


def test_what_no_narrowed_axis_reaches_is_computed_once() -> None:
    # only the head's input is narrowed, so both levels read the same stem
    scheme = NestedChannels((0.5, 1.0), where="mid")
    program = rewrite(Small(), scheme, torch.randn(2, 3, 4, 4)).program
    names = [node.name for node in program.graph.nodes if node.op == "call_function"]
    assert names.count("norm") == 1
    assert "level0_stem" not in names
    assert "level0_mid" in names
    assert "anytime.0.norm.weight" not in program.tensors


def test_norms_that_read_the_same_may_be_private_too() -> None:
    x = torch.randn(2, 3, 4, 4)
    program = rewrite(Small(), NestedChannels((0.5, 1.0), where="mid", norms="every"), x).program
    assert {name.partition(".")[0] for name in own(program, 0)} == {"norm", "head"}
    names = [node.name for node in program.graph.nodes if node.op == "call_function"]
    assert "level0_norm" in names
    assert "level0_stem" not in names
    net = transform(Small(), NestedChannels((0.5, 1.0), where="mid", norms="every"), x)
    net.loss(net(x), torch.tensor([0, 1])).backward()
    assert net.get_parameter("anytime.0.norm.weight").grad is not None


def test_under_triangular_connectivity_only_norms_of_heads_are_private() -> None:
    x = torch.randn(2, 3, 4, 4)
    for norms, expected in (("private", {"head"}), ("every", {"last", "head"})):
        scheme = NestedChannels((0.25, 0.5, 1.0), connectivity="triangular", norms=norms)  # type: ignore[arg-type]  # a parameter of the test
        program = rewrite(Ending(), scheme, x).program
        assert {name.partition(".")[0] for name in own(program, 0)} == expected
        assert_types_are_true(program, x)
    net = transform(Ending(), scheme, x)
    assert net.resumable
    net.train()
    net.loss(net(x), torch.tensor([0, 1])).backward()
    grads = [net.get_parameter(name).grad for name in ("anytime.0.last.weight", "last.weight", "norm.weight")]
    assert all(grad is not None and bool(grad.any()) for grad in grads)


class Ending(nn.Module):
    """A norm between layers, and one that only the head reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.mid = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.last, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.mid(self.norm(self.stem(x)).relu())).relu()
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class Padded(nn.Module):
    """A stem of 6 channels inside zeros: 16 in the first block, 32 in the second."""

    def __init__(self, before: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.one, self.two = nn.Conv2d(6, 16, 1), nn.Conv2d(16, 32, 1)
        self.head = nn.Linear(32, 5)
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.one(x.relu()) + nn.functional.pad(x, (0, 0, 0, 0, self.before, 10 - self.before))
        x = self.two(x.relu()) + nn.functional.pad(x, (0, 0, 0, 0, 8, 8))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


@pytest.mark.parametrize("before", [0, 3, 5, 10])
@pytest.mark.parametrize(("width", "sizes"), [(0.75, (12, 24)), (0.5, (8, 16)), (0.375, (6, 12)), (0.25, (6, 8))])
def test_zeros_fill_up_what_a_stem_leaves(before: int, width: float, sizes: tuple[int, int]) -> None:
    net = transform(
        Padded(before), NestedChannels((width, 1.0), where=("one", "two", "one#*", "two#*")), torch.randn(2, 3, 4, 4)
    )
    small = net.extract(0)
    assert (len(small.get_parameter("one.weight")), len(small.get_parameter("two.weight"))) == sizes
    assert len(small.get_parameter("stem.weight")) == 6


def test_zeros_beside_narrowed_channels_keep_their_share() -> None:
    net = transform(Padded(), NestedChannels((0.5, 1.0)), torch.randn(2, 3, 4, 4))
    assert net.extract(0).get_parameter("one.weight").shape[:2] == (2 + 3 + 2, 3)


def test_tied_heads_stay_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.mid = nn.Linear(8, 8)
            self.out = nn.Linear(8, 11, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.out(self.mid(self.embed(x)).mean(1))
            return result

    assert not own(rewrite(Tied(), NestedChannels((0.5, 1.0)), torch.randint(0, 11, (2, 3))).program, 0)


def test_a_norm_called_twice_is_private_in_both_calls_or_in_none() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.a, self.b = nn.LayerNorm(4), nn.Linear(4, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                x = x + self.b(self.a(self.norm(x)).relu())
            return x

    net = transform(Twice(), NestedChannels((0.5, 1.0)), torch.randn(2, 4))
    assert net.levels[0].cost.params == 4 * 8 + 8 + 8 * 4 + 4 + 8
    assert {name for name, _ in net.extract(0).named_parameters()} == {name for name, _ in Twice().named_parameters()}


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.norm = nn.BatchNorm2d(10)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(torch.cat([self.a(x), self.b(x)], 1)).mean((2, 3)))
        return result


def test_scattered_statistics_are_written_back() -> None:
    scheme = NestedChannels((0.5, 1.0), norms="shared")
    captured = capture(Joined(), (torch.randn(2, 3, 4, 4),))
    rewritten = scheme.apply(captured, analyse(captured.program))
    module = to_modules(rewritten.program).train()
    # the narrow level alone: only its channels' statistics move
    first = module.graph.output_node().all_input_nodes[0]
    module.graph.output_node().args = ((first,),)
    module.graph.eliminate_dead_code()
    module.recompile()
    before = module.get_buffer("norm.running_mean").clone()
    module(torch.randn(4, 3, 4, 4))
    moved = (module.get_buffer("norm.running_mean") - before).abs() > 0
    assert moved.tolist() == [True, True, False, False, True, True, True, False, False, False]


def test_levels_that_share_scattered_statistics_train_together() -> None:
    torch.manual_seed(0)
    net = transform(Joined(), NestedChannels((0.25, 0.5, 1.0), norms="shared"), torch.randn(2, 3, 4, 4)).train()
    x = torch.randn(4, 3, 4, 4)
    for run in (net, torch.compile(net, backend="aot_eager", fullgraph=True)):
        before = net.get_buffer("norm.running_mean").clone()
        torch.stack([level.square().sum() for level in run(x).levels]).sum().backward()
        assert (net.get_buffer("norm.running_mean") != before).all()


@pytest.mark.parametrize(
    ("scheme", "says"),
    [
        (NestedChannels((0.97, 1.0)), "width 0.97 keeps as many channels as 1 everywhere"),
        (NestedChannels((0.5, 0.51, 1.0)), "width 0.51 keeps as many channels as 0.5 everywhere"),
        (NestedChannels((0.25, 0.5, 1.0), multiple_of=6), "multiple_of=6"),
        (NestedChannels((0.5, 1.0), where="nothing"), "names no axis group"),
    ],
)
def test_levels_that_are_no_levels_are_refused(scheme: NestedChannels, says: str) -> None:
    with pytest.raises(SchemeError) as error:
        rewrite(Small(), scheme, torch.randn(2, 3, 4, 4))
    assert says in str(error.value)


@pytest.mark.parametrize("where", [3, None, ("blocks", 3)])
def test_where_that_names_no_layers_is_refused(where: Any) -> None:
    with pytest.raises(SchemeError, match="where="):
        NestedChannels(where=where)


@pytest.mark.parametrize(("where", "names"), [("3", "3"), ("none", "none"), ("blocks,3", ("blocks", "3"))])
def test_where_is_read_as_names_of_layers(where: str, names: str | tuple[str, ...]) -> None:
    assert parse_scheme(f"nested-channels{{where={where}}}") == NestedChannels(where=names)


def test_a_model_whose_axes_are_all_pinned_is_refused() -> None:
    with pytest.raises(SchemeError, match="every one is pinned"):
        rewrite(nn.Conv2d(3, 5, 1), NestedChannels((0.5, 1.0)), torch.randn(2, 3, 4, 4))
