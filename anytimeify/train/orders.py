"""In which order the levels of an anytime model are trained within a step.

    order = Sandwich(random=2)
    for inputs, target in batches:
        order.step(net, inputs, target, optimizer, backward=accelerator.backward)

An order is a frozen dataclass and keeps nothing between steps. `net` is an `AnytimeModel`, or a wrapper that calls one
with the same arguments and holds it as `module` (`DistributedDataParallel`) or `_orig_mod` (`torch.compile`).

Orders that run levels one at a time pay for those levels alone, and hold the activations of one of them at a time. They
leave parameters of the other levels without a gradient, for which `DistributedDataParallel` wants
`find_unused_parameters=True`; its processes have to run the same levels, so orders that draw take a `generator` seeded
alike in all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from anytimeify.errors import ArgumentError, ArgumentValueError
from anytimeify.losses.objective import cross_entropy, divergence
from anytimeify.runtime.model import AnytimeModel
from anytimeify.train.checks import check_fields, check_range

__all__ = ["LevelTerms", "OneAfterTheOther", "Order", "Part", "Sandwich", "Together"]


@runtime_checkable
class LevelTerms(Protocol):
    """A loss that is a sum over levels, so that each level can be trained by itself."""

    def level_terms(self, index: int, count: int, prediction: Any, target: Any) -> Mapping[str, Tensor]:
        """The summands of level `index` of `count`, as they stand in `terms`."""
        ...


@dataclass(frozen=True)
class Part:
    """What is run between two backward passes.

    Fields
        terms: the summands by name; none where a level has no objective (a consensus that averages), and then there is
            nothing to go backward from.
        update: whether the parameters are changed after it.
    """

    terms: Mapping[str, Tensor]
    update: bool = True

    @property
    def loss(self) -> Tensor:
        first, *rest = self.terms.values()
        return sum(rest, first)


class Order(ABC):
    """Base of the orders."""

    @abstractmethod
    def parts(
        self,
        net: nn.Module,
        inputs: Any,
        target: Any,
        *,
        loss: nn.Module | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Part]:
        """What to run for one batch, for loops that `step` is too little for. A part is computed when it is asked for:
        the parameters may be changed between two of them."""

    def step(
        self,
        net: nn.Module,
        inputs: Any,
        target: Any,
        optimizer: Any,
        *,
        loss: nn.Module | None = None,
        generator: torch.Generator | None = None,
        backward: Callable[[Tensor], Any] | None = None,
        before_update: Callable[[], Any] | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> dict[str, Tensor]:
        """Trains on one batch, and gives the summands of the loss by name, detached.

        Parameters
            inputs: a tensor, a tuple of positional or a mapping of keyword arguments of the model.
            target: as the loss wants it.
            optimizer: has `step()` and `zero_grad()`; gradients are none after every update, and should be at the
                start.
            loss: in place of the model's own.
            generator: what levels are drawn with, on the CPU; the global one by default.
            backward: called with a loss, such as `accelerator.backward`; by default its `backward`.
            before_update: called before every `optimizer.step()`, for clipping gradients.
            autocast: makes the context of the forward passes, such as `partial(torch.autocast, "cuda")`.
        """
        done: dict[str, Tensor] = {}
        parts = self.parts(net, inputs, target, loss=loss, generator=generator)
        while True:
            with autocast():
                part = next(parts, None)
            if part is None:
                return done
            if part.terms:
                (backward or Tensor.backward)(part.loss)
            done.update({name: term.detach() for name, term in part.terms.items()})
            if part.update:
                if before_update is not None:
                    before_update()
                optimizer.step()
                optimizer.zero_grad()


@dataclass(frozen=True)
class Together(Order):
    """All levels in one forward and one backward pass, one update: the model's loss as it is."""

    name: str = field(default="together", init=False)

    def parts(
        self,
        net: nn.Module,
        inputs: Any,
        target: Any,
        *,
        loss: nn.Module | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Part]:
        objective = loss if loss is not None else _model(net).loss
        outputs = _run(net, inputs)
        if callable(getattr(objective, "terms", None)):
            yield Part(objective.terms(outputs, target))  # type: ignore[operator]  # asked in the line above
        else:
            yield Part({"loss": objective(outputs, target)})


@dataclass(frozen=True)
class OneAfterTheOther(Order):
    """Level after level, cheapest first, each in a pass of its own through the level alone.

    Fields
        update: `"each"`: the parameters are updated after every level, which makes as many steps of the optimiser as
            there are levels, and the next level is run with the new ones; nothing is frozen (how Kim et al. 2018 train
            NestedNet on ImageNet). `"accumulate"`: gradients are added up for one update, that of `Together` with less
            memory (how Lee and Shin 2018 train I-ResNeXt).
        same_batch: whether every level reads the whole batch; otherwise the batch is cut into as many equal parts, a
            part for each level.

    The loss has to be a sum over levels (`LevelTerms`), as `JointLoss` is; its weights hold. Raises `TypeError` for
    others.
    """

    update: Literal["each", "accumulate"] = "each"
    same_batch: bool = True
    name: str = field(default="one after the other", init=False)

    def __post_init__(self) -> None:
        check_fields(self)

    def parts(
        self,
        net: nn.Module,
        inputs: Any,
        target: Any,
        *,
        loss: nn.Module | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Part]:
        model = _model(net)
        objective = _by_level(loss if loss is not None else model.loss)
        count = len(model.levels)
        shares = [(inputs, target)] * count
        if not self.same_batch:
            shares = list(zip(_shares(inputs, count), _shares(target, count), strict=True))
        for index, (own_inputs, own_target) in enumerate(shares):
            prediction = _run(net, own_inputs, index, model.taxonomy is not None)
            terms = objective.level_terms(index, count, prediction, own_target)
            yield Part(terms, update=bool(terms) if self.update == "each" else index == count - 1)


