"""Do exits that mimic each other help the network they fork off, and two networks each other? Handwritten digits.

    python examples/branches_digits.py [--seeds 10] [--first 0] [--out docs/branches_digits.md]

A small residual network gets two exits made of its own blocks. It is trained alone, with labels for every exit (deep
supervision), and with exits that also mimic each other (Li and Chen 2020). Then two such networks train together: with
each other's predictions (deep mutual learning), and with each other's exits as well (Yao and Sun 2020). Needs
`pip install anytimeify scikit-learn`, and about five minutes on one core.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from anytimeify import AuxiliaryBranches, MutualDistillation, transform
from anytimeify.losses import HierarchicalMimicking

TRAINING, BATCH, EPOCHS = 300, 50, 60
# Of 0.01, 0.03, 0.1 and 0.3, this rate is the best for the network alone, on seeds 100 to 102.
RATE, DECAY = 0.03, 5e-4
BRANCHES = AuxiliaryBranches(2)


@dataclass(frozen=True)
class Data:
    """Images (N, 1, 8, 8) from -1 to 1 and their labels; for how many epochs they are learnt, and in which order."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    epochs: int
    seed: int


class Block(nn.Module):
    """Two convolutions around which the input is added."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.shortcut(x))


class DigitNet(nn.Module):
    """Three stages of two residual blocks for images of 8 x 8 pixels. It knows nothing of exits."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.stage2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.stage3 = nn.Sequential(Block(2 * width, 4 * width, 2), Block(4 * width, 4 * width, 1))
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stage3(self.stage2(self.stage1(self.stem(x)))).mean((2, 3)))
        return logits


def alone(data: Data) -> list[float]:
    """The accuracy of the backbone, trained by itself."""
    (net,) = backbones(data.seed, 1)
    fit(net, lambda images, labels: F.cross_entropy(net(images), labels), data)
    return accuracies([net(data.test_images)], data)


def with_exits(data: Data, loss: HierarchicalMimicking) -> list[float]:
    """The accuracies of a network with exits: of the backbone, then of every exit, cheapest first."""
    (backbone,) = backbones(data.seed, 1)
    net = transform(backbone, BRANCHES, data.images[:2], loss=loss)
    fit(net, lambda images, labels: net.loss(net(images), labels), data)
    *exits, full = net(data.test_images).levels
    return accuracies([full, *exits], data)


def together(data: Data, branches: int) -> list[float]:
    """The accuracies of two networks that teach each other, with so many exits each."""
    first, second = backbones(data.seed, 2)
    net = transform((first, second), MutualDistillation(branches), data.images[:2])
    fit(net, lambda images, labels: net.loss(net(images), labels), data)
    heads = net(data.test_images).members
    return accuracies([heads[branches], heads[-1]], data)


ONE_NETWORK: Mapping[str, Callable[[Data], list[float]]] = {
    "plain": alone,
    "deep supervision": lambda data: with_exits(data, HierarchicalMimicking(alpha=0.0)),
    "mimicking": lambda data: with_exits(data, HierarchicalMimicking()),
}
TWO_NETWORKS: Mapping[str, Callable[[Data], list[float]]] = {
    "deep mutual learning": lambda data: together(data, 0),
    "dense cross-layer": lambda data: together(data, 2),
}

INTRODUCTION = """# Branches on digits

Do exits that mimic each other help the network they fork off, and do two networks with exits help each other more than
two without? A residual network of three stages, on images of 8 x 8 pixels (scikit-learn's handwritten digits), with two
exits that `AuxiliaryBranches(2)` places. For one seed the images, their order and the initialisation of the (first)
backbone are the same in every row. Nothing was tuned for these tables but the learning rate, the best one of four for
the network alone, on three other seeds with right labels. Seeds 0 to 4 were run first, then all ten. A standard
deviation is that of single runs, not of the mean.
"""


