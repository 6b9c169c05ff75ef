"""Narrowing: the graph as text, and its numbers against hand-cut weights."""

from typing import Any

import torch
from torch import Tensor, nn

from anytimeify.analysis.axes import analyse
from anytimeify.capture import capture
from anytimeify.codegen.to_modules import to_modules
from anytimeify.contract import spec
from anytimeify.ir import Program
from anytimeify.passes.rewrites.narrow import narrow
from tests.printing import calls


def narrowed(model: nn.Module, x: Tensor, width: float) -> Program:
    captured = capture(model, (x,))
    axes = analyse(captured.program)
    before = str(captured.program)
    result = narrow(captured.program, axes, axes.widths(width))
    spec.verify(result)
    assert str(captured.program) == before
    return result


def run(program: Program, x: Tensor) -> Tensor:
    result: Tensor = to_modules(program, training=False)(x)[0]
    return result


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 1)
        self.b = nn.Conv2d(12, 18, 3, padding=1, groups=3)
        self.c = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.c(self.b(self.a(x)).mean((2, 3)))
        return result


def test_groups_stay_whole() -> None:
    model, x = Grouped().eval(), torch.randn(2, 3, 4, 4)
    program = narrowed(model, x, 0.5)
    assert calls(program) == [
        "a_weight_part0 = slice.Tensor(a_weight, 0, 0, 8)",
        "a_bias_part0 = slice.Tensor(a_bias, 0, 0, 8)",
        "a_1 = conv2d(x, a_weight_part0, a_bias_part0)",
        "b_weight_part0 = slice.Tensor(b_weight, 0, 0, 12)",
        "b_bias_part0 = slice.Tensor(b_bias, 0, 0, 12)",
        "b_1 = conv2d(a_1, b_weight_part0, b_bias_part0, [1, 1], [1, 1], [1, 1], 2)",
        "mean_1 = mean.dim(b_1, [2, 3])",
        "c_weight_part1 = slice.Tensor(c_weight, 1, 0, 12)",
        "c_1 = linear(mean_1, c_weight_part1, c_bias)",
        "return c_1",
    ]
    w = model.state_dict()
    y = nn.functional.conv2d(x, w["a.weight"][:8], w["a.bias"][:8])
    y = nn.functional.conv2d(y, w["b.weight"][:12], w["b.bias"][:12], padding=1, groups=2).mean((2, 3))
    torch.testing.assert_close(run(program, x), nn.functional.linear(y, w["c.weight"][:, :12], w["c.bias"]))


class Heads(nn.Module):
    """Batch and heads in one dimension, as older transformers have it: sizes depend on the number of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, 4, 2).permute(2, 0, 3, 1, 4).reshape(3, n * 4, t, 2).unbind(0)
        y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        result: Tensor = self.out(y.view(n, 4, t, 2).transpose(1, 2).reshape(n, t, 8).mean(1))
        return result


def test_sizes_that_mix_batch_and_heads_follow() -> None:
    model, x = Heads().eval(), torch.randn(3, 5, 8)
    program = narrowed(model, x, 0.5)
    assert any("6*s" in line or "2*s" in line for line in str(program).splitlines())
    w = model.state_dict()
    rows = torch.cat([torch.arange(4) + 8 * part for part in range(3)])
    q, k, v = (
        nn.functional.linear(x, w["qkv.weight"][rows], w["qkv.bias"][rows]).view(3, 5, 3, 2, 2).permute(2, 0, 3, 1, 4)
    )
    y = ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).reshape(3, 5, 4).mean(1)
    torch.testing.assert_close(run(program, x), nn.functional.linear(y, w["out.weight"][:, :4], w["out.bias"]))
    assert run(program, torch.randn(7, 5, 8)).shape == (7, 5)


class Mixed(nn.Module):
    """Split, gate, join, pad, shuffle: everything whose size arguments depend on channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 1)
        self.norm = nn.GroupNorm(4, 16)
        self.b = nn.Conv2d(16, 8, 1)
        self.c = nn.Conv2d(8, 24, 1)
        self.d = nn.Linear(24 // 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x))
        left, right = x.split(8, 1)
        x = torch.cat([left * right.sigmoid(), right[:, 4:], right[:, :4]], 1)
        x = nn.functional.pixel_shuffle(self.c(self.b(x).expand(-1, 8, -1, -1)), 2)
        result: Tensor = self.d(x.mean((2, 3)))
        return result


def test_it_runs_at_every_width_and_its_types_are_true() -> None:
    model, x = Mixed().eval(), torch.randn(2, 3, 4, 4)
    for width in (0.1, 0.25, 0.5, 0.75, 0.9):
        program = narrowed(model, x, width)
        assert run(program, x).shape == (2, 5)
        assert_types_are_true(program, x)


def assert_types_are_true(program: Program, x: Tensor) -> None:
    """Every tensor that a run makes has the type that is written on its node."""
    env: dict[torch.fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            env[node] = x
        elif node.op == "get_attr":
            env[node] = program.tensors[str(node.target)]
        elif node.op == "call_function":
            args, kwargs = torch.fx.map_arg((node.args, dict(node.kwargs)), lambda source: env[source])
            env[node] = node.target(*args, **kwargs)
        result = env.get(node)
        if isinstance(result, Tensor):
            assert [size.coefficient * len(x) ** len(size.symbols) for size in node.meta["type"].shape] == list(
                result.shape
            )
