"""Dynamic hierarchical mimicking: the networks of Li and Chen 2020, and of dense knowledge synergy before it.

Every network has two auxiliary branches of its own blocks. The early one (the papers' B2) forks one stage before the
last and is short; the late one (B1) forks before the last stage and is wide. Both halve the size as often as the
backbone does, and both are thrown away after training.

What the paper leaves open or prints differently from the authors' code is an option of the function that makes the
branches, with the code's value as its default: the layers of ResNet-32's early branch (unreadable in print), the stem
of dense networks (2k in print), the layers of MobileNet's early branch (lost). Of the third branch (B3) of an ablation,
after the first stage of ResNet-18, the layers are lost too: half of each stage's here, all of the last one's.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from anytimeify.losses import HierarchicalMimicking
from anytimeify.papers.networks import CifarResNet, DenseNet, MobileNet, WideResNet, imagenet
from anytimeify.papers.networks.initialisers import fan_out
from anytimeify.papers.recipe import Entry
from anytimeify.passes.rewrites.branch import Branch
from anytimeify.passes.schemes.auxiliary_branches import AuxiliaryBranches
from anytimeify.train.optimiser import Optimiser
from anytimeify.train.schedule import Schedule
from anytimeify.train.training import Training

__all__ = ["ENTRIES", "dense", "first_stage", "mobile", "residual", "residual_imagenet"]


def residual(repeats: tuple[int, int], *, width: float = 1.0) -> tuple[Branch, Branch]:
    """The branches of residual networks of three stages, plain and wide ones.

    `repeats`: blocks of the early one; `width`: multiplies the channels of both.
    """
    blocks = {"layer2": repeats[0], "layer3": repeats[1]}
    widths = {} if width == 1 else dict.fromkeys(blocks, width)
    return Branch("layer1", repeats=blocks, widths=widths), Branch("layer2", widths={"layer3": 2 * width})


def residual_imagenet(repeats: tuple[int, int]) -> tuple[Branch, Branch]:
    """The branches of torchvision's residual networks, which have four stages."""
    early = {"layer3": repeats[0], "layer4": repeats[1]}
    return Branch("layer2", repeats=early), Branch("layer3", widths={"layer4": 2.0})


def first_stage() -> Branch:
    """B3 of torchvision's ResNet-18, the branch after conv2_x."""
    return Branch("layer1", repeats={"layer2": 1, "layer3": 1, "layer4": 2})


def dense(
    repeats: tuple[int, int], *, depth: int, growth: int = 12, stem: int = 16, width: float = 1.0
) -> tuple[Branch, Branch]:
    """The branches of `DenseNet(depth=depth, growth=growth, stem=stem)`; the late one grows three times as fast.

    A transition has as many channels after it as before it. So the early branch's has fewer than the backbone's, by
    those that the missing layers would have added. `width` multiplies the growth of both.
    """
    layers = (depth - 4) // 3
    before = stem + layers * growth
    widths: dict[str, float] = {} if width == 1 else {"layer2": width, "layer3": width}
    if repeats[0] < layers or width != 1:
        widths["transition2"] = (before + repeats[0] * growth * width) / (before + layers * growth)
    early = Branch("transition1", repeats={"layer2": repeats[0], "layer3": repeats[1]}, widths=widths)
    return early, Branch("transition2", widths={"layer3": 3 * width})


def mobile(repeats: int = 3) -> tuple[Branch, Branch]:
    """The branches of `MobileNet`; `repeats`: layers of 512 channels that keep the size in the early one, of five."""
    return Branch("layer1", repeats={"layer2.body": repeats}), Branch("layer2", widths={"layer3": 2.0})


CIFAR = Training(
    data="CIFAR-100",
    optimiser=Optimiser(learning_rate=0.1, weight_decay=1e-4),
    schedule=Schedule(kind="steps", milestones=(81, 122)),
    batch=128,
    epochs=164,
    augmentation=("pad 4 and crop", "flip", "normalise"),
)
CIFAR_DENSE = replace(CIFAR, schedule=Schedule(kind="steps", milestones=(150, 225)), batch=64, epochs=300)
CIFAR_WIDE = replace(
    CIFAR,
    optimiser=Optimiser(learning_rate=0.1, weight_decay=5e-4),
    schedule=Schedule(kind="steps", milestones=(60, 120, 160), gamma=0.2),
    epochs=200,
)
IMAGENET = Training(
    data="ImageNet",
    optimiser=Optimiser(learning_rate=0.1, weight_decay=1e-4),
    schedule=Schedule(kind="steps", milestones=(31, 61)),
    batch=256,
    epochs=90,
    augmentation=("random resized crop 224", "flip", "normalise"),
)

