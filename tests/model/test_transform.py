"""What a model is made of: schemes in every spelling, and exported programs."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from anytimeify import AnytimeWarning, NestedChannels, SchemeError, transform
from tests.backbones import Residual, images
from tests.rounding import close


def test_schemes_as_objects_text_and_sequences() -> None:
    for scheme in (NestedChannels((0.5, 1.0)), "nested-channels{widths=0.5,1}", [NestedChannels((0.5, 1.0))]):
        assert len(transform(Residual(), scheme, images(), verify=False).levels) == 2


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ([NestedChannels(), NestedChannels()], "nested-channels, nested-channels cannot be combined; what can be"),
        ([], "expected a scheme"),
        (None, "expected a scheme"),
        ("nested-canals", "'nested-canals' is not a scheme"),
    ],
)
def test_refused_schemes(scheme: object, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        transform(Residual(), scheme, images())  # type: ignore[arg-type]  # refused input


@pytest.mark.parametrize("training", [False, True])
def test_an_exported_program_is_a_backbone(training: bool) -> None:
    backbone = Residual().train(training)
    exported = torch.export.export(backbone, (images(),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
    with nullcontext() if training else pytest.warns(AnytimeWarning, match="exported in eval mode"):
        net = transform(exported, NestedChannels((0.5, 1.0))).eval()
    assert close(net(images(3, 1), level=-1), backbone.eval()(images(3, 1)))
