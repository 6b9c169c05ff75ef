"""`anytimeify train`."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from anytimeify.capture.sources.registry import kinds
from anytimeify.cli.options import (
    Checkpoint,
    DataOption,
    Epochs,
    InputShapes,
    LearningRate,
    LimitBatches,
    Pretrained,
    RecipeOption,
    Settings,
    TrustPickle,
)
from anytimeify.cli.reading import inputs_of
from anytimeify.cli.showing import doing, show, watching
from anytimeify.errors import ArgumentValueError
from anytimeify.passes.scheme import parse_scheme
from anytimeify.runtime.load import load
from anytimeify.taxonomy import Taxonomy
from anytimeify.train import fit, open_data
from anytimeify.train.accelerator import accelerator_for
from anytimeify.train.folder import RunFolder
from anytimeify.train.start import Start, changed, read_training, run_folder, with_changes

__all__ = ["train"]


def train(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A saved model: a folder written by `convert` or `train`, or a file; paper:NAME; or, with --scheme, "
            f"any model: {', '.join(kind.example for kind in kinds())}.",
        ),
    ],
    data: DataOption,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the run.")],
    scheme: Annotated[
        str | None, typer.Option(metavar="SPEC", help="The scheme, such as 'nested-channels{widths=0.25,0.5,1}'.")
    ] = None,
    recipe: RecipeOption = None,
    epochs: Epochs = None,
    batch: Annotated[int | None, typer.Option(metavar="N", help="Samples in a step.")] = None,
    learning_rate: LearningRate = None,
    warm_up: Annotated[
        float | None, typer.Option(metavar="EPOCHS", help="In which the learning rate rises at the start.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of weights and of all that is drawn.")] = None,
    settings: Settings = None,
    limit_batches: LimitBatches = None,
    taxonomy: Annotated[
        str | None,
        typer.Option(metavar="FILE|data", help="Coarser classes: a file, .json or .csv, or those that the data have."),
    ] = None,
    consensus: Annotated[
        str | None, typer.Option(metavar="average|learned", help="Add a level that combines all others.")
    ] = None,
    input_shape: InputShapes = None,
    device: Annotated[str | None, typer.Option(metavar="cpu|cuda", help="Where to train. By default a GPU.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is in DIR.")] = False,
    pretrained: Pretrained = False,
    checkpoint: Checkpoint = None,
    trust_pickle: TrustPickle = False,
    force: Annotated[bool, typer.Option("--force", help="Remove the run that is in DIR, and start anew.")] = False,
) -> None:
    """Train all levels of a model.

    Writes to DIR what is trained (config.json), a line an epoch (metrics.jsonl, TensorBoard), learning curves
    (curves.png), checkpoints, and the model (net.safetensors). Killed and resumed, a run gives the same weights.
    """
    if consensus not in (None, "average", "learned"):
        raise typer.BadParameter(f"'{consensus}': expected average or learned", param_hint="--consensus")
    if device not in (None, "cpu", "cuda"):
        raise typer.BadParameter(f"'{device}': expected cpu or cuda", param_hint="--device")
    if device == "cuda" and not torch.cuda.is_available():
        raise ArgumentValueError("torch sees no CUDA device to train on")
    if scheme is not None:
        parse_scheme(scheme)
    folder = run_folder(out, resume, force) if os.environ.get("RANK", "0") == "0" else RunFolder(out)
    start = Start(
        source,
        scheme,
        inputs_of(input_shape),
        consensus=consensus,
        trust_pickle=trust_pickle,
        pretrained=pretrained,
        checkpoint=checkpoint,
    )
    training = read_training(recipe) if recipe is not None else start.recipe()
    changes = {"batch": batch, "learning_rate": learning_rate, "warm_up": warm_up, "seed": seed}
    training = changed(with_changes(training, epochs=epochs, **changes), settings or ())
    samples = open_data(data)
    if taxonomy is not None:
        start = replace(start, taxonomy=samples.taxonomy if taxonomy == "data" else Taxonomy.load(taxonomy))
        if start.taxonomy is None:
            raise ArgumentValueError(f"'{data}' has no coarser classes: give a file, --taxonomy FILE")
    notes: list[str] = []
    with doing(f"loading {source}"):
        begun = resume and folder.start.exists()
        net = load(folder.start) if begun else start.build(samples, training.seed, notes.append)
    if begun:
        start.check(net, out)
    for note in notes:
        show(note, sys.stderr)
    if force and not resume and folder.exists:
        shutil.rmtree(out)
    with accelerator_for(training, device=device) as accelerator, watching(f"training {source}"):
        run = fit(
            net,
            samples,
            training,
            out=out,
            resume=resume,
            accelerator=accelerator,
            limit_batches=limit_batches,
        )
    if accelerator.is_main_process:
        table = Table(box=None, pad_edge=False)
        for title in ("level", "accuracy"):
            table.add_column(title, justify="right" if title == "accuracy" else "left")
        for name, accuracy in run.accuracy.items():
            table.add_row(name, f"{accuracy:.4f}")
        show(table)
        show(f"written to {out}")