def main() -> None:
    """Train, compare, print; with `--out` also write the tables into a page."""
    options = arguments(__doc__ or "")
    seeds = range(options.first, options.first + options.seeds)
    one = {name: list(results(name, run, map(digits, seeds))) for name, run in ONE_NETWORK.items()}
    two = {name: list(results(name, run, map(digits, seeds))) for name, run in TWO_NETWORKS.items()}
    text = "\n".join(
        [
            f"`python examples/branches_digits.py --seeds {options.seeds} --first {options.first}`: accuracy in "
            f"percent on the test images, mean and standard deviation over {options.seeds} seeds (split, "
            f"initialisation, order of the images), {TRAINING} training images, {EPOCHS} epochs.",
            "",
            *table(["one network", "backbone", "first exit", "second exit"], one),
            "",
            *table(["two networks", "first", "second"], {"one alone": one["plain"], **two}),
            "",
            *(gain(name, rows, "plain", one["plain"]) for name, rows in {**one, **two}.items() if name != "plain"),
            gain("mimicking", one["mimicking"], "deep supervision", one["deep supervision"]),
            gain("dense cross-layer", two["dense cross-layer"], "deep mutual learning", two["deep mutual learning"]),
        ]
    )
    print(text)
    if options.out:
        write_section(options.out, "Clean labels", text)


def arguments(description: str) -> argparse.Namespace:
    """Which seeds, and where the page is."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=Path)
    torch.set_num_threads(1)
    return parser.parse_args()


def digits(seed: int, training: int = TRAINING, epochs: int = EPOCHS, wrong: float = 0.0) -> Data:
    """A few images for training, so that there is something to gain, and all others for testing.

    `wrong`: the share of the training images that get a label drawn among all ten.
    """
    data = load_digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.target), generator=generator)
    images = torch.tensor(data.images, dtype=torch.float32)[order].unsqueeze(1) / 8 - 1
    labels = torch.tensor(data.target)[order]
    given = labels[:training].clone()
    given[: round(wrong * training)] = torch.randint(10, (round(wrong * training),), generator=generator)
    return Data(images[:training], given, images[training:], labels[training:], epochs, seed)


def backbones(seed: int, count: int) -> list[DigitNet]:
    """Networks with the same initialisation for the same seed, whatever becomes of them."""
    torch.manual_seed(seed)
    return [DigitNet() for _ in range(count)]


def fit(net: nn.Module, objective: Callable[[Tensor, Tensor], Tensor], data: Data) -> None:
    """The papers' optimiser for a short while, images shifted by up to a pixel, and the network in evaluation mode."""
    generator = torch.Generator().manual_seed(data.seed)
    optimiser = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, data.epochs)
    net.train()
    for _ in range(data.epochs):
        for batch in torch.randperm(len(data.images), generator=generator).split(BATCH):
            row, column = torch.randint(0, 3, (2,), generator=generator).tolist()
            shifted = F.pad(data.images[batch], (1, 1, 1, 1), value=-1)[..., row : row + 8, column : column + 8]
            optimiser.zero_grad()
            objective(shifted, data.labels[batch]).backward()
            optimiser.step()
        schedule.step()
    net.eval()


def accuracies(logits: Iterable[Tensor], data: Data) -> list[float]:
    """In percent, on the test images."""
    return [100 * float((one.argmax(1) == data.test_labels).float().mean()) for one in logits]


def results(name: str, run: Callable[[Data], list[float]], data: Iterable[Data]) -> Iterator[list[float]]:
    """One row of accuracies for each seed, printed as they come."""
    for one in data:
        row = run(one)
        print(one.seed, name, " ".join(f"{value:.2f}" for value in row), flush=True)
        yield row


def table(titles: Sequence[str], rows: Mapping[str, list[list[float]]]) -> Iterator[str]:
    """Means and standard deviations over seeds; what a row does not have stays empty."""
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for name, seeds in rows.items():
        cells = [spread(column) for column in zip(*seeds, strict=True)]
        yield f"| {' | '.join([name, *cells, *[''] * (len(titles) - 1 - len(cells))])} |"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.2f}"


def gain(name: str, rows: list[list[float]], baseline: str, others: list[list[float]]) -> str:
    """By how much the first column is better than that of a baseline, seed by seed."""
    gains = [row[0] - other[0] for row, other in zip(rows, others, strict=True)]
    better = sum(one > 0 for one in gains)
    return f"- {name}, against {baseline}: {spread(gains)} points, better in {better} of {len(gains)} seeds"


def write_section(page: Path, title: str, text: str) -> None:
    """Replaces a section of a page, or adds it at the end."""
    head, *sections = page.read_text().split("\n## ") if page.exists() else [INTRODUCTION]
    sections = [section.strip("\n") for section in sections if not section.startswith(f"{title}\n")]
    page.write_text("\n\n## ".join([head.strip("\n"), *sections, f"{title}\n{text}"]) + "\n")


if __name__ == "__main__":
    main()
