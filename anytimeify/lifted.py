"""Which module computes a call: what the rule of its operation says (`anytimeify.rules.lifting`), looked up for one
node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from anytimeify.ir import Program, TensorType
from anytimeify.node_meta import type_of
from anytimeify.rules import traits
from anytimeify.rules.lifting import Lifting, Shapes
from anytimeify.schema import bound

__all__ = ["Call", "Instance", "by_mode", "parametric", "plain"]

Config = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Instance:
    """A module yet to be built: two equal ones are one module."""

    kind: type[nn.Module]
    config: Config = ()
    meta: bool = False  # has tensors, which are replaced: built without memory and without random numbers

    def build(self) -> nn.Module:
        return self.kind(**dict(self.config), **({"device": "meta"} if self.meta else {}))


@dataclass(frozen=True)
class Call:
    """A call of the module at `path`."""

    path: str
    instance: Instance
    args: tuple[Any, ...]


def parametric(program: Program, node: fx.Node, *, training: bool) -> Call | None:
    """The module with tensors that computes `node`, if its tensors are all those of one path."""
    row = next((one for one in traits(node).modules if one.tensors), None)
    if row is None:
        return None
    values = bound(node)
    given = {name: values[name] for name in row.tensors if values[name] is not None}
    if not given or not all(isinstance(reader, fx.Node) and reader.op == "get_attr" for reader in given.values()):
        return None
    path = _common_path(program, {row.tensors[name]: str(reader.target) for name, reader in given.items()}, node)
    if not path or _has_nodes(
        value for name, value in values.items() if name not in row.tensors and name not in row.inputs
    ):
        return None
    sizes = {name: tuple(program.tensors[str(reader.target)].shape) for name, reader in given.items()}
    found = row.read(values, Shapes(sizes, _rank(values[row.inputs[0]]), training))
    if found is None:
        return None
    kind, config = found
    return Call(path, Instance(kind, tuple(config.items()), meta=True), tuple(values[name] for name in row.inputs))


def _common_path(program: Program, targets: Mapping[str, str], node: fx.Node) -> str | None:
    """The path whose attributes are these tensors; tied tensors have several names, any of which may give it."""
    candidates = [*(target.rpartition(".")[0] for target in targets.values()), str(node.meta["origin"].module_path)]
    for path in dict.fromkeys(candidates):
        if all(program.tensors.get(f"{path}.{name}") is program.tensors[target] for name, target in targets.items()):
            return path
    return None


def _has_nodes(values: Iterator[Any]) -> bool:
    found: list[fx.Node] = []
    for value in values:
        fx.map_arg(value, found.append)
    return bool(found)


def plain(node: fx.Node) -> Call | None:
    """The module without tensors that `node` came out of."""
    rows = [one for one in traits(node).modules if not one.tensors and not one.by_mode]
    origin = node.meta.get("origin")
    if not rows or origin is None or not origin.module_path or not origin.module_class.startswith("torch.nn."):
        return None
    values = bound(node)
    name = next(iter(values))
    if _has_nodes(value for key, value in values.items() if key != name):
        return None
    for row in rows:
        found = row.read(values, Shapes({}, _rank(values[name]), training=True))
        if found is not None and origin.module_class == f"{found[0].__module__}.{found[0].__qualname__}":
            return Call(origin.module_path, Instance(found[0], tuple(found[1].items())), (values[name],))
    return None


def by_mode(node: fx.Node) -> tuple[Instance, Lifting] | None:
    """The module that computes `node` in training and in evaluation, where these differ."""
    for row in traits(node).modules:
        values = bound(node) if row.by_mode else {}
        found = row.read(values, Shapes({}, _rank(values[row.inputs[0]]), training=True)) if row.by_mode else None
        if found is not None:
            return Instance(found[0], tuple(found[1].items())), row
    return None


def _rank(value: Any) -> int:
    kind = type_of(value) if isinstance(value, fx.Node) else None
    return len(kind.shape) if isinstance(kind, TensorType) else 0
