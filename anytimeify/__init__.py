"""Compiles a PyTorch network into an anytime model: several networks in one, from cheap to full.

net = transform(backbone, NestedChannels(widths=(0.25, 0.5, 1.0)), example_inputs)
small = net.extract(Budget(macs=5e8))
"""

from anytimeify._torch import cope_with_torchvision
from anytimeify.capture import Source
from anytimeify.capture import resolve as source
from anytimeify.capture.on_meta import parameters_on_meta
from anytimeify.early_exit.policies import Confidence, Entropy, Patience
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
from anytimeify.ir import AllOutputs, Captured, Cost, Level, Outputs
from anytimeify.losses import HierarchicalCoDistillation, InPlaceDistillation, JointLoss
from anytimeify.passes.estimate import Limits
from anytimeify.passes.rewrites.branch import Branch
from anytimeify.passes.rewrites.consensus import Consensus
from anytimeify.passes.scheme import Scheme, parse_scheme, schemes
from anytimeify.passes.schemes.auxiliary_branches import AuxiliaryBranches
from anytimeify.passes.schemes.hierarchical_ensemble import HierarchicalEnsemble
from anytimeify.passes.schemes.mutual_distillation import MutualDistillation
from anytimeify.passes.schemes.nested_channels import NestedChannels
from anytimeify.passes.schemes.nested_depth import NestedDepth
from anytimeify.passes.schemes.nested_resolution import NestedResolution
from anytimeify.passes.schemes.nested_weights import NestedWeights
from anytimeify.runtime.budget import Budget
from anytimeify.runtime.load import load
from anytimeify.runtime.masks import MaskSchedule
from anytimeify.runtime.model import AnytimeModel
from anytimeify.runtime.sampling import SandwichSampler
from anytimeify.staged import Staged
from anytimeify.taxonomy import Taxonomy
from anytimeify.transform import transform
from anytimeify.version import __version__

__all__ = [
    "AllOutputs",
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
    "Limits",
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
    "parameters_on_meta",
    "parse_scheme",
    "schemes",
    "source",
    "transform",
]

cope_with_torchvision()
