"""Dense cross-layer mutual distillation: the pairs of networks of Yao and Sun 2020.

Two networks learn together. Each has two auxiliary branches of its own blocks, made like those of `dhm`: the early one
(the paper's C3) short, the late one (C2) wide. A name with one network is a pair of two of them with weights of their
own.

What the paper leaves open, and is an option of the function that makes the branches: the layers of MobileNet's early
branch, which are not printed (3 in the authors' code). ResNet-164's branches are printed with the block's output width
for all three of its convolutions; they are made of the backbone's bottlenecks here, as the text says of all branches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import nn

from anytimeify.losses import CrossLayerMutual
from anytimeify.papers.dhm import dense, mobile, residual, residual_imagenet
from anytimeify.papers.networks import CifarResNet, DenseNet, MobileNet, WideResNet, imagenet
from anytimeify.papers.networks.initialisers import fan_in
from anytimeify.papers.recipe import Entry
from anytimeify.passes.rewrites.branch import Branch
from anytimeify.passes.schemes.mutual_distillation import MutualDistillation
from anytimeify.train import Optimiser, Schedule, Training

__all__ = ["ENTRIES", "mobile_v2"]

Network = Callable[[int], nn.Module]


def _pair(first: Network, second: Network) -> Callable[[int], tuple[nn.Module, nn.Module]]:
    return lambda num_classes: (first(num_classes), second(num_classes))


def mobile_v2() -> tuple[Branch, Branch]:
    """The branches of torchvision's MobileNetV2.

    In its last inverted residual the early one has t = 3, and the late one 480 channels; then it has 1920.
    """
    early = Branch("features.13", widths={"features.17.conv.0": 0.5})
    return early, Branch("features.16", widths={"features.17.conv.2": 1.5, "features.18": 1.5})


CIFAR = Training(
    data="CIFAR-100",
    optimiser=Optimiser(learning_rate=0.1, weight_decay=1e-4),
    schedule=Schedule(kind="steps", milestones=(60, 120, 180)),
    batch=64,
    epochs=200,
    augmentation=("pad 4 and crop", "flip", "normalise"),
)
CIFAR_DENSE = replace(
    CIFAR,
    optimiser=Optimiser(learning_rate=0.1, weight_decay=1e-4, nesterov=True),
    schedule=Schedule(kind="steps", milestones=(150, 225)),
    epochs=300,
)
# The authors' code pads with reflections, and begins with momentum of zero at every step of the learning rate.
CIFAR_WIDE = replace(
    CIFAR,
    optimiser=Optimiser(learning_rate=0.1, weight_decay=5e-4),
    schedule=Schedule(kind="steps", milestones=(60, 120, 160), gamma=0.2),
    batch=128,
    augmentation=("pad 4 with reflections and crop", "flip", "normalise"),
)
IMAGENET = Training(
    data="ImageNet",
    optimiser=Optimiser(learning_rate=0.1, weight_decay=1e-4),
    schedule=Schedule(kind="steps", milestones=(30, 60, 90)),
    batch=256,
    epochs=100,
    augmentation=("random resized crop 224", "flip", "normalise"),
)
IMAGENET_MOBILE = replace(
    IMAGENET,
    optimiser=Optimiser(learning_rate=0.05, weight_decay=4e-5),
    schedule=Schedule(kind="cosine"),
    epochs=150,
)

_PAPER = "Yao and Sun 2020"


def _twins(
    name: str, about: str, table: int, network: Network, branches: tuple[Branch, ...], training: Training
) -> Entry:
    """Two networks of the same kind for CIFAR-100."""
    return Entry(
        name=f"dcm/{name}",
        about=f"two of {about}",
        source=f"{_PAPER}, Table {table}",
        backbone=_pair(network, network),
        shape=(3, 32, 32),
        num_classes=100,
        scheme=MutualDistillation(branches),
        loss=CrossLayerMutual,
        training=training,
    )


def _imagenet(
    name: str, about: str, table: int, network: str, branches: tuple[Branch, ...], training: Training
) -> Entry:
    twins = _twins(
        f"{name}-imagenet", f"{about} of torchvision", table, partial(imagenet, network=network), branches, training
    )
    return replace(twins, shape=(3, 224, 224), num_classes=1000)


_THIN = partial(WideResNet, depth=28, widening=4, initialise=fan_in)
_WIDE = partial(WideResNet, depth=28, widening=10, initialise=fan_in)
_BOTTLENECKS = partial(CifarResNet, depth=164, block="bottleneck")
_MOBILENET = partial(MobileNet, early_stride=1)

_WIDE_TWINS = _twins("wrn-28-10", "WRN-28-10", 3, _WIDE, residual((4, 2)), CIFAR_WIDE)

ENTRIES = (
    _twins("resnet-110", "ResNet-110", 1, partial(CifarResNet, depth=110), residual((9, 9)), CIFAR),
    _twins("resnet-164", "ResNet-164", 1, _BOTTLENECKS, residual((9, 9)), CIFAR),
    _twins("densenet-40-12", "DenseNet-40, k = 12", 2, DenseNet, dense((12, 6), depth=40), CIFAR_DENSE),
    _twins("wrn-28-4", "WRN-28-4", 3, _THIN, residual((4, 2)), CIFAR_WIDE),
    _WIDE_TWINS,
    replace(
        _WIDE_TWINS,
        name="dcm/wrn-28-10-three-branches",
        source=f"{_PAPER}, Table 3, C4",
        scheme=MutualDistillation((Branch("conv1", repeats={"layer2": 2, "layer3": 2}), *residual((4, 2)))),
    ),
    _twins("mobilenet-cifar", "MobileNet for 32x32", 4, _MOBILENET, mobile(), CIFAR),
    replace(
        _WIDE_TWINS,
        name="dcm/wrn-28-10+mobilenet",
        about="WRN-28-10 and MobileNet for 32x32",
        source=f"{_PAPER}, Tables 3 and 4",
        backbone=_pair(_WIDE, _MOBILENET),
        scheme=MutualDistillation(residual((4, 2)), mobile()),
    ),
    _imagenet("resnet-18", "ResNet-18", 5, "resnet18", residual_imagenet((1, 2)), IMAGENET),
    _imagenet("resnet-50", "ResNet-50", 5, "resnet50", residual_imagenet((3, 2)), IMAGENET),
    _imagenet("mobilenetv2", "MobileNetV2", 6, "mobilenet_v2", mobile_v2(), IMAGENET_MOBILE),
)
