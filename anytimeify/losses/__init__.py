"""Training objectives: each is an `nn.Module` called as `loss(outputs, target)`, with `terms(outputs, target)`."""

from anytimeify.losses.co_distillation import CoDistillation
from anytimeify.losses.consensus import ConsensusLoss
from anytimeify.losses.cross_layer_mutual import CrossLayerMutual
from anytimeify.losses.diversity import diversity
from anytimeify.losses.hierarchical import HierarchicalLoss
from anytimeify.losses.hierarchical_co_distillation import HierarchicalCoDistillation
from anytimeify.losses.hierarchical_mimicking import HierarchicalMimicking
from anytimeify.losses.in_place_distillation import InPlaceDistillation
from anytimeify.losses.independent import IndependentLoss
from anytimeify.losses.joint import JointLoss
from anytimeify.losses.objective import Objective
from anytimeify.losses.taxonomy import TaxonomyLoss

__all__ = [
    "CoDistillation",
    "ConsensusLoss",
    "CrossLayerMutual",
    "HierarchicalCoDistillation",
    "HierarchicalLoss",
    "HierarchicalMimicking",
    "InPlaceDistillation",
    "IndependentLoss",
    "JointLoss",
    "Objective",
    "TaxonomyLoss",
    "diversity",
]
