"""Dense cross-layer mutual distillation: two networks with exits, every head a teacher of every one of the other's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Literal

from torch import Tensor

from anytimeify.errors import ArgumentValueError
from anytimeify.ir import Outputs
from anytimeify.losses.ensembles import check_choice, check_weight
from anytimeify.losses.objective import Objective, check_call
from anytimeify.losses.pairs import Heads, check_heads, check_temperature

__all__ = ["CrossLayerMutual"]


class CrossLayerMutual(Objective):
    """Cross-entropies of all heads of two networks, and KL divergences both ways between any two across the networks.

    The objective of dense cross-layer mutual distillation (DCM, Yao and Sun 2020), for both networks in one step. Reads
    `outputs.members`: the heads of the first network, then equally many of the second, each cheapest first and each
    (N, C) or (N, C, H, W). K + 1 heads each have 2 (K + 1) cross-entropies, `"first0/cross_entropy"` and the like, and
    2 (K + 1)^2 divergences, none inside a network: `"first0/same_stage/second0"` (student first, teacher last) and
    `"first0/cross_stage/second1"`. Teachers are constants. Heads are of the same stage where they have the same
    place, whatever the two networks are.

    Parameters
        weight: of all divergences; 0 trains the two networks apart, each with deep supervision.
        same_stage, cross_stage: times `weight`, of the divergences between heads of the same and of different stages:
            the paper's beta and gamma, all 1 there. `cross_stage=0` is mutual learning stage by stage.
        temperature: T, on both sides, with T^2; 1 in the paper.
        heads: `"all"`; or `"last"`, the full heads alone, with 2 cross-entropies and 2 divergences: plain deep mutual
            learning (DML, Zhang et al. 2018) of the two backbones. Their auxiliary heads then get no gradient.
        label_smoothing: of the cross-entropies with the labels; see `Objective`.

    The paper prints a soft cross-entropy in place of the divergence. From a constant teacher both have the same
    gradient; the divergence is the one that is zero where student and teacher agree.

    Raises `ValueError` for outputs without members, for an odd number of them and for members that do not predict the
    same.
    """

    def __init__(
        self,
        weight: float = 1.0,
        same_stage: float = 1.0,
        cross_stage: float = 1.0,
        *,
        temperature: float = 1.0,
        heads: Literal["all", "last"] = "all",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing)
        check_choice("heads", heads, ("all", "last"))
        self.weight = check_weight("weight", weight)
        self.same_stage = check_weight("same_stage", same_stage)
        self.cross_stage = check_weight("cross_stage", cross_stage)
        self.temperature = check_temperature(temperature)
        self.heads = heads

    def terms(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        check_call(outputs, target)
        members = outputs.members
        count = _heads_each(members)
        stages = range(count) if self.heads == "all" else range(count - 1, count)
        names = {index: f"first{index}" for index in stages}
        names |= {count + index: f"second{index}" for index in stages}
        terms = {f"{name}/cross_entropy": self.cross_entropy(members[place], target) for place, name in names.items()}
        heads = Heads.of(members, self.temperature)
        for student, teacher in product(names, repeat=2):
            if student // count == teacher // count:
                continue  # inside one network
            same = student % count == teacher % count
            weight = self.weight * (self.same_stage if same else self.cross_stage)
            if weight > 0:
                name = f"{names[student]}/{'same' if same else 'cross'}_stage/{names[teacher]}"
                terms[name] = heads.divergence(student, teacher) * weight
        return terms

    def extra_repr(self) -> str:
        return (
            f"weight={self.weight}, same_stage={self.same_stage}, cross_stage={self.cross_stage}, "
            f"temperature={self.temperature}, heads={self.heads!r}{self.smoothing_repr()}"
        )


def _heads_each(members: Sequence[Tensor]) -> int:
    """How many heads each of the two networks has."""
    if not members:
        raise ArgumentValueError(
            "the outputs have no members: this objective reads the heads of two networks, which the scheme "
            "mutual-distillation gives; for one network with branches take HierarchicalMimicking"
        )
    if len(members) % 2:
        raise ArgumentValueError(
            f"the outputs have {len(members)} members, an odd number: this objective reads the heads of one network, "
            "then equally many of another; give both networks as many branches"
        )
    check_heads("member", members)
    return len(members) // 2
