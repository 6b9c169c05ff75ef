"""Levels in a folder of ONNX stages (docs/staged_format.md), run by onnxruntime. Needs no torch.

A level runs the stages that it needs, each of which goes on with what those before it computed; a stream stops between
two of them whenever its reader does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytimeify.early_exit.document import MANIFEST, check_file, parse
from anytimeify.errors import ArtifactError
from anytimeify.io.files import reading, regular_file
from anytimeify.serving.arrays import (
    Arrays,
    Provider,
    compute,
    input_of,
    keep_for_ever,
    open_session,
    provider_of,
)
from anytimeify.serving.backend import Input
from anytimeify.serving.description import Description, read_batch, read_level

__all__ = ["OnnxStages"]


@dataclass(frozen=True)
class Step:
    """A stage: the values that it reads and gives, by name; the last of these is its level's prediction."""

    file: Path
    session: Any
    reads: tuple[str, ...]
    gives: tuple[str, ...]

    def add_to(self, known: dict[str, Any]) -> Any:
        """Computes the stage; its prediction."""
        results = compute(self.session, list(self.gives), {name: known[name] for name in self.reads}, self.file)
        known.update(zip(self.gives, results, strict=True))
        return results[-1]


@dataclass(frozen=True)
class OnnxStages(Arrays):
    """Sessions of onnxruntime, one for each stage, which several threads may run at once."""

    path: Path
    device: str
    threads: int | None
    description: Description
    inputs: tuple[Input, ...]
    steps: tuple[Step, ...]
    needed: tuple[tuple[int, ...], ...]  # the stages that a level runs
    resumable = True

    @classmethod
    def of(cls, path: object, device: str = "cpu", threads: int | None = None) -> OnnxStages:
        """Raises `ArtifactError` for what is no whole folder of ONNX stages, or was changed after it was written,
        `MissingExtraError` without onnxruntime, and `ArgumentError` for a device that onnxruntime does not know."""
        folder, provider = Path(str(path)), provider_of(device)
        file = regular_file(folder / MANIFEST)
        with reading(file):
            document = parse(file.read_text(encoding="utf-8"), str(file))
            if "onnx" not in document["formats"]:
                raise ArtifactError(f"{folder} holds no ONNX stages: write it with net.export(path, 'staged')")
            checksums = document.get("checksums")
            steps = tuple(_step(folder, stage, checksums, provider, threads) for stage in document["stages"])
            inputs = tuple(_input(str(name), document["values"][name], steps) for name in document["inputs"])
            needed = _needed(steps, [one.name for one in inputs])
            return cls(folder, device, threads, _description(document), inputs, steps, needed)

    def reopened(self) -> OnnxStages:
        for step in self.steps:
            keep_for_ever(step.session)
        return OnnxStages.of(self.path, self.device, self.threads)

    def run(self, level: int, inputs: Sequence[Any]) -> Any:
        known = self._known(inputs)
        for place in self.needed[level]:
            prediction = self.steps[place].add_to(known)
        return prediction

    def stream(self, inputs: Sequence[Any]) -> Iterator[Any]:
        known = self._known(inputs)
        for step in self.steps:
            yield step.add_to(known)

    def _known(self, inputs: Sequence[Any]) -> dict[str, Any]:
        return dict(zip([input.name for input in self.inputs], inputs, strict=True))


def _step(
    folder: Path, stage: Mapping[str, Any], checksums: Mapping[str, str] | None, provider: Provider, threads: int | None
) -> Step:
    name = str(stage["files"]["onnx"])
    if Path(name).name != name:
        raise ArtifactError(f"'{name}' is no file of the folder {folder}")
    file = regular_file(folder / name)
    check_file(checksums, file)
    with reading(file):
        session = open_session(file, provider, threads)
    return Step(file, session, tuple(map(str, stage["reads"])), tuple(map(str, stage["gives"])))


def _needed(steps: Sequence[Step], inputs: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """For each level the stages whose values it is made of, and its own. Refuses stages that read what nothing
    gives."""
    made_of: dict[str, frozenset[int]] = dict.fromkeys(inputs, frozenset())
    result = []
    for place, step in enumerate(steps):
        missing = [name for name in step.reads if name not in made_of]
        if missing or not step.gives:
            raise ValueError(f"a stage reads {missing[0]!r}, which nothing gives" if missing else "it gives nothing")
        own = frozenset({place}).union(*(made_of[name] for name in step.reads))
        made_of.update(dict.fromkeys(step.gives, own))
        result.append(tuple(sorted(own)))
        _check_names(step)
    return tuple(result)


def _check_names(step: Step) -> None:
    """`ValueError` where the file of a stage takes or gives other values than the manifest says."""
    if set(step.reads) != {entry.name for entry in step.session.get_inputs()}:
        raise ValueError(f"{step.file.name} reads other values than {', '.join(step.reads)}")
    if not set(step.gives) <= {entry.name for entry in step.session.get_outputs()}:
        raise ValueError(f"{step.file.name} gives other values than {', '.join(step.gives)}")


def _description(document: Mapping[str, Any]) -> Description:
    batch = None if document["batch"] is None else read_batch(document.get("batch_range", (1, None)))
    levels = tuple(read_level(place, stage["level"]) for place, stage in enumerate(document["stages"]))
    if not levels:
        raise ValueError("there are no stages")
    return Description(str(document.get("scheme", "")), levels, batch)


def _input(name: str, value: Mapping[str, Any], steps: Sequence[Step]) -> Input:
    """As the file says that reads it; one that no stage reads as the manifest does."""
    for step in steps:
        for entry in step.session.get_inputs():
            if entry.name == name:
                return input_of(entry)
    sizes = tuple(int(size) if str(size).isdigit() else None for size in value["shape"])
    return Input(name, str(value["dtype"]), sizes)
