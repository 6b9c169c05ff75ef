"""Removes in-place operations, and writes to buffers that no result depends on.

    s = slice(x, 1, 1, 3)       ->      s = slice(x, 1, 1, 3)
    mul_(s, 3)                          x' = slice_scatter(x, mul(s, 3), 1, 1, 3)
    y = exp(x)                          y = exp(x')

1. `y = add_(x, z)` becomes `y = add(x, z)`; whoever reads `x` afterwards reads `y`.
2. A write through a view is written back into what the view was taken from (`slice_scatter`, `select_scatter`, a
   reshape or permutation backwards), and every other view of it is taken anew when it is read next.
3. `copy_`, `fill_`, `zero_` become the value that they write.

4. A write to a buffer, with `updates`, becomes an `update_buffer`, which whoever reads the buffer afterwards reads. One
   that no result depends on (a counter, statistics that are only collected) is tied to the latest value that both it
   and the results are computed from, by an `after`.

`drop_dead_writes` comes first: without `updates` a write to a buffer that the prediction does not read is no part of
what the program computes. Neither is the counter of a batch norm, which its module keeps.

Refuses a write through a view that has no inverse here, if what it was taken from is read later, and operations
without a functional form. A write to a parameter, or to a buffer without `updates`, raises `BufferMutation`.
"""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx

from anytimeify._torch import OpOverload, copy_node, expression, functional_overload, schema
from anytimeify.capture.work_graph import BufferMutation, WorkGraph, step, unsupported
from anytimeify.graph.traversal import ancestors, reachable
from anytimeify.ir import names
from anytimeify.ir.node_meta import stack_trace_of, value_of
from anytimeify.ir.schema import bound, is_mutable, mutated_arguments, parameters, rebind
from anytimeify.operators.modes import AFTER, UPDATE_BUFFER
from anytimeify.rules.op import Call
from anytimeify.rules.spellings import instead_of, left_by
from anytimeify.rules.table import has_kind, rule_of
from anytimeify.rules.views import copies_where_it_has_to, memory_of, part_put_back, put_back

__all__ = ["drop_dead_writes", "functionalise"]

aten = torch.ops.aten


@step("functionalise")
def functionalise(work: WorkGraph, *, updates: bool = False) -> None:
    """Applies 1 to 3, and 4 with `updates`; a work graph without in-place operations stays as it is."""
    if any(is_mutable(node.target) for node in work.graph.nodes):
        work.graph = _Functionaliser(work, updates).run()


@step("drop dead writes")
def drop_dead_writes(work: WorkGraph, *, updates: bool = False) -> dict[str, fx.Node]:
    """Removes writes to memory that nothing reads which the results depend on; with `updates` those to buffers stay,
    but for the counters of batch norms.

    Returns the first write to each buffer that is written to, by name: with `updates` of every one, else of those
    whose writes were removed.
    """
    writes = [node for node in work.graph.nodes if node.op == "call_function" and is_mutable(node.target)]
    if not writes:
        return {}
    memory = _memory(work.graph)
    writers: dict[fx.Node, list[fx.Node]] = {}
    for node in writes:
        for name in mutated_arguments(node.target):
            written = bound(node)[name]
            for one in written if isinstance(written, (list, tuple)) else [written]:
                if isinstance(one, fx.Node):
                    writers.setdefault(memory[one], []).append(node)
    ends = [work.graph.output_node()]
    if updates:
        ends += [node for node in writes if memory[node].op == "get_attr" and not _counts_batches(memory[node])]
    live = reachable(ends, lambda node: (*node.all_input_nodes, *writers.get(memory[node], ())))
    dropped: dict[str, fx.Node] = {}
    for node in writes:
        if memory[node].op == "get_attr" and (updates or node not in live):
            dropped.setdefault(str(memory[node].target), node)
    for node in reversed(list(work.graph.nodes)):
        if node not in live and node.op == "call_function":
            work.graph.erase_node(node)
    return dropped


def _counts_batches(node: fx.Node) -> bool:
    return names.is_counter(str(node.target))


