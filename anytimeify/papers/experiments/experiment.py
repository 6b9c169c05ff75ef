"""An experiment, ready to run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytimeify.errors import ArgumentValueError
from anytimeify.papers.experiments.report import Report, write
from anytimeify.papers.experiments.running import run
from anytimeify.papers.experiments.setting import Setting
from anytimeify.papers.experiments.shared import Shared
from anytimeify.papers.experiments.study import Contender, Study

__all__ = ["Experiment"]


@dataclass(frozen=True)
class Experiment:
    """A study in a setting, ready to run."""

    study: Study
    setting: Setting

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """The networks, in the order of the table."""
        return tuple(self.study.contenders(self.setting))

    def run(
        self,
        out: str | os.PathLike[str],
        seeds: int | Sequence[int] = 5,
        *,
        limit_batches: int | None = None,
        said: Callable[[str], Any] | None = None,
        shared: str | os.PathLike[str] | None = None,
    ) -> Report:
        """Trains every network with every seed, and writes table, figure and finding into the folder `out`.

        What is in the folder already is not done again, so that a run that was stopped goes on, and one with more seeds
        adds these.

        Parameters
            seeds: how many, from 0 on, or which.
            limit_batches: at most so many in an epoch.
            said: called with a line of text before each training.
            shared: a folder where trained networks are kept. An experiment that is given the same one does not train
                again what another has trained; results are the same.

        Raises `ArtifactError` where the folder holds results of another experiment or setting; `MissingExtraError`
        without matplotlib.
        """
        chosen = range(seeds) if isinstance(seeds, int) else seeds
        if not chosen:
            raise ArgumentValueError(f"seeds is {seeds!r}: expected one or more")
        results = run(
            self.contenders,
            self.setting.loaded,
            self._described(limit_batches),
            out,
            chosen,
            said or (lambda _: None),
            limit=limit_batches,
            resumed=not self.setting.small,  # a network that takes hours
            shared=None if shared is None else Shared(Path(shared)),
        )
        return write(self.study, self.setting, results, out, limit_batches)

    def _described(self, limit: int | None) -> dict[str, Any]:
        return {
            "experiment": self.study.name,
            "data": self.setting.data,
            "scale": "small" if self.setting.small else "paper",
            "epochs": self.setting.epochs,
            "limit_batches": limit,
        }
