"""What options say. What cannot be read is wrong usage."""

from __future__ import annotations

import re
from typing import Any

import torch
import typer

from anytimeify.capture.inputs import CallInputs
from anytimeify.capture.sources.source import InputSizes
from anytimeify.errors import BudgetError, SchemeError
from anytimeify.passes.estimate import Limits
from anytimeify.runtime.budget import Budget
from anytimeify.runtime.latency import device_of as budget_device
from anytimeify.runtime.latency import usable
from anytimeify.storage.export import FORMATS

__all__ = [
    "budget_of",
    "device_of",
    "dynamic_shapes_of",
    "format_of",
    "inputs_of",
    "limits_of",
    "named_inputs_of",
    "refuse_unmeasured",
]


def budget_of(text: str) -> Budget:
    """`--budget`. `BudgetError` where there is no such device to measure on."""
    try:
        budget = Budget.parse(text)
    except BudgetError as error:
        raise typer.BadParameter(str(error), param_hint="--budget") from error
    if budget.latency_ms is not None and budget.device is not None:
        usable(budget_device(budget.device), budget.runtime)
    return budget


def limits_of(text: str | None) -> Limits | None:
    """`--limits`."""
    try:
        return Limits.parse(text) if text is not None else None
    except SchemeError as error:
        raise typer.BadParameter(str(error), param_hint="--limits") from error


def format_of(name: str, option: str) -> str:
    """The format of a level's file."""
    if name.strip() not in FORMATS:
        raise typer.BadParameter(f"'{name}' is not a format; expected one of: {', '.join(FORMATS)}", param_hint=option)
    return name.strip()


def inputs_of(shapes: list[str] | None) -> CallInputs | None:
    """Random example inputs of the given shapes, the same in every run."""
    if not shapes:
        return None
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for text in shapes:
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text.replace(" ", "")):
            raise typer.BadParameter(
                f"'{text}' is not a shape; expected sizes such as 2,3,224,224", param_hint="--input-shape"
            )
        try:
            tensors.append(torch.randn([int(size) for size in text.split(",")], generator=generator))
        except RuntimeError as error:
            raise typer.BadParameter(f"'{text}' does not fit into memory", param_hint="--input-shape") from error
    return CallInputs(tuple(tensors), {})


def named_inputs_of(texts: list[str] | None, shapes: list[str] | None = None) -> InputSizes | None:
    """Sizes or the value of each named input; no sizes where `--input-shape` has them."""
    found: dict[str, Any] = {}
    for text in texts or ():
        name, _, sizes = text.rpartition("=")
        number = re.fullmatch(r"-?\d+(\.\d+)?", sizes)
        if not name or not (number or re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", sizes)):
            raise typer.BadParameter(
                f"'{text}' is no input; expected a name and sizes such as x=2x3x224x224", param_hint="--input"
            )
        if name in found:
            raise typer.BadParameter(f"'{name}' is given twice", param_hint="--input")
        if shapes and not number:
            raise typer.BadParameter(f"'{text}': --input-shape gives the sizes already", param_hint="--input")
        if number:
            found[name] = float(sizes) if "." in sizes else int(sizes)
        else:
            found[name] = tuple(int(size) for size in sizes.split("x"))
    return found or None


def dynamic_shapes_of(text: str) -> dict[str, Any] | None:
    """`dynamic_shapes` for `transform`: None makes the batch dynamic, an empty dict makes nothing dynamic."""
    if text not in ("batch", "none"):
        raise typer.BadParameter(f"'{text}': expected batch or none", param_hint="--dynamic-shapes")
    return {} if text == "none" else None


def device_of(text: str, option: str = "--measure") -> torch.device:
    """Where something is measured; refused where there is no such device."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise typer.BadParameter(f"'{text}': expected cpu or cuda", param_hint=option)
    device = torch.device(text)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BudgetError(f"latency cannot be measured on {text}: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def refuse_unmeasured(**options: object) -> None:
    """Options of a measurement are wrong usage where nothing is measured."""
    for name, value in options.items():
        if value:
            option = f"--{name.replace('_', '-')}"
            raise typer.BadParameter("nothing is measured: give --measure cpu too", param_hint=option)
