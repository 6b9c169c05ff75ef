"""How different the members of an ensemble are."""

from __future__ import annotations

import torch
from torch import Tensor

from anytimeify.errors import ArgumentValueError
from anytimeify.ir import Outputs
from anytimeify.losses.ensembles import leaves

__all__ = ["diversity"]


def diversity(outputs: Outputs, *, correction: int = 0) -> Tensor:
    """The standard deviation of the logits over the members, averaged over classes and samples: a scalar.

    The diversity of Ruiz and Verbeek 2020. Members are (N, C), or (N, C, H, W), where positions are
    averaged over too. `correction=0` divides by the number of members, `correction=1` by one less. 0 where the
    members agree. Averages over batches of equal size may be averaged. Raises `ValueError` for outputs without members,
    and for a correction that leaves nothing to divide by.
    """
    members = leaves(outputs)
    if len(members) <= correction:
        raise ArgumentValueError(f"{len(members)} members with correction={correction}: there is nothing to divide by")
    return torch.stack(members).std(dim=0, correction=correction).mean()
