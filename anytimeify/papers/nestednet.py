"""NestedNet: the networks of Kim, Ahn and Oh 2018, a core, a middle and a full level in one set of weights.

Backbones are residual networks of 6n + 2 layers, their levels 1/4, 1/2 and all of the channels. The stem and the first
norm, which reads it, are one for all levels; every other norm and the classifier are each level's own. A stem of 16
channels does not fit into a core of 4: in the network that is not widened the stem is nested too.

What the paper leaves open or says differently from the demo that is made of its code, with the default here:

* where norms stand: the text reads as after convolutions, the demo has them before (`PreActivationResNet`);
* where shortcuts put their zeros: on both sides, as in the demo; `padding="end"` of the backbone puts them after. A
  level leaves out channels and zeros of each part, so that a feature is the same one on the shortcut and in the weights
  at every level; in the demo, with a prefix of every weight and zeros that follow the level's width, it is not;
* how levels are weighted: the mean of all (`JointLoss(reduction="mean")`); the demo has `DEMO_WEIGHTS`;
* the last norm of the demo never leaves training mode, which is an oversight and not repeated here.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from anytimeify.losses.joint import JointLoss
from anytimeify.papers.networks import PreActivationResNet, imagenet
from anytimeify.papers.recipe import Entry
from anytimeify.passes.schemes.nested_channels import NestedChannels
from anytimeify.taxonomy import Taxonomy
from anytimeify.train import OneAfterTheOther, Optimiser, Schedule, Training

__all__ = ["CONSENSUS", "DEMO_WEIGHTS", "ENTRIES", "WIDTHS", "subtree"]

WIDTHS = (0.25, 0.5, 1.0)
DEMO_WEIGHTS = (0.5, 0.3, 0.2)  # core, middle, full: for `JointLoss(DEMO_WEIGHTS)`

# 80,000 steps, the rate falling after 40,000 and 60,000, in epochs of 50,000 images.
CIFAR = Training(
    data="CIFAR-10 or CIFAR-100",
    optimiser=Optimiser(learning_rate=0.1, weight_decay=2e-4, nesterov=True),
    schedule=Schedule(kind="steps", milestones=(102.4, 153.6)),
    batch=128,
    epochs=205,
    augmentation=("pad 4 and crop", "flip", "whiten each image"),
)
# 50,000 steps over about 130,000 images (printed as epochs), the rate falling after 15,000, 30,000 and 45,000. Every
# level is a step of its own; whether on the same images is not said.
IMAGENET = Training(
    data="100 classes of ImageNet, of 4 and 11 ancestors",
    optimiser=Optimiser(learning_rate=0.1, weight_decay=1e-4, nesterov=True),
    schedule=Schedule(kind="steps", milestones=(29.5, 59.1, 88.6)),
    batch=256,
    epochs=98,
    augmentation=("random resized crop 224", "flip", "normalise"),
    order=OneAfterTheOther(),
)
# Of a learned consensus (`build(consensus="learned")`), after the training of the network: 50,000 steps, the rate
# falling after 20,000, 30,000 and 40,000. Batch and weight decay are not said.
CONSENSUS = replace(
    CIFAR,
    optimiser=Optimiser(learning_rate=0.1, weight_decay=0.0, momentum=0.0),
    schedule=Schedule(kind="steps", milestones=(51.2, 76.8, 102.4)),
    epochs=128,
)

_SUBTREE = {
    "natural object": {"fruit": 9},
    "plant": {"vegetable": 9, "flower": 3},
    "animal": {"dog": 14, "cat": 5, "fish": 10, "bird": 10},
    "artifact": {"instrument": 10, "vehicle": 10, "furniture": 10, "construction": 10},
}


def subtree() -> Taxonomy:
    """The paper's labels for ImageNet, an option of every `build(taxonomy=subtree())` of 100 classes: 4 classes above
    11 above 100. The core predicts the 4, the middle level the 11, the full one the 100.

    Classes are numbered in this order, group after group ("dog 0" to "dog 13"). Which of the 4 fruit, vegetables and
    flowers belong to is a reading of the text.
    """
    tree = {top: {kind: _numbered(kind, count) for kind, count in kinds.items()} for top, kinds in _SUBTREE.items()}
    names = ("sub", "intermediate", "super")
    return Taxonomy.from_tree(tree, granularities=names).with_levels(heads=tuple((name,) for name in reversed(names)))


def _numbered(kind: str, count: int) -> list[str]:
    return [f"{kind} {index}" for index in range(count)]


def _cifar(name: str, about: str, depth: int, widening: int) -> Entry:
    return Entry(
        name=f"nestednet/{name}",
        about=about,
        source="Kim, Ahn and Oh 2018",
        backbone=partial(PreActivationResNet, depth=depth, widening=widening),
        shape=(3, 32, 32),
        num_classes=100,
        scheme=NestedChannels(WIDTHS, where="all" if widening == 1 else ("layer*",)),
        loss=partial(JointLoss, reduction="mean"),
        training=CIFAR,
    )


_WIDE = _cifar("wrn-32-4", "ResNet-32 of 4 times the channels", 32, 4)

ENTRIES = (
    _WIDE,
    _cifar("resnet-56", "ResNet-56, norms first", 56, 1),
    _cifar("wrn-14-4", "ResNet-14 of 4 times the channels", 14, 4),
    _cifar("wrn-14-8", "ResNet-14 of 8 times the channels", 14, 8),
    replace(
        _WIDE,
        name="nestednet/resnet-18-imagenet",
        about="ResNet-18 of torchvision",
        backbone=partial(imagenet, network="resnet18"),
        shape=(3, 224, 224),
        scheme=NestedChannels(WIDTHS),
        # Each of the three steps has the objective of its level.
        loss=JointLoss,
        training=IMAGENET,
    ),
)
