"""The folder of a run.

    config.json       what is trained, on what and how
    start.safetensors the network before the training
    metrics.jsonl     a line an epoch
    tensorboard/      the same for TensorBoard
    curves.png        the same as a picture
    checkpoints/      what a run goes on from; the last two
    net.safetensors   the network at the end: `anytimeify.load` reads it, and commands take the folder

Every file but those of TensorBoard and the lines of metrics is written beside and renamed, so that neither a kill nor a
full disk loses what was there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from anytimeify.capture.checkpoint import read_saved
from anytimeify.errors import ArtifactError, MissingExtraError
from anytimeify.io.files import reading, regular_file, replaced_file
from anytimeify.train.curves import draw, require_drawing

__all__ = ["RunFolder"]

KEPT = 2  # checkpoints


class RunFolder:
    """Where a run writes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.start = self.path / "start.safetensors"
        self.result = self.path / "net.safetensors"
        self.checkpoints = self.path / "checkpoints"
        self._board: Any = None

    @property
    def exists(self) -> bool:
        """Whether there is a run to resume."""
        return self.config_file.is_file()

    def create(self) -> None:
        """Makes the folder, before anything is written into it. `ArtifactError` where something else is there."""
        if self.path.exists() and (not self.path.is_dir() or not self._is_ours()):
            raise ArtifactError(f"'{self.path}' exists already, and is no run. Choose another name, or remove it.")
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"'{self.path}' cannot be made: {error.strerror}.") from error

    def _is_ours(self) -> bool:
        known = {self.start.name, self.checkpoints.name}  # of a run that was killed before it wrote what it is
        return all(entry.name in known or entry.name.startswith(".anytimeify-") for entry in self.path.iterdir())

    def config(self) -> dict[str, Any]:
        """What the run was started with."""
        with reading(self.config_file):
            found: dict[str, Any] = json.loads(regular_file(self.config_file).read_text(encoding="utf-8"))
        return found

    def write_config(self, config: Mapping[str, Any]) -> None:
        with replaced_file(self.config_file) as file:
            file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    # Checkpoints.

    def save(self, state: Mapping[str, Any], step: int) -> None:
        """Writes a checkpoint, and then removes those before the last two."""
        with replaced_file(self.checkpoints / f"step-{step:09d}.pt") as file:
            torch.save(state, file)
        for old in self._saved()[:-KEPT]:
            old.unlink(missing_ok=True)

    def last(self) -> dict[str, Any] | None:
        """The last checkpoint; nothing where there is none yet. Reading it runs no code. `ArtifactError` where it is
        damaged."""
        saved = self._saved()
        if not saved:
            return None
        with self.reading_last():
            return _checked(read_saved(regular_file(saved[-1]), checksums=True))

    @contextmanager
    def reading_last(self) -> Iterator[None]:
        """Around all that is made of the last checkpoint: an `ArtifactError` names it, and says what to do."""
        last = self._saved()[-1]
        try:
            with reading(last):
                yield
        except ArtifactError as error:
            text = str(error).rstrip(".")
            raise ArtifactError(f"{text}. Remove it, and the run goes on from the checkpoint before.") from error

    def _saved(self) -> list[Path]:
        return sorted(self.checkpoints.glob("step-*.pt"))

    # Metrics.

    def open(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Begins to write metrics, after the lines that a checkpoint has."""
        require_drawing()
        self.rewrite(history)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "train", "a run in a folder") from error
        last = int(history[-1]["epoch"]) if history else 0
        self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=last + 1)

    def rewrite(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Writes the lines of all epochs anew."""
        with replaced_file(self.path / "metrics.jsonl") as file:
            file.write_text("".join(json.dumps(line) + "\n" for line in history), encoding="utf-8")

    def note(self, line: Mapping[str, Any]) -> None:
        """One more epoch."""
        try:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            for name, value in line["accuracy"].items():
                self._board.add_scalar(f"accuracy/{name}", value, line["epoch"])
            for name in ("loss", "learning_rate", "samples_per_second"):
                self._board.add_scalar(name, line[name], line["epoch"])
            self._board.flush()
        except OSError as error:
            raise ArtifactError(f"'{self.path}' cannot be written: {error.strerror}.") from error

    def draw(self, history: Sequence[Mapping[str, Any]], title: str) -> None:
        draw(history, self.path / "curves.png", title)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def _checked(found: Any) -> dict[str, Any]:
    """A checkpoint that says where the run is, and has a history that can be written again."""
    for name in ("stage", "epoch", "step", "steps"):
        if type(found[name]) is not int or found[name] < 0:
            raise ValueError(f"its {name} is {found[name]!r}")
    for line in found["history"]:
        if type(line["epoch"]) is not int or not isinstance(line["accuracy"], dict):
            raise ValueError("its history has a line that is none")
    json.dumps(found["history"])
    result: dict[str, Any] = found
    return result
