"""Translation validation: what a transformed model computes, and how it trains, beside its backbone."""

from anytimeify.verification.levels import difference as difference
from anytimeify.verification.levels import verify as verify
from anytimeify.verification.precision import TOLERANCE as TOLERANCE
from anytimeify.verification.training import compare_training as compare_training

__all__ = ["TOLERANCE", "compare_training", "difference", "verify"]
