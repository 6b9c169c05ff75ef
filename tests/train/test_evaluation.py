"""The accuracy of every level: of the network in eval mode, whatever mode it is in."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from anytimeify import NestedChannels, transform
from anytimeify.train.evaluation import accuracies

pytest.importorskip("torchmetrics")
pytestmark = [
    # torchmetrics, about packages that it imports
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Bright(nn.Module):
    """Predicts whether an image is bright, which a norm that reads a batch of bright ones does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2)
        nn.init.ones_(self.conv.weight)
        for layer in (self.conv, self.fc):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        self.fc.weight.data = torch.tensor([[-1.0], [1.0]]).expand(2, 4).clone()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.norm(self.conv(x)).mean((2, 3)))
        return result


def test_levels_are_evaluated_in_eval_mode() -> None:
    """Batches of one class each, as sorted test samples are. Afterwards the network is as it was."""
    net = transform(Bright(), NestedChannels((0.5, 1.0)), torch.randn(2, 1, 2, 2), verify=False).train()
    net.get_submodule("norm").eval()  # a norm that its owner has frozen
    dark, bright = (torch.full((6, 1, 2, 2), value) + torch.arange(6.0).view(6, 1, 1, 1) / 10 for value in (-2.0, 2.0))
    batches = [(dark, torch.zeros(6, dtype=torch.int64)), (bright, torch.ones(6, dtype=torch.int64))]
    before = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    assert accuracies(net, batches) == {"width 0.5": 1.0, "width 1": 1.0}
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
