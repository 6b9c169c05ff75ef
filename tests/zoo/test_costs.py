"""Levels of backbones of every kind cost what their extracts do, under every scheme."""

from __future__ import annotations

import pytest

from benchmarks.costs import BACKBONES, SCHEMES, measure, of_zoo

pytestmark = pytest.mark.zoo


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", BACKBONES)
def test_backbone(name: str, scheme: str) -> None:
    row = measure(name, scheme, lambda: of_zoo(name, scheme))
    if "refused" in row:
        assert scheme in ("nested-depth", "hierarchical-ensemble{depth=1}", "auxiliary-branches", "mutual-distillation")
        pytest.skip(row["refused"])
    assert row["found"] == row["claimed"]
