"""Files of `anytimeify.compressed`: the forms of tensors, their places, and bytes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from anytimeify.storage.compressed import load_compressed, save_compressed
from tests.fuzz.loader import Case, Loader, Results
from tests.fuzz.mutations import in_order, mutate_bytes, mutate_header, mutate_json, split_header

__all__ = ["LOADER"]

Document = dict[str, Any]
_KEY, _CHECKSUM = "anytimeify.compressed", "anytimeify.checksum"


def _make(folder: Path) -> None:
    dense, some, few = torch.randn(6, 5), torch.randn(40, 30), torch.zeros(300, 40)
    some[torch.rand(40, 30) < 0.7] = 0
    few[::37, 3] = torch.randn(9)
    tensors = {"dense": dense, "a.some": some, "few": few, "none": torch.zeros(50, dtype=torch.float64)}
    save_compressed({**tensors, "half": some.bfloat16(), "scalar": torch.tensor(3), "empty": dense[:0]}, folder / "all")
    save_compressed({"few": few, "some": some.to(torch.int16)}, folder / "two")
    in_order(folder / "all")
    in_order(folder / "two")


def opened(path: Path) -> tuple[Document, dict[str, Tensor]]:
    """The description and the stored tensors of a file."""
    data = path.read_bytes()
    document: Document = json.loads(split_header(data)[0]["__metadata__"][_KEY])
    return document, dict(sorted(safetensors.torch.load(data).items()))


def sealed(document: Any, tensors: dict[str, Tensor]) -> bytes:
    """A file with a checksum that fits its description."""
    text = json.dumps(document)
    checksum = zlib.crc32(text.encode("utf-8", "surrogatepass"))
    return safetensors.torch.save(tensors, {_KEY: text, _CHECKSUM: str(checksum)})


def _mutate_tensor(random: Random, tensors: dict[str, Tensor]) -> str:
    name = random.choice(list(tensors))
    tensor = tensors[name]
    if not tensor.numel():
        return "nothing"
    action = random.choice(("add", "longer", "type", "shape"))
    if action == "add":
        tensors[name] = tensor + random.choice((1, 100, -1, -100))
    elif action == "longer":
        tensors[name] = torch.cat([tensor, tensor]) if tensor.ndim else tensor[None]
    elif action == "type":
        tensors[name] = tensor.to(random.choice((torch.int64, torch.float16, torch.bool, torch.uint8, torch.complex64)))
    else:
        tensors[name] = tensor.reshape(-1)[: random.randrange(tensor.numel() + 1)].clone()
    return f"{action} {name}"


def _mutate(random: Random, originals: Path, folder: Path) -> Case:
    names = sorted(path.name for path in originals.iterdir())
    name, target = random.choice(names), folder / "case"
    data = (originals / name).read_bytes()
    way = random.choice(("document", "document", "tensors", "header", "bytes"))
    if way in ("header", "bytes"):
        others = [(originals / other).read_bytes() for other in names]
        changed, what = mutate_header(random, data) if way == "header" else mutate_bytes(random, data, others)
        target.write_bytes(changed)
        return Case(target, name, what)
    document, tensors = opened(originals / name)
    what = (
        _mutate_tensor(random, tensors)
        if way == "tensors"
        else "; ".join(mutate_json(random, document) for _ in range(random.choice((1, 1, 2))))
    )
    try:
        target.write_bytes(sealed(document, tensors))
    except Exception as error:  # what no file can hold
        target.write_bytes(data)
        return Case(target, name, f"nothing, for {what} cannot be written ({error!r})")
    return Case(target, name, f"{way}: {what}", sealed=way == "document")


def _results(tensors: dict[str, Tensor]) -> Results:
    return tensors


def crafted(change: Callable[[Document], object]) -> Callable[..., Case]:
    """A file with its description changed."""

    def craft(originals: Path, folder: Path) -> Case:
        document, tensors = opened(originals / "two")
        change(document)
        (folder / "case").write_bytes(sealed(document, tensors))
        return Case(folder / "case", "two", "made by hand", sealed=True)

    return craft


def _shape(shape: list[Any]) -> Callable[[Document], object]:
    return lambda document: document["tensors"]["few"].update(shape=shape)


LOADER = Loader(
    "compressed",
    _make,
    _mutate,
    load_compressed,
    _results,
    {
        "terabytes of zeros": crafted(_shape([10**6, 10**6])),
        "a gigabyte of zeros": crafted(_shape([2**28])),
        "beyond all integers": crafted(_shape([2**70])),
        "infinitely many": crafted(_shape([float("inf")])),
        "a negative size": crafted(_shape([-3, -4000])),
    },
)
