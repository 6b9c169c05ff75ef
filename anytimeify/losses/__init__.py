"""Training objectives: each is an `nn.Module` called as `loss(outputs, target)`, with `terms(outputs, target)`."""

from anytimeify.losses.in_place_distillation import InPlaceDistillation
from anytimeify.losses.joint import JointLoss
from anytimeify.losses.objective import Objective

__all__ = ["InPlaceDistillation", "JointLoss", "Objective"]
