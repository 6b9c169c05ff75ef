"""What every level adds to the activations of the one before.

`activation_increments(net, images)` runs all levels and takes, layer by layer, the difference of neighbouring levels'
activations: maps of where in an image a higher level sees what the lower one did not.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from anytimeify.analysis.axes import Axes, Widths
from anytimeify.analysis.blocks import find_blocks, positions
from anytimeify.codegen.to_modules import to_modules
from anytimeify.diagnostics.chunks import leaves_of_levels, skipped_blocks, widths_of_levels
from anytimeify.diagnostics.kernels import inside, leaf_program
from anytimeify.diagnostics.pictures import drawing
from anytimeify.errors import ArgumentError
from anytimeify.ir import Program, TensorType
from anytimeify.ir.node_meta import origin_of, type_of
from anytimeify.report.tables import Table, Tables, in_percent
from anytimeify.runtime import extraction
from anytimeify.runtime.model import AnytimeModel

__all__ = ["ActivationIncrements", "LayerIncrements", "activation_increments"]

_FLAT = "has no positions"
_MIXED = "has the batch and positions in one dimension"
_OTHER = "has other channels in a level than its widths say"
_MISSING = "is not computed by every level"


def activation_increments(net: AnytimeModel, inputs: Any, layer: str | None = None) -> ActivationIncrements:
    """For each layer and each level, the mean over channels of |activation - activation of the level before|, at every
    position of every sample; of the first level, the mean of |activation|.

    Channels that the level before does not have count as zeros there; the result of a block that it skips is what the
    block would have read. An ensemble's activation is the mean over its
    leaves, as its prediction is. The network runs in evaluation mode, which this leaves as it was.

    Parameters
        inputs: a tensor, a tuple of positional or a mapping of keyword arguments.
        layer: a module of the backbone, whose result is taken; by default, the ends of all blocks.

    Raises `ArgumentError` for a layer that there is none of, for two networks side by side, and where no activation has
    both positions and the same meaning in every level.
    """
    if len(net.backbones) > 1:
        raise ArgumentError("levels of two networks do not add to each other: there are no increments")
    program, axes = net.captured.program, net.axes
    places = _blocks(program, axes) if layer is None else _modules(program, layer)
    args = inputs if isinstance(inputs, tuple | list) else () if isinstance(inputs, Mapping) else (inputs,)
    flat = net.call_signature.flat(tuple(args), inputs if isinstance(inputs, Mapping) else {})
    found: list[LayerIncrements] = []
    left_out: dict[str, str] = {}
    wanted: dict[str, fx.Node] = {}
    for name, node in places.items():
        why = _unsuited(node, axes, flat[0].shape[0])
        if why is None:
            wanted[name] = node
        else:
            left_out[name] = why
    skipped, widths = skipped_blocks(net), widths_of_levels(net)
    values = _values(net, list({*wanted.values(), *skipped.values()}), flat)
    for name, node in wanted.items():
        maps = _increments(node, axes, widths, [_of(level, node, skipped) for level in values])
        if isinstance(maps, str):
            left_out[name] = maps
        else:
            found.append(LayerIncrements(name, *maps))
    if not found:
        why = "; ".join(f"{name} {reason}" for name, reason in list(left_out.items())[:4])
        raise ArgumentError(f"no activation shows what levels add: {why}; choose another layer")
    return ActivationIncrements(tuple(level.name for level in net.levels), tuple(found), left_out)


@dataclass(frozen=True, eq=False)
class LayerIncrements:
    """One layer of all levels.

    Fields
        name: of the module in the backbone.
        maps: (levels, samples, positions...), the mean over the level's channels of what it adds, in absolute value.
        size: (levels,), the mean absolute activation of each level.
    """

    name: str
    maps: Tensor
    size: Tensor

    @property
    def added(self) -> Tensor:
        """(levels,): what each level adds as a share of its own activation; 1 for the first level."""
        return self.maps.flatten(1).mean(1) / self.size


@dataclass(frozen=True, eq=False)
class ActivationIncrements(Tables):
    """The layers of an anytime model; prints as a table of the shares that levels add.

    `layers`: in the order of the network. `left_out`: why other layers are not there, by name.
    """

    levels: tuple[str, ...]
    layers: tuple[LayerIncrements, ...]
    left_out: Mapping[str, str]

    def __getitem__(self, name: str) -> LayerIncrements:
        """The layer of that name; `KeyError` where there is none."""
        return {layer.name: layer for layer in self.layers}[name]

    def title(self) -> str:
        return "What levels add to the activations of the one before, as a share of their own"

    def tables(self, *, everything: bool) -> Iterator[Table]:
        yield Table(
            "Layers",
            ("layer", ">positions", *(f">{name}" for name in self.levels)),
            tuple(
                (layer.name, " x ".join(map(str, layer.maps.shape[2:])), *map(in_percent, layer.added.tolist()))
                for layer in self.layers
            ),
        )
        yield Table("Left out", ("layer", "why"), tuple(self.left_out.items()))

    def to_json(self) -> str:
        """The shares, without the maps."""
        layers = [
            {"name": layer.name, "positions": list(layer.maps.shape[2:]), "added": layer.added.tolist()}
            for layer in self.layers
        ]
        return json.dumps({"levels": self.levels, "layers": layers, "left_out": dict(self.left_out)}, indent=2)

    def plot(self, path: str | os.PathLike[str], layer: str | None = None, sample: int | None = None) -> None:
        """Draws a row of maps for every layer, a column for every level: of one sample, or the mean of all.

        All maps of a row have one scale. Tokens are drawn as the square that they come from, without the class token.
        Raises `MissingExtraError` without the extra `plot`, `ArtifactError` where the picture cannot be written,
        `ArgumentError` for a layer or a sample that there is none of.
        """
        known = {one.name: one for one in self.layers}
        chosen = list(known) if layer is None else inside(list(known), layer, "no such layer was looked at")
        samples = self.layers[0].maps.shape[1]
        if sample is not None and not -samples <= sample < samples:
            raise ArgumentError(f"there is no sample {sample}: there are {samples}")
        with drawing(path, "Drawing increments") as figure:
            _draw(figure, self.levels, [known[name] for name in chosen], sample)


# Which activations.


def _blocks(program: Program, axes: Axes) -> dict[str, fx.Node]:
    """The results of all blocks, by the module that a block lies in, or by node where several lie in one."""
    named: dict[str, list[fx.Node]] = {}
    for block in find_blocks(program, axes).blocks:
        paths = [origin_of(node).module_path for node in block.nodes if node.op == "call_function"]
        named.setdefault(_common(paths) or block.end.name, []).append(block.end)
    return {name if len(ends) == 1 else end.name: end for name, ends in named.items() for end in ends}


def _common(paths: Sequence[str]) -> str:
    """The path of the module that all of some lie in."""
    parts = zip(*(path.split(".") for path in paths), strict=False)
    common: list[str] = []
    for part in parts:
        if len(set(part)) > 1:
            break
        common.append(part[0])
    return ".".join(common)


def _modules(program: Program, layer: str) -> dict[str, fx.Node]:
    """The result of a module: the last that is computed in it."""
    results: dict[str, fx.Node] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and isinstance(type_of(node), TensorType):
            parts = origin_of(node).module_path.split(".")
            for count in range(1, len(parts) + 1):
                results[".".join(parts[:count])] = node
    if layer not in results:
        inside([name for name in results if name], layer, "there is no such module")
    return {layer: results[layer]}


def _unsuited(node: fx.Node, axes: Axes, batch: int) -> str | None:
    kind = type_of(node)
    if not isinstance(kind, TensorType) or not kind.dtype.is_floating_point:
        return _FLAT
    if any(size.symbols for size in kind.shape[1:]) or kind.shape[0].coefficient not in (1, batch):
        return _MIXED
    return None if _places(node, axes) else _FLAT


def _places(node: fx.Node, axes: Axes) -> list[int]:
    """The dimensions that enumerate positions."""
    return [dim for dim, expr in enumerate(axes.dims[node]) if dim and positions(expr) > 1]


# Their values.


def _values(net: AnytimeModel, nodes: list[fx.Node], inputs: tuple[Tensor, ...]) -> list[dict[fx.Node, Tensor]]:
    """The activations of every level."""
    rewritten = net.rewritten
    if rewritten.stacked_parameters:
        leaves = [_run(leaf_program(net, leaf)[0], nodes, inputs) for leaf in range(len(rewritten.members))]
        counts = leaves_of_levels(net)
        return [
            {node: torch.stack([leaf[node] for leaf in leaves[:count]]).mean(0) for node in nodes} for count in counts
        ]
    levels = range(len(rewritten.levels))
    programs = [extraction.small_program(rewritten.program, one, rewritten.positions(one)) for one in levels]
    return [_run(program, nodes, inputs) for program in programs]


def _run(program: Program, nodes: list[fx.Node], inputs: tuple[Tensor, ...]) -> dict[fx.Node, Tensor]:
    recorder = _Recorder(to_modules(program, training=False), {node.name for node in nodes})
    with torch.no_grad():
        recorder.run(*inputs)
    return {node: recorder.values[node.name] for node in nodes if node.name in recorder.values}


def _of(level: Mapping[fx.Node, Tensor], node: fx.Node, skipped: Mapping[fx.Node, fx.Node]) -> Tensor | None:
    """The activation of a level; of a block that it skips, what it read instead."""
    while node not in level and node in skipped:
        node = skipped[node]
    return level.get(node)


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, names: set[str]) -> None:
        super().__init__(module)
        self.names, self.values = names, dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        name = n.name if n.name in self.names else _assembled(n.name)
        if name in self.names:
            self.values[name] = value.detach().cpu().double()
        return value


def _assembled(name: str) -> str:
    """Under triangular connectivity a result may be put together from what levels add, under a longer name."""
    for _ in range(2):
        head, _, last = name.rpartition("_")
        if last.rstrip("0123456789") in ("to", "with", "ordered"):
            name = head
    return name


def _increments(
    node: fx.Node, axes: Axes, widths: Sequence[Widths], levels: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor] | str:
    """The maps of a layer and the sizes of its activations, or why there are none."""
    dims = axes.dims[node]
    channels = [dim for dim in range(1, len(dims)) if dim not in _places(node, axes)]
    maps: list[Tensor] = []
    sizes: list[Tensor] = []
    before: Tensor | None = None
    for kept, value in zip(widths, levels, strict=True):
        if value is None:
            return _MISSING
        if any(value.shape[dim] != axes.size(dims[dim], kept).coefficient for dim in channels):
            return _OTHER
        whole = value
        for dim in channels:
            if axes.narrowed(dims[dim], kept):
                whole = _spread(
                    whole, dim, torch.from_numpy(axes.indices(dims[dim], kept)), axes.size(dims[dim], {}).coefficient
                )
        count = math.prod(value.shape[dim] for dim in channels)
        change = (whole if before is None else whole - before).abs()
        maps.append((change.sum(channels) if channels else change) / count)
        sizes.append(value.abs().mean())
        before = whole
    return torch.stack(maps).float(), torch.stack(sizes).float()


def _spread(value: Tensor, dim: int, places: Tensor, size: int) -> Tensor:
    """The elements of a dimension at their places among `size`, zeros everywhere else."""
    whole = value.new_zeros((*value.shape[:dim], size, *value.shape[dim + 1 :]))
    return whole.index_copy_(dim, places, value)


# The picture.


def _draw(figure: Any, levels: tuple[str, ...], layers: list[LayerIncrements], sample: int | None) -> None:
    figure.set_size_inches(1.5 * len(levels) + 1.6, 1.5 * len(layers) + 0.6)
    panels = figure.subplots(len(layers), len(levels), squeeze=False)
    for row, layer in zip(panels, layers, strict=True):
        maps = layer.maps.mean(1) if sample is None else layer.maps[:, sample]
        for place, (panel, name) in enumerate(zip(row, levels, strict=True)):
            image = panel.imshow(_square(maps[place]).numpy(), cmap="magma", vmin=0, vmax=float(maps.max()))
            panel.set_xticks([])
            panel.set_yticks([])
            if layer is layers[0]:
                panel.set_title(name if place == 0 else f"+ {name}", fontsize=8)
        row[0].set_ylabel(layer.name, fontsize=8)
        figure.colorbar(image, ax=list(row), shrink=0.9).ax.tick_params(labelsize=6)


def _square(one: Tensor) -> Tensor:
    """Tokens as the square that they come from; a line where there is none."""
    if one.ndim == 2:
        return one
    tokens = one.flatten()
    side = math.isqrt(len(tokens))
    if side > 1 and len(tokens) - side * side in (0, 1):
        return tokens[len(tokens) - side * side :].view(side, side)
    return tokens.view(1, -1)
