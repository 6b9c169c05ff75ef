"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from anytimeify.capture.sources.registry import kinds
from anytimeify.train.data import data_kinds

__all__ = [
    "OR_FORCE",
    "AccuraciesOption",
    "AsJson",
    "Cache",
    "Checkpoint",
    "DataOption",
    "DynamicShapes",
    "Epochs",
    "Force",
    "InputShapes",
    "Inputs",
    "LearningRate",
    "LimitBatches",
    "Plot",
    "Pretrained",
    "RecipeOption",
    "RuntimeOption",
    "SavedModel",
    "Settings",
    "SourceArgument",
    "Threads",
    "TrustPickle",
]

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help=f"A model: {', '.join(kind.example for kind in kinds())}.",
    ),
]
InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="SIZES",
        help="Shape of an example input, such as 2,3,224,224. Repeat it for each input.",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=SIZES",
        help="Shape of the example input of that name, such as x=2x3x224x224, or the value of an input without axes of "
        "an ONNX file, such as rate=16000. Repeatable.",
    ),
]
DynamicShapes = Annotated[
    str,
    typer.Option(
        metavar="batch|none",
        help="'batch' makes the batch size dynamic, 'none' fixes it to that of the example inputs.",
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        help="Load a pickle, or a .pt2 with parts that can run code. Only for files that you trust.",
    ),
]
Pretrained = Annotated[
    bool,
    typer.Option(
        "--pretrained",
        help="Take the weights that timm or torchvision has for the name. Names alone give random weights.",
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", metavar="FILE", help="Load weights: FILE.safetensors, or a state dict that torch.save wrote."
    ),
]
SavedModel = Annotated[
    Path, typer.Argument(metavar="DIR", help="A folder written by `convert`, or a file written by net.save(path).")
]
OR_FORCE = "choose another name, or replace it with --force"
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
RuntimeOption = Annotated[
    Literal["torch", "onnxruntime"],
    typer.Option("--runtime", metavar="torch|onnxruntime", help="What runs the levels."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of one run; by default as the runtime likes.")]
AccuraciesOption = Annotated[
    Path | None,
    typer.Option(
        "--accuracies", metavar="FILE", help="JSON: accuracies from 0 to 1 by the names of levels, or of `accuracy`."
    ),
]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw accuracy against milliseconds, or milliseconds.")]
Cache = Annotated[bool, typer.Option("--cache/--no-cache", help="Keep measurements on the disk for later.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataOption = Annotated[
    str,
    typer.Option(
        "--data", metavar="SPEC", help=f"What to train on: {', '.join(kind.example for kind in data_kinds())}."
    ),
]
RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe", metavar="FILE", help="The recipe, as JSON, or config.json of a run. By default the paper's."
    ),
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", metavar="N", help="Epochs; milestones and the like keep their share.")
]
LearningRate = Annotated[float | None, typer.Option("--lr", metavar="RATE", help="The learning rate.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Any field of the recipe, such as optimiser.momentum=0.8. Repeatable."
    ),
]
LimitBatches = Annotated[
    int | None,
    typer.Option(
        "--limit-batches", metavar="N", min=1, help="At most so many batches in an epoch, and in an evaluation."
    ),
]
