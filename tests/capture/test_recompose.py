"""Programs in core ATen, as `run_decompositions` leaves them, are backbones like any other."""

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from anytimeify import NestedChannels, transform
from anytimeify.testing import assert_levels_equal_extracts


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.groups = nn.ConvTranspose2d(8, 12, 2, stride=2, groups=4), nn.GroupNorm(4, 12)
        self.c, self.layer = nn.Conv1d(12, 16, 3), nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups(self.b(self.norm(self.a(x)).relu()))
        result: Tensor = self.head(self.layer(self.c(x.flatten(2)).transpose(1, 2)).mean(1))
        return result


@pytest.mark.parametrize("core", [False, True])
def test_decomposed_programs_narrow_like_their_source(core: bool) -> None:
    model, x = Convolutions().eval(), torch.randn(2, 3, 6, 6)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: Dim.DYNAMIC},))
    exported = exported.run_decompositions() if core else exported.run_decompositions({})
    net = transform(exported, NestedChannels((0.5, 1.0)))
    same = transform(model, NestedChannels((0.5, 1.0)), x)
    assert [level.cost.macs for level in net.levels] == [level.cost.macs for level in same.levels]
    assert [level.cost.params for level in net.levels] == [level.cost.params for level in same.levels]
    torch.testing.assert_close(net.eval()(x).levels, same.eval()(x).levels)
    assert_levels_equal_extracts(net)