_PAPER = "Li and Chen 2020"

_RESNET = Entry(
    name="dhm/resnet-32",
    about="ResNet-32",
    source=f"{_PAPER}, Table 1",
    backbone=partial(CifarResNet, depth=32),
    shape=(3, 32, 32),
    num_classes=100,
    scheme=AuxiliaryBranches(residual((5, 3))),
    loss=HierarchicalMimicking,
    training=CIFAR,
)
_DENSENET = replace(
    _RESNET,
    name="dhm/densenet-40-12",
    about="DenseNet-40, k = 12",
    source=f"{_PAPER}, Table 2",
    backbone=partial(DenseNet, depth=40),
    scheme=AuxiliaryBranches(dense((12, 6), depth=40)),
    training=CIFAR_DENSE,
)
_WIDE = replace(
    _RESNET,
    name="dhm/wrn-16-8",
    about="WRN-16-8",
    source=f"{_PAPER}, Table 3",
    backbone=partial(WideResNet, depth=16, widening=8),
    scheme=AuxiliaryBranches(residual((2, 1))),
    training=CIFAR_WIDE,
)
_WIDEST = replace(
    _WIDE,
    name="dhm/wrn-28-10",
    about="WRN-28-10",
    backbone=partial(WideResNet, depth=28, widening=10),
    scheme=AuxiliaryBranches(residual((4, 2))),
)


def _imagenet(layers: int, repeats: tuple[int, int]) -> Entry:
    return Entry(
        name=f"dhm/resnet-{layers}-imagenet",
        about=f"ResNet-{layers} of torchvision",
        source=f"{_PAPER}, Table 4",
        backbone=partial(imagenet, network=f"resnet{layers}"),
        shape=(3, 224, 224),
        num_classes=1000,
        scheme=AuxiliaryBranches(residual_imagenet(repeats)),
        loss=HierarchicalMimicking,
        training=IMAGENET,
    )


ENTRIES = (
    _RESNET,
    replace(
        _RESNET,
        name="dhm/resnet-110",
        about="ResNet-110",
        backbone=partial(CifarResNet, depth=110),
        scheme=AuxiliaryBranches(residual((9, 9))),
    ),
    replace(
        _RESNET,
        name="dhm/resnet-1202",
        about="ResNet-1202",
        backbone=partial(CifarResNet, depth=1202),
        scheme=AuxiliaryBranches(residual((100, 100))),
    ),
    _DENSENET,
    replace(
        _DENSENET,
        name="dhm/densenet-100-12",
        about="DenseNet-100, k = 12",
        backbone=partial(DenseNet, depth=100),
        scheme=AuxiliaryBranches(dense((16, 16), depth=100)),
    ),
    _WIDE,
    _WIDEST,
    # Their supplement D and their variant with dropout.
    replace(
        _RESNET,
        name="dhm/resnet-32-bernoulli",
        source=f"{_PAPER}, supplement D",
        scheme=AuxiliaryBranches(residual((5, 3)), sampling="bernoulli"),
        loss=partial(HierarchicalMimicking, sampling="bernoulli"),
    ),
    replace(
        _WIDEST,
        name="dhm/wrn-28-10-dropout",
        about="WRN-28-10, dropout 0.3",
        backbone=partial(WideResNet, depth=28, widening=10, dropout=0.3),
    ),
    replace(
        _imagenet(18, (1, 2)),
        name="dhm/resnet-18-imagenet-three-branches",
        source=f"{_PAPER}, ablations",
        scheme=AuxiliaryBranches((first_stage(), *residual_imagenet((1, 2)))),
    ),
    _imagenet(18, (1, 2)),
    _imagenet(50, (3, 2)),
    _imagenet(101, (12, 2)),
    _imagenet(152, (18, 2)),
    # As it is trained on ImageNet before the re-identification of persons. How, the text does not say: as the others.
    replace(
        _imagenet(50, (3, 2)),
        name="dhm/mobilenet-reid",
        about="MobileNet",
        source=f"{_PAPER}, Table 5",
        backbone=partial(MobileNet, initialise=fan_out),
        scheme=AuxiliaryBranches(mobile()),
    ),
)
