"""I-ResNeXt and IS-ResNeXt: anytime networks of Lee and Shin 2018, whose levels are branches of every block.

I-ResNeXt slices the inside of the blocks: level k of K has the first k/K of the branches of each, the channels between
blocks stay whole. Norms, the first one too, and heads are each level's own.

IS-ResNeXt slices the channels between blocks into K chunks as well. A branch reads the chunks up to its own place, and
writes the chunk there, so what a level computes does not depend on later ones: one pass gives all levels, and norms are
shared but for the last, which belongs to the heads. The backbone is the usual network with the last convolution of a
block in groups (`chunks`); which chunks its first convolution may read follows from the scheme.

What the text does not say (a part of it is lost), or the authors' code does differently, is an option:

* branches and their width: K and W / (2K), which are 8 and 4 for I-ResNeXt, as in the code;
* the widths of the four stages for larger images: W, 2W, 4W, 8W; printed is W, 2W, 4W, 4W, where the text breaks off;
* their stem: a 7x7 convolution and max pooling, as in ResNet;
* momentum: Nesterov's, as in the text; the commands of the code leave it out.

The thin networks that they hold the levels of I-ResNeXt against, each trained solely, are plain networks of fewer
branches; the shallow ones are in `shallow`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import nn

from anytimeify.losses.joint import JointLoss
from anytimeify.papers.networks import ResNeXt
from anytimeify.papers.recipe import ALONE, Entry
from anytimeify.papers.taxonomies import cifar100, cub
from anytimeify.passes.schemes.nested_channels import NestedChannels
from anytimeify.train.optimiser import Optimiser
from anytimeify.train.orders import OneAfterTheOther
from anytimeify.train.schedule import Schedule
from anytimeify.train.training import Training

__all__ = ["ENTRIES", "large", "levels", "small"]


def levels(count: int) -> tuple[float, ...]:
    """The widths of so many levels of equal steps."""
    return tuple((index + 1) / count for index in range(count))


def small(
    num_classes: int = 10,
    *,
    depth: int = 47,
    width: int = 96,
    chunks: int = 6,
    branches: int = 0,
    branch_width: int = 0,
) -> nn.Module:
    """The backbone of IS-ResNeXt for 32x32 images: (N, 3, 32, 32) -> (N, num_classes).

    `branches` is a multiple of `chunks`, and as many where it is 0; `branch_width` is W / (2K) where it is 0.
    """
    return ResNeXt(
        num_classes,
        depth=depth,
        width=width,
        branches=branches or chunks,
        branch_width=branch_width or width // (2 * chunks),
        chunks=chunks,
    )


def large(
    num_classes: int = 1000,
    *,
    depth: int = 62,
    width: int = 160,
    chunks: int = 5,
    branches: int = 0,
    branch_width: int = 0,
    multiples: Sequence[int] = (1, 2, 4, 8),
) -> nn.Module:
    """The backbone of IS-ResNeXt for 224x224 images: (N, 3, 224, 224) -> (N, num_classes).

    `branches` and `branch_width` as in `small`; `multiples` of the width are those of the stages.
    """
    return ResNeXt(
        num_classes,
        depth=depth,
        width=width,
        branches=branches or chunks,
        branch_width=branch_width or width // (2 * chunks),
        chunks=chunks,
        multiples=multiples,
        stem="imagenet",
    )


# 5,000 of the 50,000 training images are held out, to choose by; of ImageNet 50,000, of CUB 1,000.
CIFAR = Training(
    data="CIFAR-10 or CIFAR-100",
    optimiser=Optimiser(learning_rate=0.1, weight_decay=1e-4, nesterov=True),
    schedule=Schedule(kind="steps", milestones=(150, 225)),
    batch=64,
    epochs=300,
    augmentation=("pad 4 and crop", "flip", "normalise"),
)
# As many passes as levels, their gradients added up for one update.
CIFAR_BY_LEVEL = replace(CIFAR, order=OneAfterTheOther(update="accumulate"))
IMAGENET = replace(
    CIFAR,
    data="ImageNet",
    schedule=Schedule(kind="steps", milestones=(30, 60)),
    batch=96,
    epochs=90,
    augmentation=("random resized crop 224", "flip", "normalise"),
)
CUB = replace(
    IMAGENET,
    data="CUB-200-2011",
    schedule=Schedule(kind="steps", milestones=(75, 112.5)),
    batch=64,
    epochs=150,
)

_BRANCHES = Entry(
    name="anytime/i-resnext-29",
    about="ResNeXt-29 of 8 branches",
    source="Lee and Shin 2018",
    backbone=partial(ResNeXt, depth=29),
    shape=(3, 32, 32),
    num_classes=10,
    scheme=NestedChannels(levels(8), where="inner", norms="every"),
    loss=JointLoss,  # their Eq. 1: without weights
    training=CIFAR_BY_LEVEL,
)
_CHUNKS = Entry(
    name="anytime/is-resnext-47-cifar",
    about="ResNeXt-47 of 6 chunks",
    source="Lee and Shin 2018",
    backbone=small,
    shape=(3, 32, 32),
    num_classes=10,
    scheme=NestedChannels(levels(6), connectivity="triangular", norms="every"),
    loss=JointLoss,
    training=CIFAR,
)

_BIRDS = replace(
    _CHUNKS,
    name="anytime/is-resnext-50-cub",
    about="ResNeXt-50 of 6 chunks",
    backbone=partial(large, depth=50, width=192, chunks=6),
    shape=(3, 224, 224),
    num_classes=200,
    training=CUB,
)


def _thin(branches: int) -> Entry:
    """What level `branches - 1` of I-ResNeXt-29 is, by itself."""
    return replace(
        _BRANCHES,
        name=f"anytime/resnext-29-thin-{branches}",
        about=f"ResNeXt-29 of {branches} branch{'es' * (branches > 1)}",
        backbone=partial(ResNeXt, depth=29, branches=branches),
        scheme=ALONE,
        training=CIFAR,
    )


ENTRIES = (
    _BRANCHES,
    replace(
        _BRANCHES,
        name="anytime/i-resnext-65",
        about="ResNeXt-65 of 8 branches",
        backbone=partial(ResNeXt, depth=65),
    ),
    _CHUNKS,
    replace(
        _CHUNKS,
        name="anytime/is-resnext-62-imagenet",
        about="ResNeXt-62 of 5 chunks",
        backbone=large,
        shape=(3, 224, 224),
        num_classes=1000,
        scheme=NestedChannels(levels(5), connectivity="triangular", norms="every"),
        training=IMAGENET,
    ),
    _BIRDS,
    # Their Eq. 2: a head for each level and granularity, 12 and 24 of them.
    replace(_CHUNKS, name=f"{_CHUNKS.name}-hierarchy", num_classes=100, taxonomy=cifar100),
    replace(_BIRDS, name=f"{_BIRDS.name}-hierarchy", taxonomy=cub),
    *map(_thin, range(1, 9)),
)
