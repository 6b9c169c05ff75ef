"""Where a network splits: after named layers, or at places that are chosen by the cost between them."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from torch import fx

from anytimeify.analysis.blocks import Blocks
from anytimeify.analysis.cost import macs_by_node, sizes
from anytimeify.errors import SchemeError
from anytimeify.ir import Captured, Program
from anytimeify.ir.node_meta import origin_of
from anytimeify.passes.rewrites.separators import separators

__all__ = ["Cut", "candidates", "cut_named", "even_cuts", "name_of_cut", "owns_parameters"]

Cut: TypeAlias = tuple[fx.Node, ...]


def cut_named(program: Program, blocks: Blocks, name: str, *, field: str = "cuts", anywhere: bool = False) -> Cut:
    """The last cut point inside the layer of that name; all inputs for `"input"`. With `anywhere`, where data flows
    around all that is in the layer, its result. `SchemeError` where there is none, which names the `field` that asks
    for it."""
    if name == "input":
        return program.placeholders
    nodes = list(blocks.cut_points)
    if anywhere and not any(_is_inside(node, name) for node in nodes):
        nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    inside_of_it = [node for node in nodes if _is_inside(node, name)]
    if inside_of_it:
        return (inside_of_it[-1],)
    calls = program.graph.nodes
    paths = dict.fromkeys(origin_of(node).module_path for node in calls if node.op == "call_function")
    known = dict.fromkeys(
        ".".join(parts[:length])
        for path in paths
        if path
        for parts in [path.split(".")]
        for length in range(1, len(parts) + 1)
    )
    inside = name in known
    near = difflib.get_close_matches(name, list(known), n=3)
    ends = [path for node in blocks.cut_points if (path := origin_of(node).module_path)]
    raise SchemeError(
        f"{field}: data flows around '{name}', so the network cannot be split behind it; it can behind "
        f"{', '.join(list(dict.fromkeys(ends))[-5:])}"
        if inside
        else f"{field}: there is no layer '{name}'{f'; did you mean {chr(39)}{near[0]}{chr(39)}?' if near else ''}"
    )


def _is_inside(node: fx.Node, name: str) -> bool:
    path = origin_of(node).module_path
    return bool(name and path == name) or path.startswith(f"{name}.") or node.name == name


def name_of_cut(program: Program, blocks: Blocks, cut: Cut) -> str:
    """The shortest name by which `cut_named` finds a cut; those of its nodes where there are several."""
    if len(cut) > 1:
        return " and ".join(node.name for node in cut)
    node = cut[0]
    if node not in blocks.cut_points:
        return node.name
    parts = origin_of(node).module_path.split(".")
    for length in range(1, len(parts) + 1):
        name = ".".join(parts[:length])
        if name and cut_named(program, blocks, name) == (node,):
            return name
    return node.name


def even_cuts(captured: Captured, blocks: Blocks, count: int) -> Iterator[list[Cut]]:
    """Ways to cut a network so that its parts cost about the same: after stages, after any blocks, and where several
    tensors together carry all data."""
    macs = macs_by_node(captured.program, captured.batch, *sizes(captured))
    cost = [sum(macs.get(node, 0) for node in block.nodes) for block in blocks.blocks]
    owns: list[bool] = [owns_parameters(captured.program, block.nodes) for block in blocks.blocks]
    ends = {stage.blocks[-1].end for stage in blocks.stages}
    every = candidates(captured, blocks)
    behind_stages = [i for i in every if blocks.blocks[i].end in ends and any(cost[: i + 1])]
    for places in (behind_stages, every):
        best = _most_even(places, cost, owns, count)
        if best is not None:
            yield [(blocks.blocks[i].end,) for i in best]
    several = separators(captured, count)
    if several is not None:
        yield several


def candidates(captured: Captured, blocks: Blocks) -> list[int]:
    """Blocks after which there are parameters."""
    owns = [owns_parameters(captured.program, block.nodes) for block in blocks.blocks]
    return [i for i, _ in enumerate(blocks.blocks[:-1]) if any(owns[i + 1 :])]


def owns_parameters(program: Program, nodes: Iterable[fx.Node]) -> bool:
    """Whether one of the nodes reads a parameter."""
    read = (source for node in nodes for source in node.all_input_nodes if source.op == "get_attr")
    return any(program.is_parameter(str(source.target)) for source in read)


def _most_even(candidates: Sequence[int], cost: Sequence[int], owns: Sequence[bool], count: int) -> list[int] | None:
    """The `count` of the candidates between which the sum of squared costs is least, by dynamic programming."""
    total = [0, *itertools.accumulate(cost)]
    own = [0, *itertools.accumulate(map(int, owns))]
    ends = [-1, *candidates, len(cost) - 1]
    best: list[dict[int, tuple[float, list[int]]]] = [{0: (0.0, [])}]
    for part in range(count + 1):
        row: dict[int, tuple[float, list[int]]] = {}
        last = part == count
        for place, (value, chosen) in best[-1].items():
            for following in range(place + 1, len(ends)):
                if (following == len(ends) - 1) != last:
                    continue
                start, end = ends[place] + 1, ends[following] + 1
                if part and own[end] == own[start]:
                    continue
                reached = value + float(total[end] - total[start]) ** 2
                if following not in row or reached < row[following][0]:
                    row[following] = (reached, chosen if last else [*chosen, ends[following]])
        best.append(row)
    final = best[-1].get(len(ends) - 1)
    return None if final is None else final[1]
