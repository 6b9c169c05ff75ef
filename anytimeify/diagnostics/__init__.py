"""What anytime models have learnt: kernels that are alike, what levels add to activations, where weights are large."""

from anytimeify.diagnostics.increments import ActivationIncrements, LayerIncrements, activation_increments
from anytimeify.diagnostics.kernels import KernelCorrelation, LayerCorrelation, kernel_correlation
from anytimeify.diagnostics.norms import UnitNorms, WeightNorms, weight_norms

__all__ = [
    "ActivationIncrements",
    "KernelCorrelation",
    "LayerCorrelation",
    "LayerIncrements",
    "UnitNorms",
    "WeightNorms",
    "activation_increments",
    "kernel_correlation",
    "weight_norms",
]
