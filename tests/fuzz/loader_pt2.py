"""Exported programs: fields of their documents, members of the archive and the pickle of example inputs changed."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from anytimeify._torch import flatten
from anytimeify.capture import capture, load_exported
from anytimeify.errors import AnytimeError
from tests.capture.pt2.crafted import CRAFTED, EXAMPLES, Network, Parts, genuine, write
from tests.fuzz.loader import Case, Loader, Results
from tests.fuzz.mutations import members_of, mutate_bytes, mutate_json, mutate_text, write_archive

__all__ = ["LOADER"]


class Shapes(nn.Module):
    """Sizes that depend on sizes, and guards on them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[2] % 2 == 0:
            x = x * 2
        y = self.norm(self.conv(x)).relu()
        return y.reshape(y.shape[0] * y.shape[2], -1), torch.cat([x, x]).mean((2, 3))


def _make(folder: Path) -> None:
    dynamic = torch.export.Dim.DYNAMIC
    shapes = torch.export.export(Shapes().eval(), (torch.ones(2, 2, 6, 6),), dynamic_shapes=({0: dynamic, 2: dynamic},))
    structure = torch.export.export(Network(), EXAMPLES, strict=False)
    torch.export.save(shapes, folder / "shapes.pt2")
    torch.export.save(structure, folder / "structure.pt2")


def _mutate(random: Random, originals: Path, folder: Path) -> Case:
    names = sorted(path.name for path in originals.iterdir())
    name, target = random.choice(names), folder / "case.pt2"
    ways = (_in_document, _in_document, _in_document, _in_tree, _in_inputs, _in_member, _in_members, _in_archive)
    what = random.choice(ways)(random, [originals / name, originals / random.choice(names)], target)
    # torch has no checksum over the archive: whoever writes whole members has written another program.
    return Case(target, name, what, sealed=not what.startswith("archive"))


def _in_document(random: Random, paths: list[Path], target: Path) -> str:
    """A field of a document, or two."""
    members, other = (members_of(path) for path in paths)
    documents = sorted(name for name in members if name.endswith(".json"))
    name = random.choice((*documents, "models/model.json", "models/model.json"))
    document = json.loads(members[name])
    others = [json.loads(other[name])]
    what = "; ".join(mutate_json(random, document, others) for _ in range(random.choice((1, 1, 2))))
    members[name] = json.dumps(document).encode("utf-8", "surrogatepass")
    write_archive(members, target)
    return f"{name}: {what}"


def _in_tree(random: Random, paths: list[Path], target: Path) -> str:
    """A text that is parsed: a size, a guard, how values are nested, a target."""
    members = members_of(paths[0])
    document = json.loads(members["models/model.json"])
    container, key = random.choice(list(_texts(document)))
    container[key] = mutate_text(random, container[key], TOKENS)
    members["models/model.json"] = json.dumps(document).encode("utf-8", "surrogatepass")
    write_archive(members, target)
    return f"text of {key!r}: {container[key][:80]!a}"


TOKENS = (
    *(
        "Integer(2)",
        "Symbol('s0', integer=True)",
        "Pow(",
        "FloorDiv(",
        "Mod(s0, 0)",
        "**",
        "L['x'].size()[0]",
        "__import__",
    ),
    *("torch.ops.aten.add.Tensor", "torch.ops.aten.mul.Tensor", '"__enum__"', "collections.defaultdict", "zoo", "nan"),
    *("Integer(0)", "Integer(-1)", "FloorDiv(Integer(1), Integer(0))", "oo", "true", ".__class__", "lambda", "Max()"),
)
_PARSED = ("expr_str", "in_spec", "out_spec", "target", "name", "parameter_name", "path_name", "as_string", "type")


def _texts(document: Any) -> list[tuple[Any, Any]]:
    """Places of texts that something parses."""
    found: list[tuple[Any, Any]] = []
    for key, value in document.items() if isinstance(document, dict) else enumerate(document):
        if isinstance(value, str) and (key in _PARSED or isinstance(document, list)):
            found.append((document, key))
        elif isinstance(value, dict | list):
            found += _texts(value)
    return found


def _in_inputs(random: Random, paths: list[Path], target: Path) -> str:
    """The pickle of example inputs, or the archive that it lies in."""
    members = members_of(paths[0])
    name = "data/sample_inputs/model.pt"
    with zipfile.ZipFile(io.BytesIO(members[name])) as archive:
        inner = {entry.partition("/")[2]: archive.read(entry) for entry in archive.namelist()}
    part = random.choice(("data.pkl", "data.pkl", *inner))
    inner[part], what = mutate_bytes(random, inner[part])
    file = target.with_suffix(".inputs")
    write_archive(inner, file, "archive")
    members[name] = file.read_bytes()
    file.unlink()
    write_archive(members, target)
    return f"example inputs, {part}: {what}"


def _in_member(random: Random, paths: list[Path], target: Path) -> str:
    """The bytes of a member, under a checksum that fits."""
    members, other = (members_of(path) for path in paths)
    name = random.choice(sorted(members))
    members[name], what = mutate_bytes(random, members[name], list(other.values()))
    write_archive(members, target)
    return f"member {name}: {what}"


def _in_members(random: Random, paths: list[Path], target: Path) -> str:
    """Members exchanged, left out, renamed, taken from another archive."""
    members, other = (members_of(path) for path in paths)
    one, two = random.choice(sorted(members)), random.choice(sorted(members))
    way = random.choice(("exchange", "drop", "rename", "take"))
    if way == "exchange":
        members[one], members[two] = members[two], members[one]
    elif way == "drop":
        del members[one]
    elif way == "rename":
        members[mutate_text(random, one).encode("utf-8", "replace").decode().replace("\0", "")] = members.pop(one)
    else:
        members[one] = other.get(one, b"")
    write_archive(members, target)
    return f"{way} members {one}, {two}"


def _in_archive(random: Random, paths: list[Path], target: Path) -> str:
    """The bytes of the archive itself."""
    data, what = mutate_bytes(random, paths[0].read_bytes(), [paths[1].read_bytes()])
    target.write_bytes(data)
    return f"archive: {what}"


def _load(path: Path) -> ExportedProgram:
    """Reads a program, captures it and runs it, guards included: what else the file says must not run there either."""
    program = load_exported(path)
    with contextlib.suppress(AnytimeError):  # an output that is no prediction
        capture(program)
    with contextlib.suppress(Exception):  # torch's own, where parts do not fit together: only what runs is of interest
        _results(program)
    return program


def _results(program: ExportedProgram) -> Results:
    assert program.example_inputs is not None
    args, kwargs = program.example_inputs
    with torch.no_grad():
        outputs = flatten(program.module()(*args, **kwargs))[0]
    found: dict[str, Tensor | str] = {str(index): one for index, one in enumerate(outputs) if isinstance(one, Tensor)}
    return found | {name: tensor.detach() for name, tensor in program.state_dict.items()}


def _crafted(change: Callable[[Parts], None]) -> Callable[[Path, Path], Case]:
    def craft(originals: Path, folder: Path) -> Case:
        parts = genuine(folder / "ran")
        change(parts)
        return Case(write(parts, folder / "case.pt2"), "structure.pt2", "made by hand")

    return craft


LOADER = Loader("pt2", _make, _mutate, _load, _results, {name: _crafted(change) for name, change in CRAFTED.items()})
