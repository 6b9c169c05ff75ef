"""Finds the experiments of the papers. A file beside this one with `STUDIES` is enough to be found."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from pathlib import Path

from anytimeify.errors import AnytimeError
from anytimeify.papers.experiments.experiment import Experiment
from anytimeify.papers.experiments.setting import Scale, Setting
from anytimeify.papers.experiments.study import Study

__all__ = ["experiment", "experiment_names", "experiments"]


@cache
def _catalogue() -> dict[str, Study]:
    package = __name__.rpartition(".")[0]
    beside = sorted(info.name for info in pkgutil.iter_modules([str(Path(__file__).parent)]))
    modules = [importlib.import_module(f"{package}.{name}") for name in beside]
    return {study.name: study for module in modules for study in getattr(module, "STUDIES", ())}


def experiments() -> tuple[Study, ...]:
    """All of them, paper after paper."""
    return tuple(_catalogue().values())


def experiment_names() -> tuple[str, ...]:
    """What `experiment` takes, such as `hne/figure-5`."""
    return tuple(_catalogue())


def experiment(name: str, data: str = "mnist5k", scale: Scale = "auto", *, epochs: int | None = None) -> Experiment:
    """The figure or table of that name, to be run on some data: `experiment("hne/figure-5", data="digits").run(out)`.

    Parameters
        data: what `anytimeify.train.open_data` takes.
        scale: networks and trainings as printed (`"paper"`) or small ones (`"small"`); `"auto"`: as printed for CIFAR
            and folders of images.
        epochs: of every training, in place of these.

    Raises `AnytimeError` for a name that is none, with those that are near.
    """
    known = experiment_names()
    if name not in known:
        close = difflib.get_close_matches(name, known, 3) or [other for other in known if name and name in other]
        listed = f"did you mean {', '.join(close)}?" if close else f"there are: {', '.join(known)}"
        raise AnytimeError(f"'{name}' is no experiment of the papers; {listed}")
    return Experiment(_catalogue()[name], Setting(data, scale, epochs))
