"""Hierarchical ensembles of published networks: fusing replicas changes neither predictions nor gradients.

Everything is computed in double precision, where sums in another order differ by about 1e-15 of the largest term; a
member that read another one's parameters would differ in the first digits. Parameters and statistics are drawn anew,
for layers that begin as zeros or ones would hide just that.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, HierarchicalEnsemble, transform
from anytimeify.losses import JointLoss
from anytimeify.papers import names, recipe
from anytimeify.passes.scheme import parse_scheme
from benchmarks.zoo import build

pytestmark = pytest.mark.zoo

# From benchmarks/backbones.json, with the smallest images that they take.
BACKBONES: dict[str, int] = {
    "test_convnext": 64,
    "test_efficientnet": 64,
    "test_vit": 64,
    "test_nfnet": 64,
    "test_mambaout": 64,
    "test_byobnet": 64,
    "test_resnet": 64,
    "test_coatnet": 64,
    "test_vit_relpos": 64,
    "starnet_s050": 64,
    "mobilevit_xxs": 64,
    "edgenext_xx_small": 64,
    "mobilenetv3_small_050": 64,
    "ese_vovnet19b_slim_dw": 64,
    "repghostnet_050": 64,
    "efficientvit_m0": 224,
    "ghostnet_050": 64,
    "regnetx_002": 64,
    "pvt_v2_b0": 64,
    "fasternet_t0": 64,
    "lcnetv2_small": 64,
    "repvit_m1": 64,
    "convit_tiny": 64,
    "inception_next_atto": 64,
    "swin_tiny_patch4_window7_224": 56,
    "poolformerv2_s12": 64,
    "gmlp_ti16_224": 64,
}


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone(name: str) -> None:
    size = BACKBONES[name]
    model, inputs = build(f"timm:{name}", (3, size, size))
    compare(model, inputs, HierarchicalEnsemble())


@pytest.mark.parametrize("name", ["hf:bert", "hf:gpt2", "torchvision:shufflenet_v2_x0_5"])
def test_other_zoos(name: str) -> None:
    compare(*build(name), HierarchicalEnsemble())


@pytest.mark.parametrize("name", [name for name in names() if name.startswith("hne/")])
def test_network_of_the_paper(name: str) -> None:
    made = recipe(name, num_classes=10)
    scheme = parse_scheme(str(made.scheme))
    assert isinstance(scheme, HierarchicalEnsemble)
    assert isinstance(made.backbone, nn.Module)
    compare(made.backbone, tuple(x[..., :32, :32] for x in made.example_inputs), scheme)


def compare(backbone: nn.Module, inputs: Any, scheme: HierarchicalEnsemble) -> None:
    """The fused net against the unrolled one with the same parameters, and against its own levels and stream."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the zoos say of themselves when they run
        fused, apart = (
            transform(backbone, one, inputs, loss=JointLoss(), verify=False).double().eval()
            for one in (scheme, replace(scheme, fuse=False))
        )
    assert 2 * calls_of_members(fused) < calls_of_members(apart)
    disturb(fused)
    apart.load_state_dict(fused.state_dict())
    args, kwargs = example(fused)

    (found, gradients), (expected, theirs) = (predictions_and_gradients(net, args, kwargs) for net in (fused, apart))
    for one, other in zip(found, expected, strict=True):
        close(one, other)
    assert gradients.keys() == theirs.keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        close(gradients[name], gradient, name, atol=1e-12 * largest)
    with torch.no_grad():
        streamed = list(fused.stream(*args, **kwargs))
        assert tuple(level for level, _ in streamed) == fused.levels
        for (level, resumed), prediction in zip(streamed, found, strict=False):  # behind the levels: members
            close(resumed, prediction, f"stream, {level.name}")
            close(fused(*args, level=level, **kwargs), prediction, level.name)


def calls_of_members(net: AnytimeModel) -> int:
    """How many operations compute one member among others."""
    return sum(node.name.startswith("member") for node in net.graphs[0].graph.nodes)


def disturb(net: AnytimeModel) -> None:
    """Parameters that no layer begins with, and statistics as after some training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.02)
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.1, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0, generator=generator)


def example(net: AnytimeModel) -> tuple[tuple[Any, ...], dict[str, Any]]:
    captured = net.captured
    flat = tuple(x.double() if x.is_floating_point() else x for x in captured.example_inputs)
    return net.call_signature.arguments(flat, captured.signature)


def predictions_and_gradients(
    net: AnytimeModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Of all levels, then of all members; gradients of a random combination of them."""
    outputs = net(*args, **kwargs)
    predictions = [*outputs.levels, *outputs.members]
    generator = torch.Generator().manual_seed(2)
    weighed = [y * torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in predictions]
    torch.stack([y.sum() for y in weighed]).sum().backward()
    return [y.detach() for y in predictions], {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def close(found: Tensor, expected: Tensor, what: str = "", *, atol: float = 0.0) -> None:
    """To 1e-9 of the largest entry: a million roundings."""
    difference, scale = float((found - expected).abs().max()), float(expected.abs().max())
    assert difference <= 1e-9 * scale + atol, f"{what} differs by {difference:.3g}, of {scale:.3g}"
