"""Reports of nets and inspections of backbones: the same facts as tables, Markdown, JSON and pictures."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anytimeify import MissingExtraError, NestedChannels, transform
from anytimeify.analysis.axes import analyse
from anytimeify.capture import capture
from anytimeify.report import Inspection, Report, inspect
from anytimeify.report.tables import in_bytes, shortened
from tests.backbones import Residual, images, residual_net


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], 6, 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).reshape(x.shape[0], 6, 8))  # type: ignore[no-any-return]


class WithoutRule(nn.Module):
    """An operation along the channels that has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(torch.logcumsumexp(self.first(x), -1)).relu())  # type: ignore[no-any-return]


def inspection_of(model: nn.Module, *inputs: Tensor) -> Inspection:
    captured = capture(model, inputs)
    return inspect(captured, analyse(captured.program), "net")


def test_report_of_a_net() -> None:
    net = residual_net()
    report = net.report()
    assert isinstance(report, Report)
    assert report.scheme == str(net.scheme)
    assert [(row.index, row.name) for row in report.levels] == [(level.index, level.name) for level in net.levels]
    for row, level in zip(report.levels, net.levels, strict=True):
        assert (row.macs, row.params, row.activation_bytes) == tuple(level.cost)
        assert row.share == pytest.approx(level.cost.macs / net.levels[-1].cost.macs)
    (stream,) = [row for row in report.axes if row.pin is None]
    assert (stream.role, stream.channels, stream.unit) == ("stream", 8, 1)
    assert stream.kept == (2, 4, 8)
    assert stream.share == pytest.approx(1.0)
    assert {"stem.weight[0]", "conv.weight[0]", "conv.weight[1]", "bn1.running_mean[0]", "fc.weight[1]"} <= set(
        stream.sites
    )
    pins = {row.pin.reason for row in report.axes if row.pin is not None}
    assert "an output of the model" in pins


def test_kept_channels_are_whole_heads() -> None:
    net = transform(nn.Sequential(nn.Linear(5, 8), Attention()), NestedChannels((0.35, 1.0)), torch.randn(2, 6, 5))
    heads = [row for row in net.report().axes if row.pin is None and row.unit == 2]
    assert [(row.channels, row.kept) for row in heads] == [(8, (4, 8))]


def test_shown_as_text_markdown_and_json() -> None:
    report = residual_net().report()
    text, markdown = str(report), report.to_markdown()
    for word in ("nested-channels{widths=0.25,0.5,1}: 3 levels", "width 0.25", "2 4 8", "an output of the model"):
        assert word in text
        assert word in markdown
    assert max(map(len, text.splitlines())) <= 120
    assert "| level | name | MACs |" in markdown
    assert "\n## Levels\n" in markdown
    assert json.loads(report.to_json()) == json.loads(json.dumps(asdict(report)))


def test_inspection_of_a_backbone() -> None:
    found = inspection_of(Residual(), images())
    assert found.inputs == ("4x3x6x6",)
    assert found.macs == residual_net().levels[-1].cost.macs
    assert found.pinned == ()
    assert found.cut_points[-1] == "fc"
    assert [stage.positions for stage in found.stages] == [36, 1]
    assert "cut points" in str(found)
    assert json.loads(found.to_json())["stages"][0]["blocks"][0]["start"] == "x"


def test_pinned_macs_are_explained() -> None:
    found = inspection_of(WithoutRule(), torch.randn(2, 4))
    assert found.without_rule[0].operation == "aten.logcumsumexp.default"
    assert "logcumsumexp" in found.without_rule[0].origin
    assert found.pinned_share == pytest.approx(32 / (32 + 64 + 16))  # the first layer: its output is pinned
    ((place, _),) = found.pinned
    assert "aten.logcumsumexp.default" in str(found)
    assert place.operation == "aten.logcumsumexp.default"


def test_alike_axes_share_a_line_on_the_screen_and_not_in_the_rest() -> None:
    layers = [layer for _ in range(30) for layer in (nn.Linear(8, 8), nn.ReLU())]
    found = inspection_of(nn.Sequential(*layers), torch.randn(2, 8))
    assert len(str(found).splitlines()) < 60
    assert "*" in str(found)
    assert len(found.to_markdown().splitlines()) > 60
    assert len(json.loads(found.to_json())["axes"]) == len(found.axes) >= 29


def test_plots(tmp_path: Path) -> None:
    report = residual_net().report()
    report.plot(tmp_path / "costs.png")
    report.plot(tmp_path / "both.png", {"width 0.25": 0.5, "width 1": 0.9}, alone={"width 1": 0.8})
    for name in ("costs.png", "both.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(
        ValueError, match=r"'width 2' is not the name of a level; there are: width 0\.25, width 0\.5, width 1"
    ):
        report.plot(tmp_path / "no.png", {"width 2": 0.5})
    assert not (tmp_path / "no.png").exists()


def test_plotting_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'anytimeify\[plot\]'"):
        residual_net().report().plot(tmp_path / "costs.png")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (135_400_000, "135 M"),
        (999_700, "1 M"),
        (1.82e9, "1.82 G"),
        (2e13, "20 T"),
    ],
)
def test_numbers_are_short(number: float, text: str) -> None:
    assert shortened(number) == text


def test_bytes_are_binary() -> None:
    assert [in_bytes(size) for size in (10, 1536, 6 << 20, 3 << 30)] == ["10 B", "1.5 KiB", "6 MiB", "3 GiB"]
