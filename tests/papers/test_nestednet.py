"""NestedNet: the levels that the compiler makes of plain networks against the paper's table and its demo."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytimeify.axes import Axes
from anytimeify.ir import Program
from anytimeify.losses import JointLoss
from anytimeify.losses.taxonomy import TaxonomyLoss
from anytimeify.model import AnytimeModel
from anytimeify.papers import recipe
from anytimeify.papers.nestednet import DEMO_WEIGHTS, WIDTHS, subtree
from anytimeify.papers.networks import CifarResNet, PreActivationResNet
from anytimeify.papers.networks.preactivation import PaddedShortcut
from anytimeify.passes.nested_channels import NestedChannels
from anytimeify.rewriter import parse_scheme
from anytimeify.train import OneAfterTheOther, Together
from anytimeify.transform import transform
from tests.papers.branches import ENTRIES, Sizes

NETWORKS = [name for name in ENTRIES if name.startswith("nestednet/")]

# Parameters that each level reads; those of all levels together.
PARAMETERS = {
    "nestednet/wrn-32-4": ((470_004, 1_856_436, 7_380_276), 7_406_396),
    # Not in print: counted by hand from the layers (see `by_hand`).
    "nestednet/resnet-56": None,
    "nestednet/wrn-14-4": None,
    "nestednet/wrn-14-8": None,
    "nestednet/resnet-18-imagenet": None,
}
