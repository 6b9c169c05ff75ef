"""Accuracy by level and granularity."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, ArgumentError, NestedChannels, Taxonomy, transform
from anytimeify.runtime.evaluation import accuracy

TAXONOMY = Taxonomy.from_parents([0, 0, 1, 1])


def net_of(taxonomy: Taxonomy | None = None, consensus: str | None = None) -> AnytimeModel:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 4))
    scheme = NestedChannels((0.5, 1.0))
    return transform(backbone, scheme, torch.randn(2, 4), taxonomy=taxonomy, consensus=consensus)


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(7, 4, generator=generator), torch.randint(4, (7,), generator=generator)) for _ in range(count)]


def test_without_a_taxonomy() -> None:
    net = net_of().train()
    found = accuracy(net, batches())
    assert net.training
    assert found.samples == 21
    net.eval()
    for level in range(2):
        right = sum(int((net(x, level=level).argmax(1) == y).sum()) for x, y in batches())
        assert found.of(level) == pytest.approx(right / 21)
    assert "width 0.5" in str(found)


def test_every_granularity_by_its_head_and_by_the_class_above() -> None:
    net = net_of(TAXONOMY, "learned").eval()
    found = accuracy(net, batches())
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    for level, (fine, coarse) in enumerate(net(x).levels[:2]):
        assert found.of(level, "fine") == pytest.approx(float((fine.argmax(1) == y).float().mean()))
        assert found.of(level, "coarse") == pytest.approx(float((coarse.argmax(1) == y // 2).float().mean()))
        above = float((fine.argmax(1) // 2 == y // 2).float().mean())
        assert found.of(level, "coarse", "fine") == pytest.approx(above)
    assert found.of(2, "coarse", "fine") >= found.of(2, "fine")
    with pytest.raises(KeyError):
        found.of(2, "coarse")  # the consensus has no such head
    text = found.to_markdown()
    assert "coarse of fine" in text
    assert "consensus" in text


def test_labels_of_every_granularity_and_labels_that_do_not_count() -> None:
    net = net_of(TAXONOMY)
    ((x, y),) = batches(1)
    given = accuracy(net, [(x, TAXONOMY.targets(y))])
    assert given == accuracy(net, [(x, y)])
    some = torch.where(torch.arange(7) < 3, y, -100)
    assert accuracy(net, [(x, some)]).rows == accuracy(net, [(x[:3], y[:3])]).rows
    assert accuracy(net, [(x, some)]).samples == 3


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="no labels"):
        accuracy(net_of(), [])
    with pytest.raises(ArgumentError, match="the inputs, then the target"):
        accuracy(net_of(), [torch.randn(2, 4)])
