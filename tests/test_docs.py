"""What the documentation shows is run."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, HierarchicalEnsemble, NestedChannels, SchemeError, cli, load, transform
from anytimeify._torch import OpOverload
from anytimeify.graph.traversal import ancestors
from anytimeify.rules.table import registered, unregister
from anytimeify.testing import check
from tests.rounding import close

ROOT = Path(__file__).parent.parent


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")),
]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", (ROOT / page).read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_the_site_names_pages_that_are_there() -> None:
    named = re.findall(r": (\w+\.md)", (ROOT / "mkdocs.yml").read_text())
    made = {"index.md", "contributing.md", "examples.md", "gallery.md"}  # by website/pages.py
    assert {name for name in named if not (ROOT / "docs" / name).exists()} == made


OP, RULE, *REST = blocks("docs/first_op_rule.md")


class Gated(nn.Module):
    """A hidden layer and a head that are operations of another package."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.hidden = nn.Linear(8, 12), nn.Linear(12, 10)
        self.first, self.head = (nn.Parameter(torch.randn(shape) / 3) for shape in ((12, 12), (5, 10)))

    def forward(self, x: Tensor) -> Tensor:
        op = torch.ops.mylib.gated_linear
        x = self.stem(x).relu()
        x = self.hidden(op(x, x.sigmoid(), self.first).relu()).relu()
        result: Tensor = op(x, x.sigmoid(), self.head)
        return result


@pytest.fixture(scope="module")
def target() -> OpOverload:
    namespace: dict[str, object] = {}
    exec(OP, namespace)
    LIBRARIES.append(namespace)  # the operation lives as long as what defines it
    return torch.ops.mylib.gated_linear.default


@pytest.fixture
def rule(target: OpOverload) -> Iterator[dict[str, object]]:
    """The blocks of the page, run one after the other, and what they define."""
    assert target not in registered()
    namespace: dict[str, object] = {"torch": torch, "MyModel": Gated}
    for text in (RULE, *REST):
        exec(text, namespace)
    yield namespace
    unregister(target)


def test_levels_that_return_what_the_backbone_returns() -> None:
    names: dict[str, Any] = {}
    for text in blocks("docs/outputs.md"):
        exec(text, names)
    net, x = names["net"], names["x"]
    assert net(x, level=0).keys() == names["small"](x).keys() == {"logits", "depth", "stride"}
    assert torch.equal(names["out"].levels[0], names["out"].results[0]["logits"])
    assert names["losses"][-1] < names["losses"][0]
    assert len(names["maps"]) == 2


LIBRARIES: list[dict[str, object]] = []
INPUTS = (torch.randn(4, 8),)


def own(net: AnytimeModel) -> set[str]:
    return {name for name in net.state_dict() if name.startswith("anytime.")}


@pytest.mark.usefixtures("target")
def test_without_its_rule_the_operation_pins_and_is_named() -> None:
    with pytest.raises(SchemeError, match=r"no axis rule for this operation: mylib\.gated_linear"):
        transform(Gated(), NestedChannels((0.5, 1.0), where=("first",)), INPUTS)


def test_the_first_op_rule_narrows_and_finds_the_head(rule: dict[str, object]) -> None:
    rule["test_gated_linear"]()  # type: ignore[operator]  # a function of the page
    model = Gated()
    net = transform(model, NestedChannels((0.5, 1.0)), INPUTS)
    assert {group.name for group in net.axes.narrowable} == {"stem", "first", "hidden"}
    check(net, model, INPUTS)
    assert net.levels[0].cost.macs == 8 * 6 + 6 * 6 + 6 * 5 + 5 * 5
    assert own(net) == {"anytime.0.head"}


@pytest.mark.usefixtures("rule")
def test_the_first_op_rule_has_a_triangular_form() -> None:
    model = Gated()
    net = transform(model, NestedChannels((0.5, 1.0), connectivity="triangular"), INPUTS)
    check(net, model, INPUTS)
    assert own(net) == {"anytime.0.head"}
    before = net.eval()(*INPUTS).levels[0]
    with torch.no_grad():
        weight = net.get_parameter("first")
        weight[6:] += 1  # rows that the full level adds
        weight[:6, 6:] += 1  # what lower rows would read of its columns
    assert torch.equal(net(*INPUTS).levels[0], before)


@pytest.mark.usefixtures("rule")
def test_the_first_op_rule_fuses() -> None:
    model = Gated()
    net = transform(model, HierarchicalEnsemble(cuts=("stem", "hidden")), INPUTS)
    check(net, model, INPUTS)
    joint = ancestors([net.rewritten.outputs[one] for one in net.rewritten.joint])
    assert not [node for node in joint if "mylib" in str(node.target)]
    assert len([node for node in joint if node.target is torch.ops.aten.einsum.default]) == 2


@pytest.mark.usefixtures("rule")
@pytest.mark.slow
def test_a_model_with_the_first_op_is_saved_and_loaded(tmp_path: Path, target: OpOverload) -> None:
    net, path = transform(Gated(), NestedChannels((0.5, 1.0)), INPUTS).eval(), tmp_path / "net.safetensors"
    net.save(path)
    again = load(path).eval()
    for one, other in zip(again(*INPUTS).levels, net(*INPUTS).levels, strict=True):
        assert close(one, other)
    exec(RULE, {})  # as when a notebook's cell runs twice
    assert target in registered()
    code = f"import anytimeify; anytimeify.load({str(path)!r})"
    alone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ArtifactError: the saved graph calls mylib.gated_linear.default, which is not allowed here" in alone.stderr
    (tmp_path / "ops.py").write_text(f"{OP}\n{RULE}")
    code = f"exec(open({str(tmp_path / 'ops.py')!r}).read()); {code}"
    subprocess.run([sys.executable, "-c", code], check=True)


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
    commands, training = re.findall(r"```\n((?:anytimeify .*\n)+)```", (ROOT / "README.md").read_text())
    for command in commands.splitlines():
        with pytest.raises(SystemExit) as ended:
            cli.main(shlex.split(command)[1:])
        assert not ended.value.code
    assert Path("small.onnx").is_file()
    assert "anytimeify train paper:" in training  # tests/train runs such commands


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
