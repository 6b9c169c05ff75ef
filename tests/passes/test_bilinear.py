"""`nn.Bilinear`: a layer of two inputs, of which nothing but its rule knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import anytimeify
from anytimeify import HierarchicalEnsemble, NestedChannels, load, transform
from anytimeify.codegen.to_modules import to_modules
from anytimeify.passes.rewrites.fold_batch_norms import fold_batch_norms
from anytimeify.testing import check
from tests.rounding import close
from tests.source_files import ROOT


class OneInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(8, 12), nn.Linear(12, 6), nn.Linear(12, 7)
        self.both, self.mixed, self.head = nn.Bilinear(6, 7, 9), nn.Linear(9, 9), nn.Bilinear(9, 9, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.mixed(self.both(self.left(x), self.right(x)).relu()).relu()
        result: Tensor = self.head(x, x.sin())
        return result


class Network(nn.Module):
    def __init__(self, *, last: bool = False) -> None:
        super().__init__()
        self.left, self.right, self.norm = nn.Linear(8, 12), nn.Linear(6, 10), nn.BatchNorm1d(16)
        self.both = nn.Bilinear(12, 10, 16)
        self.head: nn.Module = nn.Bilinear(16, 10, 5) if last else nn.Linear(16, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.left(x).relu(), self.right(y).relu()
        z = self.norm(self.both(x, y)).relu()
        result: Tensor = self.head(z, y) if isinstance(self.head, nn.Bilinear) else self.head(z)
        return result


INPUTS = (torch.randn(4, 8), torch.randn(4, 6))


def test_it_narrows() -> None:
    model = Network()
    net = transform(model, NestedChannels((0.5, 1.0)), INPUTS)
    assert {group.name for group in net.axes.narrowable} == {"left", "right", "both"}
    check(net, model, INPUTS)
    assert net.levels[0].cost.macs == 8 * 6 + 6 * 5 + 6 * 5 * 8 + 8 * 5


def test_it_is_a_private_head() -> None:
    model = Network(last=True)
    net = transform(model, NestedChannels((0.5, 1.0), norms="shared"), INPUTS)
    check(net, model, INPUTS)
    own = {name for name in net.state_dict() if name.startswith("anytime.")}
    assert own == {"anytime.0.head.weight", "anytime.0.head.bias"}


@pytest.mark.parametrize("last", [False, True])
def test_triangular_connectivity(last: bool) -> None:
    model = Network(last=last)
    net = transform(model, NestedChannels((0.5, 1.0), connectivity="triangular"), INPUTS)
    check(net, model, INPUTS)


def test_it_fuses() -> None:
    model, inputs = OneInput(), torch.randn(4, 8)
    net = transform(model, HierarchicalEnsemble(cuts=("stem", "mixed")), inputs)
    check(net, model, (inputs,))
    names = [node.name for node in net.rewritten.program.graph.nodes]
    assert {"both_product", "head_product"} <= set(names)


def test_a_norm_behind_it_folds_into_it() -> None:
    model = Network().eval()
    net = transform(model, NestedChannels((0.5, 1.0), norms="shared"), INPUTS)
    program = net.captured.program
    folded = fold_batch_norms(program)
    assert not any("batch_norm" in str(node.target) for node in folded.graph.nodes)
    (result,) = to_modules(folded, training=False)(*INPUTS)
    assert close(result, model(*INPUTS))


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    net = transform(Network(), NestedChannels((0.5, 1.0)), INPUTS).eval()
    net.save(tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors").eval()
    for one, other in zip(again(*INPUTS).levels, net(*INPUTS).levels, strict=True):
        assert close(one, other)


def test_it_is_a_module_again() -> None:
    net = transform(Network(), NestedChannels((0.5, 1.0)), INPUTS)
    assert type(net.extract(1).get_submodule("both")) is nn.Bilinear
    assert str(net.get_submodule("both")) == str(nn.Bilinear(12, 10, 16))


def test_one_file_knows_it() -> None:
    sources = [*Path(anytimeify.__file__).parent.rglob("*.py"), *(ROOT / "passes").rglob("*.py")]
    assert {
        path.name for path in sources if "bilinear.default" in path.read_text() or "nn.Bilinear" in path.read_text()
    } == {"linear.py"}
