"""Networks with exits, and backbones whose features are awkward to leave samples out of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, AuxiliaryBranches, Branch, HierarchicalEnsemble, transform
from tests.passes.ensembles import Chain, images

__all__ = [
    "KINDS",
    "Lengths",
    "TokensFirst",
    "Windows",
    "calls",
    "chosen",
    "close",
    "exits_of",
    "forked",
    "images",
    "net_with_exits",
]


def net_with_exits(kind: str = "pool") -> AnytimeModel:
    """Three exits, batch norms with statistics of their own."""
    torch.manual_seed(0)
    net = transform(Chain(), KINDS[kind], images())
    with torch.no_grad():
        for name, tensor in net.tensors().items():
            if name.endswith(("running_mean", "running_var")):
                tensor.uniform_(0.5, 1.5)
    return net.eval()


def forked(backbone: nn.Module, at: str) -> AnytimeModel:
    """Two exits, one leaf and the average of two, which fork behind the layer."""
    return transform(backbone, HierarchicalEnsemble(cuts=(at,)), images()).eval()


KINDS = {
    "pool": AuxiliaryBranches((Branch("stage1", head="pool"), Branch("stage2", head="pool"))),
    "branch": AuxiliaryBranches((Branch("stage1"), Branch("stage2"))),
    "ensemble": HierarchicalEnsemble(cuts=("stage1", "stage2")),
}


class Windows(nn.Module):
    """In the middle the samples' windows lie in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        parts = x.view(x.shape[0], 8, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, 8, 4, 4)
        parts = self.second(self.first(parts).relu()).relu()
        result: Tensor = self.head(parts.view(x.shape[0], 4, 8, 16).mean((1, 3)))
        return result


class TokensFirst(nn.Module):
    """Samples are the second dimension of the features, and a position is added to all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(64, 1, 6))
        self.stem, self.inner, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x.flatten(2).permute(2, 0, 1)) + self.position
        tokens = self.inner(tokens.tanh()).tanh()
        result: Tensor = self.head(tokens.mean(0))
        return result


class Lengths(nn.Module):
    """Behind the fork, shapes are written with the size of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(192, 8), nn.Linear(4, 4), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        hidden = self.stem(x.flatten(1)).tanh()
        hidden = self.inner(hidden.view(count * 2, 4)).view(count, 8)
        result: Tensor = self.head(hidden + torch.ones(count, 8))
        return result


def chosen(*exits: int) -> Chosen:
    """A policy that lets each sample of a batch leave at the given exit."""
    return Chosen(exits)


class Chosen:
    """It knows samples by their place, so it keeps count of who is still there."""

    def __init__(self, exits: Sequence[int], *, whole: bool = False) -> None:
        self.exits, self.whole = torch.tensor(exits, dtype=torch.int64), whole

    def __call__(self, predictions: Sequence[Tensor], exit: int) -> Tensor:
        here = self.exits if self.whole else self.exits[self.exits >= exit]
        assert len(here) == len(predictions[-1])
        assert len(predictions) == exit + 1
        assert all(len(one) == len(here) for one in predictions)
        return here <= exit


def exits_of(net: AnytimeModel, x: Tensor) -> list[Tensor]:
    """What the exits are to predict."""
    with torch.no_grad():
        return [net(x, level=level) for level in net.levels if not level.training_only]


def close(result: Tensor, expected: Tensor) -> bool:
    return result.shape == expected.shape and bool((result - expected).abs().max() <= 1e-5 * expected.abs().max())


def calls(stages: nn.ModuleList) -> list[list[int]]:
    """For every stage, a list that grows by the size of the first value whenever the stage is run."""
    seen: list[list[int]] = [[] for _ in stages]
    for stage, sizes in zip(stages, seen, strict=True):
        stage.register_forward_pre_hook(lambda _, values, sizes=sizes: sizes.append(len(values[0])))
    return seen
