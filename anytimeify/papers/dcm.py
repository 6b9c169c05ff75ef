"""Dense cross-layer mutual distillation: the pairs of networks of Yao and Sun 2020.

Two networks learn together. Each has two auxiliary branches of its own blocks, made like those of `dhm`: the early one
(the paper's C3) short, the late one (C2) wide. A name with one network is a pair of two of them with weights of their
own.

What the paper leaves open, and is an option of the function that makes the branches: the layers of MobileNet's early
branch, which are not printed (3 in the authors' code). ResNet-164's branches are printed with the block's output width
for all three of its convolutions; they are made of the backbone's bottlenecks here, as the text says of all branches.

The paper's Q, the pairs of layers that have heads, is what forks a recipe has: none is plain mutual learning, then
the late branch alone, both, and a third one after the first convolution. Its heads "APFC" and "Narrow" take the place
of the branches: pooled features and a classifier, and half the width (of dense networks, half the growth).

Which pairs of different networks the paper has besides WRN-28-10 and MobileNet is not known here; a recipe each has the
other networks of its Table 3 and ResNet-110 beside WRN-28-10.
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
from anytimeify.train.optimiser import Optimiser
from anytimeify.train.schedule import Schedule
from anytimeify.train.training import Training

__all__ = ["ENTRIES", "after_the_stem", "mobile_v2", "pooled"]

Network = Callable[[int], nn.Module]


def _pair(first: Network, second: Network) -> Callable[[int], tuple[nn.Module, nn.Module]]:
    return lambda num_classes: (first(num_classes), second(num_classes))


def mobile_v2() -> tuple[Branch, Branch]:
    """The branches of torchvision's MobileNetV2.

    In its last inverted residual the early one has t = 3, and the late one 480 channels; then it has 1920.
    """
    early = Branch("features.13", widths={"features.17.conv.0": 0.5})
    return early, Branch("features.16", widths={"features.17.conv.2": 1.5, "features.18": 1.5})


def after_the_stem() -> Branch:
    """C4 of wide residual networks of four blocks in a stage, the branch after the first convolution."""
    return Branch("conv1", repeats={"layer2": 2, "layer3": 2})


def pooled() -> tuple[Branch, Branch]:
    """APFC, in place of both branches of networks of three stages: average pooling to 4x4 and a classifier."""
    return Branch("layer1", head="pool"), Branch("layer2", head="pool")


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


_RESNET = partial(CifarResNet, depth=110)
_THIN = partial(WideResNet, depth=28, widening=4, initialise=fan_in)
_WIDE = partial(WideResNet, depth=28, widening=10, initialise=fan_in)
_BOTTLENECKS = partial(CifarResNet, depth=164, block="bottleneck")
_MOBILENET = partial(MobileNet, early_stride=1)

_DENSE_TWINS = _twins("densenet-40-12", "DenseNet-40, k = 12", 2, DenseNet, dense((12, 6), depth=40), CIFAR_DENSE)
_WIDE_TWINS = _twins("wrn-28-10", "WRN-28-10", 3, _WIDE, residual((4, 2)), CIFAR_WIDE)


def _ablated(name: str, twins: Entry, branches: tuple[Branch, ...] | int) -> Entry:
    """The same twins with other heads."""
    return replace(
        twins,
        name=f"{twins.name}-{name}",
        source=f"{_PAPER}, ablations",
        scheme=MutualDistillation(branches),
    )


def _beside_wide(name: str, about: str, network: Network, branches: tuple[Branch, ...]) -> Entry:
    """WRN-28-10 and another network, trained as WRN-28-10 is."""
    return replace(
        _WIDE_TWINS,
        name=f"dcm/wrn-28-10+{name}",
        about=f"WRN-28-10 and {about}",
        source=f"{_PAPER}, different backbones",
        backbone=_pair(_WIDE, network),
        scheme=MutualDistillation(residual((4, 2)), branches),
    )


ENTRIES = (
    _twins("resnet-110", "ResNet-110", 1, _RESNET, residual((9, 9)), CIFAR),
    _twins("resnet-164", "ResNet-164", 1, _BOTTLENECKS, residual((9, 9)), CIFAR),
    _DENSE_TWINS,
    _twins("wrn-28-4", "WRN-28-4", 3, _THIN, residual((4, 2)), CIFAR_WIDE),
    _WIDE_TWINS,
    replace(
        _ablated("three-branches", _WIDE_TWINS, (after_the_stem(), *residual((4, 2)))),
        source=f"{_PAPER}, Table 3, C4",
    ),
    _ablated("one-branch", _WIDE_TWINS, residual((4, 2))[1:]),
    _ablated("mutual", _WIDE_TWINS, 0),
    _ablated("apfc", _WIDE_TWINS, pooled()),
    _ablated("narrow", _WIDE_TWINS, residual((4, 2), width=0.5)),
    _ablated("narrow", _DENSE_TWINS, dense((12, 6), depth=40, width=0.5)),
    _twins("mobilenet-cifar", "MobileNet for 32x32", 4, _MOBILENET, mobile(), CIFAR),
    replace(_beside_wide("mobilenet", "MobileNet for 32x32", _MOBILENET, mobile()), source=f"{_PAPER}, Tables 3 and 4"),
    _beside_wide("resnet-110", "ResNet-110", _RESNET, residual((9, 9))),
    _beside_wide("wrn-28-4", "WRN-28-4", _THIN, residual((4, 2))),
    _imagenet("resnet-18", "ResNet-18", 5, "resnet18", residual_imagenet((1, 2)), IMAGENET),
    _imagenet("resnet-50", "ResNet-50", 5, "resnet50", residual_imagenet((3, 2)), IMAGENET),
    _imagenet("mobilenetv2", "MobileNetV2", 6, "mobilenet_v2", mobile_v2(), IMAGENET_MOBILE),
)
