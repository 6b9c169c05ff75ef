"""`multiple_of="auto"`: the multiple that channel counts are rounded to is measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import NestedChannels, SchemeError, load, parse_scheme, transform
from anytimeify.analysis.axes import analyse
from anytimeify.capture import capture
from anytimeify.passes import multiples


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 48, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(48, 96, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 5),
    )


SCHEME = NestedChannels((0.3, 0.6, 1.0), multiple_of="auto")


class Device:
    """Computes whole tiles of so many channels."""

    def __init__(self, tile: int) -> None:
        self.tile, self.asked = tile, 0

    def __call__(self, calls: Iterable[Any], device: torch.device, dtype: torch.dtype) -> Mapping[Any, float]:
        times = {call: self.time(call) for call in calls}
        self.asked += len(times)
        return times

    def time(self, call: Any) -> float:
        outputs, inputs = next(
            shape.sizes[:2]
            for shape in reversed(call[1])
            if isinstance(shape, multiples._Shape) and len(shape.sizes) > 1
        )
        tiles = [-(-size // self.tile) * self.tile for size in (outputs, inputs)]
        # what is not whole tiles takes as long again as half of a tile
        return tiles[0] * tiles[1] * (1.3 if (outputs % self.tile, inputs % self.tile) != (0, 0) else 1.0)


@pytest.mark.parametrize("tile", [4, 8])
def test_the_multiple_is_that_of_the_device(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(tile)
    monkeypatch.setattr(multiples, "_measured", device)
    net = transform(network(), SCHEME, torch.randn(2, 3, 8, 8))
    assert device.asked > 4
    assert isinstance(net.scheme, NestedChannels)
    assert net.scheme.multiple_of == tile
    assert all(
        module.out_channels % tile == 0
        for level in (0, 1)
        for module in net.extract(level).modules()
        if isinstance(module, nn.Conv2d)
    )


def test_what_was_found_stays(tmp_path: Path) -> None:
    net = transform(network(), SCHEME, torch.randn(2, 3, 8, 8))
    assert isinstance(net.scheme, NestedChannels)
    number = net.scheme.multiple_of
    assert number in multiples.CANDIDATES
    (note,) = (note for note in net.report().notes if "multiple_of" in note)
    assert re.match(rf"multiple_of=auto took {number}: measured in float32 on cpu; .*\b1: \d\.\d\d", note)
    net.save(tmp_path / "net.safetensors")
    assert load(tmp_path / "net.safetensors").scheme == net.scheme


def test_beside_depths() -> None:
    class Block(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x)  # type: ignore[no-any-return, no-untyped-call]

    blocks = [Block(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(4)]
    model = nn.Sequential(nn.Linear(4, 16), *blocks, nn.Linear(16, 3))
    spec = "nested-depth{depths=0.5,1} nested-channels{widths=0.5,1 multiple_of=auto}"
    net = transform(model, spec, torch.randn(2, 4))
    assert "auto" not in str(net.scheme)
    assert [round(level.depth, 1) for level in net.levels if hasattr(level, "depth")] in ([], [0.5, 1.0])


def test_without_values_it_is_refused() -> None:
    with torch.device("meta"):
        model = network()
    with pytest.raises(SchemeError, match=r"multiple_of='auto' runs layers .*meta device"):
        transform(model, SCHEME, torch.randn(2, 3, 8, 8), verify=False)


def test_where_no_multiple_fits_it_says_so() -> None:
    with pytest.raises(SchemeError, match=r"width 0\.6 keeps as many channels as 0\.599"):
        transform(network(), NestedChannels((0.599, 0.6, 1.0), where="0", multiple_of="auto"), torch.randn(2, 3, 8, 8))


def test_it_is_measured_before_it_is_applied() -> None:
    captured = capture(network(), torch.randn(2, 3, 8, 8))
    with pytest.raises(SchemeError, match="measured first"):
        SCHEME.apply(captured, analyse(captured.program))


def test_it_is_written_in_specs() -> None:
    assert parse_scheme(str(SCHEME)) == SCHEME
    with pytest.raises(SchemeError, match="multiple_of='often': expected a whole number, 1 or more, or auto"):
        parse_scheme("nested-channels{multiple_of=often}")
