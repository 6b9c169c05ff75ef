"""Files of `net.save`: the description, the tensors, the header around both, and bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import anytimeify
from anytimeify import AnytimeModel, Consensus, NestedChannels, Taxonomy, transform
from anytimeify.storage.models import seal
from tests.backbones import residual_net
from tests.fuzz.loader import Case, Loader, Results
from tests.fuzz.mutations import CANARY, in_order, mutate_bytes, mutate_header, mutate_json, split_header
from tests.passes.every_scheme import images, net_of

__all__ = ["LOADER"]

Document = dict[str, Any]
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.bool, torch.complex64)


class Tokens(nn.Module):
    """Integers go in, a table is tied, and a norm has no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mid, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = nn.functional.layer_norm(self.mid(self.embed(tokens)), (8,))
        result: Tensor = self.head(hidden.relu()).mean(1)
        return result


class Counts(nn.Module):
    """Numbers that follow the widths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 3), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x).relu()
        result: Tensor = self.head(hidden.mean((2, 3)) * 12**-0.5 * hidden.sum(1).mean((1, 2)).div(12)[:, None])
        return result


def _make(folder: Path) -> None:
    taxonomy = Taxonomy.from_parents([0, 0, 1, 1, 1])
    tokens = torch.randint(11, (4, 6))
    nets = {
        "channels": residual_net(),
        "tokens": transform(Tokens(), NestedChannels((0.5, 1.0)), tokens),
        "counts": transform(Counts(), NestedChannels((0.5, 1.0)), images(), constants="scale"),
        "ensemble": net_of("ensemble, not fused", None),
        "weights": net_of("weights", None),
        "branches": net_of("pooled branches", taxonomy, Consensus("learned")),
    }
    for name, net in nets.items():
        net.eval().save(folder / name)
        in_order(folder / name)


def opened(path: Path) -> tuple[Document, dict[str, Tensor]]:
    """The description and the tensors of a file, to be changed."""
    data = path.read_bytes()
    header, _ = split_header(data)
    document: Document = json.loads(header["__metadata__"]["anytimeify"])
    return document, dict(sorted(safetensors.torch.load(data).items()))


def _mutate_tensors(random: Random, tensors: dict[str, Tensor]) -> str:
    name = random.choice(list(tensors))
    tensor = tensors[name]
    action = random.choice(("type", "shape", "values", "drop", "rename", "swap", "empty"))
    if action == "type":
        tensors[name] = tensor.to(random.choice(DTYPES))
    elif action == "shape":
        tensors[name] = random.choice(
            (tensor.flatten(), tensor[None], tensor[..., None], tensor.reshape(-1)[:1])
        ).clone()
    elif action == "values":
        tensors[name] = torch.full_like(tensor, random.choice((0, 1)))
    elif action == "empty":
        tensors[name] = tensor.reshape(-1)[:0].clone()
    elif action == "swap":
        other = random.choice(list(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
    else:
        del tensors[name]
        if action == "rename":
            tensors[random.choice(("x", "class", CANARY, "anytime.loss.x", "a.b.c"))] = tensor
    return f"{action} of {name}"


def _mutate(random: Random, originals: Path, folder: Path) -> Case:
    names = sorted(path.name for path in originals.iterdir())
    name = random.choice(names)
    data, target = (originals / name).read_bytes(), folder / "case"
    way = random.choice(("document", "document", "document", "tensors", "header", "bytes", "unsealed"))
    if way in ("header", "bytes"):
        others = [(originals / other).read_bytes() for other in names]
        changed, what = mutate_header(random, data) if way == "header" else mutate_bytes(random, data, others)
        target.write_bytes(changed)
        return Case(target, name, what)
    document, tensors = opened(originals / name)
    others_said = [opened(originals / other)[0] for other in names]
    if way == "tensors":
        what = _mutate_tensors(random, tensors)
    else:
        what = "; ".join(mutate_json(random, document, others_said) for _ in range(random.choice((1, 1, 1, 2, 4))))
    try:
        changed = seal(document, tensors)
    except Exception as error:  # what no file can hold
        target.write_bytes(data)
        return Case(target, name, f"nothing, for {what} cannot be written ({error!r})")
    if way == "unsealed":
        header, rest = split_header(data)
        header["__metadata__"]["anytimeify"] = split_header(changed)[0]["__metadata__"]["anytimeify"]
        text = json.dumps(header).encode("utf-8", "surrogatepass")
        changed = len(text).to_bytes(8, "little") + text + rest
    target.write_bytes(changed)
    return Case(target, name, f"{way}: {what}", sealed=way != "unsealed")


def _results(net: AnytimeModel) -> Results:
    inputs = net.captured.example_inputs if not net.captured.example_inputs[0].is_floating_point() else (images(),)
    if not net.captured.example_inputs[0].is_floating_point():
        inputs = (torch.arange(12).reshape(2, 6) % 11,)
    found: dict[str, Tensor | str] = {
        "scheme": str(net.scheme),
        "levels": str(net.levels),
        "loss": repr(net.loss),
        "frozen": str([name for name, parameter in net.named_parameters() if not parameter.requires_grad]),
        "order": str(list(net.state_dict())),
    }
    with torch.no_grad():
        for level in net.levels:
            found[f"level {level.index}"] = net(*inputs, level=level)
    return found


# Made by hand.


def crafted(change: Callable[[Document, dict[str, Tensor]], None], original: str = "channels") -> Callable[..., Case]:
    """A file with its description or tensors changed, and checksums that fit."""

    def craft(originals: Path, folder: Path) -> Case:
        document, tensors = opened(originals / original)
        change(document, tensors)
        (folder / "case").write_bytes(seal(document, tensors))
        return Case(folder / "case", original, "made by hand", sealed=True)

    return craft


def _edited(change: Callable[[bytes], bytes]) -> Callable[..., Case]:
    def craft(originals: Path, folder: Path) -> Case:
        (folder / "case").write_bytes(change((originals / "channels").read_bytes()))
        return Case(folder / "case", "channels", "made by hand")

    return craft


def _half_precision_under_another_name(data: bytes) -> bytes:
    return data.replace(b'"F32"', b'"I32"')


def _another_scheme(data: bytes) -> bytes:
    return data.replace(b"widths=0.25,0.5,1", b"widths=0.75,0.5,1")


def _examples(shape: list[int]) -> Callable[[Document, object], None]:
    return lambda document, _: document.update(examples=[[shape, "float32", 0]])


def _first_call(document: Document) -> Any:
    return next(node for node in document["graph"]["nodes"] if node["op"] == "call_function")


def _code(field: str) -> Callable[[Document, object], None]:
    def change(document: Document, _: object) -> None:
        node = _first_call(document)
        if field == "origin":
            node["origin"] = [CANARY, CANARY, CANARY]
        elif field == "keyword":
            node["kwargs"] = {f"x={CANARY}": 1}
        else:
            node[field] = CANARY

    return change


def _counts(change: Callable[[list[Any]], Any]) -> Callable[..., Case]:
    """The first number that counts channels, changed: an argument, a power, and dimensions of nodes."""

    def made(document: Document, _: object) -> None:
        node = next(node for node in document["graph"]["nodes"] if "counts" in node)
        node["counts"] = change(node["counts"])

    return crafted(made, "counts")


def _counted(change: Callable[[list[Any]], Any]) -> Callable[..., Case]:
    """Every part of it is replaced by what `change` makes of `[argument, power, places]`."""
    return _counts(lambda counts: [change(one) for one in counts])


def _kept_module(document: Document, _: object) -> None:
    """Names a module of the process that made the file."""
    node = _first_call(document)
    read = node["args"][0]
    node.update(target="anytimeify.kept_module.default", args=[[read], [], "torch.nn:Linear:layer:0", False], kwargs={})


def _set_scheme(text: str) -> Callable[[Document, object], None]:
    return lambda document, _: document["scheme"].update(spec=text)


LOADER = Loader(
    "model",
    _make,
    _mutate,
    anytimeify.load,
    _results,
    {
        "terabytes of examples": crafted(_examples([2, 3, 10**6, 10**6])),
        "gigabytes of examples": crafted(_examples([2, 3, 20000, 20000])),
        "examples of a negative size": crafted(_examples([2, 3, -1, 8])),
        "examples beyond all integers": crafted(_examples([2, 3, 2**70, 8])),
        "code as an operation": crafted(_code("target")),
        "code as the name of a node": crafted(_code("name")),
        "code as a keyword": crafted(_code("keyword")),
        "code as an origin": crafted(_code("origin")),
        "a billion levels": crafted(_set_scheme(f"nested-channels{{widths={','.join(['0.5'] * 20000)},1}}")),
        "a tower of leaves": crafted(_set_scheme("hierarchical-ensemble{splits=((conv,1000000000))}")),
        "deep brackets": crafted(_set_scheme("nested-channels{widths=" + "(" * 5000 + "}")),
        "a number that counts no node": _counted(lambda one: [one[0], one[1], [[CANARY, 0]]]),
        "a number that counts a later node": _counted(lambda one: [one[0], one[1], [["output", 0]]]),
        "a number that counts a dimension too many": _counted(lambda one: [*one[:2], [[one[2][0][0], 10**9]]]),
        "a number that counts dimension True": _counted(lambda one: [*one[:2], [[one[2][0][0], True]]]),
        "a number that counts dimension -1": _counted(lambda one: [*one[:2], [[one[2][0][0], -1]]]),
        "a number that counts nothing": _counted(lambda one: [*one[:2], []]),
        "a number that counts everything": _counted(lambda one: [*one[:2], one[2] * 100000]),
        "a number of another argument": _counted(lambda one: ["self", *one[1:]]),
        "a number of an argument of code": _counted(lambda one: [CANARY, *one[1:]]),
        "a number to the power of a billion": _counted(lambda one: [one[0], 10**9, one[2]]),
        "a number to no power": _counted(lambda one: [one[0], None, one[2]]),
        "a number to a power of text": _counted(lambda one: [one[0], CANARY, one[2]]),
        "a number of one part": _counted(lambda one: one[:1]),
        "a number of numbers": _counts(lambda counts: [counts]),
        "numbers that are text": _counts(lambda counts: CANARY),
        "numbers that are a number": _counts(lambda counts: 7),
        "the same number twice": _counts(lambda counts: counts * 2),
        "a module of the process": crafted(_kept_module),
        "half a surrogate": crafted(lambda document, _: document["notes"].append("\ud800")),
        "another type, same bytes": _edited(_half_precision_under_another_name),
        "another scheme": _edited(_another_scheme),
        "one value changed": _edited(lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        "a longer header than file": _edited(lambda data: (2**63).to_bytes(8, "little") + data[8:]),
    },
)
