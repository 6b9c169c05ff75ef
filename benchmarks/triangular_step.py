"""What a training step of a triangular network does beside that of its backbone: operations, bytes and time.

    python benchmarks/triangular_step.py
    python benchmarks/triangular_step.py --networks resnet50 --batch 32 --rounds 9

One pass computes all levels of a triangular network; here it is a pass of four widths, forward, loss and backward.
Operations are what torch dispatches on the way, the steps of views left out of the bytes, which are those of what
every other operation reads and writes. Times are those of the process, the least of several rounds in which both
have their turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anytimeify import NestedChannels, kernels, transform

WIDTHS = (0.25, 0.5, 0.75, 1.0)


class Counts(NamedTuple):
    """Of one step."""

    operations: int
    bytes: int


class Counter(TorchDispatchMode):
    """Counts what is dispatched below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = 0
        self.names: dict[str, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.operations += 1
        self.names[str(function)] = self.names.get(str(function), 0) + 1
        if not function.is_view:
            tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, Tensor)]
            self.bytes += sum(distinct(one) for one in tensors)
        return result


def distinct(tensor: Tensor) -> int:
    """Bytes that a tensor reads, where it is expanded once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return torch.Size(sizes).numel() * tensor.element_size()


def backbone(name: str, side: int) -> nn.Module:
    """A network of timm, with a hundred classes."""
    import timm

    more: dict[str, Any] = {"img_size": side, "patch_size": max(1, side // 14)} if name.startswith("vit") else {}
    model: nn.Module = timm.create_model(name, num_classes=100, **more)
    return model


def stepper(model: nn.Module, x: Tensor, target: Tensor) -> Callable[[], None]:
    """One step without the optimiser."""

    def step() -> None:
        y = model(x)
        levels = (y,) if isinstance(y, Tensor) else y.levels
        loss = torch.stack([F.cross_entropy(one, target) for one in levels]).sum()
        for parameter in model.parameters():
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]  # of torch

    return step


def counted(step: Callable[[], None]) -> Counts:
    """Operations and bytes of one step."""
    with Counter() as counter:
        step()
    return Counts(counter.operations, counter.bytes)


def measured(name: str, side: int, batch: int, rounds: int) -> list[str]:
    """The row of one network."""
    torch.manual_seed(0)
    x, target = torch.randn(batch, 3, side, side), torch.randint(100, (batch,))
    plain = backbone(name, side)
    net = transform(backbone(name, side), NestedChannels(WIDTHS, connectivity="triangular"), (x[:2],), verify=False)
    one, other = stepper(plain, x, target), stepper(net, x, target)
    turns: list[tuple[Callable[[], None], AbstractContextManager[None]]] = [
        (one, nullcontext()),
        (other, kernels.form("masked")),
        (other, nullcontext()),
    ]
    best = [float("inf")] * len(turns)
    for attempt in range(rounds + 1):
        for place, (step, form) in enumerate(turns):
            if place == 1:
                form = kernels.form("masked")
            with form:
                start = time.process_time()
                step()
                spent = time.process_time() - start
            best[place] = min(best[place], spent if attempt else float("inf"))
    with kernels.form("masked"):
        ours, theirs = counted(other), counted(one)
    chosen = counted(other)
    shares = [
        f"{ours.operations / theirs.operations:.2f}",
        f"{ours.bytes / theirs.bytes:.2f}",
        f"{best[1] / best[0]:.2f}",
        f"{chosen.operations / theirs.operations:.2f}",
        f"{chosen.bytes / theirs.bytes:.2f}",
        f"{best[2] / best[0]:.2f}",
    ]
    return [name, str(side), str(batch), str(theirs.operations), f"{1000 * best[0]:.0f}", *shares]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=["resnet50", "vit_tiny_patch16_224"])
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | pixels | batch | operations | plain, ms | masked: operations | bytes | time | ", end="")
    print("measured: operations | bytes | time |")
    print("|" + "---|" * 11)
    for name in options.networks:
        print("| " + " | ".join(measured(name, options.side, options.batch, options.rounds)) + " |", flush=True)


if __name__ == "__main__":
    main()
