"""Does distilling from the ensemble help its first leaf? Two losses, several seeds, handwritten digits.

    python examples/ensemble_digits.py [--seeds 5] [--out docs/ensemble_digits.md]

A small network becomes a tree of four leaves. It is trained with the leaves' own cross-entropies (L_I), and with
hierarchical co-distillation (L_I + L_HD, paper HNE). Needs `pip install anytimeify scikit-learn` and a few minutes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from anytimeify import AnytimeModel, HierarchicalEnsemble, transform
from anytimeify.losses import HierarchicalCoDistillation, IndependentLoss, diversity

EPOCHS, BATCH, TRAINING = 150, 40, 400
SCHEME = HierarchicalEnsemble(cuts=("stem", "block1"))
LOSSES = {"L_I": IndependentLoss(), "L_I + L_HD": HierarchicalCoDistillation()}


class DigitNet(nn.Module):
    """Three convolutions for images of 8 x 8 pixels. It knows nothing of ensembles."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = layer(1, width, 1)
        self.block1 = layer(width, 2 * width, 2)
        self.block2 = layer(2 * width, 2 * width, 1)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block2(self.block1(self.stem(x))).mean((2, 3)))
        return logits


def layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A convolution with its norm and activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def main() -> None:
    """Train, compare, print; with `--out` also write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, list[list[float]]] = {name: [] for name in LOSSES}
    for seed in range(options.seeds):
        data = digits(seed)
        for name, loss in LOSSES.items():
            torch.manual_seed(seed)
            net = transform(DigitNet(), SCHEME, data[0][:2], loss=loss)
            fit(net, data[0], data[1])
            results[name].append(evaluate(net, data[2], data[3]))
            print(seed, name, " ".join(f"{value:.3f}" for value in results[name][-1]), flush=True)
    table = page(results)
    print(table)
    if options.out:
        options.out.write_text(
            PAGE.format(command=f"python examples/ensemble_digits.py --seeds {options.seeds}", table=table,
                        training=TRAINING, epochs=EPOCHS, seeds=options.seeds)
        )  # fmt: skip


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A few images for training, so that there is something to gain, and all others for testing."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    images = torch.tensor(data.images, dtype=torch.float32)[order].unsqueeze(1) / 8 - 1
    labels = torch.tensor(data.target)[order]
    return images[:TRAINING], labels[:TRAINING], images[TRAINING:], labels[TRAINING:]


def fit(net: AnytimeModel, images: Tensor, labels: Tensor) -> None:
    """The paper's optimiser, for a short while; images shifted by up to a pixel."""
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    net.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            row, column = (int(shift) for shift in torch.randint(0, 3, (2,)))
            shifted = F.pad(images[batch], (1, 1, 1, 1), value=-1)[..., row : row + 8, column : column + 8]
            optimiser.zero_grad()
            net.loss(net(shifted), labels[batch]).backward()
            optimiser.step()
        schedule.step()


def evaluate(net: AnytimeModel, images: Tensor, labels: Tensor) -> list[float]:
    """Accuracy in percent of every level, and the diversity of the leaves."""
    net.eval()
    with torch.inference_mode():
        outputs = net(images)
    accuracies = [100 * float((level.argmax(1) == labels).float().mean()) for level in outputs.levels]
    return [*accuracies, float(diversity(outputs))]


def page(results: Mapping[str, list[list[float]]]) -> str:
    """Means and standard deviations over seeds, and how often the distilled first leaf is the better one."""
    lines = ["| loss | 1 leaf | 2 leaves | 4 leaves | diversity |", "|---|---|---|---|---|"]
    for name, rows in results.items():
        columns = list(zip(*rows, strict=True))
        cells = [f"{statistics.mean(c):.2f} ± {statistics.stdev(c) if len(c) > 1 else 0.0:.2f}" for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    (plain, distilled) = results.values()
    gains = [new[0] - old[0] for new, old in zip(distilled, plain, strict=True)]
    won = sum(gain > 0 for gain in gains)
    lines += ["", f"One leaf gains {statistics.mean(gains):+.2f} points; it is better in {won} of {len(gains)} seeds."]
    return "\n".join(lines)


PAGE = """# Hierarchical co-distillation on digits

`{command} --out docs/ensemble_digits.md`: accuracy in percent on the test images, mean and standard deviation over
{seeds} seeds (data split, initialisation and order), {training} training images, {epochs} epochs. Diversity is the
standard deviation of the leaves' logits, averaged over classes and images.

{table}
"""

if __name__ == "__main__":
    main()
