"""Compiles a PyTorch network into an anytime model: several networks in one, from cheap to full.

net = transform(backbone, NestedChannels(widths=(0.25, 0.5, 1.0)), example_inputs)
small = net.extract(Budget(macs=5e8))
"""

from typing import TYPE_CHECKING

from anytimeify._torchvision import cope_with_torchvision
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
    Overloaded,
    SchemeError,
    UnsupportedOpError,
    VerificationError,
)
from anytimeify.lazy import lazily
from anytimeify.version import __version__

if TYPE_CHECKING:
    from anytimeify.capture import Source
    from anytimeify.capture import resolve as source
    from anytimeify.capture.on_meta import parameters_on_meta
    from anytimeify.compiler import transform
    from anytimeify.early_exit.policies import Confidence, Entropy, Patience
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
    "Overloaded",
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

# What is imported when it is first asked for, so that what needs no torch can be used without it; the same as above.
_PLACES = {
    "AllOutputs": "anytimeify.ir",
    "AnytimeModel": "anytimeify.runtime.model",
    "AuxiliaryBranches": "anytimeify.passes.schemes.auxiliary_branches",
    "Branch": "anytimeify.passes.rewrites.branch",
    "Budget": "anytimeify.runtime.budget",
    "Captured": "anytimeify.ir",
    "Confidence": "anytimeify.early_exit.policies",
    "Consensus": "anytimeify.passes.rewrites.consensus",
    "Cost": "anytimeify.ir",
    "Entropy": "anytimeify.early_exit.policies",
    "HierarchicalCoDistillation": "anytimeify.losses",
    "HierarchicalEnsemble": "anytimeify.passes.schemes.hierarchical_ensemble",
    "InPlaceDistillation": "anytimeify.losses",
    "JointLoss": "anytimeify.losses",
    "Level": "anytimeify.ir",
    "Limits": "anytimeify.passes.estimate",
    "MaskSchedule": "anytimeify.runtime.masks",
    "MutualDistillation": "anytimeify.passes.schemes.mutual_distillation",
    "NestedChannels": "anytimeify.passes.schemes.nested_channels",
    "NestedDepth": "anytimeify.passes.schemes.nested_depth",
    "NestedResolution": "anytimeify.passes.schemes.nested_resolution",
    "NestedWeights": "anytimeify.passes.schemes.nested_weights",
    "Outputs": "anytimeify.ir",
    "Patience": "anytimeify.early_exit.policies",
    "SandwichSampler": "anytimeify.runtime.sampling",
    "Scheme": "anytimeify.passes.scheme",
    "Source": "anytimeify.capture",
    "Staged": "anytimeify.staged",
    "Taxonomy": "anytimeify.taxonomy",
    "load": "anytimeify.runtime.load",
    "parameters_on_meta": "anytimeify.capture.on_meta",
    "parse_scheme": "anytimeify.passes.scheme",
    "schemes": "anytimeify.passes.scheme",
    "source": "anytimeify.capture:resolve",
    "transform": "anytimeify.compiler",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazily(__name__, _PLACES)

cope_with_torchvision()
