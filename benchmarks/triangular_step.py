"""What a training step of a triangular network does beside that of its backbone: operations, bytes and time.

    python benchmarks/triangular_step.py
    python benchmarks/triangular_step.py --networks resnet50 --batch 16 --rounds 9

One pass computes four widths: forward, loss of every level, backward. Operations are all that torch dispatches in a
step, and those of them that are no views; bytes are what the latter read and write, a mask among it. An operator of
ours counts once, as one of torch's does; `inside` counts what it runs instead, on this device, where it is no kernel of
its own. All are counted at 224 pixels. Times are those of the process on one thread, the least of several rounds in
which all have their turn, at 32 pixels. All are shares of the backbone's, with masked weights and with what has been
measured to be faster.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anytimeify import NestedChannels, kernels, transform
from anytimeify.kernels import norm_operators, operators

FORMS: tuple[kernels.Kind, ...] = ("masked", "measured")
WIDTHS = (0.25, 0.5, 0.75, 1.0)


aten, ours = torch.ops.aten, torch.ops.anytimeify
_MOVES_NOTHING = {aten._unsafe_view.default, aten.empty.memory_format, aten.new_empty_strided.default}
_OURS = {  # what operators of ours run
    ours.prefix_norm_forward.default: norm_operators.forward,
    ours.prefix_norm_backward.default: norm_operators.backward,
    ours.triangular_conv_in_blocks.default: operators._conv,
    ours.triangular_conv_in_blocks_backward.default: operators._conv_backward,
    ours.triangular_linear_in_blocks.default: operators._linear,
    ours.triangular_linear_in_blocks_backward.default: operators._linear_backward,
}


class Counts(NamedTuple):
    """Of one step."""

    operations: int
    computing: int  # those that are no views
    bytes: int


class Counter(TorchDispatchMode):
    """Counts what is dispatched below autograd; `inside`: what operators of ours run, instead of these."""

    def __init__(self, *, inside: bool) -> None:
        super().__init__()
        self.inside = inside
        self.operations = self.computing = self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.inside and function in _OURS:
            with self:
                return _OURS[function](*args, **(kwargs or {}))
        result = function(*args, **(kwargs or {}))
        self.operations += 1
        if not function.is_view and function not in _MOVES_NOTHING:
            self.computing += 1
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

    more: dict[str, Any] = (
        {"img_size": side, "patch_size": side // 14 if side > 32 else 4} if name.startswith("vit") else {}
    )
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


def counted(step: Callable[[], None], *, inside: bool = False) -> Counts:
    """Operations and bytes of one step."""
    with Counter(inside=inside) as counter:
        step()
    return Counts(counter.operations, counter.computing, counter.bytes)


def steps(name: str, side: int, batch: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """That of the backbone, and that of the triangular network."""
    torch.manual_seed(0)
    x, target = torch.randn(batch, 3, side, side), torch.randint(100, (batch,))
    net = transform(backbone(name, side), NestedChannels(WIDTHS, connectivity="triangular"), (x[:2],), verify=False)
    return stepper(backbone(name, side), x, target), stepper(net, x, target)


def compared(name: str, options: argparse.Namespace) -> list[str]:
    """The rows of one network: masked, and measured."""
    plain, net = steps(name, 224, options.counted)
    base, shares = counted(plain), []
    for form in FORMS:
        with kernels.form(form):
            net()  # measures
            found = [*counted(net), *counted(net, inside=True)]
        shares.append([f"{one / other:.2f}" for one, other in zip(found, [*base, *base], strict=True)])
    times = timed(*steps(name, 32, options.batch), options.rounds)
    return [
        f"| {name} | {base.operations} | {1000 * times[0]:.0f} | {form} | {' | '.join(share)} | {one / times[0]:.2f} |"
        for form, share, one in zip(FORMS, shares, times[1:], strict=True)
    ]


def timed(plain: Callable[[], None], net: Callable[[], None], rounds: int) -> list[float]:
    """Seconds of the backbone's step and of the network's in every form."""
    best = [float("inf")] * (1 + len(FORMS))
    for attempt in range(rounds + 1):
        for place, form in enumerate(("masked", *FORMS)):
            with kernels.form(form):
                start = time.process_time()
                (net if place else plain)()
                spent = time.process_time() - start
            best[place] = min(best[place], spent if attempt else float("inf"))
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=["resnet50", "vit_tiny_patch16_224"])
    parser.add_argument("--batch", type=int, default=32, help="of the steps that are timed")
    parser.add_argument("--counted", type=int, default=16, help="the batch of the steps that are counted")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = ("operations", "no views", "bytes")
    print(f"| network | operations | ms | form | {' | '.join((*names, *(f'inside: {one}' for one in names)))} | time |")
    print("|" + "---|" * 11)
    for name in options.networks:
        print("\n".join(compared(name, options)), flush=True)


if __name__ == "__main__":
    main()
