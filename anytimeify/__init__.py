"""Compiles a PyTorch network into an anytime model: several networks in one, from cheap to full.

net = transform(backbone, NestedChannels(widths=(0.25, 0.5, 1.0)), example_inputs)
small = net.extract(Budget(macs=5e8))
"""

from anytimeify._torch import cope_with_torchvision
from anytimeify.artifact import load
from anytimeify.budget import Budget
from anytimeify.capture import Source
from anytimeify.capture import resolve as source
from anytimeify.errors import (
    AnytimeError,
    AnytimeWarning,
    ArgumentError,
    ArgumentValueError,
    ArtifactError,
    BudgetError,
    CaptureError,
    MissingExtraError,
    OutputsError,
    SchemeError,
    UnsupportedOpError,
    VerificationError,
)
from anytimeify.ir import Captured, Cost, Level, Outputs
from anytimeify.losses import HierarchicalCoDistillation, InPlaceDistillation, JointLoss
from anytimeify.masks import MaskSchedule
from anytimeify.model import AnytimeModel
from anytimeify.passes.auxiliary_branches import AuxiliaryBranches
from anytimeify.passes.branch import Branch
from anytimeify.passes.consensus import Consensus
from anytimeify.passes.hierarchical_ensemble import HierarchicalEnsemble
from anytimeify.passes.mutual_distillation import MutualDistillation
from anytimeify.passes.nested_channels import NestedChannels
from anytimeify.passes.nested_depth import NestedDepth
from anytimeify.passes.nested_resolution import NestedResolution
from anytimeify.passes.nested_weights import NestedWeights
from anytimeify.policies import Confidence, Entropy, Patience
from anytimeify.rewriter import Scheme, parse_scheme, schemes
from anytimeify.sampling import SandwichSampler
from anytimeify.staged import Staged
from anytimeify.taxonomy import Taxonomy
from anytimeify.transform import transform
from anytimeify.version import __version__

__all__ = [
    "AnytimeError",
    "AnytimeModel",
    "AnytimeWarning",
    "ArgumentError",
    "ArgumentValueError",
    "ArtifactError",
    "AuxiliaryBranches",
    "Branch",
    "Budget",
    "BudgetError",
    "CaptureError",
    "Captured",
    "Confidence",
    "Consensus",
    "Cost",
    "Entropy",
    "HierarchicalCoDistillation",
    "HierarchicalEnsemble",
    "InPlaceDistillation",
    "JointLoss",
    "Level",
    "MaskSchedule",
    "MissingExtraError",
    "MutualDistillation",
    "NestedChannels",
    "NestedDepth",
    "NestedResolution",
    "NestedWeights",
    "Outputs",
    "OutputsError",
    "Patience",
    "SandwichSampler",
    "Scheme",
    "SchemeError",
    "Source",
    "Staged",
    "Taxonomy",
    "UnsupportedOpError",
    "VerificationError",
    "__version__",
    "load",
    "parse_scheme",
    "schemes",
    "source",
    "transform",
]

cope_with_torchvision()
