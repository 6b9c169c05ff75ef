"""Staged execution: the levels of a network as a chain of graphs, which is how early exit really stops."""

from anytimeify.staged.chain import Chain as Chain
from anytimeify.staged.chain import Stage as Stage
from anytimeify.staged.load import load as load
from anytimeify.staged.network import Exited as Exited
from anytimeify.staged.network import Staged as Staged

__all__ = ["Chain", "Exited", "Stage", "Staged", "load"]
