"""Hierarchical mimicking: labels for every branch, and every branch the teacher of every other."""

from __future__ import annotations

from itertools import permutations
from typing import Literal

import torch
from torch import Tensor

from anytimeify.ir import Outputs
from anytimeify.losses.ensembles import check_choice, check_weight
from anytimeify.losses.objective import Objective, check_call
from anytimeify.losses.pairs import Heads, check_heads, check_temperature

__all__ = ["HierarchicalMimicking"]


class HierarchicalMimicking(Objective):
    """sum_i CE(z_i, target) + alpha sum_i sum_{j != i} T^2 KL(softmax(z_j / T) || softmax(z_i / T)), z_j constant.

    The objective of dynamic hierarchical mimicking (DHM, Li and Chen 2020). Reads `outputs.levels`, each (N, C) or
    (N, C, H, W); the last one is the backbone, the others its auxiliary branches. K branches have K + 1 cross-entropies
    and K (K + 1) terms `"level<student>/mimicking/level<teacher>"`. With the default options this is dense knowledge
    synergy (DKS, Sun et al. 2019), and with `alpha=0` deep supervision: cross-entropies only. Raises `ValueError` for
    levels that do not predict the same.

    Parameters
        alpha: weight of the mimicking terms; 1 in the papers.
        temperature: T, 1 in the papers.
        sampling: which mimicking terms count while the loss is in training mode; one that is dropped is zero and has no
            gradient. Cross-entropies always stay, and in evaluation mode nothing is dropped.

            - `"all"`: all of them, as in the papers' main results.
            - `"bernoulli"`: every auxiliary branch is on with `probability`, the backbone always, and a term counts if
              both of its ends are on (DHM, supplement D).
            - `"terms"`: at every call, a number n below that of the terms is drawn, then n of the terms with
              replacement, and those are dropped. This is the rule that stands commented out in the authors' code,
              whatever `per` says; of two branches, a term is dropped with probability (5/6)^6, about 1/3.
        probability: from 0 to 1, for `"bernoulli"`.
        per: when `"bernoulli"` draws anew: `"step"`, at every call of the loss or its `terms` in training mode;
            `"epoch"`, when `resample` is called, which is for the training loop to do when an epoch starts.
        label_smoothing: of the cross-entropies with the labels; see `Objective`.

    Draws come from torch's global CPU generator, also for predictions on another device. In a data-parallel run,
    processes with different seeds draw differently.

    Attributes
        gates: what was drawn last, a bool for every student (row) and teacher (column); None until something is drawn.
            A buffer, so that it moves with the module, but not part of its state dict.
    """

    gates: Tensor | None

    def __init__(
        self,
        alpha: float = 1.0,
        temperature: float = 1.0,
        sampling: Literal["all", "bernoulli", "terms"] = "all",
        probability: float = 0.5,
        per: Literal["epoch", "step"] = "epoch",
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing)
        check_choice("sampling", sampling, ("all", "bernoulli", "terms"))
        check_choice("per", per, ("epoch", "step"))
        self.alpha = check_weight("alpha", alpha)
        self.temperature = check_temperature(temperature)
        self.sampling = sampling
        self.probability = check_weight("probability", probability, 1.0)
        self.per = per
        self.register_buffer("gates", None, persistent=False)

    def resample(self) -> None:
        """Draws anew which mimicking terms count: for the start of an epoch. The first call draws by itself."""
        if self.gates is not None:
            self.gates = self._draw(len(self.gates)).to(self.gates.device)

    def terms(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        check_call(outputs, target)
        levels = outputs.levels
        terms = {f"level{index}/cross_entropy": self.cross_entropy(level, target) for index, level in enumerate(levels)}
        if self.alpha == 0 or len(levels) < 2:
            return terms
        check_heads("level", levels)
        heads = Heads.of(levels, self.temperature)
        gates = self._current(len(levels), levels[0].device) if self.training and self.sampling != "all" else None
        for student, teacher in permutations(range(len(levels)), 2):
            term = heads.divergence(student, teacher) * self.alpha
            # A product, not a condition: to read a gate, the host would wait for the device at every step.
            terms[f"level{student}/mimicking/level{teacher}"] = (
                term if gates is None else term * gates[student, teacher]
            )
        return terms

    def _current(self, levels: int, device: torch.device) -> Tensor:
        stays = self.sampling == "bernoulli" and self.per == "epoch"
        if self.gates is None or len(self.gates) != levels or not stays:
            self.gates = self._draw(levels)
        self.gates = self.gates.to(device)
        return self.gates

    def _draw(self, levels: int) -> Tensor:
        """A new tensor each time: a backward pass that is still to come may read the last one."""
        with torch.device("cpu"):
            return _branches(levels, self.probability) if self.sampling == "bernoulli" else _terms(levels)

    def extra_repr(self) -> str:
        text = f"alpha={self.alpha}, temperature={self.temperature}, sampling={self.sampling!r}"
        if self.sampling == "bernoulli":
            text += f", probability={self.probability}, per={self.per!r}"
        return text + self.smoothing_repr()


def _branches(levels: int, probability: float) -> Tensor:
    """Pairs both ends of which are on; the last level, the backbone, always is."""
    on = torch.rand(levels) < probability
    on[-1] = True
    return on[:, None] & on


def _terms(levels: int) -> Tensor:
    """Pairs but those drawn, with replacement, fewer times than there are pairs."""
    students, teachers = torch.tensor(list(permutations(range(levels), 2))).unbind(1)
    count = len(students)
    dropped = torch.randint(count, (int(torch.randint(count, ())),))
    gates = torch.ones(levels, levels, dtype=torch.bool)
    gates[students[dropped], teachers[dropped]] = False
    return gates
