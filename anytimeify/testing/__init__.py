"""Tools for people who add rules, passes and schemes: random backbones and schemes, and what must hold for them.

`backbones()` and `schemes()` are Hypothesis strategies and need the extra `dev`; `check(net, model, inputs)` and the
assertions it is made of do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anytimeify.testing import blocks, entries, token_blocks
from anytimeify.testing.backbone import Backbone, Stage, copy_prefix, randomise
from anytimeify.testing.checks import (
    assert_costs_increase,
    assert_exactly_thin,
    assert_full_equals_backbone,
    assert_gradients_add_up,
    assert_levels_equal_extracts,
    assert_round_trip,
    assert_sites_nested,
)
from anytimeify.testing.nesting import assert_prefixes_nest
from anytimeify.testing.together import check

if TYPE_CHECKING:
    from anytimeify.testing.strategies import backbones, schemes, widths

__all__ = [
    "Backbone",
    "Stage",
    "assert_costs_increase",
    "assert_exactly_thin",
    "assert_full_equals_backbone",
    "assert_gradients_add_up",
    "assert_levels_equal_extracts",
    "assert_prefixes_nest",
    "assert_round_trip",
    "assert_sites_nested",
    "backbones",
    "blocks",
    "check",
    "copy_prefix",
    "entries",
    "randomise",
    "schemes",
    "token_blocks",
    "widths",
]


def __getattr__(name: str) -> Any:
    """The strategies are loaded on first use, so that the checks do without Hypothesis."""
    if name in ("backbones", "schemes", "widths"):
        from anytimeify.testing import strategies

        return getattr(strategies, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
