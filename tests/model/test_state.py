"""Names and state: what is in the state dict, names that collide, the loss, copies, pickles and how a model prints."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anytimeify import HierarchicalEnsemble, JointLoss, NestedChannels, Outputs, load, transform
from anytimeify.capture import capture
from tests.backbones import Clashing, Residual, images, residual_net
from tests.rounding import close


def test_the_state_dict_is_the_backbones_and_what_the_scheme_adds() -> None:
    net, backbone = residual_net(), Residual()
    added = net.state_dict().keys() - backbone.state_dict().keys()
    assert backbone.state_dict().keys() <= net.state_dict().keys()
    assert all(name.startswith("anytime.") for name in added)
    assert net.load_state_dict(backbone.state_dict(), strict=False).unexpected_keys == []
    backbone.eval()
    assert close(net(images(), level=-1), backbone(images()))


def test_children_named_like_members_of_the_model() -> None:
    backbone = Clashing()
    net = transform(backbone, NestedChannels((0.5, 1.0)), torch.randn(4, 4)).eval()
    assert backbone.state_dict().keys() <= net.state_dict().keys()
    assert len(net.levels) == 2
    assert isinstance(net.loss, JointLoss)
    assert torch.equal(net.get_parameter("loss.weight"), backbone.loss.weight)
    assert torch.equal(net.get_submodule("levels").get_parameter("weight"), backbone.levels.weight)
    net.loss = JointLoss(reduction="mean")
    x = torch.randn(4, 4)
    assert close(net(x, level=-1), backbone.eval()(x))
    assert close(net.extract(0)(x), net(x, level=0))


def test_children_named_like_members_of_a_graph_module(tmp_path: Path) -> None:
    class Graphs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph, self.code, self.meta = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.meta(self.code(self.graph(x)))
            return result

    backbone, x = Graphs(), torch.randn(4, 4)
    net = transform(backbone, NestedChannels((0.5, 1.0)), x).eval()
    assert backbone.state_dict().keys() <= net.state_dict().keys()
    backbone.graph.weight.data.mul_(2)
    assert not net.load_state_dict(backbone.state_dict(), strict=False).unexpected_keys
    assert close(net(x, level=-1), backbone.eval()(x))
    net.save(tmp_path / "net.safetensors")
    for same in (load(tmp_path / "net.safetensors"), copy.deepcopy(net)):
        assert same.state_dict().keys() == net.state_dict().keys()
        assert close(same(x, level=0), net(x, level=0))


def test_the_loss_can_be_replaced_and_follows_the_model() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("offset", torch.zeros(()), persistent=False)

        def forward(self, outputs: Outputs, target: Tensor) -> Tensor:
            terms = [nn.functional.cross_entropy(prediction, target) for prediction in outputs.levels]
            result: Tensor = (torch.stack(terms) * self.weight).sum() + self.get_buffer("offset")
            return result

    net = residual_net()
    keys, parameters = net.state_dict().keys(), len(list(net.parameters()))
    net.loss = Learned()
    assert net.state_dict().keys() - keys == {"anytime.loss.weight"}
    assert len(list(net.parameters())) == parameters + 1
    net.double()
    assert net.loss.offset.dtype == torch.float64
    net.loss(net(images().double()), torch.tensor([0, 1, 2, 3])).backward()
    assert net.loss.weight.grad is not None
    net.loss = JointLoss()
    assert net.state_dict().keys() == keys
    with pytest.raises(TypeError, match=r"expected an nn\.Module"):
        net.loss = nn.functional.cross_entropy  # type: ignore[assignment]  # refused input


def test_it_prints_like_the_backbone_and_sums_up_the_rest() -> None:
    assert repr(residual_net()) == (
        f"""AnytimeModel(
  nested-channels{{widths=0.25,0.5,1}}, 3 levels
  (stem): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
  (bn1): {nn.BatchNorm2d(8)}
  (conv): Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
  (bn2): {nn.BatchNorm2d(8)}
  (drop): Dropout(p=0.5, inplace=False)
  (fc): Linear(in_features=8, out_features=5, bias=True)
  (unused): Part(weight: [2, 2], bias: [2])
  (anytime): Added(
    (0): 2 BatchNorm2d, 1 Linear
    (1): 2 BatchNorm2d, 1 Linear
    (loss): JointLoss(weights=None, reduction='sum')
  )
)"""
    )


def test_the_members_of_an_ensemble_add_no_lines() -> None:
    backbone = Residual()
    text = repr(transform(backbone, HierarchicalEnsemble(cuts=("stem",)), images()))
    assert "(bn1): BatchNorm2d(16, " in text
    assert "(fc): Part(weight: [10, 8], bias: [10])" in text
    assert "(calls): 2 BatchNormCall" in text
    assert len(text.splitlines()) == len(repr(backbone).splitlines()) + 5


def test_deepcopy_shares_nothing_and_keeps_replaced_children() -> None:
    net, x = residual_net(), images()
    net.drop = nn.Identity()
    twin = copy.deepcopy(net)
    expected = [prediction.clone() for prediction in net(x).levels]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    for index, prediction in enumerate(expected):
        assert close(twin(x).levels[index], prediction)
        assert close(twin(x, level=index), prediction)
    assert isinstance(twin.drop, nn.Identity)
    assert twin.loss is not net.loss
    assert not close(net(x, level=-1), expected[-1])


def test_a_replaced_child_reaches_every_graph() -> None:
    net, x = residual_net(), images()
    net.fc = nn.Linear(8, 5)
    nn.init.zeros_(net.fc.weight)
    assert torch.equal(net(x).levels[2], net.fc.bias.expand(4, 5))
    assert torch.equal(net(x, level=2), net.fc.bias.expand(4, 5))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert converted is net
    assert isinstance(net.bn1, nn.SyncBatchNorm)


def test_pickling_says_what_to_do_instead(tmp_path: Path) -> None:
    net = residual_net()
    with pytest.raises(TypeError, match=r"net\.save"):
        pickle.dumps(net)
    torch.save(net.state_dict(), tmp_path / "state.pt")
    other = residual_net()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert close(other(images(), level=0), net(images(), level=0))


def test_capture_holds_no_memory_twice() -> None:
    net = residual_net()
    live = {id(tensor) for tensor in net.tensors().values()}
    assert all(tensor.is_meta for tensor in net._compiled.definition.captured.program.tensors.values())
    assert all(id(tensor) in live for tensor in net.captured.program.tensors.values())
    assert capture(Residual(), images()).program.tensors.keys() == net.captured.program.tensors.keys()
