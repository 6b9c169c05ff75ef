"""Networks cut into stages, which is how early exit really stops: the public names of `anytimeify.early_exit`."""

from anytimeify.early_exit.cascade import Chain, Stage
from anytimeify.early_exit.load import load
from anytimeify.early_exit.network import Exited, Staged

__all__ = ["Chain", "Exited", "Stage", "Staged", "load"]
