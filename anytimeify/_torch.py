"""The one place where symbols of torch that are not public are touched, and the cures for its neighbours.

What is used, and why nothing public does it:

* `torch._ops.OpOverload`, `OpOverload._schema`: argument names, defaults and aliasing of an ATen operation;
* `torch._ops.HigherOrderOperator`: to tell a wrapper around a subgraph from an operation;
* `torch.utils._pytree`: the trees that `torch.export` itself describes inputs and outputs with;
* `SymInt.node.expr`: the expression behind a dynamic size;
* `torch.utils._sympy.functions`: the functions that such expressions are made of;
* `torch._subclasses.fake_tensor.is_fake`: whether a tensor that an exporter passes around has values;
* `torch._subclasses.FakeTensorMode`: to run an operation on tensors of dynamic sizes;
* `torch._export.serde`: an exported program from a document that was read and checked here;
* `torch.export.pt2_archive._package`: archives of several programs;
* `torch._C._dispatch_find_schema_or_throw`: whether a name is an operator of the dispatcher;
* `torch._C._AutoDispatchBelowAutograd`: what an operator with its own derivatives calls itself under;
* `torch.utils.checkpoint._checkpoint_without_reentrant_generator`: what runs around a checkpointed function;
* `torch.utils._python_dispatch.TorchDispatchMode`: to see operations below autograd;
* `torch.utils._python_dispatch._disable_current_modes`: to compute something while an export records;
* `torch.autograd.function._SingleLevelFunction`: the one place that every call of an autograd function comes to;
* `torch._C._autograd._top_saved_tensors_default_hooks`: whether somebody looks at what is saved for the backward pass;
* `torch.autograd.forward_ad._current_level`: whether forward-mode derivatives are taken;
* `torch._foreach_mul`, `torch._foreach_copy_`: what is done to many tensors in a few kernels;
* the tables of nodes and names of an `fx.Graph`: to add a node without looking through its arguments;
* the hooks that modules and tensors keep for the backward pass: only adding and removing them is public.

A test calls every function here, so a torch that moves one of them fails there and not in a user's model.
"""

from __future__ import annotations

import glob
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, is_fake
from torch.autograd import forward_ad, function
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils import _pytree as pytree
from torch.utils import checkpoint as checkpointing
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._sympy import functions as sympy_functions

from anytimeify.process import ONE_AT_A_TIME

__all__ = [
    "VALUES_WANTED",
    "FakeTensorMode",
    "HigherOrderOperator",
    "OpOverload",
    "SymbolicSizes",
    "TorchDispatchMode",
    "TreeSpec",
    "assert_holds",
    "autograd_calls",
    "backward_hooks",
    "copy_all",
    "copy_node",
    "expression",
    "flatten",
    "functional_overload",
    "gradient_hooks",
    "has_values",
    "is_higher_order",
    "is_plain",
    "is_watched",
    "load_pt2",
    "multiply_all",
    "new_node",
    "operator",
    "package_pt2",
    "prepare_torchvision",
    "program_of_parts",
    "quiet_exporter",
    "saves_as_it_likes",
    "schema",
    "size_functions",
    "text_arguments",
    "treespec_dumps",
    "treespec_loads",
    "unflatten",
    "without_data",
    "without_dispatch_modes",
    "without_recomputation",
]

TreeSpec = pytree.TreeSpec
assert_holds = torch._assert  # a call that graphs, exporters and compilers know
multiply_all = torch._foreach_mul
copy_all = torch._foreach_copy_


