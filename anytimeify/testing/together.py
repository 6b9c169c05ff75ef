"""All that must hold for an anytime model, in one call."""

from __future__ import annotations

import tempfile

from torch import nn

from anytimeify.runtime.model import AnytimeModel
from anytimeify.testing.checks import (
    Inputs,
    assert_costs_increase,
    assert_full_equals_backbone,
    assert_gradients_add_up,
    assert_levels_equal_extracts,
    assert_round_trip,
    assert_sites_nested,
)
from anytimeify.testing.nesting import assert_prefixes_nest
from anytimeify.verification import TOLERANCE

__all__ = ["check"]


def check(
    net: AnytimeModel,
    model: nn.Module,
    inputs: Inputs = None,
    *,
    same_weights: bool = True,
    tolerance: float = TOLERANCE,
) -> None:
    """Everything below but `assert_exactly_thin`, and `assert_prefixes_nest` of a model that is not to equal its
    backbone. `same_weights=False` for a scheme that permutes the weights."""
    if net.exact:
        assert_full_equals_backbone(net, model, inputs, same_weights=same_weights, tolerance=tolerance)
    else:
        assert_prefixes_nest(net, inputs)
    assert_levels_equal_extracts(net, inputs, tolerance=tolerance)
    assert_costs_increase(net)
    assert_sites_nested(net)
    assert_gradients_add_up(net, inputs)
    with tempfile.TemporaryDirectory() as folder:
        assert_round_trip(net, folder, inputs, tolerance=tolerance)
