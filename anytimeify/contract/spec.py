"""What is canonical, as a table of rules, and the function that verifies it.

A rule looks at one node (or at the whole program) and yields what is wrong with it. Passes are checked after they ran,
so that a mistake is reported by the pass that made it.
"""

from __future__ import annotations

import itertools
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import fx

from anytimeify._torch import OpOverload
from anytimeify.errors import AnytimeError
from anytimeify.ir import Program, Size, TensorType, type_text
from anytimeify.ir.infer_types import TypeInferenceError, fits, inferred_type
from anytimeify.ir.node_meta import KEYS, origin_of, type_of
from anytimeify.ir.schema import is_mutable
from anytimeify.rules.spellings import is_noncanonical

__all__ = ["SpecError", "verify"]


class SpecError(AnytimeError, AssertionError):
    """A program is not canonical: a mistake of a pass, never of a user."""


NodeRule = Callable[[Program, fx.Node], Iterator[str]]
ProgramRule = Callable[[Program], Iterator[str]]

# Functions on integers that sizes are computed with.
INTEGER_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    {operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg}
)


def _call(program: Program, node: fx.Node) -> Iterator[str]:
    if node.target is operator.getitem or node.target in INTEGER_FUNCTIONS or _is_symbolic(node.target):
        return
    if not isinstance(node.target, OpOverload):
        yield "calls something that is neither an ATen overload nor integer arithmetic"
    elif is_mutable(node.target):
        yield "works in place"
    elif is_noncanonical(node.target):
        yield "is bookkeeping that the canonical form does not have"


def _is_symbolic(target: object) -> bool:
    """`sym_min`, `sym_float` and their kin: functions of torch on sizes."""
    return (
        callable(target) and getattr(target, "__name__", "").startswith("sym_") and not isinstance(target, OpOverload)
    )


def _reader(program: Program, node: fx.Node) -> Iterator[str]:
    if node.target not in program.tensors:
        yield "reads a tensor that the program does not have"
        return
    tensor, kind = program.tensors[str(node.target)], type_of(node)
    if not isinstance(kind, TensorType):
        return
    cast = kind.dtype.is_floating_point and tensor.is_floating_point()  # a model may be: see `ir.recast`
    if kind.shape != tuple(map(Size, tensor.shape)) or (kind.dtype != tensor.dtype and not cast):
        yield f"says it is {_show(kind)}, and the tensor is {tuple(tensor.shape)} of {tensor.dtype}"


def _metadata(program: Program, node: fx.Node) -> Iterator[str]:
    for key in ("type", "origin"):
        if key not in node.meta:
            yield f"has no meta['{key}']"
    for key, value in node.meta.items():
        if key not in KEYS:
            yield f"has a meta['{key}'], which is none of: {', '.join(KEYS)}"
        elif not KEYS[key].allows(value):
            yield f"has a meta['{key}'] of {value!r:.100}; it is {KEYS[key].meaning}"


def _tensor_type(program: Program, node: fx.Node) -> Iterator[str]:
    if not isinstance(type_of(node), TensorType):
        yield "is not typed as one tensor"


def _arguments(program: Program, node: fx.Node) -> Iterator[str]:
    for inner in node.all_input_nodes:
        if inner.graph is not program.graph:
            yield f"reads '{inner.name}', a node of another graph"


def _result_type(program: Program, node: fx.Node) -> Iterator[str]:
    if any("type" not in source.meta for source in node.all_input_nodes):
        return  # said of that node
    try:
        if not fits(node):
            yield f"says it is {type_text(type_of(node))}, and the operation gives {type_text(inferred_type(node))}"
    except TypeInferenceError as error:
        yield str(error)


def _flat_output(program: Program, node: fx.Node) -> Iterator[str]:
    result = node.args[0]
    if not isinstance(result, tuple) or not result or not all(isinstance(inner, fx.Node) for inner in result):
        yield "does not return a flat tuple of nodes"


RULES: dict[str, tuple[NodeRule, ...]] = {
    "placeholder": (_metadata, _tensor_type),
    "get_attr": (_metadata, _tensor_type, _reader),
    "call_function": (_metadata, _arguments, _call),
    "output": (_arguments, _flat_output),
}

TYPE_RULES: dict[str, tuple[NodeRule, ...]] = {"call_function": (_result_type,)}


def _unique_names(program: Program) -> Iterator[str]:
    for name, count in Counter(node.name for node in program.graph.nodes).items():
        if count > 1 or not name.isidentifier():
            yield f"the name '{name}' is {'used twice' if count > 1 else 'no identifier'}"


def _one_reader(program: Program) -> Iterator[str]:
    for target, count in Counter(node.target for node in program.graph.find_nodes(op="get_attr")).items():
        if count > 1:
            yield f"'{target}' is read by {count} get_attr nodes"


def _order(program: Program) -> Iterator[str]:
    ranks = {"placeholder": 0, "get_attr": 1, "call_function": 2, "output": 3}
    kinds = [ranks[node.op] for node in program.graph.nodes if node.op in ranks]
    if kinds != sorted(kinds):
        yield "nodes are not in the order placeholders, get_attr, calls, output"
    seen: set[fx.Node] = set()
    for node in program.graph.nodes:
        late = next((inner for inner in node.all_input_nodes if inner not in seen), None)
        if late is not None:
            yield f"'{node.name}' reads '{late.name}' before it is computed"
        seen.add(node)


def _transient(program: Program) -> Iterator[str]:
    for name in sorted(program.transient - set(program.tensors)):
        yield f"the transient name '{name}' belongs to no tensor"


PROGRAM_RULES: tuple[ProgramRule, ...] = (_unique_names, _one_reader, _order, _transient)


def verify(program: Program, *, after: str = "", types: bool = True) -> None:
    """Raises `SpecError` naming the node and the rule that it breaks; `after` names the pass that ran.

    `types=False`: types of results are believed; what comes out of a file is not run, not even without data."""
    prefix = f"after {after}: " if after else ""
    before = f" (passes before it: {', '.join(program.passes)})" if program.passes else ""
    for node in program.graph.nodes:
        if node.op not in RULES:
            raise SpecError(f"{prefix}node '{node.name}' is a {node.op}, which is no canonical kind of node{before}")
    problems = itertools.chain(
        _of_nodes(program, RULES),
        *(rule(program) for rule in PROGRAM_RULES),
        _of_nodes(program, TYPE_RULES) if types else (),
    )
    for problem in problems:
        raise SpecError(f"{prefix}{problem}{before}")


def _of_nodes(program: Program, rules: Mapping[str, Sequence[NodeRule]]) -> Iterator[str]:
    for node in program.graph.nodes:
        for rule in rules.get(node.op, ()):
            for problem in rule(program, node):
                yield f"node '{node.name}' ({node.target}, {origin_of(node)}) {problem}"


def _show(kind: TensorType) -> str:
    return f"({', '.join(map(str, kind.shape))}) of {kind.dtype}"
