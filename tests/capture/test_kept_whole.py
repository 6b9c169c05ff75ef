"""Sub-modules that torch.export cannot look into: kept whole, in every level."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, HierarchicalEnsemble, NestedChannels, transform
from anytimeify.errors import AnytimeWarning, ArtifactError, CaptureError, SchemeError
from anytimeify.storage.export import export_pt2
from tests.rounding import close

SCHEMES = (
    "nested-channels{widths=0.5,1}",
    "nested-weights{densities=0.3,1}",
    "nested-depth{depths=0.5,1}",
    "hierarchical-ensemble{depth=1}",
    "auxiliary-branches{branches=1}",
)


class Decides(nn.Module):
    """Decides by its values, holds a lock that nothing can copy, and returns a structure."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(0.5)
        self.lock: Any = threading.Lock()

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Any]:
        with self.lock:
            y = self.fc(x) if x.sum().item() > 0 else 2 * self.fc(x)
        return {"scaled": self.drop(self.norm(y)) * scale, "rest": (y.mean(), [y[:, :2]])}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(self.up(self.norm(x)).relu())
        return result


class Around(nn.Module):
    """The odd module in the middle of a residual network; called twice."""

    def __init__(self, odd: Callable[[int], nn.Module] = Decides) -> None:
        super().__init__()
        self.stem, self.odd = nn.Linear(3, 8), odd(8)
        self.blocks, self.head = nn.Sequential(*(Block(8) for _ in range(4))), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        found = self.odd(x, scale=0.5)
        x = self.blocks(x + found["scaled"]) + found["rest"][0]
        again = self.odd(x)
        result: Tensor = self.head(x + again["scaled"] + again["rest"][1][0].sum(1, keepdim=True))
        return result


def _transformed(model: nn.Module, scheme: Any, x: Tensor, **options: Any) -> AnytimeModel:
    with pytest.warns(AnytimeWarning, match="kept whole"):
        return transform(model, scheme, x, **options)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_level_holds_the_module_as_it_is(scheme: str) -> None:
    """`verify` compares outputs, gradients, buffers and extracts; here the same at sizes that nothing was tried at."""
    model = Around()
    net = _transformed(model, scheme, torch.randn(5, 3)).eval()
    assert set(model.state_dict()) <= set(net.state_dict())
    costs = [level.cost.macs for level in net.levels]
    assert costs == sorted(set(costs))
    model.eval()
    for count in (1, 4):
        x = torch.randn(count, 3)
        out = net(x)
        full = out.levels[0] if scheme.startswith("hierarchical") else out.levels[-1]
        close(full, model(x))
        for index, level in enumerate(out.levels):
            small = net.extract(index)
            close(small(x), level)
            assert type(small.get_submodule("odd")) is Decides or index == 0  # a branch may leave before


def test_the_module_trains() -> None:
    model = Around().train()
    net = _transformed(model, NestedChannels(widths=(0.5, 1.0)), torch.randn(6, 3))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items() if name.startswith("odd.")}
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net.loss(net(torch.randn(6, 3)), torch.zeros(6, dtype=torch.long)).backward()
    optimizer.step()
    moved = {name for name, tensor in net.state_dict().items() if name in before and not tensor.equal(before[name])}
    assert {"odd.fc.weight", "odd.norm.weight", "odd.norm.running_mean", "odd.norm.num_batches_tracked"} <= moved
    net.load_state_dict(model.state_dict(), strict=False)
    assert net.get_parameter("odd.fc.weight").equal(model.get_parameter("odd.fc.weight"))


