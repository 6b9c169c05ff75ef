"""The tensors that a network does not train. Copies of them hold the backbone's values, and are not trained either.

Examples are fixed filters, position tables made by a formula, and pretrained parts that are frozen: nothing would ever
train a copy that was drawn anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from anytimeify.analysis.axes import Axes, Widths
from anytimeify.ir import Program, names
from anytimeify.ir.schema import bound
from anytimeify.rules.factors import Expr, leaves, resolve

__all__ = ["STATISTICS", "at_size", "frozen", "is_trained"]

STATISTICS = ("running_mean", "running_var")


def frozen(program: Program) -> frozenset[str]:
    """Names of the tensors that are not trained:

    1. parameters that ask for no gradient;
    2. running statistics of norms all of whose parameters are such, or that do not follow the batches in training,
       and the count of those batches.
    """
    found = {name for name in program.tensors if program.is_parameter(name) and not is_trained(program.tensors[name])}
    for node in program.graph.find_nodes(op="get_attr"):
        norms = [user for user in node.users if any(bound(user).get(one) is node for one in STATISTICS)]
        if norms and all(_is_still(program, norm) for norm in norms):
            found |= {str(node.target), names.counter(str(node.target))}
    ties = {id(program.tensors[name]) for name in found if name in program.tensors}
    return frozenset(name for name, tensor in program.tensors.items() if id(tensor) in ties)


def is_trained(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter that asks for a gradient."""
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


def _is_still(program: Program, norm: fx.Node) -> bool:
    """Whether the statistics of a norm belong to what is not trained."""
    given = bound(norm)
    if False in (given.get("training"), given.get("use_input_stats")):
        return True
    affine = [given[name] for name in ("weight", "bias") if isinstance(given.get(name), fx.Node)]
    read = [program.tensors[str(node.target)] for node in affine if node.op == "get_attr"]
    return bool(read) and not any(map(is_trained, read))


def at_size(tensor: Tensor, dims: Sequence[Expr], axes: Axes, widths: Widths, shape: Sequence[int]) -> Tensor | None:
    """The values of a tensor at other widths: their prefix where it is narrower, and where it is wider the same ones
    again if they are the same all along; None where they are not."""
    part = tensor.detach()
    for dim, (expr, size) in enumerate(zip(dims, shape, strict=True)):
        if not axes.narrowed(expr, widths):
            continue
        if any(widths.get(leaf, 0) > leaf.size.coefficient for leaf in leaves(resolve(expr))):
            first = part.narrow(dim, 0, 1)
            if not torch.equal(part, first.expand_as(part)):
                return None
            part = first.expand(*(size if one == dim else -1 for one in range(part.ndim)))
        else:
            part = part.index_select(dim, torch.from_numpy(axes.indices(expr, widths)).to(part.device))
    return part.clone(memory_format=torch.contiguous_format)
