"""What is run on which data."""

from __future__ import annotations

from anytimeify.papers.experiments import Experiment, experiment, experiment_names

__all__ = ["REMARKS", "command", "experiments_of", "papers"]

_DIGITS = "mnist5k:train=1000"
_SHAPES = "shapes:train=1000,test=2000,difficulty=0.5,size=16"

# Where coarse classes have to mean something, and for the second and third data of a figure.
_ON_SHAPES = (
    "nestednet/figure-2",
    "nestednet/consensus",
    "anytime/figure-3b",
    "anytime/figure-3c",
    "anytime/figure-5",
)

_EXITS = (
    "Exits of the shallow and of the MSDNet-like network read pooled features, without a norm before. The MSDNet-like "
    "network learns slowly in so few steps, its full level most of all: that others are better than it says little. "
    "Costs of the cheapest levels differ between networks."
)

# What a reader has to know besides the numbers.
REMARKS = {
    "anytime/figure-3a": _EXITS,
    "anytime/figure-3b": f"Shapes in place of CIFAR-100. {_EXITS}",
    "anytime/figure-3c": f"Shapes in place of ImageNet. {_EXITS}",
    "anytime/norms": "Shared statistics are those of the full level in the end. With statistics that are estimated for "
    "every level, shared norms do as well ([Do widths need norms of their own?](nested_digits.md)).",
    "nestednet/compression": "Sparse levels are trained from the start, and give no gradient to weights that they do "
    "not read; in print the network is trained dense first.",
    "dhm/e": "Test labels are right.",
}


def papers() -> tuple[str, ...]:
    """Those with experiments."""
    return tuple(dict.fromkeys(name.partition("/")[0] for name in experiment_names()))


def experiments_of(paper: str) -> list[Experiment]:
    """The experiments of a paper, each on its data."""
    names = [name for name in experiment_names() if name.partition("/")[0] == paper]
    return [experiment(name, _SHAPES if name in _ON_SHAPES else _DIGITS) for name in names]


def command(made: Experiment, seeds: int) -> str:
    """What runs one of them."""
    setting = made.setting
    return f"anytimeify papers {made.study.name} --data {setting.data} --seeds {seeds} --out DIR"