def test_members_have_modules_of_their_own() -> None:
    net = _transformed(Around(), HierarchicalEnsemble(depth=1, init="copy"), torch.randn(5, 3)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(5, 3)
    out = net(x)
    close(net.extract(1)(x), out.levels[1])
    assert not torch.allclose(out.members[0], out.members[1])
    kept = [path for path, module in net.extract(1).named_modules() if type(module) is Decides]
    assert len(kept) == len({id(net.extract(1).get_submodule(path)) for path in kept}) >= 1


def test_a_message_says_which_and_why() -> None:
    with pytest.warns(AnytimeWarning) as caught:
        net = transform(Around(), NestedChannels(widths=(0.5, 1.0)), torch.randn(5, 3))
    told = str(caught[0].message)
    assert "'odd' (Decides) is kept whole" in told
    assert "test_kept_whole.py" in told
    assert "x.sum().item()" in told
    assert "norm.running_mean" in told
    report = str(net.report())
    assert "'odd' (Decides) is kept whole" in report


def test_its_channels_are_pinned_and_those_beside_it_narrow() -> None:
    net = _transformed(Around(), NestedChannels(widths=(0.5, 1.0)), torch.randn(5, 3))
    small = net.extract(0)
    assert small.get_parameter("odd.fc.weight").shape == (8, 8)
    assert small.get_parameter("blocks.1.up.weight").shape == (16, 8)


def test_an_extract_runs_in_a_copy_and_in_double_precision() -> None:
    class Plain(Decides):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.lock: Any = _NoLock()

    net = _transformed(Around(Plain), NestedChannels(widths=(0.5, 1.0)), torch.randn(5, 3)).eval()
    x = torch.randn(3, 3)
    close(copy.deepcopy(net.extract(0))(x), net(x, level=0))
    wide = copy.deepcopy(net).double()
    close(wide(x.double(), level=0).float(), net(x, level=0))


class _NoLock:
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def test_files_refuse_it_by_name(tmp_path: Path) -> None:
    x = torch.randn(5, 3)
    net = _transformed(Around(), NestedChannels(widths=(0.5, 1.0)), x)
    with pytest.raises(ArtifactError, match=r"'odd' \(Decides\) is kept whole.*state_dict"):
        net.save(tmp_path / "model.safetensors")
    with pytest.raises(CaptureError, match=r"'odd' \(Decides\), a module of the backbone that is kept whole"):
        export_pt2(net.extract(0), x, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


class _Checked(nn.Module):
    """Any block, behind a check of values."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        if not x.isfinite().all():
            raise FloatingPointError("not finite")
        result: Tensor = self.block(x)
        return result


@pytest.mark.zoo
def test_blocks_of_timm() -> None:
    """The second one of a class that is found brings all of its class."""
    import timm

    model: Any = timm.create_model("resnet18", num_classes=4)
    for layer in (model.layer1, model.layer2, model.layer3):
        layer[1] = _Checked(layer[1])
    net = _transformed(model, NestedChannels(widths=(0.5, 1.0)), torch.randn(2, 3, 32, 32)).eval()
    kept = [note for note in net.captured.whole if "_Checked" in note]
    assert len(kept) == 3
    x = torch.randn(3, 3, 32, 32)
    close(net(x, level=0), net.extract(0)(x))
    close(net(x, level=1), model.eval()(x))


class _Numpy(nn.Module):
    """What no exporter sees: numbers that leave torch."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().cpu().numpy() ** 2).to(x)


def test_numpy() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 8), _Numpy(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.body(x)
            return result

    _transformed(Net(), NestedChannels(widths=(0.5, 1.0)), torch.randn(2, 4))


# What cannot be kept.


class _Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2) if x.sum().item() > 0 else x.mul_(3)


class _Shrinks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[: int((x.sum() * 0).item()) + x.shape[0] // 2].repeat(2, 1)[:1].expand(x.shape[0] * 2 // 3 + 1, -1)


class _Numbers(nn.Module):
    def forward(self, x: Tensor) -> float:
        return float(x.sum())


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        (_Writes, "writes to what it is given"),
        (_Shrinks, "follows from no size of its inputs"),
        (_Numbers, "something else than tensors"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_the_reason(odd: Callable[[], nn.Module], why: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.odd, self.last = nn.Linear(3, 4), odd(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.last(self.first(x).relu() + torch.as_tensor(self.odd(self.first(x))).sum())
            return result

    with pytest.raises(CaptureError, match=why):
        transform(Net(), NestedChannels(widths=(0.5, 1.0)), torch.randn(4, 3))


def test_a_model_that_decides_itself_is_refused_by_its_line() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            if x.sum().item() > 0:
                x = 2 * x
            result: Tensor = self.last(x)
            return result

    with pytest.raises(CaptureError, match=r"x\.sum\(\)\.item\(\).*sub-module of its own, which is then kept whole"):
        transform(Net(), NestedChannels(widths=(0.5, 1.0)), torch.randn(4, 3))


def test_triangular_connectivity_says_what_is_in_its_way() -> None:
    with pytest.raises(SchemeError, match=r"'odd' \(Decides\) is kept whole"):
        transform(Around(), NestedChannels(widths=(0.5, 1.0), connectivity="triangular"), torch.randn(5, 3))
