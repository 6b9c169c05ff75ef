"""Recipes of the papers in a setting: as printed, or with a small backbone in place of the printed one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import nn

from anytimeify.papers.catalogue import entries
from anytimeify.papers.experiments.setting import Setting
from anytimeify.papers.experiments.study import Contender
from anytimeify.papers.recipe import ALONE, Backbone, Recipe, alone
from anytimeify.passes.scheme import Scheme

__all__ = ["levels_alone", "plain", "printed"]

Make = Callable[[], Recipe]


def printed(
    setting: Setting,
    name: str,
    small: Callable[[int], Backbone],
    small_scheme: Scheme | str | None = None,
    *,
    scheme: Scheme | str | None = None,
    loss: Callable[[], nn.Module] | None = None,
    rate: float = 0.05,
    classes: int | None = None,
) -> Recipe:
    """The recipe of that name for the images and classes of the data.

    Parameters
        small, small_scheme: in place of its backbone and scheme where the setting is small.
        scheme, loss: in place of its own, at any scale.
        rate: of small trainings.
        classes: in place of those of the data.
    """
    (entry,) = (one for one in entries() if one.name == name)
    entry = replace(entry, shape=setting.shape, taxonomy=None, consensus=None)
    if setting.small:
        entry = replace(entry, backbone=small, scheme=small_scheme or entry.scheme)
    entry = replace(entry, scheme=scheme or entry.scheme, loss=loss or entry.loss)
    made = entry.recipe(classes or setting.classes)
    return replace(made, training=setting.training(made.training, rate=rate))


def levels_alone(make: Make, names: dict[int, str]) -> list[Contender]:
    """A network for each of these levels, which is that level by itself."""
    return [Contender(name, partial(_alone, make, level), alone=True) for level, name in names.items()]


def _alone(make: Make, level: int) -> Recipe:
    return alone(make(), level)


def plain(make: Make, name: str, network: int = 0) -> Contender:
    """The backbone of a recipe, or the first or second of two, trained by itself."""
    return Contender(name, partial(_plain, make, network), alone=True)


def _plain(make: Make, network: int) -> Recipe:
    from anytimeify.losses import JointLoss

    made = make()
    return replace(
        made,
        backbone=made.backbones[network],
        scheme=ALONE,
        loss=JointLoss(),
        training=replace(made.training, phases=()),
    )
