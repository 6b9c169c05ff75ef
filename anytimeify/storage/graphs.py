"""A captured backbone as plain data (what JSON can hold), and back.

Decoding never runs what a file says: operations are looked up in an allow-list of functional ATen operations, of our
own, and of integer arithmetic; names of tensors, inputs and nodes, which end up in generated code, have to look like
names. Everything else is refused with `ArtifactError`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor, fx

from anytimeify._torch import OpOverload, flatten, unflatten
from anytimeify.codegen.stacked_parameters import first_member
from anytimeify.contract.spec import INTEGER_FUNCTIONS
from anytimeify.errors import ArtifactError
from anytimeify.ir import Origin, Program, Signature, Size, TensorType
from anytimeify.ir.node_meta import Counted, checkpoint_of, counts_of, origin_of, type_of
from anytimeify.ir.recast import recast
from anytimeify.ir.schema import bound, is_mutable
from anytimeify.operators.kept_modules import KEPT_MODULE, shell_of
from anytimeify.rules.table import has_kind, has_rule, of_other_libraries

__all__ = [
    "decode_batch_range",
    "decode_program",
    "decode_signature",
    "decode_value",
    "dtype_of",
    "encode_program",
    "encode_signature",
    "encode_value",
]

_OPERATORS: dict[str, Callable[..., Any]] = {
    **{function.__name__: function for function in INTEGER_FUNCTIONS},
    **{name: getattr(operator, name) for name in ("getitem", "eq", "ne", "lt", "le", "gt", "ge")},
    **{name: getattr(torch, name) for name in ("sym_max", "sym_min", "sym_int", "sym_float")},
}
_MOST_COUNTED = 64  # dimensions whose widths decide one number
_NAMESPACES = ("aten", "anytimeify")
# ATen operations that reach outside tensors, or below their bounds checks.
_FORBIDDEN = re.compile(
    r"from_file|from_blob|print|storage|as_strided|resize|data_ptr|record_stream|pin_memory|empty_strided"
)
_OTHER_LIBRARY = re.compile(r"(?!operator\.)[A-Za-z]\w*(\.[A-Za-z]\w*){2}")
_PRIVATE = re.compile(r"_unsafe_index|_fft_\w+")  # besides those that have a rule
_TENSOR_NAME = re.compile(r"[\w\-+ :/@$]+(\.[\w\-+ :/@$]+)*")
_DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_LAYOUTS = {str(value): value for value in vars(torch).values() if isinstance(value, torch.layout)}
_MEMORY_FORMATS = {str(value): value for value in vars(torch).values() if isinstance(value, torch.memory_format)}


def encode_program(program: Program) -> dict[str, Any]:
    """The graph of a program. Tensors are not part of it."""
    nodes = [
        {
            "op": node.op,
            "name": node.name,
            "target": _target_name(node),
            "args": [_encode(value) for value in node.args],
            "kwargs": {name: _encode(value) for name, value in node.kwargs.items()},
            "type": _encode_type(type_of(node)),
            "origin": list(astuple(origin_of(node))),
            **({"checkpoint": checkpoint_of(node)} if checkpoint_of(node) is not None else {}),
            **({"counts": [list(one) for one in counts_of(node)]} if counts_of(node) else {}),
        }
        for node in program.graph.nodes
    ]
    return {"nodes": nodes, "transient": sorted(program.transient)}


def decode_program(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Program:
    """The inverse of `encode_program`. `ArtifactError` where the data is damaged, or asks for what is not allowed."""
    for name in tensors:
        _check(_TENSOR_NAME.fullmatch(name), f"{name!r} is not a name of a tensor")
    shapes = {
        entry["target"]: _decode_type(entry["type"]).shape for entry in data["nodes"] if entry["op"] == "get_attr"
    }
    for name, shape in shapes.items():
        _check(name in tensors, f"the tensor {name!r} is missing")
        _check(all(size.static for size in shape), f"the tensor {name!r} has no fixed size")
    tensors = {
        name: first_member(tensor, [size.coefficient for size in shapes[name]]) if name in shapes else tensor
        for name, tensor in tensors.items()
    }
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in data["nodes"]:
        op, name = entry["op"], entry["name"]
        args = tuple(_decode(value, nodes) for value in entry["args"])
        kwargs = {_identifier(key): _decode(value, nodes) for key, value in entry["kwargs"].items()}
        _check(name not in nodes, f"there are two nodes {name!r}")
        node = graph.create_node(op, _target(op, entry["target"], tensors), args, kwargs, _identifier(name))
        node.meta["type"] = _decode_type(entry["type"])
        node.meta["origin"] = Origin(*map(str, entry["origin"]))
        _check(
            not origin_of(node).module_path or _TENSOR_NAME.fullmatch(origin_of(node).module_path),
            "a bad origin",
        )
        if "checkpoint" in entry:
            _check(type(entry["checkpoint"]) is int, f"the part of {name!r} has no number")
            node.meta["checkpoint"] = entry["checkpoint"]
        if "counts" in entry:
            node.meta["counts"] = _decode_counts(entry["counts"], node, nodes)
        nodes[name] = node
    _check(bool(nodes) and next(reversed(nodes.values())).op == "output", "the graph has no output")
    # A model may have been saved in another precision than it was captured in.
    return recast(Program(graph, dict(tensors), frozenset(map(str, data["transient"]))))


def encode_signature(signature: Signature) -> dict[str, Any]:
    """How the backbone is called. What else it returned besides its prediction is not part of the model any more."""
    leaves = signature.in_spec.num_leaves
    return {
        "inputs": _encode_tree(unflatten(range(leaves), signature.in_spec)),
        "constants": [[position, _encode(value)] for position, value in signature.constants],
        "names": list(signature.names),
        "positional": signature.positional,
    }


def decode_batch_range(found: Any) -> tuple[int, int | None]:
    """The smallest and the largest size of a batch, None where there is no largest."""
    least, most = found
    if type(least) is not int or (most is not None and type(most) is not int):
        raise ArtifactError(f"batch_range is {found!r}: expected two whole numbers, the second one or null")
    return least, most


def decode_signature(data: Mapping[str, Any]) -> Signature:
    """The inverse of `encode_signature`; the result is one tensor, the prediction."""
    tree = _decode_tree(data["inputs"])
    leaves, in_spec = flatten(tree)
    _check(
        isinstance(tree, tuple) and len(tree) == 2 and isinstance(tree[0], tuple) and isinstance(tree[1], dict),
        "the signature does not describe a call",
    )
    _check(leaves == list(range(len(leaves))), "the signature does not number its inputs in order")
    constants = tuple((int(position), _decode(value, {})) for position, value in data["constants"])
    names, positional = data.get("names", []), data.get("positional")
    _check(positional is None or isinstance(positional, int), "the signature does not say what goes by position")
    return Signature(
        in_spec, flatten(0)[1], 0, constants, tuple(_identifier(name or "_") for name in names), positional
    )


def encode_value(value: Any) -> Any:
    """A constant, such as a number, a text or a tuple of them. `ArtifactError` for what cannot be saved."""
    return _encode(value)


def decode_value(data: Any) -> Any:
    """The inverse of `encode_value`."""
    return _decode(data, {})


def dtype_of(name: str) -> torch.dtype:
    """`"float32"` -> `torch.float32`."""
    _check(name in _DTYPES, f"{name!r} is not a type of tensors")
    return _DTYPES[name]


def _decode_counts(data: Any, node: fx.Node, nodes: Mapping[str, fx.Node]) -> tuple[Counted, ...]:
    """Numbers of a call that follow the widths of dimensions of nodes before it, or of itself."""
    found, known = [], set[str]()
    for argument, power, places in data:
        _check(argument in bound(node), f"{node.name!r} has no argument {argument!r}")
        number = bound(node)[argument]
        _check(type(number) in (int, float), f"the argument {argument!r} of {node.name!r} is no number")
        _check(argument not in known, f"{node.name!r} has two numbers {argument!r}")
        known.add(argument)
        _check(power in (1, -1, 0.5, -0.5), f"{node.name!r} has a number that counts nothing")
        _check(0 < len(places) <= _MOST_COUNTED, f"{node.name!r} has a number that counts {len(places)} dimensions")
        for name, dim in places:
            rank = len(getattr(type_of(nodes[name]), "shape", ())) if name in nodes else 0
            _check(type(dim) is int and 0 <= dim < rank, f"{node.name!r} has a number that counts no dimension")
        found.append(Counted(argument, float(power), tuple((str(name), dim) for name, dim in places)))
    return tuple(found)


def _check(condition: object, problem: str) -> None:
    if not condition:
        raise ArtifactError(f"the saved graph is damaged or not safe to load: {problem}")


def _identifier(name: Any) -> str:
    _check(isinstance(name, str) and name.isidentifier(), f"{name!r} is not a name")
    return str(name)


def _target_name(node: fx.Node) -> str:
    if has_kind(node, "kept module"):
        raise ArtifactError(
            f"{shell_of(bound(node)['module']).title} is kept whole, for torch.export cannot look into it, and a file "
            "holds no code. Save net.state_dict() instead, and load it into a model that the same transform(...) makes "
            "of the backbone"
        )
    if isinstance(node.target, OpOverload):
        if not _allowed(str(node.target)):  # refused here rather than when the file is read
            raise ArtifactError(f"node {node.name} calls {node.target}, which cannot be saved")
        return str(node.target)
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        if _OPERATORS.get(name) is not node.target:
            raise ArtifactError(f"node {node.name} calls {node.target}, which cannot be saved")
        return f"operator.{name}"
    return str(node.target)


def _target(op: str, name: str, tensors: Mapping[str, Tensor]) -> str | Callable[..., Any]:
    if op == "get_attr":
        _check(name in tensors, f"the tensor {name!r} is missing")
        return name
    if op == "placeholder" or (op == "output" and name == "output"):
        return _identifier(name)
    _check(op == "call_function", f"{op!r} is not a canonical kind of node")
    return _function(name)


def _function(name: str) -> Callable[..., Any]:
    """The allow-list. Only names that pass it are looked up at all."""
    namespace, _, rest = name.partition(".")
    if namespace == "operator" and rest in _OPERATORS:
        return _OPERATORS[rest]
    packet_name, _, overload_name = rest.partition(".")
    if namespace not in _NAMESPACES and _OTHER_LIBRARY.fullmatch(name) and not _allowed(name):
        raise ArtifactError(
            f"the saved graph calls {name}, which is not allowed here: import the package that defines it and "
            "registers its rule (axis_rule) before loading"
        )
    _check(_allowed(name), f"the operation {name!r} is not allowed")
    target: Any = getattr(getattr(getattr(torch.ops, namespace), packet_name, None), overload_name, None)
    if target is None and name in of_other_libraries():
        raise ArtifactError(f"the saved graph calls {name}: import {namespace}, which defines it, before loading")
    _check(isinstance(target, OpOverload) and not is_mutable(target), f"there is no functional operation {name!r}")
    result: Callable[..., Any] = target
    return result


def _allowed(name: str) -> bool:
    namespace, _, rest = name.partition(".")
    packet_name, _, overload_name = rest.partition(".")
    return name in of_other_libraries() or (
        namespace in _NAMESPACES
        and name != str(KEPT_MODULE)  # calls a module of this process
        and packet_name.isidentifier()
        and overload_name.isidentifier()
        and (not packet_name.startswith("_") or _PRIVATE.fullmatch(packet_name) is not None or has_rule(name))
        and not packet_name.endswith("_")
        and not overload_name.startswith("_")
        and not _FORBIDDEN.search(packet_name)
    )


def _encode(value: Any) -> Any:
    """Arguments of a node; what JSON has no word for is a dict of one entry."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[_encode(key), _encode(item)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"slice": [_encode(value.start), _encode(value.stop), _encode(value.step)]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, (torch.device, torch.layout, torch.memory_format)):
        return {type(value).__name__: str(value)}
    raise ArtifactError(f"an argument of type {type(value).__name__} cannot be saved: {value!r}")


