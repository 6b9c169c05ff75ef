"""Levels in one PT2 archive, a program each: `level_0`, `level_1`, ...

    from torch.export.pt2_archive._package import load_pt2
    program = load_pt2("net.pt2").exported_programs["level_0"]

In such an archive a weight is a payload, a size, strides and an offset: a level whose weights are ranges of those of a
larger one has the payloads of that one. What is picked row by row (parts of a layer that are narrowed apart) and
what is masked has its own. Whoever loads a level reads the whole payloads, and has its weights as views of them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from anytimeify._torch import load_pt2, package_pt2
from anytimeify.capture.inputs import CallInputs
from anytimeify.deploy.description import KEY, describe
from anytimeify.deploy.levels import Levels
from anytimeify.deploy.shared_tensors import Part, Pool, as_array
from anytimeify.storage.export import traced

__all__ = ["write_pt2"]

_WEIGHTS, _CONFIG = "data/weights/", "data/weights/{}_weights_config.json"


def write_pt2(levels: Levels, file: Path, name: str) -> None:
    """Writes the archive and compares what it holds with the extracts."""
    inputs, programs = levels.inputs, {}
    for place, extract in enumerate(levels.extracts):
        inputs, programs[f"level_{place}"] = traced(extract, levels.inputs, levels.dynamic_batch)
    with tempfile.TemporaryDirectory(dir=file.parent.parent) as folder:
        apart = Path(folder, "apart.pt2")
        package_pt2(apart, programs, {KEY: describe(levels)})
        _share_weights(apart, file, programs)
    modules = {called: program.module() for called, program in load_pt2(file).items()}

    def run(place: int, case: CallInputs) -> Any:
        return modules[f"level_{place}"](*case.args, **case.kwargs)

    levels.verify(name, run, inputs)


def _share_weights(apart: Path, file: Path, programs: Mapping[str, ExportedProgram]) -> None:
    """Copies an archive, without the payloads of weights that are ranges of others."""
    from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter  # they import torch._dynamo

    with PT2ArchiveReader(str(apart)) as archive, PT2ArchiveWriter(str(file)) as shared:
        configs = {called: json.loads(archive.read_string(_CONFIG.format(called))) for called in programs}
        pool = Pool()
        entries: dict[str, dict[str, Any]] = {}  # of the tensors in the pool
        for called, program in reversed(list(programs.items())):
            for name, entry in configs[called]["config"].items():
                part = None if entry["use_pickle"] else pool.find(name, as_array(program.state_dict[name]))
                if isinstance(part, Part) and all(isinstance(places, slice) for places in part.places):
                    _point(entry, entries[part.source], part)
                elif part is None and not entry["use_pickle"]:
                    own = name if name not in entries else f"{called}.{name}"
                    pool.add(own, as_array(program.state_dict[name]))
                    entries[own] = entry
        written = {_CONFIG.format(called) for called in programs}
        read = {_WEIGHTS + entry["path_name"] for config in configs.values() for entry in config["config"].values()}
        for record in archive.get_file_names():
            if record in written or (record.startswith(_WEIGHTS) and record not in read):
                continue
            if not shared.has_record(record):
                shared.write_bytes(record, archive.read_bytes(record))
        for called, config in configs.items():
            shared.write_string(_CONFIG.format(called), json.dumps(config))


def _point(entry: dict[str, Any], whole: Mapping[str, Any], part: Part) -> None:
    """Makes an entry read a range of the payload of another."""
    kind = whole["tensor_meta"]
    strides = [stride["as_int"] for stride in kind["strides"]]
    starts = [places.start for places in part.places if isinstance(places, slice)]
    offset = kind["storage_offset"]["as_int"] + sum(
        start * stride for start, stride in zip(starts, strides, strict=True)
    )
    entry["path_name"] = whole["path_name"]
    entry["tensor_meta"] = {
        **entry["tensor_meta"],
        "strides": kind["strides"],
        "storage_offset": {"as_int": offset},
    }
