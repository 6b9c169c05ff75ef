"""`cut_blocks`: a layer with a block-triangular weight becomes one layer for each block.

    y = linear(x, w, b)     ->      y0 = linear(slice(x, 1, 0, 2), w0, b0)
                                    y1 = linear(x, w1, b1)
                                    y = cat([y0, y1], 1)

For inference: every block is a tensor of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from anytimeify._torch import copy_node
from anytimeify.contract.pass_manager import rewrite
from anytimeify.graph.builder import Builder
from anytimeify.ir import Program, TensorType, names
from anytimeify.ir.node_meta import origin_of, type_of, weight_blocks_of
from anytimeify.passes.rewrites.operands import Blocks, blocks_of, contraction_of
from anytimeify.rules import Contraction

__all__ = ["cut_blocks"]

aten = torch.ops.aten
Places: TypeAlias = npt.NDArray[np.int64]


@rewrite("cut blocks")
def cut_blocks(program: Program) -> Program:
    """A new program in which no layer multiplies with what its weight does not have.

    For a weight W whose rows come in blocks R_1, R_2, ..., those of block b reading the columns C_b and no others (as
    `meta["blocks"]` of the node that reads W says), a layer y = W x + h becomes

        y = cat(W[R_1, C_1] x[C_1] + h[R_1], W[R_2, C_2] x[C_2] + h[R_2], ...)

    1. every block is a tensor of its own: of `conv.weight` there are `conv.0.weight`, `conv.1.weight`, ..., as if the
       layer were a list of layers; biases that nothing else reads are cut in the same way;
    2. columns are taken once of an input that several layers read, as a `slice` where they are neighbours;
    3. the last operation has the layer's name and type: the concatenation, or what puts its rows in order.

    Meant for inference, and for programs that own their tensors (`fold`). What a weight holds outside its blocks is not
    looked at. Left alone: layers whose weights say nothing of blocks.
    """
    cuts = {node: cut for node in program.graph.nodes if (cut := _cut(node)) is not None}
    return _Cutter(program, cuts).run() if cuts else program


@dataclass(frozen=True)
class _Cut:
    """A layer that is cut: what reads what, and the blocks of its weight."""

    contraction: Contraction
    blocks: Blocks

    @property
    def weight(self) -> fx.Node:
        return self.contraction.weight

    @property
    def bias(self) -> fx.Node | None:
        """What is added, if it has a value for every row."""
        node, dim = self.contraction.bias, self.contraction.bias_rows
        if node is None or dim is None or type_of(node).shape[dim] != type_of(self.weight).shape[self.rows]:
            return None
        return node

    @property
    def rows(self) -> int:
        """The dimension of the weight that makes the result's."""
        assert self.contraction.rows is not None  # by `contraction_of`
        return self.contraction.rows

    @property
    def given(self) -> int:
        """The dimension of the result that has the rows."""
        assert self.contraction.given is not None
        return self.contraction.given

    def read(self, columns: Places) -> Places:
        """The elements of the input that some columns meet: those of every group."""
        width = type_of(self.weight).shape[self.contraction.columns].coefficient
        found: Places = (np.arange(self.contraction.groups)[:, None] * width + columns).reshape(-1)
        return found


def _cut(node: fx.Node) -> _Cut | None:
    for weight in node.all_input_nodes:
        contraction = contraction_of(node, weight) if weight_blocks_of(weight) else None
        if contraction is not None and contraction.rows is not None:
            blocks = blocks_of(node, weight, (contraction.rows, contraction.columns), weight_blocks_of(weight))
            return _Cut(contraction, blocks) if blocks else None
    return None