def _decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    _check(len(value) == 1, f"unknown argument {value!r}")
    ((kind, held),) = value.items()
    if kind == "node":
        _check(held in nodes, f"a node reads {held!r} before it exists")
        return nodes[held]
    if kind == "tuple":
        return tuple(_decode(item, nodes) for item in held)
    if kind == "dict":
        return {_decode(key, nodes): _decode(item, nodes) for key, item in held}
    if kind == "slice":
        return slice(*(_decode(item, nodes) for item in held))
    simple: dict[str, Callable[[Any], Any]] = {
        "float": float,
        "dtype": dtype_of,
        "device": torch.device,
        "layout": _LAYOUTS.__getitem__,
        "memory_format": _MEMORY_FORMATS.__getitem__,
    }
    _check(kind in simple, f"unknown argument {value!r}")
    return simple[kind](held)


def _encode_type(kind: Any) -> Any:
    if isinstance(kind, TensorType):
        return {"shape": [_encode_size(size) for size in kind.shape], "dtype": str(kind.dtype).removeprefix("torch.")}
    if isinstance(kind, Size):
        return {"size": _encode_size(kind)}
    return [_encode_type(item) for item in kind] if isinstance(kind, tuple) else None


def _decode_type(data: Any) -> Any:
    if isinstance(data, list):
        return tuple(_decode_type(item) for item in data)
    if data is None:
        return None
    if "size" in data:
        return _decode_size(data["size"])
    return TensorType(tuple(map(_decode_size, data["shape"])), dtype_of(data["dtype"]))


