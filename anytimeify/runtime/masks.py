"""The masks of `NestedWeights` after the start: estimated anew while a model trains, and reported.

    schedule = MaskSchedule(net, every=500, until=20_000)
    for inputs, target in batches:
        ...
        optimiser.step()
        schedule.step()

Without a schedule masks stay what one pass over the weights made them when the model was built.
"""

from __future__ import annotations

from typing import Any

import torch

from anytimeify.errors import ArgumentError
from anytimeify.passes.schemes.nested_weights import NestedWeights
from anytimeify.report.densities import Densities, density_rows
from anytimeify.runtime.model import AnytimeModel

__all__ = ["Densities", "MaskSchedule", "densities", "refresh"]


@torch.no_grad()
def refresh(net: AnytimeModel) -> float:
    """Makes every mask anew from the weights as they are now, in place; costs of the levels follow.

    Masks nest afterwards as before. Call it too when weights of a backbone alone have been loaded, whose checkpoint
    says nothing of masks. Returns the share of the masked elements, over all levels, of which the masks think otherwise
    now. `ArgumentError` for a model of another scheme.
    """
    scheme = _scheme(net)
    tensors = net.tensors()
    made = [(tensors[name], mask) for masks in scheme.masks(net.captured.program) for name, mask in masks.items()]
    changed = sum(int((old != new.to(old.device)).sum()) for old, new in made)
    for old, new in made:
        old.copy_(new)
    net.recount()
    return changed / max(1, sum(old.numel() for old, _ in made))


def densities(net: AnytimeModel) -> Densities:
    """How many elements of every masked weight each level keeps; prints as a table. `ArgumentError` for a model of
    another scheme."""
    _scheme(net)
    names = tuple(level.name for level in net.levels)
    return Densities(str(net.scheme), names, density_rows(net.rewritten.program, len(net.levels)))


class MaskSchedule:
    """Refreshes masks every so many steps: call `step()` after every step of the optimiser.

    `until`: after that many steps masks stay, so that the last part of the training is spent on the networks that are
    kept; None: never.
    """

    def __init__(self, net: AnytimeModel, every: int, until: int | None = None) -> None:
        _scheme(net)
        given: dict[str, Any] = {"every": every} if until is None else {"every": every, "until": until}
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"{name}={value!r}: expected a number of steps, 1 or more")
        self.net, self.every, self.until = net, every, until
        self.steps = 0

    def step(self) -> bool:
        """Counts a step; whether masks were refreshed."""
        self.steps += 1
        due = self.steps % self.every == 0 and (self.until is None or self.steps <= self.until)
        if due:
            refresh(self.net)
        return due

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])


def _scheme(net: AnytimeModel) -> NestedWeights:
    given: Any = net
    scheme = given.scheme if isinstance(given, AnytimeModel) else None
    if not isinstance(scheme, NestedWeights):
        what = f"a {type(given).__name__}" if scheme is None else f"a model of the scheme {scheme.name}"
        raise ArgumentError(f"masks belong to models that transform(..., NestedWeights(...)) made; this is {what}")
    return scheme
