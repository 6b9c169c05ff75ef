"""Baselines with exits that Lee and Shin 2018 hold their thin networks against: shallow sub-networks, and MSDNet.

Shallow ones (section 4.1): a plain ResNeXt with a classifier after every block but the first; a level is the network up
to there. The exits read average-pooled features directly. In the paper a norm and a ReLU come before the pooling, as
they do before the last classifier here, and the pooling leaves one position where these heads keep up to 4x4. Each of
them by itself, trained solely, is the plain network of so many blocks.

MSDNet (Huang et al. 2018): a multi-scale dense network whose exits read the coarsest scale. Layers have no bottlenecks
and exits no convolutions here, so costs are not those of the original.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from anytimeify.losses.joint import JointLoss
from anytimeify.papers.networks import MultiScaleDenseNet, ResNeXt
from anytimeify.papers.recipe import ALONE, Entry
from anytimeify.passes.rewrites.branch import Branch
from anytimeify.passes.schemes.auxiliary_branches import AuxiliaryBranches
from anytimeify.train.optimiser import Optimiser
from anytimeify.train.schedule import Schedule
from anytimeify.train.training import Training

__all__ = ["CIFAR", "ENTRIES", "exits", "multi_scale_exits"]

STAGES = 3


def exits(depth: int = 29) -> tuple[Branch, ...]:
    """A pooled head after every block of `ResNeXt(depth=depth)` but the first, and the last, which has its own."""
    repeats = (depth - 2) // (3 * STAGES)
    blocks = [f"layer{stage}.{block}" for stage in range(1, STAGES + 1) for block in range(repeats)]
    return tuple(Branch(at, head="pool") for at in blocks[1:-1])


def multi_scale_exits(layers: int = 12, scales: int = 3, every: int = 2) -> tuple[Branch, ...]:
    """A pooled head at the coarsest scale of `MultiScaleDenseNet` after every so many layers, but the last."""
    return tuple(Branch(f"layers.{layer}.{scales - 1}", head="pool") for layer in range(every - 1, layers - 1, every))


# The paper has Nesterov's momentum, which the authors' commands leave out. 5,000 of the 50,000 training images are held
# out, to choose by.
CIFAR = Training(
    data="CIFAR-10 or CIFAR-100",
    optimiser=Optimiser(learning_rate=0.1, weight_decay=1e-4, nesterov=True),
    schedule=Schedule(kind="steps", milestones=(150, 225)),
    batch=64,
    epochs=300,
    augmentation=("pad 4 and crop", "flip", "normalise"),
)

_EXITS = Entry(
    name="shallow/resnext-29",
    about="ResNeXt-29 of 8 branches",
    source="Lee and Shin 2018, section 4.1",
    backbone=partial(ResNeXt, depth=29),
    shape=(3, 32, 32),
    num_classes=10,
    scheme=AuxiliaryBranches(exits(29)),
    # Their Eq. 1: the cross-entropies of all sub-networks, without weights.
    loss=JointLoss,
    training=CIFAR,
)


def _solely(blocks: int) -> Entry:
    return replace(
        _EXITS,
        name=f"shallow/resnext-29-blocks-{blocks}",
        about=f"ResNeXt-29, its first {blocks} blocks",
        backbone=partial(ResNeXt, depth=29, blocks=blocks),
        scheme=ALONE,
    )


ENTRIES = (
    _EXITS,
    *map(_solely, range(2, 10)),
    replace(
        _EXITS,
        name="shallow/msdnet-12",
        about="multi-scale dense network of 12 layers",
        source="Huang et al. 2018",
        backbone=MultiScaleDenseNet,
        scheme=AuxiliaryBranches(multi_scale_exits()),
    ),
)
