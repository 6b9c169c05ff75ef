"""Sorting channels by importance: the function stays, the order changes."""

import numpy as np
import torch
from torch import Tensor, nn

from anytimeify.analysis.axes import analyse
from anytimeify.capture import capture
from anytimeify.codegen.to_modules import to_modules
from anytimeify.passes.importance import importance
from anytimeify.passes.rewrites.reorder import reorder
from tests.passes.test_narrow import Grouped, Heads, Mixed


def sorted_program(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    captured = capture(model, (x,))
    before = {name: tensor.clone() for name, tensor in captured.program.tensors.items()}
    axes = analyse(captured.program)
    result = reorder(captured, axes, importance("l1", captured, axes))
    for name, tensor in captured.program.tensors.items():
        assert torch.equal(tensor, before[name])
    old, new = to_modules(captured.program, training=False)(x)[0], to_modules(result.program, training=False)(x)[0]
    return old, new, dict(result.program.tensors)


def test_the_function_stays() -> None:
    for model, x in (
        (Grouped(), torch.randn(2, 3, 4, 4)),
        (Heads(), torch.randn(2, 5, 8)),
        (Mixed(), torch.randn(2, 3, 4, 4)),
    ):
        old, new, tensors = sorted_program(model.eval(), x)
        torch.testing.assert_close(old, new, rtol=1e-5, atol=1e-5)
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, tensors[name])]
        assert changed


def test_the_most_important_channels_come_first() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5)).eval()
    _, _, tensors = sorted_program(model, torch.randn(2, 4))
    norms = tensors["0.weight"].abs().sum(1) + tensors["2.weight"].abs().sum(0)
    assert np.all(np.diff(norms.detach().numpy()) <= 0)


class Shuffled(nn.Module):
    """A channel shuffle whose halves go different ways: the order of the channels is part of the function."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
        self.c = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        x = torch.cat([self.a(x), self.b(x)], 1)
        left, right = x.view(n, 2, 6, h, w).transpose(1, 2).reshape(n, 12, h, w).chunk(2, 1)
        result: Tensor = self.head(torch.cat([left, self.c(right)], 1).mean((2, 3)))
        return result


def test_a_shuffle_fixes_the_order() -> None:
    model, x = Shuffled().eval(), torch.randn(2, 3, 4, 4)
    axes = analyse(capture(model, (x,)).program)
    assert any(group.ordered is not None and "shuffle" in group.ordered.reason for group in axes.groups)
    old, new, _ = sorted_program(model, x)
    torch.testing.assert_close(old, new, rtol=1e-5, atol=1e-5)
