"""A training step of every scheme compiles as one graph, and gives the gradients of the network run as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import (
    AuxiliaryBranches,
    HierarchicalEnsemble,
    MutualDistillation,
    NestedChannels,
    NestedDepth,
    NestedResolution,
    NestedWeights,
    Scheme,
    transform,
)

SCHEMES: dict[str, Scheme | tuple[Scheme, ...]] = {
    "triangular": NestedChannels(connectivity="triangular"),
    "dense": NestedChannels(),
    "depth": NestedDepth(),
    "weights": NestedWeights(),
    "resolution": NestedResolution(),
    "ensemble": HierarchicalEnsemble(),
    "distillation": MutualDistillation(),
    "branches": AuxiliaryBranches(),
    "depth and width": (NestedDepth(), NestedChannels((0.5, 1.0))),
}
VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 64, "num_heads": 4}


def convolutional() -> nn.Module:
    import timm

    channels, layers = (64, 64, 128, 128), (2, 2, 1, 1)
    model: nn.Module = timm.create_model("resnet18", num_classes=5, channels=channels, layers=layers)
    return model


def attentive() -> nn.Module:
    import timm

    model: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=5, **VIT)
    return model


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


CASES = [(convolutional, name) for name in SCHEMES] + [(attentive, name) for name in ("triangular", "dense")]
QUICK = {(convolutional, "triangular"), (convolutional, "ensemble"), (convolutional, "branches"), (attentive, "dense")}


@pytest.mark.parametrize(
    ("network", "scheme"),
    [
        pytest.param(one, name, id=f"{one.__name__} {name}", marks=() if (one, name) in QUICK else pytest.mark.slow)
        for one, name in CASES
    ],
)
def test_a_step_is_one_graph(network: Callable[[], nn.Module], scheme: str) -> None:
    x, target = torch.randn(2, 3, 32, 32), torch.tensor([1, 4])
    model: Any = network().double() if scheme != "distillation" else (network().double(), network().double())
    net = transform(model, SCHEMES[scheme], (x.double(),), verify=False)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    names: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        names.extend(str(node.target) for node in graph.graph.nodes)
        return aot_eager(graph, inputs)

    found = []
    for run in (net, torch.compile(net, backend=backend, fullgraph=True)):
        net.load_state_dict(state)
        torch.manual_seed(0)
        net.loss(run(x.double()), target).backward()
        found.append([parameter.grad for parameter in net.parameters() if parameter.grad is not None])
        net.zero_grad(set_to_none=True)
    assert found[0]
    torch.testing.assert_close(*found)
    assert names
    assert not any("in_blocks" in name for name in names)
