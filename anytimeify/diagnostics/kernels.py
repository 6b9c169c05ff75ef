"""Whether two networks inside an anytime model learn the same convolution kernels.

`kernel_correlation(net, one, other)` correlates every kernel of one branch with every kernel of another, layer after
layer: the heat maps by which papers on branches that teach each other show how alike branches become. Weights alone are
looked at, no data is needed.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from anytimeify.diagnostics.pictures import drawing, grid
from anytimeify.errors import ArgumentError
from anytimeify.graph.traversal import ancestors
from anytimeify.ir import PAIR, Level, Program, names
from anytimeify.passes.rewrites.project import project
from anytimeify.report.tables import Table, Tables
from anytimeify.rules import Layers, contractions
from anytimeify.runtime.model import AnytimeModel

__all__ = ["KernelCorrelation", "LayerCorrelation", "inside", "kernel_correlation", "leaf_program"]

_LEAST = 3  # weights of a kernel: two numbers always correlate perfectly, one not at all
_SHARED = "shared by both"
_SUMMARY = ("weights", "averaged", "mean", "best", "by_chance", "likeness", "mutual")


def kernel_correlation(
    net: AnytimeModel, one: int | Level, other: int | Level, layer: str | None = None, *, average: bool = False
) -> KernelCorrelation:
    """Pearson's correlation of every kernel of `one` with every kernel of `other`, for each convolution that both have
    under the same name of the backbone and with weights of their own.

    A kernel is what makes one output channel: its weights over input channels and positions. Kernels that read
    different numbers of channels are averaged over them first, all others if `average` says so: an average does not
    depend on the order of the input channels, which two branches number differently after their first layers.

    Parameters
        one, other: levels; in an ensemble, whose levels are several networks each, numbers of leaves.
        layer: a convolution, or a part of the network that holds some.

    Raises `ArgumentError` for levels and layers that there are none of, and where nothing can be compared (levels that
    share all weights, as nested widths do; pooled heads).
    """
    first, second = _network(net, one), _network(net, other)
    common = [name for name in first.kernels if name in second.kernels]
    names = common if layer is None else inside(common, layer)
    layers: list[LayerCorrelation] = []
    left_out: dict[str, str] = {}
    for name in names:
        found = _correlate(name, first.kernels[name], second.kernels[name], average=average)
        if isinstance(found, str):
            left_out[name] = found
        else:
            layers.append(found)
    if not layers:
        why = [f"{count} layer{'s' * (count > 1)} {reason}" for reason, count in _reasons(left_out).items()]
        raise ArgumentError(
            f"{first.name} and {second.name} have no convolutions to compare{f' in {layer!r}' if layer else ''}: "
            f"{', '.join(why) or 'there are none of the same name'}; choose branches with layers of their own"
        )
    return KernelCorrelation(first.name, second.name, tuple(layers), left_out)


@dataclass(frozen=True, eq=False)
class LayerCorrelation:
    """One convolution of two networks.

    Fields
        name: of the layer in the backbone.
        matrix: correlations, (kernels of one, kernels of the other); NaN for a kernel whose weights are all equal.
        weights: how many numbers of a kernel were correlated.
        averaged: whether they are averages over input channels.
    """

    name: str
    matrix: Tensor
    weights: int
    averaged: bool

    @cached_property
    def _strength(self) -> Tensor:
        """Absolute correlations of the kernels that are not constant."""
        known = ~self.matrix.isnan()
        return self.matrix.abs()[known.any(1)][:, known.any(0)]

    @property
    def mean(self) -> float:
        """The mean absolute correlation."""
        return float(self._strength.mean())

    @property
    def best(self) -> float:
        """The mean, over the kernels of one, of the largest absolute correlation with a kernel of the other."""
        return float(self._strength.amax(1).mean())

    @cached_property
    def by_chance(self) -> float:
        """What `best` would be for independent kernels with normal weights."""
        return _by_chance(self.weights, self._strength.shape[1])

    @property
    def likeness(self) -> float:
        """`best` on a scale from 0, which independent kernels have, to 1 for copies in whatever order."""
        return (self.best - self.by_chance) / (1 - self.by_chance)

    @property
    def mutual(self) -> float:
        """The share of the kernels of one whose best match has them as its own best match; about half by chance."""
        forth, back = self._strength.argmax(1), self._strength.argmax(0)
        return float((back[forth] == torch.arange(len(forth))).double().mean())


@dataclass(frozen=True, eq=False)
class KernelCorrelation(Tables):
    """The convolutions of two networks inside an anytime model; prints as a table.

    `layers`: in the order of the network. `left_out`: why other layers of both were not compared, by name.
    """

    one: str
    other: str
    layers: tuple[LayerCorrelation, ...]
    left_out: Mapping[str, str]

    def __getitem__(self, name: str) -> LayerCorrelation:
        """The layer of that name; `KeyError` where it was not compared."""
        return {layer.name: layer for layer in self.layers}[name]

    def title(self) -> str:
        return f"Correlation of the kernels of {self.one} with those of {self.other}"

    def tables(self, *, everything: bool) -> Iterator[Table]:
        yield Table(
            "Layers",
            ("layer", ">kernels", ">weights", ">mean |r|", ">best |r|", ">by chance", ">likeness", ">mutual"),
            tuple(_row(layer) for layer in self.layers),
        )
        counts = tuple((str(count), why) for why, count in _reasons(self.left_out).items())
        rows = tuple(self.left_out.items()) if everything else counts
        yield Table("Left out", ("layer" if everything else ">layers", "why"), rows)

    def to_json(self) -> str:
        """The summaries, without the matrices."""
        layers = [
            {"name": layer.name, "kernels": list(layer.matrix.shape)} | {key: getattr(layer, key) for key in _SUMMARY}
            for layer in self.layers
        ]
        named = {"one": self.one, "other": self.other, "layers": layers, "left_out": dict(self.left_out)}
        return json.dumps(named, indent=2)

    def plot(self, path: str | os.PathLike[str], layer: str | None = None) -> None:
        """Draws a heat map of every layer, or of those that `layer` names or holds.

        The suffix of `path` chooses the format. Raises `MissingExtraError` without the extra `plot`, `ArtifactError`
        where the picture cannot be written, `ArgumentError` for a layer that was not compared.
        """
        known = {one.name: one for one in self.layers}
        chosen = list(known) if layer is None else inside(list(known), layer)
        _heat_maps(path, [known[name] for name in chosen], self.one, self.other)


def _row(layer: LayerCorrelation) -> tuple[str, ...]:
    kernels = f"{layer.matrix.shape[0]} x {layer.matrix.shape[1]}"
    numbers = (layer.mean, layer.best, layer.by_chance, layer.likeness)
    weights = f"{layer.weights}{' averaged' if layer.averaged else ''}"
    return layer.name, kernels, weights, *(f"{number:z.3f}" for number in numbers), f"{100 * layer.mutual:.0f} %"


def _reasons(left_out: Mapping[str, str]) -> dict[str, int]:
    """How many layers were left out for each reason."""
    reasons = list(left_out.values())
    return {why: reasons.count(why) for why in dict.fromkeys(reasons)}


# The kernels of one network.


@dataclass(frozen=True)
class _Kernels:
    weight: Tensor  # (kernels, input channels, positions)
    sizes: tuple[int, ...]
    identity: Hashable  # equal for the same weights under one name or several


@dataclass(frozen=True)
class _Network:
    name: str
    kernels: Mapping[str, _Kernels]


def _network(net: AnytimeModel, given: int | Level) -> _Network:
    stacks = net.rewritten.stacked_parameters
    if stacks and isinstance(given, Level):
        raise ArgumentError(f"{given.name!r} is several networks: give the number of a leaf instead of a level")
    index: Any = given.index if isinstance(given, Level) else given
    count, what = (len(net.rewritten.members), "leaf") if stacks else (len(net.levels), "level")
    if isinstance(index, bool) or not isinstance(index, int) or not -count <= index < count:
        raise ArgumentError(f"there is no {what} {given!r}: they are 0 to {count - 1}")
    return _leaf(net, index % count) if stacks else _level(net, index % count)


def _level(net: AnytimeModel, index: int) -> _Network:
    rewritten = net.rewritten
    program = project(rewritten.program, [rewritten.position(index)])
    # Of two networks side by side, layers have the names that they have in their own network.
    halves = re.compile(rf"({'|'.join(PAIR)})\." if len(rewritten.backbones) > 1 else "")

    def backbone_name(name: str) -> str:
        plain = names.without_level(name, index)
        half = halves.match(plain)
        return plain[half.end() :] if half else plain

    kernels = _read(program, backbone_name, lambda name: id(program.tensors[name]))
    return _Network(f"'{net.levels[index].name}'", kernels)


def _leaf(net: AnytimeModel, index: int) -> _Network:
    stacks = net.rewritten.program.tensors
    read, member = leaf_program(net, index)
    return _Network(f"leaf {index}", _read(read, str, lambda name: (id(stacks[name]), member.get(name, 0))))


def leaf_program(net: AnytimeModel, index: int) -> tuple[Program, Mapping[str, int]]:
    """The backbone's own graph with a leaf's parts of the stacks, and which part of each that is."""
    stacks, program = net.rewritten.program.tensors, net.captured.program
    leaves = len(net.rewritten.members)
    tensors, member = dict(program.tensors), {}
    for name in net.rewritten.stacked_parameters:
        own = program.tensors[name]
        count = stacks[name].numel() // own.numel()
        member[name] = index * count // leaves
        tensors[name] = stacks[name].detach().reshape(count, *own.shape)[member[name]]
    return Program(program.graph, tensors), member


def _read(
    program: Program, backbone_name: Callable[[str], str], identity: Callable[[str], Hashable]
) -> dict[str, _Kernels]:
    found: dict[str, _Kernels] = {}
    constant = Layers(program).constant
    for node in program.graph.nodes:
        ways = (one for one in contractions(node) if one.weight in constant)
        layer = next((one for one in ways if one.kernel and one.rows is not None), None)
        if layer is None:
            continue
        sources = sorted(ancestors([layer.weight]), key=lambda source: source.name)
        read = [str(source.target) for source in sources if source.op == "get_attr"]
        read = [name for name in read if program.tensors[name].is_floating_point()]
        if not read or any(source.op == "placeholder" for source in sources):
            continue  # kernels that depend on the input are another set for every sample
        largest = max(read, key=lambda name: program.tensors[name].numel())
        weight = _value(program, layer.weight).detach().cpu().double()
        kernels = _by_output(weight, layer.groups) if layer.columns == 0 else weight
        name = names.without_weight(backbone_name(largest))
        found[name] = _Kernels(kernels.flatten(2), tuple(kernels.shape[2:]), frozenset(map(identity, read)))
    return found


@torch.no_grad()
def _value(program: Program, node: fx.Node) -> Any:
    """What a node makes of parameters alone: a weight as it is, a part of one, a standardised one."""
    if node.op == "get_attr":
        return program.tensors[str(node.target)]
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: _value(program, source))
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _by_output(weight: Tensor, groups: int) -> Tensor:
    """(inputs, outputs / groups, ...) of a transposed convolution -> (outputs, inputs / groups, ...)."""
    by_group: Tensor = weight.unflatten(0, (groups, -1))
    return by_group.transpose(1, 2).flatten(0, 1)


def inside(names: list[str], layer: str, what: str = "no convolution of that name is in both") -> list[str]:
    """The names that a layer has, or that lie in it; `ArgumentError` that says what there is none of."""
    found = [name for name in names if name == layer or name.startswith(f"{layer}.")]
    if not found:
        near = difflib.get_close_matches(layer, names, 1) or names[:1]
        raise ArgumentError(
            f"layer={layer!r}: {what}" + (f"; one that is: {near[0]!r}" if near else "; there are none at all")
        )
    return found


# Numbers.


def _correlate(name: str, one: _Kernels, other: _Kernels, *, average: bool) -> LayerCorrelation | str:
    """The correlations of a layer, or why there are none."""
    if one.identity == other.identity:
        return _SHARED
    if one.sizes != other.sizes:
        return "with kernels of other sizes"
    averaged = average or one.weight.shape[1] != other.weight.shape[1]
    rows = [kernels.weight.mean(1) if averaged else kernels.weight.flatten(1) for kernels in (one, other)]
    if rows[0].shape[1] < _LEAST:
        return f"with kernels of fewer than {_LEAST} numbers"
    matrix = _standardised(rows[0]) @ _standardised(rows[1]).T
    if matrix.isnan().all():
        return "with constant kernels"
    return LayerCorrelation(name, matrix.clamp(-1, 1).float(), rows[0].shape[1], averaged)


def _standardised(rows: Tensor) -> Tensor:
    """Rows of mean 0 and length 1; NaN where all numbers are equal but for rounding."""
    centred = rows - rows.mean(1, keepdim=True)
    length: Tensor = centred.norm(dim=1, keepdim=True)
    return centred / length.where(length > 1e-12 * rows.norm(dim=1, keepdim=True), math.nan)


def _by_chance(weights: int, others: int) -> float:
    """The expected largest |r| of a kernel with `others` independent kernels of normal weights.

    Centred and of length 1 these are uniform on a sphere, so |r| = sin(a) with a density of a that is proportional to
    cos(a)^(weights - 3). The expectation of the largest is the integral of 1 - P(all below r) over r.
    """
    angle = torch.linspace(0, math.pi / 2, 8193, dtype=torch.float64)
    below = torch.cumulative_trapezoid(angle.cos() ** (weights - 3), angle)
    below = torch.cat((below.new_zeros(1), below / below[-1]))
    return float(torch.trapezoid(angle.cos() * (1 - below**others), angle))


# Pictures.


def _heat_maps(path: str | os.PathLike[str], layers: list[LayerCorrelation], one: str, other: str) -> None:
    with drawing(path, "Drawing a heat map") as figure:
        panels = grid(figure, len(layers), 2.6)
        for panel, layer in zip(panels, layers, strict=True):
            image = panel.imshow(layer.matrix.numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            panel.set_title(f"{layer.name}, likeness {layer.likeness:z.2f}", fontsize=8)
            panel.tick_params(labelsize=6)
        figure.colorbar(image, ax=figure.axes, shrink=0.8, label="correlation")
        figure.supylabel(f"kernels of {one}", fontsize=9)
        figure.supxlabel(f"kernels of {other}", fontsize=9)
