"""Axis analysis on small networks whose axis groups are known by hand."""

import pytest
import torch
from torch import Tensor, nn

from anytimeify.analysis.axes import Axes, AxisGroup, analyse
from anytimeify.capture import capture
from anytimeify.errors import SchemeError


def axes_of(model: nn.Module, *shape: int) -> Axes:
    return analyse(capture(model, (torch.randn(2, *shape),)).program)


def group(axes: Axes, name: str) -> AxisGroup:
    return next(g for g in axes.groups if g.name == name)


def sites(axes: Axes, name: str) -> set[str]:
    return {f"{site.tensor}:{site.dim}" for site in group(axes, name).sites}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 12, 1)
        self.norm = nn.BatchNorm2d(12)
        self.outer = nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.outer(self.norm(self.inner(x)).relu())
        result: Tensor = self.head(x.mean((2, 3)))
        return result


def test_streams_and_inner_axes() -> None:
    axes = axes_of(Residual(), 3, 6, 6)
    assert group(axes, "stem").role == "stream"
    assert group(axes, "inner").role == "inner"
    assert sites(axes, "stem") == {
        *("stem.weight:0", "stem.bias:0", "inner.weight:1", "outer.weight:0", "outer.bias:0", "head.weight:1")
    }
    assert sites(axes, "inner") == {
        *("inner.weight:0", "inner.bias:0", "norm.weight:0", "norm.bias:0", "norm.running_mean:0"),
        *("norm.running_var:0", "outer.weight:1"),
    }
    assert [g.name for g in axes.narrowable] == ["stem", "inner"]


def test_inputs_and_outputs_are_pinned_with_reasons() -> None:
    axes = axes_of(Residual(), 3, 6, 6)
    pins = {str(g.pin).split(":")[0] for g in axes.groups if g.pin is not None}
    assert pins == {"an input of the model", "an output of the model"}


def test_grouped_convolutions_keep_whole_groups() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, groups=8), nn.Flatten(2), nn.AdaptiveAvgPool1d(1))
    axes = axes_of(nn.Sequential(model, nn.Conv1d(32, 4, 1)), 3, 5, 5)
    made = group(axes, "0.0")
    assert (made.size, made.quantum) == (32, 4)
    assert made.units_kept(0.5) == 4
    assert made.units_kept(0.3) == 3  # 10 channels, rounded up to whole groups of 4
    assert made.units_kept(0.5, multiple_of=6) == 6  # 16 channels, rounded up to a multiple of 4 and of 6


class Attention(nn.Module):
    def __init__(self, dim: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(n, tokens, -1))
        result: Tensor = self.head(y.mean(1))
        return result


def test_attention_cuts_whole_heads_of_a_fused_projection() -> None:
    axes = axes_of(Attention(), 7, 24)
    heads = group(axes, "qkv")
    assert (heads.size, heads.quantum) == (24, 6)
    assert sites(axes, "qkv") == {"qkv.weight:0", "qkv.bias:0", "proj.weight:1"}


class Rotary(Attention):
    """Queries and keys are turned in pairs of halves: the head size is a concatenation inside a product."""

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        angles = torch.arange(tokens)[:, None] * torch.ones(6)
        q, k = (y * angles.cos() + torch.cat([-y[..., 3:], y[..., :3]], -1) * angles.sin() for y in (q, k))
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, -1)
        result: Tensor = self.head((x + self.proj(y)).mean(1))
        return result


def test_rotary_embeddings_keep_whole_heads_and_make_no_stream() -> None:
    axes = axes_of(nn.Sequential(nn.Linear(24, 24), Rotary()), 7, 24)
    assert (group(axes, "1.qkv").size, group(axes, "1.qkv").quantum, group(axes, "1.qkv").role) == (24, 6, "inner")
    assert group(axes, "0").role == "stream"


@pytest.mark.parametrize(
    "tokens", [7, 24, 4, 6, 3]
)  # equal to the channels, the heads, the head size, the three of qkv
def test_equal_sizes_by_accident_mean_nothing(tokens: int) -> None:
    axes = axes_of(Attention(), tokens, 24)
    assert {g.name: (g.size, g.quantum) for g in axes.narrowable} == {"qkv": (24, 6), "proj": (24, 1)}


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 1)
        self.b = nn.Conv2d(6, 4, 1)
        self.c = nn.Conv2d(10, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        result: Tensor = self.c(torch.cat([x, self.b(x)], 1)).mean((2, 3))
        return result


def test_concatenations_keep_a_prefix_of_every_part() -> None:
    program = capture(Joined(), (torch.randn(2, 3, 5, 5),)).program
    axes = analyse(program)
    weight = next(n for n in program.graph.nodes if n.target == "c.weight")
    assert axes.indices(axes.dims[weight][1], axes.widths(0.5)).tolist() == [0, 1, 2, 6, 7]


class PaddedShortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(4, 8, 1)
        self.c = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.b(x) + nn.functional.pad(x, (0, 0, 0, 0, 2, 2))
        result: Tensor = self.c(x.mean((2, 3)))
        return result


def test_channel_padding_is_a_concatenation() -> None:
    program = capture(PaddedShortcut(), (torch.randn(2, 3, 5, 5),)).program
    axes = analyse(program)
    weight = next(n for n in program.graph.nodes if n.target == "c.weight")
    assert axes.indices(axes.dims[weight][1], axes.widths(0.5)).tolist() == [0, 2, 3, 6]


def test_an_operation_without_a_rule_pins_and_says_so() -> None:
    class Unusual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 6)
            self.b = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.b(torch.special.i0(self.a(x)))
            return result

    axes = axes_of(Unusual(), 4)
    pin = group(axes, "a").pin
    assert pin is not None
    assert "no axis rule" in str(pin)
    assert "special_i0" in str(pin)
    assert "test_axes.py" in str(pin)
    assert [str(node.target) for node in axes.unknown] == ["aten.special_i0.default"]
    with pytest.raises(SchemeError, match=r"every one is pinned(.|\n)*no axis rule"):
        axes.chosen()


def test_patterns_choose_groups() -> None:
    axes = axes_of(Residual(), 3, 6, 6)
    assert [g.name for g in axes.chosen("inner")] == ["inner"]
    assert [g.name for g in axes.chosen(("st*",))] == ["stem"]
    assert [g.name for g in axes.chosen(("inner", "norm", "outer.*"))] == ["inner"]
    assert [g.name for g in axes.chosen("*")] == ["stem", "inner"]
    with pytest.raises(SchemeError, match="names no axis group"):
        axes.chosen("nothing.*")


def test_tied_parameters_are_one_axis() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.out = nn.Linear(8, 11, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.out(self.embed(x)).mean(1)
            return result

    axes = analyse(capture(Tied(), (torch.randint(0, 11, (2, 3)),)).program)
    assert len(axes.narrowable) == 1
    assert {site.dim for site in axes.narrowable[0].sites} == {1}
