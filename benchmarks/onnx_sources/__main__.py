"""ONNX files as sources: networks through both exporters of torch, and files of other people's packages.

python -m benchmarks.onnx_sources --out docs/onnx.md
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import anytimeify
from anytimeify import transform
from anytimeify.capture.sources.onnx.read import OPSETS
from anytimeify.errors import AnytimeError
from anytimeify.runtime.model import AnytimeModel
from benchmarks.onnx_sources.networks import (
    EXPORTS,
    FILES,
    NETWORKS,
    TRANSFORMED,
    Export,
    Positional,
    Wheel,
    compare,
    download,
    export,
    network,
)
from benchmarks.onnx_sources.page import PAGE, operators

SCHEMES = ("nested-channels{widths=0.25,0.5,1}", "hierarchical-ensemble")


def main(
    out: Annotated[Path, typer.Option(help="The page to write.")],
    networks: Annotated[str, typer.Option(help="Only networks with this in their name.")] = "",
    files: Annotated[bool, typer.Option(help="Also the files of packages, which pip downloads.")] = True,
) -> None:
    """Tries everything and writes the page."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        found = [row for name in NETWORKS if networks in name for row in _network_rows(name, Path(folder))]
        own = [_file_row(wheel, Path(folder)) for wheel in FILES] if files else []
    schemes = " and ".join(f"`{scheme}`" for scheme in SCHEMES)
    filled = PAGE.format(
        schemes=schemes,
        torch=torch.__version__,
        first=OPSETS[0],
        last=OPSETS[-1],
        operators=operators(),
        networks="\n".join(found),
        files="\n".join(own),
    )
    out.write_text(filled)


def _network_rows(name: str, folder: Path) -> Iterator[str]:
    model, inputs = network(name)
    native = transform(Positional(model), SCHEMES[0], inputs).levels[0].cost.macs
    for way in EXPORTS:
        file = folder / f"{name.replace(' ', '_')}.onnx"
        try:
            export(model, inputs, way, file)
        except Exception as error:
            row = f"| {name} | {way} | not exported: {type(error).__name__} | | | |"
        else:
            sizes = {f"input_{index}": tuple(one.shape) for index, one in enumerate(inputs)}
            row = f"| {name} | {way} | {_tried(file, way, native, sizes)} |"
        print(row, flush=True)
        yield row


def _tried(file: Path, way: Export, native: int, inputs: Mapping[str, Any]) -> str:
    try:
        source, gap = compare(file, inputs)
    except AnytimeError as error:
        return f"{error} | | |"
    if way not in TRANSFORMED:
        return f"{gap:.0e} | | |"
    nets = [_transformed(source, scheme) for scheme in SCHEMES]
    ratio = f"{nets[0].levels[0].cost.macs / native:.3f}" if isinstance(nets[0], AnytimeModel) else ""
    return " | ".join([f"{gap:.0e}", ratio, *("verified" if isinstance(net, AnytimeModel) else net for net in nets)])


def _transformed(source: anytimeify.Source, scheme: str) -> AnytimeModel | str:
    try:
        return transform(source, scheme)
    except AnytimeError as error:
        return f"refused: {error}".replace("\n", " ")


def _file_row(wheel: Wheel, folder: Path) -> str:
    source, gap = compare(download(wheel, folder), wheel.inputs)
    channels, ensemble = (_transformed(source, scheme) for scheme in SCHEMES)
    shown = (
        ", ".join(f"{level.cost.macs / 1e6:.2f} M" for level in channels.levels)
        if isinstance(channels, AnytimeModel)
        else channels
    )
    verified = "verified" if isinstance(ensemble, AnytimeModel) else ensemble
    row = f"| {wheel.package.replace('==', ' ')} | {wheel.member} | {gap:.0e} | {shown} | {verified} |"
    print(row, flush=True)
    return row


if __name__ == "__main__":
    typer.run(main)