def flatten(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Leaves of a pytree and the specification that puts them together again."""
    return pytree.tree_flatten(tree)


def unflatten(leaves: Sequence[Any], spec: TreeSpec) -> Any:
    return pytree.tree_unflatten(leaves, spec)


def treespec_dumps(spec: TreeSpec) -> str:
    return pytree.treespec_dumps(spec)


def treespec_loads(text: str) -> TreeSpec:
    return pytree.treespec_loads(text)


def package_pt2(
    file: str | os.PathLike[str], programs: Mapping[str, ExportedProgram], texts: Mapping[str, str]
) -> None:
    """Writes an archive of several programs, and texts beside them."""
    from torch.export.pt2_archive import _package as pt2_archive  # it imports torch._dynamo

    pt2_archive.package_pt2(file, exported_programs=dict(programs), extra_files=dict(texts))


def load_pt2(file: str | os.PathLike[str]) -> dict[str, ExportedProgram]:
    """The programs of an archive. Loading one can run code: for files that were just written, or are trusted."""
    from torch.export.pt2_archive import _package as pt2_archive

    return pt2_archive.load_pt2(file).exported_programs


def schema(target: OpOverload) -> torch.FunctionSchema:
    return target._schema


def functional_overload(target: OpOverload) -> OpOverload | None:
    """The operation that returns what `target` writes: `add.Tensor` of `add_.Tensor` and of `add.out`,
    `pow.Tensor_Scalar` of `pow_.Scalar`; None when torch has none.

    It takes the arguments of `target`, by name or else in the same order, and may take others that have defaults."""
    namespace, _, name = target._schema.name.partition("::")
    wanted = [one for one in target._schema.arguments if not one.is_out]
    written = name if len(wanted) < len(target._schema.arguments) else _without_underscore(name)
    packet = getattr(getattr(torch.ops, namespace), written, None) if written is not None else None
    overloads = sorted(packet.overloads() if packet is not None else [], key=lambda one: one != target._overloadname)
    found = [getattr(packet, overload) for overload in overloads]
    functional = [one for one in found if not one._schema.is_mutable]
    return next((one for alike in (_alike, _takes) for one in functional if alike(one._schema.arguments, wanted)), None)


def _without_underscore(name: str) -> str | None:
    """`add_` -> `add`, `__iand__` -> `__and__`; None of names of another form."""
    if name.endswith("__"):
        return f"__{name[3:]}" if name.startswith("__i") else None
    return name[:-1] if name.endswith("_") else None


def _alike(found: Sequence[Any], wanted: Sequence[Any]) -> bool:
    return [(each.kwarg_only, str(each.type)) for each in found] == [(one.kwarg_only, str(one.type)) for one in wanted]


def _takes(found: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Whether every wanted argument is there under its name, and the others have defaults."""
    given = {one.name: str(one.type) for one in wanted}
    named = {each.name: str(each.type) for each in found}
    rest = [each for each in found if each.name not in given]
    return given.items() <= named.items() and all(each.has_default_value() for each in rest)


def expression(size: int | torch.SymInt) -> sympy.Expr:
    """The expression of a size, in the symbols of `torch.export`."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def size_functions() -> Mapping[str, Callable[..., Any]]:
    """The functions that stand in such expressions, by the names that they are printed with."""
    own = ["CeilDiv", "CeilToInt", "CleanDiv", "FloorDiv", "FloorToInt", "IntTrueDiv", "Max", "Min", "Mod"]
    own += ["ModularIndexing", "PythonMod", "ToFloat", "TruncToInt"]
    return {**{name: getattr(sympy_functions, name) for name in own}, "floor": sympy.floor, "ceiling": sympy.ceiling}


# What is raised where an operation has no result without values; on the meta device that is a `NotImplementedError`.
VALUES_WANTED: tuple[type[Exception], ...] = (
    NotImplementedError,
    DataDependentOutputException,
    DynamicOutputShapeException,
)


class SymbolicSizes:
    """Runs operations on tensors without data whose sizes are expressions of symbols; each symbol has a value that
    decides where an operation asks about sizes."""

    def __init__(self, values: Mapping[sympy.Symbol, int]) -> None:
        from torch._dynamo.source import ConstantSource  # takes as long to import as all of this package

        self._environment = ShapeEnv(allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False)
        self._mode = FakeTensorMode(shape_env=self._environment, allow_non_fake_inputs=True)
        self._values = dict(values)
        self._inner = {
            symbol: self._environment.create_symbol(
                value, ConstantSource(str(symbol)), dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None
            )
            for symbol, value in values.items()
        }

    def size(self, expression: sympy.Expr) -> int | torch.SymInt:
        if not expression.free_symbols:
            return int(expression)
        hint = int(expression.subs(self._values))
        found = self._environment.create_symintnode(expression.xreplace(self._inner), hint=hint)
        assert isinstance(found, torch.SymInt)
        return found

    def empty(
        self,
        shape: Sequence[sympy.Expr],
        dtype: torch.dtype,
        device: torch.device | str = "meta",
        strides: Sequence[sympy.Expr] | None = None,
    ) -> Tensor:
        """A tensor without data; contiguous without `strides`."""
        sizes = [self.size(size) for size in shape]
        with self._mode:
            if strides is None:
                return torch.empty(sizes, dtype=dtype, device=device)
            return torch.empty_strided(sizes, [self.size(one) for one in strides], dtype=dtype, device=device)

    def run(self, target: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with self._mode, torch.no_grad():
            return target(*args, **kwargs)

    def expression(self, size: int | torch.SymInt) -> sympy.Expr:
        """The expression of a size in the symbols that were given."""
        names = {inner: symbol for symbol, inner in self._inner.items()}
        return expression(size).xreplace(names)


def without_data(tensors: Sequence[Tensor], device: str) -> list[Tensor]:
    """Tensors of the same types that have no data, and say that they are on a device; parameters of parameters."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shells: list[Tensor] = []
    for tensor in tensors:
        with mode:
            shell = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        shells.append(nn.Parameter(shell, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shell)
    return shells


# What the exporter says besides what it raises: tracebacks, symbols without a source line, operations that failed.
_EXPORTER_LOGS = (
    *("torch.export", "torch._export.serde.serialize"),
    *("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor"),
)


class _Muted:
    """A stream that drops what one thread writes; a progress display in another thread goes on."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """`torch.export` logs what it then raises anyway, and prints the graph that it had so far to stderr."""
    with ONE_AT_A_TIME:
        logs = [logging.getLogger(name) for name in _EXPORTER_LOGS]
        disabled, stream = [log.disabled for log in logs], sys.stderr
        try:
            for log in logs:
                log.disabled = True
            sys.stderr = _Muted(stream)  # as much of a stream as print asks for
            yield
        finally:
            sys.stderr = stream
            for log, before in zip(logs, disabled, strict=True):
                log.disabled = before


# A CPU build of torch beside the torchvision of PyPI cannot load torchvision's compiled part; torchvision then fails
# at import, where it registers fake kernels for two operators that do not exist. Their schemas alone cure it.
_TORCHVISION_SCHEMAS = (
    ("nms", "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
    ("qnms", "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
)
_LIBRARIES: list[torch.library.Library] = []  # a registration lives as long as its library object


def prepare_torchvision() -> None:
    """Makes `import torchvision` (and timm, which imports it) work where its compiled part cannot be loaded.

    Call it before the import. Does nothing when torchvision is absent, already imported, or loads by itself.
    """
    if _LIBRARIES or importlib.util.find_spec("torchvision") is None or _torchvision_loads():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, text in _TORCHVISION_SCHEMAS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(text)
    _LIBRARIES.append(library)


def _torchvision_loads() -> bool:
    """Whether `torchvision::nms` exists, after trying to load the extension in the way torchvision does."""
    if hasattr(torch.ops.torchvision, "nms"):
        return True
    found = importlib.util.find_spec("torchvision")
    for folder in (found.submodule_search_locations or ()) if found else ():
        for path in glob.glob(os.path.join(folder, "_C*.so")) + glob.glob(os.path.join(folder, "_C*.pyd")):
            try:
                torch.ops.load_library(path)
            except (OSError, RuntimeError):
                continue
    return hasattr(torch.ops.torchvision, "nms")


def below_autograd() -> AbstractContextManager[None]:
    """What is called inside is not differentiated: it goes to the kernels right away."""
    result: AbstractContextManager[None] = torch._C._AutoDispatchBelowAutograd()
    return result


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers itself, and no function transform, tracer or compiler looks on."""
    return (
        type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is None
        and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is None
    )


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor has numbers, be it under a tracer or not."""
    return not tensor.is_meta and not is_fake(tensor)


def is_watched() -> bool:
    """Whether a dispatch mode sees every operation, such as one that counts them."""
    return torch._C._len_torch_dispatch_stack() > 0


def saves_as_it_likes() -> bool:
    """Whether a call in this thread may save for the backward pass what it saves at no other call: no hooks that look
    at it (checkpointing compares), and no forward-mode derivatives beside."""
    level: int = getattr(forward_ad, "_current_level")  # noqa: B009  # which is annotated as the number it begins with
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is None and level < 0


@contextmanager
def autograd_calls(by: Callable[..., Any]) -> Iterator[None]:
    """In this thread `SomeFunction.apply(*args)`, however it is bound, becomes `by(apply, SomeFunction, *args)`."""
    base: Any = function._SingleLevelFunction  # what `Function.apply` calls
    thread, before = threading.get_ident(), base.__dict__.get("apply")

    def apply(cls: Any, *args: Any, **named: Any) -> Any:  # that torch has no place for, before 2.13
        original = super(base, cls).apply if before is None else before.__get__(None, cls)
        return by(original, cls, *args) if threading.get_ident() == thread and not named else original(*args, **named)

    base.apply = classmethod(apply)
    try:
        yield
    finally:
        if before is None:
            del base.apply
        else:
            base.apply = before


@contextmanager
def without_recomputation(around: Callable[[], AbstractContextManager[None]] = nullcontext) -> Iterator[None]:
    """What `torch.utils.checkpoint` runs without reentrance, in this thread, is run as if it were called, inside of
    `around()`."""
    original, thread = checkpointing._checkpoint_without_reentrant_generator, threading.get_ident()

    def called(*args: Any, **kwargs: Any) -> Iterator[None]:
        if threading.get_ident() != thread:
            yield from original(*args, **kwargs)
        else:
            with around():
                yield

    checkpointing._checkpoint_without_reentrant_generator = called
    try:
        yield
    finally:
        checkpointing._checkpoint_without_reentrant_generator = original


@contextmanager
def without_dispatch_modes() -> Iterator[None]:
    """What is called inside is computed, while an export around it records and computes nothing."""
    with _disable_current_modes():
        yield


def backward_hooks(module: nn.Module) -> list[Any]:
    """What is registered on a module for the backward pass."""
    return [*module._backward_hooks.values(), *module._backward_pre_hooks.values()]


def gradient_hooks(tensor: Tensor) -> list[Any]:
    """What is registered on a tensor for its gradient."""
    return [*(tensor._backward_hooks or {}).values(), *(tensor._post_accumulate_grad_hooks or {}).values()]


def new_node(
    graph: fx.Graph,
    op: str,
    target: Any,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    name: str,
) -> fx.Node:
    """As `graph.create_node`, which looks through all arguments for symbolic sizes and takes four times as long."""
    names = graph._graph_namespace
    name = names.create_name(name, None)
    node = fx.Node(graph, name, op, target, args, dict(kwargs or {}))
    names.associate_name_with_obj(name, node)
    graph._insert(node)
    graph._find_nodes_lookup_table.insert(node)
    graph._len += 1
    return node


def copy_node(graph: fx.Graph, node: fx.Node, operand: Callable[[fx.Node], Any] | None = None) -> fx.Node:
    """As `graph.node_copy`: a copy of a node, which reads what `operand` gives for the nodes that it reads."""
    args, kwargs = node.args, node.kwargs
    if operand is not None:
        args = fx.map_arg(args, operand)
        kwargs = fx.map_arg(kwargs, operand) if kwargs else kwargs
    new = new_node(graph, node.op, node.target, args, kwargs, name=node.name)
    new.meta.update(node.meta)
    return new


def is_higher_order(node: fx.Node) -> bool:
    return isinstance(node.target, HigherOrderOperator)


def operator(namespace: str, name: str, overload: str) -> OpOverload | None:
    """`aten`, `add`, `Tensor`: the operator of that name in torch's dispatcher; None where it has none.

    `torch.ops` finds more than that: functions of TorchScript (`aten::save`, which writes a file) and its own methods
    (`load_library`).
    """
    try:
        torch._C._dispatch_find_schema_or_throw(f"{namespace}::{name}", "" if overload == "default" else overload)
    except RuntimeError:
        return None
    found = getattr(getattr(getattr(torch.ops, namespace, None), name, None), overload, None)
    return found if isinstance(found, OpOverload) else None


def text_arguments(target: OpOverload) -> list[str]:
    """The names of the arguments that are text, or may be."""
    return [one.name for one in target._schema.arguments if "str" in str(one.type).lower().replace("stream", "")]


def program_of_parts(
    document: dict[str, Any],
    state: dict[str, torch.Tensor],
    constants: dict[str, torch.Tensor],
    example_inputs: tuple[tuple[Any, ...], dict[str, Any]] | None,
) -> ExportedProgram:
    """What `torch.export.load` does with the parts of an archive, once they are read: `document` is the JSON of the
    program. Runs code that a document can hold: the caller has checked it."""
    from torch._export.serde import schema as parts
    from torch._export.serde import serialize

    program = serialize._dict_to_dataclass(parts.ExportedProgram, document)
    return serialize.ExportedProgramDeserializer().deserialize(program, state, constants, example_inputs)
