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
* what deep compression nests: all layers, as in the text; the demo leaves the stem and the classifier out. How much of
  the weights a mask keeps is not printed: as much as a level of channels has, `DENSITIES`;
* which blocks layer scheduling leaves out: a third of each stage's, then two thirds;
* the last norm of the demo never leaves training mode, which is an oversight and not repeated here.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from anytimeify.losses.joint import JointLoss
from anytimeify.papers.networks import PreActivationResNet, imagenet
from anytimeify.papers.networks.initialisers import xavier
from anytimeify.papers.recipe import Entry
from anytimeify.papers.taxonomies import cifar100, subtree
from anytimeify.passes.schemes.nested_channels import NestedChannels
from anytimeify.passes.schemes.nested_depth import NestedDepth
from anytimeify.passes.schemes.nested_weights import NestedWeights
from anytimeify.taxonomy import Taxonomy
from anytimeify.train.optimiser import Optimiser
from anytimeify.train.orders import OneAfterTheOther
from anytimeify.train.phases import Phase
from anytimeify.train.schedule import Schedule
from anytimeify.train.training import Training

__all__ = ["CONSENSUS", "DEMO_WEIGHTS", "DENSITIES", "DEPTHS", "ENTRIES", "WIDTHS", "hierarchy", "subtree"]

WIDTHS = (0.25, 0.5, 1.0)
DENSITIES = (0.0625, 0.25, 1.0)  # the share of its weights that a convolution has at these widths
DEPTHS = (0.334, 0.667, 1.0)
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
# Of a learned consensus, after the training of the network: 50,000 steps, the rate falling after 20,000, 30,000 and
# 40,000. Batch and weight decay are not said.
CONSENSUS = Phase(
    parts="consensus",
    optimiser=Optimiser(learning_rate=0.1, weight_decay=0.0, momentum=0.0),
    schedule=Schedule(kind="steps", milestones=(51.2, 76.8, 102.4)),
    epochs=128,
)


def hierarchy(*, fine_head: bool = True) -> Taxonomy:
    """The labels of CIFAR-100 for two levels: the core predicts the 20 coarse classes, the full level the 100 fine
    ones. With `fine_head` the core predicts these as well, which a consensus reads, and still serves its own."""
    core = ("fine", "coarse") if fine_head else ("coarse",)
    return cifar100().with_levels(heads=(core, ("fine",)), serve=("coarse", "fine"))


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
_DEEP = _cifar("resnet-56", "ResNet-56, norms first", 56, 1)
_SMALL = _cifar("wrn-14-4", "ResNet-14 of 4 times the channels", 14, 4)
_LARGE = _cifar("wrn-14-8", "ResNet-14 of 8 times the channels", 14, 8)
_IMAGENET = replace(
    _WIDE,
    name="nestednet/resnet-18-imagenet",
    about="ResNet-18 of torchvision",
    backbone=partial(imagenet, network="resnet18", initialise=xavier),
    shape=(3, 224, 224),
    scheme=NestedChannels(WIDTHS),
    # Each of the three steps has the objective of its level.
    loss=JointLoss,
    training=IMAGENET,
)


def _compressed(entry: Entry) -> tuple[Entry, ...]:
    """Deep compression, in all layers: nested weights, and nested channels if the entry nests those of blocks alone."""
    weights = replace(entry, name=f"{entry.name}-weights", scheme=NestedWeights(DENSITIES))
    channels = replace(entry, name=f"{entry.name}-channels", scheme=NestedChannels(WIDTHS))
    return (weights,) if entry.scheme == channels.scheme else (weights, channels)


def _and_consensus(training: Training) -> Training:
    """With a learned consensus, which is trained after the levels and alone."""
    return replace(training, phases=(CONSENSUS,))


def _two_levels(entry: Entry) -> Entry:
    """Core and full level: knowledge distillation, in which the two learn together from the same labels."""
    return replace(entry, name=f"{entry.name}-distillation", scheme=NestedChannels((WIDTHS[0], 1.0), where=("layer*",)))


def _coarse_and_fine(entry: Entry) -> tuple[Entry, ...]:
    """CIFAR-100 with 20 and 100 classes; then with a consensus, A or L, of both levels' fine classes and of the
    core's coarse ones."""
    plain = replace(_two_levels(entry), name=f"{entry.name}-hierarchy", taxonomy=partial(hierarchy, fine_head=False))
    kinds = {"a": "average", "l": "learned"}
    return (
        plain,
        *(
            replace(
                plain,
                name=f"{plain.name}-{letter}",
                taxonomy=hierarchy,
                consensus=kind,
                training=_and_consensus(plain.training) if kind == "learned" else plain.training,
            )
            for letter, kind in kinds.items()
        ),
    )


_TREE = replace(_IMAGENET, name="nestednet/resnet-18-subtree", source="Kim, Ahn and Oh 2018, Table 1", taxonomy=subtree)

ENTRIES = (
    _WIDE,
    _DEEP,
    _SMALL,
    _LARGE,
    _IMAGENET,
    *_compressed(_WIDE),
    *_compressed(_DEEP),
    replace(_DEEP, name="nestednet/resnet-56-depth", scheme=NestedDepth(DEPTHS)),
    _two_levels(_WIDE),
    *_coarse_and_fine(_SMALL),
    *_coarse_and_fine(_LARGE),
    _TREE,
    replace(
        _TREE,
        name="nestednet/resnet-18-subtree-l",
        taxonomy=partial(subtree, fine_heads=True),
        consensus="learned",
        training=_and_consensus(IMAGENET),
    ),
)
