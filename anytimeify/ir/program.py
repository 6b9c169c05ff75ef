"""The types that cross a seam: sizes, tensor types, programs, captured models, levels and outputs.

A `Program` is a canonical `torch.fx` graph in functional form plus the tensors it reads:

* `placeholder` nodes are the model's tensor inputs, in call order;
* `get_attr` nodes read parameters and buffers, under the backbone's own names;
* `call_function` nodes call ATen operators, `operator.getitem`, or integer arithmetic on sizes;
* the one `output` node returns a flat tuple of nodes.

Nodes carry a type, an origin and, where the backbone runs them under `torch.utils.checkpoint`, the number of that part
of the network: `meta["type"]`, `meta["origin"]`, `meta["checkpoint"]`.

Operations that behave differently in training and evaluation (batch norm, dropout, stochastic depth) are written in
their training form; `anytimeify.codegen.to_modules` turns them into modules, as the last step before a graph is run
or shown. `anytimeify.contract.spec` holds the table of what is canonical and the function that verifies it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, fx

from anytimeify.errors import ArgumentError, OutputsError
from anytimeify.ir.structures import Results

__all__ = [
    "PAIR",
    *("Captured", "Cost", "Level", "Origin", "Outputs", "Program", "Signature", "Size", "TensorType"),
    *("meta_of", "result_of", "type_text"),
]

PAIR = ("first", "second")  # what two networks side by side are called


@dataclass(frozen=True, order=True)
class Size:
    """A tensor size as a monomial: `coefficient` times a product of symbols. `Size(64, ("s0",))` prints as `64*s0`.

    A symbol stands for a dynamic size (the batch), or for any expression of dynamic sizes that is not a monomial.
    """

    coefficient: int
    symbols: tuple[str, ...] = ()

    @property
    def static(self) -> bool:
        return not self.symbols

    def __mul__(self, other: Size) -> Size:
        return Size(self.coefficient * other.coefficient, tuple(sorted(self.symbols + other.symbols)))

    def divides(self, other: Size) -> bool:
        """Whether `other` is a whole multiple of this size."""
        if self.coefficient == 0 or other.coefficient % self.coefficient:
            return False
        rest = list(other.symbols)
        for symbol in self.symbols:
            if symbol not in rest:
                return False
            rest.remove(symbol)
        return True

    def __floordiv__(self, other: Size) -> Size:
        if not other.divides(self):
            raise ValueError(f"{other} does not divide {self}")
        rest = list(self.symbols)
        for symbol in other.symbols:
            rest.remove(symbol)
        return Size(self.coefficient // other.coefficient, tuple(rest))

    def __str__(self) -> str:
        return "*".join(
            [str(self.coefficient), *self.symbols] if self.coefficient != 1 or not self.symbols else self.symbols
        )

    @staticmethod
    def parse(text: str) -> Size:
        """The inverse of `str`."""
        head, *rest = text.split("*")
        return Size(int(head), tuple(rest)) if head.isdigit() else Size(1, (head, *rest))


@dataclass(frozen=True)
class TensorType:
    """What is known of a tensor without running anything: `node.meta["type"]`.

    Nodes that give several tensors carry a tuple of types (`None` for what is not a tensor), nodes that give an
    integer carry its `Size`.
    """

    shape: tuple[Size, ...]
    dtype: torch.dtype

    @property
    def size(self) -> Size:
        return math.prod(self.shape, start=Size(1))

    def with_shape(self, shape: tuple[Size, ...]) -> TensorType:
        return replace(self, shape=shape)


@dataclass(frozen=True)
class Origin:
    """Where a node came from: `node.meta["origin"]`. Empty strings where unknown."""

    module_path: str = ""  # "layer1.0.conv1"
    module_class: str = ""  # "torch.nn.modules.conv.Conv2d"
    source: str = ""  # "resnet.py:154: out = self.conv1(x)"

    def __str__(self) -> str:
        return ", ".join(part for part in (self.module_path or "the model itself", self.source) if part)


def meta_of(like: fx.Node, *, part: bool = False) -> dict[str, Any]:
    """The metadata, but for the type, of a node that a pass writes for another one: of a value, or of a `part` of a
    parameter, which belongs to no recomputed part."""
    meta: dict[str, Any] = {"origin": like.meta["origin"]}
    if part:
        return {**meta, "part": True}
    return {**meta, "checkpoint": like.meta["checkpoint"]} if "checkpoint" in like.meta else meta


def result_of(node: fx.Node) -> fx.Node | None:
    """The call that gives several results, of which a node is one; None where it is not one of several."""
    source = node.args[0] if node.target is operator.getitem else None
    return source if isinstance(source, fx.Node) and isinstance(source.meta["type"], tuple) else None


@dataclass(frozen=True)
class Program:
    """A canonical graph and the tensors it reads. Passes take one and give a new one, tensors shared by reference."""

    graph: fx.Graph
    tensors: Mapping[str, Tensor]  # parameters and buffers by name; may hold some that the graph does not read
    transient: frozenset[str] = frozenset()  # names of buffers that are not part of a state dict
    passes: tuple[str, ...] = ()  # the passes that made it, in order: see `anytimeify.contract.pass_manager`

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        result = self.graph.output_node().args[0]
        assert isinstance(result, tuple)
        return result  # type: ignore[return-value]  # canonical: a flat tuple of nodes

    @property
    def placeholders(self) -> tuple[fx.Node, ...]:
        return tuple(self.graph.find_nodes(op="placeholder"))

    def is_parameter(self, name: str) -> bool:
        return isinstance(self.tensors[name], torch.nn.Parameter)

    def __str__(self) -> str:
        """One line per node: its name, its operation, its operands and its type."""
        return "\n".join(_line(node) for node in self.graph.nodes)


def _line(node: fx.Node) -> str:
    if node.op == "output":
        return f"return {', '.join(map(_text, node.args[0]))}"  # type: ignore[arg-type]  # canonical: a flat tuple
    kind = f"  # {type_text(node.meta.get('type'))}"
    if node.op == "placeholder":
        return f"{node.name} = input{kind}"
    if node.op == "get_attr":
        return f"{node.name} = {node.target}{kind}"
    name = str(node.target).removeprefix("aten.").removesuffix(".default")
    name = getattr(node.target, "__name__", name) if not hasattr(node.target, "_schema") else name
    arguments = [*map(_text, node.args), *(f"{key}={_text(value)}" for key, value in node.kwargs.items())]
    return f"{node.name} = {name}({', '.join(arguments)}){kind}"


def _text(value: Any) -> str:
    return f"[{', '.join(map(_text, value))}]" if isinstance(value, list | tuple) else str(value)


def type_text(kind: Any) -> str:
    """A type as programs print it: `[s0, 64] int64`; float32 is left out."""
    if isinstance(kind, TensorType):
        dtype = "" if kind.dtype is torch.float32 else f" {str(kind.dtype).removeprefix('torch.')}"
        return f"[{', '.join(map(str, kind.shape))}]{dtype}"
    return f"({', '.join(map(type_text, kind))})" if isinstance(kind, tuple) else str(kind)


@dataclass(frozen=True)
class Signature:
    """How the backbone is called and what it returns, as pytrees; `prediction` indexes the flat output."""

    in_spec: Any  # pytree of (args, kwargs); leaves are the program's placeholders or constants
    out_spec: Any  # pytree of the backbone's result
    prediction: int = 0
    constants: tuple[tuple[int, Any], ...] = ()  # flat positions of inputs that are not tensors, with their values
    names: tuple[str, ...] = ()  # of the positional arguments, as the backbone calls them; "" where it does not
    positional: int | None = None  # how many arguments may be given by position, keywords among them; None: all
    trained: int | None = None  # where the prediction is in what train mode returns; None: where eval mode has it


@dataclass(frozen=True)
class Captured:
    """A backbone in canonical form, as every scheme receives it."""

    program: Program
    signature: Signature
    example_inputs: tuple[Tensor, ...]  # flat, one per placeholder
    batch: str | None  # the symbol of the dynamic batch; None if the batch is static
    notes: tuple[str, ...] = ()  # what was lost or decided during capture, for the report
    lost: tuple[str, ...] = ()  # the notes among them that say how training differs from the backbone's
    held: frozenset[str] = frozenset()  # paths of the modules that are in eval mode while the backbone trains
    reference: Tensor | None = None  # the backbone's own prediction for the example inputs, in eval mode
    batch_range: tuple[int, int | None] = (1, None)  # the sizes of a dynamic batch that the program is right for
    limit: str | None = None  # the note that says why it takes fewer inputs than the backbone
    # Everything that the backbone returns, in both modes, over the program's outputs; None where the prediction is all.
    results: Results | None = None
    # The backbone's tensors as its own initialisers draw them; None where its class is not known (a loaded file).
    fresh: Callable[[], Mapping[str, Tensor]] | None = field(default=None, repr=False, compare=False)

    def losing(self, *lost: str) -> Captured:
        """The same, with more that training loses."""
        return replace(self, notes=(*self.notes, *lost), lost=(*self.lost, *lost))

    def limited_to(self, limit: str) -> Captured:
        """The same, with the reason why it takes fewer inputs than the backbone does."""
        return replace(self, notes=(*self.notes, f"takes only {limit}"), limit=limit)


class Cost(NamedTuple):
    """What one sample costs an extract. `macs`: multiply-accumulates of convolutions, linear layers and matrix
    products; `params`: elements of the parameters that it holds; `activation_bytes`: peak of live intermediate results.

    Of weights that are masked one by one (`NestedWeights`) both count what masks keep: what a compressed file stores
    and sparse kernels compute. An extract of those is dense, with zeros."""

    macs: int
    params: int
    activation_bytes: int


@dataclass(frozen=True)
class Level:
    """One of the networks inside an anytime model; 0 is the cheapest."""

    index: int
    name: str
    cost: Cost
    training_only: bool = False
    number: float | None = field(default=None, compare=False)  # what the scheme counts levels by: a width, say


class Outputs(NamedTuple):
    """What an anytime model returns: one prediction per level, cheapest first, and what the losses need besides.

    With a taxonomy each of them is a tuple of predictions, finest labels first. With `output="all"`, `results[k]` is
    all that the backbone returns, of level k, in the structure that the backbone returns it in."""

    levels: tuple[Tensor, ...]
    members: tuple[Tensor, ...] = ()
    results: tuple[Any, ...] = ()

    def __getattr__(self, name: str) -> NoReturn:
        """Says what to do where outputs are taken for a tensor; others ask for special names to see what this is."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise OutputsError(f"Outputs has no attribute {name!r}: {_ONE_PER_LEVEL}, such as out.levels[-1].argmax(1)")

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> NoReturn:
        """Asked by torch where a function, such as a criterion, is given outputs in place of a tensor: refuses."""
        name = getattr(function, "__name__", "a function of torch")
        raise ArgumentError(
            f"{name} was given Outputs for a tensor: {_ONE_PER_LEVEL}, such as criterion(out.levels[-1], target). All "
            "levels train with net.loss(out, target)"
        )


_ONE_PER_LEVEL = "it holds one prediction per level, cheapest first; take one of out.levels, or net(x, level=k)"
