"""One PT2 archive for all levels, which torch reads by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anytimeify._torch import load_pt2
from anytimeify.storage.export import export_pt2
from tests.backbones import images
from tests.deploy.nets import SCHEMES, levels_of, trained


@pytest.mark.parametrize("scheme", [SCHEMES[0], SCHEMES[2], SCHEMES[3], SCHEMES[6]])
def test_levels_are_their_extracts(scheme: str, tmp_path: Path) -> None:
    net = trained(scheme)
    net.export(tmp_path / "net.pt2", "pt2")
    programs = load_pt2(tmp_path / "net.pt2")
    assert list(programs) == [f"level_{place}" for place in range(len(levels_of(net)))]
    for program, index in zip(programs.values(), levels_of(net), strict=True):
        extract = net.extract(index)
        for batch in (1, 7):
            torch.testing.assert_close(program.module()(images(batch)), extract(images(batch)))
        assert program.state_dict.keys() == extract.state_dict().keys()


@pytest.mark.parametrize("scheme", [SCHEMES[1], SCHEMES[4]])
def test_weights_are_stored_once(scheme: str, tmp_path: Path) -> None:
    net = trained(scheme)
    net.export(tmp_path / "net.pt2", "pt2")
    export_pt2(net.extract(net.full), images(), tmp_path / "full.pt2")
    weights = sum(tensor.nbytes for tensor in net.extract(net.full).state_dict().values())
    apart = (tmp_path / "net.pt2").stat().st_size - (tmp_path / "full.pt2").stat().st_size
    assert apart < 0.25 * weights  # graphs and entries of the archive, of a network of half a megabyte
