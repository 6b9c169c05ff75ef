"""One training, or one phase of it, on a network: its optimiser, what has a gradient, and a step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from anytimeify.errors import ArgumentError, ArgumentValueError
from anytimeify.losses.objective import smooth
from anytimeify.operators.modules import BatchNormCall
from anytimeify.runtime.masks import MaskSchedule
from anytimeify.runtime.model import AnytimeModel
from anytimeify.train import distribution
from anytimeify.train.loading import mixed_seed
from anytimeify.train.orders import Part, Sandwich, Together
from anytimeify.train.teaching import Taught
from anytimeify.train.training import Training

__all__ = ["Modes", "Stage", "gradients_kept"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNormCall)


class Modes:
    """Which modules of a network train and which are in eval mode while it trains: as they are now, or all in train
    mode where the network as a whole is in eval mode, as one that was loaded is."""

    def __init__(self, net: nn.Module) -> None:
        self._before = [(module, module.training) for module in net.modules()]
        self._modes = [(module, training or not net.training) for module, training in self._before]

    def restore(self, frozen_norms: bool = False) -> None:
        for module, training in self._modes:
            module.training = training and not (frozen_norms and isinstance(module, _BATCH_NORMS))

    def reset(self) -> None:
        """Modes are as they were at first."""
        for module, training in self._before:
            module.training = training


class Stage:
    """What takes the steps of a training without phases.

    Attributes
        wrapped: the network as it is called in a step.
        optimiser: as torch has it; `parameters`: those that it changes.
    """

    def __init__(self, net: AnytimeModel, training: Training, accelerator: Any, teacher: nn.Module | None) -> None:
        self.net, self.training, self.accelerator = net, training, accelerator
        self.teacher = teacher if training.teacher is not None else None
        choose(net, training.parts)
        self.wrapped = distribution.wrap(net, accelerator, training.shard)
        self.parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
        self.optimiser = training.optimiser.build(self.parameters)
        self._steps_with: Any = accelerator.prepare_optimizer(self.optimiser)
        self.called: Any = torch.compile(self.wrapped) if training.compile else self.wrapped
        self.loss = self._objective()
        self.masks = MaskSchedule(net, training.refresh_masks) if training.refresh_masks else None
        self._several = accelerator.num_processes > 1 and not training.shard
        # DistributedDataParallel wants a gradient for every parameter in every pass that it averages. Orders that run
        # levels one by one, and losses that leave out levels, are averaged here instead.
        self._by_hand = self._several

    def _objective(self) -> nn.Module:
        loss = self.net.loss
        if self.training.label_smoothing is not None:
            loss = copy.deepcopy(loss)
            smooth(loss, self.training.label_smoothing)
        if self.training.teacher is None:
            return loss
        if isinstance(self.training.order, Sandwich) and self.training.order.inplace:
            raise ArgumentValueError(
                "in Sandwich() the full level is the teacher of the others: take Sandwich(inplace=False) with another"
            )
        if len(self.net.backbones) != 1:
            raise ArgumentError(f"a teacher is for the levels of one backbone, and {self.net.scheme} has two")
        taxonomy = self.net.taxonomy
        finest = [taxonomy is None or taxonomy.granularities[0] in names for names in self._granularities()]
        return Taught(loss, self.training.teacher, tuple(finest)).train(loss.training)

    def _granularities(self) -> list[tuple[str, ...]]:
        levels = len(self.net.levels)
        return [()] * levels if self.net.taxonomy is None else list(self.net.granularities)

    def begin(self, epoch: int) -> None:
        """An epoch, counted from 0, starts: objectives that draw do so, alike in a run that goes on in it."""
        self._by_hand = self._several
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed_seed(self.training.seed, epoch))
            for module in self.loss.modules():
                resample: Any = getattr(module, "resample", None)
                if callable(resample):
                    resample()
                    break  # it passes it on

    def rate(self, epoch: float) -> float:
        """Sets and gives the learning rate of an epoch or a part of it."""
        rate = self.training.learning_rate(epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        return rate

    def step(self, inputs: Tensor, target: Tensor, seed: int) -> Tensor:
        """Trains on a batch, and gives its loss, detached. `seed`: of the levels that orders draw."""
        given = [(inputs, target)]
        if self.training.accumulate > 1:
            parts = min(self.training.accumulate, len(inputs))
            given = list(zip(inputs.tensor_split(parts), target.tensor_split(parts), strict=True))
        shares = [len(some) / len(inputs) for some, _ in given]
        runs = [self._parts(*one, seed) for one in given]
        total = torch.zeros((), device=inputs.device)
        # The parts of a step, such as its levels, and of each part the shares of the batch.
        while True:
            update = False
            for place, (run, share) in enumerate(zip(runs, shares, strict=True)):
                # What is averaged is known when the forward pass begins.
                last = place == len(runs) - 1 and not self._by_hand
                with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                    with self.accelerator.autocast():
                        part = next(run, None)
                    if part is None:
                        return total
                    update = part.update
                    if part.terms:
                        loss = part.loss if share == 1 else part.loss * share
                        total += loss.detach()
                        if loss.requires_grad:  # not of levels without parameters that are trained
                            self.accelerator.backward(loss)
            if update:
                self._update()

    def _parts(self, inputs: Tensor, target: Any, seed: int) -> Iterator[Part]:
        if self.teacher is not None:
            with torch.no_grad():
                target = (target, self.teacher(inputs))
        order = self.training.order
        generator = None if isinstance(order, Together) else torch.Generator().manual_seed(seed)
        return order.parts(self.called, inputs, target, loss=self.loss, generator=generator)

    def _update(self) -> None:
        if self._by_hand:
            distribution.average_gradients(self.parameters)
            every = all(parameter.grad is not None for parameter in self.parameters)
            self._by_hand = not (every and isinstance(self.training.order, Together))
        if self.training.clip is not None:
            self.accelerator.clip_grad_norm_(self.parameters, self.training.clip)
        self._steps_with.step()
        self._steps_with.zero_grad()
        if self.masks is not None:
            self.masks.step()

    # What a checkpoint holds.

    def state_dict(self) -> dict[str, Any]:
        found = {"optimiser": distribution.whole(self.optimiser.state_dict())}
        if self.masks is not None:
            found["masks"] = self.masks.state_dict()
        if self.accelerator.scaler is not None:
            found["scaler"] = self.accelerator.scaler.state_dict()
        # What losses have drawn is in buffers, which they do not save.
        found["loss"] = {name: buffer for name, buffer in self.loss.named_buffers() if buffer is not None}
        return found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        distribution.load_optimiser(self.optimiser, state["optimiser"])
        if self.masks is not None:
            self.masks.load_state_dict(state["masks"])
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        for name, buffer in state["loss"].items():
            place, _, own = name.rpartition(".")
            setattr(self.loss.get_submodule(place), own, buffer.to(self.accelerator.device))


def choose(net: AnytimeModel, parts: Any) -> None:
    """Which parameters have a gradient; those that the user froze stay so. `ArgumentValueError` where none is left."""
    consensus = {id(parameter) for parameter in net.consensus_parameters()}
    count = 0
    for name, parameter in net.named_parameters():
        if parts == "consensus":
            chosen = id(parameter) in consensus
        elif parts == "levels":
            chosen = id(parameter) not in consensus
        else:
            chosen = parts == "all" or any(fnmatchcase(name, pattern) for pattern in parts)
        parameter.requires_grad_(chosen and parameter.requires_grad)
        count += parameter.requires_grad
    if not count:
        raise ArgumentValueError(f"parts={parts!r}: the network has no such parameters that are trained")


@contextmanager
def gradients_kept(net: nn.Module) -> Iterator[Callable[[], None]]:
    """Which parameters have a gradient is afterwards as before; what it gives makes it so at once."""
    before = {name: parameter.requires_grad for name, parameter in net.named_parameters()}

    def restore() -> None:
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(before[name])

    try:
        yield restore
    finally:
        restore()
