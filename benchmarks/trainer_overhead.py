"""What a step of `fit` costs over a loop by hand, on the same network and the same batches, in one process.

    python -m benchmarks.trainer_overhead [--steps 40] [--rounds 5]

Both read the same tensors, normalise them in the same way and train by SGD. Rounds of the two take turns; processor
time, user and system, is what is compared, and the quotient is the median over the rounds.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torch import nn

from anytimeify import AnytimeModel, NestedChannels, transform
from anytimeify.papers import recipe
from anytimeify.train import Data, Held, Optimiser, Schedule, Training, fit

BATCH = 16


def data(steps: int) -> Data:
    """Random images, as many as the steps take."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(256, (steps * BATCH, 3, 32, 32), generator=generator).to(torch.uint8)
    labels = torch.randint(10, (len(inputs),), generator=generator)
    one = Held(inputs[:1], labels[:1])  # evaluation is not a step
    return Data("random", Held(inputs, labels), one, tuple("0123456789"), None, (0.5,) * 3, (0.25,) * 3)


def by_hand(net: AnytimeModel, given: Data, steps: int) -> None:
    """An epoch of a plain loop."""
    optimiser = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    mean, std = (torch.tensor(one).reshape(3, 1, 1) for one in (given.mean, given.std))
    order = torch.randperm(len(given.train))
    total = torch.zeros(())
    for step in range(steps):
        inputs, labels = given.train.take(order[step * BATCH :][:BATCH])
        assert isinstance(inputs, torch.Tensor)
        loss: torch.Tensor = net.loss(net((inputs.float() / 255 - mean) / std), labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        total += loss.detach()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    training = Training(
        data="random",
        optimiser=Optimiser(learning_rate=0.01, weight_decay=0.0),
        schedule=Schedule(kind="steps"),
        batch=BATCH,
        epochs=1,
        augmentation=("normalise",),
    )
    given = data(options.steps)
    backbone = recipe("dhm/resnet-32", 10).backbone
    assert isinstance(backbone, nn.Module)
    made = transform(backbone, NestedChannels((0.25, 0.5, 1.0)), torch.randn(2, 3, 32, 32), verify=False).train()
    times: dict[str, list[float]] = {"fit": [], "by hand": []}
    for turn in range(options.rounds + 1):
        for name in times:
            net = copy.deepcopy(made)
            start = time.process_time()
            if name == "fit":
                fit(net, given, training)
            else:
                by_hand(net, given, options.steps)
            if turn:  # the first round warms up
                times[name].append((time.process_time() - start) / options.steps)
    for name, some in times.items():
        print(f"{name:8} {statistics.median(some) * 1000:8.2f} ms a step")
    quotients = [one / other for one, other in zip(times["fit"], times["by hand"], strict=True)]
    print(f"quotient {statistics.median(quotients):8.3f} ({min(quotients):.3f} to {max(quotients):.3f})")


if __name__ == "__main__":
    main()
