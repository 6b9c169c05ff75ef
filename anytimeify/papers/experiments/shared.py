"""Trained networks that several experiments have in common: each is trained once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anytimeify.capture.checkpoint import read_saved
from anytimeify.io.files import reading, replaced_file
from anytimeify.runtime.model import AnytimeModel
from anytimeify.train.encoding import as_json
from anytimeify.train.training import Training

__all__ = ["Shared"]


@dataclass(frozen=True)
class Shared:
    """A folder with the weights of trained networks, by what they were trained from: program, first weights, objective,
    recipe with its seed, data. Training is the same bit for bit where these are."""

    folder: Path

    def path(self, net: AnytimeModel, training: Training, data: str, limit: int | None) -> Path:
        """Where the weights of this network are, or will be; before it is trained."""
        program = str(net.rewritten.program.graph)  # dropout is in no weight
        said = json.dumps([program, str(net.scheme), repr(net.loss), as_json(training), data, limit], default=str)
        found = hashlib.sha256(said.encode())
        for name, value in net.state_dict().items():
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return self.folder / f"{found.hexdigest()[:32]}.pt"

    @staticmethod
    def load(path: Path, net: AnytimeModel) -> bool:
        """Gives the network its trained weights, where they are there. `ArtifactError` where the file is damaged."""
        if not path.exists():
            return False
        with reading(path):
            net.load_state_dict(read_saved(path, checksums=True))
        return True

    @staticmethod
    def save(path: Path, net: AnytimeModel) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = {name: value.detach().cpu() for name, value in net.state_dict().items()}
        with replaced_file(path) as file:
            torch.save(state, file)
