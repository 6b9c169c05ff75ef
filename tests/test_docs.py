"""What the documentation shows is run."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from anytimeify import NestedChannels, SchemeError, transform
from anytimeify.rules.table import registered, unregister
from anytimeify.testing import check

ROOT = Path(__file__).parent.parent


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 12), nn.Linear(6, 10)
        self.both, self.head = nn.Bilinear(12, 10, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = self.head(self.both(self.left(x), self.right(y)).relu())
        return result


@pytest.fixture
def bilinear_rule() -> Iterator[None]:
    target = torch.ops.aten.bilinear.default
    assert target not in registered()
    exec(blocks("docs/first_op_rule.md")[0], {})
    yield
    unregister(target)


def test_without_its_rule_the_operation_pins_and_is_named() -> None:
    with pytest.raises(SchemeError, match=r"no axis rule for this operation: aten\.bilinear"):
        transform(Bilinear(), NestedChannels((0.5, 1.0)), (torch.randn(4, 8), torch.randn(4, 6)))


@pytest.mark.usefixtures("bilinear_rule")
def test_the_first_op_rule_of_the_documentation() -> None:
    model, inputs = Bilinear(), (torch.randn(4, 8), torch.randn(4, 6))
    net = transform(model, NestedChannels((0.5, 1.0)), inputs)
    assert {group.name for group in net.axes.narrowable} == {"left", "right", "both"}
    check(net, model, inputs)
    assert net.levels[0].cost.macs == 8 * 6 + 6 * 5 + 6 * 5 * 8 + 8 * 5


def tiny(name: str, num_classes: int = 1000) -> nn.Module:
    """What the examples get from timm: as it says what it takes, but small."""
    assert name in ("resnet18", "resnet50")
    stem, head = nn.Conv2d(3, 16, 32, stride=32), nn.Linear(16, num_classes)
    layers = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(4)]
    model = nn.Sequential(stem, nn.BatchNorm2d(16), nn.ReLU(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    model.pretrained_cfg = {"input_size": (3, 224, 224)}  # type: ignore[assignment]  # no module, as in timm
    return model


def test_the_examples_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", ModuleType("timm"))
    monkeypatch.setattr("timm.create_model", tiny, raising=False)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for text in blocks("README.md"):
        exec(text, namespace)
    assert (tmp_path / "net.safetensors").is_file()
    assert (tmp_path / "stages").is_dir()