@dataclass(frozen=True)
class Sandwich(Order):
    """The full level, the cheapest one and some between that are drawn anew at each step, each in a pass of its own;
    gradients are added up for one update. The sandwich rule of Yu and Huang 2019.

    Fields
        random: how many levels are drawn between; all of them where there are no more.
        inplace: whether the full level alone learns from the labels, and the others from its detached soft predictions
            (in-place distillation); of the model's loss, the label smoothing alone is read then, and what a taxonomy
            makes of the labels. Otherwise each has its own terms of the loss, which has to be a sum over levels.
        temperature: T of the distillation, on both sides, with T^2.

    For widths that are no levels, and drawn from a range, take `anytimeify.runtime.sampling.SandwichSampler`.
    """

    random: int = 2
    inplace: bool = True
    temperature: float = 1.0
    name: str = field(default="sandwich", init=False)

    def __post_init__(self) -> None:
        check_fields(self)
        check_range(self, 0, "random")
        if not self.temperature > 0:
            raise ArgumentValueError(f"temperature is {self.temperature}: expected a positive number")

    def draw(self, count: int, full: int = -1, generator: torch.Generator | None = None) -> tuple[int, ...]:
        """The levels of one step, of `count`, in the order in which they run: full, cheapest, the drawn ones."""
        ends = dict.fromkeys((full % count, 0))
        between = [index for index in range(count) if index not in ends]
        drawn = torch.randperm(len(between), generator=generator)[: self.random].sort().values.tolist()
        return (*ends, *(between[place] for place in drawn))

    def parts(
        self,
        net: nn.Module,
        inputs: Any,
        target: Any,
        *,
        loss: nn.Module | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Part]:
        model = _model(net)
        several = model.taxonomy is not None
        by_loss = not self.inplace or several
        given = loss if loss is not None else model.loss
        objective = _by_level(given) if by_loss else _Labels(getattr(given, "label_smoothing", 0.0))
        count = len(model.levels)
        full, *others = self.draw(count, model.full, generator)
        teacher = _run(net, inputs, full, several)
        yield Part(objective.level_terms(full, count, teacher, target), update=not others)
        names = model.granularities[full] if several else ("",)
        known = {name: one.detach() for name, one in zip(names, _each(teacher), strict=True)}
        del teacher
        for index in others:
            prediction = _run(net, inputs, index, several)
            if self.inplace:
                names = model.granularities[index] if several else ("",)
                terms: Mapping[str, Tensor] = self._distillation(index, names, _each(prediction), known)
            else:
                terms = objective.level_terms(index, count, prediction, target)
            yield Part(terms, update=index == others[-1])

    def _distillation(
        self, index: int, names: Sequence[str], students: Sequence[Tensor], known: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ArgumentValueError(
                f"level {index} predicts {unknown[0]!r}, and the full level does not, so nothing can teach it that in "
                "place: take Sandwich(inplace=False)"
            )
        return {
            f"{name}{'/' if name else ''}level{index}/distillation": divergence(one, known[name], self.temperature)
            for name, one in zip(names, students, strict=True)
        }


@dataclass(frozen=True)
class _Labels:
    """The cross-entropy of one level."""

    label_smoothing: float

    def level_terms(self, index: int, count: int, prediction: Any, target: Any) -> dict[str, Tensor]:
        return {f"level{index}/cross_entropy": cross_entropy(prediction, target, self.label_smoothing)}


def _model(net: nn.Module) -> AnytimeModel:
    """The model inside wrappers."""
    found: Any = net
    while not isinstance(found, AnytimeModel):
        inner = getattr(found, "module", None) or getattr(found, "_orig_mod", None)
        if inner is None:
            raise ArgumentError(f"{type(net).__name__} is no AnytimeModel, nor a wrapper of one")
        found = inner
    return found


def _by_level(loss: nn.Module) -> LevelTerms:
    if not isinstance(loss, LevelTerms):
        raise ArgumentError(
            f"{type(loss).__name__} is no sum over levels (it has no `level_terms`), so levels cannot be trained one "
            "after the other: give a loss such as JointLoss(), or take the order Together()"
        )
    return loss


def _run(net: nn.Module, inputs: Any, level: int | None = None, several: bool = False) -> Any:
    """Outputs, or what one level predicts; of labels of several granularities a tuple."""
    chosen = {} if level is None else {"level": level} | ({"granularity": "all"} if several else {})
    if isinstance(inputs, Mapping):
        return net(**inputs, **chosen)
    return net(*inputs, **chosen) if isinstance(inputs, tuple | list) else net(inputs, **chosen)


def _shares(batch: Any, count: int) -> Sequence[Any]:
    """A batch cut into so many parts along its first dimension, whatever the structure that holds it."""
    if isinstance(batch, Tensor):
        if len(batch) < count:
            raise ArgumentValueError(f"a batch of {len(batch)} cannot be cut into parts for {count} levels")
        return batch.tensor_split(count)
    if isinstance(batch, Mapping):
        cut = {key: _shares(value, count) for key, value in batch.items()}
        return [{key: parts[place] for key, parts in cut.items()} for place in range(count)]
    if isinstance(batch, tuple | list):
        return list(zip(*(_shares(one, count) for one in batch), strict=True))
    return [batch] * count


def _each(prediction: Any) -> Sequence[Tensor]:
    """The predictions of a level, one for each granularity of the labels."""
    return prediction if isinstance(prediction, tuple) else (prediction,)
