"""State dicts: names, values and tensors of what `torch.save` and safetensors write, and the bytes of their files."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from anytimeify.capture.checkpoint import load_checkpoint
from tests.fuzz.loader import Case, Loader, Results
from tests.fuzz.mutations import (
    in_order,
    members_of,
    mutate_bytes,
    mutate_header,
    mutate_json,
    mutate_text,
    write_archive,
)

__all__ = ["LOADER", "plain"]


class Network(nn.Module):
    """A layer, a norm, two layers with one weight, and a buffer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight


def _make(folder: Path) -> None:
    state = Network().state_dict()
    torch.save(state, folder / "plain.pt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    optimiser = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "state_dict": parallel, "optimizer": optimiser}, folder / "script.pt")
    safetensors.torch.save_file({name: one.clone() for name, one in state.items()}, folder / "plain.safetensors")
    in_order(folder / "plain.safetensors")


def _mutate(random: Random, originals: Path, folder: Path) -> Case:
    names = sorted(path.name for path in originals.iterdir())
    name = random.choice(names)
    original, target = originals / name, folder / f"case{Path(name).suffix}"
    ways = {
        "plain.safetensors": (_in_bytes, _in_header),
        "old.pt": (_in_bytes, _in_object, _in_tensor),
    }.get(name, (_in_bytes, _in_member, _in_member, _in_members, _in_object, _in_object, _in_tensor))
    what = random.choice(ways)(random, original, target)
    return Case(target, name, what, sealed=True)  # neither format has checksums that are compared


def _in_bytes(random: Random, original: Path, target: Path) -> str:
    others = [path.read_bytes() for path in sorted(original.parent.iterdir())]
    data, what = mutate_bytes(random, original.read_bytes(), others)
    target.write_bytes(data)
    return what


def _in_header(random: Random, original: Path, target: Path) -> str:
    data, what = mutate_header(random, original.read_bytes())
    target.write_bytes(data)
    return what


def _in_member(random: Random, original: Path, target: Path) -> str:
    """The pickle, mostly: a text in it, or bytes."""
    members = members_of(original)
    name = random.choice(("data.pkl", "data.pkl", "data.pkl", *sorted(members)))
    if random.random() < 0.3:
        word = random.choice(WORDS)
        members[name] = members[name].replace(word, random.choice(OTHERS), random.choice((1, -1)))
        what = f"another {word!r}"
    else:
        members[name], what = mutate_bytes(random, members[name])
    write_archive(members, target)
    return f"{name}: {what}"


WORDS = (b"torch._utils\n_rebuild_tensor_v2", b"torch\nFloatStorage", b"collections\nOrderedDict", b"cpu", b"storage")
OTHERS = (
    *(b"os\nsystem", b"builtins\neval", b"torch._utils\n_rebuild_sparse_tensor", b"torch\nBoolStorage", b"torch\nload"),
    *(b"torch._utils\n_rebuild_meta_tensor_no_storage", b"torch._utils\n_rebuild_qtensor", b"torch\nSize", b"meta"),
    *(b"builtins\nbytearray", b"_codecs\nencode", b"torch._tensor\n_rebuild_from_type_v2", b"cuda:7", b"mps"),
)


def _in_members(random: Random, original: Path, target: Path) -> str:
    members = members_of(original)
    one, two = random.choice(sorted(members)), random.choice(sorted(members))
    way = random.choice(("exchange", "drop", "rename"))
    if way == "exchange":
        members[one], members[two] = members[two], members[one]
    elif way == "drop":
        del members[one]
    else:
        members[mutate_text(random, one).encode("utf-8", "replace").decode().replace("\0", "")] = members.pop(one)
    write_archive(members, target)
    return f"{way} members {one}, {two}"


def _in_object(random: Random, original: Path, target: Path) -> str:
    """What is pickled: names and values."""
    found = plain(torch.load(original, weights_only=True))
    what = "; ".join(mutate_json(random, found) for _ in range(random.choice((1, 1, 2))))
    _save(found, original, target)
    return what


def _in_tensor(random: Random, original: Path, target: Path) -> str:
    """A tensor of another kind, or shape."""
    found = plain(torch.load(original, weights_only=True))
    state = found.get("state_dict", found)
    name = random.choice(sorted(state))
    way = random.choice(sorted(KINDS))
    state[name] = KINDS[way](state[name])
    _save(found, original, target)
    return f"{name}: {way}"


KINDS: dict[str, Callable[[Tensor], Any]] = {
    "on no device": lambda tensor: tensor.to("meta"),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "boolean": lambda tensor: tensor > 0,
    "half": lambda tensor: tensor.half(),
    "double": lambda tensor: tensor.double(),
    "not finite": lambda tensor: tensor / 0,
    "sparse": lambda tensor: tensor.to_sparse(),
    "quantised": lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
    "nested": lambda tensor: torch.nested.nested_tensor([tensor.float().reshape(-1)]),
    "a parameter": lambda tensor: nn.Parameter(tensor.float()),
    "a view that repeats": lambda tensor: tensor.reshape(-1)[:1].expand(1 << 40),
    "longer": lambda tensor: torch.cat([tensor.reshape(-1)] * 2),
    "flat": lambda tensor: tensor.reshape(-1),
    "empty": lambda tensor: tensor.reshape(-1)[:0],
}


def plain(value: Any) -> Any:
    """Dicts that can be changed."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return value


def _save(found: Any, original: Path, target: Path) -> None:
    torch.save(found, target, _use_new_zipfile_serialization=original.name != "old.pt")


def _load(path: Path) -> nn.Module:
    model = Network()
    load_checkpoint(model, path)
    return model


def _results(model: nn.Module) -> Results:
    return model.state_dict()


def _crafted(write: Callable[[Path], object], suffix: str = ".pt") -> Callable[[Path, Path], Case]:
    def craft(originals: Path, folder: Path) -> Case:
        target = folder / f"case{suffix}"
        write(target)
        return Case(target, "plain.pt", "made by hand", sealed=True)

    return craft


class _Runs:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


def _with(name: Any, value: Any) -> Callable[[Path], object]:
    """A state dict with one value that is another."""
    return lambda target: torch.save({**Network().state_dict(), name: value}, target)


def _compressed(target: Path) -> None:
    """Members that grow when they are read."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        data = io.BytesIO()
        torch.save({"conv.weight": torch.zeros(1 << 27)}, data)
        with zipfile.ZipFile(data) as written:
            for name in written.namelist():
                archive.writestr(name, written.read(name))


def _tar(target: Path) -> None:
    """The form of torch before 0.1.10."""
    with tarfile.open(target, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(_Runs(), protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def _tar_of_zip(target: Path) -> None:
    """One that ends as a zip archive does."""
    inner = target.with_name("pickle")
    torch.save({}, inner)
    with tarfile.open(target, "w") as archive:
        archive.add(inner, "pickle")
    inner.unlink()


def _script(target: Path) -> None:
    """A program, which is no state dict."""
    with zipfile.ZipFile(target, "w") as archive:
        for name in ("code/__torch__.py", "constants.pkl", "data.pkl", "version"):
            archive.writestr(f"model/{name}", "3")


def _enormous(target: Path) -> None:
    """Tensors of more bytes than the file has."""
    header = json.dumps({"conv.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    target.write_bytes(len(header).to_bytes(8, "little") + header)


LOADER = Loader(
    "checkpoint",
    _make,
    _mutate,
    _load,
    _results,
    {
        "a pickle that runs": _crafted(lambda target: target.write_bytes(pickle.dumps(_Runs()))),
        "an object that runs": _crafted(lambda target: torch.save({"conv.weight": _Runs()}, target)),
        "an object that runs, in the old form": _crafted(
            lambda target: torch.save({"conv.weight": _Runs()}, target, _use_new_zipfile_serialization=False)
        ),
        "a module": _crafted(lambda target: torch.save(nn.Linear(2, 2), target)),
        "a module's name for a tensor's": _crafted(_with("conv", torch.zeros(1))),
        "a number for a name": _crafted(_with(3, torch.zeros(1))),
        "a tensor without values": _crafted(_with("conv.bias", torch.zeros(4, device="meta"))),
        "a sparse tensor": _crafted(_with("conv.bias", torch.ones(4).to_sparse())),
        "complex numbers": _crafted(_with("conv.bias", torch.ones(4, dtype=torch.complex64))),
        "broken numbers for a counter": _crafted(_with("norm.num_batches_tracked", torch.tensor(0.5))),
        "members that grow": _crafted(_compressed),
        "a tar file": _crafted(_tar),
        "a tar file that ends as a zip archive does": _crafted(_tar_of_zip),
        "a program": _crafted(_script),
        "terabytes": _crafted(_enormous, ".safetensors"),
        "nothing": _crafted(lambda target: target.touch()),
        "no tensors": _crafted(lambda target: torch.save({}, target)),
        "itself inside": _crafted(lambda target: torch.save(_circle(), target)),
    },
)


def _circle() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["state_dict"] = found
    return found