class _Cutter:
    """The new program, while it is appended."""

    def __init__(self, program: Program, cuts: dict[fx.Node, _Cut]) -> None:
        self.program, self.cuts = program, cuts
        self.builder = Builder(fx.Graph(), dict(program.tensors), set(program.transient))
        self.copies: dict[fx.Node, fx.Node] = {}
        self.taken = set(program.tensors)
        self.pieces: dict[fx.Node, list[fx.Node]] = {}  # the blocks of weights, and of the biases that are cut
        self.tables: dict[bytes, str] = {}
        self.parts: dict[tuple[fx.Node, int, bytes], fx.Node] = {}  # of inputs

    def run(self) -> Program:
        for node in self.program.graph.nodes:
            if node in self.cuts:
                self.copies[node] = self._layer(node, self.cuts[node])
            elif node.op != "output":
                self.copies[node] = copy_node(self.builder.graph, node, self.copies.__getitem__)
        outputs = [self.copies[node] for node in self.program.outputs]
        built = self.builder.build(outputs, self.program.graph.output_node())
        before, now = ({n.target for n in one.graph.find_nodes(op="get_attr")} for one in (self.program, built))
        tensors = {name: tensor for name, tensor in built.tensors.items() if name in now or name not in before}
        return Program(built.graph, tensors, built.transient & tensors.keys())

    def _layer(self, node: fx.Node, cut: _Cut) -> fx.Node:
        """The layer block by block, and the concatenation."""
        results = [self._block(node, cut, place) for place in range(len(cut.blocks))]
        order = np.argsort(np.concatenate([rows for rows, _ in cut.blocks]), kind="stable")
        ordered = bool((order == np.arange(len(order))).all())
        dim = cut.given
        if len(results) == 1:
            return results[0]
        name = node.name if ordered else f"{node.name}_blocks"
        result = self.builder.call(aten.cat.default, (results, dim), {}, name, dict(node.meta))
        if ordered:
            return result
        arguments = (result, dim, self._table(order, node))
        return self.builder.call(aten.index_select.default, arguments, {}, node.name, dict(node.meta))

    def _block(self, node: fx.Node, cut: _Cut, place: int) -> fx.Node:
        _, columns = cut.blocks[place]
        source = cut.contraction.input
        instead = {
            cut.weight: self._weights(cut)[place],
            source: self._part(self.copies[source], cut.contraction.read, cut.read(columns), node),
        }
        if cut.bias is not None:
            instead[cut.bias] = self._bias(node, cut, cut.bias, place)
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda one: instead.get(one) or self.copies[one])
        meta = {key: value for key, value in node.meta.items() if key != "type"}
        name = node.name if len(cut.blocks) == 1 else f"{node.name}_block{place}"
        return self.builder.call(node.target, args, kwargs, name, meta)

    # Tensors.

    def _weights(self, cut: _Cut) -> list[fx.Node]:
        """The blocks of a weight, cut once for all layers that read it."""
        if cut.weight not in self.pieces and cut.weight.op != "get_attr":  # masked when it runs: its source is read too
            whole, like = self.copies[cut.weight.all_input_nodes[0]], cut.weight
            self.pieces[cut.weight] = [
                self._part(self._part(whole, cut.rows, rows, like), cut.contraction.columns, columns, like)
                for rows, columns in cut.blocks
            ]
        if cut.weight not in self.pieces:
            places = [((cut.rows, rows), (cut.contraction.columns, columns)) for rows, columns in cut.blocks]
            self.pieces[cut.weight] = self._cut_up(cut.weight, cut, "weight", places)
        return self.pieces[cut.weight]

    def _bias(self, node: fx.Node, cut: _Cut, bias: fx.Node, place: int) -> fx.Node:
        owners = [self.cuts.get(user) for user in bias.users]
        alone = all(one is not None and one.bias is bias and one.weight is cut.weight for one in owners)
        if bias.op != "get_attr" or not alone:  # read elsewhere too, so that it is here anyway
            return self._part(self.copies[bias], cut.contraction.bias_rows or 0, cut.blocks[place][0], node)
        if bias not in self.pieces:
            self.pieces[bias] = self._cut_up(
                bias, cut, "bias", [((cut.contraction.bias_rows or 0, rows),) for rows, _ in cut.blocks]
            )
        return self.pieces[bias][place]

    def _cut_up(self, source: fx.Node, cut: _Cut, kind: str, places: list[Any]) -> list[fx.Node]:
        """New tensors: of every block what it has along some dimensions."""
        weight = str(cut.weight.target)
        whole = self.program.tensors[str(source.target)]
        found = []
        for number, own in enumerate(places):
            single = len(places) == 1
            name = str(source.target) if single else names.fresh(names.block(weight, number, kind), self.taken)
            piece = whole.detach()
            for dim, entries in own:
                piece = piece.index_select(dim, torch.from_numpy(entries).to(piece.device))
            piece = piece.contiguous()
            if isinstance(whole, nn.Parameter):
                piece = nn.Parameter(piece, whole.requires_grad)
            found.append(self.builder.attribute(name, piece, source))
        return found

    def _part(self, source: fx.Node, dim: int, entries: Places, like: fx.Node) -> fx.Node:
        """Some elements along a dimension of a value, taken once for all that read them."""
        kind: TensorType = type_of(source)
        dim %= len(kind.shape)
        if len(entries) == kind.shape[dim].coefficient:
            return source
        key = (source, dim, entries.tobytes())
        if key not in self.parts:
            meta = {"origin": origin_of(like)}
            first, last = int(entries[0]), int(entries[-1])
            name = f"{source.name}_part"
            if last - first + 1 == len(entries):
                arguments: tuple[Any, ...] = (source, dim, first, last + 1)
                self.parts[key] = self.builder.call(aten.slice.Tensor, arguments, {}, name, meta)
            else:
                arguments = (source, dim, self._table(entries, like))
                self.parts[key] = self.builder.call(aten.index_select.default, arguments, {}, name, meta)
        return self.parts[key]

    def _table(self, entries: Places, like: fx.Node) -> fx.Node:
        """An index table; equal tables are one."""
        key = entries.tobytes()
        if key not in self.tables:
            self.tables[key] = names.fresh(f"{names.BLOCKS}index_{len(self.tables)}", self.taken)
        device = next((tensor.device for tensor in self.program.tensors.values()), torch.device("cpu"))
        table: Tensor = torch.from_numpy(entries.copy()).to(device)
        return self.builder.attribute(self.tables[key], table, like, transient=True)
