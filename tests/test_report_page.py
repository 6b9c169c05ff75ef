"""Reports as one HTML file, and for Model Explorer: they hold what the model is, and ask nothing of anybody."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, ArtifactError, MissingExtraError, transform
from anytimeify.measure.timing import Timing
from anytimeify.report.measured import Measured, MeasuredRow, judged
from tests.backbones import images, residual_net
from tests.deploy.nets import Deep

REFERENCES = ("src", "href", "data", "action", "srcset", "poster")


class Odd(nn.Module):
    """A name that is markup, and an operation without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 8)
        self.blocks = nn.ModuleDict({"<b>&": nn.Linear(8, 2)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.logcumsumexp(self.first(x).relu(), -1)).relu()
        return self.blocks["<b>&"](x)  # type: ignore[no-any-return]


class Page(HTMLParser):
    """Tags that are open, and what a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [str(value) for name, value in attrs if name in REFERENCES or name == "xlink:href"]
        if tag not in ("meta", "link", "br", "img", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page_of(net: AnytimeModel, path: Path, measured: Measured | None = None) -> str:
    net.report().to_html(path, measured)
    text = path.read_text()
    page = Page(text)
    assert page.open == []
    assert page.references == []
    assert not re.search(r"https?:|url\(|@import|//[a-z]", text)
    return text


def test_levels_and_what_they_take(tmp_path: Path) -> None:
    net = residual_net()
    rows = [MeasuredRow(level.index, level.name, 1, 4, Timing(9.5 - level.index, 10, 5)) for level in net.levels]
    measured = Measured("net.onnx", "a", "onnxruntime 1", "a processor", 1, judged(rows, None))
    text = page_of(net, tmp_path / "net.html", measured)
    for shown in ("width 0.25", "ms, batch of 4", "9.5", "costs more and gives less than width 1"):
        assert shown in text
    assert "net.onnx in onnxruntime 1 on a processor" in text
    assert "ms, batch of" not in page_of(net, tmp_path / "net.html")  # replaces


def test_blocks_cuts_and_forks() -> None:
    net = transform(Deep(), "auxiliary-branches{branches=1}", (images(4),), verify=False)
    blocks = net.report().blocks
    assert [block.name for block in blocks][1:5] == [f"blocks.{place}" for place in range(4)]
    assert sum(block.share for block in blocks) == pytest.approx(1)
    assert all(one.end == other.start for one, other in pairwise(blocks))
    assert blocks[1].branching
    (forking,) = [block for block in blocks if block.forks]
    assert forking.forks == (net.levels[0].name,)
    assert net.levels[0].name == f"branch at {forking.end}"
    row = next(row for row in blocks[1].operations if "conv" in row.operation)
    assert "nets.py" in row.origin
    assert row.type.startswith("[batch, 64")


def test_widths_and_pins_with_their_place(tmp_path: Path) -> None:
    net = transform(Odd(), "nested-channels{widths=0.5,1}", (torch.randn(4, 4),), verify=False)
    blocks = net.report().blocks
    widths = {width.name: width.kept for block in blocks for width in block.widths}
    assert widths["second"] == (4, 8)
    reasons = {pin.reason: pin.origin for block in blocks for pin in block.pins}
    assert "test_report_page.py" in reasons["no axis rule for this operation"]
    text = page_of(net, tmp_path / "odd.html")
    assert "no axis rule for this operation: aten.logcumsumexp.default, the model itself, test_report_page.py" in text
    assert "<b>&" not in text
    assert "&lt;b&gt;&amp;" in text


def test_model_explorer(tmp_path: Path) -> None:
    net = residual_net()
    report = net.report()
    report.to_model_explorer(tmp_path / "out")
    collection = json.loads((tmp_path / "out" / "graph.json").read_text())
    (graph,) = collection["graphs"]
    nodes = {node["id"] for node in graph["nodes"]}
    assert {edge["sourceNodeId"] for node in graph["nodes"] for edge in node["incomingEdges"]} <= nodes
    assert {"x", report.blocks[-1].end} <= nodes
    overlays = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "out").glob("*.json")}
    del overlays["graph"]
    assert overlays.keys() == {"macs", "pins", "kept-0", "kept-1", "kept-2"}
    for overlay in overlays.values():
        (data,) = overlay.values()
        assert list(overlay) == [graph["id"]]
        assert data["results"].keys() <= nodes
        assert [item["stop"] for item in data["gradient"]] == [0, 1]
    (macs,) = overlays["macs"].values()
    assert sum(one["value"] for one in macs["results"].values()) == pytest.approx(100, abs=0.1)
    with pytest.raises(ArtifactError, match="exists already"):
        report.to_model_explorer(tmp_path / "out")
    report.to_model_explorer(tmp_path / "out", force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ArtifactError, match=r"holds no graph\.json"):
        report.to_model_explorer(tmp_path / "mine", force=True)


def test_without_jinja(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'jinja2'.*anytimeify\[report\]"):
        residual_net().report().to_html(tmp_path / "net.html")
