"""Programs in core ATen, as `run_decompositions` leaves them, are backbones like any other."""

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from anytimeify import AnytimeWarning, NestedChannels, UnsupportedOpError, transform
from anytimeify.testing import assert_levels_equal_extracts, randomise


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
    with pytest.warns(AnytimeWarning, match="exported in eval mode"):
        net = transform(exported, NestedChannels((0.5, 1.0)))
    same = transform(model, NestedChannels((0.5, 1.0)), x)
    assert [level.cost.macs for level in net.levels] == [level.cost.macs for level in same.levels]
    assert [level.cost.params for level in net.levels] == [level.cost.params for level in same.levels]
    torch.testing.assert_close(net.eval()(x).levels, same.eval()(x).levels)
    assert_levels_equal_extracts(net)


class Training(nn.Module):
    """Norms, one of them called twice, one without statistics of its own, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.other = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, track_running_stats=False)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)).relu()
        x = self.other(self.norm(self.b(x)).relu())
        result: Tensor = self.head(self.drop(x.mean((2, 3))))
        return result


def test_programs_decomposed_in_train_mode_train_and_evaluate_like_their_source() -> None:
    model, x = randomise(Training()).train(), torch.randn(4, 3, 6, 6)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: Dim.DYNAMIC},)).run_decompositions()
    # A norm that is called twice writes in place what its own first call saved: torch cannot differentiate the program.
    with pytest.warns(AnytimeWarning, match="training was not compared .* modified by an inplace operation"):
        net = transform(exported, NestedChannels((0.5, 1.0)))
    same = transform(model, NestedChannels((0.5, 1.0)), x)
    assert [level.cost for level in net.levels] == [level.cost for level in same.levels]
    torch.testing.assert_close(net.eval()(x).levels[-1], model.eval()(x))
    assert_levels_equal_extracts(net)
    net.train()
    model.train()
    before = model.state_dict()["norm.running_mean"].clone()
    torch.manual_seed(0)
    found = net(x, level=-1)
    torch.manual_seed(0)
    torch.testing.assert_close(found, model(x))
    after = {name: tensor for name, tensor in model.state_dict().items() if "running" in name}
    assert not torch.equal(after["norm.running_mean"], before)
    torch.testing.assert_close({name: net.state_dict()[name] for name in after}, after)
    assert any(isinstance(module, nn.Dropout) for module in net.modules())


class ReadsStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(x) * self.norm.running_var)
        return result


def test_new_statistics_that_the_model_reads_are_refused() -> None:
    x = torch.randn(4, 6)
    exported = torch.export.export(ReadsStatistics().train(), (x,)).run_decompositions()
    with pytest.raises(UnsupportedOpError, match=r"gives statistics that 'mul.*' reads"):
        transform(exported, NestedChannels((0.5, 1.0)))
