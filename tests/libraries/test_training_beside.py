"""Other people's networks, trained for ten steps beside the full level that they became: the losses stay equal.

A library that is not installed skips its network: `pip install snntorch pykan peft`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, SchemeError, transform
from anytimeify._torch import flatten, prepare_torchvision
from anytimeify.verification.randomness import WithoutRandomness
from benchmarks.libraries.networks.structures import Spiking

pytestmark = pytest.mark.libraries
SCHEMES = [
    "nested-channels{widths=0.5,1}",
    "nested-channels{widths=0.5,1 norms=shared heads=shared order=l1}",
    "nested-weights{densities=0.5,1}",
    "nested-depth{depths=0.5,1}",
    "hierarchical-ensemble{depth=1}",
    "auxiliary-branches{branches=1}",
    "mutual-distillation{branches=1}",
]
Example = tuple[nn.Module, dict[str, Any]]


def spiking() -> Example:
    """Leaky integrate-and-fire neurons with a surrogate gradient, unrolled over five steps."""
    snntorch = pytest.importorskip("snntorch")

    slope = snntorch.surrogate.fast_sigmoid(slope=25)
    return Spiking(lambda: snntorch.Leaky(beta=0.9, spike_grad=slope)), {"x": torch.rand(8, 16)}


def splines() -> Example:
    """A Kolmogorov-Arnold network: learned splines on the edges."""
    kan = pytest.importorskip("kan")
    model = kan.KAN(width=[4, 5, 3], grid=3, k=3, seed=0, auto_save=False, symbolic_enabled=False)
    model.save_act = False
    return model, {"x": torch.rand(8, 4)}


def adapted() -> Example:
    """Low-rank adapters beside frozen weights."""
    prepare_torchvision()
    peft = pytest.importorskip("peft")
    body = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 5))
    model = peft.get_peft_model(body, peft.LoraConfig(r=4, lora_dropout=0.1, target_modules=["0", "2"]))
    return model.base_model.model, {"input": torch.rand(8, 16)}


def frozen() -> Example:
    """Fine-tuning: the beginning is frozen, norms included."""
    prepare_torchvision()
    from torchvision.models import resnet18

    model = resnet18(num_classes=5)
    for part in (model.conv1, model.bn1, model.layer1):
        part.requires_grad_(False)
        part.eval()
    return model, {"x": torch.rand(4, 3, 64, 64)}


def checkpointed() -> Example:
    """A transformer that recomputes its layers in the backward pass."""
    prepare_torchvision()
    from transformers import BertConfig, BertForSequenceClassification

    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 64}
    model: Any = BertForSequenceClassification(BertConfig(vocab_size=50, num_attention_heads=4, **sizes))
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    return model, {"input_ids": torch.randint(0, 50, (4, 12))}


def detector() -> Example:
    """A feature pyramid on a residual network whose norms are frozen, and a head for classes at every place."""
    prepare_torchvision()
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=3)
            self.head = nn.Conv2d(256, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            maps = self.backbone(x)
            result: Tensor = self.head(maps["1"])
            return result

    return Detector(), {"x": torch.rand(2, 3, 64, 64)}


def losses(predict: Callable[[], Any], parameters: list[nn.Parameter], target: Tensor, count: int = 10) -> list[float]:
    optimizer = torch.optim.SGD([one for one in parameters if one.requires_grad], lr=0.01)
    found = []
    for _ in range(count):
        optimizer.zero_grad()
        prediction = flatten(predict())[0][0]
        loss = (prediction - target).square().mean()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("make", [spiking, splines, adapted, frozen, checkpointed, detector])
def test_ten_steps(make: Callable[[], Example], scheme: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the libraries say of themselves
        model, inputs = make()
        if make is not spiking:  # whose neurons start in single precision
            model.double()
            inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
        given = inputs
        try:
            net: AnytimeModel = transform(
                (model, copy.deepcopy(model)) if scheme.startswith("mutual") else model, scheme, given
            )
        except SchemeError as error:
            pytest.skip(str(error)[:200])
        twin = copy.deepcopy(model)
        with WithoutRandomness():
            shape = flatten(model(**given))[0][0].shape
            target = torch.rand(shape, generator=torch.Generator().manual_seed(1))
            want = losses(lambda: twin(**given), list(twin.parameters()), target)
            level = net.backbones[0]
            have = losses(lambda: net(*given.values(), level=level), list(net.parameters()), target)
    assert want[-1] != want[0]
    assert have == pytest.approx(want, rel=1e-4)
