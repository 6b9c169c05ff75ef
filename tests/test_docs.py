"""What the documentation shows is run."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import NestedChannels, SchemeError, cli, transform
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
def bilinear_rule() -> Iterator[dict[str, object]]:
    """The blocks of the page, run one after the other, and what they define."""
    target = torch.ops.aten.bilinear.default
    assert target not in registered()
    namespace: dict[str, object] = {"torch": torch, "MyModel": Bilinear}
    for text in blocks("docs/first_op_rule.md"):
        exec(text, namespace)
    yield namespace
    unregister(target)


def test_without_its_rule_the_operation_pins_and_is_named() -> None:
    with pytest.raises(SchemeError, match=r"no axis rule for this operation: aten\.bilinear"):
        transform(Bilinear(), NestedChannels((0.5, 1.0)), (torch.randn(4, 8), torch.randn(4, 6)))


def test_the_first_op_rule_of_the_documentation(bilinear_rule: dict[str, object]) -> None:
    net = transform(Bilinear(), NestedChannels((0.5, 1.0)), (torch.randn(4, 8), torch.randn(4, 6)))
    assert {group.name for group in net.axes.narrowable} == {"left", "right", "both"}
    assert net.levels[0].cost.macs == 8 * 6 + 6 * 5 + 6 * 5 * 8 + 8 * 5
    bilinear_rule["test_bilinear"]()  # type: ignore[operator]  # a function of the page


def tiny(name: str, num_classes: int = 1000, pretrained: bool = False) -> nn.Module:
    """What the examples get from timm: as it says what it takes, but small."""
    stem, head = nn.Conv2d(3, 16, 32, stride=32), nn.Linear(16, num_classes)
    layers = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(4)]
    model = nn.Sequential(stem, nn.BatchNorm2d(16), nn.ReLU(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    model.pretrained_cfg = {"input_size": (3, 224, 224)}  # type: ignore[assignment]  # no module, as in timm
    return model


@pytest.fixture
def small_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models under the names of timm's, in an empty folder."""
    monkeypatch.setitem(sys.modules, "timm", ModuleType("timm"))
    monkeypatch.setattr("timm.create_model", tiny, raising=False)
    monkeypatch.setattr("timm.is_model", lambda name: True, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("small_timm")
def test_the_examples_of_the_readme_run() -> None:
    namespace: dict[str, object] = {}
    for text in blocks("README.md"):
        exec(text.replace("latency_ms=20", "latency_ms=1e5"), namespace)  # the machine may be busy
    assert Path("net.safetensors").is_file()
    assert Path("stages").is_dir()


@pytest.mark.usefixtures("small_timm")
def test_the_commands_of_the_readme_run() -> None:
    (commands,) = re.findall(r"```\n((?:anytimeify .*\n)+)```", (ROOT / "README.md").read_text())
    for command in commands.splitlines():
        with pytest.raises(SystemExit) as ended:
            cli.main(shlex.split(command)[1:])
        assert not ended.value.code
    assert Path("small.onnx").is_file()


def test_the_first_example_prints_what_the_readme_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """With the network that it names."""
    pytest.importorskip("timm")
    exec(blocks("README.md")[0], {})
    printed = capsys.readouterr().out
    assert f"```\n```\n{printed}```\n" in (ROOT / "README.md").read_text()


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.conv(x)).relu().flatten(2).mean(2))
        return result


def test_the_first_scheme_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType("half_size")
    monkeypatch.setitem(sys.modules, "half_size", module)
    first, second = blocks("docs/first_scheme.md")
    exec(first, module.__dict__)
    images = torch.randn(2, 3, 16, 16)
    namespace: dict[str, Any] = {"torch": torch, "nn": nn, "MyModel": Small, "images": images}
    exec(second, namespace)
    assert namespace["same"]
    full = 3 * 8 * 9 * 16 * 16
    assert [level.cost.macs for level in namespace["net"].levels] == [full // 4 + 40, full + 40]
    for one, other in zip(namespace["net"](images).levels, namespace["again"](images).levels, strict=True):
        torch.testing.assert_close(one, other)
    check(namespace["net"], namespace["model"], (images,))