def _memory(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For every node the one that first held the memory of its value."""
    memory: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        base = _written(node) if is_mutable(node.target) else _base(node) if node.op == "call_function" else None
        memory[node] = memory[base] if base is not None else node
    return memory


def _written(node: fx.Node) -> fx.Node | None:
    """What an in-place operation writes to, and returns."""
    written = bound(node)[mutated_arguments(node.target)[0]]
    return written if isinstance(written, fx.Node) else None


class _Functionaliser:
    """One walk over the graph. `current` holds what each tensor of the old graph is worth at this point of the walk."""

    def __init__(self, work: WorkGraph, updates: bool) -> None:
        self.work, self.updates = work, updates
        self.updated: dict[fx.Node, fx.Node] = {}  # buffers, with their last update
        self.graph = fx.Graph()
        self.current: dict[fx.Node, fx.Node] = {}
        self.base: dict[fx.Node, fx.Node] = {}  # of which node each view was taken
        self.views: dict[fx.Node, list[fx.Node]] = {}  # all views by the tensor that holds the memory
        self.stale: set[fx.Node] = set()
        self.lost: dict[fx.Node, fx.Node] = {}  # tensors whose value is unknown after a write, and that write

    def run(self) -> fx.Graph:
        for node in self.work.graph.nodes:
            if node.op == "call_function" and is_mutable(node.target):
                self.write(node)
                continue
            self.current[node] = copy_node(self.graph, node, self.value)
            if node.op == "call_function":
                base = _base(node)
                if base is not None:
                    self.base[node] = base
                    self.views.setdefault(self.root(node), []).append(node)
        return _tie(self.graph, list(self.updated.values()))

    def root(self, node: fx.Node) -> fx.Node:
        while node in self.base:
            node = self.base[node]
        return node

    def value(self, node: fx.Node) -> fx.Node:
        if node in self.stale:
            self.stale.discard(node)
            if is_mutable(node.target):  # what an in-place operation returns is the tensor that it wrote to
                self.current[node] = self.value(self.base[node])
            else:
                self.current[node] = copy_node(self.graph, node, self.value)
        if node in self.lost:
            raise unsupported(
                self.lost[node],
                f"writes in place through a view, and '{node.name}' is read afterwards",
                "Write the model's line without in-place assignment there.",
            )
        return self.current[node]

    def write(self, node: fx.Node) -> None:
        assert isinstance(node.target, OpOverload)
        names = mutated_arguments(node.target)
        written = bound(node)[names[0]]
        if len(names) != 1 or not isinstance(written, fx.Node):
            raise unsupported(node, "writes to several tensors at once", "Use its functional form in the model.")
        root = self.root(written)
        if root.op == "get_attr" and (
            not self.updates or isinstance(self.work.tensors[str(root.target)], torch.nn.Parameter)
        ):
            raise BufferMutation(str(root.target), node)
        new = self.functional(node, written)
        chain = [written]
        while chain[-1] in self.base:
            chain.append(self.base[chain[-1]])
        before = [None if inner in self.lost else self.value(inner) for inner in chain]
        self.assign(written, new)
        for index in range(1, len(chain)):
            value = self.write_back(chain[index - 1], chain[index], before[index])
            if value is None:
                self.lost[chain[index]] = node
            else:
                self.assign(chain[index], value)
        self.current[node] = new
        self.base[node] = written
        self.views.setdefault(root, []).append(node)
        if root.op == "get_attr":
            self.update(root)
        else:
            self.stale.update(view for view in self.views[root] if view not in chain and view is not node)

    def update(self, root: fx.Node) -> None:
        """A buffer has been written to: all its views are taken anew, of what it is worth in either mode."""
        value = self.value(root)
        if value is self.updated.get(root):
            return
        reader = next(one for one in self.graph.find_nodes(op="get_attr") if one.target == root.target)
        new = self.call(value, UPDATE_BUFFER, reader, value)
        new.meta["val"] = value_of(root)
        self.assign(root, new)
        self.updated[root] = new
        self.stale.update(self.views[root])

    def assign(self, node: fx.Node, value: fx.Node) -> None:
        self.current[node] = value
        self.stale.discard(node)
        self.lost.pop(node, None)

    def call(self, like: fx.Node, target: OpOverload, *args: Any, **kwargs: Any) -> fx.Node:
        new = self.graph.call_function(target, args, kwargs)
        new.meta = dict(like.meta)
        return new

    def functional(self, node: fx.Node, written: fx.Node) -> fx.Node:
        """The value that an in-place operation leaves in `written`."""
        assert isinstance(node.target, OpOverload)
        values = bound(node)
        self_value = self.value(written)
        if schema(node.target).name == "aten::copy_":
            source = values["src"]
            return self.copied(node, written, self.value(source) if isinstance(source, fx.Node) else source)
        left = left_by(node.target, values)
        target = left.target if left is not None else functional_overload(node.target)
        rule = rule_of(target)
        if rule is not None and rule.kind == "random":
            self_value = self.shape_alone(node, self_value)
        if left is not None:
            return self.call(node, left.target, *rebind(left.target, {**left.arguments, "self": self_value})[0])
        if target is None:
            raise unsupported(
                node,
                "works in place and has no functional form",
                "Write it out of place: y = f(x) in place of f_(x) or f(x, out=y).",
            )
        given = {**fx.map_arg(_for(node.target, target, values), self.value)}
        if written is values.get("self"):
            given["self" if "self" in given else "input"] = self_value
        return self.cast(node, self.functional_call(node, target, given))

    def functional_call(self, node: fx.Node, target: OpOverload, given: dict[str, Any]) -> fx.Node:
        if "dtype" in parameters(target) and "dtype" not in given:  # what is made of sizes, into a tensor that is there
            tensor = value_of(node)
            given |= {"dtype": tensor.dtype, **({"device": tensor.device} if "device" in parameters(target) else {})}
        args, kwargs = rebind(target, given)
        return self.call(node, target, *args, **kwargs)

    def shape_alone(self, node: fx.Node, value: fx.Node) -> fx.Node:
        """What numbers are drawn into: nothing of its value is left, and no gradient goes through it."""
        return value if has_kind(value, "factory") else self.call(node, aten.zeros_like.default, value)

    def cast(self, node: fx.Node, new: fx.Node) -> fx.Node:
        """In place the dtype stays; the functional form may promote it."""
        tensors = [value_of(inner) for inner in node.all_input_nodes]
        dtypes = {value.dtype for value in tensors if isinstance(value, Tensor)}
        scalars = any(isinstance(value, float) for value in node.args)
        kept = value_of(node).dtype
        if dtypes <= {kept} and (kept.is_floating_point or not scalars):
            return new
        promoted = reduce(torch.promote_types, dtypes | ({torch.get_default_dtype()} if scalars else set()), kept)
        new.meta["val"] = value_of(node).to(promoted)
        return self.call(node, aten.to.dtype, new, kept)

    def copied(self, node: fx.Node, written: fx.Node, source: fx.Node | float) -> fx.Node:
        if not isinstance(source, fx.Node):
            return self.call(node, aten.full_like.default, self.value(written), source)
        have, want = value_of(source), value_of(node)
        if not _fits(have, value_of(written)):
            advice = "Register it with the shape that it gets."
            raise unsupported(
                node, f"puts values of shape {tuple(have.shape)} where {tuple(written.meta['val'].shape)} is", advice
            )
        if have.dtype != want.dtype:
            source = self.call(node, aten.to.dtype, source, want.dtype)
        if list(map(str, have.shape)) != list(map(str, want.shape)):  # never asks the exporter's solver
            source = self.call(node, aten.expand_as.default, source, self.value(written))
        return source

    def write_back(self, view: fx.Node, base: fx.Node, before: fx.Node | None) -> fx.Node | None:
        """The value of `base` after `view`, which was taken from it, got its present value; None if unknown."""
        if view in self.lost or before is None:
            return None
        value = self.current[view]
        if view.target is operator.getitem:
            return self.write_back_part(view, base, value, before)
        return self.written_back(base, put_back(view, value, before))

    def write_back_part(self, view: fx.Node, base: fx.Node, value: fx.Node, before: fx.Node) -> fx.Node | None:
        """`view` is one part of what `chunk`, `split` or `unbind` returned."""
        parts, index = view.args
        assert isinstance(parts, fx.Node)
        assert isinstance(index, int)
        shapes = [part.shape for part in value_of(parts)]
        return self.written_back(base, part_put_back(parts, index, value, before, shapes))

    def written_back(self, base: fx.Node, found: fx.Node | Call | None) -> fx.Node | None:
        if not isinstance(found, Call):
            return found
        return self.call(base, found.target, *rebind(found.target, found.arguments)[0])


def _for(target: OpOverload, other: OpOverload, values: dict[str, Any]) -> dict[str, Any]:
    """The arguments of one operation for its functional form: by name, or in the same order."""
    taken = [name for name in parameters(target) if name not in mutated_arguments(target) or name == "self"]
    renamed = dict(zip(taken, parameters(other), strict=False)) if not set(taken) <= set(parameters(other)) else {}
    return {renamed.get(name, name): values[name] for name in taken if name in values}


def _fits(value: Tensor, place: Tensor) -> bool:
    """Whether a value may be written to a tensor, as far as sizes are known."""
    pairs: list[tuple[Any, Any]] = list(zip(reversed(value.shape), reversed(place.shape), strict=False))
    known = [(have, want) for have, want in pairs if isinstance(have, int) and isinstance(want, int)]
    return value.dim() <= place.dim() and all(have in (1, want) for have, want in known)


def _tie(graph: fx.Graph, updates: list[fx.Node]) -> fx.Graph:
    """Lets the results depend on updates that they do not read."""
    for update in updates:
        needed, own = ancestors([graph.output_node()]), ancestors([update])
        if update in needed:
            continue
        calls = [node for node in _ordered(graph) if node in needed and node in own and node.op == "call_function"]
        inputs = [node for node in graph.find_nodes(op="placeholder") if node in needed]
        place = next(node for node in (*reversed(calls), *inputs) if isinstance(value_of(node), Tensor))
        readers = [user for user in place.users if user in needed and user not in own]
        with graph.inserting_before(graph.output_node()):
            tied = graph.call_function(AFTER, (place, [update]))
        tied.meta = {"val": value_of(place), "stack_trace": stack_trace_of(update)}
        for reader in readers:
            reader.replace_input_with(place, tied)
    result = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in _ordered(graph):
        copies[node] = copy_node(result, node, copies.__getitem__)
    return result


def _ordered(graph: fx.Graph) -> list[fx.Node]:
    """Every node after what it reads, otherwise in the order of the graph; the output last."""
    result: dict[fx.Node, None] = {}
    for node in (*(one for one in graph.nodes if one.op != "output"), graph.output_node()):
        waiting = [node]
        while waiting:
            missing = [one for one in waiting[-1].all_input_nodes if one not in result]
            if missing:
                waiting += reversed(missing)
            else:
                result.setdefault(waiting.pop())
    return list(result)


def _base(node: fx.Node) -> fx.Node | None:
    """The argument whose memory the result of `node` may share; None for a fresh tensor."""
    if node.target is operator.getitem:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return _base(source)  # a part is a view of the whole, not of the list
    aliased = memory_of(node.target)
    source = bound(node).get(aliased) if aliased else None
    if not isinstance(source, fx.Node):
        return None
    return source if _shares(node, source) else None


def _shares(node: fx.Node, source: fx.Node) -> bool:
    """Operations such as `reshape` are a view or a copy, as the strides of their input have it."""
    before, after = value_of(source), value_of(node)
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return True
    if instead_of(node.target) == "conversion":
        return before.dtype == after.dtype and not bound(node).get("copy", False)
    if node.target is aten.contiguous.default:
        layout = bound(node)["memory_format"]  # the schema's default is a number
        return bool(before.is_contiguous(memory_format=torch.contiguous_format if isinstance(layout, int) else layout))
    if not copies_where_it_has_to(node.target):
        return True
    try:
        torch.empty_strided(_numbers(before.shape), _numbers(before.stride()), device="meta").view(
            _numbers(after.shape)
        )
    except RuntimeError:
        return False
    return True


def _numbers(sizes: Any) -> list[int]:
    """Sizes with every symbol replaced by one number: enough to compare strides with sizes."""
    numbers = []
    for size in sizes:
        value = expression(size)
        numbers.append(int(value.subs(dict.fromkeys(value.free_symbols, 5))))
    return numbers
