"""A report for Google's Model Explorer: the graph, and numbers to lay over it.

The folder holds `graph.json`, which Model Explorer opens, and files of custom node data, which it loads on top:
`macs.json` (the share of the MACs of every operation, in percent), `kept-LEVEL.json` (of the channels of an operation,
the percentage that a level keeps), and `pins.json` (how many of its dimensions keep their size, and are no positions).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from anytimeify.errors import ArtifactError
from anytimeify.io.files import new_folder
from anytimeify.report.graph import BlockPicture, OperationRow

__all__ = ["write_model_explorer"]

_GRAPH = "backbone"


def write_model_explorer(
    path: str | os.PathLike[str], scheme: str, levels: int, blocks: Sequence[BlockPicture], *, force: bool
) -> None:
    """Writes the folder, whole or not at all; `ArtifactError` where it exists, unless `force`."""
    rows = [row for block in blocks for row in block.operations]
    overlays = {"macs": _overlay(rows, _macs, "#2563c8"), "pins": _overlay(rows, _pins, "#b45309")}
    for level in range(levels):
        overlays[f"kept-{level}"] = _overlay(rows, partial(_kept, level), "#0f766e")
    refuse_other_folder(path)
    with new_folder(path, replace=force) as folder:
        graph = _graph(scheme, blocks)
        collection = {"label": scheme, "graphs": [graph], "graphsWithLevel": [{"graph": graph, "level": 0}]}
        (folder / "graph.json").write_text(json.dumps(collection), encoding="utf-8")
        for name, overlay in overlays.items():
            if overlay["results"]:
                (folder / f"{name}.json").write_text(json.dumps({_GRAPH: overlay}), encoding="utf-8")


def refuse_other_folder(path: str | os.PathLike[str]) -> None:
    """`ArtifactError` for a folder with other files."""
    target = Path(path)
    if target.is_dir() and any(target.iterdir()) and not (target / "graph.json").is_file():
        raise ArtifactError(f"'{target}' holds no graph.json: only a folder that was written so is replaced.")


def _graph(scheme: str, blocks: Sequence[BlockPicture]) -> dict[str, Any]:
    known = {row.name for block in blocks for row in block.operations}
    inputs = {name for block in blocks for row in block.operations for name in row.reads} - known
    nodes = [
        {"id": name, "label": "input", "namespace": "", "attrs": [], "incomingEdges": []} for name in sorted(inputs)
    ]
    nodes += [_node(row, block) for block in blocks for row in block.operations]
    return {"id": _GRAPH, "nodes": nodes, "collectionLabel": scheme}


def _node(row: OperationRow, block: BlockPicture) -> dict[str, Any]:
    attributes = {
        "where": row.origin,
        "MACs": f"{100 * row.share:.2f} %",
        **{f"channels of {one.name}": f"{one.channels}, kept {one.kept}" for one in row.widths},
        **{f"pinned {number}": f"{pin.reason}, {pin.origin}" for number, pin in enumerate(row.pins)},
    }
    return {
        "id": row.name,
        "label": row.operation,
        "namespace": block.name.replace(".", "/").replace("…", " - "),  # it has no sign for dots
        "attrs": [{"key": key, "value": value} for key, value in attributes.items()],
        "incomingEdges": [
            {"sourceNodeId": name, "sourceNodeOutputId": "0", "targetNodeInputId": str(place)}
            for place, name in enumerate(row.reads)
        ],
        "outputsMetadata": [{"id": "0", "attrs": [{"key": "tensor_shape", "value": row.type}]}],
    }


def _overlay(
    rows: Sequence[OperationRow], value: Callable[[OperationRow], float | None], colour: str
) -> dict[str, Any]:
    found = {row.name: value(row) for row in rows}
    results: Mapping[str, Any] = {name: {"value": number} for name, number in found.items() if number is not None}
    return {"results": results, "gradient": [{"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": colour}]}


def _macs(row: OperationRow) -> float | None:
    return round(100 * row.share, 4) if row.share else None


def _pins(row: OperationRow) -> float | None:
    return len(row.pins) or None


def _kept(level: int, row: OperationRow) -> float | None:
    known = [
        (width.channels, kept) for width in row.widths for kept in width.kept[level : level + 1] if kept is not None
    ]
    whole = sum(channels for channels, _ in known)
    return round(100 * sum(kept for _, kept in known) / whole, 2) if whole else None
