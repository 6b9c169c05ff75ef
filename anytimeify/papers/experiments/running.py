"""Runs an experiment: trains what is not in the folder yet, and adds a line for it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytimeify.errors import ArtifactError
from anytimeify.papers.experiments.figures import require_figure
from anytimeify.papers.experiments.results import Results, append, read
from anytimeify.papers.experiments.shared import Shared
from anytimeify.papers.experiments.study import Contender
from anytimeify.runtime.model import AnytimeModel
from anytimeify.train.data import Data
from anytimeify.train.data.samples import Some
from anytimeify.train.encoding import flat
from anytimeify.train.evaluation import accuracies
from anytimeify.train.fitting import fit
from anytimeify.train.loading import Loader
from anytimeify.train.preparation import Preparation
from anytimeify.train.training import Training

__all__ = ["run"]

_MEASURED = 1000  # test samples, at most, that other measures than accuracy look at


def run(
    contenders: Sequence[Contender],
    data: Data,
    described: Mapping[str, Any],
    out: str | os.PathLike[str],
    seeds: Sequence[int],
    said: Callable[[str], Any],
    *,
    limit: int | None = None,
    resumed: bool = False,
    shared: Shared | None = None,
) -> Results:
    """The results of these seeds, from the folder and from what is trained now.

    Parameters
        described: what has to be the same for lines to stand in one table; `"experiment"` is the name.
        limit: at most so many batches in an epoch.
        resumed: whether a training goes on where it was stopped, in a folder of its own.
        shared: trained networks of other experiments, which are not trained again.

    Raises before anything is trained: `ArtifactError` for a folder that cannot be made, or holds other results;
    `MissingExtraError` without matplotlib.
    """
    folder = Path(out)
    require_figure()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"'{folder}' cannot be made: {error.strerror}.") from error
    path = folder / "results.jsonl"
    lines = read(path)
    _check(path, lines, described)
    done = {(line["network"], line["seed"]) for line in lines}
    wanted = [(seed, one) for seed in seeds for one in contenders if (one.name, seed) not in done]
    for place, (seed, contender) in enumerate(wanted, 1):
        said(f"{described['experiment']}, {place} of {len(wanted)}: {contender.name}, seed {seed}")
        own = folder / "runs" / f"{_slug(contender.name)}-{seed}" if resumed else None
        line = {**described, **_trained(contender, data, seed, own, limit, shared)}
        append(path, line)
        lines.append(line)
    order = {one.name: place for place, one in enumerate(contenders)}
    chosen = [line for line in lines if line["seed"] in seeds and line["network"] in order]
    return Results(tuple(sorted(chosen, key=lambda line: (order[line["network"]], line["seed"]))))


def _check(path: Path, lines: Sequence[dict[str, Any]], described: Mapping[str, Any]) -> None:
    wanted = flat(json.loads(json.dumps(described)))
    for line in lines:
        known = flat(line)
        for name, value in wanted.items():
            if known.get(name) != value:
                raise ArtifactError(
                    f"{path} holds other results: their {name} is {known.get(name)!r}, and now it is {value!r}. Choose "
                    "another folder."
                )


def _trained(
    contender: Contender, data: Data, seed: int, own: Path | None, limit: int | None, shared: Shared | None = None
) -> dict[str, Any]:
    """Trains one network, and what is known of it then."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    recipe = contender.make()
    net = recipe.build(verify=False)
    training = replace(recipe.training, seed=seed)
    if contender.data is not None:
        data = contender.data(data, seed)
    # Data that are changed have the name of those that are not.
    kept = shared.path(net, training, data.name, limit) if shared is not None and contender.data is None else None
    if kept is None or not Shared.load(kept, net):
        _fit(net, data, training, own, limit)
        if kept is not None:
            Shared.save(kept, net)
    return {
        "network": contender.name,
        "seed": seed,
        "alone": contender.alone,
        "levels": list(_levels(net, data, training, limit)),
        "values": dict(contender.measures(net, *_samples(net, data, training))) if contender.measures else {},
        "seconds": round(time.perf_counter() - started, 1),
    }


def _fit(net: AnytimeModel, data: Data, training: Training, own: Path | None, limit: int | None) -> None:
    """Trains the network. Without a folder nobody reads what its levels reach after every epoch: one sample will do."""
    if own is None:
        data = replace(data, test=Some(data.test, torch.arange(1)))
    fit(net, data, training, out=own, limit_batches=limit)


def _levels(net: AnytimeModel, data: Data, training: Training, limit: int | None) -> list[dict[str, Any]]:
    """The accuracy of every level in percent, of several granularities each, and its cost."""
    prepare = Preparation(data, _shape(net), training)
    loader = Loader(data.test, training.batch, 0, limit=limit)
    device = next(net.parameters()).device
    found = accuracies(net, loader.evaluation(prepare.evaluation), device=device)
    costs = {level.name: level.cost for level in net.levels}
    named = [(name, costs.get(name) or costs[name.rpartition("/")[0]]) for name in found]
    return [
        {"level": name, "macs": cost.macs, "params": cost.params, "accuracy": 100 * found[name]} for name, cost in named
    ]


def _samples(net: AnytimeModel, data: Data, training: Training) -> tuple[Tensor, Tensor]:
    """Test images as the network takes them, and their labels: spread over all, which may be sorted by class."""
    count = len(data.test)
    places = torch.arange(0, count, -(-count // _MEASURED))
    inputs, labels = Preparation(data, _shape(net), training).evaluation(data.test.take(places))
    device = next(net.parameters()).device
    return inputs.to(device), labels.to(device)


def _shape(net: AnytimeModel) -> tuple[int, ...]:
    (example,) = net.captured.example_inputs
    return tuple(example.shape[1:])


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
