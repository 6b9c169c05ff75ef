"""The thin networks that generated backbones copy out of themselves, checked without the compiler.

Without norms that mix channels, a thin network computes what the full one computes after everything outside the
prefixes was set to zero.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anytimeify.testing import Backbone, Stage, backbones
from anytimeify.testing import blocks as b
from anytimeify.testing import entries as e
from anytimeify.testing import token_blocks as t
from anytimeify.testing.dims import Ledger
from tests.rounding import close

WIDTHS = st.sampled_from([0.5, 0.25, 0.1, 0.6, 0.75, 0.9])
# Norms over all channels; a shuffle that exchanges halves by place.
MIXING = ("norm='layer'", "norm='rms'", "'one group'", "ShuffleUnits", "Shuffled", "Merge")


def forward(model: nn.Module, backbone: Backbone, batch: int = 2) -> Tensor:
    with torch.no_grad():
        return model.double().eval()(*(x.double() for x in backbone.example_inputs(batch)))  # type: ignore[no-any-return]


def masked(backbone: Backbone, width: float) -> nn.Module:
    """The full network with zeros outside what the thin one keeps; variances stay, for they divide."""
    model, kept = backbone.build(), backbone.kept(width)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            for index, dim in enumerate(kept.get(name, ())):
                if not name.endswith("running_var"):
                    mask = torch.zeros(dim.full)
                    mask[list(dim.kept)] = 1
                    tensor.mul_(mask.reshape([-1 if place == index else 1 for place in range(tensor.ndim)]))
    return model


@settings(max_examples=100)
@given(backbones(), WIDTHS)
def test_thin_network_is_the_full_one_with_zeros(backbone: Backbone, width: float) -> None:
    assume(not any(text in repr(backbone) for text in MIXING))
    thin = backbone.thin(width, backbone.build())
    torch.testing.assert_close(forward(thin, backbone), forward(masked(backbone, width), backbone))


@settings(max_examples=50)
@given(backbones())
def test_copying_at_full_width_is_the_identity(backbone: Backbone) -> None:
    full = backbone.build()
    copy = backbone.thin(1.0, full)
    assert all(torch.equal(tensor, copy.state_dict()[name]) for name, tensor in full.state_dict().items())
    assert close(forward(full, backbone, 7), forward(copy, backbone, 7))


@settings(max_examples=50)
@given(backbones(), WIDTHS)
def test_backbones_are_data(backbone: Backbone, width: float) -> None:
    """They compare by value, print as what builds them, build the same weights again, and train."""
    namespace = {**vars(b), **vars(e), **vars(t), "Backbone": Backbone, "Stage": Stage}
    assert eval(repr(backbone), namespace) == backbone
    one, other = backbone.build(width).state_dict(), backbone.build(width).state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    output = backbone.build(width)(*backbone.example_inputs())
    assert output.isfinite().all()
    assert output.shape[:2] == (2, backbone.classes)


@pytest.mark.parametrize(
    ("size", "width", "quantum", "multiple_of", "kept"),
    [
        (8, 0.5, 1, 1, 4),
        (5, 0.5, 1, 1, 2),  # round half to even, as Python does
        (4, 0.1, 1, 1, 1),
        (12, 0.25, 4, 1, 4),
        (12, 0.5, 4, 1, 8),
        (12, 0.5, 1, 4, 8),
        (6, 0.9, 1, 4, 6),
        (8, 1.0, 2, 3, 8),
    ],
)
def test_width_arithmetic(size: int, width: float, quantum: int, multiple_of: int, kept: int) -> None:
    assert Ledger(width, multiple_of).free(size, quantum).size == kept
