"""Changes to bytes, texts and JSON documents, drawn from a generator: where formats break and code would hide."""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

__all__ = [
    "CANARY",
    "in_order",
    "members_of",
    "mutate_bytes",
    "mutate_header",
    "mutate_json",
    "mutate_text",
    "split_header",
    "write_archive",
]

CANARY = "__import__('os').system('true')"  # what must never run

NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 127, 255, 256, 65536, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30),
    *(0.5, 1.0, -0.0, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")),
)
TEXTS: tuple[str, ...] = (
    *("", " ", ".", "..", "/", "../../../etc/passwd", "/dev/zero", "\0", "\n", "ünïcödé", "\ud800", "a" * 5000),
    *(CANARY, f"x={CANARY}", f'"){CANARY}#', "lambda: 0", "class", "None", "self", "torch", "__class__", "__init__"),
    *("aten.relu_.default", "aten.from_file.default", "os.system", "builtins.eval", "operator.attrgetter", "float32"),
    *("nan", "-1", "1e999", "0x10", "٣", "s0", "s0*s0", "9" * 400, "weight", "0", "{}", "[]", "null"),
)
OTHERS: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    {"": None},
    {"node": "x"},
    {"tuple": [1]},
    {"dict": [[1, 2]]},
)


def _deep() -> Any:
    nested: Any = []
    for _ in range(400):
        nested = [nested]
    return nested


def _value(random: Random, old: Any) -> Any:
    """Something in place of a value: mostly of its own kind."""
    kind = random.random()
    if kind < 0.05:
        return _deep()
    if kind < 0.2:
        return copy.deepcopy(random.choice(OTHERS))
    if kind < 0.25:
        return random.choice(NUMBERS if isinstance(old, str) else TEXTS)
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return random.choice((*NUMBERS, old + 1, old - 1, old * 2, -old, float(old), old + 2**20))
    if isinstance(old, float):
        return random.choice((*NUMBERS, old * 2, -old, old + 1e-9))
    if isinstance(old, str):
        return random.choice(TEXTS) if random.random() < 0.5 else mutate_text(random, old)
    return copy.deepcopy(random.choice(OTHERS))


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """All (container, key) of a document."""
    waiting = [document]
    while waiting:
        one = waiting.pop()
        items = enumerate(one) if isinstance(one, list) else one.items() if isinstance(one, dict) else ()
        for key, value in items:
            yield one, key
            waiting.append(value)


def _place(random: Random, document: Any) -> tuple[Any, Any] | None:
    """A container and a key, found by going down: what is near the top is as likely as all of a large table."""
    found = None
    while isinstance(document, list | dict) and document:
        key = random.randrange(len(document)) if isinstance(document, list) else random.choice(list(document))
        found = document, key
        if random.random() < 0.15:
            break
        document = document[key]
    return found


def mutate_json(random: Random, document: Any, others: Sequence[Any] = ()) -> str:
    """Changes a document in place, and says what was changed. `others`: documents to take parts from."""
    found = _place(random, document)
    if found is None:
        return "nothing"
    container, key = found
    action = random.choice(("value", "value", "value", "value", "delete", "double", "swap", "splice", "rename"))
    if action == "delete":
        del container[key]
    elif action == "double" and isinstance(container, list):
        container.insert(random.randrange(len(container) + 1), copy.deepcopy(container[key]))
    elif action == "swap" and len(container) > 1:
        other = random.choice(list(range(len(container)) if isinstance(container, list) else container))
        container[key], container[other] = container[other], container[key]
    elif action == "splice":
        same = [one[name] for source in (document, *others) for one, name in _places(source) if name == key]
        container[key] = copy.deepcopy(random.choice(same)) if same else None
    elif action == "rename" and isinstance(container, dict):
        new = random.choice((*TEXTS, *container, mutate_text(random, str(key))))
        container[new] = container.pop(key)
    else:
        container[key] = _value(random, container[key])
    return f"{action} at {key!r}"


def mutate_text(random: Random, text: str, tokens: Sequence[str] = ()) -> str:
    """One change to a text: a letter, a piece of it, or one of `tokens`."""
    start = random.randrange(len(text) + 1)
    end = min(len(text), start + random.choice((0, 1, 1, 2, 5, 20)))
    pieces: list[Callable[[], str]] = [
        lambda: "",
        lambda: chr(random.choice((0, 9, 10, 32, 39, 40, 41, 44, 46, 58, 61, 92, 95, 123, 125, 0x663, 0x2028, 0xD800))),
        lambda: text[start:end] * random.choice((2, 3, 500)),
        lambda: str(random.choice(NUMBERS)),
        lambda: random.choice(TEXTS),
        lambda: random.choice(tokens or TEXTS),
        lambda: "(" * random.choice((1, 3000)),
    ]
    return text[:start] + random.choice(pieces)() + text[end:]


def mutate_bytes(random: Random, data: bytes, others: Sequence[bytes] = ()) -> tuple[bytes, str]:
    """One change to bytes, and what it was."""
    place = random.randrange(len(data)) if data else 0
    length = min(random.choice((1, 1, 2, 8, 64, 4096)), len(data) - place)
    action = random.choice(("flip", "flip", "truncate", "zero", "insert", "append", "splice", "repeat", "random"))
    if action == "flip" and data:
        return data[:place] + bytes([data[place] ^ (1 << random.randrange(8))]) + data[place + 1 :], f"flip at {place}"
    if action == "truncate":
        return data[:place], f"truncate to {place}"
    if action == "append":
        return data + random.randbytes(length), f"append {length}"
    if action == "splice" and others:
        other = random.choice(others)
        cut = random.randrange(len(other) + 1)
        return data[:place] + other[cut:], f"splice at {place} from {cut}"
    new = {"zero": bytes(length), "repeat": data[place : place + length] * 3}.get(action, random.randbytes(length))
    rest = place if action == "insert" else place + length
    return data[:place] + new + data[rest:], f"{action} {length} at {place}"


# The header of safetensors: eight bytes that say how long it is, then JSON.


def split_header(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the rest of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    return header, data[8 + length :]


def in_order(path: Path) -> None:
    """Writes a file again with its header in order, which safetensors leaves to chance: a number stands for a case."""
    header, rest = split_header(path.read_bytes())
    text = json.dumps(header, sort_keys=True).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest)


def mutate_header(random: Random, data: bytes) -> tuple[bytes, str]:
    """A safetensors file with something changed in its header, whose length is made to fit, mostly."""
    header, rest = split_header(data)
    what = mutate_json(random, header)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    length = (
        len(text) if random.random() < 0.9 else random.choice((0, 1, len(text) - 1, len(text) + 1, 2**40, 2**64 - 1))
    )
    return length.to_bytes(8, "little") + text + rest, f"header: {what}"


# The zip archives that torch writes: a folder that holds all members.


def members_of(path: Path) -> dict[str, bytes]:
    """The members of an archive, without the folder in their names."""
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write_archive(members: Mapping[str, bytes], path: Path, root: str = "model") -> None:
    """An archive whose checksums fit its members."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{root}/{name}", data)
