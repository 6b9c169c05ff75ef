"""A trained network of somebody else, end to end: rapidocr's classifier for lines that are upside down, at four widths.

    python -m examples.text_direction [--out docs/real_network.md] [--file out/text_direction.onnx]

The ONNX file is in the wheel of rapidocr-onnxruntime, which pip downloads. It is imported, narrowed by importance,
fine-tuned on lines that are drawn (`examples/text_lines.py`), and written to one file of all widths, which
`AnytimeRunner` and the server run. The accuracy of every level is measured after each step, on lines in a family of
fonts that was not trained with. Needs `pip install '.[onnx,plot]' pillow`, and about four minutes on one core.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor

import anytimeify
from anytimeify import AnytimeModel
from anytimeify.runtime import AnytimeRunner
from benchmarks.onnx_sources.networks import FILES, download
from examples.text_lines import HEIGHT, TESTING, TRAINING, WIDTH, lines

__all__ = ["Lines", "accuracies", "classifier", "fine_tune", "main", "narrowed", "served"]

SCHEME = "nested-channels{widths=0.25,0.5,0.75,1 order=taylor}"


@dataclass(frozen=True)
class Lines:
    """Images and labels, in batches."""

    images: Tensor
    labels: Tensor
    batch: int = 32

    @classmethod
    def drawn(cls, count: int, families: tuple[str, ...], seed: int) -> Lines:
        """So many new lines."""
        return cls(*lines(count, families, seed))

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """As they are."""
        return list(zip(self.images.split(self.batch), self.labels.split(self.batch), strict=True))

    def shuffled(self, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """So many batches, drawn anew."""
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            chosen = torch.randint(len(self.labels), (self.batch,), generator=generator)
            yield self.images[chosen], self.labels[chosen]


def main() -> None:
    """Convert, fine-tune, measure, print; with `--out` also write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--training", type=int, default=5_000, help="lines")
    parser.add_argument("--testing", type=int, default=1_000, help="lines")
    parser.add_argument("--file", type=Path, default=Path("out/text_direction.onnx"), help="where the levels go")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    training = Lines.drawn(options.training, TRAINING, seed=0)
    testing = Lines.drawn(options.testing, TESTING, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        original = classifier(Path(folder))
        before = _accuracy(_session(original), testing)
        net = narrowed(original, training)
        size = original.stat().st_size
    rows = {"converted": accuracies(net, testing)}
    net.calibrate([images for images, _ in training.batches()[:10]])
    rows["statistics of the norms re-estimated"] = accuracies(net, testing)
    fine_tune(net, training, options.steps)
    rows["fine-tuned"] = accuracies(net, testing)
    options.file.parent.mkdir(parents=True, exist_ok=True)
    net.export(options.file, force=True)
    runner = AnytimeRunner(options.file, threads=1)
    rows["served from one file"] = served(runner, testing)
    text = "\n".join(_tables(net, runner, before, rows, size, options.file.stat().st_size)) + "\n"
    print(text)
    if options.out:
        command = f"python -m examples.text_direction --steps {options.steps} --training {options.training}"
        options.out.write_text(PAGE.format(command=f"{command} --testing {options.testing}", tables=text))


def classifier(folder: Path) -> Path:
    """The file that rapidocr ships. `subprocess.CalledProcessError` where pip cannot download it."""
    return download(FILES[0], folder)


def narrowed(original: Path, data: Lines) -> AnytimeModel:
    """Four widths of it, of the channels that the loss would miss most."""
    source = anytimeify.source(original, inputs={"x": (2, 3, HEIGHT, WIDTH)})
    return anytimeify.transform(source, SCHEME, batches=data.batches()[:10])


def fine_tune(net: AnytimeModel, data: Lines, steps: int) -> None:
    """All widths at once by Adam. The network gives probabilities: narrow widths learn from the labels and from the
    full width (Yu and Huang 2019, in-place distillation)."""
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    net.train()
    for images, labels in data.shuffled(steps):
        logs = [level.clamp_min(1e-6).log() for level in net(images).levels]
        soft = logs[-1].detach().exp()
        loss = sum((F.nll_loss(log, labels) for log in logs), torch.zeros(()))
        loss = loss - sum(((soft * log).sum(1).mean() for log in logs[:-1]), torch.zeros(()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    net.eval()


def accuracies(net: AnytimeModel, data: Lines) -> list[float]:
    """Of every level, in percent."""
    net.eval()
    with torch.no_grad():
        return [_accuracy(partial(net, level=level), data) for level in net.levels]


def served(runner: AnytimeRunner, data: Lines) -> list[float]:
    """The same of the levels of a file."""
    return [_accuracy(partial(_answer, runner, level.index), data) for level in runner.levels]


def _answer(runner: AnytimeRunner, level: int, x: Tensor) -> Any:
    return runner.predict(x, level=level).value


def _accuracy(predict: Callable[[Tensor], Any], data: Lines) -> float:
    right = sum(int((torch.as_tensor(predict(x)).argmax(1) == labels).sum()) for x, labels in data.batches())
    return 100 * right / len(data.labels)


def _session(file: Path) -> Callable[[Tensor], Any]:
    session = onnxruntime.InferenceSession(str(file))
    return lambda x: session.run(None, {"x": np.ascontiguousarray(x.numpy())})[0]


def _tables(
    net: AnytimeModel,
    runner: AnytimeRunner,
    before: float,
    rows: dict[str, list[float]],
    size: int,
    exported: int,
) -> list[str]:
    names = [level.name for level in net.levels]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]

    def row(called: str, values: Sequence[str]) -> None:
        lines.append(f"| {called} | " + " | ".join(values) + " |")

    row("million multiply-accumulates", [f"{level.cost.macs / 1e6:.1f}" for level in net.levels])
    row("thousand parameters", [f"{level.cost.params / 1e3:.0f}" for level in net.levels])
    row("median ms of one line, one thread", [f"{level.latencies[1].median_ms:.2f}" for level in runner.levels])
    row("accuracy: the file of rapidocr", [*["-"] * (len(names) - 1), f"{before:.1f} %"])
    for called, values in rows.items():
        row(f"accuracy: {called}", [f"{value:.1f} %" for value in values])
    return [*lines, "", f"The file of rapidocr has {size / 1e3:.0f} kB, that of all levels {exported / 1e3:.0f} kB."]


PAGE = """# A network of somebody else

    {command}

The classifier with which rapidocr finds lines of text that are upside down (PaddleOCR's `ch_ppocr_mobile_v2.0_cls`, a
MobileNetV3 with squeeze and excitation) is an ONNX file in a wheel. The command imports it, makes four widths of it
under `nested-channels{{widths=0.25,0.5,0.75,1 order=taylor}}`, fine-tunes them on drawn lines, and writes one file of
all of them. Accuracies are on lines in a family of fonts that is not among those of the training
(`examples/text_lines.py`); half of them are upside down.

{tables}
The full width is the network of the file as it was. Narrow widths have the channels that the loss would miss most, but
no layer behind them expects the others to be missing: without training they guess. New statistics of the norms are no
way out: those of 320 drawn lines ruin even the full width, whose own are of many more kinds of images.
Trained together for so few steps, the full width gets better than the file was on such lines, three quarters of the
width nearly as good for two thirds of the work, and the narrow ones, which start from nothing, need longer.

The weights stand in the file once, 559 kB of it. The rest is the graphs of four levels, three hundred nodes each: much
beside a hundred thousand weights, little beside millions ([one file for all levels](one_file.md)).

What was written is served as any other ([A server](server.md)):

    python -m examples.server out/text_direction.onnx --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5
"""

if __name__ == "__main__":
    main()
