"""Exported programs with a batch of a fixed size: it is made dynamic where the program itself confirms it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeWarning, NestedChannels, transform
from anytimeify.capture import capture
from tests.rounding import close

SCHEME = NestedChannels(widths=(0.5, 1.0))


class Sizes(nn.Module):
    """Writes its batch down in every way: a class token for each sample, reshapes, a table of ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.token = nn.Linear(4, 8), nn.Linear(8, 3), nn.Parameter(torch.randn(1, 1, 8))
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        hidden = torch.cat([self.token.expand(count, -1, -1), self.first(x)], 1).relu()
        hidden = hidden.reshape(count * 4, 8) * torch.ones(count, 1).repeat(4, 1)
        result: Tensor = self.last(self.drop(hidden)).reshape(count, 4, 3).mean(1)
        return result


def _exported(model: nn.Module, x: Tensor, *, training: bool) -> Any:
    return torch.export.export(model.train(training), (x,))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_the_batch_is_made_dynamic(batch: int, training: bool) -> None:
    model, x = Sizes(), torch.randn(batch, 3, 4)
    exported = _exported(model, x, training=training)
    captured = capture(exported)
    assert captured.batch is not None
    assert any(f"the program is written for batches of {batch}," in note for note in captured.notes)
    if not training:  # said in a warning of its own
        return
    net = transform(exported, SCHEME).eval()
    for count in (1, 3, 7):
        other = torch.randn(count, 3, 4)
        close(net(other, level=1), model.eval()(other))
        close(net.extract(0)(other), net(other, level=0))


class Mixes(nn.Module):
    """Samples that read each other: nothing tells what the program is for more of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.drop = nn.Linear(4, 8), nn.Linear(8, 3), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.first(x).relu())
        result: Tensor = self.last(hidden) + hidden.sum() / x.shape[0]
        return result


def test_a_program_that_its_parts_do_not_confirm_keeps_its_batch() -> None:
    exported = _exported(Mixes(), torch.randn(3, 4), training=True)
    with pytest.warns(AnytimeWarning, match=r"takes only batches of 3, which is written into.*dynamic_shapes=\(\{0:"):
        net = transform(exported, SCHEME)
    assert net.captured.batch is None
