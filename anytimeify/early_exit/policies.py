"""Exit policies: when the prediction of an exit is good enough.

A policy is any callable `policy(predictions, exit)`. `predictions` are those of the exits so far, of shape
`(samples, classes, ...)`, the last one that of exit number `exit`; the result says which samples stop here: a tensor
of `samples` truth values, or one truth value for all of them (a deadline, say). It is not asked at the last exit.

Those here are frozen dataclasses, which a staged network keeps when it is written to files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from anytimeify.errors import ArgumentError

__all__ = ["Confidence", "Entropy", "ExitPolicy", "Patience", "Scored", "policy_from_dict", "policy_to_dict"]

ExitPolicy: TypeAlias = Callable[[Sequence[Tensor], int], Tensor | bool]
PerExit: TypeAlias = float | tuple[float, ...]


@dataclass(frozen=True)
class Scored:
    """Base of policies that compare one number per sample, of the softmax of this exit's logits, with a threshold.

    Fields
        threshold: one number for every exit but the last, or one for all of them.
        temperature: what logits are divided by, likewise; the last exit may have one too.

    Where a prediction has positions (dense prediction), the number is the mean over them.
    """

    kind: ClassVar[str]
    never: ClassVar[float]  # a threshold at which no sample stops

    threshold: PerExit
    temperature: PerExit = 1.0

    def __post_init__(self) -> None:
        for name in ("threshold", "temperature"):
            given: Any = getattr(self, name)
            values = tuple(given) if isinstance(given, (tuple, list)) else (given,)
            wrong = [one for one in values if isinstance(one, bool) or not isinstance(one, (int, float))]
            if not values or wrong or any(math.isnan(one) for one in values):
                raise ArgumentError(f"{name}={given!r}: expected a number, or a tuple of one for each exit")
            if name == "temperature" and min(values) <= 0:
                raise ArgumentError(f"temperature={given!r}: expected positive numbers")
            object.__setattr__(self, name, values if isinstance(given, (tuple, list)) else given)

    def __call__(self, predictions: Sequence[Tensor], exit: int) -> Tensor | bool:
        score = self.score(predictions[-1], exit)
        least = self.least(at_exit(self.threshold, exit, "thresholds"))
        if len(score) == 1:  # between layers that have emptied the caches every operation counts
            return score.item() >= float(np.float32(least))  # as the comparison below rounds it
        return score >= least

    def score(self, logits: Tensor, exit: int) -> Tensor:
        """One number per sample, the higher the more certain."""
        raise NotImplementedError

    def least(self, threshold: float) -> float:
        """The least score that stops at a threshold."""
        raise NotImplementedError

    def with_scores(self, scores: Sequence[float]) -> Scored:
        """The same policy, stopping where the score of an exit is at least this."""
        raise NotImplementedError

    def with_temperatures(self, temperatures: Sequence[float]) -> Scored:
        """The same policy at other temperatures; thresholds stay what they are."""
        return replace(self, temperature=tuple(temperatures))

    def _softmax_input(self, logits: Tensor, exit: int) -> Tensor:
        if logits.ndim < 2 or logits.shape[1] < 2:
            raise ArgumentError(
                f"{type(self).__name__} got predictions of shape {tuple(logits.shape)}: "
                "expected (samples, classes, ...) with at least two classes"
            )
        temperature = at_exit(self.temperature, exit, "temperatures")
        return logits if temperature == 1.0 else logits / temperature


@dataclass(frozen=True)
class Confidence(Scored):
    """Stops where the largest probability is at least `threshold` (Huang et al. 2018, section 3.2)."""

    kind: ClassVar[str] = "confidence"
    never: ClassVar[float] = math.inf

    threshold: PerExit = 0.9

    def score(self, logits: Tensor, exit: int) -> Tensor:
        """The largest probability."""
        return _mean(torch.softmax(self._softmax_input(logits, exit), 1, torch.float32).amax(1))

    def least(self, threshold: float) -> float:
        return threshold

    def with_scores(self, scores: Sequence[float]) -> Confidence:
        return replace(self, threshold=tuple(scores))


@dataclass(frozen=True)
class Entropy(Scored):
    """Stops where the entropy of the probabilities is at most `threshold`, as a share of the largest possible, the
    logarithm of the number of classes (Teerapittayanon et al. 2016, with that normalisation)."""

    kind: ClassVar[str] = "entropy"
    never: ClassVar[float] = -math.inf

    threshold: PerExit = 0.1

    def score(self, logits: Tensor, exit: int) -> Tensor:
        """The negative entropy, between -1 and 0."""
        logarithms = torch.log_softmax(self._softmax_input(logits, exit), 1, torch.float32)
        terms = logarithms.exp() * logarithms.clamp(min=-1e30)  # 0 * -inf counts 0
        return _mean(terms.sum(1) / math.log(logits.shape[1]))

    def least(self, threshold: float) -> float:
        return -threshold

    def with_scores(self, scores: Sequence[float]) -> Entropy:
        return replace(self, threshold=tuple(-score for score in scores))


@dataclass(frozen=True)
class Patience:
    """Stops where the predicted class is that of each of the `exits` exits before (Zhou et al. 2020)."""

    kind: ClassVar[str] = "patience"

    exits: int = 1

    def __post_init__(self) -> None:
        exits: Any = self.exits
        if isinstance(exits, bool) or not isinstance(exits, int) or exits < 1:
            raise ArgumentError(f"exits={exits!r}: expected a whole number, 1 or more")

    def __call__(self, predictions: Sequence[Tensor], exit: int) -> Tensor | bool:
        if len(predictions) <= self.exits:
            return False
        classes = torch.stack([logits.argmax(1) for logits in predictions[-1 - self.exits :]])
        same = (classes == classes[-1]).all(0)
        return same.flatten(1).all(1) if same.ndim > 1 else same


def at_exit(values: PerExit, exit: int, what: str) -> float:
    """The number that belongs to an exit."""
    if not isinstance(values, tuple):
        return values
    if exit >= len(values):
        raise ArgumentError(
            f"the policy has {len(values)} {what}, and was asked at exit {exit}: give one for each exit"
        )
    return values[exit]


def _mean(scores: Tensor) -> Tensor:
    return scores.flatten(1).mean(1) if scores.ndim > 1 else scores


# As plain data: what JSON can hold, infinite thresholds being None.

_KINDS: Mapping[str, type[Confidence | Entropy | Patience]] = {
    policy.kind: policy for policy in (Confidence, Entropy, Patience)
}


def policy_to_dict(policy: ExitPolicy) -> dict[str, Any]:
    """A policy of this module as plain data. `ArgumentError` for others: a function cannot be written to a file."""
    if not isinstance(policy, Confidence | Entropy | Patience):
        raise ArgumentError(
            f"the policy {policy!r} cannot be written to a file, as Confidence, Entropy and Patience can. Take it off "
            "(staged.policy = None), and give it when the loaded network is called"
        )
    fields = {
        name: [_finite(one) for one in value] if isinstance(value, tuple) else _finite(value)
        for name, value in asdict(policy).items()
    }
    return {"kind": policy.kind, **fields}


def policy_from_dict(data: Mapping[str, Any]) -> ExitPolicy:
    """The inverse. `KeyError`, `TypeError` or `ArgumentError` where the data are none."""
    kind = _KINDS[data["kind"]]
    never = getattr(kind, "never", None)
    fields: dict[str, Any] = {
        name: tuple(never if one is None else one for one in value)
        if isinstance(value, list)
        else (never if value is None else value)
        for name, value in data.items()
        if name != "kind"
    }
    return kind(**fields)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isinf(value) else value
