"""What a node of a program may call: operators of torch's own that compute, and nothing that touches files or code.

torch looks a target up attribute by attribute, `torch.hub.os.system` included. Here it is an operator with a schema,
of a namespace in the table, whose text arguments are options and not names of files; a function of symbolic sizes; or
one of the operators around a subgraph.
"""

from __future__ import annotations

from typing import Any

from anytimeify._torch import operator, prepare_torchvision, text_arguments
from anytimeify.capture.pt2.checks import RefusedError, shown

__all__ = ["HIGHER_ORDER", "SYMBOLIC", "target"]

_NAMESPACES = ("aten", "prims", "quantized", "quantized_decomposed", "torchvision", "anytimeify")

# Options by name. Not here: `filename` (of `from_file`, which maps a file, and makes it), `s` (what is printed).
_OPTIONS = frozenset(
    {"UPLO", "activation", "algorithm", "api_name", "approximate", "assert_msg", "driver", "equation", "indexing"}
    | {"interpolation", "mode", "norm", "ord", "p", "pad_mode", "padding", "padding_mode", "padding_side", "reduce"}
    | {"rounding_mode", "side"}
)

SYMBOLIC = frozenset(
    f"_operator.{name}"
    for name in (
        *("eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub", "floordiv", "mod", "pow"),
        *("truediv", "and_", "or_", "lshift", "rshift"),
    )
) | {"math.trunc", "torch._sym_sqrt", *(f"torch.sym_{name}" for name in ("not", "int", "float", "ite", "max", "min"))}

HIGHER_ORDER = frozenset(
    {"associative_scan", "cond", "flex_attention", "invoke_subgraph", "map_impl", "out_dtype", "scan"}
    | {"tag_activation_checkpoint", "while_loop", "wrap_activation_checkpoint", "wrap_with_autocast"}
    | {"wrap_with_set_grad_enabled"}
)


def target(value: Any, where: str) -> None:
    """The text of a target, such as `torch.ops.aten.add.Tensor`; `RefusedError` where it is none of those above."""
    if not isinstance(value, str):
        raise RefusedError(where, f"expected an operator, got {shown(value)}")
    if value in SYMBOLIC:
        return
    match value.split("."):
        case ["torch", "ops", "higher_order", one] if one in HIGHER_ORDER:
            return
        case ["torch", "ops", namespace, one, overload] if namespace in _NAMESPACES:
            _computes(namespace, one, overload, where)
        case ["torch", "ops", namespace, _, _] if namespace.isidentifier():
            raise RefusedError(where, f"{shown(value)} is an operator of a library other than torch")
        case _:
            raise RefusedError(where, f"{shown(value)} is no operator that is read")


def _computes(namespace: str, one: str, overload: str, where: str) -> None:
    if namespace == "torchvision":
        prepare_torchvision()
    found = operator(namespace, one, overload)
    if found is None:
        raise RefusedError(where, f"{shown(f'{namespace}.{one}.{overload}')} is no operator of this installation")
    other = [name for name in text_arguments(found) if name not in _OPTIONS]
    if other:
        raise RefusedError(where, f"{found} takes '{other[0]}', which is no option of a computation")
