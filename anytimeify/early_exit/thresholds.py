"""Exit thresholds and temperatures from held-out data.

    data = record(staged, loader)
    staged.policy = for_accuracy(data, drop=0.01, policy=Confidence(temperature=temperatures(data)))
    staged.policy = for_budget(data, macs=3e8)

Everything is computed from the predictions of all exits, taken once. What is promised holds for the data that it was
computed from; `evaluate` says what a policy does on others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anytimeify.codegen.call_signature import batch_arguments
from anytimeify.early_exit.network import Staged
from anytimeify.early_exit.policies import Confidence, ExitPolicy, Scored
from anytimeify.errors import ArgumentError, BudgetError

__all__ = ["Evaluation", "Recorded", "evaluate", "for_accuracy", "for_budget", "record", "temperatures"]


_CONFIDENCE = Confidence()


@dataclass(frozen=True)
class Recorded:
    """What every exit predicted, cheapest first.

    Fields
        predictions: for each exit, logits of shape `(samples, classes, ...)`.
        targets: class indices, `(samples, ...)`.
        macs: what a sample costs that leaves at each exit.
    """

    predictions: tuple[Tensor, ...]
    targets: Tensor
    macs: tuple[int, ...]

    def __post_init__(self) -> None:
        shapes = {tuple(one.shape) for one in self.predictions}
        if not self.predictions or len(self.predictions) != len(self.macs) or len(shapes) != 1:
            raise ArgumentError(
                f"{len(self.predictions)} predictions of shapes {sorted(shapes)} and {len(self.macs)} costs: "
                "expected as many costs as predictions, and predictions of one shape"
            )
        (shape,) = shapes
        if len(shape) < 2 or not shape[0] or tuple(self.targets.shape) != (shape[0], *shape[2:]):
            raise ArgumentError(
                f"predictions of shape {shape} and targets of shape {tuple(self.targets.shape)}: expected "
                "(samples, classes, ...) and (samples, ...), with at least one sample"
            )

    @property
    def errors(self) -> Tensor:
        """For every exit and sample 1 where the class is wrong, 0 where it is right; the share where there are many."""
        wrong = torch.stack([one.argmax(1) != self.targets for one in self.predictions]).double()
        return wrong.flatten(2).mean(2) if wrong.ndim > 2 else wrong


@dataclass(frozen=True)
class Evaluation:
    """What a policy does on data: accuracy and cost per sample, and the share of samples that leave at each exit."""

    accuracy: float
    macs: float
    shares: tuple[float, ...]


def record(staged: Staged, batches: Iterable[Any]) -> Recorded:
    """Runs all exits on batches `(inputs, target)`, as a data loader gives them. Predictions are kept on the CPU."""
    found: list[list[Tensor]] = [[] for _ in staged.levels]
    targets = []
    with torch.no_grad():
        for batch in batches:
            if not isinstance(batch, (tuple, list)):
                raise ArgumentError(f"a batch is a {type(batch).__name__}: expected (inputs, target)")
            args, kwargs = batch_arguments(batch, len(staged.call_signature.parameters))
            for kept, (_, prediction) in zip(found, staged.stream(*args, **kwargs), strict=True):
                kept.append(prediction.cpu())
            targets.append(batch[-1].cpu())
    if not targets:
        raise ArgumentError("record was given no batches: pass held-out batches of inputs and targets")
    return Recorded(tuple(map(torch.cat, found)), torch.cat(targets), staged.macs)


def evaluate(policy: ExitPolicy, data: Recorded) -> Evaluation:
    """What the policy does on the data, without running the network again."""
    exits = _exits(policy, data)
    errors = data.errors.gather(0, exits[None]).mean()
    costs = torch.tensor(data.macs, dtype=torch.float64)[exits]
    counts = torch.bincount(exits, minlength=len(data.macs))
    return Evaluation(float(1 - errors), float(costs.mean()), tuple((counts.double() / len(exits)).tolist()))


def temperatures(data: Recorded) -> tuple[float, ...]:
    """For each exit, the temperature at which the targets are most likely (Guo et al. 2017, section 4.2).

    The likelihood is concave in the inverse of the temperature, so its derivative is bisected, between 0.01 (where all
    targets are right) and 100 (where they are no better than chance).
    """
    return tuple(_temperature(logits.double(), data.targets) for logits in data.predictions)


def for_accuracy(data: Recorded, drop: float, policy: Scored = _CONFIDENCE) -> Scored:
    """The policy with the thresholds of least cost at which accuracy is at most `drop` below that of the last exit.

    Thresholds of all exits are searched together, which is no worse than one threshold for all of them.
    """
    if not 0 <= drop <= 1:
        raise ArgumentError(f"drop={drop}: expected a share of all samples, between 0 and 1")
    search = _Search.of(data, policy)
    allowed = float(search.errors[-1].mean()) + drop + _ROUNDING
    return _with_scores(policy, search.best(search.costs, search.errors, allowed))


def for_budget(
    data: Recorded,
    macs: float,
    policy: Scored = _CONFIDENCE,
    *,
    search: bool = False,
) -> Scored:
    """The policy with thresholds at which a sample costs at most `macs` on average (budgeted batch classification).

    The shares of samples that leave at the exits are a geometric series, whose ratio is solved for the budget; at each
    exit the samples that it is most certain of leave (Huang et al. 2018, section 3.2). Targets are not looked at.
    `search=True`: instead the thresholds of fewest errors within the budget, found as in `for_accuracy`.

    Raises `BudgetError` where the first exit costs more.
    """
    if macs < data.macs[0]:
        raise BudgetError(f"macs={macs:g}: the first exit alone costs {data.macs[0]:,}")
    chosen = _Search.of(data, policy)
    if search:
        return _with_scores(policy, chosen.best(chosen.errors, chosen.costs, macs))
    return _with_scores(policy, chosen.leaving(_geometric_shares(data.macs, macs)))


def _with_scores(policy: Scored, scores: _Scores) -> Scored:
    return policy.with_scores(scores or (math.inf,))  # one exit: nothing to compare


_ROUNDING = 1e-9  # of means of errors
_Scores = tuple[float, ...]  # a sample stops where its score is at least that; one for each exit but the last


@dataclass(frozen=True)
class _Search:
    """What thresholds are chosen from."""

    scores: Tensor  # (exits - 1, samples)
    errors: Tensor  # (exits, samples)
    costs: Tensor  # (exits, samples)

    @staticmethod
    def of(data: Recorded, policy: Scored) -> _Search:
        if not isinstance(policy, Scored):
            raise ArgumentError(f"thresholds are chosen for Confidence or Entropy, not for {policy!r}")
        scores = [policy.score(logits, exit) for exit, logits in enumerate(data.predictions[:-1])]
        count = len(data.targets)
        stacked = torch.stack(scores).double() if scores else torch.empty(0, count, dtype=torch.float64)
        stacked = stacked.masked_fill(stacked.isnan(), -math.inf)  # never stops
        return _Search(stacked, data.errors, torch.tensor(data.macs, dtype=torch.float64)[:, None].expand(-1, count))

    def exits(self, thresholds: Sequence[float]) -> Tensor:
        stops = self.scores >= torch.tensor(thresholds, dtype=torch.float64)[:, None]
        return torch.cat([stops, torch.ones_like(self.errors[:1], dtype=torch.bool)]).int().argmax(0)

    def leaving(self, shares: Sequence[float]) -> _Scores:
        """Thresholds at which at least these shares of all samples leave, exit after exit, the surest first."""
        count = self.scores.shape[1]
        here = torch.ones(count, dtype=torch.bool)
        found = []
        gone = 0.0
        for scores, share in zip(self.scores, shares, strict=False):
            gone += share
            wanted = min(math.ceil(gone * count - _ROUNDING * count) - int((~here).sum()), int(here.sum()))
            ordered = scores[here].sort(descending=True).values
            found.append(_cut(ordered, wanted))
            here &= scores < found[-1]
        return tuple(found)

    def best(self, objective: Tensor, limited: Tensor, limit: float) -> _Scores:
        """Thresholds of the least mean of `objective` at which that of `limited` is at most `limit`; both are given for
        every exit and sample. Nobody leaving early, or all at the first exit, keeps the limit.

        Starts are thresholds that minimise objective + weight * limited for weights around the one at which the limit
        is just kept, and thresholds that all exits share; each is improved under the limit itself.
        """
        starts = [(math.inf,) * len(self.scores), *self._common()]

        def too_much(logarithm: float) -> bool:
            weighted = objective + math.exp(logarithm) * limited
            starts.append(self._descend(starts[0], weighted, torch.zeros_like(weighted), math.inf))
            return self._mean(limited, starts[-1]) > limit

        span = float(objective.max() - objective.min()) / max(float(limited.max() - limited.min()), 1e-12)
        _bisect(too_much, math.log(max(span, 1e-12)) - _RANGE, math.log(max(span, 1e-12)) + _RANGE, _STEPS)
        improved = [self._descend(start, objective, limited, limit) for start in starts]
        fitting = [one for one in improved if self._mean(limited, one) <= limit]
        if not fitting:  # samples without a score cannot stop
            return min(improved, key=lambda one: self._mean(limited, one))
        return min(fitting, key=lambda one: (self._mean(objective, one), self._mean(limited, one)))

    def _mean(self, losses: Tensor, thresholds: _Scores) -> float:
        return float(losses.gather(0, self.exits(thresholds)[None]).mean())

    def _common(self) -> list[_Scores]:
        scores = self.scores.flatten().sort(descending=True).values
        counts = sorted({len(scores) * part // _STEPS for part in range(1, _STEPS + 1)})
        return [(_cut(scores, count),) * len(self.scores) for count in counts]

    def _descend(self, thresholds: _Scores, objective: Tensor, limited: Tensor, limit: float) -> _Scores:
        """Changes one threshold after the other to the best under the limit, as long as that changes anything."""
        current = list(thresholds)
        for _ in range(_SWEEPS):
            before = list(current)
            for exit in reversed(range(len(current))):
                current[exit] = self._move(current, exit, objective, limited, limit)
            if current == before:
                break
        return tuple(current)

    def _move(self, thresholds: list[float], exit: int, objective: Tensor, limited: Tensor, limit: float) -> float:
        """The best threshold of one exit, the others being given; the present one if none keeps the limit."""
        alone = list(thresholds)
        alone[exit] = math.inf
        elsewhere = self.exits(alone)[None]
        reached = elsewhere[0] > exit
        gone, spent = (losses.gather(0, elsewhere)[0] for losses in (objective, limited))
        ordered = self.scores[exit][reached].sort(descending=True)
        values, places = ordered.values, ordered.indices
        change, extra = (
            (losses[exit] - without)[reached][places].cumsum(0)
            for losses, without in ((objective, gone), (limited, spent))
        )
        possible = torch.ones_like(values, dtype=torch.bool)
        possible[:-1] = values[1:] < values[:-1]  # equal scores stop together
        possible &= (values > -math.inf) & (extra + spent.sum() <= limit * len(spent) + _ROUNDING)
        change = change.masked_fill(~possible, math.inf)
        nobody = 0.0 if float(spent.sum()) <= limit * len(spent) + _ROUNDING else math.inf
        least = float(change.min()) if len(change) else math.inf
        if math.isinf(min(least, nobody)):
            return thresholds[exit]
        return _cut(values, int(change.argmin()) + 1) if least < nobody else math.inf


_STEPS, _SWEEPS, _RANGE = 24, 10, 12.0


def _cut(ordered: Tensor, count: int) -> float:
    """A threshold that at least `count` of the scores reach, which are in descending order: between the last of them
    and the next lower one, so that rounding elsewhere decides nothing."""
    ordered = ordered[ordered > -math.inf]
    if count <= 0 or not len(ordered):
        return math.inf
    last = float(ordered[min(count, len(ordered)) - 1])
    lower = ordered[ordered < last]
    below = float(lower[0]) if len(lower) else last - max(abs(last), 1.0) * 1e-3
    middle = float(torch.tensor((last + below) / 2, dtype=torch.float32))  # as policies compare
    return middle if middle > below else last


def _geometric_shares(macs: Sequence[int], budget: float) -> list[float]:
    """Shares p, p r, p r^2, ... of samples at the exits, r being as large as the budget allows."""

    def shares(logarithm: float) -> list[float]:
        powers = torch.softmax(logarithm * torch.arange(len(macs), dtype=torch.float64), 0)
        return [float(one) for one in powers]

    def fits(logarithm: float) -> bool:
        return sum(share * one for share, one in zip(shares(logarithm), macs, strict=True)) <= budget

    if budget >= macs[-1]:
        return [0.0] * (len(macs) - 1) + [1.0]
    return shares(_bisect(fits, -100.0, 100.0, 60))


def _temperature(logits: Tensor, targets: Tensor) -> float:
    right = logits.gather(1, targets[:, None])

    def rises(logarithm: float) -> bool:
        """Whether the likelihood still rises with the inverse of the temperature."""
        expected = (torch.softmax(logits * math.exp(logarithm), 1) * logits).sum(1, keepdim=True)
        return float((right - expected).mean()) > 0

    return math.exp(-_bisect(rises, math.log(0.01), math.log(100.0), 24))


def _bisect(holds: Callable[[float], bool], low: float, high: float, steps: int) -> float:
    """The largest number between at which something holds that holds for small ones."""
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _exits(policy: ExitPolicy, data: Recorded) -> Tensor:
    """Where every sample leaves."""
    count = len(data.targets)
    exits = torch.full((count,), len(data.macs) - 1)
    here = torch.ones(count, dtype=torch.bool)
    for exit in range(len(data.macs) - 1):
        stop = policy(data.predictions[: exit + 1], exit) & here
        exits[stop] = exit
        here &= ~stop
    return exits
