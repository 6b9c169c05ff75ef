"""What an experiment is: networks that are trained alike, a claim, and a figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from anytimeify.papers.experiments.figures import Form
from anytimeify.papers.experiments.findings import Comparison
from anytimeify.papers.experiments.results import Results
from anytimeify.papers.experiments.setting import Setting
from anytimeify.runtime.model import AnytimeModel
from anytimeify.train.data import Data
from anytimeify.train.training import Training

__all__ = ["Contender", "Measure", "Study", "Trainable"]

Measure = Callable[[AnytimeModel, Tensor, Tensor], Mapping[str, float]]


class Trainable(Protocol):
    """What a contender makes: a `Recipe`, or what has as much of one."""

    @property
    def training(self) -> Training:
        """How the network is trained."""

    def build(self, *, verify: bool) -> AnytimeModel:
        """The network."""


@dataclass(frozen=True)
class Contender:
    """One network of a figure, which is trained once for every seed.

    Fields
        name: as tables and figures call it.
        make: its recipe, with the training that it gets here; called after the generators are seeded.
        alone: whether it is a network that is trained by itself, the line to beat.
        data: what is changed about the data for it, given the seed.
        measures: what is measured at the end besides the accuracy of every level, given test images and labels.
    """

    name: str
    make: Callable[[], Trainable]
    alone: bool = False
    data: Callable[[Data, int], Data] | None = None
    measures: Measure | None = None


@dataclass(frozen=True)
class Study:
    """An entry of a paper's file: a figure or table, before it is known what it is run on.

    Fields
        name: `<paper>/<figure>`, such as `hne/figure-5`.
        about: what it is in a few words.
        source: of the paper.
        claim: what the paper says it shows.
        contenders: its networks in a setting.
        comparisons: what the claim means, in numbers.
        form: of the figure: `"curves"`: accuracy of levels against what they cost; `"bars"`: one bar a network and
            level; `"values"`: one bar for every value that was measured.
        measured: what the values are that were measured, as an axis says it.
    """

    name: str
    about: str
    source: str
    claim: str
    contenders: Callable[[Setting], Sequence[Contender]]
    comparisons: Callable[[Results], Iterable[Comparison]]
    form: Form = "curves"
    measured: str = ""
