"""How a model is called: keywords, constants, structures, and arguments that are wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anytimeify import NestedChannels, transform
from tests.backbones import Keywords, Nested, images, residual_net
from tests.rounding import close


def test_keywords_constants_and_a_structured_result() -> None:
    backbone, x, scale = Keywords().eval(), torch.randn(4, 4), torch.randn(4, 1)
    net = transform(backbone, NestedChannels((0.5, 1.0)), {"x": x, "scale": scale, "double": True})
    expected = backbone(x, scale, double=True)["logits"]
    for result in (
        net(x=x, scale=scale, double=True, level=-1),
        net(x, scale, level=-1),
        net(x, scale=scale, level=1),
        net.extract(1)(x=x, scale=scale),
        net.extract(1)(x, scale, True),
        net.extract(1)(scale=scale, x=x, double=True),
    ):
        assert close(result, expected)
    with pytest.raises(TypeError, match=r"input 'double' was True .* cannot be False now"):
        net(x, scale, double=False)


def test_nested_inputs() -> None:
    backbone = Nested().eval()
    pair, extra = [torch.randn(4, 4), torch.randn(4, 4)], {"bias": torch.randn(4, 3)}
    net = transform(backbone, NestedChannels((0.5, 1.0)), (pair, extra))
    assert close(net(pair, extra, level=-1), backbone(pair, extra))
    for level in net.levels:
        assert close(net.extract(level)(pair, extra), net(pair, extra, level=level))
    with pytest.raises(TypeError, match="another structure"):
        net(pair[:1], extra)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "input 'x' is missing"),
        ((images(), images()), {}, "2 inputs given, but the backbone takes 1: x"),
        ((), {"y": images()}, "input 'y' is unknown: the backbone takes x"),
        ((images(),), {"x": images()}, "input 'x' is given twice"),
    ],
)
def test_wrong_arguments(args: tuple[Tensor, ...], kwargs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        residual_net()(*args, **kwargs)


def test_a_single_tensor_may_be_named() -> None:
    net, x = residual_net(), images()
    assert torch.equal(net(x=x, level=0), net(x, level=0))