def _encode_size(size: Size) -> list[int | str]:
    return [size.coefficient, *size.symbols]


def _decode_size(data: Iterable[Any]) -> Size:
    coefficient, *symbols = data
    return Size(int(coefficient), tuple(map(str, symbols)))


def _encode_tree(tree: Any) -> Any:
    """Nested inputs: an integer is a leaf, a list a tuple; others are dicts of one entry."""
    if type(tree) is tuple:
        return [_encode_tree(part) for part in tree]
    if type(tree) is list:
        return {"list": [_encode_tree(part) for part in tree]}
    if type(tree) is dict:
        return {"dict": [[_encode(key), _encode_tree(part)] for key, part in tree.items()]}
    if type(tree) is int:
        return tree
    raise ArtifactError(
        f"an input of type {type(tree).__name__} cannot be saved: tuples, lists and dicts of tensors can"
    )


def _decode_tree(data: Any) -> Any:
    if isinstance(data, list):
        return tuple(_decode_tree(part) for part in data)
    if isinstance(data, dict):
        ((kind, held),) = data.items()
        _check(kind in ("list", "dict"), f"unknown input {kind!r}")
        if kind == "list":
            return [_decode_tree(part) for part in held]
        return {_decode(key, {}): _decode_tree(part) for key, part in held}
    _check(type(data) is int, f"unknown input {data!r}")
    return data
