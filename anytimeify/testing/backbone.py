"""A generated backbone: plain data that builds one architecture at any width, and copies prefixes of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anytimeify.testing.blocks import Block, State
from anytimeify.testing.dims import Dim, Ledger, whole
from anytimeify.testing.entries import Entry, Head, Stream

__all__ = ["Backbone", "Stage", "copy_prefix", "randomise"]


@dataclass(frozen=True)
class Stage:
    """A stream of `channels`: how it begins, and the blocks on it. Grouped layers on the stream use `group_width`."""

    entry: Entry
    channels: int
    blocks: tuple[Block, ...] = ()
    group_width: int = 1

    def stream(self, following: Entry | None) -> Stream:
        grouped = self.entry.grouped or any(block.grouped for block in self.blocks)
        repeats = {block.repeats for block in self.blocks} | ({following.repeats} if following else set())
        return Stream(self.channels, self.group_width, self.group_width if grouped else 1, tuple(repeats - {1}))


@dataclass(frozen=True)
class Backbone:
    """A random network as data: prints as what builds it, compares by value, shrinks field by field.

    `build(width)` constructs the architecture with every channel count replaced by what the width arithmetic of the
    package keeps; `thin(width, full)` also gives it the prefix of every weight of `full`.
    """

    stages: tuple[Stage, ...]
    head: Head
    inputs: int = 3
    side: int = 8
    classes: int = 5
    seed: int = 0

    def build(self, width: float = 1.0, *, multiple_of: int = 1) -> nn.Module:
        """The network with deterministic, non-trivial weights and norm statistics, in train mode."""
        return randomise(self._build(width, multiple_of)[0], self.seed)

    def kept(self, width: float, *, multiple_of: int = 1) -> dict[str, tuple[Dim, ...]]:
        """What every tensor of `build(width)` keeps of the full one, by tensor name; missing names are kept whole."""
        model, ledger = self._build(width, multiple_of)
        return ledger.named(model)

    def exact(self, width: float, *, multiple_of: int = 1) -> bool:
        """Whether the width arithmetic leaves no choice, so that there is one thin network to compare with."""
        return not self._build(width, multiple_of)[1].ambiguous

    def thin(self, width: float, full: nn.Module, *, multiple_of: int = 1) -> nn.Module:
        """The architecture at `width` with the prefix of every parameter and buffer of `full` copied in."""
        model, ledger = self._build(width, multiple_of)
        copy_prefix(full, model, ledger.named(model))
        return model.to(dtype=next(full.parameters()).dtype)

    def example_inputs(self, batch: int = 2) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(self.seed + 1)
        return (torch.randn(batch, self.inputs, self.side, self.side, generator=generator),)

    def _build(self, width: float, multiple_of: int) -> tuple[nn.Module, Ledger]:
        ledger = Ledger(width, multiple_of)
        model = nn.Sequential()
        state = State(whole(self.inputs), self.side)
        following = [*(stage.entry for stage in self.stages[1:]), None]
        for index, (stage, after) in enumerate(zip(self.stages, following, strict=True)):
            layers = nn.Sequential()
            entry, state = stage.entry.build(ledger, state, stage.stream(after))
            layers.add_module("entry", entry)
            for position, block in enumerate(stage.blocks):
                module, state = block.build(ledger, state)
                layers.add_module(f"block{position}", module)
            model.add_module(f"stage{index}", layers)
        model.add_module("head", self.head.build(ledger, state, self.classes))
        return model, ledger


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and floating-point buffer a random value, norm statistics and affine parameters included,
    at a scale that keeps activations of order one. Returns the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                if name.endswith("num_batches_tracked"):
                    tensor.fill_(7)
            elif tensor.ndim <= 1 and name.endswith(("weight", "running_var")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            else:
                fan_in = math.prod(tensor.shape[1:]) if tensor.ndim > 1 else 9
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / math.sqrt(fan_in))
    return model


def copy_prefix(full: nn.Module, thin: nn.Module, kept: Mapping[str, tuple[Dim, ...]]) -> None:
    """Copy what `kept` says of every parameter and buffer of `full` into `thin`."""
    source = full.state_dict()
    result: dict[str, Tensor] = {}
    for name, target in thin.state_dict().items():
        value = source[name]
        for index, dim in enumerate(kept.get(name, ())):
            assert dim.full == value.shape[index], f"{name}: dimension {index} has {value.shape[index]}, not {dim.full}"
            value = value.index_select(index, torch.tensor(dim.kept, dtype=torch.int64))
        assert value.shape == target.shape, f"{name}: {tuple(value.shape)} copied into {tuple(target.shape)}"
        result[name] = value
    thin.load_state_dict(result)
