"""Shallow sub-networks: the multi-exit baseline that Lee and Shin 2018 hold their thin ones against (section 4.1).

A plain ResNeXt with a classifier after every block but the first; a level is the network up to there. The exits read
average-pooled features directly. In the paper a norm and a ReLU come before the pooling, as they do before the last
classifier here, and the pooling leaves one position where these heads keep up to 4x4.
"""

from __future__ import annotations

from functools import partial

from anytimeify.losses.joint import JointLoss
from anytimeify.papers.networks import ResNeXt
from anytimeify.papers.recipe import Entry
from anytimeify.passes.rewrites.branch import Branch
from anytimeify.passes.schemes.auxiliary_branches import AuxiliaryBranches
from anytimeify.train import Optimiser, Schedule, Training

__all__ = ["CIFAR", "ENTRIES", "exits"]

STAGES = 3


def exits(depth: int = 29) -> tuple[Branch, ...]:
    """A pooled head after every block of `ResNeXt(depth=depth)` but the first, and the last, which has its own."""
    repeats = (depth - 2) // (3 * STAGES)
    blocks = [f"layer{stage}.{block}" for stage in range(1, STAGES + 1) for block in range(repeats)]
    return tuple(Branch(at, head="pool") for at in blocks[1:-1])


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

ENTRIES = (
    Entry(
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
    ),
)
