"""Do the widths of a nested network need norms of their own? Private against shared norms on handwritten digits.

    python examples/nested_digits.py [--seeds 5] [--first 0] [--out docs/nested_digits.md]

A small ResNeXt, whose blocks have four branches, is trained at four widths at once: with norms of their own for every
width and with norms that all widths share (Lee and Shin 2018 compare the two), where levels keep some of the branches
of every block and where they keep a share of all channels. Beside them triangular connectivity, under which channels
have the same values at every width, so that shared norms fit all of them; and networks of each width that train alone.
Needs `pip install anytimeify scikit-learn`, and about a quarter of an hour on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from branches_digits import Data, accuracies, arguments, digits, fit, results, spread, table
from torch import Tensor, nn

from anytimeify import NestedChannels, SchemeError, transform
from anytimeify.calibration import calibrate

TRAINING, EPOCHS, BRANCHES = 500, 40, 4
WIDTHS = tuple((branch + 1) / BRANCHES for branch in range(BRANCHES))


class Block(nn.Module):
    """Branches around which the input is added, norms and activations before convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.BatchNorm2d(size) for size in (inputs, outputs, outputs))
        self.into = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.middle = nn.Conv2d(outputs, outputs, 3, stride, padding=1, groups=BRANCHES, bias=False)
        self.out = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.norm1(x))
        added = self.out(F.relu(self.norm3(self.middle(F.relu(self.norm2(self.into(first)))))))
        short: Tensor = self.shortcut(x)
        return short + added


class DigitNeXt(nn.Module):
    """Three stages of two blocks for images of 8 x 8 pixels. It knows nothing of levels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stage1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.stage2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.stage3 = nn.Sequential(Block(2 * width, 4 * width, 2), Block(4 * width, 4 * width, 1))
        self.norm, self.head = nn.BatchNorm2d(4 * width), nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        logits: Tensor = self.head(F.relu(self.norm(x)).mean((2, 3)))
        return logits


def backbone(seed: int) -> DigitNeXt:
    """The same initialisation for the same seed, whatever becomes of it."""
    torch.manual_seed(seed)
    return DigitNeXt()


def nested(scheme: NestedChannels, data: Data, *, estimated: bool = False) -> list[float]:
    """The accuracies of all levels of one network, cheapest first, as it stands after training; `estimated` gives every
    level statistics of the training images before."""
    net = transform(backbone(data.seed), scheme, data.images[:2])
    fit(net, lambda images, labels: net.loss(net(images), labels), data)
    if not estimated:
        return accuracies(net(data.test_images).levels, data)
    levels: list[Tensor] = []
    for level in net.levels:
        alone = net.extract(level)
        calibrate(alone, data.images.split(50), lambda images, module=alone: module(images))
        levels.append(alone(data.test_images))
    return accuracies(levels, data)


def alone(where: str, data: Data) -> list[float]:
    """The accuracies of networks of every width, each trained by itself from the same start."""
    net = transform(backbone(data.seed), NestedChannels(WIDTHS, where=where), data.images[:2], verify=False)
    logits: list[Tensor] = []
    for level in net.levels:
        small: Any = net.extract(level)
        for module in small.modules():
            module.training = True
        for parameter in small.parameters():
            parameter.requires_grad_()
        fit(small, lambda images, labels, module=small: F.cross_entropy(module(images), labels), data)
        logits.append(small(data.test_images))
    return accuracies(logits, data)


def dense(where: str, norms: str, *, estimated: bool = False) -> Callable[[Data], list[float]]:
    """A row of dense connectivity."""
    scheme = NestedChannels(WIDTHS, where=where, norms=norms)  # type: ignore[arg-type]  # a literal below
    return lambda data: nested(scheme, data, estimated=estimated)


ROWS: Mapping[str, Mapping[str, Callable[[Data], list[float]]]] = {
    "branches of every block": {
        "each width alone": lambda data: alone("inner", data),
        "private norms": dense("inner", "private"),
        "shared norms": dense("inner", "shared"),
        "shared norms, statistics re-estimated": dense("inner", "shared", estimated=True),
    },
    "all channels": {
        "each width alone": lambda data: alone("all", data),
        "private norms": dense("all", "private"),
        "shared norms": dense("all", "shared"),
        "shared norms, statistics re-estimated": dense("all", "shared", estimated=True),
        "triangular, shared norms": lambda data: nested(
            NestedChannels(WIDTHS, connectivity="triangular", norms="shared"), data
        ),
    },
}


def main() -> None:
    """Train, compare, print; with `--out` also write the page."""
    options = arguments(__doc__ or "")
    seeds = range(options.first, options.first + options.seeds)
    text = [
        f"`python examples/nested_digits.py --seeds {options.seeds} --first {options.first}`: accuracy in percent on "
        f"the test images, mean and standard deviation over {options.seeds} seeds (split, initialisation, order of the "
        f"images), {TRAINING} training images, {EPOCHS} epochs.",
    ]
    for what, rows in ROWS.items():
        found: dict[str, list[list[float]]] = {}
        for name, run in rows.items():
            try:
                data = (digits(seed, TRAINING, EPOCHS) for seed in seeds)
                found[name] = list(results(f"{what}, {name}", run, data))
            except SchemeError as error:
                print(f"{name} is left out: {error}")
        text += ["", *table([what, *(f"width {width:g}" for width in WIDTHS)], found), "", *comparisons(found)]
    print("\n".join(text))
    if options.out:
        options.out.write_text(PAGE + "\n".join(text) + "\n")


def comparisons(found: Mapping[str, Sequence[Sequence[float]]]) -> list[str]:
    """Seed by seed: by how much each row is better than private norms, at the smallest width and at the full one."""
    private = found["private norms"]
    lines = []
    for name, seeds in found.items():
        if name != "private norms":
            ends = [
                spread([one[level] - other[level] for one, other in zip(seeds, private, strict=True)])
                for level in (0, -1)
            ]
            lines.append(
                f"- {name}, against private norms: {ends[0]} points at the smallest width, {ends[1]} at the full one"
            )
    return lines


PAGE = """# Do widths need norms of their own?

A small ResNeXt on images of 8 x 8 pixels (scikit-learn's handwritten digits), trained at four widths at once. Under
dense connectivity a channel has other values at every width, for it reads other channels. One set of running statistics
then mixes those of all widths and fits none; in training each width normalises with its own batch. Networks with shared
norms are evaluated as they are, and once more after the statistics of every level were estimated anew from the training
images. Under triangular connectivity a channel has the same value at every width, and shared norms are what it needs;
its full width has fewer weights than the others', for later channels are not read by earlier ones. Nothing was tuned
for these tables: optimiser and learning rate are those of `examples/branches_digits.py`.

"""

if __name__ == "__main__":
    main()
